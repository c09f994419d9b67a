"""yt8m-classify: a line per record, and a line for all that goes wrong."""

import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from tests import record_helpers
from yt8m_distill import classify_records
from yt8m_distill.data import parsing

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Replaces a network: a record is its own id; one that begins with ! is bad.
SCORES, CLASSES = [0.75, 0.5, 0.25], [2, 0, 1]


class Model(tf.Module):
    """Answers as an exported network does, with the constants above."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(self, example_bytes):
        bad = tf.strings.substr(example_bytes, 0, 1) == "!"
        rows = tf.size(example_bytes)
        classes = tf.tile(tf.constant([CLASSES]), [rows, 1])
        scores = tf.tile(tf.constant([SCORES]), [rows, 1])
        column = bad[:, tf.newaxis]
        return {
            "video_id": tf.where(bad, "", example_bytes),
            "class_indexes": tf.where(column, -1, classes),
            "predictions": tf.where(column, 0.0, scores),
            "error": tf.where(bad, "feature rgb has no frames.", ""),
        }


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    made = Model()
    signatures = {"serving_default": made.serve}
    tf.saved_model.save(made, folder, signatures=signatures)
    return folder


@pytest.fixture
def shard(tmp_path) -> str:
    return record_helpers.write_shard(tmp_path / "a.tfrecord", [b"a", b"!", b"b"])


def test_a_model_without_the_output_error_still_classifies():
    def serve(example_bytes):
        outputs = Model().serve(example_bytes)
        return {name: value for name, value in outputs.items() if name != "error"}

    lines, unread = classify_records.classify(serve, [("here", b"a")], 1, {})
    assert (lines, unread) == (["a: 2 0.750"], 0)


@pytest.mark.parametrize(
    "fault",
    [
        "a frame of feature rgb is 12 bytes wide, not the 6 of --feature_sizes.",
        "feature rgb has no frames. Is --feature_names right, and is this frame-level "
        "data?",
        "feature rgb has 12 numbers, not the 6 of --feature_sizes. Is --feature_names "
        "right, and is this video-level data?",
        parsing.WIDTH.format(name="rgb", value=12, size=6),
    ],
)
def test_a_fault_names_no_flag_also_of_models_exported_before(fault):
    def serve(example_bytes):
        outputs = Model().serve(example_bytes)
        return {**outputs, "error": tf.fill([1], fault)}

    (line,), unread = classify_records.classify(serve, [("here", b"!")], 1, {})
    assert unread == 1 and line.startswith("here: ") and "rgb" in line
    assert ("6" in line) == ("6" in fault) and "--" not in line and line[-1] == "."


def test_the_first_records_are_of_all_shards_together(tmp_path, shard):
    other = record_helpers.write_shard(tmp_path / "b.tfrecord", [b"c", b"d"])
    found = classify_records.read_records([shard, other], 4)
    assert [record for _, record in found] == [b"a", b"!", b"b", b"c"]
    assert found[3][0] == f"{other}, record 0 (counted from 0)"


@pytest.mark.slow
def test_a_record_has_its_best_classes_or_its_fault_and_exit_code_1(model, shard):
    folder = pathlib.Path(shard).parent
    (folder / "names.csv").write_text("2,Music")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "yt8m_distill.classify_records",
            f"--model={model}",
            f"--records={folder}/*.tfrecord",
            f"--vocabulary={folder}/names.csv",
            "--count=3",
            "--classes=2",
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.splitlines() == [
        "a: Music 0.750, 0 0.500",
        f"{shard}, record 1 (counted from 0): feature rgb has no frames.",
        "b: Music 0.750, 0 0.500",
    ]
    # No startup messages of TensorFlow around it.
    assert done.stderr == "classify_records.py: 1 of 3 records cannot be read.\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"records": "{0}/no*"}, "--records={0}/no*"),
        ({"model": "{0}"}, "--model={0}"),
        ({"vocabulary": "{0}/no.csv"}, "--vocabulary={0}/no.csv"),
        ({"records": "{0}/empty"}, "--records={0}/empty"),
        ({"records": "{0}/text"}, "{0}/text, record 0 (counted from 0): "),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_an_unusable_model_or_shard_is_one_line(
    model, shard, tmp_path, capsys, changes, line
):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("These are my notes.")
    given = {"model": model, "records": shard, **changes}
    given = {name: value.format(tmp_path) for name, value in given.items()}
    with pytest.raises(ValueError) as caught:
        classify_records.main(classify_records.Request(**given))
    said = str(caught.value)
    assert said.startswith(line.format(tmp_path)) and "\n" not in said
    assert capsys.readouterr().out == ""
