"""HierarchicalLSTM against plain loops over videos, blocks and steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.models import base, hierarchical_lstm, lstm

D, C, T, H = 5, 4, 13, 3
# float32 against float64 through up to 13 steps and two levels of LSTMs.
CLOSE = {"rtol": 1e-4, "atol": 5e-6}
# A padded, reordered or differently shaped batch: only roundings of products.
SAME = {"rtol": 1e-5, "atol": 1e-6}
# None, one, below, on and above the bounds of blocks of 4 and of ceil(13/4), and all.
LENGTHS = [0, 1, 3, 4, 5, 8, 12, 13]
# Constructor arguments, and the length of a block of 13 frames under them.
CONVENTIONS = [
    ({"block_len": 4}, 4),
    ({"block_len": 1}, 1),
    ({"block_len": 13}, 13),
    ({"block_len": 20}, 13),
    ({"num_blocks": 1}, 13),
    ({"num_blocks": 4}, 4),  # ceil(13 / 4); the last block is short
    ({"num_blocks": 5}, 3),
    ({"num_blocks": 13}, 1),
]
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["hoisted", "keras"])


def make_network(oracle, seed=0, **arguments):
    arguments = {"cells": H, "max_frames": T, "implementation": "hoisted"} | arguments
    if "num_blocks" not in arguments:
        arguments.setdefault("block_len", 4)
    network = hierarchical_lstm.HierarchicalLSTM(D, C, **arguments)
    oracle.randomize(network, seed)
    return network


def make_view(seed=0, lengths=LENGTHS, steps=T, size=D) -> dict:
    """uint8 frames, nonzero after the last valid frame of a video."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (len(lengths), steps, size), dtype=np.uint8)
    return {"frames": tf.constant(frames), "num_frames": tf.constant(lengths)}


def videos(oracle, view) -> list:
    """The valid frames of each video, [n, D], as the network should see them."""
    frames, lengths = view["frames"].numpy(), view["num_frames"].numpy()
    return [oracle.normalize(f[:n]) for f, n in zip(frames, lengths, strict=True)]


def with_states(view, indices, num_states) -> dict:
    return view | {
        "state_indices": tf.constant(indices, tf.int32),
        "num_states": tf.constant(num_states, tf.int32),
    }


# ------------------------------------------------------------------- the blocks


def test_blocks_are_consecutive_frames_time_first():
    frames = tf.reshape(tf.range(1, 11, dtype=tf.float32), [2, 5, 1])
    blocks = hierarchical_lstm.to_blocks(frames, 3)[..., 0]
    # Video 0: 1 2 3 | 4 5 0, video 1: 6 7 8 | 9 10 0; a column is a block.
    expected = [[1, 4, 6, 9], [2, 5, 7, 10], [3, 0, 8, 0]]
    np.testing.assert_array_equal(blocks, expected)


def test_valid_frames_of_each_block():
    lengths = hierarchical_lstm.block_lengths(tf.constant([0, 1, 3, 4, 8, 9]), 3, 3)
    expected = [[0, 0, 0], [1, 0, 0], [3, 0, 0], [3, 1, 0], [3, 3, 2], [3, 3, 3]]
    np.testing.assert_array_equal(lengths, expected)


@pytest.mark.parametrize(
    "max_frames, arguments, block_len",
    [
        (300, {"block_len": 20}, 20),
        (300, {"num_blocks": 20}, 15),
        (30, {"num_blocks": 5}, 6),
        (6, {"num_blocks": 3}, 2),
    ],
)
def test_block_lengths_of_the_paper_and_of_its_authors(
    oracle, max_frames, arguments, block_len
):
    network = make_network(oracle, cells=1, max_frames=max_frames, **arguments)
    assert network.block_len == block_len


# ------------------------------------------------------------------ the encoding


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_encoding_and_logits_are_those_of_the_plain_loops(oracle, layers):
    network = make_network(oracle, seed=layers, layers=layers)
    view = make_view(seed=layers)
    outputs = network(view)
    width = 2 * layers * H
    assert (outputs.encoding.shape, outputs.encoding.dtype) == ((8, width), tf.float32)
    assert (outputs.logits.shape, outputs.logits.dtype) == ((8, C), tf.float32)
    assert outputs.states is None
    kernel, bias = (v.numpy() for v in (network.head.kernel, network.head.bias))
    for row, frames in enumerate(videos(oracle, view)):
        expected, _ = oracle.hierarchical(network, frames, 4)
        np.testing.assert_allclose(outputs.encoding[row], expected, **CLOSE)
        np.testing.assert_allclose(
            outputs.logits[row], expected @ kernel + bias, rtol=1e-4, atol=1e-5
        )


def test_a_video_without_frames_is_encoded_as_zeros(oracle):
    network = make_network(oracle)
    for lengths in ([0, 0, 0], [5, 0, 2]):
        encoding = network(make_view(lengths=lengths)).encoding.numpy()
        empty = np.array(lengths) == 0
        np.testing.assert_array_equal(encoding[empty], 0.0)
        assert np.all(encoding[~empty] != 0)


@pytest.mark.parametrize(
    "implementation, training", [("hoisted", False), ("hoisted", True), ("keras", True)]
)
def test_frames_after_the_last_valid_one_are_not_read(oracle, implementation, training):
    network = make_network(oracle, implementation=implementation, dropout=0.0)
    view = make_view(seed=0)
    behind = np.arange(T) >= np.array(LENGTHS)[:, np.newaxis]
    outputs = [
        network(view | {"frames": tf.constant(frames)}, training=training)
        for frames in (
            view["frames"].numpy(),
            np.where(behind[..., np.newaxis], np.uint8(0), view["frames"]),
            np.where(behind[..., np.newaxis], np.uint8(255), view["frames"]),
        )
    ]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other.encoding, outputs[0].encoding)
        np.testing.assert_array_equal(other.logits, outputs[0].logits)


@IMPLEMENTATIONS
def test_neither_the_batch_nor_the_width_of_the_view_changes_a_video(
    oracle, implementation
):
    network = make_network(oracle, implementation=implementation)
    view = make_view(lengths=[0, 1, 4, 5])
    together = network(view)
    for row in range(4):
        alone = network({key: value[row : row + 1] for key, value in view.items()})
        np.testing.assert_allclose(alone.encoding[0], together.encoding[row], **SAME)
        np.testing.assert_allclose(alone.logits[0], together.logits[row], **SAME)
    expected = together.encoding
    for steps in (5, 8, 40):
        frames = view["frames"][:, :steps]
        frames = tf.pad(frames, [[0, 0], [0, max(0, steps - T)], [0, 0]])
        found = network(view | {"frames": frames}).encoding
        np.testing.assert_allclose(found, expected, **SAME)


def test_the_order_of_frames_and_of_blocks_counts(oracle):
    network = make_network(oracle)
    view = make_view(lengths=[8])
    encoding = network(view).encoding.numpy()
    within = [1, 0, 2, 3, 4, 5, 6, 7]
    blocks = [4, 5, 6, 7, 0, 1, 2, 3]
    for order in (within, blocks):
        frames = tf.gather(view["frames"][:, :8], order, axis=1)
        other = network(view | {"frames": frames}).encoding.numpy()
        assert np.abs(other - encoding).max() > 1e-3


def gradients_of(network, view):
    with tf.GradientTape() as tape:
        outputs = network(view, training=True)
        loss = tf.reduce_sum(tf.square(outputs.logits))
    return tape.gradient(loss, network.trainable_variables)


def test_both_implementations_have_the_same_gradients(oracle):
    results = [
        gradients_of(
            make_network(oracle, implementation=implementation, dropout=0.0),
            make_view(),
        )
        for implementation in ("hoisted", "keras")
    ]
    for first, second in zip(*results, strict=True):
        assert np.abs(first).max() > 1e-3
        # Sums over 8 videos and 46 frames of numbers up to about 10.
        np.testing.assert_allclose(second, first, rtol=1e-3, atol=1e-4)


def test_a_batch_without_any_frame_has_finite_gradients(oracle):
    network = make_network(oracle)
    for gradient in gradients_of(network, make_view(lengths=[0, 0])):
        assert np.isfinite(gradient).all()


def test_padding_rows_do_not_affect_the_gradient(oracle):
    network = make_network(oracle, dropout=0.0)
    network.head.bias.assign(tf.zeros(C))  # so that an empty row's logits are 0
    view = make_view(lengths=[5, 9])
    filled = {
        key: tf.concat([value, tf.zeros_like(value)], axis=0)
        for key, value in view.items()
    }
    pairs = zip(gradients_of(network, view), gradients_of(network, filled), strict=True)
    for expected, found in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@IMPLEMENTATIONS
def test_a_graph_of_unknown_batch_gives_the_same_encoding(oracle, implementation):
    network = make_network(oracle, implementation=implementation, layers=1)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, D], tf.uint8),
            tf.TensorSpec([None], tf.int32),
        ],
        autograph=False,
    )
    def run(frames, num_frames):
        return network({"frames": frames, "num_frames": num_frames}).encoding

    for lengths, steps in ((LENGTHS, T), ([2], 3), ([0], 1)):
        view = make_view(lengths=lengths, steps=steps)
        np.testing.assert_allclose(run(**view), network(view).encoding, **SAME)


# --------------------------------------------------------- intermediate states


@pytest.mark.parametrize(
    "arguments, block_len, implementation, training",
    [
        *((*convention, "hoisted", False) for convention in CONVENTIONS),
        *((*convention, "hoisted", True) for convention in CONVENTIONS[:2]),
        *((*convention, "keras", True) for convention in CONVENTIONS[:2]),
    ],
)
def test_states_at_given_frames_are_those_of_the_plain_loops(
    oracle, arguments, block_len, implementation, training
):
    network = make_network(
        oracle, implementation=implementation, dropout=0.0, **arguments
    )
    assert network.block_len == block_len
    view = make_view()
    # Up to four valid frames of each video, in order; the tail is invalid: 0.
    random = np.random.default_rng(1)
    counts = np.minimum(LENGTHS, 4)
    indices = np.zeros((len(LENGTHS), 4), int)
    for row, (n, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        indices[row, :count] = np.sort(random.choice(n, count, replace=False))
    outputs = network(with_states(view, indices, counts), training=training)
    assert outputs.states.shape == (8, 4, 4 * H)
    for row, frames in enumerate(videos(oracle, view)):
        encoding, states = oracle.hierarchical(network, frames, block_len)
        valid = counts[row]
        expected = states[indices[row, :valid]]
        np.testing.assert_allclose(outputs.states[row, :valid], expected, **CLOSE)
        np.testing.assert_array_equal(outputs.states[row, valid:], 0.0)
        np.testing.assert_allclose(outputs.encoding[row], encoding, **CLOSE)


def test_the_state_at_the_end_of_a_block_is_the_blocks_encoding(oracle):
    # One block: the upper LSTM's input is the state at its last frame.
    network = make_network(oracle, block_len=T)
    view = make_view(lengths=[T])
    outputs = network(with_states(view, [[T - 1]], [1]))
    upper = oracle.final(outputs.states[0].numpy(), oracle.layers(network.upper))
    np.testing.assert_allclose(outputs.encoding[0], upper, **CLOSE)


def test_states_carry_a_gradient_to_the_lower_lstm_only(oracle):
    network = make_network(oracle)
    inputs = with_states(make_view(lengths=[9, 0]), [[1, 6], [0, 0]], [2, 0])
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(network(inputs, training=True).states)
    for gradient in tape.gradient(loss, network.lower.trainable_variables):
        assert np.isfinite(gradient).all() and np.any(gradient)
    assert set(tape.gradient(loss, network.upper.trainable_variables)) == {None}


# ------------------------------------------------------------------------ sizes


def lstm_parameters(size: int, cells: int, layers: int) -> int:
    """4H(D + H + 1) a layer; all but the first read H numbers."""
    sizes = [size] + [cells] * (layers - 1)
    return sum(4 * cells * (d + cells + 1) for d in sizes)


def rnn_parameters(size: int, cells: int, layers: int = 2) -> int:
    """Lower LSTM on frames, upper one on [c1, h1, c2, h2] of a block."""
    block_size = 2 * layers * cells
    lower = lstm_parameters(size, cells, layers)
    return lower + lstm_parameters(block_size, cells, layers)


@pytest.mark.parametrize("cells, layers", [(1, 1), (3, 2), (4, 3)])
def test_number_of_parameters(oracle, cells, layers):
    network = make_network(oracle, cells=cells, layers=layers)
    classifier = 2 * layers * cells * C + C
    expected = rnn_parameters(D, cells, layers) + classifier
    assert base.num_weights(network.trainable_variables) == expected
    network(make_view())
    assert base.num_weights(network.weights) == expected, "a call makes no more"


def test_the_network_of_the_paper_has_that_many():
    with lstm.to_be_read():  # Orthogonal matrices of this size take seconds.
        network = hierarchical_lstm.HierarchicalLSTM(1024, 3862, 300, block_len=20)
    rnn = network.lower.trainable_variables + network.upper.trainable_variables
    # Lower: 4096 (1024 + 1024 + 1) twice; upper: 4096 (4096 + 1024 + 1) and
    # 4096 (1024 + 1024 + 1). The paper's "46.15 M".
    assert base.num_weights(rnn) == rnn_parameters(1024, cells=1024) == 46_153_728
    assert network.encoding_size == 4096
    head = base.num_weights(network.head.trainable_variables)
    assert head == 4096 * 3862 + 3862


def test_multiply_adds_by_hand(oracle):
    network = make_network(oracle)  # blocks of 4, 3 cells, two layers
    # A step costs a layer 4H(D + H). Lower: 12 (5 + 3) + 12 (3 + 3) a frame; upper:
    # 12 (12 + 3) + 12 (3 + 3) a block; classifier: 12 numbers times 4 classes.
    for frames, blocks in ((0, 0), (1, 1), (4, 1), (5, 2), (13, 4)):
        assert network.multiply_adds(frames) == {
            "lower": frames * 168,
            "upper": blocks * 252,
            "bridge": 0,
            "classifier": 48,
        }


def test_kernels_under_the_penalty(oracle):
    network = make_network(oracle, encoding_size=7)
    # Two kernels a layer, two layers, two LSTMs; then the bridge and the classifier.
    assert len(network.kernels("all")) == 8 + 1 + 1
    assert len({id(kernel) for kernel in network.kernels("all")}) == 10
    assert all(len(kernel.shape) == 2 for kernel in network.kernels("all"))
    (classifier,) = network.kernels("classifier")
    assert classifier is network.head.kernel


# ----------------------------------------------------------- bridge and precision


@IMPLEMENTATIONS
def test_bfloat16_products_change_the_outputs_little(
    oracle, use_policy, implementation
):
    arguments = {"implementation": implementation, "encoding_size": 7}
    exact = make_network(oracle, **arguments)(make_view())
    use_policy("mixed_bfloat16")
    network = make_network(oracle, **arguments)
    indices = np.zeros((8, 1))
    outputs = network(with_states(make_view(), indices, np.ones(8)))
    assert {t.dtype for t in outputs[:3]} == {tf.float32}
    assert all(tf.as_dtype(v.dtype) == tf.float32 for v in network.weights)
    # Weights are rounded by 2^-9; two LSTMs of up to 4 steps each, then sums of 12
    # and of 7 products: some tens of units.
    error = np.abs(outputs.logits - exact.logits).max()
    assert 0 < error < 50 * 2**-9


# ---------------------------------------------------------------------- bad input


def test_one_convention_is_given_at_most():
    with pytest.raises(ValueError, match="block_len=2, num_blocks=2"):
        hierarchical_lstm.HierarchicalLSTM(D, C, T, cells=H, block_len=2, num_blocks=2)


def test_without_a_convention_blocks_are_the_papers():
    # l = 20, as in the default of --teacher.
    assert hierarchical_lstm.HierarchicalLSTM(D, C, 300, cells=H).block_len == 20


def test_keras_trains_a_network_in_a_wrapper_that_returns_logits():
    class Logits(keras.Model):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def call(self, inputs, training=False):
            return self.network(inputs, training=training).logits

    random = np.random.default_rng(0)
    view = {
        "frames": random.integers(0, 256, [6, T, D], np.uint8),
        "num_frames": np.full([6], T, np.int32),
    }
    network = hierarchical_lstm.HierarchicalLSTM(D, C, T, H, layers=1, block_len=T)
    model = Logits(network)
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(view, np.ones([6, C], np.float32), verbose=0)
    assert (network.head.bias.numpy() > 0).all()  # From 0; all labels are 1.
    assert model.predict(view, verbose=0).shape == (6, C)


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ({"block_len": 0}, "block_len=0"),
        ({"block_len": 2.5}, "block_len=2.5"),
        ({"num_blocks": -1}, "num_blocks=-1"),
        ({"num_blocks": "4"}, "num_blocks='4'"),
        ({"block_len": 2, "cells": 8.5}, "cells=8.5"),
        ({"block_len": 2, "cells": "8"}, "cells='8'"),
        ({"block_len": 2, "layers": None}, "layers=None"),
        ({"block_len": 2, "layers": True}, "layers=True"),
    ],
)
def test_counts_must_be_positive_integers(argument, shown):
    with pytest.raises(ValueError) as caught:
        hierarchical_lstm.HierarchicalLSTM(D, C, T, **{"cells": H, **argument})
    assert str(caught.value) == f"{shown} is not a whole number above 0."
