"""What VideoClassifier gives every network, on one whose encoding is the mean frame."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small

LENGTHS = small.LENGTHS


def make_network(**arguments):
    return small.make_network("mean", **arguments)


def make_view():
    return small.make_view()


def test_float_frames_equal_stored_ones():
    view = make_view()
    dequantized = view["frames"].numpy() * np.float32(4 / 255) + np.float32(4 / 512 - 2)
    found = make_network()(view | {"frames": tf.constant(dequantized)}).encoding
    small.assert_close(found, make_network()(view).encoding)


def test_a_video_level_record_is_its_own_mean():
    vectors = np.zeros([2, 1, sum(small.SIZES)], np.float32)
    vectors[0, 0, [0, 3]], vectors[1, 0, 2] = (3, 4), -2
    view = {"frames": tf.constant(vectors), "num_frames": tf.constant([1, 1])}
    expected = vectors[:, 0] / [[5], [2]]  # of length 1
    np.testing.assert_allclose(make_network()(view).encoding, expected, rtol=1e-6)


def test_there_is_no_dropout_outside_training():
    network = make_network(dropout=0.5)
    view = make_view()
    expected = network.head(network(view).encoding)
    for more in ({}, {}, {"noise": small.make_noise(len(LENGTHS))}):
        np.testing.assert_array_equal(network(view | more).logits, expected)


def test_dropout_reaches_the_classifier_but_not_the_encoding():
    network = make_network(dropout=0.5)
    view = make_view()
    noise = small.make_noise(len(LENGTHS))
    outputs = network(view | {"noise": noise}, training=True)
    np.testing.assert_array_equal(outputs.encoding, network(view).encoding)
    kept = noise.uniform(outputs.encoding) >= 0.5
    kept = tf.where(kept, outputs.encoding * 2, 0.0)
    np.testing.assert_allclose(outputs.logits, network.head(kept), rtol=1e-6)


def test_the_bridge_is_a_learned_linear_map_before_the_classifier():
    network, view = make_network(encoding_size=7), make_view()
    plain = make_network()(view).encoding.numpy()
    found = network(view).encoding
    small.assert_close(found, plain @ network.bridge.numpy())
    assert network.head.kernel.shape == (7, small.C)
    assert any(v is network.bridge for v in network.trainable_variables)
    parts = network.multiply_adds(1)
    assert parts == {"bridge": sum(small.SIZES) * 7, "classifier": 7 * small.C}


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
    weights = np.random.default_rng(1).normal(size=network.context.shape)
    network.context.assign(weights)
    outputs = network(view)
    read = without.encoding.numpy() + context @ weights
    expected = read @ network.head.kernel.numpy() + network.head.bias.numpy()
    small.assert_close(outputs.logits, expected)
    np.testing.assert_array_equal(outputs.encoding, without.encoding)
    assert any(kernel is network.context for kernel in network.kernels())
    assert len(network.encoder_kernels()) == len(kernels)
    assert network.multiply_adds(1)["context"] == 3 * sum(small.SIZES)


def test_frames_of_another_width_and_states_that_are_not_there_are_refused():
    network, view = make_network(), make_view()
    with pytest.raises(ValueError, match="23 wide.* reads 24"):
        network(view | {"frames": view["frames"][..., 1:]})
    states = {"state_indices": tf.zeros([5, 1], tf.int32), "num_states": tf.ones([5])}
    flags = "--match=final.*--student_loss"
    with pytest.raises(ValueError, match=f"LogisticModel .*states: use {flags}"):
        network(view | states)


@pytest.mark.slow
def test_keras_trains_a_network_in_a_wrapper_that_returns_logits():
    class Logits(keras.Model):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def call(self, inputs, training=False):
            return self.network(inputs, training=training).logits

    network = make_network()
    network.head.bias.assign(tf.zeros(small.C))
    view = {name: value.numpy() for name, value in make_view().items()}
    model = Logits(network)
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(view, np.ones([len(LENGTHS), small.C], np.float32), verbose=0)
    assert (network.head.bias.numpy() > 0).all()  # From 0; all labels are 1.
    assert model.predict(view, verbose=0).shape == (len(LENGTHS), small.C)
