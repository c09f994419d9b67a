"""Runs from start to end: what they train, and what they refuse."""

import os
import re
import shutil

import numpy as np
import pytest

from tests import training_helpers as helpers
from yt8m_distill import files
from yt8m_distill.models import hierarchical_lstm
from yt8m_distill.training import (
    distribution,
    inputs,
    loop,
    manifest,
    modes,
    trainer,
)

once = pytest.mark.once
# Five steps, for what is decided before them.
SHORT = {"num_epochs": 1, "validation_data_pattern": ""}


def test_serial_leaves_the_teacher_bit_identical(serial_run):
    train_dir = serial_run.training.train_dir
    trained = helpers.read_variables(helpers.best(train_dir, "teacher", "teacher"))
    after = helpers.read_variables(helpers.latest(train_dir, "student"))
    helpers.assert_identical(
        helpers.of(trained, "teacher/"), helpers.of(after, "teacher/")
    )


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_a_loss_of_states_trains_only_the_variables_of_the_states(data, mode):
    """The lower LSTM; the upper one has neither gradients nor a penalty."""
    run = helpers.make_run(
        "unused",
        data,
        mode=mode,
        teacher_checkpoint="unused" if mode == "serial" else "",
        teacher=helpers.LSTM_TEACHER,
        student=helpers.LSTM_STUDENT,
        student_loss="rep",
        match="intermediate",
        finetune_epochs=0,
    )
    runner = helpers.build_phase(run)
    student = runner.networks.network("student")
    learner, lower = runner.step.learners["student"], student.lower.trainable_variables
    assert [id(v) for v in learner.variables] == [id(v) for v in lower]
    penalized = {id(kernel) for kernel in learner.kernels}
    assert penalized and penalized <= {id(v) for v in lower}
    gradients, metrics = helpers.first_gradients(runner)
    assert len(gradients["student"]) == 3 and all(map(np.any, gradients["student"]))
    assert metrics["student/reg_loss"] > 0


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
    with pytest.raises(ValueError, match="does not depend on .*state_variables"):
        helpers.train(run)


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
    # The classes begin at their frequencies. 10 of them at probability 0.5 would cost
    # 10 ln 2 = 6.9.
    assert 3 < losses[0] < 6 and losses[-1] < losses[0]
    stored = helpers.read_variables(
        helpers.best(tmp_path / "run", "teacher", "teacher")
    )
    assert {v.dtype for v in stored.values()} == {np.dtype(np.float32)}


def test_training_learns(serial_run):
    """The teacher beats what chance gives: the rarest claim, but the first."""
    lines = helpers.read_lines(f"{serial_run.training.train_dir}/teacher/metrics.jsonl")
    losses = [x["teacher/ce_loss"] for x in lines if x["kind"] == "training"]
    assert losses[-1] < losses[0]


# --------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("trained", "changes", "named"),
    [
        ("serial_run", {"batch_size": 4}, ["--batch_size: was 8, is 4"]),
        (
            "serial_run",
            {"student_loss": "ce", "student_k": 5},
            [
                "--student_loss: was 'ce + 0.5*rep + 0.5*pred', is 'ce'",
                "--student_k: was '6', is '5'",
            ],
        ),
        # It would hide the networks of both phases.
        ("serial_run", {"mode": "baseline"}, ["--mode=baseline", "{train_dir}"]),
        # Its teacher has taught.
        ("serial_run", {"num_epochs": 3}, ["--student_epochs", "{train_dir}/student"]),
        (
            "serial_run",
            {"teacher_checkpoint": "{train_dir}", "start_new_model": True},
            ["would move --teacher_checkpoint"],
        ),
        (
            "serial_run",
            {"start_from": "{train_dir}", "start_new_model": True},
            ["would move --start_from"],
        ),
        (
            "representation_run",
            {"mode": "parallel"},
            ["--mode: was 'serial', is 'parallel'"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@once
def test_what_a_finished_run_cannot_become_is_refused_and_leaves_it_alone(
    request, trained, changes, named
):
    run = request.getfixturevalue(trained)
    train_dir = run.training.train_dir
    changes = {
        name: value.format(train_dir=train_dir) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    message = helpers.refusal(helpers.change(run, **changes))
    assert all(part.format(train_dir=train_dir) in message for part in named)


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
        ({"train_fraction": 0.001}, "--train_fraction=0.001 leaves no video"),
        ({"teacher": "Nothing()"}, "--teacher=Nothing()"),
        ({"optimizer": "Nothing"}, "--optimizer=Nothing"),
    ],
)
@once
def test_a_wrong_setting_writes_nothing_and_removes_nothing(
    data, tmp_path, changes, message
):
    train_dir = tmp_path / "run"
    train_dir.mkdir()
    (train_dir / manifest.MODEL_FLAGS).write_text("{}")
    changes = {"mode": "parallel", "start_new_model": True, **changes}
    assert message in helpers.refusal(helpers.make_run(train_dir, data, **changes))


@once
@pytest.mark.parametrize("start_new_model", [False, True])
def test_processes_that_cannot_fill_a_cache_do_not_train_its_teacher_first(
    data, serial_run, tmp_path, monkeypatch, start_new_model
):
    monkeypatch.setattr(distribution, "num_processes", lambda strategy: 2)
    cache = {"mode": "serial", "teacher_cache": str(tmp_path / "cache")}
    new = {"start_new_model": start_new_model}
    run = helpers.make_run(tmp_path / "run", data, **cache, **new)
    assert f"--teacher_cache={tmp_path}/cache: " in helpers.refusal(run)
    assert not list(tmp_path.iterdir())
    # Its finished teacher is no reason: then the cache may be filled.
    trained = helpers.change(serial_run, **cache)
    trainer._check_cached(modes.phases(trained), trained)


@pytest.mark.parametrize("of", ["train", "validation", "unlabeled"])
@pytest.mark.parametrize("use_index", ["auto", "never"])
def test_an_empty_shard_is_refused(data, tmp_path, of, use_index):
    """Before any training, also where a later epoch or phase reads it first."""
    shard, flag = helpers.write_shard(tmp_path / "empty", []), f"{of}_data_pattern"
    patterns = {"validation_data_pattern": "", "use_index": use_index, flag: shard}
    run = helpers.make_run(tmp_path / "run", data, mode="serial", **patterns)
    assert re.search(f"--{flag}=.*empty has no videos", helpers.refusal(run))


def test_the_batch_must_be_divisible_by_the_replicas(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, batch_size=7)
    said = helpers.refusal(run, replicas=2)
    assert "--batch_size=7 " in said and " 2 replicas" in said


@once
def test_start_new_model_starts_over_and_leaves_a_link_to_another_disk(data, tmp_path):
    train_dir, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    train_dir.symlink_to(disk)
    run = helpers.make_run(train_dir, data, max_steps=2, validation_data_pattern="")
    helpers.train(run)
    # The run before, with everything that somebody put there, has another name.
    (train_dir / "thesis.tex").write_text("years of work")
    before = helpers.snapshot(train_dir)
    again = helpers.change(run, base_learning_rate=0.5, start_new_model=True)
    entry = helpers.train(again)["teacher"]
    assert entry["finished"] and entry["step"] == 2
    stored = manifest.read_json(f"{train_dir}/teacher/settings.json")
    assert stored["base_learning_rate"] == 0.5
    lines = helpers.read_lines(train_dir / "teacher" / "metrics.jsonl")
    assert len(lines) == 1  # Of one run.
    assert helpers.snapshot(f"{disk}.old-1") == before
    assert not (train_dir / "thesis.tex").exists()
    assert train_dir.is_symlink()
    trainer._move_aside(str(train_dir))
    assert helpers.latest(f"{disk}.old-2", "teacher").endswith("ckpt-2")


@once
def test_a_train_dir_that_another_process_is_at_is_left_alone(serial_run):
    train_dir = serial_run.training.train_dir
    with files.held(train_dir, "x"):
        for start_new_model in (False, True):
            other = helpers.change(serial_run, start_new_model=start_new_model)
            assert "run: another process is training" in helpers.refusal(other)
    assert helpers.train(serial_run)["student"]["finished"]  # The lock is free.


@once
def test_a_run_that_came_to_no_checkpoint_may_begin_otherwise(
    data, tmp_path, monkeypatch
):
    run = helpers.make_run(tmp_path / "run", data, max_steps=1)

    def fail(*arguments):
        raise RuntimeError("before the first checkpoint")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop.Loop, "_train_epoch", fail)
        helpers.train(helpers.change(run, num_classes=11))
    assert (tmp_path / "run" / "teacher" / "settings.json").exists()
    assert helpers.train(run)["teacher"]["finished"]
    # Now there is one.
    with pytest.raises(ValueError, match="--num_classes: was 10, is 11"):
        helpers.train(helpers.change(run, num_classes=11))


@once
def test_a_run_is_not_continued_with_more_data_or_rewritten_shards(
    tmp_path, monkeypatch
):
    helpers.write_data(tmp_path)
    run = helpers.make_run(tmp_path / "run", tmp_path, **SHORT)
    with helpers.stopped(monkeypatch, "teacher", 4):
        helpers.train(run)
    before = helpers.snapshot(tmp_path / "run" / "teacher" / "checkpoints")
    more = helpers.write_shard(
        tmp_path / "train-2.tfrecord", helpers.make_videos(24, seed=3, prefix="u")
    )
    said = "began with 36 videos in 2 shards .* now there are 60 in 3: a phase"
    with pytest.raises(ValueError, match=said):
        helpers.train(run)
    os.remove(more)
    os.utime(tmp_path / "train-1.tfrecord", (1, 1))
    with pytest.raises(ValueError, match="--allow_moved_shards"):
        helpers.train(run)
    # Another size is another shard for that flag too.
    moved = helpers.change(run, allow_moved_shards=True)
    content = (tmp_path / "train-1.tfrecord").read_bytes()
    videos = helpers.make_videos(18, seed=4, prefix="w")
    helpers.write_shard(tmp_path / "train-1.tfrecord", videos)
    with pytest.raises(ValueError, match="names or sizes"):
        helpers.train(moved)
    assert helpers.snapshot(tmp_path / "run" / "teacher" / "checkpoints") == before
    (tmp_path / "train-1.tfrecord").write_bytes(content)
    assert helpers.train(moved)["teacher"]["finished"]


@once
@pytest.mark.parametrize("stopped_after", [4, 8])
def test_epochs_that_were_validated_on_other_shards_are_a_line(
    tmp_path, monkeypatch, caplog, stopped_after
):
    """Of 5 steps; before the first one was validated there is nothing to say."""
    helpers.write_data(tmp_path)
    run = helpers.make_run(tmp_path / "run", tmp_path, num_epochs=2)
    with helpers.stopped(monkeypatch, "teacher", stopped_after):
        helpers.train(run)
    videos = helpers.make_videos(8, seed=3, prefix="u")
    helpers.write_shard(tmp_path / "validate-1.tfrecord", videos)
    for expected in (stopped_after == 8, False):  # It is said once.
        caplog.clear()
        assert helpers.train(run)["teacher"]["finished"]
        said = "--validation_data_pattern" in " ".join(
            record.getMessage() for record in caplog.records if record.levelno > 20
        )
        assert said == expected


def test_a_student_is_not_continued_with_other_unlabeled_shards(
    data, tmp_path, monkeypatch
):
    """Nor is its teacher kept from going on, which does not see them."""
    helpers.write_shard(tmp_path / "u-0", helpers.make_videos(9, 5, "u"))
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="serial",
        student_loss="pred",
        unlabeled_data_pattern=f"{tmp_path}/u-*",
        validation_data_pattern="",
        num_epochs=1,
    )
    with helpers.stopped(monkeypatch, "teacher", 2):
        helpers.train(run)
    more = helpers.write_shard(tmp_path / "u-1", helpers.make_videos(4, 6, "w"))
    with helpers.stopped(monkeypatch, "student", 2):
        helpers.train(run)
    os.remove(more)
    with pytest.raises(ValueError, match="student .*--unlabeled_data_pattern: .*names"):
        helpers.train(run)
    helpers.write_shard(more, helpers.make_videos(4, 6, "w"))
    os.utime(more, (0, 0))
    with pytest.raises(ValueError, match="--unlabeled_data_pattern.*times"):
        helpers.train(run)
    moved = helpers.change(run, allow_moved_shards=True)
    assert helpers.train(moved)["student"]["finished"]


def test_start_new_model_refuses_a_folder_that_is_no_run(data, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    run = helpers.make_run(tmp_path / "home", data, start_new_model=True)
    assert f"--train_dir={tmp_path}/home" in helpers.refusal(run)
    assert os.listdir(tmp_path) == ["home"]


# ----------------------------------------------------------------- going on


def test_more_epochs_continue_a_finished_run_as_if_there_had_been_no_end(
    serial_run, tmp_path
):
    """A run of 2 epochs that gets a third is one of 3 epochs."""
    run = helpers.copy_without(serial_run, tmp_path / "a", "student")
    longer = helpers.change(run, mode="teacher", num_epochs=3)
    entry = helpers.train(longer)["teacher"]
    assert (entry["finished"], entry["step"]) == (True, 15)
    whole = helpers.change(longer, train_dir=str(tmp_path / "b"))
    helpers.train(whole)
    helpers.assert_ends_alike(whole, longer, "teacher")


@once
def test_the_log_reports_progress_and_the_next_command(data, tmp_path, caplog):
    run = helpers.make_run(tmp_path / "run", data, mode="baseline")
    with caplog.at_level("INFO", logger="yt8m_distill"):
        helpers.train(run)
    lines = [record.getMessage() for record in caplog.records]
    start = " ".join(lines[:2])
    # 36 videos in 2 shards, 8 per step: 5 steps per epoch.
    for part in ("Phase baseline", "36 videos", "2 shards", "1 replica on CPU"):
        assert part in start
    assert "2 epochs of 5 steps; student 142 parameters" in start
    inside = [x for x in lines if "training step" in x or "Avg_Hit@1" in x]
    assert len(inside) == 8
    assert inside[0].endswith(" | epoch 1/2")  # Nothing was timed yet.
    left = re.compile(r" \| epoch [12]/2, \d:\d\d:\d\d left$")
    assert all(left.search(x) for x in inside[1:])
    assert helpers.best(run.training.train_dir, "baseline", "student") in lines[-2]
    assert f"--train_dir={run.training.train_dir} " in lines[-1]


def test_data_flags_that_do_not_fit_are_named_before_anything_is_built(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer.dry_run, "build_phases", lambda *arguments: 1 / 0)
    for name, value in (("feature_sizes", "7,4"), ("feature_names", "rgb,x")):
        run = helpers.make_run(tmp_path / "run", data, **{name: value})
        assert "train-0.tfrecord" in helpers.refusal(run)


@once
def test_machines_agree_on_files_and_may_have_them_anywhere(data, tmp_path):
    """Of every kind: one that lacked a shard of validation would leave the others."""
    found = []
    for name in ("here", "there", "less"):
        folder = tmp_path / name
        shutil.copytree(data, folder)
        if name == "less":
            (folder / "validate-0.tfrecord").rename(folder / "other.tfrecord")
        pattern = f"{folder}/{'other' if name == 'less' else 'validate'}*.tfrecord"
        run = helpers.make_run(
            folder / "run",
            folder,
            mode="parallel",
            unlabeled_data_pattern=f"{folder}/train-1.tfrecord",
            validation_data_pattern=pattern,
        )
        found.append(trainer._same_everywhere(run, inputs.open_data(run)))
    here, there, less = found
    assert here == there
    different = [name for name in here if here[name] != less[name]]
    assert different == ["names of the validation shards"]
