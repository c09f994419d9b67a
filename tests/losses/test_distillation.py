"""L_REP, L_REP^I and L_PRED: one number a video, and the teacher is a constant."""

import math

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.losses import distillation, registered

SEEDS = range(3)
TERMS = ["rep", "rep_intermediate"] + [
    f"pred(distance={distance!r}, temperature={temperature})"
    for distance in distillation.DISTANCES
    for temperature in (1.0, 2.5)
]


def make_outputs(seed: int, rows: int = 4, scale: float = 2.0) -> structures.Outputs:
    random = np.random.default_rng(seed)
    shapes = ((rows, 6), (rows, 8), (rows, 3, 5))
    # No field is None, so that a tape can watch all; losses do not look at exits.
    return structures.Outputs(
        *(tf.constant(random.normal(0, scale, s), tf.float32) for s in shapes),
        exits=tf.zeros([rows, 2]),
    )


def make_loss(text: str):
    return registered.LOSSES.create(text).fn


def from_probabilities(p) -> tf.Tensor:
    p = np.asarray(p)
    return tf.constant(np.log(p / (1 - p)), tf.float32)


# ------------------------------------------------------------- values by hand


def test_representation_loss_by_hand():
    student = structures.Outputs(None, tf.constant([[1.0, 2.0], [0.0, -1.0]]))
    teacher = structures.Outputs(None, tf.constant([[4.0, 6.0], [0.0, 1.0]]))
    # 3^2 + 4^2, and 0^2 + 2^2: the sum over the encoding, neither mean nor root.
    found = distillation.representation_loss(student, teacher)
    np.testing.assert_array_equal(found, [25.0, 4.0])


def test_intermediate_loss_by_hand():
    student = structures.Outputs(None, None, tf.constant([[[1.0, 0.0], [2.0, 2.0]]]))
    teacher = structures.Outputs(None, None, tf.constant([[[0.0, 2.0], [2.0, 5.0]]]))
    # Frame 0: 1 + 4, frame 1: 0 + 9.
    found = distillation.intermediate_loss(student, teacher)
    np.testing.assert_array_equal(found, [14.0])


@pytest.mark.parametrize(
    "distance, expected",
    [
        # KL(1/2 || 1/4) = 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3), and
        # KL(3/4 || 1/2) = 3/4 log(3/2) + 1/4 log(1/2) = (3 log 3 - 4 log 2) / 4.
        ("binary_kl", math.log(4 / 3) / 2 + (3 * math.log(3) - 4 * math.log(2)) / 4),
        # Teacher (1/2, 3/4) / (5/4) = (2/5, 3/5), student (1/4, 1/2) / (3/4) =
        # (1/3, 2/3): 2/5 log(6/5) + 3/5 log(9/10).
        ("class_kl", 0.4 * math.log(1.2) + 0.6 * math.log(0.9)),
        ("squared", 0.25**2 + 0.25**2),
    ],
)
def test_prediction_loss_by_hand(distance, expected):
    teacher = structures.Outputs(from_probabilities([[0.5, 0.75]]), None)
    student = structures.Outputs(from_probabilities([[0.25, 0.5]]), None)
    found = make_loss(f"pred(distance={distance!r})")(student, teacher)
    assert found.shape == (1,)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("distance", distillation.DISTANCES)
def test_temperature_divides_the_logits_of_both(distance):
    student, teacher = make_outputs(0), make_outputs(1)
    found = make_loss(f"pred(distance={distance!r}, temperature=4.0)")(student, teacher)
    expected = make_loss(f"pred(distance={distance!r})")(
        student._replace(logits=student.logits / 4),
        teacher._replace(logits=teacher.logits / 4),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Flatter predictions lie nearer to each other.
    plain = make_loss(f"pred(distance={distance!r})")(student, teacher)
    assert np.all(found.numpy() < plain.numpy())


# ----------------------------------------------------------- claims about all


@pytest.mark.parametrize("text", TERMS)
def test_one_number_a_video_that_no_other_video_changes(text):
    loss = make_loss(text)
    student, teacher = make_outputs(0), make_outputs(1)
    together = loss(student, teacher)
    assert (together.shape, together.dtype) == ((4,), tf.float32)
    for row in range(4):
        one = [
            structures.Outputs(*(t[row : row + 1] for t in outputs))
            for outputs in (student, teacher)
        ]
        np.testing.assert_allclose(loss(*one)[0], together[row], rtol=1e-5)


@pytest.mark.parametrize("text", TERMS)
def test_no_gradient_reaches_the_teacher(text):
    student, teacher = make_outputs(0), make_outputs(1)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = make_loss(text)(student, teacher)
    of_student, of_teacher = tape.gradient(loss, [student, teacher])
    assert any(g is not None and np.any(g != 0) for g in of_student)
    for gradient in of_teacher:
        assert gradient is None or not np.any(gradient)


@pytest.mark.parametrize("text", TERMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_equal_outputs_have_zero_loss_and_gradient(text, seed):
    student = make_outputs(seed)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = make_loss(text)(student, student._replace())
    np.testing.assert_allclose(loss, np.zeros(4), atol=1e-6)
    for gradient in tape.gradient(loss, student):
        if gradient is not None:
            np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=1e-6)


@pytest.mark.parametrize("text", TERMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_distance_is_negative(text, seed):
    # Near and far; 1e-6 is some roundings of sums of numbers around 1.
    for scale in (0.01, 1.0, 20.0):
        student = make_outputs(seed, scale=scale)
        teacher = make_outputs(seed + 100, scale=scale)
        assert np.all(make_loss(text)(student, teacher) >= -1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_divergences_are_those_of_float64(seed):
    student, teacher = make_outputs(seed), make_outputs(seed + 100)
    q, p = (1 / (1 + np.exp(-np.float64(o.logits))) for o in (student, teacher))
    binary = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(
        make_loss("pred")(student, teacher), binary.sum(axis=1), rtol=1e-5
    )
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    np.testing.assert_allclose(
        make_loss("pred(distance='class_kl')")(student, teacher),
        np.sum(p * np.log(p / q), axis=1),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "distance, student, teacher, expected",
    [
        # A sure "no" against a sure "yes": log(1 / e^-100) = 100.
        ("binary_kl", [-100.0], [100.0], 100.0),
        ("binary_kl", [100.0], [-100.0], 100.0),
        ("binary_kl", [100.0], [100.0], 0.0),
        # sigmoid(-100) is e^-100: of two classes at 1 and e^-100, all the mass is on
        # the first; the student, the other way round, gives it e^-100.
        ("class_kl", [-100.0, 100.0], [100.0, -100.0], 100.0),
        ("class_kl", [100.0, -100.0], [100.0, -100.0], 0.0),
        # Two equal classes stay equal, even when both are as good as impossible.
        ("class_kl", [-100.0, -100.0], [100.0, 100.0], 0.0),
        ("squared", [-100.0], [100.0], 1.0),
        ("squared", [100.0], [100.0], 0.0),
    ],
)
def test_logits_of_100_are_no_trouble(distance, student, teacher, expected):
    logits = tf.constant([student])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss(f"pred(distance={distance!r})")(
            structures.Outputs(logits, None),
            structures.Outputs(tf.constant([teacher]), None),
        )
    np.testing.assert_allclose(loss, [expected], rtol=1e-6, atol=1e-6)
    assert np.isfinite(tape.gradient(loss, logits)).all()


def test_a_sure_teacher_keeps_its_small_doubt():
    # 1 - p is e^-20, which float32 loses in 1.0 - p: then an equal student would be
    # pulled upwards, with a gradient of -e^-20 for ever.
    logits = tf.constant([[20.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss("pred")(
            structures.Outputs(logits, None), structures.Outputs(logits + 0.0, None)
        )
    gradient = tape.gradient(loss, logits).numpy().item()
    assert abs(gradient) < 0.01 * math.exp(-20)


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, field, own", [("rep", "encoding", 8), ("rep_intermediate", "states", 5)]
)
def test_different_widths_are_refused(name, field, own):
    student, teacher = make_outputs(0), make_outputs(1)
    narrow = getattr(teacher, field)[..., :1]  # Would broadcast.
    with pytest.raises(ValueError, match=f"width {own}, the teacher's 1"):
        make_loss(name)(student, teacher._replace(**{field: narrow}))


def test_an_unknown_distance_lists_the_known_ones():
    with pytest.raises(ValueError, match="'cosine'.* binary_kl, class_kl, squared"):
        registered.LOSSES.create("pred(distance='cosine')")


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature} is not above 0"):
        registered.LOSSES.create(f"pred(temperature={temperature})")
    with pytest.raises(ValueError, match="temperature=nan"):
        distillation.make_prediction_loss(temperature=float("nan"))
