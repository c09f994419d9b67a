"""A phase: stops and going on, the best network, what it writes."""

import functools
import json
import os
import pathlib
import signal
import types

import numpy as np
import pytest

from tests import training_helpers as helpers
from yt8m_distill.evaluation import evaluator
from yt8m_distill.training import checkpoints, interruption, manifest

once = pytest.mark.once

# ------------------------------------------------------------------ stops


@pytest.mark.parametrize(
    "trained, name, mode, phase",
    [
        ("serial_run", "teaching", "teacher", "teacher"),
        ("serial_run", "learning", "serial", "student"),
        ("parallel_run", "together", "parallel", "parallel"),
        pytest.param("parallel_run", "unsettled", "parallel", "parallel", marks=once),
        pytest.param("parallel_run", "unsaved", "parallel", "parallel", marks=once),
        ("representation_run", "tuning", "serial", "finetune"),
    ],
)
def test_a_resumed_run_ends_like_one_without_a_stop(
    request, tmp_path, trained, name, mode, phase
):
    whole = request.getfixturevalue(trained)
    killed = pathlib.Path(f"{whole.training.train_dir}.{name}")
    phases = manifest.read_json(f"{killed}/manifest.json")["phases"]
    assert phases[phase]["finished"] is False
    proposed = killed / phase / "best" / "student" / "proposed.json"
    assert proposed.exists() == name.startswith("un")
    run = helpers.resume(whole, name, tmp_path, mode=mode)
    helpers.assert_ends_alike(whole, run, phase)
    # What was finished is used as it is.
    for done in phases.keys() - {phase}:
        before, after = (helpers.snapshot(x / done) for x in (killed, tmp_path / name))
        assert before == after


@once
def test_a_stop_between_the_last_step_and_its_validation_loses_neither(
    data, monkeypatch, tmp_path
):
    run = helpers.make_run(tmp_path / "run", data, num_epochs=1)
    # With steps_per_loop 2 the fifth step, the last, has a look of its own.
    with helpers.stopped(monkeypatch, "teacher", 5):
        helpers.train(run)
    entry = helpers.train(run)["teacher"]
    assert entry["finished"] and entry["step"] == 5
    assert entry["results"]["teacher"]["best"]["step"] == 5
    assert helpers.best(tmp_path / "run", "teacher", "teacher").endswith("-5")


@once
def test_a_signal_ends_the_validation_and_the_same_command_repeats_it(
    parallel_run, monkeypatch, tmp_path
):
    run = helpers.copy_without(parallel_run, tmp_path / "run", "parallel")
    original, seen = evaluator.Evaluator.evaluate, []

    def evaluate(self, dataset, **counts):
        seen.append(self.runner.role)
        if len(seen) == 2:  # The first epoch's teacher has been validated.
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, dataset, **counts)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator.Evaluator, "evaluate", evaluate)
        with pytest.raises(interruption.Interrupted) as stop:
            helpers.train(run)
    for part in ("SIGTERM", "parallel", "step 5"):
        assert part in str(stop.value)
    assert seen == ["teacher", "student"]
    helpers.train(run)
    helpers.assert_ends_alike(parallel_run, run, "parallel")


@once
def test_a_damaged_best_network_is_named_and_the_next_epoch_replaces_it(
    serial_run, monkeypatch, tmp_path, caplog
):
    run = helpers.copy_without(serial_run, tmp_path / "run", "teacher")
    run = helpers.change(run, mode="teacher")
    with helpers.stopped(monkeypatch, "teacher", 7):
        helpers.train(run)
    (index,) = (tmp_path / "run" / "teacher" / "best" / "teacher").glob("*.index")
    assert index.name == "network-5.index"
    index.write_bytes(index.read_bytes()[:-1])
    entry = helpers.train(run)["teacher"]["results"]["teacher"]
    assert "is passed over" in caplog.text
    assert str(index.with_suffix("")) in caplog.text
    assert entry["best"]["step"] == 10
    assert helpers.best(tmp_path / "run", "teacher", "teacher").endswith("-10")


@once
def test_max_steps_ends_a_phase_within_an_epoch_that_more_of_them_continue(
    serial_run, tmp_path
):
    """The teacher of the serial run had no limit."""
    changes = {"mode": "teacher", "train_dir": str(tmp_path / "run")}
    for limit, epochs in ((3, 1), (7, 2), (0, 2)):
        run = helpers.change(serial_run, max_steps=limit, **changes)
        entry = helpers.train(run)["teacher"]
        assert (entry["finished"], entry["step"]) == (True, limit or 10)
        assert len(entry["results"]["teacher"]["epochs"]) == epochs
        assert len(entry["epoch_seconds"]) == epochs
    whole, continued = (
        helpers.read_variables(helpers.latest(folder, "teacher"))
        for folder in (serial_run.training.train_dir, tmp_path / "run")
    )
    helpers.assert_identical(whole, continued)


# ------------------------------------------------------- the best network


def fake_gaps(monkeypatch, gaps: list[float]) -> None:
    """Evaluations have these GAPs, one after the other, and 0 for all else."""
    names = ("hit_at_one", "perr", "map", "map_all_classes", "loss", "num_videos")
    results = ({**dict.fromkeys(names, 0.0), "gap": gap} for gap in gaps)

    def evaluate(dataset, num_skipped):
        return types.SimpleNamespace(to_dict=functools.partial(next, results))

    fake = types.SimpleNamespace(evaluate=evaluate)
    monkeypatch.setattr(evaluator, "Evaluator", lambda *args: fake)


@once
def test_the_best_epoch_by_validation_gap_is_kept(data, monkeypatch, tmp_path):
    # Of equal ones the earlier.
    fake_gaps(monkeypatch, [0.5, 0.7, 0.7])
    run = helpers.make_run(tmp_path / "run", data, num_epochs=3)
    entry = helpers.train(run)["teacher"]["results"]["teacher"]
    assert [e["gap"] for e in entry["epochs"]] == [0.5, 0.7, 0.7]
    assert (entry["best"]["epoch"], entry["best"]["step"]) == (2, 10)
    folder = tmp_path / "run" / "teacher" / "best" / "teacher"
    assert sorted(os.listdir(folder)) == [
        "best.json",
        "network-10.data-00000-of-00001",
        "network-10.index",
    ]
    info = json.loads((folder / "best.json").read_text())
    assert (info["name"], info["epoch"], info["gap"]) == ("network-10", 2, 0.7)
    # The weights are those of that epoch, not of the last.
    found = helpers.read_variables(str(folder / "network-10"))
    checkpoint = tmp_path / "run" / "teacher" / "checkpoints" / "ckpt-10"
    then = helpers.of(helpers.read_variables(str(checkpoint)), "teacher/")
    helpers.assert_identical(helpers.of(found, "teacher/"), then)
    last = helpers.read_variables(helpers.latest(tmp_path / "run", "teacher"))
    assert not np.array_equal(
        last["teacher/kernel/" + helpers.SUFFIX], then["kernel/" + helpers.SUFFIX]
    )


@pytest.mark.parametrize(
    ("loss", "gaps"),
    [
        ("ce + rep + pred", [0.9, 0.1, 0.8, 0.2]),
        # Its predictions say nothing: the last epoch of the student is kept.
        ("rep_intermediate", [0.5, 0.9, 0.4, 0.1]),
    ],
)
@once
def test_parallel_keeps_the_best_of_each_network_or_the_last_of_states_alone(
    data, monkeypatch, tmp_path, loss, gaps
):
    # In every epoch the teacher is evaluated first.
    fake_gaps(monkeypatch, gaps)
    changes = {"student_loss": loss, "finetune_epochs": 0}
    run = helpers.make_run(tmp_path / "run", data, mode="parallel", **changes)
    results = helpers.train(run)["parallel"]["results"]
    assert results["teacher"]["best"]["epoch"] == 1
    assert results["student"]["best"]["epoch"] == 2
    found = {
        role: checkpoints.find(run.training.train_dir, helpers.plan_of(run), role).step
        for role in ("teacher", "student")
    }
    assert found == {"teacher": 5, "student": 10}


@once
def test_without_validation_the_last_epoch_is_kept(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, validation_data_pattern="")
    entry = helpers.train(run)["teacher"]["results"]["teacher"]
    assert entry["best"] == {"epoch": 2, "step": 10}
    assert helpers.best(tmp_path / "run", "teacher", "teacher").endswith("-10")


@once
def test_it_stops_early_without_a_better_epoch_and_stays_so(
    data, monkeypatch, tmp_path
):
    run = helpers.make_run(
        tmp_path / "run", data, num_epochs=9, early_stop_epochs=2, max_checkpoints=9
    )
    fake_gaps(monkeypatch, [0.5, 0.7, 0.6, 0.7])
    entry = helpers.train(run)["teacher"]
    assert entry["finished"] and entry["step"] == 20
    assert entry["results"]["teacher"]["best"]["epoch"] == 2
    fake_gaps(monkeypatch, [])
    assert helpers.train(run)["teacher"]["step"] == 20
    # Killed before the manifest said so: no epoch more.
    path = str(tmp_path / "run" / "manifest.json")
    content = manifest.read_json(path)
    content["phases"]["teacher"]["finished"] = False
    manifest.write_json(path, content)
    assert helpers.train(run)["teacher"]["step"] == 20
    # With more patience it goes on.
    fake_gaps(monkeypatch, [0.8, 0.1, 0.1, 0.1])
    entry = helpers.train(helpers.change(run, early_stop_epochs=3))["teacher"]
    assert entry["step"] == 40 and entry["results"]["teacher"]["best"]["epoch"] == 5


# ----------------------------------------------------- numbers gone wrong


def test_a_nan_loss_stops_the_run_before_it_is_saved(data, tmp_path):
    train_dir = tmp_path / "run"
    run = helpers.make_run(
        train_dir,
        data,
        optimizer="SGD",
        base_learning_rate=1e30,  # Finite once; its square in the penalty is not.
        clip_gradient_norm=0,
        steps_per_loop=1,
        save_checkpoint_minutes=0,  # After every loop.
    )
    with pytest.raises(FloatingPointError) as error:
        helpers.train(run)
    message = str(error.value)
    # Step 0 is the first one; what it did to the weights shows in step 1.
    assert message.startswith("Step 1: ")
    assert "teacher/reg_loss" in message and "--base_learning_rate" in message
    prefix = helpers.latest(train_dir, "teacher")
    assert prefix.endswith("ckpt-1") and f"{prefix} is intact" in message
    for name, value in helpers.read_variables(prefix).items():
        assert np.isfinite(value).all(), name


# ------------------------------------------------------------------- logs

STARTER_NAMES = {
    "learning_rate",
    "global_step/Examples/Second",
    "label_loss",
    "reg_loss",
    "model/Training_Hit@1",
    "model/Training_Perr",
    "model/Training_GAP",
}


EVALUATION_NAMES = {
    "Epoch/Eval_Avg_Hit@1",
    "Epoch/Eval_Avg_Perr",
    "Epoch/Eval_Avg_Loss",
    "Epoch/Eval_MAP",
    "Epoch/Eval_MAP_all_classes",
    "Epoch/Eval_GAP",
    "Epoch/Eval_Skipped",
    "Epoch/Eval_Repeated_Ids",
}


def read_events(folder) -> dict[str, list]:
    """Tag → (step, value) of the TensorBoard files right in a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [
            (e.step, float(tensor_util.make_ndarray(e.tensor_proto)))
            for e in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


def test_tensorboard_has_the_starters_names_and_one_a_loss_part(serial_run):
    folder = pathlib.Path(serial_run.training.train_dir) / "student"
    events = read_events(folder)
    parts = {f"student/{p}_loss" for p in ("ce", "rep", "pred")}
    total = {"student/loss", "student/gradient_norm"}
    # Each number once: under the starter's name where there is one.
    assert events.keys() == STARTER_NAMES | parts | total
    # 10 steps; a point after every second one, and at the end of an epoch.
    assert [step for step, _ in events["label_loss"]] == [2, 4, 5, 6, 8, 10]
    names = [*sorted(parts), "label_loss"]
    for values in zip(*(events[name] for name in names), strict=True):
        *terms, total = (value for _, value in values)
        assert sum(terms) == pytest.approx(total, rel=1e-5)


def test_tensorboard_has_the_validation_of_each_network(parallel_run):
    folder = pathlib.Path(parallel_run.training.train_dir) / "parallel"
    for role in ("teacher", "student"):
        events = read_events(folder / f"validation_{role}")
        assert events.keys() == EVALUATION_NAMES
        assert [step for step, _ in events["Epoch/Eval_GAP"]] == [5, 10]


def test_json_lines_hold_what_tensorboard_shows(parallel_run):
    folder = pathlib.Path(parallel_run.training.train_dir) / "parallel"
    lines = helpers.read_lines(folder / "metrics.jsonl")
    training = [line for line in lines if line["kind"] == "training"]
    assert [line["step"] for line in training] == [2, 4, 5, 6, 8, 10]
    events = read_events(folder)
    assert set(training[0]) >= {"kind", "step", "time", *events}
    # There, all of each role's own too.
    assert training[0]["student/label_loss"] == training[0]["label_loss"]
    for line, (_, value) in zip(training, events["teacher/loss"], strict=True):
        assert line["teacher/loss"] == pytest.approx(value, rel=1e-5)
    validation = [line for line in lines if line["kind"] == "validation"]
    assert [(x["step"], x["network"]) for x in validation] == [
        (5, "teacher"),
        (5, "student"),
        (10, "teacher"),
        (10, "student"),
    ]
    assert all(line["num_videos"] == 12 for line in validation)
