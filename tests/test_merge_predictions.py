"""yt8m_distill/merge_predictions.py: the CSV of one process out of those of many."""

import os
import pathlib

import numpy as np
import pytest

from tests import script_helpers
from yt8m_distill import merge_predictions
from yt8m_distill.serving import parts, predictions

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADER = predictions.HEADER_LINE


def write_parts(folder, *rows: bytes) -> list[str]:
    """The CSVs of parts that have these rows below their headers."""
    count = len(rows)
    paths = [parts.part_path(f"{folder}/x.csv", i, count) for i in range(count)]
    for path, text in zip(paths, rows, strict=True):
        pathlib.Path(path).write_bytes(HEADER + text)
    return paths


def error_of(folder, paths) -> str:
    """The message of a refusal, which leaves last week's output and nothing else."""
    output = folder / "merged.csv"
    output.write_text("from last week")
    before = sorted(os.listdir(folder))
    with pytest.raises(ValueError) as caught:
        merge_predictions.merge(paths, str(output))
    assert output.read_text() == "from last week"
    assert sorted(os.listdir(folder)) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_merged_csv_is_that_of_one_writer(tmp_path, count):
    # Ids that need quotes, that span lines and that are not UTF-8.
    ids = [b"a", b"b,c", b"d\ne", b"\xff", b'"', b"f\r\ng", b"", "é".encode()]
    random = np.random.default_rng(count)
    classes = random.integers(0, 3862, (len(ids), 5))
    scores = -np.sort(-np.float32(random.random(classes.shape) ** 8), axis=1)
    paths = [parts.part_path(f"{tmp_path}/x.csv", i, count) for i in range(count)]
    rows = range(len(ids))
    for index, path in enumerate(paths):
        chosen = parts.files_of_part(rows, index, count)
        with predictions.PredictionWriter(path) as writer:
            writer.write([ids[i] for i in chosen], classes[chosen], scores[chosen])
    with predictions.PredictionWriter(tmp_path / "one.csv") as writer:
        writer.write(ids, classes, scores)
    merged = tmp_path / "merged.csv"
    assert merge_predictions.merge(paths, str(merged)) == len(ids)
    assert merged.read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_parts_without_rows_add_nothing(tmp_path):
    paths = write_parts(tmp_path, b"", b"a,1 0.5\n", b"")
    assert merge_predictions.merge(paths, f"{tmp_path}/merged.csv") == 1
    assert (tmp_path / "merged.csv").read_bytes() == HEADER + b"a,1 0.5\n"
    (tmp_path / "none").mkdir()
    paths = write_parts(tmp_path / "none", b"", b"")
    assert paths[0] in error_of(tmp_path / "none", paths)


ROW = b"a,1 0.5\n"


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        # A row has two columns.
        ([ROW, b"b,1 0.5\nc,1 0.5,2 0.2\n"], ["{1}, line 3: ", "received 3"]),
        # Of c,1 0.25: still two columns, but a wrong score, followed by the next row.
        ([ROW + b"c,1 0.2", b"b,1 0.5\n"], ["{0}, line 3: "]),
        # A video in two parts, and twice in one.
        ([ROW + b"b,1 0.5\n", b"", b"b,2 0.5\n"], ["'b'", "{0}", "{2}"]),
        ([b'"b\nc",1 0.5\n"b\nc",1 0.5\n', b""], ["'b\\nc'", "{0}"]),
    ],
)
def test_parts_that_are_no_result_are_refused(tmp_path, rows, named):
    paths = write_parts(tmp_path, *rows)
    message = error_of(tmp_path, paths)
    assert all(part.format(*paths) in message for part in named)


def test_the_output_may_not_replace_a_part(tmp_path):
    paths = write_parts(tmp_path, b"a,1 0.5\n", b"b,1 0.5\n")
    output = tmp_path / "link.csv"
    output.symlink_to(paths[1])
    with pytest.raises(ValueError, match="link.csv .* is one of the files"):
        merge_predictions.merge(paths, str(output))
    assert pathlib.Path(paths[1]).read_bytes() == HEADER + b"b,1 0.5\n"


def test_the_program_merges(tmp_path):
    write_parts(tmp_path, b"b,1 0.5\n", b"a,2 0.25\n")
    output = tmp_path / "x.csv"  # The name of the parts themselves is free.
    arguments = f"--input={tmp_path}/x.csv", f"--output_file={output}"
    done = script_helpers.succeed("merge_predictions", *arguments)
    assert done.stdout == f"2 videos of 2 parts in {output}.\n"
    assert "%|" not in done.stderr  # No bar where no terminal is.
    assert output.read_bytes() == HEADER + b"b,1 0.5\na,2 0.25\n"


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["x.csv"], "x.csv"),
        (["--input={}/x.csv", "--output_file=y.csv"], "{}/x-?????-of-?????.csv"),
    ],
    ids=["argument", "parts"],
)
def test_the_program_refuses_in_one_line(tmp_path, arguments, named):
    given = (argument.replace("{}", str(tmp_path)) for argument in arguments)
    line = script_helpers.refuse("merge_predictions", *given)
    assert named.replace("{}", str(tmp_path)) in line
