"""heads.py: the probabilities of both classifiers, through their logits."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small
from yt8m_distill.models import heads

SEEDS = range(3)


def make_head(text: str, size: int = 4, classes: int = 3):
    head = heads.HEADS.create(text, num_classes=classes)
    head.build((None, size))
    return head


def make_encoding(seed: int, rows: int = 5, size: int = 4):
    values = np.random.default_rng(seed).normal(size=(rows, size))
    return tf.constant(values, tf.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_logistic_head_is_one_affine_map(seed):
    head = make_head("logistic")
    small.randomize(head, seed)
    encoding = make_encoding(seed)
    expected = encoding.numpy() @ head.kernel.numpy() + head.bias.numpy()
    logits = head(encoding)
    assert (logits.shape, logits.dtype) == ((5, 3), tf.float32)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


class HiddenLayer(heads.LogisticHead):
    """A hidden layer of 3 units, whose kernel is not the first of the weights."""

    def build(self, input_shape):
        self.hidden = keras.layers.Dense(3, activation="relu")
        self.hidden.build(input_shape)
        super().build((None, 3))

    def call(self, encoding):
        return super().call(self.hidden(encoding))


def test_a_head_with_a_hidden_layer_is_shared_by_encodings_of_one_width():
    first = small.make_network("attention", head=HiddenLayer(small.C))
    assert first.encoding_size == 12 and first.head.kernel.shape == (3, small.C)
    second = small.make_network("attention", head=first.head)
    assert second.head is first.head
    found = {id(kernel) for kernel in first.kernels("classifier")}
    assert found == {id(first.head.kernel), id(first.head.hidden.kernel)}
    with pytest.raises(ValueError, match="width 12.*width 6"):
        small.make_network("attention", head=first.head, hidden_size=6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mixtures", [1, 2, 4])
def test_the_mixture_is_gates_times_experts_class_by_class(seed, mixtures):
    head = make_head(f"moe(num_mixtures={mixtures})")
    small.randomize(head, seed)
    encoding = make_encoding(seed)
    e = encoding.numpy().astype(np.float64)
    gates = e @ head.gate_kernel.numpy()
    experts = e @ head.expert_kernel.numpy() + head.expert_bias.numpy()
    probabilities = np.zeros((5, 3))
    for row, c in np.ndindex(5, 3):
        # Class-major: the columns of a class are adjacent.
        g = np.exp(gates[row, c * (mixtures + 1) : (c + 1) * (mixtures + 1)])
        votes = small.sigmoid(experts[row, c * mixtures : (c + 1) * mixtures])
        # The last gate has no expert: its share goes to "no".
        probabilities[row, c] = np.sum(g[:mixtures] / g.sum() * votes)
    logits = head(encoding)
    assert (logits.shape, logits.dtype) == ((5, 3), tf.float32)
    np.testing.assert_allclose(tf.sigmoid(logits), probabilities, rtol=1e-5)
    expected = np.log(probabilities / (1 - probabilities))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "gates, expert, expected",
    [
        # p = sigmoid(-80) / 2, and 1 - p = 1: log(e^-80 / 2).
        ([0.0, 0.0], -80.0, -80 - math.log(2)),
        # Both factors are 1 - e^-80, so 1 - p = 2 e^-80, which float32 cannot tell
        # from 0 once p is written down.
        ([80.0, 0.0], 80.0, 80 - math.log(2)),
        # The dummy gate has it all: p = e^-300 * 1/2.
        ([-150.0, 150.0], 0.0, -300 - math.log(2)),
        # 1 - p is the dummy's share alone, e^-1000.
        ([1000.0, 0.0], 5000.0, 1000.0),
        ([0.0, 0.0], 5000.0, 0.0),  # p = 1/2 * 1
    ],
)
def test_the_mixtures_logit_is_the_exact_log_odds_at_extremes(gates, expert, expected):
    head = make_head("moe(num_mixtures=1)", size=1, classes=1)
    head.gate_kernel.assign([gates])
    head.expert_kernel.assign([[expert]])
    with tf.GradientTape() as tape:
        logit = head(tf.ones([1, 1]))
    assert logit.numpy().item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for gradient in tape.gradient(logit, head.trainable_variables):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("vote", [-500.0, -100.0, 0.0, 100.0, 500.0])
def test_an_expert_that_is_sure_leaves_the_other_its_share_in_litert(vote):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    head = make_head("moe", size=1, classes=1)
    head.gate_kernel.assign(tf.math.log([[0.5, 0.25, 0.25]]))
    head.expert_kernel.assign([[vote, 0.0]])
    call = tf.function(head, input_signature=[tf.TensorSpec([1, 1])])
    concrete = [call.get_concrete_function()]
    content = tf.lite.TFLiteConverter.from_concrete_functions(concrete).convert()
    model = interpreter.Interpreter(model_content=content)
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], tf.ones([1, 1]))
    model.invoke()
    found = tf.sigmoid(model.get_tensor(model.get_output_details()[0]["index"]))
    assert found.numpy().item() == pytest.approx(0.5 * small.sigmoid(vote) + 0.125)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("logistic", 1 / 2),
        ("logistic(bias_init=-3.0)", small.sigmoid(-3)),
        # With zero kernels all gates are equal; two of three are experts.
        ("moe(bias_init=-3.0)", 2 / 3 * small.sigmoid(-3)),
        ("moe(num_mixtures=4, bias_init=-3.0)", 4 / 5 * small.sigmoid(-3)),
    ],
)
def test_bias_init_sets_the_first_probability_of_all_classes(text, expected):
    logits = make_head(text)(tf.zeros([1, 4]))
    np.testing.assert_allclose(tf.sigmoid(logits), [[expected] * 3], rtol=1e-5)


def test_a_mixture_needs_an_expert():
    with pytest.raises(ValueError, match="num_mixtures >= 1, not 0"):
        heads.HEADS.create("moe(num_mixtures=0)", num_classes=3)


@pytest.mark.parametrize("head", ["logistic", "moe(num_mixtures=3)"])
def test_a_classifier_starts_at_the_frequencies_of_the_classes(head):
    made = make_head(head)
    frequencies = np.array([0.5, 0.01, 0.0001])
    made.start_at(frequencies)
    # With an encoding of zeros only the bias counts, and all gates are equal.
    found = tf.sigmoid(made(tf.zeros([1, 4])))[0]
    np.testing.assert_allclose(found, frequencies, rtol=1e-4)


def test_a_given_bias_is_kept():
    made = make_head("logistic(bias_init=-2.0)")
    made.start_at(np.full(3, 0.5))
    np.testing.assert_array_equal(made.bias, [-2, -2, -2])
