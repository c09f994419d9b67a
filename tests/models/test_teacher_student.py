"""TeacherStudent: networks by role, each on its view, and what they share."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small
from yt8m_distill import structures
from yt8m_distill.models import teacher_student

# Frames of each video, and the positions at which the student sees them.
LENGTHS = [7, 5, 3, 0]
POSITIONS = [[0, 2, 4, 6], [0, 1, 2, 4], [0, 1, 2, 0], [0] * 4]
SAMPLED_LENGTHS = [4, 4, 3, 0]


def make_pair(student="hierarchical", **changes):
    """A teacher with blocks of 3 frames, and a student."""
    if student == "hierarchical":
        changes = {"block_len": 2, **changes}
    return teacher_student.TeacherStudent(
        {
            "teacher": small.make_network("hierarchical", seed=1),
            "student": small.make_network(student, seed=2, **changes),
        },
        {"teacher": structures.ALL, "student": structures.SAMPLED},
    )


@pytest.fixture(scope="module")
def pair():
    """Not changed by any test."""
    return make_pair(dropout=0.5)


@pytest.fixture(scope="module")
def views() -> dict:
    whole = small.make_view(lengths=LENGTHS)
    sampled = {
        "frames": tf.gather(whole["frames"], POSITIONS, batch_dims=1),
        "num_frames": tf.constant(SAMPLED_LENGTHS),
        "frame_indices": tf.constant(POSITIONS),
    }
    return {structures.ALL: whole, structures.SAMPLED: sampled}


def test_each_role_reads_its_own_view(pair, views):
    outputs = pair({structures.VIEWS: views})
    assert list(outputs) == ["teacher", "student"]
    for role, view in pair.views.items():
        expected = pair.network(role)(views[view])
        for found in (outputs[role], pair.forward(role, views)):
            np.testing.assert_array_equal(found.logits, expected.logits)
            np.testing.assert_array_equal(found.encoding, expected.encoding)
            assert found.states is None


@pytest.mark.parametrize("training", [False, True])
def test_states_of_both_roles_belong_to_the_same_frames(pair, views, training):
    how = {"training": training, "states_of": structures.SAMPLED}
    found = {role: pair.forward(role, views, **how).states for role in pair.views}
    frames = small.videos(views[structures.ALL])
    for row, count in enumerate(SAMPLED_LENGTHS[:3]):
        positions = POSITIONS[row][:count]
        # The teacher's at the frame's position among all frames; the student's at its
        # position among those it reads.
        for role, of_role, chosen in (
            ("teacher", frames[row], positions),
            ("student", frames[row][positions], range(count)),
        ):
            oracle = small.NumpyNetwork(pair.network(role), "hierarchical")
            states = oracle.lstm_states(of_role)[chosen]
            small.assert_close(found[role][row, :count], states)
            np.testing.assert_array_equal(found[role][row, count:], 0.0)


def test_noise_reaches_the_network(pair, views):
    noise = small.make_noise(len(LENGTHS))
    outputs = pair.forward("student", views, training=True, noise=noise)
    kept = noise.uniform(outputs.encoding) >= 0.5
    expected = pair.student.head(tf.where(kept, outputs.encoding * 2, 0.0))
    np.testing.assert_array_equal(outputs.logits, expected)


def ids(variables) -> set:
    return {id(variable) for variable in variables}


def test_both_networks_have_and_train_a_shared_classifier(views):
    teacher = small.make_network("hierarchical")
    student = small.make_network("hierarchical", head=teacher.head)
    roles = {"teacher": structures.ALL, "student": structures.SAMPLED}
    shared = teacher_student.TeacherStudent(
        dict(zip(roles, (teacher, student), strict=True)), roles
    )
    of_each = [ids(n.trainable_variables) for n in (teacher, student)]
    head = teacher.head.trainable_variables
    assert of_each[0] & of_each[1] == ids(head) and len(head) == 2
    assert len(shared.trainable_variables) == len(of_each[0] | of_each[1])
    for role in shared.views:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(shared.forward(role, views, training=True).logits ** 2)
        for gradient in tape.gradient(loss, head):
            assert np.any(gradient)


def values(layer) -> list:
    return [variable.numpy().copy() for variable in layer.trainable_variables]


def assert_same(one: list, other: list) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("head", ["logistic", "moe"])
def test_a_copied_classifier_is_equal_once_and_then_on_its_own(head):
    teacher, student = (
        small.make_network("hierarchical", seed, head=head) for seed in (1, 2)
    )
    copied = teacher_student.TeacherStudent(
        {"t": teacher, "s": student}, {"t": "all", "s": "all"}
    )
    assert not ids(teacher.trainable_variables) & ids(student.trainable_variables)
    encoder, taught = values(student.lower), values(teacher.head)
    assert not np.array_equal(values(student.head)[0], taught[0])
    copied.copy_classifier("t", "s")
    assert_same(values(student.head), taught)
    assert_same(values(student.lower), encoder)
    for variable in student.head.trainable_variables:
        variable.assign(variable + 1)
    assert_same(values(teacher.head), taught)


def test_a_copied_network_is_the_teacher_with_other_blocks():
    copied = make_pair()
    copied.copy_network("teacher", "student")
    assert_same(values(copied.student), values(copied.teacher))
    # A video of one block of either length: the same states, so the same answer.
    view = small.make_view(lengths=[2, 2], steps=2)
    one, other = (n(view).logits for n in (copied.student, copied.teacher))
    small.assert_close(one, other)


NETWORK, CLASSIFIER = "--student_start=teacher", "--classifier=copied"
OWN = "--classifier=own"


@pytest.mark.parametrize(
    "copy, student, changes, named",
    [
        ("network", "hierarchical", {"cells": 2}, [NETWORK, "cells", "(24, 12)"]),
        ("network", "lstm", {}, [NETWORK, "kind", "LstmModel", "HierarchicalLSTM"]),
        (
            "classifier",
            "hierarchical",
            {"head": "moe"},
            [CLASSIFIER, "[(12, 12), (12, 8), (8,)]", "[(12, 4), (4,)]", OWN],
        ),
        (
            "classifier",
            "hierarchical",
            {"cells": 2},
            [CLASSIFIER, "[(8, 4), (4,)]", "[(12, 4), (4,)]", OWN],
        ),
    ],
)
def test_what_differs_is_not_copied(copy, student, changes, named):
    different = make_pair(student, **changes)
    before = values(different.student)
    with pytest.raises(ValueError) as caught:
        getattr(different, f"copy_{copy}")("teacher", "student")
    assert not [word for word in named if word not in str(caught.value)]
    assert_same(values(different.student), before)
