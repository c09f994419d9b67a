"""yt8m-calibrate, and early exit by its file in the other programs."""

import csv
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import prediction_helpers, record_helpers
from tests import script_helpers as scripts
from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.data import features, pipeline
from yt8m_distill.evaluation import exit_calibration
from yt8m_distill.models import early_exit
from yt8m_distill.serving import predictor
from yt8m_distill.training import manifest, trained

NETWORK = "AttentionPooling(hidden_size=8, num_heads=2)"
BUDGETS = (2, 4, 9)
NUM_VIDEOS = 61


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student for 2, 4 and 9 frames, calibrated on its validation videos."""
    folder = tmp_path_factory.mktemp("early_exit")
    helpers.write_data(folder, num_valid=NUM_VIDEOS - 1)
    short = [("short", [1], np.full([3, sum(helpers.SIZES)], 99, np.uint8))]
    helpers.write_shard(folder / "validate-1.tfrecord", short)
    made = helpers.make_run(
        folder / "run",
        folder,
        mode="baseline",
        student=NETWORK,
        student_k="2,4,9",
        train_frame_sampler="random",
        num_epochs=1,
    )
    helpers.train(made)
    calibrate(made)
    return made


@pytest.fixture(scope="module")
def inferred(run, tmp_path_factory) -> pathlib.Path:
    """The CSV of inference with `--mean_frames=5`."""
    path = tmp_path_factory.mktemp("inference") / "inference.csv"
    flags = "--mean_frames=5", f"--output_file={path}", "--batch_size=7"
    scripts.succeed(*arguments(run, "inference"), *flags)
    return path


def calibrate(run, *flags):
    pattern = run.training.validation_data_pattern
    return scripts.succeed(
        "calibrate",
        f"--train_dir={run.training.train_dir}",
        f"--calibration_data_pattern={pattern}",
        *flags,
    )


def copied(run, folder) -> settings.RunSettings:
    """The run in a folder of its own."""
    shutil.copytree(run.training.train_dir, folder / "run")
    return helpers.change(run, train_dir=str(folder / "run"))


def arguments(run, program):
    flag = "eval" if program == "eval" else "input"
    pattern = f"--{flag}_data_pattern={run.training.validation_data_pattern}"
    once = ["--run_once"] if program == "eval" else []
    return [program, f"--train_dir={run.training.train_dir}", pattern, *once]


def stored(run) -> dict:
    path = pathlib.Path(run.training.train_dir) / trained.EXIT_FILE
    return json.loads(path.read_text("utf-8"))


def read_frames(path) -> dict[str, int]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["VideoId", "Frames"]
    return {video: int(count) for video, count in rows[1:]}


@pytest.mark.slow
def test_eval_and_inference_read_the_mean_of_the_calibration(run, inferred, tmp_path):
    size = "--batch_size=7"  # The calibration's was another.
    asked = 5.0
    done = scripts.succeed(
        *arguments(run, "eval"),
        f"--mean_frames={asked}",
        f"--output_file={tmp_path}/eval.csv",
        size,
    )
    line = helpers.read_lines(f"{run.training.train_dir}/eval/metrics.jsonl")[-1]
    assert line["asked"] == "--mean_frames=5"
    # TensorBoard: not in the curve of the network as it was trained.
    curves = pathlib.Path(run.training.train_dir, "eval").glob("*/events.*")
    assert "student_mean_frames_5" in {path.parent.name for path in curves}
    means = stored(run)["mean_frames"]
    expected = min(means, key=lambda mean: abs(mean - asked))
    # The graph decides as the calibration did.
    assert line["mean_frames"] == pytest.approx(expected)
    # 61 videos; a step of two budgets is 5 frames at most.
    assert line["mean_frames"] == pytest.approx(asked, abs=5 / 60)
    assert f"Mean_frames: {expected:.3f}" in done.stdout
    histogram, stopped = line["frames_histogram"], line["stopped_at"]
    assert sum(histogram.values()) == sum(stopped.values()) == NUM_VIDEOS
    assert len(stopped) > 1 and set(map(int, stopped)) <= set(BUDGETS)
    frames = read_frames(tmp_path / "eval.csv.frames.csv")
    assert len(frames) == NUM_VIDEOS
    assert np.mean(list(frames.values())) == pytest.approx(expected)
    counts = {k: list(frames.values()).count(int(k)) for k in histogram}
    assert counts == histogram
    # The short video has no frame to be read after its third.
    assert frames["short"] in (2, 3)
    assert read_frames(f"{inferred}.frames.csv") == frames
    assert inferred.read_bytes() == (tmp_path / "eval.csv").read_bytes()


@pytest.mark.slow
def test_the_saved_model_exits_as_inference_does(run, inferred, tmp_path):
    asked, folder = "--mean_frames=5", tmp_path / "model"
    ids, classes, scores = prediction_helpers.read_predictions(inferred)
    frames = read_frames(f"{inferred}.frames.csv")
    train_dir = f"--train_dir={run.training.train_dir}"
    shards = run.training.validation_data_pattern
    done = scripts.succeed(
        "export_model",
        train_dir,
        asked,
        f"--export_dir={folder}",
        f"--eval_data_pattern={shards}",
    )
    assert f"On {NUM_VIDEOS} videos" in done.stderr
    loaded = tf.saved_model.load(str(folder))
    files = sorted(tf.io.gfile.glob(shards))
    records = [r.numpy() for r in tf.data.TFRecordDataset(files)]
    served = loaded.signatures["serving_default"](
        example_bytes=tf.constant([*records, b"no record"])
    )
    *used, of_bad = served["num_frames_used"].numpy().tolist()
    assert dict(zip(ids, used, strict=True)) == {
        video.encode(): count for video, count in frames.items()
    }
    assert of_bad == 0 and served["error"][-1] != b""
    # Frames of whole videos, in time.
    every = pipeline.ViewSpec("all", run.data.max_frames)
    _, view = record_helpers.read_view(tf.constant(records), run.data, every)
    answer = loaded.signatures["frames"](
        frames=features.dequantize(view["frames"], view["num_frames"]),
        num_frames=view["num_frames"],
    )
    assert answer["num_frames_used"].numpy().tolist() == used
    for found in (answer, served):
        top = found["class_indexes"][:NUM_VIDEOS]
        np.testing.assert_array_equal(top, classes[:, : top.shape[1]])
        predictions = found["predictions"][:NUM_VIDEOS]
        # Six digits in the CSV.
        np.testing.assert_allclose(predictions, scores, rtol=1e-4)
    line = scripts.refuse("export_model", train_dir, asked, "--format=litert")
    assert asked in line and "--format=litert" in line


def test_replicas_change_no_exit(run, inferred):
    given = settings.CheckpointSettings(
        train_dir=run.training.train_dir, batch_size=8, mean_frames=5.0
    )
    opened = trained.open_network(given, strategy=helpers.cpus(2))
    made = predictor.Predictor(opened.runner)
    dataset = opened.dataset(run.training.validation_data_pattern, 8)
    found = predictor.Predictions(
        *map(np.concatenate, zip(*made.predict(dataset), strict=True))
    )
    ids, classes, scores = prediction_helpers.read_predictions(inferred)
    np.testing.assert_array_equal(found.video_ids, ids)
    np.testing.assert_array_equal(found.classes, classes)
    # Six digits in the CSV.
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)
    frames = read_frames(f"{inferred}.frames.csv")
    assert found.num_frames.tolist() == list(frames.values())
    assert len(set(frames.values())) >= len(BUDGETS)


def test_the_largest_budget_alone_is_the_student_on_its_largest_k(run):
    """Without scales; the frames of the whole order are those of any other."""
    given = settings.CheckpointSettings(
        train_dir=run.training.train_dir, batch_size=64, num_gpus=0
    )
    plain = trained.open_network(given)
    plain.read_nested()
    (batch, *_) = plain.dataset(run.training.validation_data_pattern, 64)
    view = batch["views"]["sampled"]
    policy = early_exit.Policy(
        BUDGETS, "entropy", *(([[[-1.0]]] * 2), [[0.0]] * 2), [1.0] * 3, [0.0] * 3
    )
    outputs = early_exit.EarlyExit(plain.network, policy, 9.0, 20)(view)
    # Sums of nine float32 numbers, in another order.
    expected = plain.network(view).logits
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)


def test_a_simple_rule_calibrates_too(run, tmp_path):
    rule = "change"
    moved = copied(run, tmp_path)
    done = calibrate(moved, f"--exit_rule={rule}")
    assert f"{NUM_VIDEOS} videos | {rule} |" in done.stdout
    made = stored(moved)
    assert made["policy"]["rule"] == rule
    # From the smallest budget, also of the video of 3 frames, to the largest.
    largest = (9 * (NUM_VIDEOS - 1) + 3) / NUM_VIDEOS
    assert made["mean_frames"][0] == BUDGETS[0]
    assert made["mean_frames"][-1] == pytest.approx(largest)


def test_a_rule_of_a_module_that_training_did_not_name(run, tmp_path, monkeypatch):
    """It is that of `max_probability` under another name: the same thresholds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late_rules.py").write_text(
        "from yt8m_distill.models import early_exit\n"
        "early_exit.RULES.register('late')(early_exit.max_probability)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(early_exit.RULES, "_entries", {**early_exit.RULES._entries})
    moved, made = copied(run, tmp_path), []
    for flags in (["max_probability"], ["late", "--import_modules=late_rules"]):
        rule, *named = flags
        calibrate(moved, f"--exit_rule={rule}", *named)
        made.append(stored(moved)["mean_frames"])
        scripts.succeed(*arguments(moved, "eval"), "--mean_frames=5", *named)
    assert made[0] == made[1]
    early_exit.RULES._entries.pop("late")
    line = scripts.refuse(*arguments(moved, "eval"), "--mean_frames=5")
    assert "late" in line and "--import_modules" in line


def test_a_regret_is_asked_for_with_its_confidence(run):
    made = exit_calibration.Calibration.from_dict(stored(run))
    less, more = (made.for_max_regret(0.6, sure) for sure in (0.9, 0.99))
    assert BUDGETS[0] <= made.mean_frames[less] <= made.mean_frames[more]
    flags = "--max_regret=0.6", "--confidence=0.99"
    scripts.succeed(*arguments(run, "eval"), *flags)
    line = helpers.read_lines(f"{run.training.train_dir}/eval/metrics.jsonl")[-1]
    assert line["mean_frames"] == pytest.approx(made.mean_frames[more])


@pytest.mark.parametrize(
    ("program", "flags", "named"),
    [
        ("eval", ["--mean_frames=1.5"], ["--mean_frames=1.5", "out of reach"]),
        ("inference", ["--mean_frames=10"], ["--mean_frames=10", "out of reach"]),
        ("eval", ["--max_regret=0.001"], ["--max_regret=0.001", "30 held-out"]),
        (
            "eval",
            ["--mean_frames=3", "--student_k=4"],
            ["--mean_frames=3", "--student_k=4"],
        ),
        (
            "eval",
            ["--mean_frames=3", "--max_regret=0.1"],
            ["--mean_frames=3", "--max_regret=0.1"],
        ),
        (
            "eval",
            ["--norun_once", "--mean_frames=3"],
            ["--mean_frames=3", "--run_once"],
        ),
        (
            "eval",
            ["--mean_frames=3", "--checkpoint=latest"],
            ["--mean_frames=3", "network-5", "ckpt-5", "yt8m-calibrate"],
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(run, tmp_path, program, flags, named):
    output = [f"--output_file={tmp_path}/x.csv"] if program == "inference" else []
    line = scripts.refuse(*arguments(run, program), *output, *flags)
    assert all(part in line for part in named), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"policy": 3}', "{"])
def test_a_file_that_is_missing_or_none_of_ours_is_named(run, tmp_path, content):
    moved = copied(run, tmp_path)
    path = pathlib.Path(moved.training.train_dir, trained.EXIT_FILE)
    path.unlink()
    if content is not None:
        path.write_text(content, "utf-8")
    line = scripts.refuse(*arguments(moved, "eval"), "--mean_frames=3")
    assert "--mean_frames=3" in line and str(path) in line and "yt8m-calibrate" in line


def test_calibration_refuses_an_unknown_rule_and_a_student_of_one_number(run, tmp_path):
    pattern = run.training.validation_data_pattern
    given = [f"--calibration_data_pattern={pattern}"]
    of_run = f"--train_dir={copied(run, tmp_path).training.train_dir}"
    line = scripts.refuse("calibrate", of_run, *given, "--exit_rule=luck")
    assert "--exit_rule=luck" in line and "entropy" in line
    path = str(tmp_path / "run" / manifest.MODEL_FLAGS)
    manifest.write_json(path, {**manifest.read_json(path), "student_k": "9"})
    line = scripts.refuse("calibrate", of_run, *given)
    assert "--student_k=9" in line
