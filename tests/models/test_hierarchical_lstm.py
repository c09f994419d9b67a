"""HierarchicalLSTM: its blocks. What holds of all networks is in test_networks.py."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small
from yt8m_distill import registry
from yt8m_distill.models import builder


@pytest.mark.parametrize(
    "arguments, block_len",
    [
        ({"block_len": 1}, 1),
        ({"block_len": 4}, 4),
        ({"block_len": 7}, 7),
        ({"block_len": 20}, 7),  # More than the view has.
        ({"num_blocks": 1}, 7),
        ({"num_blocks": 3}, 3),  # ceil(7 / 3); the last block is short
        ({"num_blocks": 7}, 1),
    ],
)
def test_any_blocks_give_the_encoding_of_the_equations(arguments, block_len):
    arguments = {"block_len": None, **arguments}
    network, view = small.make_network("hierarchical", **arguments), small.make_view()
    assert network.block_len == block_len
    expected = small.NumpyNetwork(network, "hierarchical").encode(view)
    small.assert_close(network(view).encoding, expected)


@pytest.mark.parametrize(
    "frames, arguments, block_len",
    [
        (300, {}, 20),
        (300, {"num_blocks": 20}, 15),
        (30, {"num_blocks": 5}, 6),
        (6, {"num_blocks": 3}, 2),
    ],
)
def test_block_lengths_of_the_paper_and_of_its_authors(frames, arguments, block_len):
    spec = registry.Specification("HierarchicalLSTM", {"cells": 1, **arguments})
    network = builder.build_network("teacher", spec, small.DATA, frames)
    assert network.block_len == block_len


def test_states_carry_a_gradient_to_the_lower_lstm_only():
    network, view = small.make_network("hierarchical"), small.make_view(lengths=[7, 0])
    states = {"state_indices": [[1, 6], [0, 0]], "num_states": [2, 0]}
    with tf.GradientTape(persistent=True) as tape:
        asked = {key: tf.constant(value) for key, value in states.items()}
        loss = tf.reduce_sum(network(view | asked, training=True).states)
    for gradient in tape.gradient(loss, network.lower.trainable_variables):
        assert np.isfinite(gradient).all() and np.any(gradient)
    assert set(tape.gradient(loss, network.upper.trainable_variables)) == {None}
