"""Modes: which phases a run has, and what each role does in them."""

import pytest

from tests import training_helpers as helpers
from yt8m_distill.training import modes, roles

pytestmark = pytest.mark.once


def make_run(**changes):
    return helpers.make_run("run", "data", **changes)


def plan(**changes) -> list[roles.Phase]:
    return modes.phases(make_run(**changes))


def parts(role: roles.Role) -> list[str]:
    return [term.name for term in role.objective.terms]


@pytest.mark.parametrize(
    "mode, role, view",
    [("teacher", "teacher", "all"), ("baseline", "student", "sampled")],
)
def test_one_network_alone_learns_from_the_labels(mode, role, view):
    (phase,) = plan(mode=mode, num_epochs=3)
    (found,) = phase.roles
    assert (phase.name, phase.epochs) == (mode, 3)
    assert (found.name, found.view, found.guides, found.start) == (role, view, (), None)
    assert found.shares_classifier_with is None
    assert parts(found) == ["ce"]
    assert not found.frozen and found.trains_classifier


def test_whoever_has_no_guide_minimises_the_label_loss():
    how = {"label_loss": "asymmetric", "student_loss": "rep", "finetune_epochs": 1}
    for mode in ("teacher", "baseline", "serial", "parallel"):
        run = make_run(mode=mode, **how)
        for phase in modes.phases(run):
            for role in phase.trained:
                assert parts(role) == ["rep" if role.guides else "asymmetric"]
            depends = "label_loss" in phase.settings
            assert depends == (phase.name != "student")


def test_serial_trains_the_teacher_and_then_the_student_under_it():
    first, second = plan(mode="serial", student_loss="ce + 0.1*rep", num_epochs=2)
    assert [first.name, second.name] == ["teacher", "student"]
    assert [role.name for role in first.trained] == ["teacher"]
    teacher, student = second.roles
    assert (teacher.name, teacher.frozen) == ("teacher", True)
    assert teacher.start == roles.Start("teacher", phase="teacher")
    assert (student.name, student.guides) == ("student", ("teacher",))
    assert student.start is None
    assert parts(student) == ["ce", "rep"]
    assert second.trained == (student,)


def test_student_epochs_are_the_students_alone():
    first, second = plan(mode="serial", num_epochs=2, student_epochs=7)
    assert [first.epochs, second.epochs] == [2, 7]
    assert [p.epochs for p in plan(mode="serial", num_epochs=2)] == [2, 2]


def test_a_given_teacher_is_not_trained():
    run = make_run(mode="serial", teacher_checkpoint="elsewhere")
    (phase,) = modes.phases(run, resolved=False)
    assert phase.roles[0].frozen
    with pytest.raises(ValueError, match="--teacher_checkpoint=elsewhere"):
        modes.phases(run)


def test_parallel_trains_both_in_one_phase_the_guide_first():
    (phase,) = plan(mode="parallel", student_loss="ce + pred")
    teacher, student = phase.roles
    assert phase.trained == (teacher, student)
    assert parts(teacher) == ["ce"] and teacher.guides == ()
    assert parts(student) == ["ce", "pred"] and student.guides == ("teacher",)


@pytest.mark.parametrize(
    "mode, classifier, shared, copied",
    [
        ("serial", "auto", False, True),
        ("serial", "copied", False, True),
        ("serial", "own", False, False),
        ("parallel", "auto", True, False),
        ("parallel", "shared", True, False),
        ("parallel", "copied", False, True),
        ("parallel", "own", False, False),
        *(("baseline", given, False, False) for given in ("auto", "copied", "own")),
    ],
)
def test_the_students_classifier(mode, classifier, shared, copied):
    phase = plan(mode=mode, classifier=classifier)[-1]
    student = phase.roles[-1]
    assert student.shares_classifier_with == ("teacher" if shared else None)
    assert student.copies_classifier is copied


@pytest.mark.parametrize("classifier", ["auto", "own", "copied"])
@pytest.mark.parametrize("match", ["final", "intermediate"])
def test_the_representation_alone_takes_the_teachers_classifier(classifier, match):
    given = {"student_loss": "rep", "classifier": classifier, "match": match}
    serial = plan(mode="serial", **given)[1].roles[-1]
    assert serial.copies_classifier and not serial.shares_classifier_with
    parallel = plan(mode="parallel", **given)[0].roles[-1]
    assert parallel.shares_classifier_with and not parallel.copies_classifier


@pytest.mark.parametrize(
    "changes, last",
    [
        ({"student_loss": "rep"}, False),
        ({"student_loss": "rep", "match": "both"}, False),
        ({"student_loss": "ce + rep", "match": "intermediate"}, False),
        ({"student_loss": "rep", "match": "intermediate"}, True),
    ],
)
def test_gap_chooses_no_epoch_where_states_alone_are_compared(changes, last):
    first, *rest = plan(mode="parallel", **changes)
    assert [role.keeps_last for role in first.roles] == [False, last]
    assert not any(role.keeps_last for phase in rest for role in phase.roles)


@pytest.mark.parametrize("start, copied", [("new", False), ("teacher", True)])
def test_a_serial_student_may_start_as_its_teacher(start, copied):
    first, second = plan(mode="serial", student_start=start)
    assert not any(role.copies_network for role in first.roles)
    assert [role.copies_network for role in second.roles] == [False, copied]


@pytest.mark.parametrize("mode", ["serial", "parallel"])
@pytest.mark.parametrize("loss", ["rep", "0.1*rep", "rep + rep_intermediate"])
def test_the_representation_alone_is_followed_by_fine_tuning(mode, loss):
    before, tuning = plan(mode=mode, student_loss=loss, finetune_epochs=4)[-2:]
    assert not before.roles[-1].trains_classifier
    (student,) = tuning.roles
    assert (tuning.name, tuning.epochs) == ("finetune", 4)
    assert student.start == roles.Start("student", phase=before.name)
    assert parts(student) == ["ce"]
    assert student.trains_classifier and student.guides == ()


@pytest.mark.parametrize(
    "changes", [{"finetune_epochs": 0}, {"student_loss": "ce+rep"}]
)
def test_no_fine_tuning_without_need(changes):
    found = plan(**{"mode": "serial", "student_loss": "rep", **changes})
    assert [phase.name for phase in found] == ["teacher", "student"]


def test_views_are_data_of_the_phase():
    given = {"frame_sampler": "uniform", "train_frame_sampler": "random"}
    _, phase = plan(mode="serial", student_k=6, **given)
    assert set(phase.views) == {"all", "sampled"}
    assert phase.views["sampled"].training == ("random", 6, (), None)
    assert phase.views["sampled"].evaluation == ("uniform", 6, (), None)


@pytest.mark.parametrize("made", [None, [], "a phase"])
def test_a_mode_that_returns_no_phases_is_refused(made, monkeypatch):
    monkeypatch.setitem(modes.MODES._entries, "mine", lambda parts: made)
    with pytest.raises(ValueError, match="--mode=mine"):
        modes.phases(make_run(mode="mine"))


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError) as caught:
        modes.phases(make_run(mode="sideways"))
    assert "--mode=sideways" in str(caught.value) and "parallel" in str(caught.value)
