"""Shards: record files that are opened once, with their videos and faults."""

import collections
import dataclasses
import functools
import itertools
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from yt8m_distill import file_patterns, settings
from yt8m_distill.data import faults, framing, index, judging, records, segments, tables

# Maximum number of mapped shards. The readers and the shuffle buffer of an epoch use
# about ten at a time.
MAX_OPEN = 32
# All shards are unmapped after this many bytes were touched: they are in the page cache
# anyway, but count as memory of the process while mapped.
_TOUCHED_BYTES = 1 << 30
# Size that Linux maps around a byte that is read.
_MAPPED_AROUND = 1 << 16
# At least the alignment that TensorFlow needs to take over memory without a copy.
_ALIGNMENT = 128
# Frames are copied twice, which is cheap while they stay in a core's cache.
_CACHED_BYTES = 1 << 20
# Number of first records among which a training set must have a label, and from which
# class frequencies are estimated.
_LOOKED_AT = 4096


class Files:
    """Memory-mapped local files, at most MAX_OPEN at a time.

    Args:
        identities: expected size and modification time of each.
    """

    def __init__(self, paths: Sequence[str], identities: Sequence[tuple[int, int]]):
        self.paths = list(paths)
        self.identities = list(identities)
        self._open: collections.OrderedDict[int, mmap.mmap] = collections.OrderedDict()
        self._touched = 0
        self._lock = threading.Lock()

    def check(self, number: int) -> None:
        """Raises ValueError if a file has changed since it was opened."""
        path = self.paths[number]
        try:
            found = index.identity(path)
        except (OSError, tf.errors.OpError) as error:
            raise ValueError(f"{path} is gone: {error}.") from error
        if found != self.identities[number]:
            raise ValueError(
                f"{path} has changed while it was read: it had "
                f"{self.identities[number][0]} bytes and has {found[0]}, or was "
                "written anew. Start again once it is complete."
            )

    def mapped(self, number: int, touched: int) -> mmap.mmap:
        """The bytes of a file.

        Args:
            touched: approximate number of bytes that will be read.

        Raises:
            ValueError: if it has changed. Reading beyond its end would end the process
                with a signal.
        """
        self.check(number)
        with self._lock:
            self._touched += touched
            if self._touched > _TOUCHED_BYTES:
                self._open.clear()
                self._touched = 0
            if number not in self._open:
                with open(self.paths[number], "rb") as file:
                    self._open[number] = mmap.mmap(
                        file.fileno(), 0, access=mmap.ACCESS_READ
                    )
            self._open.move_to_end(number)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return self._open[number]

    def frames(self, number: int, positions: np.ndarray, size: int) -> np.ndarray:
        """The frames that begin at the positions [R, K] of a file, uint8 [R, K, size].

        Raises:
            ValueError: if the file has changed.
        """
        span = int(positions.max() - positions.min()) + size if positions.size else 0
        data = self.mapped(number, min(positions.size * _MAPPED_AROUND, span))
        return _items(data, len(data), positions, size)


# Open shards by token (data/lookups.py). The graph holds only the token: TensorFlow
# (2.21) keeps functions of numpy_function until the process ends.
OPENED: "weakref.WeakValueDictionary[int, Shards]" = weakref.WeakValueDictionary()
_TOKENS = itertools.count()


class Shards:
    """Open shards, with their videos, their faults and how they are read.

    Args:
        identities: size and modification time of each.
        reading: whether to use an index, and how to handle invalid records.

    Attributes:
        table: of local shards that are read by an index; None if they are parsed.
        token: identifies them in the graph.

    Raises:
        ValueError: for a known invalid record under `stop`, too many of them under
            `skip` or one that cannot be skipped, or an index that --use_index=always
            needs and cannot be built.
    """

    def __init__(
        self,
        paths: Sequence[str],
        identities: Sequence[tuple[int, int]],
        data: settings.DataSettings,
        reading: settings.ReadingSettings,
    ):
        self.paths = list(paths)
        self.data = data
        self.reading = reading
        self.files = Files(self.paths, identities)
        self.table: tables.Table | None = None
        # Also of parsed shards, once it is needed.
        self._known: tables.Table | None = None
        self._rows: dict[tuple[float, float], np.ndarray] = {}
        self._first: dict[tuple, tuple[int, np.ndarray]] = {}
        self.token = next(_TOKENS)
        OPENED[self.token] = self
        why, never = self._why_parsed(), reading.use_index == "never"
        if why and reading.use_index == "always":
            raise ValueError(f"--use_index=always: {why}")
        if not why and not never:
            found = index.load_or_build(self.paths, data, reading.index_dir)
            self.table = self._know(found)
        elif reading.bad_records == faults.SKIP:
            known = self._look_at_all()
            if why:
                self._check_passable(why)
            else:  # By offsets: TensorFlow's reader stops at a wrong checksum.
                self.table = known
        else:
            for path in self.paths:
                framing.check_lengths(path)

    def _know(self, indices: Sequence[index.Index]) -> tables.Table:
        """The table of all videos; raises ValueError as the class."""
        self._known = tables.Table(self.paths, indices, self.data)
        if self.reading.bad_records == faults.SKIP:
            self.skipped().check_fraction(self.reading.max_bad_fraction)
        elif self._known.bad:
            raise ValueError(self._known.bad[0].message)
        return self._known

    def _look_at_all(self) -> tables.Table:
        """The table of all videos of parsed shards, whose index is not kept."""
        return self._know([index.build(path, self.data) for path in self.paths])

    def _why_parsed(self) -> str:
        """Why these shards cannot be read by an index; empty if they can."""
        for path, compression in zip(self.paths, self.compressions, strict=True):
            if not os.path.isfile(path):
                return f"{path} is not a local file."
            if compression:
                return f"{path} is compressed ({compression})."
        return ""

    def _check_passable(self, why: str) -> None:
        """Raises ValueError at a wrong checksum before a valid record."""
        kept = dict(zip(self.paths, self.kept, strict=True))
        for bad in self._known.bad:
            rest = kept[bad.path][bad.number :]
            if bad.fault is faults.Fault.CHECKSUM and rest.any():
                raise ValueError(
                    f"{bad.message} To skip it, all shards must be local and not "
                    f"compressed: {why}"
                )

    @functools.cached_property
    def kept(self) -> list[np.ndarray] | None:
        """Per shard, which of its records are read, up to the last one; None: all."""
        if self.reading.bad_records == faults.STOP:
            return None
        known = self._known
        return [
            np.bincount(known.numbers[begin:end][known.good[begin:end]]) > 0
            for begin, end in itertools.pairwise(known.starts)
        ]

    @functools.cached_property
    def _num_records(self) -> int:
        return sum(map(framing.count_records, self.paths))

    @functools.cached_property
    def compressions(self) -> list[str]:
        """How each shard is compressed, see framing.compression_of."""
        return [framing.compression_of(path) for path in self.paths]

    @functools.cached_property
    def videos(self) -> "Shards":
        """The same shards without --segment_labels: their rows are whole videos."""
        if not self.data.segment_labels:
            return self
        data = dataclasses.replace(self.data, segment_labels=False)
        return Shards(self.paths, self.files.identities, data, self.reading)

    def num_videos(self, fraction: float = 1.0, labeled: float = 1.0) -> int:
        """Videos that are read, of a share of them; or their rated segments.

        Args:
            fraction, labeled: see tables.Table.rows.

        Raises:
            ValueError: for a truncated shard.
        """
        if self._known is None:
            if min(fraction, labeled) >= 1 and not self.data.segment_labels:
                return self._num_records
            self._look_at_all()
        return len(self.kept_rows(fraction, labeled))

    @property
    def num_known_videos(self) -> int | None:
        """`num_videos()`; None if remote or compressed shards would be read for it."""
        is_unread = self._known is None and self._why_parsed()
        return None if is_unread else self.num_videos()

    @property
    def is_empty(self) -> bool:
        """Whether there is no video; where that is not known, one record is read."""
        number = self.num_known_videos
        if number is None:
            return next(self._parsed_videos(), None) is None
        return number == 0

    def skipped(self) -> faults.Skipped:
        """The records that `--bad_records=skip` skips; none of them under `stop`."""
        if self.reading.bad_records == faults.STOP:
            return faults.Skipped()
        lengths, bad = self._known.lengths, self._known.bad
        mean = lengths.mean() + framing.FRAMING if len(lengths) else math.inf
        lost = sum(max(1, round(record.lost_bytes / mean)) for record in bad)
        return faults.Skipped(self._known.num_videos, bad, lost)

    def fingerprint(self) -> list[list]:
        """Name, size and modification time of each shard, for a manifest."""
        pairs = zip(self.paths, self.files.identities, strict=True)
        return [[os.path.basename(path), *found] for path, found in pairs]

    def check_unchanged(self) -> None:
        """Raises ValueError, naming the shard, if one has changed since its opening."""
        for number in range(len(self.paths)):
            self.files.check(number)

    def check_labels(self, flag: str) -> None:
        """Raises ValueError if the first records have no labels or ratings."""
        if self.data.segment_labels:
            if not self.num_videos():
                raise ValueError(
                    f"--{flag}: --segment_labels, and no video of {self.paths[0]} "
                    f"has rated segments under {', '.join(segments.KINDS)}."
                )
            return
        count, counts = self._first_labels(1.0, 1.0)
        if count and not counts.any():
            raise ValueError(
                f"--{flag}: none of the first {count} records of {self.paths[0]} has a "
                f"label under --labels_key={self.data.labels_key}: there is nothing to "
                "learn."
            )

    def class_frequencies(
        self, fraction: float = 1.0, labeled: float = 1.0
    ) -> np.ndarray:
        """[C] in (0, 1): smoothed share of the first videos with each label.

        Equal for indexed and parsed shards.

        Args:
            fraction, labeled: see tables.Table.rows.
        """
        count, counts = self.videos._first_labels(fraction, labeled)
        return (counts + 0.5) / (count + 1)

    def _first_labels(self, *share: float) -> tuple[int, np.ndarray]:
        """Number of first records read, and the counts [C] of their labels."""
        if share not in self._first:
            self._first[share] = self._read_first_labels(share)
        return self._first[share]

    def _read_first_labels(self, share) -> tuple[int, np.ndarray]:
        if self._known is None and min(share) < 1:
            self._look_at_all()
        if self._known is not None:
            rows = self.kept_rows(*share)[:_LOOKED_AT]
            return len(rows), self._known.class_counts(rows)
        videos = itertools.islice(self._parsed_videos(), _LOOKED_AT)
        labels = [sorted(set(video.labels)) for video in videos]
        joined = np.array(list(itertools.chain(*labels)), np.int64)
        return len(labels), np.bincount(joined, minlength=self.data.num_classes)

    def _parsed_videos(self) -> Iterator[judging.Video]:
        """The videos, one by one; raises ValueError at an invalid record."""
        for path in self.paths:
            for video in judging.read(path, self.data):
                if isinstance(video, faults.Bad):
                    raise ValueError(video.message)
                yield video

    def kept_rows(self, fraction: float, labeled: float = 1.0) -> np.ndarray:
        """[M] int64: the rows of a share of the videos; cached."""
        share = fraction, labeled
        if share not in self._rows:
            self._rows[share] = self._known.rows(*share)
        return self._rows[share]

    def _rows_at(self, share, places: np.ndarray) -> np.ndarray:
        """[B] int64, the rows at positions in `kept_rows`; -1 for padding."""
        kept = self.kept_rows(*share.tolist())
        rows = np.full(len(places), -1, np.int64)
        rows[places >= 0] = kept[places[places >= 0]]
        return rows

    def look_up(self, share, places: np.ndarray) -> tuple:
        """See lookups.look_up."""
        rows = self._rows_at(share, places)
        rated = self.table.look_up_segments(rows) if self.data.segment_labels else ()
        return rows, *self.table.look_up(rows), *rated

    def serialized(self, share, places: np.ndarray) -> tuple:
        """See lookups.serialized."""
        rows, table = self._rows_at(share, places), self.table
        contents = np.full(len(rows), b"", object)
        shards = np.where(rows >= 0, table.files_of(rows), -1)
        numbers = np.where(rows >= 0, table.numbers[rows], 0).astype(np.int64)
        for at in np.flatnonzero(rows >= 0).tolist():
            begin, length = int(table.offsets[rows[at]]), int(table.lengths[rows[at]])
            data = self.files.mapped(int(shards[at]), length)
            contents[at] = data[begin : begin + length]
        if not self.data.segment_labels:
            return shards, numbers, contents
        starts, *_ = table.look_up_segments(rows)
        return shards, numbers, contents, starts.astype(np.int64)

    def judge(self, files, numbers, content, lengths, begins, *starts) -> tuple:
        """See lookups.judge."""
        rows, view = np.flatnonzero(files >= 0).tolist(), memoryview(content)
        batch = [
            self._record(files[row], numbers[row], view[begin : begin + length])
            for row, begin, length in zip(
                rows, begins[rows].tolist(), lengths[rows].tolist(), strict=True
            )
        ]
        count, width = len(files), len(self.data.names)
        ids, num_frames = np.full(count, b"", object), np.zeros(count, np.int32)
        first, stride = np.full((count, width), -1), np.zeros((count, width), np.int64)
        labels, ratings, loose, end = [], [], [], len(content)
        for row, video in zip(rows, judging.judge_batch(batch, self.data), strict=True):
            at = int(begins[row])
            ids[row] = video.video_id
            num_frames[row] = min(video.num_frames, self.data.max_frames)
            labels += [(row, label) for label in video.labels]
            ratings += [(row, rating) for rating in video.ratings]
            if video.loose:
                loose.append(video.loose)
                at, end = end, end + len(video.loose)
            for column, frames in enumerate(video.frames.values()):
                first[row, column] = at + frames.first if frames.count else -1
                stride[row, column] = frames.stride
        rows, labels = np.array(labels, np.int64).reshape(-1, 2).T
        loose = np.frombuffer(b"".join(loose), np.uint8)
        found = ids, rows, labels, num_frames, first, stride, loose
        if not starts:
            return found
        starts = starts[0].astype(np.int32)
        ratings = [
            (row, rating.label, rating.score)
            for row, rating in ratings
            if rating.start == starts[row]
        ]
        rows, labels, scores = np.array(ratings, np.int64).reshape(-1, 3).T
        return *found, starts, rows, labels, scores.astype(np.int32)

    def _record(self, file, number, content: bytes | memoryview) -> faults.Record:
        return faults.Record(content, self.paths[int(file)], int(number))

    def judge_one(self, file, number, content: bytes) -> tuple:
        """See lookups.judge_one."""
        batch = [self._record(file, number, content)]
        (video,) = judging.judge_batch(batch, self.data)
        starts = sorted({rating.start for rating in video.ratings})
        return video.video_id, np.array(starts, np.int64)

    def gather_judged(self, content, loose, first, stride, *picks) -> list[np.ndarray]:
        """The frames of several views of judged records, see `gather`."""
        content = np.concatenate([content, loose]) if loose.size else content
        sources = np.where(first.max(axis=1) >= 0, 0, -1)

        def frames(source, positions, size):
            return _items(content, len(content), positions, size)

        return self._views(frames, sources, first, stride, picks)

    def gather(self, rows, *picks) -> list[np.ndarray]:
        """The frames of several views of rows of the table.

        Args:
            rows: [B] int64 of the table, -1 for a padding row.
            picks: of each view the positions of the features, indices [B, K] int32,
                and number of valid ones [B] int32.

        Returns:
            For each [B, K, D] uint8, 0 after the valid ones.
        """
        table = self.table
        sources = np.where(rows >= 0, table.files_of(rows), -1)
        first, stride = table.first[rows], table.stride[rows]
        first = np.where(first < 0, -1, table.offsets[rows, np.newaxis] + first)
        return self._views(self.files.frames, sources, first, stride, picks)

    def _views(self, frames, sources, first, stride, picks) -> list[np.ndarray]:
        """The frames of each view, of which every three picks are one."""
        views = zip(*[iter(picks)] * 3, strict=True)
        return [self._gather(frames, sources, first, stride, *view) for view in views]

    def _gather(self, frames, sources, first, stride, features, indices, valid):
        """The frames of a view, [B, K, D] uint8.

        Args:
            frames: (source, positions [R, K], size) → [R, K, size].
            sources: [B], where the frames of each row are; -1 for a padding row.
            first, stride: [B, F] of the frames in their source; -1: missing.
            features, indices, valid: see `gather`.
        """
        sizes = [frame_bytes(self.data)[feature] for feature in features]
        view = _aligned((*indices.shape, sum(sizes)))
        column = 0
        for feature, size in zip(features, sizes, strict=True):
            columns = slice(column, column + size)
            for part in _groups(sources, indices.shape[1] * size):
                if sources[part][0] < 0:
                    continue
                begins = first[part, feature, np.newaxis]
                steps = indices[part].astype(np.int64)
                positions = begins + steps * stride[part, feature, np.newaxis]
                here = begins[:, 0] >= 0
                if here.all():
                    found = frames(sources[part][0], positions, size)
                else:
                    byte = records.zero_byte(*self.data.ranges[feature])
                    found = np.full((*positions.shape, size), byte, np.uint8)
                    found[here] = frames(sources[part][0], positions[here], size)
                view[part, :, columns] = found
            column += size
        for row in np.flatnonzero(valid < indices.shape[1]):
            view[row, valid[row] :] = 0
        return view


def frame_bytes(data: settings.DataSettings) -> Sequence[int]:
    """Bytes of a frame of each feature; the floats of a video-level record are one."""
    return data.sizes if data.frame_features else [4 * size for size in data.sizes]


def _items(data, length: int, positions: np.ndarray, size: int) -> np.ndarray:
    """The `size` bytes from positions [R, K] of a buffer: uint8 [R, K, size]."""
    # Item p of this array is the `size` bytes from offset p, without a copy.
    items = np.ndarray((max(length - size + 1, 0),), f"V{size}", data, 0, (1,))
    return items[positions].view(np.uint8).reshape(*positions.shape, size)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialized array that TensorFlow can take over without a copy."""
    size = int(np.prod(shape))
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].reshape(shape)


def _groups(shards: np.ndarray, video_bytes: int):
    """Groups rows by shard, in chunks whose frames fit into the cache."""
    limit = max(_CACHED_BYTES // max(video_bytes, 1), 1)
    for shard in np.unique(shards):
        rows = np.flatnonzero(shards == shard)
        whole = len(rows) == rows[-1] - rows[0] + 1
        for start in range(0, len(rows), limit):
            part = rows[start : start + limit]
            # A slice if possible, which avoids one copy of the frames.
            yield slice(part[0], part[-1] + 1) if whole else part


def open_shards(
    patterns: str | Sequence[str],
    data: settings.DataSettings,
    reading: settings.ReadingSettings,
    flag: str = "data_pattern",
) -> Shards:
    """Opens shards; unchanged shards that are open already are reused.

    Args:
        patterns: comma separated globs, or file names.
        flag: the flag of the shards, for messages.

    Raises:
        ValueError: as file_patterns.expand and Shards.
    """
    paths = patterns
    if isinstance(patterns, str):
        paths = file_patterns.expand(patterns, flag)
    try:
        identities = tuple(index.identity(path) for path in paths)
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(f"--{flag}: a shard cannot be opened: {error}.") from error
    return _open(tuple(paths), identities, data, reading)


_open = functools.lru_cache(maxsize=4)(Shards)
