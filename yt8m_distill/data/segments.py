"""Rated segments of a video (YouTube-8M 2019): fields, rules, window and labels.

A record has three more context features of one length: `segment_start_times` (int64,
seconds, which are frames), `segment_labels` (int64, classes) and `segment_scores`
(float, 1 for present, 0 for absent). A segment is SEGMENT_FRAMES long. Classes without
a rating are neither present nor absent in it.
"""

from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import records

START_TIMES, LABELS, SCORES = (
    "segment_start_times",
    "segment_labels",
    "segment_scores",
)
KINDS = {START_TIMES: "int64", LABELS: "int64", SCORES: "float"}


class Rating(NamedTuple):
    """Whether a class is present in the segment that starts at a frame."""

    start: int
    label: int
    score: int


def read(context: tf.train.Features) -> tuple[list[Rating], str]:
    """The ratings of a record, and what is wrong with its fields; empty: nothing."""
    columns = []
    for name, kind in KINDS.items():
        found, values = records.kind_and_values(context.feature.get(name))
        if found not in ("", kind):
            return [], f"{name} holds {found}, not {kind}."
        columns.append(list(values))
    starts, labels, scores = columns
    if not len(starts) == len(labels) == len(scores):
        lengths = f"{len(starts)}, {len(labels)} and {len(scores)}"
        return [], f"{START_TIMES}, {LABELS} and {SCORES} have {lengths} entries."
    for score in scores:
        if score not in (0, 1):
            return [], f"a number of {SCORES} is {score:g}, not 0 or 1."
    scores = map(int, scores)
    return [Rating(*row) for row in zip(starts, labels, scores, strict=True)], ""


def problem(ratings: list[Rating], num_frames: int, data: settings.DataSettings) -> str:
    """What is wrong with ratings that were read; empty: nothing.

    Args:
        num_frames: of it, as far as they are read.
    """
    for start, label, _ in ratings:
        if not 0 <= start < num_frames:
            return f"a segment starts at {start}, the video has {num_frames} frames."
        if not 0 <= label < data.num_classes:
            return (
                f"{LABELS} has {label}, which is not in 0..{data.num_classes - 1}, the "
                "range of --num_classes."
            )
    return ""


def width(context: int) -> int:
    """Frames of a segment and of the context on both sides."""
    return settings.SEGMENT_FRAMES + 2 * context


def window(
    starts: tf.Tensor, num_frames: tf.Tensor, context: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """First frame [B] and frames [B] of each segment with its context.

    Args:
        starts: [B] int32.
        num_frames: [B] int32, of the videos, where windows are cut; 0: no frames.
        context: frames to each side.
    """
    begins = tf.maximum(starts - context, 0)
    ends = tf.minimum(starts + settings.SEGMENT_FRAMES + context, num_frames)
    return begins, tf.maximum(ends - begins, 0)


class Segments(NamedTuple):
    """The segment of each row of a batch, and its ratings.

    Attributes:
        starts: [B] int32, first frame; 0 for a padding row.
        rows: [R] int64 in [0, B), the row of each rating.
        labels: [R] int64, its class.
        scores: [R] int32, 1 for present, 0 for absent.
    """

    starts: tf.Tensor
    rows: tf.Tensor
    labels: tf.Tensor
    scores: tf.Tensor


def labels_and_weights(
    segments: Segments, video_labels: tf.Tensor, negatives: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels and label_weights of a batch, both [B, C] float32.

    A rated class has weight 1 (present, if two ratings of it differ), one that is
    neither rated nor a label of the video has the weight `negatives`.

    Args:
        video_labels: [B, C], 0 or 1.
        negatives: weight in [0, inf).
    """
    places = tf.stack([segments.rows, segments.labels], axis=1)
    zeros = tf.zeros_like(video_labels)
    ones = tf.ones_like(segments.scores, tf.float32)
    rated = tf.tensor_scatter_nd_update(zeros, places, ones)
    scores = tf.cast(segments.scores, tf.float32)
    labels = tf.tensor_scatter_nd_max(zeros, places, scores)
    # Padding rows have weight 0 throughout.
    is_segment = tf.reduce_max(rated, axis=1, keepdims=True)
    unknown = (1 - rated) * (1 - video_labels) * is_segment
    return labels, rated + negatives * unknown
