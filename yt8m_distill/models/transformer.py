"""TransformerModel: self-attention over the frames and a class token."""

import math

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill.models import arguments, base
from yt8m_distill.models import layers as parts

# Time runs from 0 to _TIME_SCALE over a video; wavelengths as in text transformers.
_TIME_SCALE, _LONGEST = 100.0, 10000.0


def time_embedding(num_frames: tf.Tensor, length: tf.Tensor, width: int) -> tf.Tensor:
    """Sinusoidal embedding of the relative time t/n of each frame.

    Args:
        num_frames: [B] int32, n.
        length: T.
        width: W, even.

    Returns:
        [B, T, W] float32; undefined after the last valid frame.
    """
    n = tf.cast(tf.maximum(num_frames, 1), tf.float32)[:, tf.newaxis]
    time = _TIME_SCALE * tf.range(length, dtype=tf.float32) / n  # [B, T]
    rates = np.power(_LONGEST, -np.arange(0, width, 2) / width).astype(np.float32)
    angles = time[..., tf.newaxis] * rates
    return tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1)


def _gelu(x: tf.Tensor) -> tf.Tensor:
    """x Φ(x). tf.nn.gelu (TensorFlow 2.21) is made of erfc, which ONNX has not."""
    return 0.5 * x * (1 + tf.math.erf(x / math.sqrt(2)))


class Block(keras.layers.Layer):
    """x + Attention(LN(x)), then x + MLP(LN(x)): a pre-norm transformer block.

    Args:
        width: W.
        num_heads: heads of the attention; must divide W.
        dropout: dropout rate of the output of each branch.
        index: noise index of the first of the block's two dropouts.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, index: int):
        super().__init__(dtype="float32")
        self.num_heads, self.rate, self.index = num_heads, dropout, index
        self.attention_norm = parts.LayerNorm(width)
        self.project = parts.Linear(width, 3 * width)
        self.merge = parts.Linear(width, width)
        self.norm = parts.LayerNorm(width)
        self.widen = parts.Linear(width, 4 * width)
        self.narrow = parts.Linear(4 * width, width)
        self.built = True

    def multiply_adds(self, length: int, rows: int) -> tuple[int, int]:
        """Of the kernels, and of the attention, for the first rows of the answer."""
        width = self.merge.kernel.shape[0]
        others = (self.merge, self.widen, self.narrow)
        asked = width**2 + base.num_weights([linear.kernel for linear in others])
        return length * 2 * width**2 + rows * asked, 2 * rows * length * width

    def _drop(self, x, training, noise, index):
        return parts.dropout(x, self.rate, noise, index) if training else x

    def _project(self, x: tf.Tensor, begin: int, end: int) -> list[tf.Tensor]:
        """Queries, keys, values (0, 1, 2) from begin to end: [B, heads, T, size]."""
        width = x.shape[-1]
        shape = [*tf.unstack(tf.shape(x)[:2]), end - begin, self.num_heads]
        x = self.project.columns(x, begin * width, end * width)
        x = tf.reshape(x, [*shape, width // self.num_heads])
        return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))

    def _attend(self, x: tf.Tensor, mask: tf.Tensor, rows: int | None) -> tf.Tensor:
        (query,) = self._project(x[:, :rows], 0, 1)
        key, value = self._project(x, 1, 3)
        scores = parts.multiply(query, key, transpose_b=True)
        scores /= math.sqrt(query.shape[-1])
        scores = tf.where(mask[:, tf.newaxis, tf.newaxis], scores, -1e9)
        found = parts.multiply(tf.nn.softmax(scores), value)  # [B, heads, rows, size]
        found = tf.transpose(found, [0, 2, 1, 3])
        return self.merge(
            tf.reshape(found, [*tf.unstack(tf.shape(found)[:2]), x.shape[-1]])
        )

    def call(
        self, x, mask, rows: int | None = None, training: bool = False, noise=None
    ) -> tf.Tensor:
        """x [B, T, W] and mask [B, T] → the first `rows` of [B, T, W]; None: all."""
        branch = self._attend(self.attention_norm(x), mask, rows)
        x = x[:, :rows] + self._drop(branch, training, noise, self.index)
        branch = self.narrow(_gelu(self.widen(self.norm(x))))
        return x + self._drop(branch, training, noise, self.index + 1)


@base.MODELS.register("TransformerModel")
class TransformerModel(parts.Numbered, base.VideoClassifier):
    """A transformer over the frames; the encoding is that of its class token.

        z = [token, LN(x_t W_in + b_in) + embedding(t / n)]
        z = Block(z), `layers` times, padding masked
        e = LN(z_0)

    Args, besides those of VideoClassifier:
        width: of the tokens and of the encoding; even.
        layers: number of blocks.
        num_heads: attention heads of each block; must divide the width.
        block_dropout: dropout rate of the output of each branch of a block.

    Raises:
        ValueError: if a count is not a positive integer, or the heads do not divide the
            width.
    """

    def __init__(
        self,
        width: int = 512,
        layers: int = 4,
        num_heads: int = 8,
        block_dropout: float = 0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        arguments.require_counts(width=width, layers=layers, num_heads=num_heads)
        arguments.require_divisor(2, width, "two (sine and cosine)", "width")
        arguments.require_divisor(num_heads, width, "num_heads", "width")
        arguments.require_rate(block_dropout=block_dropout)
        self.enter = parts.Linear(self.feature_size, width)
        self.enter_norm = parts.LayerNorm(width)
        self.token = self.add_weight(name="token", shape=(width,), initializer="zeros")
        self.add_numbered(
            "block",
            [Block(width, num_heads, block_dropout, 2 * n + 1) for n in range(layers)],
        )
        self.norm = parts.LayerNorm(width)
        self.build_classifier(width)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return self.numbered("block")

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        length, enter = num_frames + 1, base.num_weights([self.enter.kernel])
        asked = [length] * (len(self.blocks) - 1) + [1]
        blocks = zip(self.blocks, asked, strict=True)
        kernels, attention = np.sum([b.multiply_adds(length, n) for b, n in blocks], 0)
        return {
            "frames": num_frames * enter + int(kernels),
            "attention": int(attention),
            **self.classifier_multiply_adds(),
        }

    def encode(self, frames, num_frames, state_indices, training, noise):
        return self._encode(self._embed(frames), num_frames, training, noise), None

    def encode_parts(self, frames, num_frames, bounds):
        parts, counts = base.cut(self._embed(frames), num_frames, bounds)
        return self._encode(parts, counts)

    def _embed(self, frames: tf.Tensor) -> tf.Tensor:
        """[B, T, D] → [B, T, W], each frame by itself."""
        # Frames have norm 1; without the layer norm the embedding would dominate.
        return self.enter_norm(self.enter(frames))

    def _encode(self, x, num_frames, training=False, noise=None) -> tf.Tensor:
        """[B, T, W] → [B, W]."""
        length, width, known = tf.shape(x)[1], x.shape[-1], x.shape[1]
        x += time_embedding(num_frames, length, width)
        token = tf.broadcast_to(self.token, [tf.shape(x)[0], 1, width])
        x = tf.concat([token, x], axis=1)
        x = tf.ensure_shape(x, [None, known and known + 1, width])
        mask = tf.sequence_mask(num_frames + 1, length + 1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask, training=training, noise=noise)
        # Of the last block only the class token is read.
        x = last(x, mask, rows=1, training=training, noise=noise)
        return self.norm(x[:, 0])
