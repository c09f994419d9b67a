"""LstmModel: the flat LSTM, against plain loops over videos and steps."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.models import base, lstm_model

D, C, T, H = 5, 4, 9, 3
LENGTHS = [0, 1, 4, 9]
# float32 against float64 through at most nine steps of two layers.
CLOSE = {"rtol": 1e-4, "atol": 5e-6}


def make_network(oracle, seed=0, **arguments):
    arguments = {"cells": H, "implementation": "hoisted"} | arguments
    network = lstm_model.LstmModel(D, C, T, **arguments)
    oracle.randomize(network, seed)
    return network


def make_view(seed=0, lengths=LENGTHS, steps=T) -> dict:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (len(lengths), steps, D), dtype=np.uint8)
    return {"frames": tf.constant(frames), "num_frames": tf.constant(lengths)}


@pytest.mark.parametrize(
    "layers, implementation, training",
    [(1, "hoisted", False), (2, "hoisted", True), (2, "keras", False)],
)
def test_the_encoding_is_the_top_layers_h_at_the_last_valid_frame(
    oracle, layers, implementation, training
):
    network = make_network(oracle, layers=layers, implementation=implementation)
    view = make_view()
    outputs = network(view, training=training)
    assert (outputs.encoding.shape, outputs.logits.shape) == ((4, H), (4, C))
    for row, n in enumerate(LENGTHS):
        x = oracle.normalize(view["frames"].numpy()[row, :n])
        for weights in oracle.layers(network.lstm):
            _, x = oracle.lstm(x, *weights)
        expected = x[-1] if n else np.zeros(H)
        np.testing.assert_allclose(outputs.encoding[row], expected, **CLOSE)


@pytest.mark.parametrize("implementation", ["hoisted", "keras"])
def test_padding_does_not_change_the_encoding(oracle, implementation):
    network = make_network(oracle, implementation=implementation)
    view = make_view()
    expected = network(view).encoding
    behind = (np.arange(T) >= np.array(LENGTHS)[:, np.newaxis])[..., np.newaxis]
    garbage = np.where(behind, np.uint8(7), view["frames"])
    found = network(view | {"frames": tf.constant(garbage)}).encoding
    np.testing.assert_array_equal(found, expected)
    longer = tf.pad(view["frames"], [[0, 0], [0, 6], [0, 0]], constant_values=9)
    found = network(view | {"frames": longer}).encoding
    # Products of another shape may add in another order: a rounding apart.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for row in range(4):
        alone = network({key: value[row : row + 1] for key, value in view.items()})
        np.testing.assert_allclose(
            alone.encoding[0], expected[row], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("implementation", ["hoisted", "keras"])
def test_states_at_given_frames_are_those_of_the_plain_loop(oracle, implementation):
    network = make_network(oracle, implementation=implementation)
    view = make_view()
    indices = np.array([[0, 0], [0, 0], [1, 3], [0, 8]])
    counts = [0, 1, 2, 2]
    outputs = network(
        view
        | {
            "state_indices": tf.constant(indices, tf.int32),
            "num_states": tf.constant(counts),
        }
    )
    assert outputs.states.shape == (4, 2, 4 * H)
    layers = oracle.layers(network.lstm)
    for row, (n, valid) in enumerate(zip(LENGTHS, counts, strict=True)):
        frames = oracle.normalize(view["frames"].numpy()[row, :n])
        expected = oracle.states(frames, layers)[indices[row, :valid]]
        np.testing.assert_allclose(outputs.states[row, :valid], expected, **CLOSE)
        np.testing.assert_array_equal(outputs.states[row, valid:], 0.0)
    np.testing.assert_allclose(
        outputs.encoding, network(view).encoding, rtol=1e-5, atol=1e-6
    )


def test_its_default_head_is_the_starter_codes_mixture(oracle):
    assert type(make_network(oracle).head).__name__ == "MixtureOfExpertsHead"
    assert type(make_network(oracle, head="logistic").head).__name__ == "LogisticHead"


def test_parameters_and_multiply_adds_by_hand(oracle):
    network = make_network(oracle, head="logistic")
    # 4H(D + H + 1) and 4H(H + H + 1) for the layers; H * C + C for the classifier.
    assert base.num_weights(network.trainable_variables) == 108 + 84 + 16
    # 4H(D + H) + 4H(H + H) a frame, without biases.
    assert network.multiply_adds(7) == {
        "lower": 7 * (96 + 72),
        "bridge": 0,
        "classifier": 12,
    }
    assert len(network.kernels()) == 5
    assert len(network.kernels("classifier")) == 1


@pytest.mark.parametrize(
    ("argument", "shown"),
    [({"cells": 8.5}, "cells=8.5"), ({"cells": "8"}, "cells='8'")]
    + [({"layers": 0}, "layers=0"), ({"layers": 2.0}, "layers=2.0")],
)
def test_counts_must_be_positive_integers(argument, shown):
    with pytest.raises(ValueError) as caught:
        lstm_model.LstmModel(D, C, T, **argument)
    assert str(caught.value) == f"{shown} is not a whole number above 0."
