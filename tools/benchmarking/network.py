"""Speed of the teacher over matrix products and over stock Keras layers."""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tools.benchmarking import results
from yt8m_distill.models import base, hierarchical_lstm

# Rows, inner size and columns of the product that gives the machine's rate; by `quick`.
PRODUCT = {False: (2048, 2048, 4096), True: (64, 64, 64)}


class StockBlocks(keras.layers.Layer):
    """keras.layers.LSTM over one block after another, the usual implementation.

    Has the weights, arguments and results of a StackedLSTM.
    """

    def __init__(self, stacked, blocks: int):
        super().__init__(dtype="float32")
        self.stacked = stacked
        self.blocks = blocks
        self.state_size = stacked.state_size
        self.kernels = stacked.kernels

    def call(self, x, lengths, training=False, at=None):
        """[T, N, D] → [N, 2 * layers * cells], N = videos * blocks."""
        del lengths, at  # All blocks are full here.
        videos = tf.transpose(x, [1, 0, 2])
        videos = tf.reshape(videos, [-1, self.blocks, *videos.shape[1:]])
        ends = []
        for number in range(self.blocks):
            block, states = videos[:, number], []
            for layer in self.stacked.stack:
                block, h, c = layer(block, training=training)
                states += [c, h]
            ends.append(tf.concat(states, axis=1))
        return tf.reshape(tf.stack(ends, axis=1), [-1, ends[0].shape[-1]]), None


class Case:
    """Forward pass and training step of a network on a batch of full videos.

    Args:
        network: a VideoClassifier.
        batch: videos.
    """

    def __init__(self, network, batch: int):
        self.network = network
        frames, width = network.max_frames, network.feature_size
        classes = network.num_classes
        self.variables = list(self.network.trainable_variables)
        values = tf.random.stateless_uniform([batch, frames, width], [1, 2], 0, 255)
        self.inputs = {
            "frames": tf.cast(values, tf.uint8),
            "num_frames": tf.fill([batch], frames),
        }
        self.labels = tf.cast(
            tf.random.stateless_uniform([batch, classes], [3, 4]) < 0.001, tf.float32
        )
        self.forward = tf.function(self._forward)
        self.step = tf.function(self._step)

    def _forward(self):
        return self.network(self.inputs).logits

    def _step(self):
        with tf.GradientTape() as tape:
            logits = self.network(self.inputs, training=True).logits
            losses = tf.nn.sigmoid_cross_entropy_with_logits(self.labels, logits)
            loss = tf.reduce_sum(losses)
        gradients = tape.gradient(loss, self.variables)
        return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients])

    def calls(self) -> dict[str, Callable]:
        """`forward` and `step`, each of which waits for its result."""
        return {
            "forward": lambda: self.forward()[0, 0].numpy(),
            "step": lambda: self.step().numpy(),
        }

    def floating_operations(self, step: bool) -> float:
        """Operations of a forward pass, or of a step (three times as many)."""
        rows = self.inputs["frames"].shape[0]
        parts = self.network.multiply_adds(self.network.max_frames)
        return 2 * rows * sum(parts.values()) * (3 if step else 1)


class TeacherCase(Case):
    """The paper's teacher.

    Args:
        size: cells, block length, frames, width, classes, and videos of a batch.
        blockwise: stock layers, block by block, in place of our LSTM.
        **changes: other arguments of the network.
    """

    def __init__(self, size: Sequence[int], blockwise: bool = False, **changes):
        cells, block_len, frames, width, classes, batch = size
        network = hierarchical_lstm.HierarchicalLSTM(
            feature_size=width, num_classes=classes, max_frames=frames, cells=cells,
            block_len=block_len, implementation="keras" if blockwise else "hoisted",
            **changes,
        )  # fmt: skip
        if blockwise:
            network.lower = StockBlocks(network.lower, -(-frames // block_len))
        super().__init__(network, batch)

    def floating_operations(self, step: bool) -> float:
        """Those of the LSTM that are done.

        h U of a first step is not, nor, in a training step, a gradient for frames.
        """
        network, rows = self.network, self.inputs["frames"].shape[0]
        blocks = -(-network.max_frames // network.block_len)
        skipped = blocks * base.num_weights(network.lower.kernels()[1::2])
        skipped += base.num_weights(network.upper.kernels()[1::2])
        if step:
            skipped *= 3
            skipped += network.max_frames * base.num_weights(
                network.lower.kernels()[:1]
            )
        return super().floating_operations(step) - 2 * rows * skipped


def product(dtype, quick: bool):
    """A call that multiplies two matrices."""
    rows, inner, columns = PRODUCT[quick]
    a = tf.cast(tf.random.stateless_uniform([rows, inner], [5, 6]), dtype)
    b = tf.cast(tf.random.stateless_uniform([inner, columns], [7, 8]), dtype)

    @tf.function
    def multiply():
        return tf.matmul(a, b)

    return lambda: multiply()[0, 0].numpy()


def share_rows(
    title: str, case: Case, bars: Sequence, seconds: dict[str, float], quick: bool
) -> list[results.Row]:
    """Forward pass and step of a case as shares of the product rate.

    Args:
        title: of a row; `{}` is `forward` or `step`.
        bars: of each.
        seconds: of `product`, `forward` and `step`.
    """
    rate = 2 * math.prod(PRODUCT[quick]) / seconds["product"]
    videos = case.inputs["frames"].shape[0]
    table = []
    for name, bar in zip(("forward", "step"), bars, strict=True):
        speed = case.floating_operations(name == "step") / seconds[name]
        table.append(
            results.Row(
                f"{title.format(name)}, share of the float32 product rate",
                speed / rate,
                bar,
                detail=f"{seconds[name]:.3f} s for {videos} videos; {speed / 1e9:.0f} "
                f"of {rate / 1e9:.0f} GFLOP/s",
            )
        )
    return table


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    size = (8, 5, 10, 16, 10, 2) if quick else (1024, 20, 300, 1152, 3862, 32)
    case = TeacherCase(size)
    stock = TeacherCase(size, blockwise=True).calls()
    calls = {
        "product": product(tf.float32, quick),
        "product bf16": product(tf.bfloat16, quick),
        **case.calls(),
        **{f"stock {name}": call for name, call in stock.items()},
    }
    seconds = results.interleaved(calls, 2 if quick else 5)
    table = share_rows("{} of the teacher", case, (0.85, 0.75), seconds, quick)
    for name, bar in (("forward", 1.8), ("step", 1.0)):
        theirs, ours = seconds[f"stock {name}"], seconds[name]
        table.append(
            results.Row(
                f"{name}: speed over stock Keras LSTM layers, block by block",
                theirs / ours,
                bar,
                unit="x",
                detail=f"{theirs:.3f} s and {ours:.3f} s",
            )
        )
    table.append(
        results.Row(
            "bfloat16 products, rate over float32 ones",
            seconds["product"] / seconds["product bf16"],
            unit="x",
            detail="above 1 where the processor has instructions for it",
        )
    )
    return table
