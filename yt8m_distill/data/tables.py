"""The table of all videos, or rated segments, of some shards, from their indices."""

import json
from collections.abc import Sequence

import numpy as np

from yt8m_distill.data import faults, index, judging, records, segments

# Number of ids that are hashed in one call.
_HASHED_AT_ONCE = 1 << 16


class Table:
    """The concatenated indices of some shards: compact arrays with a row per video.

    A video with two features takes about 90 bytes plus its id. With --segment_labels
    rows are the rated segments of the videos instead, in order of their starts.

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
                judging.judge_labels(found, "int64", self.data)
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
        """Ids to numbers of frames of lookups.Found; -1 is a padding row."""
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
