"""The index of a shard: where every frame of every video stands.

With an index a batch is read without looking at anything but its frames: a student
on k of 300 frames reads k / 300 of the bytes. The index is a file beside the shard
(or in a folder of its own), `<shard>.frame_index`: a compressed numpy .npz without
pickles, some forty bytes a video. yt8m-index writes it.

The checksums of the records are verified when the index is written, not again when
it is used. An index knows the size and the time of its shard; of another shard it is
stale and refused.
"""

import dataclasses
import functools
import io
import logging
import os
import uuid
import zipfile  # noqa: TID251 (for the name of an error of np.load)
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import files, settings
from yt8m_distill.data import frame_access, records, validation

_LOG = logging.getLogger(__name__)

SUFFIX = records.INDEX_SUFFIX
VERSION = 1

# Bytes of shards that stay mapped. Small data sets are mapped once for all epochs.
_READING_BUDGET = 1 << 30


class Index(NamedTuple):
    """The index of a shard of N videos with F features, as it is stored.

    Attributes:
        version: of this format.
        shard: [2] int64, bytes of the shard and its time of change in nanoseconds.
        video_id_key: context key of the ids.
        feature_names: [F].
        feature_sizes: [F] int64.
        id_bytes: uint8, all ids one behind the other.
        id_ends: [N] int64, the end of each in it.
        labels: int64, of all videos one behind the other.
        label_ends: [N] int64.
        first: [N, F] int64, where frame 0 begins in the shard.
        stride: [N, F] int32, bytes from a frame to the next; where it is 0, `first`
            is a position in `scattered`.
        count: [N, F] int32, frames.
        scattered: int64, the positions of frames that have no stride.
        buckets: [N] int32, the hash of each record (see `--train_fraction`).
    """

    version: np.ndarray
    shard: np.ndarray
    video_id_key: np.ndarray
    feature_names: np.ndarray
    feature_sizes: np.ndarray
    id_bytes: np.ndarray
    id_ends: np.ndarray
    labels: np.ndarray
    label_ends: np.ndarray
    first: np.ndarray
    stride: np.ndarray
    count: np.ndarray
    scattered: np.ndarray
    buckets: np.ndarray


class Unusable(ValueError):
    """An index that cannot be used, and why, in one line."""


def index_path(shard: str, index_dir: str = "") -> str:
    """Where the index of a shard is."""
    folder, name = os.path.split(shard)
    return os.path.join(index_dir or folder, name + SUFFIX)


def _identity(shard: str) -> tuple[int, int]:
    """Bytes and time of change of a shard."""
    found = tf.io.gfile.stat(shard)
    return int(found.length), int(found.mtime_nsec)


def build(shard: str, data: settings.DataSettings, progress=None) -> Index:
    """Reads a local shard, checks it and notes where everything stands.

    Args:
        shard: an uncompressed TFRecord file.
        data: names and widths of the features, and the key of the id.
        progress: called with the number of videos done since the last call.

    Raises:
        ValueError: for a record that is damaged or not of its kind, naming it.
    """
    compression = records.compression_of(shard)
    if compression:
        raise ValueError(
            f"{shard} is compressed ({compression}): its frames have no place. Unpack "
            "it to index it; without index it is read as it is."
        )
    # The range of the labels is the reader's business.
    data = dataclasses.replace(data, num_classes=np.iinfo(np.int64).max)
    identity = _identity(shard)
    videos, buckets = [], []
    try:
        for record in validation.walk(shard, data):
            if isinstance(record, validation.BadRecord):
                raise ValueError(record.message)
            if record.video is None:
                raise ValueError(
                    f"{shard}, record {record.number} (counted from 0): it is encoded "
                    "in a way that cannot be indexed."
                )
            videos.append(_moved(record))
            buckets.append(record.bucket)
            if progress:
                progress(1)
    except tf.errors.OpError as error:
        message = records.describe_error(error, [shard])
        raise ValueError(message or f"{shard}: {error}") from error
    return _joined(videos, identity, data, np.array(buckets, np.int32))


def _moved(record: validation.GoodRecord):
    """(id, labels, Frames of each feature at their place in the shard)."""
    video_id, labels, features = record.video
    moved = [
        frames._replace(
            first=frames.first + record.offset,
            positions=tuple(record.offset + at for at in frames.positions),
        )
        for frames in features
    ]
    return video_id, labels, moved


def _joined(videos: list, identity, data, buckets) -> Index:
    ids = [video_id for video_id, _, _ in videos]
    shape = (len(videos), len(data.names))
    first, stride = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
    count, scattered = np.zeros(shape, np.int32), []
    for row, (_, _, features) in enumerate(videos):
        for column, frames in enumerate(features):
            first[row, column] = frames.first if frames.stride else len(scattered)
            stride[row, column] = frames.stride
            count[row, column] = frames.count
            scattered += frames.positions
    labels = [labels for _, labels, _ in videos]
    return Index(
        version=np.array(VERSION),
        shard=np.array(identity, np.int64),
        video_id_key=np.array(data.video_id_key),
        feature_names=np.array(data.names),
        feature_sizes=np.array(data.sizes, np.int64),
        id_bytes=np.frombuffer(b"".join(ids), np.uint8),
        id_ends=_ends(ids),
        labels=np.array([label for found in labels for label in found], np.int64),
        label_ends=_ends(labels),
        first=first,
        stride=stride,
        count=count,
        scattered=np.array(scattered, np.int64),
        buckets=buckets,
    )


def _ends(parts: Sequence) -> np.ndarray:
    return np.cumsum([len(part) for part in parts], dtype=np.int64)


def write(index: Index, path: str) -> None:
    """Writes an index; it has its name only once it is whole.

    Raises:
        OSError or tf.errors.OpError: if the file system refuses.
    """
    content = io.BytesIO()
    np.savez_compressed(content, **index._asdict())
    # A name of its own for each process, whatever machine it runs on.
    temporary = f"{path}.tmp-{uuid.uuid4().hex}"
    with files.removed_after_errors(temporary):
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(content.getvalue())
        tf.io.gfile.rename(temporary, path, overwrite=True)


def read(shard: str, index_dir: str = "") -> Index:
    """The index of a shard.

    Raises:
        Unusable: if there is none, it is damaged, or of another shard.
    """
    path = index_path(shard, index_dir)
    if not tf.io.gfile.exists(path):
        raise Unusable(f"{shard} has no index {path}: yt8m-index makes it.")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = io.BytesIO(file.read())
        with np.load(content, allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in Index._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Unusable(f"{path} is damaged: {error}.") from error
    if int(index.version) != VERSION:
        raise Unusable(f"{path} has version {index.version}, this program {VERSION}.")
    if tuple(index.shard.tolist()) != _identity(shard):
        raise Unusable(f"{path} is stale: {shard} has changed since it was written.")
    return index


def check(index: Index, shard: str, data: settings.DataSettings) -> list[int]:
    """The columns of the features that are asked for.

    Raises:
        Unusable: if the index is of other features, or of ids under another key.
    """
    names = index.feature_names.tolist()
    known = dict(zip(names, index.feature_sizes.tolist(), strict=True))
    for name, size in zip(data.names, data.sizes, strict=True):
        if known.get(name) != size:
            raise Unusable(
                f"The index of {shard} is of the features {known}, not of {name} with "
                f"{size} bytes."
            )
    if str(index.video_id_key) != data.video_id_key:
        raise Unusable(
            f"The index of {shard} has the ids of --video_id_key={index.video_id_key}."
        )
    return [names.index(name) for name in data.names]


class _Strings(NamedTuple):
    """Byte strings or lists one behind the other: `values`, and [N + 1] `splits`."""

    values: np.ndarray
    splits: np.ndarray


class IndexAccess(frame_access.Access):
    """Locates frames by an index of all the shards.

    A video is named by its row: shard after shard, in their order.

    Args:
        paths: the shards.
        indices: of each.
        data: what is to be read.
        skip: leave out the videos with a label outside of num_classes; they are in
            `bad`.

    Raises:
        Unusable: if an index is of other features or ids.
        ValueError: for a label outside of num_classes, naming the video, unless such
            videos are left out.
    """

    def __init__(
        self,
        paths,
        indices: Sequence[Index],
        data: settings.DataSettings,
        skip: bool = False,
    ):
        local = all(os.path.isfile(path) for path in paths)
        shards = RemoteShards(paths)
        if local:
            shards = frame_access.Shards(paths, _READING_BUDGET)
        super().__init__(data, shards)
        counts = [len(index.id_ends) for index in indices]
        self.starts = np.cumsum([0, *counts], dtype=np.int64)  # Rows of each shard.
        self._files = np.repeat(np.arange(len(paths)), counts)
        columns = [
            check(index, path, data) for index, path in zip(indices, paths, strict=True)
        ]
        pick = list(zip(indices, columns, strict=True))
        self._stride = np.concatenate([i.stride[:, c] for i, c in pick])
        self._first = np.concatenate([i.first[:, c] for i, c in pick])
        moved = np.cumsum([0, *(len(i.scattered) for i in indices)])[self._files]
        self._first += np.where(self._stride == 0, moved[:, np.newaxis], 0)
        self._scattered = np.concatenate([i.scattered for i in indices])
        frames = np.concatenate([i.count[:, c].min(axis=1) for i, c in pick])
        self._num_frames = np.minimum(frames, data.max_frames).astype(np.int32)
        self._buckets = np.concatenate([i.buckets for i in indices])
        ids = _concatenated([(i.id_bytes, i.id_ends) for i in indices])
        self._ids, self._id_splits = ids.values.tobytes(), ids.splits
        self._labels = _concatenated([(i.labels, i.label_ends) for i in indices])
        bad = self._bad_labels(paths)
        self.bad = tuple(bad.values())
        self.num_lost = len(bad)
        if bad and not skip:
            raise ValueError(self.bad[0].message)
        self._good = np.ones(len(self._buckets), bool)
        self._good[list(bad)] = False

    def rows(self, fraction: float = 1.0) -> np.ndarray:
        """[M] int64, ascending: the rows of a share of the videos."""
        kept = self._good
        if fraction < 1:
            kept = kept & (self._buckets < int(fraction * records.HASH_BUCKETS))
        return np.flatnonzero(kept)

    def _bad_labels(self, paths) -> dict[int, validation.BadRecord]:
        """The rows with a label out of range, ascending."""
        labels, bad = self._labels, {}
        wrong = (labels.values < 0) | (labels.values >= self.data.num_classes)
        for at in np.flatnonzero(wrong).tolist():
            row = int(np.searchsorted(labels.splits, at, side="right")) - 1
            if row in bad:
                continue
            path = paths[self._files[row]]
            number = int(row - self.starts[self._files[row]])
            name = self._ids[self._id_splits[row] : self._id_splits[row + 1]]
            message = (
                f"{path}, record {number} (counted from 0), video "
                f"{name.decode(errors='replace')}: label {labels.values[at]} is not in "
                f"0..{self.data.num_classes - 1}, the range of --num_classes."
            )
            begin = int(self._first[row].min())  # Of a frame: the index has no other.
            bad[row] = validation.BadRecord(path, number, begin, name, message)
        return bad

    def _locate(self, rows):
        videos = np.flatnonzero(rows >= 0)
        # A filling row borrows the places of row 0; none of its frames is asked for.
        safe = np.maximum(rows, 0)
        shards = np.where(rows >= 0, self._files[safe], -1)
        references = frame_access.References(
            shards, safe - self.starts[np.maximum(shards, 0)], None, None
        )
        places = frame_access.Places(
            references,
            self._first[safe],
            self._stride[safe].astype(np.int64),
            self._scattered,
        )
        begins, ends = self._id_splits[safe].tolist(), self._id_splits[safe + 1]
        ids = np.full(len(rows), b"", object)
        ends = ends.tolist()
        ids[videos] = [self._ids[begins[row] : ends[row]] for row in videos.tolist()]
        first = self._labels.splits[safe[videos]]
        lengths = self._labels.splits[safe[videos] + 1] - first
        label_rows = np.repeat(videos, lengths)
        skipped = np.cumsum(lengths) - lengths
        within = np.arange(len(label_rows)) - np.repeat(skipped, lengths)
        labels = self._labels.values[np.repeat(first, lengths) + within]
        num_frames = np.where(rows >= 0, self._num_frames[safe], 0).astype(np.int32)
        return places, ids, label_rows, labels, num_frames


def _concatenated(parts: list[tuple[np.ndarray, np.ndarray]]) -> _Strings:
    values = np.concatenate([part for part, _ in parts])
    begins = np.cumsum([0, *(len(part) for part, _ in parts)])
    ends = [end + begin for (_, end), begin in zip(parts, begins, strict=False)]
    return _Strings(values, np.concatenate([[0], *ends]).astype(np.int64))


class RemoteShards:
    """Frames out of files that only tf.io.gfile knows, by a ranged read for each.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)

    def are_frames(self, number: int, positions: np.ndarray, size: int) -> np.ndarray:
        """True: the index has seen that they are, and reading costs a round trip."""
        del number, size
        return np.ones(positions.shape, bool)

    def frames(self, number: int, positions: np.ndarray, size: int) -> np.ndarray:
        """As frame_access.Shards.frames."""
        found = np.empty((*positions.shape, size), np.uint8)
        with tf.io.gfile.GFile(self.paths[number], "rb") as file:
            for place in np.ndindex(positions.shape):
                file.seek(int(positions[place]))
                found[place] = np.frombuffer(file.read(size), np.uint8)
        return found


@functools.lru_cache(maxsize=4)
def _open(paths: tuple, identities: tuple, data, index_dir, skip) -> IndexAccess:
    """Kept over the epochs of a run; `identities` tell whether a shard has changed."""
    del identities
    return IndexAccess(paths, [read(path, index_dir) for path in paths], data, skip)


def open_index(
    paths: Sequence[str],
    data: settings.DataSettings,
    use_index: str,
    index_dir: str,
    skip: bool = False,
) -> IndexAccess | None:
    """The index of some shards, or None where the shards are to be read without.

    Args:
        paths: the shards.
        data: what is to be read.
        use_index: `always`; `auto`: if every shard has one; or `never`.
        index_dir: where the indices are; empty: beside the shards.
        skip: see IndexAccess.

    Raises:
        ValueError: under `always` for an index that is missing, stale, damaged or of
            other features.
    """
    if use_index == "never" or not data.frame_features:
        return None
    if use_index == "auto" and not all(
        tf.io.gfile.exists(index_path(path, index_dir)) for path in paths
    ):
        return None
    try:
        identities = tuple(_identity(path) for path in paths)
        return _open(tuple(paths), identities, data, index_dir, skip)
    except Unusable as error:
        if use_index == "always":
            raise ValueError(f"--use_index=always: {error}") from error
        _LOG.warning("Reading without index. %s", error)
        return None
