"""L_REP, L_REP^I and L_PRED: one number per video, and the teacher is a constant."""

import math

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import registry, structures
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


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def oracle(text: str, student, teacher) -> np.ndarray:
    """The definitions in float64: sums, neither means nor roots."""
    if not text.startswith("pred"):
        field = "encoding" if text == "rep" else "states"
        one, other = (np.float64(getattr(o, field)) for o in (student, teacher))
        return ((one - other) ** 2).reshape(len(one), -1).sum(axis=1)
    arguments = registry.parse(text).arguments
    s, t = (np.float64(o.logits) / arguments["temperature"] for o in (student, teacher))
    yes, sure = log_sigmoid(s), log_sigmoid(t)
    if arguments["distance"] == "squared":
        return ((np.exp(sure) - np.exp(yes)) ** 2).sum(axis=1)
    if arguments["distance"] == "binary_kl":
        of_no = np.exp(log_sigmoid(-t)) * (log_sigmoid(-t) - log_sigmoid(-s))
        return (np.exp(sure) * (sure - yes) + of_no).sum(axis=1)
    log_q, log_p = (x - np.logaddexp.reduce(x, 1, keepdims=True) for x in (yes, sure))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


@pytest.mark.parametrize("text", TERMS)
@pytest.mark.parametrize("scale", [0.01, 2.0, 20.0])
def test_a_loss_is_what_its_formula_gives(text, scale):
    for seed in SEEDS:
        student, teacher = (make_outputs(seed + n, scale=scale) for n in (0, 100))
        found = make_loss(text)(student, teacher)
        # 1e-6: some roundings of sums of numbers around 1, which may cancel.
        expected = oracle(text, student, teacher)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.all(expected >= -1e-12)


def test_the_oracle_by_hand():
    # KL(1/2 || 1/4) = 1/2 log 2 + 1/2 log(2/3), and KL(3/4 || 1/2) = (3 log 3 - 4 log
    # 2) / 4. Of the classes: teacher (1/2, 3/4) / (5/4), student (1/4, 1/2) / (3/4).
    student, teacher = (
        structures.Outputs(np.log(p / (1 - p)), None)
        for p in (np.array([[0.25, 0.5]]), np.array([[0.5, 0.75]]))
    )
    binary = math.log(4 / 3) / 2 + (3 * math.log(3) - 4 * math.log(2)) / 4
    classes = 0.4 * math.log(1.2) + 0.6 * math.log(0.9)
    by_hand = {"binary_kl": binary, "class_kl": classes, "squared": 2 * 0.25**2}
    for distance, expected in by_hand.items():
        text = f"pred(distance={distance!r}, temperature=1.0)"
        assert oracle(text, student, teacher) == pytest.approx([expected])


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


@pytest.mark.parametrize(
    "argument, said",
    [
        ("distance='cosine'", "'cosine'.* binary_kl, class_kl, squared"),
        ("temperature=0", "temperature=0 is not above 0"),
        ("temperature=-1.0", "temperature=-1.0 is not above 0"),
    ],
)
def test_an_argument_that_makes_no_loss_is_named(argument, said):
    with pytest.raises(ValueError, match=said):
        registered.LOSSES.create(f"pred({argument})")


def test_a_temperature_is_a_number():
    with pytest.raises(ValueError, match="temperature=nan"):
        distillation.make_prediction_loss(temperature=float("nan"))
