"""The weights that networks begin with: of other runs, of their guide, shared ones."""

import shutil

import numpy as np
import pytest

from tests import training_helpers as helpers
from yt8m_distill.models import builder
from yt8m_distill.training import initial_weights, modes

once = pytest.mark.once


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
    networks = helpers.initialized(run, "student", monkeypatch)
    assert_holds(networks.teacher, prefix, "teacher")
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize("k", [helpers.MAX_FRAMES, f"3,{helpers.MAX_FRAMES}", 3])
def test_a_network_on_all_frames_teaches_whatever_its_name(
    serial_run, tmp_path, monkeypatch, k
):
    alone = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "alone"),
        mode="baseline",
        student=serial_run.networks.teacher,
        student_k=str(k),
        max_steps=2,
    )
    helpers.train(alone)
    run = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "run"),
        teacher_checkpoint=alone.training.train_dir,
    )
    if k == 3:
        said = helpers.refusal(run)
        assert alone.training.train_dir in said and str(helpers.MAX_FRAMES) in said
        return
    networks = helpers.initialized(run, "student", monkeypatch)
    prefix = helpers.best(alone.training.train_dir, "baseline", "student")
    assert_holds(networks.teacher, prefix, "student")


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
@pytest.mark.parametrize("as_prefix", [False, True])
@once
def test_a_teacher_of_other_data_is_refused(
    serial_run, tmp_path, changes, said, as_prefix
):
    other = serial_run.training.train_dir
    if as_prefix:
        other = helpers.best(other, "teacher", "teacher")
    changes = changes | {
        "train_dir": str(tmp_path / "run"),
        "teacher_checkpoint": other,
    }
    refusal = helpers.refusal(helpers.change(serial_run, **changes))
    assert f"was trained on other data: {said}" in refusal


@once
def test_a_teacher_that_is_not_finished_gives_a_warning(
    serial_run, tmp_path, monkeypatch, caplog
):
    finished = serial_run.training.train_dir
    for train_dir, warns in ((finished, False), (f"{finished}.teaching", True)):
        caplog.clear()
        run = helpers.change(
            serial_run, teacher_checkpoint=train_dir, train_dir=str(tmp_path / "run")
        )
        helpers.initialized(run, "student", monkeypatch)
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert any(train_dir in line for line in warned) == warns
        shutil.rmtree(tmp_path / "run")


@once
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
    assert prefix in message and "\n" not in message


def test_a_new_classifier_starts_at_the_class_frequencies(data, tmp_path, monkeypatch):
    run = helpers.make_run(tmp_path / "run", data)
    networks = helpers.initialized(run, "teacher", monkeypatch)
    counts = np.zeros(helpers.NUM_CLASSES)
    for _, labels, _ in helpers.make_videos(36, seed=1):
        counts[labels] += 1
    odds = (counts + 0.5) / (36 - counts + 0.5)
    np.testing.assert_allclose(networks.teacher.head.bias, np.log(odds), rtol=1e-5)


def test_the_copied_classifier_starts_equal_and_is_another(
    serial_run, tmp_path, monkeypatch
):
    other = {
        "train_dir": str(tmp_path / "run"),
        "teacher_checkpoint": serial_run.training.train_dir,
    }
    run = helpers.change(serial_run, **other)
    networks = helpers.initialized(run, "student", monkeypatch)
    teacher, student = (
        n.head.trainable_variables for n in (networks.teacher, networks.student)
    )
    for a, b in zip(teacher, student, strict=True):
        assert a is not b
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    own = helpers.initialized(
        helpers.change(run, classifier="own", start_new_model=True),
        "student",
        monkeypatch,
    )
    assert not np.array_equal(own.teacher.head.kernel, own.student.head.kernel)


def test_the_shared_classifier_is_one_set_of_variables(
    parallel_run, tmp_path, monkeypatch
):
    run = helpers.change(parallel_run, train_dir=str(tmp_path / "run"))
    networks = helpers.initialized(run, "parallel", monkeypatch)
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
    networks = builder.build_networks(phase.roles, representation_run.data)
    initial_weights.assign(phase, networks, representation_run)
    prefix = helpers.best(train_dir, "student", "student")
    assert_holds(networks.student, prefix, "student")
    assert not hasattr(networks, "teacher")


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_fine_tuning_begins_with_the_teachers_classifier(
    serial_run, tmp_path, monkeypatch, mode
):
    """Also where --classifier=own: nothing has trained another one yet."""
    first = "student" if mode == "serial" else "teacher"
    run = helpers.change(
        helpers.copy_without(serial_run, tmp_path / "run", first),
        mode=mode,
        student_loss="rep",
        classifier="own",
        num_epochs=2,
        finetune_epochs=1,
    )
    networks = helpers.initialized(run, "finetune", monkeypatch)
    phase = "student" if mode == "serial" else mode
    # In parallel mode they are one; the student's best epoch is the one that counts.
    source = ("teacher", "teacher") if mode == "serial" else (phase, "student")
    stored = helpers.read_variables(helpers.best(tmp_path / "run", *source))
    kernel = stored[f"{source[1]}/head/kernel/{helpers.SUFFIX}"]
    np.testing.assert_array_equal(networks.student.head.kernel.numpy(), kernel)
