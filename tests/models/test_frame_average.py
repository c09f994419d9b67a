"""FrameLevelLogisticModel; and, on this plain network, what all networks do."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.models import base, frame_average, layers

D, C, T = 5, 4, 6
LENGTHS = [0, 1, 4, 6]
ONE = tf.constant(1)


def make_network(**arguments):
    tf.random.set_seed(0)
    return frame_average.FrameLevelLogisticModel(D, C, T, **arguments)


def make_view(seed=0, lengths=LENGTHS) -> dict:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (len(lengths), T, D), dtype=np.uint8)
    return {"frames": tf.constant(frames), "num_frames": tf.constant(lengths)}


def test_the_logits_are_those_of_the_head(oracle):
    network = make_network()
    oracle.randomize(network, 0)
    outputs = network(make_view())
    kernel, bias = network.head.kernel.numpy(), network.head.bias.numpy()
    expected = outputs.encoding.numpy() @ kernel + bias
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-5, atol=1e-6)


def test_float_frames_equal_stored_ones():
    view = make_view()
    dequantized = view["frames"].numpy() * np.float32(4 / 255) + np.float32(4 / 512 - 2)
    found = make_network()(view | {"frames": tf.constant(dequantized)}).encoding
    expected = make_network()(view).encoding
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_video_level_record_is_its_own_mean():
    vectors = tf.constant([[[3.0, 0.0, 0.0, 4.0, 0.0]], [[0.0, 0.0, -2.0, 0.0, 0.0]]])
    outputs = make_network()({"frames": vectors, "num_frames": tf.constant([1, 1])})
    expected = [[0.6, 0, 0, 0.8, 0], [0, 0, -1, 0, 0]]  # of length 1
    np.testing.assert_allclose(outputs.encoding, expected, rtol=1e-6)


def test_parameters_and_multiply_adds():
    network = make_network()
    assert base.num_weights(network.trainable_variables) == D * C + C
    assert network.multiply_adds(6) == {"bridge": 0, "classifier": D * C}
    assert len(network.kernels()) == len(network.kernels("classifier")) == 1


def test_requesting_intermediate_states_names_the_flag_to_change():
    view = make_view() | {
        "state_indices": tf.zeros([4, 1], tf.int32),
        "num_states": tf.zeros([4], tf.int32),
    }
    with pytest.raises(ValueError, match="no intermediate states: use --match=final"):
        make_network()(view)


# ------------------------------------------------ base.VideoClassifier: dropout


def noise_of(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(size=shape), tf.float32)


def test_there_is_no_dropout_outside_training():
    network = make_network(dropout=0.5)
    view = make_view()
    expected = network.head(network(view).encoding)
    for _ in range(3):
        np.testing.assert_array_equal(network(view).logits, expected)
    noise = view | {"noise": layers.Noise(tf.constant([0, 1]), 0 * ONE, 4 * ONE)}
    np.testing.assert_array_equal(network(noise).logits, expected)


def test_numbers_below_the_rate_drop_and_the_rest_is_scaled_up(monkeypatch):
    drawn = tf.constant([[0.0, 0.2499, 0.25, 0.99]])
    monkeypatch.setattr(tf.random, "uniform", lambda shape: drawn)
    found = layers.dropout(tf.constant([[1.0, 2.0, 3.0, 4.0]]), 0.25)
    np.testing.assert_allclose(found, [[0, 0, 3 / 0.75, 4 / 0.75]], rtol=1e-6)


def test_dropout_reaches_the_classifier_but_not_the_encoding():
    network = make_network(dropout=0.5)
    view = make_view()
    noise = layers.Noise(tf.constant([3, 7]), 0 * ONE, 4 * ONE)
    outputs = network(view | {"noise": noise}, training=True)
    np.testing.assert_array_equal(outputs.encoding, network(view).encoding)
    kept = noise.uniform(outputs.encoding) >= 0.5
    kept = tf.where(kept, outputs.encoding * 2, 0.0)
    np.testing.assert_allclose(outputs.logits, network.head(kept), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate, monkeypatch):
    # Noise 0, 1/n, 2/n, ...: a share of exactly `rate` is dropped, so the mean is
    # exact up to rounding.
    steps = 100
    drawn = tf.constant((np.arange(steps) + 0.5) / steps, tf.float32)
    monkeypatch.setattr(tf.random, "uniform", lambda shape: drawn)
    found = layers.dropout(tf.ones([steps]), rate)
    np.testing.assert_allclose(np.mean(found), 1, rtol=1e-4)


def test_dropout_without_given_noise_is_drawn_from_the_global_generator():
    network = make_network(dropout=0.5)
    encoding = noise_of((50, D))
    drawn = []
    for seed in (1, 1, 2):
        tf.random.set_seed(seed)
        drawn.append(network.classify(encoding, training=True).numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])
    without = network.classify(encoding).numpy()
    assert np.any(drawn[0] != without)


def test_a_rate_of_0_is_no_dropout():
    network = make_network(dropout=0.0)
    encoding = noise_of((3, D))
    found = network.classify(encoding, training=True)
    np.testing.assert_array_equal(found, network.classify(encoding))


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5, float("nan")])
def test_a_dropout_rate_is_below_1(dropout):
    with pytest.raises(ValueError, match=rf"dropout={dropout} is not in \[0, 1\)"):
        make_network(dropout=dropout)


# ------------------------------------------------- base.VideoClassifier: others


def test_the_bridge_is_a_learned_linear_map_in_front_of_the_classifier():
    network = make_network(encoding_size=7)
    view = make_view()
    outputs = network(view)
    expected = make_network()(view).encoding.numpy() @ network.bridge.numpy()
    np.testing.assert_allclose(outputs.encoding, expected, rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (7, C)
    assert any(v is network.bridge for v in network.trainable_variables)
    assert any(kernel is network.bridge for kernel in network.kernels())
    assert network.multiply_adds(1) == {"bridge": 5 * 7, "classifier": 7 * C}


def test_the_context_is_a_learned_linear_map_added_before_the_classifier():
    network, view = make_network(), make_view()
    without, kernels = network(view), network.encoder_kernels()
    network.add_context(3)
    with pytest.raises(ValueError, match="context"):
        network(view)
    context = np.random.default_rng(0).normal(size=(len(LENGTHS), 3))
    view["context"] = tf.constant(context, tf.float32)
    # It starts without the context.
    np.testing.assert_array_equal(network(view).logits, without.logits)
    weights = np.random.default_rng(1).normal(size=(3, D))
    network.context.assign(weights)
    outputs = network(view)
    read = without.encoding.numpy() + context @ weights
    expected = read @ network.head.kernel.numpy() + network.head.bias.numpy()
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(outputs.encoding, without.encoding)
    assert any(kernel is network.context for kernel in network.kernels())
    assert len(network.encoder_kernels()) == len(kernels)
    assert network.multiply_adds(1)["context"] == 3 * D


def test_all_variables_exist_before_the_first_call():
    network = make_network(head="moe", encoding_size=7)
    before = [id(v) for v in network.weights]
    assert len(before) == 1 + 3
    network(make_view(), training=True)
    assert [id(v) for v in network.weights] == before


def test_a_head_of_another_width_cannot_be_shared():
    wide = make_network(encoding_size=7)
    with pytest.raises(ValueError) as caught:
        make_network(head=wide.head)
    assert str(caught.value) == (
        "The shared head reads encodings of width 7; this network's has width 5."
    )


def test_frames_of_another_width_are_refused():
    view = make_view()
    with pytest.raises(ValueError, match="4 wide.* reads 5"):
        make_network()(view | {"frames": view["frames"][..., 1:]})
