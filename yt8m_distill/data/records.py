"""The native record format: quantization, shares of the data, messages in the graph.

A frame-level record is a tf.train.SequenceExample with the context features `id` and
`labels`, and per feature a feature list with one byte string per frame. A video-level
record is a tf.train.Example with `id`, `labels` and one float vector per feature.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings

# A share of the data is selected by the hash of each record.
HASH_BUCKETS = 1 << 30

# Delimiters of the message for the user inside a TensorFlow error.
_BEGIN, _END = "<<<", ">>>"


class Rounding(NamedTuple):
    """How much numbers changed by quantization; of no numbers by default.

    Attributes:
        count: numbers quantized.
        clipped: those outside of the range.
        largest: difference of a number from the one that a network reads.
        squares: of these differences, summed.
    """

    count: int = 0
    clipped: int = 0
    largest: float = 0.0
    squares: float = 0.0

    def join(self, other: "Rounding") -> "Rounding":
        """That of both."""
        largest = max(self.largest, other.largest)
        total = Rounding(*(a + b for a, b in zip(self, other, strict=True)))
        return total._replace(largest=largest)

    def __str__(self) -> str:
        rms = (self.squares / self.count) ** 0.5
        return (
            f"they changed by {self.largest:.2g} at most and {rms:.2g} root mean "
            f"square, {self.clipped / self.count:.2%} of the numbers were outside of "
            "the range and were clipped"
        )


def _rounding(values: np.ndarray, quantized: np.ndarray, low, high) -> Rounding:
    """What quantization over a range did to numbers [...]."""
    changes = np.abs(dequantize(quantized, low, high) - values.astype(np.float64))
    outside = np.count_nonzero((values < low) | (values > high))
    largest, squares = changes.max(initial=0.0), np.square(changes).sum()
    return Rounding(values.size, outside, float(largest), float(squares))


def quantize(values: np.ndarray, low: float = -2, high: float = 2) -> np.ndarray:
    """Floats to uint8 as in YouTube-8M: clipped to [low, high], truncated."""
    return ((np.clip(values, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def dequantize(values: np.ndarray, low: float = -2, high: float = 2) -> np.ndarray:
    """Numpy version of features.dequantize, without the mask."""
    scale, offset = (high - low) / 255, (high - low) / 512 + low
    return values.astype(np.float32) * np.float32(scale) + np.float32(offset)


def zero_byte(low: float, high: float) -> int:
    """The byte that is read as the number nearest to 0: 127 over any range -x:x."""
    return int(np.abs(dequantize(np.arange(256), low, high)).argmin())


def add_frames(
    example: tf.train.SequenceExample,
    name: str,
    frames: np.ndarray,
    low_high: tuple[float, float] = settings.YOUTUBE_8M,
) -> Rounding:
    """Adds a feature to a record, with its range in the context feature <name>_range.

    Args:
        frames: [T, size] uint8, already quantized, or floats.
        low_high: the range. YouTube-8M's is the default and is not stored.

    Returns:
        What was changed by quantization here.
    """
    changed = Rounding()
    if frames.dtype != np.uint8:
        values, frames = frames, quantize(frames, *low_high)
        changed = _rounding(values, frames, *low_high)
    if low_high != settings.YOUTUBE_8M:
        stored = tf.train.Feature(float_list=tf.train.FloatList(value=low_high))
        example.context.feature[f"{name}_range"].CopyFrom(stored)
    steps = example.feature_lists.feature_list[name].feature
    for row in frames:
        steps.add().bytes_list.value.append(row.tobytes())
    return changed


def kind_and_values(feature: tf.train.Feature | None) -> tuple[str, Sequence]:
    """`bytes`, `int64` or `float`, and the values; empty for none or an unset one."""
    field = feature.WhichOneof("kind") if feature else None
    if not field:
        return "", ()
    return field.removesuffix("_list"), getattr(feature, field).value


def stored_range(context, name: str) -> tuple[float, float]:
    """The quantization range stored in a record's context; default: YouTube-8M's."""
    key = f"{name}_range"
    values = tuple(context[key].float_list.value) if key in context else ()
    return values if len(values) == 2 else settings.YOUTUBE_8M


def marked(message: str) -> str:
    """Marks a message so that `describe_error` finds it in a TensorFlow error."""
    return f"{_BEGIN}{message}{_END}"


def marked_in_graph(parts: Sequence) -> tf.Tensor:
    """Joins and marks strings and [N] string tensors in the graph: [N]."""
    return tf.strings.join([_BEGIN, *parts, _END])


def keeps_labels(video_ids, fraction: float) -> tf.Tensor:
    """[N] bool: the videos that keep their labels under `--label_fraction`.

    Depends only on the id, so it is the same in all shards, in any order and on any
    machine. The videos of a smaller fraction are a subset of those of a larger one.
    """
    salted = tf.strings.join([video_ids, "#labels"])
    buckets = tf.strings.to_hash_bucket_fast(salted, HASH_BUCKETS)
    return buckets < int(fraction * HASH_BUCKETS)


def in_share(serialized, fraction: float) -> tf.Tensor:
    """[N] bool: the records [N] of a share of the data, selected by their content."""
    buckets = tf.strings.to_hash_bucket_fast(serialized, HASH_BUCKETS)
    return buckets < int(fraction * HASH_BUCKETS)


def untuned() -> tf.data.Options:
    """Options of a dataset that is neither tuned nor rewritten.

    Deleting an iterator waits for the autotuning thread, whose sleep doubles: up to a
    minute at the end of every epoch (TensorFlow 2.21). The rewriting finds nothing
    here, and takes a quarter of the time in which an epoch starts.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options


def multi_hot(rows: tf.Tensor, labels: tf.Tensor, size: int, num_classes: int):
    """[B, C] float32 of 0 and 1; repeated labels count once.

    Args:
        rows: [L] int64 in [0, B), the video of each label.
        labels: [L] int64 in [0, C).
    """
    nothing = tf.zeros([size, num_classes])
    ones = tf.ones_like(rows, tf.float32)
    return tf.tensor_scatter_nd_update(nothing, tf.stack([rows, labels], 1), ones)


def marked_line(text: str) -> str | None:
    """The message for the user in a TensorFlow error, or None."""
    marked = re.search(f"{_BEGIN}(.*?){_END}", text, re.DOTALL)
    return marked and marked[1]
