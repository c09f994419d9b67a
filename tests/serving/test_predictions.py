"""The Kaggle CSV."""

import csv
import os

import numpy as np
import pytest
import tensorflow as tf

from tests import prediction_helpers
from yt8m_distill.serving import predictions

pytestmark = pytest.mark.once

HEADER = b"VideoId,LabelConfidencePairs\n"


def write(path, ids, classes, scores):
    with predictions.PredictionWriter(path) as writer:
        writer.write(ids, np.array(classes), np.array(scores, np.float32))


def test_the_format_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # A path without a folder is in the working directory.
    with predictions.PredictionWriter("out.csv") as writer:
        assert not os.path.exists("out.csv")
        writer.write(
            tf.constant([b"ab", b"-c"]),
            tf.constant([[3, 0], [12, 7]]),
            tf.constant([[0.5, 0.25], [1.0, 1e-5]]),
        )
        writer.write([], np.zeros([0, 2], int), np.zeros([0, 2]))
        writer.write_text(b'"a,b",1 0.50\n')  # As it is.
        writer.write([b"d"], np.array([[1, 2]]), np.float32([[1 / 3, 0]]))
    # %g: six significant digits, no trailing zeros.
    assert (tmp_path / "out.csv").read_bytes() == HEADER + (
        b'ab,3 0.5 0 0.25\n-c,12 1 7 1e-05\n"a,b",1 0.50\nd,1 0.333333 2 0\n'
    )


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_keeps_six_digits(tmp_path, seed):
    random = np.random.default_rng(seed)
    classes = random.integers(0, 3862, (50, 20))
    scores = -np.sort(-np.float32(random.random((50, 20)) ** 8), axis=1)
    ids = [b"video%d" % i for i in range(50)]
    path = os.fspath(tmp_path / "out.csv")
    write(path, ids, classes, scores)
    read_ids, read_classes, read_scores = prediction_helpers.read_predictions(path)
    assert read_ids.tolist() == ids
    np.testing.assert_array_equal(read_classes, classes)
    assert read_classes.dtype == np.int32 and read_scores.dtype == np.float32
    # Half a unit of the sixth digit is at most 5e-6 of the value.
    np.testing.assert_allclose(read_scores, scores, rtol=5.1e-6)


def test_awkward_ids_survive_and_plain_csv_readers_see_two_columns(tmp_path):
    ids = [
        b"comma,comma",
        b'quote"quote',
        b"line\nbreak",
        b"carriage\r\nreturn",
        b"\xff\xfe not utf-8",
        "naïve ✓".encode(),
        b"",
        b" space ",
        b'"',
        b"=1+1",
        b"x" * 2**20,
    ]
    path = tmp_path / "out.csv"
    count = len(ids)
    write(path, ids, [[1, 2]] * count, [[0.5, 0.25]] * count)
    assert prediction_helpers.read_predictions(path)[0].tolist() == ids
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert {tuple(row[1:]) for row in rows[1:]} == {("1 0.5 2 0.25",)}
    # Ids that need no quotes have none.
    assert b"\n=1+1,1 0.5" in path.read_bytes()


@pytest.mark.parametrize(
    "step", [None, (os, "fsync"), (tf.io.gfile, "rename")], ids=str
)
def test_a_failure_leaves_the_old_file_and_no_other_file(tmp_path, monkeypatch, step):
    path = tmp_path / "out.csv"
    path.write_text("old")

    def fail(*_, **options):
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError if step else KeyboardInterrupt) as caught:
        with predictions.PredictionWriter(path) as writer:
            writer.write([b"a"], np.array([[1]]), np.array([[0.5]]))
            assert path.read_text() == "old"
            assert len(os.listdir(tmp_path)) == 2  # The temporary file is next to it.
            if not step:
                raise KeyboardInterrupt
            monkeypatch.setattr(*step, fail)
    if step:
        assert "out.csv cannot be written: No space left" in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_without_videos_there_is_the_header(tmp_path):
    path = tmp_path / "out.csv"
    with predictions.PredictionWriter(path):
        pass
    assert path.read_bytes() == HEADER
    ids, classes, scores = prediction_helpers.read_predictions(path)
    assert len(ids) == 0 and classes.shape == scores.shape == (0, 0)


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    write(link, [b"a"], [[1]], [[0.5]])
    assert link.is_symlink()
    assert target.read_bytes() == HEADER + b"a,1 0.5\n"


def test_gfile_paths_work_and_clean_up():
    folder = "ram://test_predictions"
    path = f"{folder}/out.csv"
    write(path, [b"a"], [[1, 2]], [[0.5, 0.25]])
    with pytest.raises(ZeroDivisionError):
        with predictions.PredictionWriter(path) as writer:
            writer.write([b"b"], np.array([[1, 2]]), np.array([[0.5, 0.25]]))
            raise ZeroDivisionError
    ids, classes, _ = prediction_helpers.read_predictions(path)
    assert ids.tolist() == [b"a"] and classes.tolist() == [[1, 2]]
    assert tf.io.gfile.glob(f"{folder}/*") == [path]


def test_targets_that_cannot_be_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "absent" / "out.csv", "there is no directory .*absent"),
        (tmp_path / "file" / "out.csv", "there is no directory .*file"),
        (tmp_path, "it is a directory"),
        (os.devnull, "it is not a regular file"),
        (tmp_path / "out.csv.gz", "not packed"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            predictions.PredictionWriter(path)
        assert str(caught.value).startswith(f"--output_file={path} cannot be written")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be written.*scheme 'nowhere'"):
        with predictions.PredictionWriter("nowhere://a/out.csv"):
            pass


def test_the_records_that_are_read_are_not_replaced(tmp_path):
    shard, link = tmp_path / "a.tfrecord", tmp_path / "link.csv"
    shard.write_text("records")
    link.symlink_to(shard)
    for path in (shard, link):
        with pytest.raises(ValueError, match="is one of the files") as caught:
            predictions.PredictionWriter(path, inputs=[str(shard)])
        assert "--output_file=" in str(caught.value)


def test_what_an_earlier_csv_had_beside_it_goes_with_it(tmp_path):
    path, nobody = tmp_path / "out.csv", np.zeros([1, 1])
    with predictions.PredictionWriter(path) as writer:
        writer.write([b"a"], nobody, nobody, num_frames=np.array([3]))
    predictions.write_names(str(path), {0: "dog"})
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(KeyError), predictions.PredictionWriter(path):
        raise KeyError
    assert len(list(tmp_path.iterdir())) == 3  # The CSV is the earlier one.
    with predictions.PredictionWriter(path) as writer:
        writer.write([b"a"], nobody, nobody)
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_directory_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so the answer of the system is put in its mouth.
    monkeypatch.setattr(predictions.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="is read-only"):
        predictions.PredictionWriter(tmp_path / "out.csv")


def test_rows_keep_their_bytes_and_lines(tmp_path):
    path = tmp_path / "in.csv"
    rows = [b'"a\nb",1 0.5\n', b'"c",2 1\r\n', b"\xff,x\n", b"d,3 0.25"]
    path.write_bytes(HEADER + b"".join(rows))
    found = list(predictions.read_rows(path))
    assert [row.text for row in found] == rows
    # The id of the first video takes lines 2 and 3.
    assert [row.line for row in found] == [2, 4, 5, 6]
    assert [row.columns for row in found] == [
        ["a\nb", "1 0.5"],
        ["c", "2 1"],
        ["\udcff", "x"],  # The pairs are not looked at.
        ["d", "3 0.25"],
    ]


@pytest.mark.parametrize(
    "content, line, message",
    [
        (b"", 1, "the header must be VideoId,LabelConfidencePairs"),
        (b"a,1 0.5\n", 1, "the header must be"),
        (HEADER + b"a,1 0.5\nb 1 0.5\n", 3, "2 columns are expected; received 1"),
        (HEADER + b"a,1 0.5\n\n", 3, "2 columns are expected; received 0"),
        # The id of the first video takes lines 2 and 3.
        (HEADER + b'"a\nb",1 0.5\nc\n', 4, "received 1"),
        (HEADER + b'"a,1 0.5\n', 2, "unexpected end of data"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, content, line, message):
    path = tmp_path / "in.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(predictions.read_rows(path))
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    for path in (tmp_path / "absent.csv", "ram://nowhere/absent.csv"):
        with pytest.raises(ValueError, match="absent.csv cannot be read") as caught:
            list(predictions.read_rows(path))
        assert "\n" not in str(caught.value)
