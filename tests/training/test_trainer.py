"""Runs from start to end: phases, stops, refusals, the best network, precision."""

import json
import os
import pathlib
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import files
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import base, hierarchical_lstm
from yt8m_distill.training import (
    checkpoints,
    interruption,
    manifest,
    modes,
    trainer,
)

# ------------------------------------------------------------------- stops


def state_of(train_dir, phase: str) -> dict:
    """All numbers in a phase's newest checkpoint, and its best networks."""
    found = helpers.read_variables(helpers.latest(train_dir, phase))
    for role in os.listdir(f"{train_dir}/{phase}/best"):
        prefix = helpers.best(train_dir, phase, role)
        variables = helpers.read_variables(prefix)
        found |= {f"best {role}/{k}": v for k, v in variables.items()}
        found[f"best {role} step"] = int(prefix.rsplit("-", 1)[1])
    return found


def curve(train_dir, phase: str) -> list:
    """The validation results of a phase, as the manifest has them."""
    content = manifest.read_json(f"{train_dir}/manifest.json")
    results = content["phases"][phase]["results"]
    return [
        {k: v for k, v in epoch.items() if k != "videos_per_second"}
        for role in results.values()
        for epoch in role["epochs"]
    ]


def validations(train_dir, phase: str) -> list:
    """The validations in metrics.jsonl, without what the clock decides."""
    lines = helpers.read_lines(f"{train_dir}/{phase}/metrics.jsonl")
    clock = ("time", "videos_per_second")
    return [
        {k: v for k, v in line.items() if k not in clock}
        for line in lines
        if line["kind"] == "validation"
    ]


def copy_without(run, train_dir: pathlib.Path, phase: str):
    """A copy of a finished run in which a phase, and what follows, never began."""
    shutil.copytree(run.training.train_dir, train_dir)
    content = manifest.read_json(f"{train_dir}/manifest.json")
    names = [p.name for p in modes.phases(run)]
    for name in names[names.index(phase) :]:
        shutil.rmtree(train_dir / name)
        del content["phases"][name]
    manifest.write_json(f"{train_dir}/manifest.json", content)
    return helpers.change(run, train_dir=str(train_dir))


@pytest.fixture(scope="module")
def representation_run(serial_run, tmp_path_factory):
    """Serial, L_REP alone, then fine-tuning; the teacher is that of `serial_run`."""
    train_dir = tmp_path_factory.mktemp("representation") / "run"
    run = copy_without(serial_run, train_dir, "student")
    run = helpers.change(run, student_loss="rep", finetune_epochs=1)
    helpers.train(run)
    return run


def assert_resumes(whole, monkeypatch, tmp_path, phase, step, save) -> None:
    """A run that stops there, and then goes on, ends like the one that did not."""
    train_dir = tmp_path / "run"
    run = copy_without(whole, train_dir, phase)
    names = [p.name for p in modes.phases(run)]
    done, left = names[: names.index(phase)], names[names.index(phase) :]
    before = {name: helpers.snapshot(train_dir / name) for name in done}
    with helpers.stopped(monkeypatch, phase, step, save):
        helpers.train(run)
    entry = manifest.read_json(f"{train_dir}/manifest.json")["phases"][phase]
    assert entry["finished"] is False
    helpers.train(run)
    for name in left:
        original = whole.training.train_dir
        assert validations(original, name) == validations(train_dir, name)
        helpers.assert_identical(state_of(original, name), state_of(train_dir, name))
        assert curve(original, name) == curve(train_dir, name)
    # What was finished is used as it is.
    assert before == {name: helpers.snapshot(train_dir / name) for name in done}


# An epoch has 5 steps, and two steps are done between two looks at the clock.
@pytest.mark.parametrize(
    "mode, step, save",
    [
        ("teacher", 2, True),
        # Killed in the second epoch: back to the end of the first.
        ("serial", 7, False),
    ],
)
def test_a_resumed_run_ends_like_one_without_a_stop(
    serial_run, monkeypatch, tmp_path, mode, step, save
):
    run = helpers.change(serial_run, mode=mode)
    phase = {"teacher": "teacher", "serial": "student"}[mode]
    assert_resumes(run, monkeypatch, tmp_path, phase, step, save)


def test_a_resumed_parallel_run_ends_like_one_without_a_stop(
    parallel_run, monkeypatch, tmp_path
):
    assert_resumes(parallel_run, monkeypatch, tmp_path, "parallel", 7, True)


def test_resumed_fine_tuning_ends_like_one_without_a_stop(
    representation_run, monkeypatch, tmp_path
):
    assert_resumes(representation_run, monkeypatch, tmp_path, "finetune", 2, True)


def test_a_stop_between_the_last_step_and_its_validation_loses_neither(
    data, monkeypatch, tmp_path
):
    run = helpers.make_run(tmp_path / "run", data, num_epochs=1)
    # With steps_per_loop 2 the fifth step, the last, has a look of its own.
    with helpers.stopped(monkeypatch, "teacher", 5, save=True):
        helpers.train(run)
    entry = helpers.train(run)["teacher"]
    assert entry["finished"] and entry["step"] == 5
    assert entry["results"]["teacher"]["best"]["step"] == 5
    assert helpers.best(tmp_path / "run", "teacher", "teacher").endswith("-5")


def assert_goes_on_like(whole, run, phase: str) -> None:
    """The run, started again, ends like one without a stop."""
    helpers.train(run)
    original, train_dir = whole.training.train_dir, run.training.train_dir
    helpers.assert_identical(state_of(original, phase), state_of(train_dir, phase))
    assert curve(original, phase) == curve(train_dir, phase)
    assert validations(original, phase) == validations(train_dir, phase)
    folder = f"{train_dir}/{phase}/best"
    for role in os.listdir(folder):
        # One network, its digest and what points to it: nothing is left over.
        assert len(os.listdir(f"{folder}/{role}")) == 4


def test_a_signal_ends_the_validation_and_the_same_command_repeats_it(
    parallel_run, monkeypatch, tmp_path
):
    run = copy_without(parallel_run, tmp_path / "run", "parallel")
    original, seen = evaluator.Evaluator.evaluate, []

    def evaluate(self, dataset, **counts):
        seen.append(self.role)
        if len(seen) == 2:  # The first epoch's teacher has been validated.
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, dataset, **counts)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator.Evaluator, "evaluate", evaluate)
        with pytest.raises(interruption.Interrupted) as stop:
            helpers.train(run)
    assert str(stop.value) == (
        "stopped by SIGTERM: phase parallel is saved at step 5. The same command goes "
        "on from there."
    )
    assert seen == ["teacher", "student"]
    assert_goes_on_like(parallel_run, run, "parallel")


@pytest.mark.parametrize(
    "owner, name", [(checkpoints.State, "save"), (checkpoints, "settle_best")]
)
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_kill_between_the_best_network_and_the_state_loses_neither(
    parallel_run, monkeypatch, tmp_path, owner, name, epoch
):
    run = copy_without(parallel_run, tmp_path / "run", "parallel")
    with monkeypatch.context() as patch:
        original, calls = getattr(owner, name), []
        finish = trainer.PhaseRunner._finish_epoch

        def finishing(self, seconds):
            calls.append("epoch")
            finish(self, seconds)

        def killed(*arguments):
            if len(calls) == epoch:
                raise helpers.Stop
            return original(*arguments)

        patch.setattr(trainer.PhaseRunner, "_finish_epoch", finishing)
        patch.setattr(owner, name, killed)
        with pytest.raises(helpers.Stop):
            helpers.train(run)
    folder = tmp_path / "run" / "parallel" / "best" / "student"
    assert (folder / "proposed.json").exists()
    assert_goes_on_like(parallel_run, run, "parallel")


def test_a_damaged_best_network_is_named_and_the_next_epoch_replaces_it(
    serial_run, monkeypatch, tmp_path, caplog
):
    run = copy_without(serial_run, tmp_path / "run", "teacher")
    run = helpers.change(run, mode="teacher")
    with helpers.stopped(monkeypatch, "teacher", 7, save=True):
        helpers.train(run)
    (index,) = (tmp_path / "run" / "teacher" / "best" / "teacher").glob("*.index")
    assert index.name == "network-5.index"
    index.write_bytes(index.read_bytes()[:-1])
    entry = helpers.train(run)["teacher"]["results"]["teacher"]
    assert "is passed over" in caplog.text and str(index) in caplog.text
    assert entry["best"]["step"] == 10
    assert helpers.best(tmp_path / "run", "teacher", "teacher").endswith("-10")


def test_max_steps_ends_a_phase_within_an_epoch(data, tmp_path):
    run = helpers.make_run(
        tmp_path / "run", data, max_steps=3, validation_data_pattern=""
    )
    entry = helpers.train(run)["teacher"]
    assert (entry["finished"], entry["step"]) == (True, 3)
    assert len(entry["results"]["teacher"]["epochs"]) == 1


# ----------------------------------------------------------------- serial


def test_serial_leaves_the_teacher_bit_identical(serial_run):
    train_dir = serial_run.training.train_dir
    trained = helpers.read_variables(helpers.best(train_dir, "teacher", "teacher"))
    after = helpers.read_variables(helpers.latest(train_dir, "student"))
    helpers.assert_identical(
        helpers.of(trained, "teacher/"), helpers.of(after, "teacher/")
    )


def test_a_teacher_alone_and_one_of_a_serial_run_are_the_same(serial_run):
    alone = helpers.change(serial_run, mode="teacher")
    (phase,) = modes.phases(alone)
    assert phase == modes.phases(serial_run)[0]
    folder = f"{serial_run.training.train_dir}/teacher"
    # So --mode=serial goes on after --mode=teacher in the same train_dir.
    manifest.check_same_settings(folder, trainer.phase_settings(phase, alone))


def initialized(run, phase: str, monkeypatch):
    """The networks of a phase as they stand before its first step."""
    found, train = {}, trainer.PhaseRunner._train

    def look(self):
        if self.phase.name != phase:
            return train(self)
        found["networks"] = self.networks
        raise helpers.Stop

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PhaseRunner, "_train", look)
        with pytest.raises(helpers.Stop):
            helpers.train(run)
    return found["networks"]


def values(variables) -> list:
    return [v.numpy() for v in variables]


def assert_holds(network, prefix: str, role: str) -> None:
    """The network has the values of a checkpoint."""
    stored = helpers.of(helpers.read_variables(prefix), f"{role}/")
    mine = sorted(v.tobytes() for v in values(network.trainable_variables))
    assert mine == sorted(v.tobytes() for v in stored.values())


@pytest.mark.parametrize("as_prefix", [False, True])
def test_a_teacher_from_another_run(serial_run, tmp_path, monkeypatch, as_prefix):
    other = serial_run.training.train_dir
    prefix = helpers.best(other, "teacher", "teacher")
    run = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "run"),
        teacher_checkpoint=prefix if as_prefix else other,
    )
    networks = initialized(run, "student", monkeypatch)
    assert_holds(networks.teacher, prefix, "teacher")
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_frames": 9}, "--max_frames: was 20, is 9."),
        (
            {"feature_names": "audio,rgb", "feature_sizes": "4,8"},
            "--feature_names: was 'rgb,audio', is 'audio,rgb'; --feature_sizes: was "
            "'8,4', is '4,8'.",
        ),
    ],
)
def test_a_teacher_of_other_data_is_refused(serial_run, tmp_path, changes, said):
    other = serial_run.training.train_dir
    changes |= {"train_dir": str(tmp_path / "run"), "teacher_checkpoint": other}
    with pytest.raises(ValueError, match="was trained on other data: ") as caught:
        helpers.train(helpers.change(serial_run, **changes))
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_finished_gives_a_warning(
    serial_run, data, tmp_path, monkeypatch, caplog
):
    other = helpers.make_run(tmp_path / "teacher", data)
    with helpers.stopped(monkeypatch, "teacher", 6, save=True):
        helpers.train(other)
    changes = {"train_dir": str(tmp_path / "run"), "max_steps": 1}
    for train_dir, warns in (
        (serial_run.training.train_dir, False),
        (other.training.train_dir, True),
    ):
        caplog.clear()
        run = helpers.change(
            serial_run, teacher_checkpoint=train_dir, start_new_model=True, **changes
        )
        initialized(run, "student", monkeypatch)
        assert (f"{train_dir}: that run has not finished" in caplog.text) == warns


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {
                "student": "HierarchicalLSTM(cells=3, block_len=3)",
                "match": "intermediate",
            },
            "The student's intermediate state has width 12, the teacher's 16.",
        ),
        (
            {"student": "FrameLevelLogisticModel", "match": "intermediate"},
            "has no intermediate states",
        ),
        (
            # Both encodings are the mean of the frames.
            {
                "teacher": "FrameLevelLogisticModel",
                "student": "FrameLevelLogisticModel",
                "student_loss": "rep",
            },
            "--student_loss=rep has nothing to train in the student",
        ),
    ],
)
def test_a_student_that_cannot_learn_is_refused_before_the_teacher_does(
    serial_run, tmp_path, changes, said
):
    changes = {"teacher": "HierarchicalLSTM(cells=4, block_len=5)", **changes}
    run = helpers.change(serial_run, train_dir=str(tmp_path / "run"), **changes)
    with pytest.raises(ValueError) as caught:
        helpers.train(run)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["teacher", "baseline"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student_loss": "ce + rpe"}, "--student_loss=ce + rpe: Unknown loss 'rpe'."),
        ({"student": "Nosuch"}, "--student=Nosuch: Unknown model 'Nosuch'."),
    ],
)
def test_what_the_mode_has_no_use_for_is_parsed_all_the_same(
    data, tmp_path, mode, changes, said
):
    run = helpers.make_run(tmp_path / "run", data, mode=mode, **changes)
    with pytest.raises(ValueError) as caught:
        helpers.train(run)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "run").exists()


def test_the_copied_classifier_starts_equal_and_is_another(
    serial_run, tmp_path, monkeypatch
):
    other = {
        "train_dir": str(tmp_path / "run"),
        "teacher_checkpoint": serial_run.training.train_dir,
    }
    run = helpers.change(serial_run, **other)
    networks = initialized(run, "student", monkeypatch)
    teacher, student = (
        n.head.trainable_variables for n in (networks.teacher, networks.student)
    )
    for a, b in zip(teacher, student, strict=True):
        assert a is not b
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    own = initialized(
        helpers.change(run, classifier="own", start_new_model=True),
        "student",
        monkeypatch,
    )
    assert not np.array_equal(own.teacher.head.kernel, own.student.head.kernel)


def test_a_narrow_student_meets_the_teacher_over_a_bridge(
    serial_run, tmp_path, monkeypatch
):
    run = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "run"),
        teacher_checkpoint=serial_run.training.train_dir,
        student="MeanTanh(units=3)",
        max_steps=2,
        validation_data_pattern="",
    )
    entry = helpers.train(run)["student"]
    stored = helpers.read_variables(
        helpers.best(tmp_path / "run", "student", "student")
    )
    assert sorted(v.shape for v in stored.values()) == [(3, 6), (6, 10), (10,), (12, 3)]
    assert entry["networks"]["student"]["parameters"] == 12 * 3 + 3 * 6 + 6 * 10 + 10


def test_the_representation_alone_leaves_the_classifier_to_fine_tuning(
    representation_run,
):
    train_dir = representation_run.training.train_dir
    teacher = helpers.read_variables(helpers.best(train_dir, "teacher", "teacher"))
    first = helpers.read_variables(helpers.latest(train_dir, "student"))
    tuned = helpers.read_variables(helpers.latest(train_dir, "finetune"))
    head = helpers.of(teacher, "teacher/head/")
    helpers.assert_identical(head, helpers.of(first, "student/head/"))
    after = helpers.of(tuned, "student/head/")
    assert after.keys() == head.keys()
    assert all(not np.array_equal(head[k], after[k]) for k in head)


def test_fine_tuning_starts_from_the_best_student_of_the_first_stage(
    representation_run,
):
    train_dir = representation_run.training.train_dir
    phase = modes.phases(representation_run)[-1]
    runner = trainer.PhaseRunner(
        phase, representation_run, helpers.cpus(1), None, num_videos=36
    )
    runner._build()
    runner._initialize()
    networks = runner.networks
    prefix = helpers.best(train_dir, "student", "student")
    assert_holds(networks.student, prefix, "student")
    assert networks.teacher is None


def test_external_teachers_that_cannot_be_used(serial_run, data, tmp_path):
    def refused(**changes) -> str:
        train_dir = tmp_path / "run"
        run = helpers.change(serial_run, train_dir=str(train_dir), **changes)
        with pytest.raises(ValueError) as error:
            helpers.train(run)
        shutil.rmtree(train_dir, ignore_errors=True)
        return str(error.value)

    missing = str(tmp_path / "nothing")
    assert refused(teacher_checkpoint=missing) == (
        f"--teacher_checkpoint={missing} is neither a train_dir nor a checkpoint "
        "prefix."
    )
    other = serial_run.training.train_dir
    message = refused(teacher_checkpoint=other, teacher="MeanTanh(units=5)")
    assert "MeanTanh(units=5)" in message and "MeanTanh(units=6)" in message
    prefix = helpers.best(other, "teacher", "teacher")
    message = refused(teacher_checkpoint=prefix, teacher="MeanTanh(units=5)")
    assert "does not hold this teacher" in message and "\n" not in message


# --------------------------------------------------------------- parallel


def test_the_shared_classifier_is_one_set_of_variables(
    parallel_run, tmp_path, monkeypatch
):
    run = helpers.change(parallel_run, train_dir=str(tmp_path / "run"))
    networks = initialized(run, "parallel", monkeypatch)
    assert networks.student.head is networks.teacher.head
    assert networks.student.kernel is not networks.teacher.kernel
    size = 12 * 6 + 12 * 6 + 6 * 10 + 10
    assert sum(np.prod(v.shape) for v in networks.trainable_variables) == size


def test_both_best_networks_contain_the_shared_classifier(parallel_run):
    train_dir = parallel_run.training.train_dir
    for role in ("teacher", "student"):
        stored = helpers.read_variables(helpers.best(train_dir, "parallel", role))
        shapes = sorted(v.shape for v in helpers.of(stored, f"{role}/").values())
        assert shapes == [(6, 10), (10,), (12, 6)]


@pytest.mark.parametrize(
    "match, parts",
    [
        ("final", ["rep_loss"]),
        ("intermediate", ["rep_intermediate_loss"]),
        ("both", ["rep_loss", "rep_intermediate_loss"]),
    ],
)
def test_match_decides_which_encodings_are_compared(
    parallel_run, tmp_path, match, parts
):
    run = parallel_run
    if match != run.distillation.match:
        run = helpers.change(
            run,
            train_dir=str(tmp_path / "run"),
            match=match,
            max_steps=2,
            validation_data_pattern="",
        )
        helpers.train(run)
    line = helpers.read_lines(f"{run.training.train_dir}/parallel/metrics.jsonl")[0]
    found = [k for k in line if k.startswith("student/rep")]
    assert found == [f"student/{part}" for part in parts]
    assert all(line[name] > 0 for name in found)


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_states_alone_train_what_they_depend_on(serial_run, tmp_path, mode):
    """The lower LSTM; the upper one has neither gradients nor a penalty."""
    stored = {}
    for steps_done in (1, 4):
        run = helpers.change(
            serial_run,
            train_dir=str(tmp_path / f"{mode}{steps_done}"),
            mode=mode,
            teacher=helpers.LSTM_TEACHER,
            student=helpers.LSTM_STUDENT,
            student_loss="rep",
            match="intermediate",
            finetune_epochs=0,
            max_steps=steps_done,
        )
        helpers.train(run)
        phase = "student" if mode == "serial" else mode
        prefix = helpers.best(run.training.train_dir, phase, "student")
        stored[steps_done] = helpers.of(helpers.read_variables(prefix), "student/")
    before, after = stored[1], stored[4]
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    # The classifier is the teacher's.
    moved = {name for name in moved if not name.startswith("head/")}
    assert moved == {name for name in after if name.startswith("lower/")}
    assert len(moved) == 6 and sum(name.startswith("upper/") for name in after) == 6
    line = helpers.read_lines(f"{run.training.train_dir}/{phase}/metrics.jsonl")[0]
    assert line["student/reg_loss"] > 0


def test_a_variable_that_the_loss_does_not_reach_is_named(
    serial_run, tmp_path, monkeypatch
):
    network = hierarchical_lstm.HierarchicalLSTM
    monkeypatch.setattr(network, "state_variables", lambda n: n.trainable_variables)
    run = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "run"),
        mode="parallel",
        teacher=helpers.LSTM_TEACHER,
        student_loss="rep_intermediate",
        regularization_penalty=0,
    )
    with pytest.raises(ValueError, match="loss of the student does not depend on .*:"):
        helpers.train(run)


# --------------------------------------------------------------- refusals


def test_other_settings_are_refused_and_nothing_is_written(serial_run):
    train_dir = serial_run.training.train_dir
    before = helpers.snapshot(train_dir)
    run = helpers.change(serial_run, batch_size=4, student_loss="ce")
    with pytest.raises(ValueError) as error:
        helpers.train(run)
    message = str(error.value)
    assert "--batch_size: was 8, is 4" in message and "\n" not in message
    with pytest.raises(ValueError) as error:
        helpers.train(helpers.change(serial_run, student_loss="ce", student_k=5))
    message = str(error.value)
    assert "--student_loss: was 'ce + 0.5*rep + 0.5*pred', is 'ce'" in message
    assert "--student_k: was 6, is 5" in message
    assert helpers.snapshot(train_dir) == before


def test_settings_that_change_no_result_may_differ(serial_run, tmp_path):
    run = helpers.change(
        serial_run, log_steps=5, steps_per_loop=7, max_checkpoints=2, num_gpus=0
    )
    for phase in modes.phases(run):
        folder = f"{run.training.train_dir}/{phase.name}"
        manifest.check_same_settings(folder, trainer.phase_settings(phase, run))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"train_data_pattern": "nowhere/*.tfrecord"},
            "--train_data_pattern=nowhere/*.tfrecord matches no file.",
        ),
        (
            {"validation_data_pattern": "nowhere/*"},
            "--validation_data_pattern=nowhere/* matches no file.",
        ),
        ({"student_loss": "ce + nothing"}, "nothing"),
        ({"teacher": "Nothing()"}, "--teacher=Nothing()"),
        ({"optimizer": "Nothing"}, "--optimizer=Nothing"),
        ({"frame_sampler": "nothing"}, "nothing"),
        ({"mode": "serial", "teacher_checkpoint": "nowhere"}, "neither"),
    ],
)
def test_a_wrong_setting_writes_nothing_and_removes_nothing(
    data, tmp_path, changes, message
):
    train_dir = tmp_path / "run"
    train_dir.mkdir()
    (train_dir / manifest.MODEL_FLAGS).write_text("{}")
    before = helpers.snapshot(train_dir)
    run = helpers.make_run(
        train_dir,
        data,
        **{"mode": "parallel", "start_new_model": True, **changes},
    )
    with pytest.raises(ValueError) as error:
        helpers.train(run)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert helpers.snapshot(train_dir) == before


def test_an_empty_shard_is_refused(tmp_path):
    helpers.write_shard(tmp_path / "train-0.tfrecord", [])
    run = helpers.make_run(tmp_path / "run", tmp_path, validation_data_pattern="")
    with pytest.raises(ValueError, match="has no videos"):
        helpers.train(run)
    assert not (tmp_path / "run").exists()


def test_the_batch_must_be_divisible_by_the_replicas(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, batch_size=7)
    with pytest.raises(ValueError, match="--batch_size=7 .* 2 replicas"):
        helpers.train(run, replicas=2)
    assert not (tmp_path / "run").exists()


def test_start_new_model_begins_anew(data, tmp_path):
    train_dir = tmp_path / "run"
    run = helpers.make_run(train_dir, data, max_steps=2, validation_data_pattern="")
    helpers.train(run)
    again = helpers.change(run, base_learning_rate=0.5, start_new_model=True)
    entry = helpers.train(again)["teacher"]
    assert entry["finished"] and entry["step"] == 2
    stored = manifest.read_json(f"{train_dir}/teacher/settings.json")
    assert stored["base_learning_rate"] == 0.5
    lines = helpers.read_lines(train_dir / "teacher" / "metrics.jsonl")
    assert len(lines) == 1  # Of one run.


def test_start_new_model_spares_the_teacher_that_it_is_to_use(serial_run):
    train_dir = serial_run.training.train_dir
    before = helpers.snapshot(train_dir)
    run = helpers.change(serial_run, teacher_checkpoint=train_dir, start_new_model=True)
    with pytest.raises(ValueError, match="would remove --teacher_checkpoint"):
        helpers.train(run)
    assert helpers.snapshot(train_dir) == before


@pytest.mark.parametrize("start_new_model", [False, True])
def test_a_train_dir_that_another_process_is_at_is_left_alone(
    data, tmp_path, start_new_model
):
    run = helpers.make_run(tmp_path / "run", data, max_steps=2)
    helpers.train(run)
    before = helpers.snapshot(tmp_path / "run")
    other = helpers.change(run, start_new_model=start_new_model)
    with files.held(run.training.train_dir, "x"):
        with pytest.raises(ValueError, match="/run: another process is training there"):
            helpers.train(other)
    assert helpers.snapshot(tmp_path / "run") == before
    helpers.train(other)


def test_a_run_that_came_to_no_checkpoint_may_begin_otherwise(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, max_steps=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not the 7 of --feature"):
        helpers.train(helpers.change(run, feature_sizes="7,4"))
    assert (tmp_path / "run" / "teacher" / "settings.json").exists()
    assert helpers.train(run)["teacher"]["finished"]
    # Now there is one.
    with pytest.raises(ValueError, match="--num_classes: was 10, is 11"):
        helpers.train(helpers.change(run, num_classes=11))


def test_another_spelling_is_no_other_setting(data, tmp_path, monkeypatch):
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="parallel",
        teacher="MeanTanh(units=6, dropout=0.2)",
        student_loss="ce + 0.5*rep",
    )
    with helpers.stopped(monkeypatch, "parallel", 4, save=True):
        helpers.train(run)
    spelt = {"teacher": "MeanTanh(dropout=.2,units=6)", "student_loss": "ce+0.5 * rep"}
    assert helpers.train(helpers.change(run, **spelt))["parallel"]["finished"]


@base.MODELS.register("LateDense")
class LateDense(helpers.MeanTanh):
    """Makes a layer's variables when it is called, after the optimizer has its list."""

    def __init__(self, feature_size, num_classes, max_frames, units=6, **others):
        super().__init__(feature_size, num_classes, max_frames, units, **others)
        self.late = keras.layers.Dense(units)

    def encode(self, frames, num_frames, state_indices, training):
        found, states = super().encode(frames, num_frames, state_indices, training)
        return self.late(found), states


def test_a_layer_that_would_not_be_trained_is_refused(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, teacher="LateDense(units=6)")
    with pytest.raises(ValueError, match="--teacher: LateDense makes .*kernel.*, too "):
        helpers.train(run)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_more_data(tmp_path, monkeypatch):
    helpers.write_data(tmp_path)
    run = helpers.make_run(tmp_path / "run", tmp_path)
    with helpers.stopped(monkeypatch, "teacher", 4, save=True):
        helpers.train(run)
    before = helpers.snapshot(tmp_path / "run" / "teacher" / "checkpoints")
    more = helpers.write_shard(
        tmp_path / "train-2.tfrecord", helpers.make_videos(24, seed=3, prefix="u")
    )
    said = "began with 36 videos in 2 shards .* now there are 60 in 3: a phase"
    with pytest.raises(ValueError, match=said):
        helpers.train(run)
    assert helpers.snapshot(tmp_path / "run" / "teacher" / "checkpoints") == before
    os.remove(more)
    assert helpers.train(run)["teacher"]["finished"]


def test_start_new_model_refuses_a_folder_with_other_things(data, tmp_path):
    train_dir = tmp_path / "run"
    helpers.train(
        helpers.make_run(train_dir, data, max_steps=1, validation_data_pattern="")
    )
    (train_dir / "thesis.tex").write_text("years of work")
    before = helpers.snapshot(train_dir)
    run = helpers.make_run(train_dir, data, num_epochs=1, start_new_model=True)
    with pytest.raises(ValueError, match="thesis.tex. Nothing was removed."):
        helpers.train(run)
    assert helpers.snapshot(train_dir) == before


# ------------------------------------------------------- the best network


def fake_gaps(monkeypatch, gaps: list[float]) -> None:
    fake = helpers.FakeEvaluator(list(gaps))
    monkeypatch.setattr(evaluator, "Evaluator", lambda *args: fake)


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
        "network-10.sha256.json",
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
        last["teacher/kernel/" + _SUFFIX], then["kernel/" + _SUFFIX]
    )


def test_where_states_alone_are_compared_the_last_epoch_is_kept(
    data, monkeypatch, tmp_path
):
    # Teacher and student in turn.
    fake_gaps(monkeypatch, [0.5, 0.9, 0.4, 0.1])
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="parallel",
        teacher=helpers.LSTM_TEACHER,
        student=helpers.LSTM_STUDENT,
        student_loss="rep_intermediate",
        finetune_epochs=0,
        num_epochs=2,
    )
    results = helpers.train(run)["parallel"]["results"]
    assert results["teacher"]["best"]["epoch"] == 1
    assert results["student"]["best"]["epoch"] == 2
    assert helpers.best(tmp_path / "run", "parallel", "student").endswith("-10")


def test_fine_tuning_of_the_other_mode_is_not_taken_for_its_own(serial_run, tmp_path):
    given = {"student_loss": "rep", "num_epochs": 1, "finetune_epochs": 1}
    run = helpers.change(serial_run, train_dir=str(tmp_path / "run"), **given)
    helpers.train(run)
    before = helpers.snapshot(tmp_path / "run" / "finetune")
    with pytest.raises(ValueError, match="--mode: was 'serial', is 'parallel'"):
        helpers.train(helpers.change(run, mode="parallel"))
    assert helpers.snapshot(tmp_path / "run" / "finetune") == before


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_fine_tuning_begins_with_the_teachers_classifier(
    serial_run, tmp_path, monkeypatch, mode
):
    """Also where --classifier=own: nothing has trained another one yet."""
    run = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "run"),
        mode=mode,
        student_loss="rep",
        classifier="own",
        num_epochs=2,
        finetune_epochs=1,
    )
    networks = initialized(run, "finetune", monkeypatch)
    phase = "student" if mode == "serial" else mode
    # In parallel mode they are one; the student's best epoch is the one that counts.
    source = ("teacher", "teacher") if mode == "serial" else (phase, "student")
    stored = helpers.read_variables(helpers.best(tmp_path / "run", *source))
    kernel = stored[f"{source[1]}/head/kernel/{_SUFFIX}"]
    np.testing.assert_array_equal(networks.student.head.kernel.numpy(), kernel)


_SUFFIX = ".ATTRIBUTES/VARIABLE_VALUE"


def test_parallel_keeps_the_best_of_each_network(data, monkeypatch, tmp_path):
    # In every epoch the teacher is evaluated first.
    fake_gaps(monkeypatch, [0.9, 0.1, 0.8, 0.2])
    run = helpers.make_run(tmp_path / "run", data, mode="parallel")
    results = helpers.train(run)["parallel"]["results"]
    assert results["teacher"]["best"]["epoch"] == 1
    assert results["student"]["best"]["epoch"] == 2
    found = {
        role: checkpoints.find(run.training.train_dir, run, role).step
        for role in ("teacher", "student")
    }
    assert found == {"teacher": 5, "student": 10}


def test_without_validation_the_last_epoch_is_kept(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, validation_data_pattern="")
    entry = helpers.train(run)["teacher"]["results"]["teacher"]
    assert entry["best"] == {"epoch": 2, "step": 10}
    assert helpers.best(tmp_path / "run", "teacher", "teacher").endswith("-10")


# ------------------------------------------------------ numbers gone wrong


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(data, tmp_path):
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
    assert prefix.endswith("ckpt-1")
    for name, value in helpers.read_variables(prefix).items():
        assert np.isfinite(value).all(), name


@pytest.mark.parametrize(
    "policy, teacher",
    [
        ("mixed_bfloat16", "MeanTanh(dropout=0.0)"),
        ("mixed_float16", "HierarchicalLSTM(cells=4, layers=1, block_len=5)"),
    ],
)
def test_mixed_precision_learns(data, tmp_path, use_policy, policy, teacher):
    use_policy(policy)
    run = helpers.make_run(
        tmp_path / "run",
        data,
        dtype_policy=policy,
        teacher=teacher,
        num_epochs=3,
        steps_per_loop=5,
        log_steps=5,
        validation_data_pattern="",
    )
    helpers.train(run)
    lines = helpers.read_lines(tmp_path / "run" / "teacher" / "metrics.jsonl")
    losses = [line["teacher/ce_loss"] for line in lines]
    assert len(losses) == 3
    # 10 classes at probability 0.5 cost 10 ln 2 = 6.9.
    assert 6 < losses[0] < 7.5 and losses[-1] < 0.9 * losses[0]
    stored = helpers.read_variables(
        helpers.best(tmp_path / "run", "teacher", "teacher")
    )
    assert {v.dtype for v in stored.values()} == {np.dtype(np.float32)}


def make_scaled_runner(data, replicas: int):
    run = helpers.make_run("unused", data, dtype_policy="mixed_float16")
    (phase,) = modes.phases(run)
    runner = trainer.PhaseRunner(phase, run, helpers.cpus(replicas), None, 36)
    runner._build()
    return runner


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_overflow_skips_the_step_and_halves_the_scale(data, use_policy, replicas):
    use_policy("mixed_float16")
    runner = make_scaled_runner(data, replicas)
    scale = runner.loop.loss_scale
    assert float(scale.numpy()) == 2.0**15
    scale.assign(2.0**30)  # float16 ends at 65504.
    before = [v.numpy() for v in runner.networks.weights]
    iterator = iter(runner._dataset(0, 0))
    means, bad, taken = runner.loop.run(iterator, tf.constant(1))
    assert int(bad) == -1 and float(taken) == 0 and not means.numpy().any()
    assert float(scale.numpy()) == 2.0**29
    after = [v.numpy() for v in runner.networks.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    scale.assign(2.0**10)
    runner.loop.run(iterator, tf.constant(1))
    assert float(scale.numpy()) == 2.0**10
    assert not np.array_equal(before[0], runner.networks.weights[0].numpy())
    assert int(runner.state.step.numpy()) == 2


def test_a_skipped_step_is_not_in_the_mean_that_is_logged(data, use_policy):
    use_policy("mixed_float16")

    def every_other():
        """A runner whose steps 0, 2 and 4 overflow."""
        runner = make_scaled_runner(data, 1)
        compute = runner.step.compute

        def overflowing(batch, step):
            gradients, metrics, _ = compute(batch, step)
            return gradients, metrics, tf.equal(step % 2, 1)

        runner.step.compute = overflowing
        return runner, iter(runner._dataset(0, 0))

    runner, iterator = every_other()
    found, _, taken = runner.loop.run(iterator, tf.constant(5))
    assert float(taken) == 2 and runner._steps_taken(5) == 2
    single, iterator = every_other()
    parts = [single.loop.run(iterator, tf.constant(1))[0].numpy() for _ in range(5)]
    assert parts[1].any() and not any(parts[i].any() for i in (0, 2, 4))
    expected = (parts[1] + parts[3]) / 2
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_the_scale_doubles_after_many_good_steps(data, use_policy):
    use_policy("mixed_float16")
    runner = make_scaled_runner(data, 1)
    runner.loop.good_steps.assign(1998)
    iterator = iter(runner._dataset(0, 0))
    runner.loop.run(iterator, tf.constant(1))
    assert float(runner.loop.loss_scale.numpy()) == 2.0**15
    runner.loop.run(iterator, tf.constant(1))
    assert float(runner.loop.loss_scale.numpy()) == 2.0**16
    assert int(runner.loop.good_steps.numpy()) == 0


def test_the_count_of_good_steps_is_part_of_the_state(data, use_policy, tmp_path):
    use_policy("mixed_float16")
    runner = make_scaled_runner(data, 1)
    runner.loop.good_steps.assign(7)
    prefix = runner.state.checkpoint.write(str(tmp_path / "state"))
    stored = helpers.read_variables(prefix)
    assert stored[f"good_steps/{_SUFFIX}"] == 7


def test_float16_too_stops_at_a_loss_that_no_scale_saves(data, use_policy):
    use_policy("mixed_float16")
    runner = make_scaled_runner(data, 1)
    runner.networks.teacher.kernel.assign(np.full([12, 6], np.nan, np.float32))
    iterator = iter(runner._dataset(0, 0))
    metrics, bad, _ = runner.loop.run(iterator, tf.constant(5))
    assert int(bad) == 0
    assert np.isnan(metrics.numpy()).any()
    # It is not taken for an overflow, which is scaled away, one video a step.
    assert float(runner.loop.loss_scale.numpy()) == 2.0**14


def test_float16_stops_at_a_gradient_that_no_scale_saves(data, use_policy):
    use_policy("mixed_float16")
    runner = make_scaled_runner(data, 1)
    scale = runner.loop.loss_scale
    scale.assign(4.0)
    compute = runner.step.compute

    def overflowing(batch, step):
        gradients, metrics, _ = compute(batch, step)
        return gradients, metrics, tf.constant(False)

    runner.step.compute = overflowing
    iterator = iter(runner._dataset(0, 0))
    _, bad, _ = runner.loop.run(iterator, tf.constant(5))
    # 4, 2 and 1 are tried, in steps 0, 1 and 2.
    assert int(bad) == 2


# -------------------------------------------------------------------- logs

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
    parts = {f"student/{p}_loss" for p in ("ce", "rep", "pred", "label", "reg")}
    assert events.keys() >= STARTER_NAMES | parts | {"student/gradient_norm"}
    # 10 steps; a point after every second one, and at the end of an epoch.
    assert [step for step, _ in events["label_loss"]] == [2, 4, 5, 6, 8, 10]
    assert events["label_loss"] == events["student/label_loss"]
    for values in zip(*(events[f"student/{p}_loss"] for p in PARTS), strict=True):
        *terms, total = (value for _, value in values)
        assert sum(terms) == pytest.approx(total, rel=1e-5)


PARTS = ("ce", "rep", "pred", "label")


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
    assert set(training[0]) == {"kind", "step", "time", *events}
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


def test_training_learns(serial_run):
    """The teacher beats what chance gives: the rarest claim, but the first."""
    lines = helpers.read_lines(f"{serial_run.training.train_dir}/teacher/metrics.jsonl")
    losses = [x["teacher/ce_loss"] for x in lines if x["kind"] == "training"]
    assert losses[-1] < losses[0]
