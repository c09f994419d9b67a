"""TensorFlow's parser of native records, and the checks of what it reads.

In the graph for a server, which has no Python; outside the graph for the records whose
encoding `wire` does not know. All others are located and not parsed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import records

# The fault of a record that the parser rejects.
NOT_AN_EXAMPLE = (
    "this is not an example of the expected kind, or a feature is of another type."
)
# Messages about features, also of the judge, which adds the flags: a server has none.
NO_FRAMES = "feature {name} has no frames."
STRINGS = "a frame of feature {name} is {value} byte strings, not 1."
WIDTH = "a frame of feature {name} is {value} bytes wide, not {size}."
NUMBERS = "feature {name} has {value} numbers, not {size}."
_VALUE = "\0"  # Placeholder for a number that only the graph knows.


class Parsed(NamedTuple):
    """A batch of records before any frame is decoded.

    Attributes:
        video_ids: [B] string, empty if missing.
        labels: ragged [B, None] int64, unsorted, repeats possible.
        frames: for each feature, in the order of its flag, the byte strings of
            all frames: ragged [B, None] string. Video-level: [B, size] float32.
        num_frames: [B] int32, of the shortest feature; 1 for video-level records.
    """

    video_ids: tf.Tensor
    labels: tf.RaggedTensor
    frames: tuple
    num_frames: tf.Tensor


class Read(NamedTuple):
    """What TensorFlow's parser reads of a record, outside the graph.

    Attributes:
        video_id: empty if missing.
        labels: unsorted, repeats possible.
        frames: for each feature; the floats of a video-level record are one frame.
    """

    video_id: bytes
    labels: list[int]
    frames: tuple[list[bytes], ...]


def parse_request(
    serialized: tf.Tensor, data: settings.DataSettings
) -> tuple[Parsed, tf.Tensor]:
    """Parses the records of a request, in the graph, without raising.

    For a server: labels and ids are not checked. A request without faults is parsed
    once.

    Args:
        serialized: [B] string.

    Returns:
        The parsed records, without frames for one with a fault; and [B] string, the
        fault of each, empty for a record without one.
    """

    def without(rows):
        return _read(tf.where(rows, "", serialized), data)

    fields, all_parsed = _read_if_parsed(serialized, data)
    nothing = tf.zeros_like(serialized, tf.bool)
    refused = tf.cond(
        all_parsed, lambda: nothing, lambda: ~_can_parse(serialized, data)
    )
    fields = tf.cond(all_parsed, lambda: fields, lambda: without(refused))
    checks = _checks(fields[1], data)
    faults = tf.where(refused, NOT_AN_EXAMPLE, _first_faults(checks, serialized))
    bad = faults != ""
    fields = tf.cond(tf.reduce_any(bad), lambda: without(bad), lambda: fields)
    return _parsed(*fields, data, ~bad), faults


def read_by_parser(
    contents: Sequence[bytes], data: settings.DataSettings
) -> list[Read] | None:
    """What a server reads of records, outside the graph; None if it refuses one.

    Op by op: a function, called by the graph that called Python, could wait for the
    threads that wait for it.
    """
    serialized = tf.constant(contents)
    try:
        if data.frame_features:  # As `_sound`, whose loop takes as long again.
            for record in serialized:
                _read_by_protobuf(record)
        else:
            _sound(serialized, data)
        context, features = _read(serialized, data)
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.DataLossError,
        UnicodeDecodeError,  # The parser includes the record in its message.
    ):
        return None
    checks = _checks(features, data)
    if not all(check.holds.numpy().all() for check in checks):
        return None
    parsed = _parsed(context, features, data, tf.ones_like(serialized, tf.bool))
    if data.frame_features:
        frames = [feature.to_list() for feature in parsed.frames]
    else:
        frames = [
            [[vector.tobytes()] for vector in feature.numpy()]
            for feature in parsed.frames
        ]
    named = parsed.video_ids.numpy(), parsed.labels.to_list()
    return list(map(Read, *named, zip(*frames, strict=True)))


def _read_if_parsed(serialized, data) -> tuple[tuple, tf.Tensor]:
    """`_read` of the records, and whether the parser accepts all of them.

    A dataset can ignore errors, a graph alone cannot. Its single element is read by
    get_single_element: `reduce` and iterators prepare the dataset again in each call,
    which takes 10 to 100 times as much CPU time (measured with TF 2.21).
    """

    def read(request):
        return _read(_sound(request, data), data)

    # Without records the parser has nothing to refuse.
    requests = tf.data.Dataset.from_tensors(serialized)
    requests = requests.concatenate(tf.data.Dataset.from_tensors(serialized[:0]))
    found = requests.map(read).ignore_errors().take(1)
    fields = found.with_options(records.untuned()).get_single_element()
    video_ids = fields[0][data.video_id_key]
    return fields, tf.size(video_ids) == tf.size(serialized)


def _can_parse(serialized: tf.Tensor, data: settings.DataSettings) -> tf.Tensor:
    """[B] bool: whether the parser accepts each record, see _read_if_parsed."""

    def number_if_parsed(number, record):
        record = _sound(record[tf.newaxis], data)
        parsed = _read(record, data)
        # Uses the parsed values: tf.data removes unused operations.
        sizes = [tf.size(part) for part in tf.nest.flatten(parsed, True)]
        return number + 0 * tf.cast(tf.add_n(sizes), tf.int64)

    dataset = tf.data.Dataset.from_tensor_slices(serialized).enumerate()
    numbers = dataset.map(number_if_parsed).ignore_errors().batch(1 << 30)
    nothing = tf.data.Dataset.from_tensors(tf.zeros([0], tf.int64))
    numbers = numbers.concatenate(nothing).take(1).with_options(records.untuned())
    rows = tf.reshape(numbers.get_single_element(), [-1, 1])
    return (
        tf.scatter_nd(rows, tf.ones_like(rows[:, 0]), tf.shape(serialized, tf.int64))
        > 0
    )


def _sound(serialized: tf.Tensor, data: settings.DataSettings) -> tf.Tensor:
    """Passes on records that are valid protobuf messages; fails in the graph otherwise.

    TensorFlow's batch parser (seen in 2.15 and 2.21) trusts a length of 2**31 or more
    inside a record, and the process dies. So protobuf's own parser reads each first.

    Raises (when the graph runs):
        tf.errors.OpError: if a record is not a message.
    """
    if data.frame_features:
        # Three times as fast as decode_proto(sanitize=True), with the same verdicts.
        known = tf.map_fn(_read_by_protobuf, serialized, fn_output_signature=tf.int64)
    else:
        read = tf.io.decode_proto(
            serialized, "tensorflow.Example", ["features"], [tf.string], sanitize=True
        )
        known = read.sizes
    # The result must be used: tf.data removes unused operations.
    used = tf.debugging.Assert(tf.reduce_all(known >= 0), [known])
    with tf.control_dependencies([used]):
        return tf.identity(serialized)


def _read_by_protobuf(record: tf.Tensor) -> tf.Tensor:
    """0 for a SequenceExample, of which nothing is kept; fails for anything else."""
    (nothing,) = tf.raw_ops.ParseSingleSequenceExample(
        serialized=record,
        feature_list_dense_missing_assumed_empty=tf.constant([], tf.string),
        context_sparse_keys=[],
        # An output is needed. No feature has this name, which is not UTF-8.
        context_dense_keys=[b"\xff"],
        context_dense_defaults=[tf.constant(0, tf.int64)],
        context_dense_shapes=[[]],
        feature_list_sparse_keys=[],
        feature_list_dense_keys=[],
        debug_name="",
    ).context_dense_values
    return nothing


def _read(serialized, data) -> tuple[dict, dict]:
    """Context, and the features [B, frames, strings] or [B, numbers], unchecked."""
    kind = tf.string if data.frame_features else tf.float32
    features = {
        name: tf.io.RaggedFeature(kind, row_splits_dtype=tf.int64)
        for name in data.names
    }
    if data.frame_features:
        context, lists, _ = tf.io.parse_sequence_example(
            serialized,
            context_features=_context(data),
            sequence_features=features,
        )
        return context, lists
    found = tf.io.parse_example(serialized, {**_context(data), **features})
    return found, found


def _context(data: settings.DataSettings) -> dict:
    return {
        data.video_id_key: tf.io.FixedLenFeature([], tf.string, default_value=""),
        data.labels_key: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64),
    }


def _parsed(context, features, data, is_video) -> Parsed:
    """What `_read` found.

    Args:
        is_video: [B] bool, False for a record without frames.
    """
    named = context[data.video_id_key], context[data.labels_key]
    if not data.frame_features:
        vectors = tuple(
            features[name].to_tensor(shape=[None, size])
            for name, size in zip(data.names, data.sizes, strict=True)
        )
        return Parsed(*named, vectors, tf.cast(is_video, tf.int32))
    frames = tuple(
        tf.RaggedTensor.from_row_splits(
            features[name].flat_values,  # One string per frame.
            features[name].row_splits,
            validate=False,
        )
        for name in data.names
    )
    counts = [feature.row_lengths() for feature in frames]
    may_lack = _may_lack(counts, data)
    if may_lack is not False:  # A missing feature does not affect the number of frames.
        counts = [tf.where((c == 0) & may_lack, tf.int64.max, c) for c in counts]
    num_frames = tf.reduce_min(tf.stack(counts), axis=0)
    num_frames = tf.cast(tf.minimum(num_frames, data.max_frames), tf.int32)
    return Parsed(*named, frames, num_frames)


class _Check(NamedTuple):
    """A condition on N entries of B records.

    Attributes:
        holds: [N] bool.
        text: the message, with _VALUE where the invalid value is shown.
        values: [N], of which that is one; None if none is shown.
        splits: [B + 1] int64 row splits of the entries; None if each record has one.
    """

    holds: tf.Tensor
    text: str
    values: tf.Tensor | None = None
    splits: tf.Tensor | None = None

    def rows(self, entries: tf.Tensor) -> tf.Tensor:
        """The records of some entries."""
        return entries if self.splits is None else _rows(self.splits, entries)

    def messages(self, entries: tf.Tensor) -> tf.Tensor:
        """The messages for some entries."""
        if self.values is None:
            return tf.fill(tf.shape(entries), self.text)
        before, after = self.text.split(_VALUE)
        value = tf.strings.as_string(tf.gather(self.values, entries))
        return tf.strings.join([before, value, after])


def _rows(splits: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
    """[N] int64: the rows of some entries of a ragged tensor with these row splits.

    Its `value_rowids` takes five times as many operations, and preparing these takes
    most of the time in which a dataset starts.
    """
    splits, entries = tf.expand_dims(splits, 0), tf.expand_dims(entries, 0)
    found = tf.raw_ops.UpperBound(
        sorted_inputs=splits, values=entries, out_type=tf.int64
    )
    return tf.squeeze(found, 0) - 1


def _first_faults(checks: Sequence[_Check], serialized: tf.Tensor) -> tf.Tensor:
    """[B] string, the message of the first condition that each record breaks."""
    faults, size = tf.zeros_like(serialized), tf.size(serialized)
    for check in checks[::-1]:  # Of several faults, the first one stays.
        broken = tf.squeeze(tf.where(~check.holds), 1)
        first = tf.math.unsorted_segment_min(broken, check.rows(broken), size)
        rows = tf.where(first < tf.int64.max)  # [rows with this fault, 1]
        entries = tf.gather_nd(first, rows)
        faults = tf.tensor_scatter_nd_update(faults, rows, check.messages(entries))
    return faults


def _checks(features, data) -> list[_Check]:
    check = _frame_checks if data.frame_features else _vector_checks
    return check(features, data)


def _frame_checks(lists, data) -> list[_Check]:
    """The conditions on frames [B, frames, strings]: one byte string, of its width."""
    num_frames = [lists[name].row_lengths() for name in data.names]
    may_lack = _may_lack(num_frames, data)
    checks = []
    for name, size, count in zip(data.names, data.sizes, num_frames, strict=True):
        feature, counts = lists[name], lists[name].values.row_lengths()
        # The splits of all strings of a record, without its frames.
        splits = tf.gather(feature.values.row_splits, feature.row_splits)
        widths = tf.strings.length(feature.flat_values)
        where = {"name": name, "size": size, "value": _VALUE}
        checks += [
            _Check((count > 0) | may_lack, NO_FRAMES.format(**where)),
            _Check(counts == 1, STRINGS.format(**where), counts, feature.row_splits),
            _Check(widths == size, WIDTH.format(**where), widths, splits),
        ]
    return checks


def _vector_checks(features, data) -> list[_Check]:
    """The conditions on vectors [B, numbers]: their width, and finite numbers."""
    checks = []
    for name, size in zip(data.names, data.sizes, strict=True):
        widths, numbers = features[name].row_lengths(), features[name].flat_values
        text = NUMBERS.format(name=name, size=size, value=_VALUE)
        checks.append(_Check(widths == size, text, widths))
        text = f"a number of feature {name} is {_VALUE}."
        is_finite = tf.math.is_finite(numbers)
        checks.append(_Check(is_finite, text, numbers, features[name].row_splits))
    return checks


def _may_lack(counts: Sequence[tf.Tensor], data: settings.DataSettings):
    """[B] bool or False: whether a feature may be missing under --missing_feature.

    Args:
        counts: [B] of each feature, its number of frames.
    """
    if data.missing_feature != "zeros":
        return False
    return tf.reduce_any([count > 0 for count in counts], axis=0)
