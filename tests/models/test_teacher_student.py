"""TeacherStudent: two networks, each on its view, and what they share."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import (
    frame_average,
    hierarchical_lstm,
    layers,
    teacher_student,
)

D, C, T, K, H = 5, 4, 12, 6, 3
TEACHER_BLOCK, STUDENT_BLOCK = 4, 3
# Frames of each video, and the positions at which the student sees them.
LENGTHS = [12, 7, 3, 0]
POSITIONS = [[0, 2, 4, 6, 8, 10], [0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0], [0] * 6]
SAMPLED_LENGTHS = [6, 6, 3, 0]
# float32 against float64 through two levels of LSTMs.
CLOSE = {"rtol": 1e-4, "atol": 5e-6}


def make_network(max_frames, block_len, **arguments):
    arguments = {"cells": H, "implementation": "hoisted"} | arguments
    return hierarchical_lstm.HierarchicalLSTM(
        D, C, max_frames, block_len=block_len, **arguments
    )


def make_pair(oracle, share=False, **student_arguments):
    teacher = make_network(T, TEACHER_BLOCK)
    if share:
        student_arguments["head"] = teacher.head
    student = make_network(K, STUDENT_BLOCK, **student_arguments)
    pair = teacher_student.TeacherStudent(
        {"teacher": teacher, "student": student},
        {"teacher": structures.ALL, "student": structures.SAMPLED},
    )
    oracle.randomize(pair, seed=0)
    return pair


def make_views(seed=0) -> dict:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (len(LENGTHS), T, D), dtype=np.uint8)
    sampled = np.take_along_axis(frames, np.array(POSITIONS)[..., np.newaxis], axis=1)
    return {
        structures.ALL: {
            "frames": tf.constant(frames),
            "num_frames": tf.constant(LENGTHS),
            "frame_indices": tf.tile(tf.range(T)[tf.newaxis], [len(LENGTHS), 1]),
        },
        structures.SAMPLED: {
            "frames": tf.constant(sampled),
            "num_frames": tf.constant(SAMPLED_LENGTHS),
            "frame_indices": tf.constant(POSITIONS),
        },
    }


def test_each_role_reads_its_own_view(oracle):
    pair = make_pair(oracle)
    views = make_views()
    outputs = pair({structures.VIEWS: views})
    assert list(outputs) == ["teacher", "student"]
    for role, view in (("teacher", structures.ALL), ("student", structures.SAMPLED)):
        expected = pair.network(role)(views[view])
        np.testing.assert_array_equal(outputs[role].logits, expected.logits)
        np.testing.assert_array_equal(outputs[role].encoding, expected.encoding)
        forward = pair.forward(role, views)
        np.testing.assert_array_equal(forward.logits, expected.logits)
        assert forward.states is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("training", [False, True])
def test_states_of_both_roles_belong_to_the_same_frames(oracle, seed, training):
    pair = make_pair(oracle)
    views = make_views(seed)
    states = {
        role: pair.forward(
            role, views, training=training, states_of=structures.SAMPLED
        ).states
        for role in ("teacher", "student")
    }
    frames = views[structures.ALL]["frames"].numpy()
    for row, (n, k) in enumerate(zip(LENGTHS, SAMPLED_LENGTHS, strict=True)):
        video = oracle.normalize(frames[row, :n])
        positions = POSITIONS[row][:k]
        # The teacher's at the frame's position among all frames; the student's at its
        # position among those it reads.
        _, of_all = oracle.hierarchical(pair.teacher, video, TEACHER_BLOCK)
        _, of_sampled = oracle.hierarchical(
            pair.student, video[positions], STUDENT_BLOCK
        )
        expected = {"teacher": of_all[positions], "student": of_sampled}
        for role, found in states.items():
            assert found.shape == (4, K, 4 * H)
            np.testing.assert_allclose(found[row, :k], expected[role], **CLOSE)
            np.testing.assert_array_equal(found[row, k:], 0.0)


def test_noise_reaches_the_network(oracle):
    pair = make_pair(oracle, dropout=0.5)
    views = make_views()
    noise = layers.Noise(tf.constant([3, 7]), tf.constant(0), tf.constant(4))
    outputs = pair.forward("student", views, training=True, noise=noise)
    kept = noise.uniform(outputs.encoding) >= 0.5
    expected = pair.student.head(tf.where(kept, outputs.encoding * 2, 0.0))
    np.testing.assert_array_equal(outputs.logits, expected)


def test_one_role_may_be_absent(oracle):
    student = make_network(K, STUDENT_BLOCK)
    alone = teacher_student.TeacherStudent(
        {"student": student}, {"student": structures.SAMPLED}
    )
    assert not hasattr(alone, "teacher")
    assert list(alone({structures.VIEWS: make_views()})) == ["student"]
    assert len(alone.trainable_variables) == len(student.trainable_variables)


def ids(variables) -> set:
    return {id(variable) for variable in variables}


def test_a_shared_classifier_is_one_layer_with_one_set_of_variables(oracle):
    pair = make_pair(oracle, share=True)
    assert pair.student.head is pair.teacher.head
    head = ids(pair.teacher.head.trainable_variables)
    assert len(head) == 2
    of_each = [ids(n.trainable_variables) for n in (pair.teacher, pair.student)]
    assert of_each[0] & of_each[1] == head
    assert len(pair.trainable_variables) == len(of_each[0] | of_each[1])


def test_both_networks_train_a_shared_classifier(oracle):
    pair = make_pair(oracle, share=True)
    views = make_views()
    for role in ("teacher", "student"):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(pair.forward(role, views, training=True).logits ** 2)
        for gradient in tape.gradient(loss, pair.teacher.head.trainable_variables):
            assert np.any(gradient)


def test_own_classifiers_share_nothing(oracle):
    pair = make_pair(oracle)
    of_each = [ids(n.trainable_variables) for n in (pair.teacher, pair.student)]
    assert not of_each[0] & of_each[1]


def values(layer) -> list:
    return [variable.numpy().copy() for variable in layer.trainable_variables]


def test_a_copied_classifier_is_equal_once_and_then_on_its_own(oracle):
    pair = make_pair(oracle)
    teacher, student = pair.teacher.head, pair.student.head
    encoder = values(pair.student.lower)
    taught = values(teacher)
    assert not np.array_equal(values(student)[0], taught[0])
    pair.copy_classifier("teacher", "student")
    for mine, theirs in zip(values(student), taught, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for before, after in zip(encoder, values(pair.student.lower), strict=True):
        np.testing.assert_array_equal(before, after)

    student.kernel.assign(student.kernel.numpy() + 1.0)
    for before, after in zip(taught, values(teacher), strict=True):
        np.testing.assert_array_equal(before, after)
    teacher.bias.assign(teacher.bias.numpy() - 1.0)
    np.testing.assert_array_equal(student.bias.numpy(), taught[1])


def test_a_mixture_is_copied_variable_by_variable(oracle):
    networks = {
        role: frame_average.FrameLevelLogisticModel(D, C, T, head="moe")
        for role in ("teacher", "student")
    }
    pair = teacher_student.TeacherStudent(networks, {})
    oracle.randomize(pair, seed=0)
    pair.copy_classifier("teacher", "student")
    for name in ("gate_kernel", "expert_kernel", "expert_bias"):
        mine, theirs = (getattr(n.head, name).numpy() for n in networks.values())
        np.testing.assert_array_equal(mine, theirs)


def test_a_copied_network_is_the_teacher_with_other_blocks(oracle):
    pair = make_pair(oracle)
    pair.copy_network("teacher", "student")
    for mine, theirs in zip(values(pair.student), values(pair.teacher), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # A video of one block of either length: the same states, so the same answer.
    view = make_views()[structures.SAMPLED] | {"num_frames": tf.fill([4], 3)}
    mine, theirs = (n(view).logits for n in (pair.student, pair.teacher))
    np.testing.assert_allclose(mine, theirs, **CLOSE)


def test_networks_that_differ_are_not_copied(oracle):
    pair = make_pair(oracle, cells=2)
    before = values(pair.student)
    with pytest.raises(ValueError, match="--student_start=teacher needs two networks"):
        pair.copy_network("teacher", "student")
    for one, other in zip(before, values(pair.student), strict=True):
        np.testing.assert_array_equal(one, other)
    networks = {
        "teacher": make_network(T, TEACHER_BLOCK),
        "student": frame_average.FrameLevelLogisticModel(D, C, T),
    }
    pair = teacher_student.TeacherStudent(networks, {})
    with pytest.raises(ValueError) as caught:
        pair.copy_network("teacher", "student")
    assert str(caught.value) == (
        "--student_start=teacher needs two networks of the same kind; the student is "
        "a FrameLevelLogisticModel, the teacher a HierarchicalLSTM."
    )


@pytest.mark.parametrize(
    "arguments, shapes",
    [
        ({"head": "moe"}, "[(12, 12), (12, 8), (8,)]"),
        ({"cells": 2}, "[(8, 4), (4,)]"),
    ],
)
def test_classifiers_that_differ_are_not_copied(oracle, arguments, shapes):
    pair = make_pair(oracle, **arguments)
    before = values(pair.student.head)
    with pytest.raises(ValueError) as caught:
        pair.copy_classifier("teacher", "student")
    for named in ("--classifier=copied", shapes, "[(12, 4), (4,)]", "--classifier=own"):
        assert named in str(caught.value)
    for one, other in zip(before, values(pair.student.head), strict=True):
        np.testing.assert_array_equal(one, other)
