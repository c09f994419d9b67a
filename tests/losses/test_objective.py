"""objective.py: what --student_loss and its neighbours mean."""

import os

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.losses import (
    classification,
    distillation,
    objective,
    registered,
)

pytestmark = pytest.mark.once

LABELS = tf.constant([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def build(text: str, **others) -> objective.Objective:
    return objective.build_objective(
        settings.DistillationSettings(student_loss=text, **others)
    )


def refuse(text: str, **others) -> str:
    """The error message of an invalid objective; always one line."""
    with pytest.raises(ValueError) as caught:
        build(text, **others)
    message = str(caught.value)
    assert "\n" not in message
    return message


def make_outputs(seed: int) -> structures.Outputs:
    random = np.random.default_rng(seed)
    shapes = ((2, 3), (2, 4), (2, 2, 5))
    return structures.Outputs(
        *(tf.constant(random.normal(size=s), tf.float32) for s in shapes)
    )


def weights(built: objective.Objective) -> list:
    return [(term.weight, term.name) for term in built.terms]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ce", [(1.0, "ce")]),
        ("ce + rep + pred", [(1.0, "ce"), (1.0, "rep"), (1.0, "pred")]),
        (
            "ce + 0.001*rep + 0.01*pred",
            [(1.0, "ce"), (0.001, "rep"), (0.01, "pred")],
        ),
        ("  2 *ce+1e-3* rep ", [(2.0, "ce"), (1e-3, "rep")]),
        ("pred + ce", [(1.0, "pred"), (1.0, "ce")]),
        ("rep_intermediate + 3*rep()", [(1.0, "rep_intermediate"), (3.0, "rep")]),
        ("(ce + 0.5*pred)", [(1.0, "ce"), (0.5, "pred")]),
    ],
)
def test_a_sum_is_read_term_by_term_in_its_order(text, expected):
    assert weights(build(text)) == expected


def test_the_parts_are_named_weighted_and_still_one_number_a_video():
    student, teacher = make_outputs(0), make_outputs(1)
    parts = build("ce + 0.25*rep + 4*pred")(student, LABELS, [teacher])
    expected = {
        "ce": classification.cross_entropy(student, LABELS),
        "rep": 0.25 * distillation.representation_loss(student, teacher),
        "pred": 4 * distillation.binary_kl(student.logits, teacher.logits),
    }
    assert list(parts) == list(expected)
    for name, value in expected.items():
        assert parts[name].shape == (2,)
        np.testing.assert_allclose(parts[name], value, rtol=1e-6)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize(("count", "position"), [(2, 1), (2, 2), (3, 3)])
def test_several_teachers_guide_by_their_mean_or_by_the_named_one(
    mean, count, position
):
    student, *guides = map(make_outputs, range(count + 1))
    logits = np.stack([guide.logits for guide in guides]).astype(np.float64)
    yes = np.mean(1 / (1 + np.exp(-logits)), axis=0)
    by_mean = {"probabilities": np.log(yes / (1 - yes)), "logits": logits.mean(axis=0)}
    built = build(f"pred + rep(teacher={position})", teacher_mean=mean)
    built.check_guides(len(guides))
    parts = built(student, LABELS, guides)
    expected = {
        "pred": distillation.binary_kl(
            student.logits, tf.constant(by_mean[mean], "float32")
        ),
        "rep": distillation.representation_loss(student, guides[position - 1]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)


@pytest.mark.parametrize(
    "text, compares",
    [
        ("ce", {"logits"}),
        ("pred", {"logits"}),
        ("ce + pred", {"logits"}),
        ("rep", {"encoding"}),
        ("0.1 * rep", {"encoding"}),
        ("ce + rep", {"logits", "encoding"}),
        ("rep + pred", {"logits", "encoding"}),
        ("rep_intermediate", {"states"}),
        ("rep + rep_intermediate", {"encoding", "states"}),
        ("ce + rep_intermediate", {"logits", "states"}),
    ],
)
def test_it_knows_what_is_compared(text, compares):
    built = build(text)
    assert built.compares == compares
    assert ("guide_states" in built.needs) == ("states" in compares)


@pytest.mark.parametrize(
    "match, expected",
    [
        ("final", ["ce", "rep"]),
        ("intermediate", ["ce", "rep_intermediate"]),
        ("both", ["ce", "rep", "rep_intermediate"]),
    ],
)
def test_match_selects_what_rep_compares(match, expected):
    built = build("ce + 0.5*rep", match=match)
    assert [term.name for term in built.terms] == expected
    assert {term.weight for term in built.terms[1:]} == {0.5}
    assert ("guide_states" in built.needs) == (match != "final")


@pytest.mark.parametrize("match", settings.MATCHES)
def test_match_leaves_the_named_intermediate_loss_alone(match):
    assert weights(build("rep_intermediate", match=match)) == [
        (1.0, "rep_intermediate")
    ]


@pytest.mark.parametrize(
    "text, distance, weight, temperature",
    [
        ("pred", "squared", 1, 2),
        ("ce + 3*pred(distance='squared')", "class_kl", 3, 2),
        ("pred(distance='squared', temperature=1.0)", "class_kl", 1, 1),
    ],
)
def test_the_flags_are_the_defaults_of_a_terms_arguments(
    text, distance, weight, temperature
):
    """Here a temperature of 2 and some distance; arguments in a term win."""
    student, teacher = make_outputs(0), make_outputs(1)
    built = build(text, prediction_distance=distance, temperature=2.0)
    logits = (x.logits / temperature for x in (student, teacher))
    expected = weight * distillation.squared(*logits)
    found = built(student, LABELS, [teacher])["pred"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_objective_without_a_guide_defaults_to_ce():
    built = objective.label_objective(settings.DistillationSettings())
    assert weights(built) == [(1.0, "ce")]
    student = make_outputs(0)
    expected = classification.cross_entropy(student, LABELS)
    np.testing.assert_array_equal(built(student, LABELS)["ce"], expected)
    given = settings.DistillationSettings(label_loss="0.5*ce + asymmetric(margin=0.1)")
    assert weights(objective.label_objective(given)) == [(0.5, "ce"), (1, "asymmetric")]
    for text, named in (("ce + pred", "pred"), ("ce(power=-1)", "power=-1")):
        with pytest.raises(ValueError) as caught:
            objective.label_objective(settings.DistillationSettings(label_loss=text))
        assert f"--label_loss={text}" in str(caught.value)
        assert named in str(caught.value)


@pytest.mark.parametrize(
    "needs, compares, expected",
    [
        # What a loss compares without saying so.
        ("labels", "", "logits"),
        ("guide", "", "logits"),
        ("guide_states", "", "states"),
        ("labels", "encoding", "encoding"),
        ("guide", "encoding", "encoding"),
        ("guide_states", "encoding", "encoding"),
        ("guide_states", "logits", "logits"),
    ],
)
def test_a_registered_loss_declares_what_it_compares(
    monkeypatch, needs, compares, expected
):
    loss = registered.Loss(lambda student, target: None, needs, compares)
    monkeypatch.setitem(registered.LOSSES._entries, "mine", lambda: loss)
    assert build("2*mine").compares == {expected}
    assert build("mine + rep").compares == {expected, "encoding"}
    assert build("mine + ce").compares == {expected, "logits"}


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "term, named",
    [
        ("recall", ["recall", *registered.LOSSES]),
        ("pred(power=2)", ["does not take power"]),
        ("pred(temperature='2')", []),
        ("pred(distance=['squared'])", []),
        ("pred(distance=2)", []),
    ],
)
def test_a_term_that_is_no_loss_is_named(term, named):
    message = refuse(f"ce + {term}")
    assert message.startswith(f"--student_loss=ce + {term}")
    assert all(part in message for part in named)


@pytest.mark.parametrize(
    "text, match, name",
    [
        ("ce + rep + ce", "final", "ce"),
        ("pred + 2*pred(distance='squared')", "final", "pred"),
        ("rep + rep_intermediate", "both", "rep_intermediate"),
        ("rep_intermediate + rep", "intermediate", "rep_intermediate"),
    ],
)
def test_a_loss_may_occur_only_once(text, match, name):
    assert refuse(text, match=match) == f"--student_loss={text} has {name} twice."


@pytest.mark.parametrize(
    "text, rule",
    [
        *(
            (f"{weight}*rep", "finite number above 0")
            for weight in ("0", "0.0", "1e-400", "1e400", "1e39", "9" * 400)
        ),
        *(
            (text, "a weight is a number on the left of a *")
            for text in (
                *("-1*rep", "nan*rep", "rep*2", "True*rep", "'2'*rep", "2j*rep"),
                *("2*3*rep", "(1 + 1)*rep", "__import__('os')*rep", "10**9*rep"),
                "None*rep",
            )
        ),
    ],
    ids=lambda text: text[:9],
)
def test_a_weight_is_a_finite_number_above_0_on_the_left(text, rule):
    message = refuse(f"ce + {text}")
    assert message.startswith(f"--student_loss=ce + {text}") and rule in message


def alone(fn, name="mine") -> objective.Objective:
    """An objective of one loss on the labels."""
    return objective.Objective(
        (objective.Term(1.0, name, registered.Loss(fn, needs="labels")),)
    )


@pytest.mark.parametrize(
    "give, found",
    [
        (lambda values: values[:, tf.newaxis], "[2, 1]"),
        (tf.reduce_sum, "[]"),
        (lambda values: values[:1], "[1]"),
        (lambda values: tf.tile(values, [2]), "[4]"),
        (lambda values: None, "None"),
        (lambda values: 1.5, "1.5"),
        (lambda values: tf.cast(values, tf.int32), "[2] int32"),
    ],
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_loss_gives_one_number_a_video(give, found, in_graph):
    built = alone(lambda student, labels: give(tf.reduce_sum(student.logits, axis=1)))
    call = tf.function(built, autograph=False) if in_graph else built
    with pytest.raises(ValueError) as caught:
        call(make_outputs(0), LABELS)
    # Two videos in LABELS.
    named = ("--student_loss", "loss mine gives", found, "per video, [2] float32")
    assert all(part in str(caught.value) for part in named)


def test_a_loss_of_encodings_of_different_widths_suggests_the_argument():
    built = alone(lambda student, labels: student.encoding * labels)
    with pytest.raises(ValueError) as caught:
        built(make_outputs(0), LABELS)  # [2, 4] and [2, 3]
    message = str(caught.value)
    assert message.startswith("--student_loss: loss mine: Incompatible shapes: [2,4]")
    assert message.endswith(" says compares='encoding' in its registered.Loss.")
    assert "Op:" not in message and "{{" not in message


def test_the_number_of_videos_may_be_unknown_to_the_graph():
    built = alone(lambda student, labels: tf.reduce_sum(student, axis=1))
    rows = tf.TensorSpec([None, 3], tf.float32)
    call = tf.function(built, input_signature=[rows, rows], autograph=False)
    np.testing.assert_array_equal(call(LABELS, LABELS)["mine"], [2, 1])
    built = alone(lambda student, labels: student)
    call = tf.function(built, input_signature=[rows, rows], autograph=False)
    with pytest.raises(ValueError, match=r"loss mine gives \[None, 3\] .*, \[B\]"):
        call(LABELS, LABELS)


def test_labels_of_the_video_count_where_the_segment_has_no_rating():
    # Classes: rated as absent, a mined negative, not rated. The video has all three.
    # At logit 0 a class costs log 2: the second task has the third class alone.
    rated = tf.constant([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    student = structures.Outputs(tf.zeros([2, 3]), None)
    parts = build("ce + 0.5*video_ce")(
        student, LABELS, label_weights=rated, video_labels=tf.ones([2, 3])
    )
    np.testing.assert_allclose(parts["ce"], np.log(2) * np.array([1.5, 0]), rtol=1e-6)
    expected = 0.5 * np.log(2) * np.array([1, 3])
    np.testing.assert_allclose(parts["video_ce"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="video_ce .*--segment_labels"):
        build("ce + 0.5*video_ce")(student, LABELS)


@pytest.mark.parametrize(
    "needs, compares, named",
    [
        ("teachers", "", ["needs='teachers'", "weighted_labels", "guide_states"]),
        ("guide", "encodings", ["compares='encodings'", "encoding, states"]),
        ("guide", "states", ["compares='states'", "guide_states", "needs='guide'"]),
    ],
)
def test_an_unknown_target_or_comparison_is_refused(needs, compares, named):
    with pytest.raises(ValueError) as caught:
        registered.Loss(lambda student, target: None, needs, compares)
    assert all(part in str(caught.value) for part in named)


def test_a_factory_gives_a_loss_and_not_its_function(monkeypatch):
    monkeypatch.setitem(
        registered.LOSSES._entries, "mine", lambda: test_a_loss_may_occur_only_once
    )
    message = refuse("2*mine")
    assert message.startswith("--student_loss=2*mine: loss mine: ")
    assert "function" in message and "registered.Loss" in message


HOSTILE = [
    "__import__('os').mkdir('ran')",
    "ce + __import__('os').mkdir('ran')",
    "ce + pred(distance=__import__('os').mkdir('ran'))",
    "__import__('os')",
    "ce + (lambda: rep)()",
    "[ce for ce in (1,)]",
    "ce - rep",
    "ce * rep",
    "ce / 2",
    "-rep",
    "ce + 1",
    "ce + 'rep'",
    "2*(ce + rep)",
    "ce + (rep + pred)",
    "ce + rep.real",
    "ce + rep()()",
    "ce + pred('squared')",
    "ce + pred(**{'distance': 'squared'})",
    "ce + pred(distance='squared', distance='squared')",
    "ce := rep",
    "ce; rep",
    "ce,",
    "ce +",
    "",
    "   ",
    "(" * 5000 + "ce" + ")" * 5000,
    "+" * 50000 + "ce",
    "ce" + " + ce" * 50000,
    "pred(temperature=" + "-" * 50000 + "1)",
    "pred(temperature=" + "-" * 500 + "1)",
    "ce + pred(temperature=" + "~" * 1000 + "1)",
    "pred(distance=" + "(" * 150 + "1" + ",)" * 150 + ")",
    "pred(temperature=" + "9" * 5000 + ")",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_anything_else_is_refused_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refuse(text).startswith(f"--student_loss={text}")
    assert os.listdir(tmp_path) == []
