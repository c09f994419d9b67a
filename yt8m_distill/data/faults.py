"""Records of shards outside the graph, their faults, and how these are reported."""

import collections
import contextlib
import dataclasses
import enum
import functools
import inspect
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.data import framing, records, wire

STOP, SKIP = settings.BAD_RECORDS
NOT_AN_EXAMPLE = "this is not an example (neither a SequenceExample nor an Example)."

_PIECE_BYTES = 1 << 22
# Without the warning that recommends a tf.data.TFRecordDataset: to make one for each of
# thousands of small shards costs 15 ms of CPU (in 2.21), far more than to read them.
_records_of = inspect.unwrap(tf.compat.v1.io.tf_record_iterator)


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
        where = framing.place(self.path, self.number)
        if self.video_id:
            where += f", video {structures.readable_id(self.video_id)}"
        return f"{where}: {self.detail}"

    @property
    def is_damage(self) -> bool:
        """Whether the shard is damaged, not the content of a record invalid."""
        return self.fault in (Fault.CHECKSUM, Fault.REST_UNREADABLE)


class Invalid(ValueError):
    """What is wrong with the content of a record; the message does not say where.

    Attributes:
        fault, video_id: see Bad.
    """

    def __init__(self, fault: Fault, detail: str, video_id: bytes = b""):
        super().__init__(detail)
        self.fault = fault
        self.video_id = video_id


@dataclasses.dataclass(eq=False)
class Record:
    """A record of a shard. What it holds is parsed when it is first used.

    Attributes:
        content: its bytes, or a view of them.
        path: the shard.
        number: counted from 0, with bad records.
        offset: of its content in the shard; after decompression, if that is compressed.
    """

    content: bytes | memoryview
    path: str = ""
    number: int = 0
    offset: int = framing.HEADER

    @functools.cached_property
    def layout(self) -> wire.Layout | None:
        """Context and offsets of the frames; None for an unusual encoding."""
        return wire.locate(memoryview(self.content))

    @functools.cached_property
    def example(self) -> tf.train.SequenceExample:
        """The parsed record; that of an Example has only a context.

        Raises:
            Invalid: if it is neither.
        """
        try:
            return tf.train.SequenceExample.FromString(bytes(self.content))
        except Exception as error:  # protobuf's DecodeError has no public home
            raise Invalid(Fault.NOT_AN_EXAMPLE, NOT_AN_EXAMPLE) from error

    @property
    def is_example(self) -> bool:
        """Whether it can be parsed."""
        try:
            return self.example is not None
        except Invalid:
            return False

    @property
    def context(self) -> tf.train.Features:
        """Its context features; raises Invalid as `example`."""
        return self.layout.context if self.layout else self.example.context

    @property
    def where(self) -> str:
        """Its shard and number, for messages."""
        return framing.place(self.path, self.number)

    def bad(self, error: Invalid) -> Bad:
        """The description of this record, which is invalid."""
        at = self.offset - framing.HEADER
        video_id = error.video_id
        return Bad(self.path, self.number, at, error.fault, str(error), video_id)


def walk(path: str) -> Iterator[Record | Bad]:
    """Every record of a shard in order; continues after a record with a bad checksum.

    Raises tf.errors.OpError or OSError if the file cannot be opened.
    """
    if os.path.isfile(path) and not framing.compression_of(path):
        yield from _walk_local(path)
    else:
        yield from _walk_packed(path)


def _walk_packed(path: str) -> Iterator[Record | Bad]:
    """The records of a compressed or remote shard, up to the first damage."""
    compression, number, offset = framing.compression_of(path), 0, 0
    try:
        for content in _records_of(path, tf.io.TFRecordOptions(compression)):
            yield Record(content, path, number, offset + framing.HEADER)
            number, offset = number + 1, offset + len(content) + framing.FRAMING
        detail = framing.early_end(path, compression, offset)
    except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError):
        raise
    except tf.errors.OpError as error:
        # Without the names of operations around the reason.
        what = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", error.message).strip()
        what = what.replace("' failed with", ":")  # TensorFlow opens no quote.
        detail = framing.unread(offset, what)
    if detail:
        yield Bad(path, number, offset, Fault.REST_UNREADABLE, detail)


def _walk_local(path: str) -> Iterator[Record | Bad]:
    """The records of a local shard: at once, and piece by piece after a damage."""
    number, offset, size = 0, 0, os.path.getsize(path)
    whole = not framing.follow_lengths(path)[1]
    while offset < size:
        begin, (end, name) = offset, (size, path) if whole else _piece(path, offset)
        try:
            for content in _records_of(name):
                yield Record(content, path, number, offset + framing.HEADER)
                number, offset = number + 1, offset + len(content) + framing.FRAMING
        except tf.errors.OpError:
            pass  # The damage is at `offset`.
        finally:
            if name != path:
                tf.io.gfile.remove(name)
        whole = False
        if begin < offset == end:
            continue
        detail, behind = framing.damaged(path, offset)
        if behind is None:
            rest, lost = Fault.REST_UNREADABLE, size - offset
            yield Bad(path, number, offset, rest, detail, lost_bytes=lost)
            return
        yield Bad(path, number, offset, Fault.CHECKSUM, detail)
        number, offset = number + 1, behind


def sound(path: str) -> Iterator[Record]:
    """Every record of a shard in order.

    Raises:
        ValueError: at a damage.
        tf.errors.OpError: if the file cannot be opened.
    """
    for record in walk(path):
        if isinstance(record, Bad):
            raise ValueError(record.message)
        yield record


def _piece(path: str, offset: int) -> tuple[int, str]:
    """Copies complete records of a local shard to a file in memory: end and name."""
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
    return end, name


class Skipped(NamedTuple):
    """The records of some shards that are skipped.

    Attributes:
        num_videos: number of videos that are read; 0 if nothing can be skipped.
        bad: the skipped records.
        num_lost: number of lost videos, after damaged framing estimated by its bytes.
    """

    num_videos: int = 0
    bad: tuple[Bad, ...] = ()
    num_lost: int = 0

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
        paths: the shards that were read; a damaged one is searched for and named.
    """
    text = str(error)
    line = records.marked_line(text)
    if line or not isinstance(error, tf.errors.DataLossError):
        return line
    bad = (record for path in paths for record in walk(path) if isinstance(record, Bad))
    first = next(bad, None)
    return first.message if first else text.splitlines()[0]


@contextlib.contextmanager
def named(paths: Iterable[str], target: str = "") -> Iterator[None]:
    """Turns TensorFlow errors of reading shards into one line.

    Args:
        target: the file that is written, if any.

    Raises:
        ValueError: naming the damaged shard, otherwise the target.
    """
    try:
        yield
    except tf.errors.OpError as error:
        text = describe_error(error, paths) or f"{target}: {error}".removeprefix(": ")
        raise ValueError(" ".join(text.split())) from error
