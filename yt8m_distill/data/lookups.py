"""What the graph asks of opened shards: videos, and the frames of views.

The graph holds a token for the shards, and Python answers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import records, segments, shards

# Bytes that a batch of parsed records may always waste.
_SPARE_BYTES = 1 << 22

# Identifies opened Shards in a graph.
Token = int | tf.Tensor


@functools.cache
def _method(name: str):
    """A function that calls a method of the Shards with a token."""

    def call(token, *arguments):
        try:
            return getattr(shards.OPENED[int(token)], name)(*arguments)
        except ValueError as error:  # Marked for `faults.describe_error`.
            raise ValueError(records.marked(str(error))) from error

    return call


def _in_graph(name: str, token: Token, arguments: Sequence, results: Sequence) -> list:
    """The results of a method, in the graph, of these (dtype, shape)."""
    arguments = [tf.cast(token, tf.int64), *arguments]
    dtypes, shapes = zip(*results, strict=True)
    # Eagerly, TensorFlow returns a single result without its list.
    values = tf.nest.flatten(tf.numpy_function(_method(name), arguments, dtypes))
    for value, shape in zip(values, shapes, strict=True):
        value.set_shape(shape)
    return values


class Found(NamedTuple):
    """A batch of rows of a source before any frame is read.

    Attributes:
        is_video: [B] bool, False for a padding row.
        video_ids: [B] string.
        label_rows: [L] int64, the video of each label.
        labels: [L] int64, all in range.
        num_frames: [B] int32, at most max_frames; 0 for a padding row.
        rated: their segments; None if rows are videos.
        gather: (picks, partner) → the frames [B, K, D] of each pick (positions of the
            features, indices [B, K], valid [B]), 0 after the valid ones; with `partner`
            [B] those of the partner rows.
    """

    is_video: tf.Tensor
    video_ids: tf.Tensor
    label_rows: tf.Tensor
    labels: tf.Tensor
    num_frames: tf.Tensor
    rated: segments.Segments | None
    gather: Callable[..., list[tf.Tensor]]


def _fields(batch, of_segments: bool) -> list[tuple]:
    """dtype and shape of the fields after `is_video`, those of Segments last."""
    rated = [(tf.int32, batch), *_PAIRS, (tf.int32, [None])] if of_segments else []
    return [(tf.string, batch), *_PAIRS, (tf.int32, batch), *rated]


# Row and label of each label.
_PAIRS = [(tf.int64, [None])] * 2


def look_up(
    token: Token, data: settings.DataSettings, share: tf.Tensor, places: tf.Tensor
) -> Found:
    """Looks up a batch of located videos in the table, in the graph.

    Args:
        share: [2] float64, `fraction` and `labeled` of tables.Table.rows.
        places: [B] int64, positions in `kept_rows` of the share; -1 for padding.
    """
    results = [(tf.int64, places.shape), *_fields(places.shape, data.segment_labels)]
    rows, *found = _in_graph("look_up", token, [share, places], results)

    def gather(picks, partner=None):
        chosen = rows if partner is None else tf.gather(rows, partner)
        return _frames_in_graph(token, "gather", [chosen], picks, data)

    rated = segments.Segments(*found[4:]) if data.segment_labels else None
    return Found(rows >= 0, *found[:4], rated, gather)


def judge(
    token: Token,
    data: settings.DataSettings,
    files: tf.Tensor,
    numbers: tf.Tensor,
    serialized: tf.Tensor,
    *starts: tf.Tensor,
) -> Found:
    """Judges and locates a batch of serialized records, in the graph.

    Args:
        files, numbers: [B] int64, of each record; file -1 for padding.
        serialized: [B] string.
        starts: [B] int64 of the segments, if rows are segments.

    Raises (when the graph runs):
        tf.errors.OpError: for an invalid record; see `faults.describe_error`.
    """
    batch, width = files.shape, [*files.shape, len(data.names)]
    content, lengths, begins = _contents(serialized)
    located, rated = _fields(batch, False), _fields(batch, bool(starts))[4:]
    places = [(tf.int64, width), (tf.int64, width), (tf.uint8, [None])]
    results = [*located, *places, *rated]
    given = [files, numbers, content, lengths, begins, *starts]
    found = _in_graph("judge", token, given, results)
    first, stride, loose, *rated = found[4:]

    def gather(picks, partner=None):
        chosen = first, stride
        if partner is not None:
            chosen = [tf.gather(part, partner) for part in chosen]
        return _frames_in_graph(
            token, "gather_judged", [content, loose, *chosen], picks, data
        )

    rated = segments.Segments(*rated) if starts else None
    return Found(files >= 0, *found[:4], rated, gather)


def _contents(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The bytes of strings [B], [N] uint8: with length and begin of each, [B].

    As a string each would be copied by Python. As numbers they are copied once, to rows
    of one length, unless a few long ones would take much memory.
    """
    lengths = tf.cast(tf.strings.length(serialized), tf.int64)
    row = tf.maximum(tf.reduce_max(lengths), 1)
    size, total = tf.size(lengths, tf.int64), tf.reduce_sum(lengths)

    def in_rows():
        width = tf.cast(row, tf.int32)
        content = tf.io.decode_raw(serialized, tf.uint8, fixed_length=width)
        return tf.reshape(content, [-1]), row * tf.range(size)

    def joined():
        content = tf.io.decode_raw(tf.strings.reduce_join(serialized), tf.uint8)
        return content, tf.cumsum(lengths, exclusive=True)

    content, begins = tf.cond(size * row <= 2 * total + _SPARE_BYTES, in_rows, joined)
    return content, lengths, begins


def judge_one(token: Token, file, number, record) -> list[tf.Tensor]:
    """Id, and rated starts [S] int64, ascending, of one serialized record."""
    results = [(tf.string, []), (tf.int64, [None])]
    return _in_graph("judge_one", token, [file, number, record], results)


def serialized(
    token: Token, share: tf.Tensor, places: tf.Tensor, of_segments: bool
) -> list[tf.Tensor]:
    """File, number and content [B] of records, in the graph; -1, 0 and empty: padding.

    With `of_segments` the start of each segment, too. For the arguments see look_up.
    """
    dtypes = [tf.int64, tf.int64, tf.string, *([tf.int64] * of_segments)]
    results = [(dtype, places.shape) for dtype in dtypes]
    return _in_graph("serialized", token, [share, places], results)


def _frames_in_graph(
    token: Token, name: str, arguments, picks, data
) -> list[tf.Tensor]:
    """The frames of each pick, by a method of the Shards; see Found."""
    sizes = [[shards.frame_bytes(data)[c] for c in columns] for columns, *_ in picks]
    arguments = [*arguments, *(tensor for pick in picks for tensor in pick)]
    results = [
        (tf.uint8, [*indices.shape, sum(each)])
        for (_, indices, _), each in zip(picks, sizes, strict=True)
    ]
    found = _in_graph(name, token, arguments, results)
    if data.frame_features:
        return found
    return [
        tf.bitcast(tf.reshape(view, [*view.shape[:2], -1, 4]), tf.float32)
        for view in found
    ]
