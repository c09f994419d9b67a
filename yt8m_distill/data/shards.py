"""Shards: record files that are opened once, with their videos and faults."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import mmap
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import file_patterns, settings
from yt8m_distill.data import faults, framing, index, judging, records, segments

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
# Number of ids that are hashed in one call.
_HASHED_AT_ONCE = 1 << 16
# Bytes that a batch of parsed records may always waste.
_SPARE_BYTES = 1 << 22


# Identifies opened Shards in a graph.
Token = int | tf.Tensor


class Files:
    """Memory-mapped local files, at most MAX_OPEN at a time.

    Args:
        paths: the files.
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

    def mapped(self, number: int, touched: int = 0) -> mmap.mmap:
        """The bytes of a file.

        Args:
            number: of the file.
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

    def close(self) -> None:
        """Unmaps all files."""
        with self._lock:
            self._open.clear()


class Located(NamedTuple):
    """A batch of videos before any frame is read.

    Attributes:
        video_ids: [B] string.
        label_rows: [L] int64, the video of each label.
        labels: [L] int64, all in range.
        num_frames: [B] int32, at most max_frames; 0 for a padding row.
    """

    video_ids: tf.Tensor
    label_rows: tf.Tensor
    labels: tf.Tensor
    num_frames: tf.Tensor


class Table:
    """The concatenated indices of some shards: compact arrays with a row per video.

    A video with two features takes about 90 bytes plus its id. With --segment_labels
    rows are the rated segments of the videos instead, in order of their starts.

    Args:
        paths: the shards.
        indices: the index of each.
        data: description of the records.

    Attributes:
        starts: [shards + 1] int64, row splits of the shards.
        located: whether all frames have known offsets.
        bad: the invalid records.
        num_videos: number of valid records.
        segment_starts: [N] int32, first frame of each row's segment; None if rows are
            videos.
    """

    def __init__(self, paths, indices: Sequence[index.Index], data):
        self.data = data
        counts = [len(i.numbers) for i in indices]
        self.starts = np.cumsum([0, *counts], dtype=np.int64)
        self.located = all(bool(i.located) for i in indices)
        self.numbers = np.concatenate([i.numbers for i in indices])
        self.offsets = np.concatenate([i.offsets for i in indices])
        self.lengths = np.concatenate([i.lengths for i in indices])
        self.buckets = np.concatenate([i.buckets for i in indices])
        self._ids = b"".join(i.id_bytes.tobytes() for i in indices)
        splits = _joined_ends([i.id_ends for i in indices])
        self._id_begins, self._id_ends = splits[:-1], splits[1:]
        self._labels = np.concatenate([i.labels for i in indices])
        splits = _joined_ends([i.label_ends for i in indices])
        self._label_begins, self._label_ends = splits[:-1], splits[1:]
        if self.located:
            self.first = np.concatenate([i.first for i in indices])
            self.stride = np.concatenate([i.stride for i in indices])
            counts = [np.where(i.first >= 0, i.count, 2**31 - 1) for i in indices]
            frames = np.concatenate([c.min(axis=1) for c in counts])
            self.num_frames = np.minimum(frames, data.max_frames).astype(np.int32)
        self.segment_starts = None
        out_of_range = self._bad_labels(paths)
        if data.segment_labels:
            ratings = np.concatenate([i.ratings for i in indices])
            splits = _joined_ends([i.rating_ends for i in indices])
            out_of_range = (
                self._bad_ratings(paths, indices, ratings, splits) | out_of_range
            )
        self.good = np.ones(len(self.numbers), bool)
        self.good[list(out_of_range)] = False
        self.num_videos = int(self.good.sum())
        bad = [b for p, i in zip(paths, indices, strict=True) for b in i.bad_records(p)]
        order = {path: number for number, path in enumerate(paths)}
        self.bad = tuple(
            sorted(
                [*bad, *out_of_range.values()], key=lambda b: (order[b.path], b.number)
            )
        )
        if data.segment_labels:
            self._take_segments(ratings, splits)

    def files_of(self, rows: np.ndarray) -> np.ndarray:
        """The shard of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def rows(self, fraction: float = 1.0, labeled: float = 1.0) -> np.ndarray:
        """[M] int64, ascending: the rows of a share of the videos.

        Args:
            fraction: share of the videos, by the content of their records.
            labeled: share of the videos, by their ids; see records.keeps_labels.
        """
        kept = self.good
        if fraction < 1:
            kept = kept & (self.buckets < int(fraction * records.HASH_BUCKETS))
        rows = np.flatnonzero(kept)
        if labeled < 1 and len(rows):
            parts = np.array_split(rows, -(-len(rows) // _HASHED_AT_ONCE))
            ids = ([self._id(row) for row in part.tolist()] for part in parts)
            keeps = [records.keeps_labels(part, labeled).numpy() for part in ids]
            rows = rows[np.concatenate(keeps)]
        return rows

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """[C] int64: number of these rows with each label."""
        classes = self.data.num_classes
        videos, chosen = _parts(self._label_begins[rows], self._label_ends[rows])
        pairs = np.unique(videos * classes + self._labels[chosen])
        return np.bincount(pairs % classes, minlength=classes)

    def _id(self, row: int) -> bytes:
        return self._ids[self._id_begins[row] : self._id_ends[row]]

    def _bad_labels(self, paths) -> dict[int, faults.Bad]:
        """The rows whose labels are invalid for --num_classes, ascending."""
        labels, classes, bad = self._labels, self.data.num_classes, {}
        begins, ends = self._label_begins, self._label_ends
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        rows = set(np.searchsorted(ends, wrong, side="right").tolist())
        if classes > 2:
            rows |= set(np.flatnonzero(ends - begins == classes).tolist())
        for row in sorted(rows):
            found = labels[begins[row] : ends[row]].tolist()
            try:
                judging.judge_labels(found, "int64_list", self.data)
            except faults.Invalid as error:
                bad[row] = self._bad(paths, row, error)
        return bad

    def _bad(self, paths, row: int, error: faults.Invalid) -> faults.Bad:
        """The description of an invalid record with a row in the table."""
        path = paths[int(self.files_of(np.array([row]))[0])]
        error.video_id = self._id(row)
        where = int(self.numbers[row]), int(self.offsets[row])
        return faults.Record(b"", path, *where).bad(error)

    def _bad_ratings(self, paths, indices, ratings, splits) -> dict[int, faults.Bad]:
        """The rows whose rated segments are invalid."""
        details = {
            int(first) + row: detail
            for first, i in zip(self.starts, indices, strict=False)
            for row, detail in json.loads(str(i.bad_ratings))
        }
        starts, labels = ratings[:, 0], ratings[:, 1]
        data = self.data
        wrong = np.flatnonzero(
            (starts >= data.max_frames) | (labels >= data.num_classes)
        )
        for row in np.searchsorted(splits[1:], wrong, side="right").tolist():
            rated = ratings[splits[row] : splits[row + 1]].tolist()
            frames = int(self.num_frames[row]) if self.located else data.max_frames
            details[row] = segments.problem(rated, frames, data)
        return {
            row: self._bad(paths, row, faults.Invalid(faults.Fault.SEGMENTS, detail))
            for row, detail in details.items()
        }

    def _take_segments(self, ratings: np.ndarray, splits: np.ndarray) -> None:
        """Replaces the rows of videos by rows of their rated segments."""
        videos = np.repeat(np.arange(len(self.numbers)), np.diff(splits))
        order = np.lexsort((ratings[:, 0], videos))
        self._ratings, videos = ratings[order], videos[order]
        places = np.stack([videos, self._ratings[:, 0]], axis=1)
        is_first = np.ones(len(videos), bool)
        is_first[1:] = (places[1:] != places[:-1]).any(axis=1)
        self._rating_begins = np.flatnonzero(is_first)
        self._rating_ends = np.append(self._rating_begins[1:], len(videos))
        self.segment_starts = self._ratings[is_first, 0]
        videos = videos[is_first]
        names = ["numbers", "offsets", "lengths", "buckets", "good"]
        names += ["_id_begins", "_id_ends", "_label_begins", "_label_ends"]
        names += ["first", "stride", "num_frames"] if self.located else []
        for name in names:
            setattr(self, name, getattr(self, name)[videos])
        self.starts = np.searchsorted(videos, self.starts)

    def look_up_segments(self, rows: np.ndarray) -> tuple:
        """The fields of segments.Segments; -1 is a padding row."""
        found = np.flatnonzero(rows >= 0)
        safe = rows[found]
        starts = np.zeros(len(rows), np.int32)
        starts[found] = self.segment_starts[safe]
        places, chosen = _parts(self._rating_begins[safe], self._rating_ends[safe])
        ratings = self._ratings[chosen]
        labels = ratings[:, 1].astype(np.int64)
        return starts, found[places], labels, ratings[:, 2].copy()

    def look_up(self, rows: np.ndarray) -> tuple:
        """The fields of Located; -1 is a padding row."""
        videos = np.flatnonzero(rows >= 0)
        safe = rows[videos]
        ids = np.full(len(rows), b"", object)
        ids[videos] = [self._id(row) for row in safe.tolist()]
        places, chosen = _parts(self._label_begins[safe], self._label_ends[safe])
        labels = self._labels[chosen].astype(np.int64)
        num_frames = np.zeros(len(rows), np.int32)
        num_frames[videos] = self.num_frames[safe]
        return ids, videos[places], labels, num_frames


def _parts(begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates the ranges [begin, end) of N rows: row of each entry, and entry."""
    lengths = ends - begins
    rows = np.repeat(np.arange(len(begins)), lengths)
    within = np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]
    return rows, begins[rows] + within


def _joined_ends(ends: Sequence[np.ndarray]) -> np.ndarray:
    """[N + 1] int64 row splits from the concatenated ends of several parts."""
    sizes = [part[-1] if len(part) else 0 for part in ends]
    begins = np.cumsum([0, *sizes[:-1]])
    moved = [part + begin for part, begin in zip(ends, begins, strict=True)]
    return np.concatenate([[0], *moved]).astype(np.int64)


# Shards by token. The graph holds only the token: TensorFlow (2.21) keeps functions of
# numpy_function until the process ends.
_SHARDS: "weakref.WeakValueDictionary[int, Shards]" = weakref.WeakValueDictionary()
_TOKENS = itertools.count()


class Shards:
    """Open shards, with their videos, their faults and how they are read.

    Args:
        paths: the files.
        identities: size and modification time of each.
        data: description of the records.
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
        self.table: Table | None = None
        self._known: Table | None = None  # Also of parsed shards, once it is needed.
        self._rows: dict[tuple[float, float], np.ndarray] = {}
        self._first: dict[float, tuple[int, np.ndarray]] = {}
        self.token = next(_TOKENS)
        _SHARDS[self.token] = self
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

    def _know(self, indices: Sequence[index.Index]) -> Table:
        """The table of all videos; raises ValueError as the class."""
        self._known = Table(self.paths, indices, self.data)
        if self.reading.bad_records == faults.SKIP:
            self.skipped().check_fraction(self.reading.max_bad_fraction)
        elif self._known.bad:
            raise ValueError(self._known.bad[0].message)
        return self._known

    def _look_at_all(self) -> Table:
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
        return framing.count_records(self.paths)

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
            fraction, labeled: see Table.rows.

        Raises:
            ValueError: for a truncated shard.
        """
        if self._known is None:
            if min(fraction, labeled) >= 1 and not self.data.segment_labels:
                return self._num_records
            self._look_at_all()
        return len(self.kept_rows(fraction, labeled))

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
        """Raises ValueError if the first records have no labels or ratings.

        Args:
            flag: the flag of the shards, for the message.
        """
        if self.data.segment_labels:
            if not self.num_videos():
                raise ValueError(
                    f"--{flag}: --segment_labels, and no video of {self.paths[0]} "
                    f"has rated segments under {', '.join(segments.KINDS)}."
                )
            return
        count, counts = self._first_labels(1.0)
        if count and not counts.any():
            raise ValueError(
                f"--{flag}: none of the first {count} records of {self.paths[0]} has a "
                f"label under --labels_key={self.data.labels_key}: there is nothing to "
                "learn."
            )

    def class_frequencies(self, labeled: float = 1.0) -> np.ndarray:
        """[C] in (0, 1): smoothed share of the first videos with each label.

        Equal for indexed and parsed shards.

        Args:
            labeled: share of the videos that keep their labels, see
                records.keeps_labels.
        """
        count, counts = self.videos._first_labels(labeled)
        return (counts + 0.5) / (count + 1)

    def _first_labels(self, labeled: float) -> tuple[int, np.ndarray]:
        """Number of first records read, and the counts [C] of their labels."""
        if labeled not in self._first:
            self._first[labeled] = self._read_first_labels(labeled)
        return self._first[labeled]

    def _read_first_labels(self, labeled: float) -> tuple[int, np.ndarray]:
        if self._known is not None:
            rows = self.kept_rows(1.0, labeled)[:_LOOKED_AT]
            return len(rows), self._known.class_counts(rows)
        videos = itertools.islice(self._parsed_videos(labeled), _LOOKED_AT)
        labels = [sorted(set(video.labels)) for video in videos]
        joined = np.array(list(itertools.chain(*labels)), np.int64)
        return len(labels), np.bincount(joined, minlength=self.data.num_classes)

    def _parsed_videos(self, labeled: float) -> Iterator[judging.Video]:
        """The videos of a share, one by one; raises ValueError at an invalid record."""
        for path in self.paths:
            for video in judging.read(path, self.data):
                if isinstance(video, faults.Bad):
                    raise ValueError(video.message)
                if labeled >= 1 or records.keeps_labels(video.video_id, labeled):
                    yield video

    def close(self) -> None:
        """Unmaps all files; they are mapped again if more is read."""
        self.files.close()

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
        """See the function of this name."""
        rows = self._rows_at(share, places)
        rated = self.table.look_up_segments(rows) if self.data.segment_labels else ()
        return rows, *self.table.look_up(rows), *rated

    def serialized(self, share, places: np.ndarray) -> tuple:
        """See the function of this name."""
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
        """See the function of this name."""
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
        found = files >= 0, ids, rows, labels, num_frames, first, stride, loose
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
        """See the function of this name."""
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

        place = functools.partial(self._gather, frames, sources, first, stride)
        return [place(*pick) for pick in _in_threes(picks)]

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
        place = functools.partial(
            self._gather, self.files.frames, sources, first, stride
        )
        return [place(*pick) for pick in _in_threes(picks)]

    def _gather(self, frames, sources, first, stride, features, indices, valid):
        """The frames of a view, [B, K, D] uint8.

        Args:
            frames: (source, positions [R, K], size) → [R, K, size].
            sources: [B], where the frames of each row are; -1 for a padding row.
            first, stride: [B, F] of the frames in their source; -1: missing.
            features, indices, valid: see `gather`.
        """
        sizes = [_frame_bytes(self.data)[feature] for feature in features]
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
                    found = records.zero_byte(*self.data.ranges[feature])
                    found = np.full((*positions.shape, size), found, np.uint8)
                    found[here] = frames(sources[part][0], positions[here], size)
                view[part, :, columns] = found
            column += size
        for row in np.flatnonzero(valid < indices.shape[1]):
            view[row, valid[row] :] = 0
        return view


def _frame_bytes(data: settings.DataSettings) -> Sequence[int]:
    """Bytes of a frame of each feature; the floats of a video-level record are one."""
    return data.sizes if data.frame_features else [4 * size for size in data.sizes]


def _in_threes(picks: Sequence) -> Iterator[tuple]:
    return zip(*(iter(picks),) * 3, strict=True)


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
        data: description of the records.
        reading: how they are read.
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


# ------------------------------------------------------------- lookups in the graph


@functools.cache
def _method(name: str):
    """A function that calls a method of the Shards with a token."""
    method = operator.attrgetter(name)

    def call(token, *arguments):
        try:
            return method(_SHARDS[int(token)])(*arguments)
        except ValueError as error:  # Marked for `faults.describe_error`.
            raise ValueError(records.marked(str(error))) from error

    return call


def _in_graph(name: str, token: Token, arguments: Sequence, results: Sequence) -> list:
    """The results of a method, in the graph, of these (dtype, shape)."""
    arguments = [tf.cast(token, tf.int64), *arguments]
    dtypes, shapes = zip(*results, strict=True)
    values = tf.numpy_function(_method(name), arguments, dtypes)
    # Eagerly, TensorFlow returns a single result without its list.
    values = [values] if isinstance(values, tf.Tensor) else values
    for value, shape in zip(values, shapes, strict=True):
        value.set_shape(shape)
    return values


class Found(NamedTuple):
    """A batch of rows of a source before any frame is read.

    Attributes:
        is_video: [B] bool, False for a padding row.
        located: what is known of the videos.
        rated: their segments; None if rows are videos.
        gather: (picks, partner) → the frames [B, K, D] of each pick (positions of the
            features, indices [B, K], valid [B]), 0 after the valid ones; with `partner`
            [B] those of the partner rows.
    """

    is_video: tf.Tensor
    located: Located
    rated: segments.Segments | None
    gather: Callable[..., list[tf.Tensor]]


def _fields(batch, of_segments: bool) -> list[tuple]:
    """dtype and shape of the fields of Located, and of Segments."""
    rated = [(tf.int32, batch), *_PAIRS, (tf.int32, [None])] if of_segments else []
    return [(tf.string, batch), *_PAIRS, (tf.int32, batch), *rated]


# Row and label of each label.
_PAIRS = [(tf.int64, [None])] * 2


def look_up(
    token: Token, data: settings.DataSettings, share: tf.Tensor, places: tf.Tensor
) -> Found:
    """Looks up a batch of located videos in the table, in the graph.

    Args:
        token: of the Shards.
        data: description of the records.
        share: [2] float64, `fraction` and `labeled` of Table.rows.
        places: [B] int64, positions in `kept_rows` of the share; -1 for padding.
    """
    results = [(tf.int64, places.shape), *_fields(places.shape, data.segment_labels)]
    rows, *found = _in_graph("look_up", token, [share, places], results)

    def gather(picks, partner=None):
        chosen = rows if partner is None else tf.gather(rows, partner)
        return _frames_in_graph(token, "gather", [chosen], picks, data)

    rated = segments.Segments(*found[4:]) if data.segment_labels else None
    return Found(rows >= 0, Located(*found[:4]), rated, gather)


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
        token: of the Shards.
        data: description of the records.
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
    results = [(tf.bool, batch), *located, *places, *rated]
    given = [files, numbers, content, lengths, begins, *starts]
    is_video, *found = _in_graph("judge", token, given, results)
    first, stride, loose, *rated = found[4:]

    def gather(picks, partner=None):
        chosen = first, stride
        if partner is not None:
            chosen = [tf.gather(part, partner) for part in chosen]
        return _frames_in_graph(
            token, "gather_judged", [content, loose, *chosen], picks, data
        )

    rated = segments.Segments(*rated) if starts else None
    return Found(is_video, Located(*found[:4]), rated, gather)


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
    sizes = [[_frame_bytes(data)[c] for c in columns] for columns, *_ in picks]
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
