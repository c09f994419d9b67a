"""The four scripts: what a user types, sees, and finds on disk.

A process of its own has what only a process can show; the rest runs in this one.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests import prediction_helpers, script_helpers
from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.serving import predictions, skips
from yt8m_distill.training import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 300
NUM_VALID = 30
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("TF_CONFIG", "PYTHONPATH")},
    "CUDA_VISIBLE_DEVICES": "-1",
}


def call(script: str, *arguments: str, path: str = ""):
    """A script's process, ended; `path` is searched for modules before all others."""
    return subprocess.run(
        [sys.executable, f"yt8m_distill/{script}.py", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **({"PYTHONPATH": path} if path else {})},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def training_flags(data, train_dir, *changes: str) -> list[str]:
    return [
        f"--train_dir={train_dir}",
        f"--train_data_pattern={data}/train-*.tfrecord",
        f"--validation_data_pattern={data}/validate-*.tfrecord",
        "--feature_names=rgb,audio",
        "--feature_sizes=8,4",
        "--num_classes=10",
        "--max_frames=20",
        "--student_k=6",
        "--teacher=FrameLevelLogisticModel",
        "--student=FrameLevelLogisticModel",
        "--batch_size=8",
        "--num_epochs=1",
        "--base_learning_rate=0.01",
        "--num_gpus=0",
        *changes,
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    helpers.write_data(folder, num_train=40, num_valid=NUM_VALID)
    return folder


@pytest.fixture(scope="module")
def validation(data) -> list:
    """(id, labels, frames) of the validation videos."""
    return helpers.make_videos(NUM_VALID, 2, "e")


@pytest.fixture(scope="module")
def train_dir(data, tmp_path_factory) -> pathlib.Path:
    """A finished serial run, trained by the script."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = training_flags(data, folder, "--mode=serial")
    done = script_helpers.succeed("train", *flags)
    # The starter's line, once a log point.
    assert re.search(
        r"training step 5 \| student \| Loss: \S+ Examples/sec: \S+ \| "
        r"Hit@1: \d\.\d{3} PERR: \d\.\d{3} GAP: \d\.\d{3}",
        done.stderr,
    ), done.stderr
    return folder


def evaluation_flags(train_dir, pattern, *more: str) -> list[str]:
    """Of eval.py, once."""
    given = [f"--train_dir={train_dir}", f"--eval_data_pattern={pattern}"]
    return [*given, "--run_once", *more]


def read_evaluations(train_dir) -> list[dict]:
    return helpers.read_lines(train_dir / "eval" / "metrics.jsonl")


@pytest.fixture(scope="module")
def evaluation(data, train_dir) -> tuple[str, dict]:
    """What eval.py --run_once printed about the student, and its JSON object."""
    flags = evaluation_flags(train_dir, f"{data}/validate-*.tfrecord", "--batch_size=7")
    done = script_helpers.succeed("eval", *flags)
    return done.stdout, read_evaluations(train_dir)[-1]


@pytest.fixture(scope="module")
def csv(data, train_dir, tmp_path_factory) -> pathlib.Path:
    """What inference.py wrote."""
    path = tmp_path_factory.mktemp("csv") / "predictions.csv"
    script_helpers.succeed(
        "inference",
        f"--train_dir={train_dir}",
        f"--input_data_pattern={data}/validate-*.tfrecord",
        f"--output_file={path}",
        f"--vocabulary={vocabulary(path.parent)}",
        "--batch_size=8",
    )
    return path


def vocabulary(folder) -> pathlib.Path:
    path = folder / "names.csv"
    names = [f"{number},class {number}" for number in range(10)]
    path.write_text("\n".join(["label_id,label_name", *names]))
    return path


def test_the_csv_has_a_companion_with_the_names_of_the_classes(csv):
    ids, classes, scores = prediction_helpers.read_predictions(csv)
    lines = pathlib.Path(f"{csv}.names.csv").read_text().splitlines()
    assert lines[0] == "VideoId,Class,Name,Score"
    assert len(lines) == 1 + classes.size
    best = classes[0, 0]
    expected = f"{ids[0].decode()},{best},class {best},{scores[0, 0]:g}"
    assert lines[1] == expected


def test_training_writes_all_promised_files(train_dir):
    assert sorted(os.listdir(train_dir)) == sorted(
        {".lock", "manifest.json", "model_flags.json", "student", "teacher"}
        | set(os.listdir(train_dir)) & {"eval", "export"}
    )
    content = json.loads((train_dir / "manifest.json").read_text())
    assert content["command"][0] == "train.py"
    assert all(phase["finished"] for phase in content["phases"].values())
    for role in ("teacher", "student"):
        assert (train_dir / role / "best" / role / "best.json").exists()


def test_eval_prints_the_starters_line_and_writes_one_object(data, evaluation):
    printed, numbers = evaluation
    assert numbers["eval_data_pattern"] == f"{data}/validate-*.tfrecord"
    assert printed == (
        f"step 5 | student | Avg_Hit@1: {numbers['hit_at_one']:.3f} | Avg_PERR: "
        f"{numbers['perr']:.3f} | MAP: {numbers['map']:.3f} | GAP: "
        f"{numbers['gap']:.3f} | Avg_Loss: {numbers['loss']:.4f}\n"
    )
    assert {
        *("step", "network", "gap", "map", "map_all_classes", "hit_at_one"),
        *("perr", "loss", "num_videos", "videos_per_second"),
    } <= numbers.keys()
    assert (numbers["step"], numbers["network"]) == (5, "student")
    assert numbers["num_videos"] == NUM_VALID
    assert all(math.isfinite(numbers[k]) for k in ("gap", "map", "loss"))
    assert numbers["videos_per_second"] > 0


def test_eval_agrees_with_the_validation_of_training(train_dir, evaluation):
    # Another batch size, another process: the same numbers.
    info = json.loads((train_dir / "student/best/student/best.json").read_text())
    for name in ("gap", "map", "hit_at_one", "perr"):
        assert evaluation[1][name] == pytest.approx(info[name], rel=1e-6)


def test_gap_of_the_csv_is_evals_to_the_printed_digits(csv, validation, evaluation):
    ids, classes, scores = prediction_helpers.read_predictions(csv)
    labels = {video_id: set(given) for video_id, given, _ in validation}
    assert [i.decode() for i in ids] == [video[0] for video in validation]
    assert classes.shape == (NUM_VALID, 10)  # 20 asked for, 10 classes.
    hits = [
        [c in labels[i.decode()] for c in row]
        for i, row in zip(ids, classes, strict=True)
    ]
    order = np.argsort(-scores.ravel(), kind="stable")
    hit = np.array(hits).ravel()[order]
    precision = np.cumsum(hit) / np.arange(1, hit.size + 1)
    gap = (precision * hit).sum() / sum(map(len, labels.values()))
    assert f"{gap:.3f}" == f"{evaluation[1]['gap']:.3f}"
    # Six digits of each score are kept; near ties can swap places.
    assert gap == pytest.approx(evaluation[1]["gap"], abs=2e-4)


def test_eval_writes_the_csv_of_inference_in_its_pass(
    data, train_dir, csv, evaluation, tmp_path
):
    path = tmp_path / "predictions.csv"
    done = script_helpers.succeed(
        "eval",
        *evaluation_flags(train_dir, f"{data}/validate-*.tfrecord"),
        f"--output_file={path}",
        f"--per_class_file={tmp_path}/classes.csv",
        f"--vocabulary={vocabulary(tmp_path)}",
        # Flags of the run may be stated again.
        *("--feature_names=rgb, audio", "--feature_sizes=8,4", "--num_classes=10"),
        *("--student_k=6", "--num_epochs=1"),
        "--batch_size=8",  # As inference had, so that sums have the same order.
    )
    best, worst = done.stdout.splitlines()[1:]
    assert best.startswith("Best classes: class ")
    assert worst.startswith("Worst classes: class ")
    rows = [x.split(",") for x in (tmp_path / "classes.csv").read_text().splitlines()]
    precisions = [float(row[3]) for row in rows[1:] if row[3]]
    assert np.mean(precisions) == pytest.approx(evaluation[1]["map"], rel=1e-5)
    assert f"The predictions are in {path}." in done.stderr
    assert path.read_bytes() == csv.read_bytes()
    found = read_evaluations(train_dir)[-1]
    for name in ("gap", "map", "hit_at_one", "perr", "num_videos"):
        assert found[name] == pytest.approx(evaluation[1][name], rel=1e-6)


def test_merged_parts_are_the_csv_of_one_process(train_dir, csv, validation, tmp_path):
    # The same videos in the same order as the one file of `csv`. By three parts the
    # files are divided 1, 1, 2, so batches of 8 end elsewhere: after videos 8
    # and 3 of the first two, and 8 and 16 of the last.
    first = 0
    for number, last in enumerate([11, 14, 21, NUM_VALID]):
        helpers.write_shard(tmp_path / f"{number}.tfrecord", validation[first:last])
        first = last
    for index in (2, 0, 1):
        script_helpers.succeed(
            "inference",
            f"--train_dir={train_dir}",
            f"--input_data_pattern={tmp_path}/*.tfrecord",
            f"--output_file={tmp_path}/predictions.csv",
            "--batch_size=8",
            "--num_shards=3",
            f"--shard_index={index}",
        )
    names = [f"predictions-0000{index}-of-00003.csv" for index in range(3)]
    assert sorted(x for x in os.listdir(tmp_path) if "predictions" in x) == names
    sizes = [len(prediction_helpers.read_predictions(tmp_path / x)[0]) for x in names]
    assert sizes == [11, 3, 16]
    merged = tmp_path / "merged.csv"
    done = script_helpers.succeed(
        "merge_predictions",
        f"--input={tmp_path}/predictions.csv",
        f"--output_file={merged}",
    )
    assert done.stdout == f"{NUM_VALID} videos of 3 parts in {merged}.\n"
    assert merged.read_bytes() == csv.read_bytes()


def test_a_part_without_files_is_a_header_and_a_warning(data, train_dir, tmp_path):
    # Of an earlier run in which the part had files.
    (tmp_path / "predictions-00003-of-00010.csv.skipped.txt").write_text("a record\n")
    done = script_helpers.succeed(
        "inference",
        f"--train_dir={train_dir}",
        f"--input_data_pattern={data}/validate-0.tfrecord",
        f"--output_file={tmp_path}/predictions.csv",
        "--num_shards=10",
        "--shard_index=3",
    )
    path = tmp_path / "predictions-00003-of-00010.csv"
    assert path.read_bytes() == predictions.HEADER_LINE
    assert os.listdir(tmp_path) == [path.name]
    message = "Shard 3 of 10 has none of the 1 input files: "
    assert f"{message}{path} has only a header." in done.stderr


def test_the_exported_model_predicts_the_scores_of_the_csv(
    data, train_dir, csv, tmp_path
):
    folder = tmp_path / "model"
    done = script_helpers.succeed(
        "export_model",
        f"--train_dir={train_dir}",
        f"--export_dir={folder}",
        "--batch_size=8",  # For example from a flagfile of eval.py; ignored.
    )
    prefix = train_dir / "student" / "best" / "student" / "network-5"
    assert f"The student of {prefix} is in {folder}." in done.stderr
    model = tf.saved_model.load(str(folder)).signatures["serving_default"]
    records = [
        record.numpy()
        for record in tf.data.TFRecordDataset(str(data / "validate-0.tfrecord"))
    ]
    found = model(example_bytes=tf.constant(records))
    ids, classes, scores = prediction_helpers.read_predictions(csv)
    np.testing.assert_array_equal(found["video_id"], ids)
    np.testing.assert_array_equal(found["class_indexes"], classes)
    # %g keeps six digits.
    np.testing.assert_allclose(found["predictions"], scores, rtol=6e-6)


@pytest.mark.once
@pytest.mark.parametrize("format", ["litert_int8", "onnx"])
def test_a_model_for_small_machines_is_written_with_its_gap(
    data, train_dir, evaluation, tmp_path, format
):
    package = {"litert_int8": "ai_edge_litert", "onnx": "tf2onnx"}[format]
    pytest.importorskip(package, reason=f"{package} is of the extra edge")
    done = script_helpers.succeed(
        "export_model",
        f"--train_dir={train_dir}",
        f"--export_dir={tmp_path}/model",
        f"--format={format}",
        f"--eval_data_pattern={data}/validate-*.tfrecord",
    )
    described = json.loads((tmp_path / "model" / "model.json").read_text("utf-8"))
    checked = described["checked"]
    assert checked["videos"] == NUM_VALID
    gap = read_evaluations(train_dir)[0]["gap"]
    assert checked["gap_of_network"] == pytest.approx(gap, abs=1e-6)
    assert f"{checked['gap']:.5f}" in done.stderr


def test_eval_waits_for_checkpoints_and_can_be_ended(data, train_dir, evaluation):
    before = len(read_evaluations(train_dir))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "yt8m_distill.eval"),
            f"--train_dir={train_dir}",
            f"--eval_data_pattern={data}/validate-*.tfrecord",
            "--eval_interval_secs=0.2",
            "--network=teacher",
            "--checkpoint=latest",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("step 5 | teacher | ")
        time.sleep(1)  # Some looks later the same checkpoint is not new.
        assert process.poll() is None
        lines = read_evaluations(train_dir)
        assert len(lines) == before + 1 and lines[-1]["network"] == "teacher"
        # The student's evaluations have another folder, and so another curve.
        folder = train_dir / "eval"
        assert sorted(os.listdir(folder)) == ["metrics.jsonl", "student", "teacher"]
        for role in ("student", "teacher"):
            assert all("events" in name for name in os.listdir(folder / role))
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"Waiting for checkpoints in {train_dir}." in said
    assert said.splitlines()[-1].startswith("eval.py: stopped by SIGTERM. ")
    assert "Traceback" not in said


def test_eval_traces_one_graph_for_all_checkpoints(
    data, train_dir, tmp_path, monkeypatch
):
    copied = tmp_path / "run"
    shutil.copytree(train_dir, copied)
    traced, looks, find = [], [], checkpoints.find
    trace = evaluator.Evaluator._distributed_step

    def distributed_step(self, batch):
        traced.append(self)
        return trace(self, batch)

    def next_one(folder, plan, role, which):
        looks.append(which)
        if len(looks) > 4:  # The first is that of open_network.
            raise SystemExit(0)
        return find(folder, plan, role, ["latest", "best"][len(looks) % 2])

    monkeypatch.setattr(evaluator.Evaluator, "_distributed_step", distributed_step)
    monkeypatch.setattr(checkpoints, "find", next_one)
    script_helpers.succeed(
        "eval",
        f"--train_dir={copied}",
        f"--eval_data_pattern={data}/validate-*.tfrecord",
        "--eval_interval_secs=0.1",
    )
    first, second, third = read_evaluations(copied)[-3:]
    assert first["checkpoint"] != second["checkpoint"]
    assert first["loss"] == third["loss"]  # Each is the loss of its own weights.
    assert len(traced) == 1


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "script, flag",
    [
        ("train", "--student_k"),
        ("eval", "--run_once"),
        ("inference", "--output_file"),
        ("export_model", "--export_dir"),
        ("merge_predictions", "--input"),
    ],
)
def test_help_shows_the_flags_and_loads_no_tensorflow(tmp_path, script, flag):
    # A TensorFlow that cannot be imported hides the real one.
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('loaded')")
    done = call(script, "--help", path=str(tmp_path))
    assert flag in done.stdout and "default:" in done.stdout
    assert "--verbosity" not in done.stdout and done.stderr == ""
    if script == "export_model":  # Only those that it uses.
        listed = set(re.findall(r"--(?:\[no\])?(\w+):", done.stdout))
        fields = {f.name for f in dataclasses.fields(settings.CheckpointSettings)}
        assert listed & fields == fields - {"batch_size", "num_gpus"}
        assert listed >= {f.name for f in dataclasses.fields(settings.ExportSettings)}


@pytest.mark.parametrize(
    "script, arguments, named",
    [
        ("train", "--train_dir=", "--train_dir"),
        ("train", "--train_dir=x", "--train_data_pattern"),
        (
            "train",
            "--train_dir=x --train_data_pattern=y --student_k=301",
            "--student_k=301",
        ),
        ("train", "--match=sideways", "--match=sideways"),
        ("train", "--lstm_cells=4", "--lstm_cells"),
        ("train", "--flagfile=none", "--flagfile=none"),
        ("eval", "--train_dir=x", "--eval_data_pattern"),
        (
            "eval",
            "--train_dir=x --eval_data_pattern=y --output_file=z.csv",
            "--output_file=z.csv",
        ),
        ("eval", "--train_dir=x oops", "oops"),
        ("inference", "--train_dir=x", "--input_data_pattern"),
        ("export_model", "", "--train_dir"),
    ],
)
def test_a_missing_or_wrong_setting_is_named(script, arguments, named):
    assert named in script_helpers.refuse(script, *arguments.split())


def test_a_wrong_setting_ends_a_process_with_one_line():
    done = call("train", "--train_dir=x")
    assert "--train_data_pattern" in script_helpers.refusal("train", done)


def test_eval_refuses_data_flags_that_differ_from_the_runs(data, train_dir):
    flags = evaluation_flags(train_dir, f"{data}/validate-*.tfrecord")
    stated = ("--num_classes=11", "--max_frames=20")
    line = script_helpers.refuse("eval", *flags, *stated)
    assert "--num_classes: was 10, is 11" in line and "--max_frames" not in line


def test_eval_reports_that_no_video_has_a_label(
    train_dir, evaluation, validation, tmp_path
):
    shard = tmp_path / "unlabeled.tfrecord"
    helpers.write_shard(shard, [(name, [], frames) for name, _, frames in validation])
    before = read_evaluations(train_dir)
    line = script_helpers.refuse("eval", *evaluation_flags(train_dir, shard))
    assert line.startswith(f"--eval_data_pattern={shard}")
    assert read_evaluations(train_dir) == before


def test_a_train_dir_on_or_below_a_file_is_refused(data, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for train_dir in (path, path / "run"):
        line = script_helpers.refuse("train", *training_flags(data, train_dir))
        assert line.startswith(f"--train_dir={train_dir} cannot be written")
    assert path.read_text() == "mine"


both = pytest.mark.parametrize(
    "script, pattern, more",
    [
        ("inference", "--input_data_pattern", []),
        ("eval", "--eval_data_pattern", ["--run_once"]),
    ],
    ids=["inference", "eval"],
)


@both
def test_a_bad_record_is_one_line_and_leaves_the_old_output(
    train_dir, validation, tmp_path, script, pattern, more
):
    shard = tmp_path / "bad.tfrecord"
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for video in validation[:9]:
            writer.write(helpers.make_example(*video))
        writer.write(helpers.make_example("narrow", [1], validation[0][2], (4, 8)))
    output = tmp_path / "predictions.csv"
    output.write_text("from last week")
    line = script_helpers.refuse(
        script,
        f"--train_dir={train_dir}",
        f"{pattern}={shard}",
        f"--output_file={output}",
        "--batch_size=4",  # Two batches are written before the bad one.
        *more,
    )
    for named in (str(shard), "record 9", "video narrow", "feature rgb", "4 bytes"):
        assert named in line
    assert output.read_text() == "from last week"
    names = [n for n in os.listdir(tmp_path) if not n.endswith(".frame_index")]
    assert sorted(names) == ["bad.tfrecord", "predictions.csv"]


@both
def test_a_bad_record_that_is_skipped_is_listed_and_changes_nothing(
    train_dir, validation, tmp_path, script, pattern, more
):
    good = [helpers.make_example(*video) for video in validation[:9]]
    bad = helpers.make_example("narrow", [1], validation[0][2], (4, 8))
    shard, output = tmp_path / "shard.tfrecord", tmp_path / "predictions.csv"
    listed = tmp_path / f"predictions.csv{skips.SUFFIX}"
    found = []
    for content in ([*good[:4], bad, *good[4:]], good):
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for record in content:
                writer.write(record)
        script_helpers.succeed(
            script,
            f"--train_dir={train_dir}",
            f"{pattern}={shard}",
            f"--output_file={output}",
            "--bad_records=skip",
            "--max_bad_fraction=0.1",
            "--batch_size=4",
            *more,
        )
        names = listed.read_text().splitlines() if listed.exists() else []
        numbers = read_evaluations(train_dir)[-1] if script == "eval" else {}
        found.append((names, numbers, output.read_bytes()))
    (names, skipping, csv), (no_names, whole, expected) = found
    assert csv == expected and csv.count(b"\n") == 10
    assert len(names) == 1 and not no_names  # The list of an earlier run is removed.
    assert names[0].startswith(f"{shard}, record 4 (counted from 0), video narrow: ")
    if script == "eval":
        assert skipping.pop("num_skipped") == 1 and whole.pop("num_skipped") == 0
        assert skipping.pop("skipped")["wrong width"]["count"] == 1
        for line in (skipping, whole):
            del line["time"], line["videos_per_second"]
        assert skipping == whole
