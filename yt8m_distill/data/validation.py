"""Which records of some shards can be read, found once and before they are used.

`--bad_records=skip` leaves the others out. Every reader then goes by the same list of
places, so batches do not depend on the reader, on the process or on how often a run
was resumed. The pass reads each record, verifies its checksum and looks at the header
of every frame; it decodes none.

Where the framing of a shard is damaged (a length that fails its checksum, an end in
the middle of a record), nothing behind that point can be read. That is one bad place,
whose message names the byte and how many are lost. Against `--max_bad_fraction` it
counts as the number of videos that those bytes would hold, were they as long as the
good ones; of a compressed or remote shard the bytes are not known, and it counts as 1.
"""

import collections
import functools
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import frame_access, records, wire

STOP, SKIP = settings.BAD_RECORDS

_READ_BYTES = 1 << 20
_PIECE_BYTES = 1 << 22
# Kinds of complaints, by what the parser says of a record.
_REASONS = (
    ("rest of the shard unreadable", "is damaged.*(lost|nothing behind)"),
    ("wrong checksum", "is damaged"),
    ("not an example", "not an example"),
    ("broken feature", "is broken and cannot"),
    ("feature of another type", "is not of type"),
    ("no frames", "has no frames"),
    ("wrong width", "bytes wide|numbers, not"),
    ("not one byte string a frame", "byte strings, not 1"),
    ("no id", "there is no id"),
    ("label out of range", "label .* is not in"),
)


class BadRecord(NamedTuple):
    """A record that is left out, or the end of what can be read of a shard.

    Attributes:
        path: the shard.
        number: of the record, counted from 0.
        offset: where it begins; of a compressed shard, behind the unpacking.
        video_id: empty where there is none, or none that can be read.
        message: one line: file, number, id and rule.
        lost_bytes: from there to the end of the shard, if all of them are lost; 0 for
            one record alone, and where it is not known.
    """

    path: str
    number: int
    offset: int
    video_id: bytes
    message: str
    lost_bytes: int = 0

    @property
    def reason(self) -> str:
        """The kind of complaint, for counting."""
        for reason, pattern in _REASONS:
            if re.search(pattern, self.message):
                return reason
        return "other"


class GoodRecord(NamedTuple):
    """A record that the readers can read.

    Attributes:
        number: counted from 0, bad ones included.
        offset: of its content in the shard.
        length: its bytes.
        bucket: its hash, see `--train_fraction`.
        video: (id, labels, Frames of each feature at their place in the record), or
            None for what only the parser can read.
    """

    number: int
    offset: int
    length: int
    bucket: int
    video: tuple | None


class ShardCheck(NamedTuple):
    """The good and the bad records of a shard; the arrays are [N] int64.

    Attributes:
        numbers, offsets, lengths, buckets: see GoodRecord.
        bad: in the order of the shard.
    """

    numbers: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    buckets: np.ndarray
    bad: tuple[BadRecord, ...]


class Skipped(NamedTuple):
    """What is left out of some shards.

    Attributes:
        num_videos: that are read.
        bad: that are not.
        num_lost: videos that this makes; estimated by `count_lost`.
    """

    num_videos: int
    bad: tuple[BadRecord, ...]
    num_lost: int

    def to_dict(self) -> dict:
        """For a manifest: the count, and of each reason its count and first record."""
        counts, first = self._by_reason()
        reasons = {
            reason: {"count": count, "first": first[reason].message}
            for reason, count in counts.items()
        }
        return {"skipped": len(self.bad), "reasons": reasons}

    def lines(self) -> list[str]:
        """One line a reason, the most frequent first."""
        counts, first = self._by_reason()
        return [
            f"{count} skipped, {reason}; the first: {first[reason].message}"
            for reason, count in counts.items()
        ]

    def _by_reason(self):
        counts = collections.Counter(bad.reason for bad in self.bad)
        first: dict[str, BadRecord] = {}
        for bad in self.bad:
            first.setdefault(bad.reason, bad)
        return dict(counts.most_common()), first


def walk(path: str, data: settings.DataSettings) -> Iterator[GoodRecord | BadRecord]:
    """Every record of a shard in its order, the good and the bad.

    Raises:
        tf.errors.OpError: if the file cannot be opened.
    """
    compression = records.compression_of(path)
    whole = bool(compression) or not os.path.isfile(path)
    number = offset = 0
    while True:
        # In pieces, to go on behind a record whose checksum is wrong.
        piece, name = (0, path) if whole else _piece(path, offset)
        try:
            for serialized in tf.data.TFRecordDataset(name, compression, _READ_BYTES):
                content = serialized.numpy()
                yield _judged(path, number, offset, serialized, content, data)
                number += 1
                offset += len(content) + records.FRAMING
            if whole:
                if compression and os.path.isfile(path):
                    *_, message = records.packed_end(path)
                    if message:
                        yield BadRecord(path, number, offset, b"", message)
                elif not compression and offset < records.remote_size(path):
                    message = records.unread(path, number, offset, "it is truncated")
                    yield BadRecord(path, number, offset, b"", message)
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
        message, behind = records.damaged(path, number, offset, problem)
        is_end = behind is None
        lost_bytes = os.path.getsize(path) - offset if is_end and not whole else 0
        yield BadRecord(path, number, offset, b"", message, lost_bytes)
        if is_end:
            return
        number, offset = number + 1, behind


def _piece(path: str, offset: int) -> tuple[int, str]:
    """Some whole records of a local shard as a file in memory: its bytes and name."""
    name = f"ram://yt8m_distill/{uuid.uuid4().hex}"
    size, end = os.path.getsize(path), offset
    with open(path, "rb") as file:
        while end < size and end - offset < _PIECE_BYTES:
            file.seek(end)
            length = records.header_length(file.read(records.HEADER))
            if length is None or end + length + records.FRAMING > size:
                break
            end += length + records.FRAMING
        file.seek(offset)
        content = file.read(end - offset)
    with tf.io.gfile.GFile(name, "wb") as piece:
        piece.write(content)
    return len(content), name


def _judged(path, number, offset, serialized, content, data):
    layout = wire.locate(memoryview(content)) if data.frame_features else None
    video = layout and frame_access.read_video(layout, data)
    if not (video and _all_framed(content, video[2], data.sizes)):
        video = None
        message = records.find_fault(serialized, f"{path}, record {number}", data)
        if message:
            video_id = _video_id(content, data)
            return BadRecord(path, number, offset, video_id, message)
    bucket = tf.strings.to_hash_bucket_fast(serialized, records.HASH_BUCKETS)
    begin = offset + records.HEADER
    return GoodRecord(number, begin, len(content), int(bucket), video)


def _all_framed(content: bytes, features, sizes) -> bool:
    """Whether a frame's header stands before every frame, not the first alone."""
    for frames, size in zip(features, sizes, strict=True):
        if not frames.stride:  # Each was looked at when it was located.
            continue
        header = np.frombuffer(wire.frame_header(size), np.uint8)
        begin = frames.first - len(header)
        chunks = np.frombuffer(content, np.uint8, frames.count * frames.stride, begin)
        chunks = chunks.reshape(frames.count, frames.stride)
        if not (chunks[:, : len(header)] == header).all():
            return False
    return True


def _video_id(content: bytes, data: settings.DataSettings) -> bytes:
    """The id in a bad record, or nothing."""
    try:
        context = tf.train.SequenceExample.FromString(content).context
    except Exception:  # protobuf's DecodeError has no public home
        return b""
    return wire.context_id(context, data.video_id_key) or b""


def check_shard(path: str, data: settings.DataSettings) -> ShardCheck:
    """The good and the bad records of a shard; kept while the shard is the same."""
    found = tf.io.gfile.stat(path)
    return _check_shard(path, (found.length, found.mtime_nsec), data)


@functools.lru_cache(maxsize=1 << 14)
def _check_shard(path: str, identity: tuple, data) -> ShardCheck:
    del identity
    good, bad = [], []
    for record in walk(path, data):
        (bad if isinstance(record, BadRecord) else good).append(record)
    places = np.array([record[:4] for record in good], np.int64).reshape(-1, 4)
    return ShardCheck(*places.T, tuple(bad))


def count_lost(bad: Iterable[BadRecord], lengths: np.ndarray) -> int:
    """Videos that are lost with some bad records.

    Args:
        bad: of some shards.
        lengths: of the good records of these shards, in bytes: their mean tells how
            many videos are in the bytes behind damaged framing.
    """
    mean = float(lengths.mean()) + records.FRAMING if len(lengths) else math.inf
    return sum(max(1, round(record.lost_bytes / mean)) for record in bad)


def check_fraction(skipped: Skipped, max_bad_fraction: float) -> None:
    """Stops where too much would be left out.

    Raises:
        ValueError: one line with the count and the first bad record.
    """
    total = skipped.num_videos + skipped.num_lost
    if skipped.num_lost > max_bad_fraction * total:
        about = "" if skipped.num_lost == len(skipped.bad) else "About "
        raise ValueError(
            f"{about}{skipped.num_lost} of {total} records are bad, more than "
            f"--max_bad_fraction={max_bad_fraction:g} allows. The first: "
            f"{skipped.bad[0].message}"
        )
