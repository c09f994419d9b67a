"""Faults of records, and the validation of a record outside the graph."""

import collections
import contextlib
import enum
import functools
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import framing, records, segments

STOP, SKIP = settings.BAD_RECORDS

_PIECE_BYTES = 1 << 22


class Fault(enum.Enum):
    """Type of a fault; the value is its name in counts and messages."""

    REST_UNREADABLE = "rest of the shard unreadable"
    CHECKSUM = "wrong checksum"
    NOT_AN_EXAMPLE = "not an example"
    NO_ID = "no id"
    ID_TYPE = "id is not text"
    LABEL_TYPE = "labels are not integers"
    LABEL_VECTOR = "labels are a 0/1 vector, not indices"
    LABEL_RANGE = "label out of range"
    NO_FRAMES = "no frames"
    FRAME_TYPE = "frames are not byte strings"
    ONE_FEATURE = "not one byte string per frame"
    WIDTH = "wrong width"
    NOT_FINITE = "a number that is not finite"
    SEGMENTS = "invalid rated segments"


class Bad(NamedTuple):
    """An invalid record, or the point from which a shard is unreadable.

    Attributes:
        path: the shard.
        number: of the record, counted from 0.
        offset: of the record; in a compressed shard, after decompression.
        fault: its type.
        detail: description without file, number and id.
        video_id: empty if missing or unreadable.
        lost_bytes: bytes to the end of the shard, if all of them are lost; 0 for a
            single record, or if unknown.
    """

    path: str
    number: int
    offset: int
    fault: Fault
    detail: str
    video_id: bytes = b""
    lost_bytes: int = 0

    @property
    def message(self) -> str:
        """One line: file, number, id and rule."""
        where = f"{self.path}, record {self.number} (counted from 0)"
        if self.video_id:
            where += f", video {self.video_id.decode(errors='backslashreplace')}"
        return f"{where}: {self.detail}"


class Found(NamedTuple):
    """The result of `judge` for an invalid record.

    Attributes:
        fault, detail, video_id: see Bad.
    """

    fault: Fault
    detail: str
    video_id: bytes = b""


def _values(feature: tf.train.Feature):
    """The values of a feature of any type; empty if it is unset."""
    kind = feature.WhichOneof("kind")
    return getattr(feature, kind).value if kind else ()


def _judge_id(context, data: settings.DataSettings) -> tuple[bytes, Found | None]:
    key = data.video_id_key
    feature = context[key] if key in context else tf.train.Feature()
    values = _values(feature)
    if not values or values[0] == b"":
        return b"", Found(
            Fault.NO_ID, f"there is no id. Is --video_id_key={key} right?"
        )
    if feature.WhichOneof("kind") != "bytes_list":
        kind = feature.WhichOneof("kind").removesuffix("_list")
        return b"", Found(
            Fault.ID_TYPE,
            f"the id under --video_id_key={key} is {kind}, not bytes; yt8m-convert "
            "makes it text.",
        )
    if len(values) != 1:
        return b"", Found(
            Fault.ID_TYPE,
            f"there are {len(values)} ids under --video_id_key={key}.",
        )
    return values[0], None


def judge_labels(labels, kind: str, data: settings.DataSettings) -> Found | None:
    """The fault of the values of the feature under --labels_key, or None.

    Args:
        labels: the values.
        kind: `int64_list`, `float_list` or `bytes_list`.
        data: gives the number of classes.
    """
    key, classes = data.labels_key, data.num_classes
    # Integers are a 0/1 vector only if their number is C; floats are never indices.
    could_be = kind == "float_list" or (kind == "int64_list" and len(labels) == classes)
    if could_be and len(labels) > 2 and all(value in (0, 1) for value in labels):
        return Found(
            Fault.LABEL_VECTOR,
            f"--labels_key={key} holds a vector of {len(labels)} zeros and ones, not "
            "the indices of the labels; yt8m-convert turns one into the other.",
        )
    if kind != "int64_list":
        return Found(
            Fault.LABEL_TYPE,
            f"--labels_key={key} holds {kind.removesuffix('_list')}, not int64; "
            "yt8m-convert turns whole floats into integers.",
        )
    for label in labels:
        if not 0 <= label < classes:
            return Found(
                Fault.LABEL_RANGE,
                f"label {label} is not in 0..{classes - 1}, the range of "
                "--num_classes.",
            )
    return None


def _judge_frames(lists, data, name: str, size: int) -> Found | None:
    """Checks a frame-level feature: one byte string of `size` bytes per frame."""
    steps = lists[name].feature if name in lists else ()
    if not steps:
        if data.missing_feature == "zeros" and any(
            other in lists for other in data.names
        ):
            return None
        return Found(
            Fault.NO_FRAMES,
            f"feature {name} has no frames. Is --feature_names right, and is this "
            "frame-level data?",
        )
    for step in steps:
        kind = step.WhichOneof("kind")
        if kind != "bytes_list":
            return Found(
                Fault.FRAME_TYPE,
                f"feature {name} holds {(kind or 'nothing').removesuffix('_list')}, "
                "not bytes; yt8m-convert quantizes frames.",
            )
        values = step.bytes_list.value
        if len(values) != 1:
            return Found(
                Fault.ONE_FEATURE,
                f"a frame of feature {name} is {len(values)} byte strings, not 1.",
            )
        if len(values[0]) != size:
            whole = len(values[0]) % size == 0 and len(steps) == 1
            return Found(
                Fault.ONE_FEATURE if whole and values[0] else Fault.WIDTH,
                f"a frame of feature {name} is {len(values[0])} bytes wide, not the "
                f"{size} of --feature_sizes.",
            )
    return None


def _judge_vector(context, name: str, size: int) -> Found | None:
    """Checks a video-level feature: `size` finite floats."""
    feature = context[name] if name in context else tf.train.Feature()
    kind = feature.WhichOneof("kind") or "float_list"
    if kind != "float_list":
        return Found(
            Fault.FRAME_TYPE,
            f"feature {name} holds {kind.removesuffix('_list')}, not floats.",
        )
    values = np.array(feature.float_list.value, np.float32)
    if len(values) != size:
        return Found(
            Fault.WIDTH,
            f"feature {name} has {len(values)} numbers, not the {size} of "
            "--feature_sizes. Is --feature_names right, and is this video-level data?",
        )
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        return Found(
            Fault.NOT_FINITE, f"number {where} of feature {name} is {values[where]}."
        )
    return None


def _judge_segments(example, data: settings.DataSettings) -> Found | None:
    """Checks the rated segments of a record with valid features."""
    ratings, detail = segments.read(example.context)
    frames = min(num_frames(example, data), data.max_frames)
    detail = detail or segments.problem(ratings, frames, data)
    return Found(Fault.SEGMENTS, detail) if detail else None


def num_frames(example, data: settings.DataSettings) -> int:
    """Number of frames of a valid record, that of its shortest feature."""
    lists = example.feature_lists.feature_list
    counts = [len(lists[name].feature) for name in data.names if name in lists]
    return min(filter(None, counts), default=0)


def judge_ranges(serialized: bytes, data: settings.DataSettings) -> str:
    """An error if a record was quantized over other ranges than --feature_ranges.

    Not a fault of the record, so only the first record is checked.
    """
    example = tf.train.SequenceExample.FromString(serialized)
    stored = [
        records.stored_range(example.context.feature, name) for name in data.names
    ]
    expected = [tuple(np.float32(pair).tolist()) for pair in data.ranges]
    if stored == expected:
        return ""
    text = ",".join(f"{low:g}:{high:g}" for low, high in stored)
    return (
        f"its features have the ranges {text}: use --feature_ranges={text}, not "
        f"{data.feature_ranges or 'the default -2:2'}."
    )


def judge(
    serialized: bytes,
    data: settings.DataSettings,
    example: tf.train.SequenceExample | None = None,
) -> Found | None:
    """Validates a record outside the graph; returns its fault or None.

    A record without a known fault is finally parsed by the graph's parser, which may
    reject encodings that other protobuf parsers accept.

    Args:
        serialized: the record.
        data: description of the records.
        example: the record, if it is parsed already.
    """
    nothing = Found(Fault.NOT_AN_EXAMPLE, "this is not an example.")
    try:
        example = example or tf.train.SequenceExample.FromString(serialized)
    except Exception:  # protobuf's DecodeError has no public home
        return nothing
    context, lists = example.context.feature, example.feature_lists.feature_list
    video_id, found = _judge_id(context, data)
    if found is None and data.labels_key in context:
        feature = context[data.labels_key]
        kind = feature.WhichOneof("kind")
        found = kind and judge_labels(_values(feature), kind, data)
    for name, size in zip(data.names, data.sizes, strict=True):
        if found:
            break
        if data.frame_features:
            found = _judge_frames(lists, data, name, size)
        else:
            found = _judge_vector(context, name, size)
    if found is None and data.segment_labels:
        found = _judge_segments(example, data)
    if found is None and not _graph_takes(serialized, data):
        found = nothing
    return found and found._replace(video_id=video_id)


def _graph_takes(serialized: bytes, data: settings.DataSettings) -> bool:
    try:
        _parser(data)(tf.constant([serialized]), tf.constant([""]))
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.DataLossError,
        UnicodeDecodeError,
    ):
        return False
    return True


@functools.lru_cache(maxsize=8)
def _parser(data: settings.DataSettings):
    """A traced function that raises for a record that the pipeline would reject."""
    text = tf.TensorSpec([1], tf.string)

    @tf.function(input_signature=[text, text], autograph=False)  # See build_dataset.
    def parse(serialized, origins):
        is_video = tf.constant([True])
        parsed = records.parse_batch(serialized, origins, data, is_video)
        records.required_ids(parsed, data, is_video)
        records.checked_labels(parsed, data)
        if data.segment_labels:
            records.checked_segments(parsed, data, tf.constant([0], tf.int64))

    return parse


class Good(NamedTuple):
    """A record with valid framing, before its validation.

    Attributes:
        number: counted from 0, with bad records.
        offset: of its content in the shard.
        content: its bytes.
    """

    number: int
    offset: int
    content: bytes


def walk(path: str) -> Iterator[Good | Bad]:
    """Every record of a shard in order; continues after a record with a bad checksum.

    Slow: it copies a local shard piece by piece. Raises tf.errors.OpError if the file
    cannot be opened.
    """
    compression = framing.compression_of(path)
    whole = bool(compression) or not os.path.isfile(path)
    number = offset = 0
    while True:
        piece, name = (0, path) if whole else _piece(path, offset)
        try:
            for serialized in tf.data.TFRecordDataset(name, compression, 1 << 20):
                content = serialized.numpy()
                yield Good(number, offset + framing.HEADER, content)
                number += 1
                offset += len(content) + framing.FRAMING
            if whole:
                detail = framing.early_end(path, compression, offset)
                if detail:
                    yield Bad(path, number, offset, Fault.REST_UNREADABLE, detail)
                return
            if offset == os.path.getsize(path):
                return
            problem, ended_early = None, not piece
        except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError):
            raise
        except tf.errors.OpError as error:
            problem, ended_early = error, True
        finally:
            if not whole:
                tf.io.gfile.remove(name)
        if not ended_early:
            continue
        detail, behind = framing.damaged(path, offset, problem)
        if behind is None:
            lost = 0 if whole else os.path.getsize(path) - offset
            yield Bad(
                path, number, offset, Fault.REST_UNREADABLE, detail, lost_bytes=lost
            )
            return
        yield Bad(path, number, offset, Fault.CHECKSUM, detail)
        number, offset = number + 1, behind


def _piece(path: str, offset: int) -> tuple[int, str]:
    """Copies some complete records of a local shard to a file in memory: size, name."""
    name = f"ram://yt8m_distill/{uuid.uuid4().hex}"
    size, end = os.path.getsize(path), offset
    with open(path, "rb") as file:
        while end < size and end - offset < _PIECE_BYTES:
            file.seek(end)
            length = framing.header_length(file.read(framing.HEADER))
            if length is None or end + length + framing.FRAMING > size:
                break
            end += length + framing.FRAMING
        file.seek(offset)
        content = file.read(end - offset)
    with tf.io.gfile.GFile(name, "wb") as piece:
        piece.write(content)
    return len(content), name


def count_lost(bad: Iterable[Bad], mean_bytes: float) -> int:
    """Estimates the number of videos lost with some bad records.

    Args:
        bad: of some shards.
        mean_bytes: mean size of a good record with its framing, for estimating the
            number of videos after damaged framing; 0 without good records.
    """
    mean = mean_bytes or math.inf
    return sum(max(1, round(record.lost_bytes / mean)) for record in bad)


class Skipped(NamedTuple):
    """The records of some shards that are skipped.

    Attributes:
        num_videos: number of videos that are read.
        bad: the skipped records.
        num_lost: number of lost videos, estimated by `count_lost`.
    """

    num_videos: int
    bad: tuple[Bad, ...]
    num_lost: int

    def to_dict(self) -> dict:
        """For a manifest: the count, and per reason the count and first record."""
        reasons = {
            reason: {"count": count, "first": first.message}
            for reason, count, first in self._by_reason()
        }
        return {"skipped": len(self.bad), "reasons": reasons}

    def lines(self) -> list[str]:
        """One line per reason, the most frequent first."""
        return [
            f"{count} skipped, {reason}; the first: {first.message}"
            for reason, count, first in self._by_reason()
        ]

    def _by_reason(self) -> list[tuple[str, int, Bad]]:
        counts = collections.Counter(bad.fault for bad in self.bad)
        first = {bad.fault: bad for bad in reversed(self.bad)}
        return [(f.value, n, first[f]) for f, n in counts.most_common()]

    def check_fraction(self, max_bad_fraction: float) -> None:
        """Raises ValueError, naming the first bad record, if too many are skipped."""
        total = self.num_videos + self.num_lost
        if self.num_lost > max_bad_fraction * total:
            about = "" if self.num_lost == len(self.bad) else "About "
            raise ValueError(
                f"{about}{self.num_lost} of {total} records are bad, more than "
                f"--max_bad_fraction={max_bad_fraction:g} allows. The first: "
                f"{self.bad[0].message}"
            )


def describe_error(error: Exception, paths: Iterable[str] = ()) -> str | None:
    """One line for the user about a TensorFlow error, or None.

    Args:
        error: the exception.
        paths: the shards that were read; a damaged one is searched for and named.
    """
    text = str(error)
    line = records.marked_line(text)
    if line:
        return line
    # parse_example includes the record in its message, which TensorFlow (seen in 2.15
    # and 2.21) then fails to decode as text.
    damaged = isinstance(error, tf.errors.DataLossError | UnicodeDecodeError)
    if not damaged and "Could not parse" not in text:
        return None
    for path in paths:
        for record in walk(path):
            if isinstance(record, Bad):
                return record.message
            try:
                tf.train.SequenceExample.FromString(record.content)
            except Exception:  # protobuf's DecodeError has no public home
                detail = "this is not an example."
                return Bad(path, record.number, 0, Fault.NOT_AN_EXAMPLE, detail).message
    return text.splitlines()[0]


@contextlib.contextmanager
def named(paths: Iterable[str], target: str = "") -> Iterator[None]:
    """Turns TensorFlow errors of reading shards into one line.

    Args:
        paths: the shards that are read.
        target: the file that is written, if any.

    Raises:
        ValueError: naming the damaged shard, otherwise the target.
    """
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        text = describe_error(error, paths) or f"{target}: {error}".removeprefix(": ")
        raise ValueError(" ".join(text.split())) from error
