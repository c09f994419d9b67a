"""The index of a shard: the offsets of every frame, and the invalid records.

With an index only the frames of a batch are read: a student on k of 300 frames reads
k / 300 of the bytes. The index is one file per shard, `<shard>.frame_index`, a
compressed numpy .npz without pickles, next to the shard, in `--index_dir`, or in a
cache folder. It is built on first use, and checksums are verified only then. It stores
the size and modification time of its shard and the data settings; if one of these
changes, it is rebuilt.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import getpass
import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import filelock
import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import file_patterns, files, settings
from yt8m_distill.data import faults, framing, judging, records, segments

_LOG = logging.getLogger(__name__)

SUFFIX = file_patterns.INDEX_SUFFIX
VERSION = 3  # 2 had no segments.

# Approximate size of the records that are hashed in one call.
_HASHED_BYTES = 1 << 21

# Maximum number of shards that are indexed at the same time.
_MAX_BUILDERS = 8


class Index(NamedTuple):
    """The stored index of a shard of N videos with F features.

    Attributes:
        key: JSON of the version and the data settings.
        shard: [2] int64, size of the shard in bytes and modification time in
            nanoseconds.
        located: whether all frames have known offsets; otherwise `first`, `stride` and
            `count` are empty, and records are parsed.
        numbers: [N] int32, number of each record in the shard, counted from 0.
        offsets: [N] int64, offset of the content of each record.
        lengths: [N] int32, its size in bytes.
        buckets: [N] int32, its hash (see `--train_fraction`).
        id_bytes: uint8, all ids, concatenated.
        id_ends: [N] int64, end of each id in `id_bytes`.
        labels: int32, the labels of all videos, concatenated.
        label_ends: [N] int64.
        first: [N, F] int32, offset of frame 0 in the record; -1 for a missing feature.
        stride: [N, F] int32, bytes from one frame to the next.
        count: [N, F] int32, number of frames.
        bad: JSON of the invalid records, see faults.Bad.
        ratings: [R, 3] int32, start, class and score (0 or 1) of each rated segment.
        rating_ends: [N] int64.
        bad_ratings: JSON, row and problem of the videos with unreadable ratings, which
            are invalid only under --segment_labels.
    """

    key: np.ndarray
    shard: np.ndarray
    located: np.ndarray
    numbers: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    buckets: np.ndarray
    id_bytes: np.ndarray
    id_ends: np.ndarray
    labels: np.ndarray
    label_ends: np.ndarray
    first: np.ndarray
    stride: np.ndarray
    count: np.ndarray
    bad: np.ndarray
    ratings: np.ndarray
    rating_ends: np.ndarray
    bad_ratings: np.ndarray

    def bad_records(self, shard: str) -> list[faults.Bad]:
        """The invalid records of the shard, in order."""
        return [
            faults.Bad(
                shard,
                number,
                offset,
                faults.Fault[fault],
                detail,
                video_id.encode("latin-1"),
                lost,
            )
            for number, offset, fault, detail, video_id, lost in json.loads(
                str(self.bad)
            )
        ]


class Unusable(ValueError):
    """An index that cannot be used; the message is one line."""


def unlimited(data: settings.DataSettings) -> settings.DataSettings:
    """The data settings without those that are checked only when a shard is opened.

    One index serves any --num_classes, and both videos and segments.
    """
    return dataclasses.replace(
        data,
        num_classes=settings.MAX_CLASSES,  # The range is checked on opening.
        max_frames=1,
        segment_labels=False,
        segment_negatives=0.0,
    )


def key_of(data: settings.DataSettings) -> str:
    """The key of an index: its version and the data settings."""
    asked = dataclasses.asdict(unlimited(data))
    for name in ("segment_labels", "segment_negatives"):
        del asked[name]
    return json.dumps({"version": VERSION, **asked}, sort_keys=True)


def identity(shard: str) -> tuple[int, int]:
    """Size and modification time of a shard."""
    if os.path.isfile(shard):
        found = os.stat(shard)
        return found.st_size, found.st_mtime_ns
    found = tf.io.gfile.stat(shard)
    return int(found.length), int(found.mtime_nsec)


class _Rows:
    """Grows the arrays of an index, record by record."""

    def __init__(self, data: settings.DataSettings):
        self.data = data
        self.places: list[tuple[int, int, int]] = []
        self.ids: list[bytes] = []
        self.labels: list[int] = []
        self.label_ends: list[int] = []
        self.frames: list[list] = []
        self.buckets: list[int] = []
        self._unhashed: list[bytes] = []
        self._unhashed_bytes = 0
        self.bad: list[faults.Bad] = []
        self.ratings: list[segments.Rating] = []
        self.rating_ends: list[int] = []
        self.bad_ratings: list[tuple[int, str]] = []
        self.located = data.frame_features

    def add(self, video: judging.Video) -> None:
        """Adds a valid record."""
        record = video.record
        self.places.append((record.number, record.offset, len(record.content)))
        self._unhashed.append(record.content)
        self._unhashed_bytes += len(record.content)
        if self._unhashed_bytes >= _HASHED_BYTES:
            self._hash()
        self.ids.append(video.video_id)
        self.labels += video.labels
        self.label_ends.append(len(self.labels))
        self.frames.append([found[:3] for found in video.frames.values()])
        # Of one unusual encoding: all records of this shard are parsed.
        self.located &= not video.loose
        ratings, detail = segments.read(record.context)
        detail = detail or segments.problem(ratings, video.num_frames, self.data)
        if detail:
            self.bad_ratings.append((len(self.places) - 1, detail))
        else:
            self.ratings += ratings
        self.rating_ends.append(len(self.ratings))

    def _hash(self) -> None:
        """Adds the buckets of the last records."""
        found = tf.strings.to_hash_bucket_fast(self._unhashed, records.HASH_BUCKETS)
        self.buckets += found.numpy().tolist()
        self._unhashed, self._unhashed_bytes = [], 0

    def finish(self, shard: tuple[int, int]) -> Index:
        """The index of the added records."""
        self._hash()
        places = np.array(self.places, np.int64).reshape(-1, 3)
        width = len(self.data.names) if self.located else 0
        frames = np.zeros((len(places), 0), np.int32)
        if self.located:
            frames = np.array(self.frames, np.int32).reshape(len(places), 3 * width)
        bad = [
            (b.number, b.offset, b.fault.name, b.detail, b.video_id.decode("latin-1"))
            + (b.lost_bytes,)
            for b in self.bad
        ]
        return Index(
            key=np.array(key_of(self.data)),
            shard=np.array(shard, np.int64),
            located=np.array(self.located),
            numbers=places[:, 0].astype(np.int32),
            offsets=places[:, 1],
            lengths=places[:, 2].astype(np.int32),
            buckets=np.array(self.buckets, np.int32),
            id_bytes=np.frombuffer(b"".join(self.ids), np.uint8),
            id_ends=np.cumsum([len(i) for i in self.ids], dtype=np.int64),
            labels=np.array(self.labels, np.int32),
            label_ends=np.array(self.label_ends, np.int64),
            first=frames[:, 0::3],
            stride=frames[:, 1::3],
            count=frames[:, 2::3],
            bad=np.array(json.dumps(bad)),
            ratings=np.array(self.ratings, np.int32).reshape(-1, 3),
            rating_ends=np.array(self.rating_ends, np.int64),
            bad_ratings=np.array(json.dumps(self.bad_ratings)),
        )


def build(shard: str, data: settings.DataSettings, progress=None) -> Index:
    """Reads, checks and indexes a shard.

    Args:
        data: description of the records; num_classes and max_frames are ignored.
        progress: called with the number of bytes read since the last call.

    Raises:
        ValueError: for a shard that cannot be opened.
    """
    data, found = unlimited(data), identity(shard)
    rows = _Rows(data)
    try:
        for video in judging.read(shard, data):
            if isinstance(video, faults.Bad):
                rows.bad.append(video)
                continue
            rows.add(video)
            if progress:
                progress(len(video.record.content) + framing.FRAMING)
    except (tf.errors.OpError, OSError) as error:
        raise ValueError(f"{shard} cannot be read: {files.reason(error)}.") from error
    if identity(shard) != found:
        raise ValueError(f"{shard} has changed while it was read.")
    return rows.finish(found)


def read(path: str, shard: str, data: settings.DataSettings) -> Index:
    """The index of a shard.

    Raises:
        Unusable: if it is missing, damaged, or of another shard or other features.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in Index._fields})
    except FileNotFoundError as error:
        raise Unusable(f"{shard} has no index {path}.") from error
    except Exception as error:  # Of np.load: also BadZipFile, zlib.error and others.
        # Without NumPy's own words, which advise to load it as a pickle.
        raise Unusable(f"{path} is damaged, or not an index.") from error
    if str(index.key) != key_of(data):
        raise Unusable(f"{path} is of other features, or of another version.")
    if tuple(index.shard.tolist()) != identity(shard):
        raise Unusable(f"{path} is stale: {shard} has changed since it was written.")
    return index


def folders(shard: str, index_dir: str) -> list[str]:
    """Possible folders of a shard's index, in order of preference."""
    if index_dir:
        return [index_dir]
    folder = os.path.dirname(os.path.abspath(shard))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return [folder, os.path.join(os.path.expanduser(cache), "yt8m_distill", name)]


def path_in(folder: str, shard: str) -> str:
    """The file of a shard's index in a folder."""
    return os.path.join(folder, os.path.basename(shard) + SUFFIX)


def find(shard: str, data: settings.DataSettings, index_dir: str) -> Index | None:
    """A usable index of a shard, or None."""
    for folder in folders(shard, index_dir):
        try:
            return read(path_in(folder, shard), shard, data)
        except Unusable as error:
            if "damaged" in str(error):
                _LOG.warning("%s It is built anew.", error)
    return None


def find_all(
    shards: Sequence[str], data: settings.DataSettings, index_dir: str
) -> list[Index | None]:
    """The usable index of each shard, or None.

    Raises:
        ValueError: for two shards of the same name with one `index_dir`.
    """
    seen: dict[str, str] = {}
    for shard in shards if index_dir else ():
        other = seen.setdefault(os.path.basename(shard), shard)
        if other != shard:
            raise ValueError(
                f"--index_dir={index_dir}: {other} and {shard} would share one index; "
                "give each folder of shards an --index_dir of its own."
            )
    return [find(shard, data, index_dir) for shard in shards]


def load_or_build(
    shards: Sequence[str],
    data: settings.DataSettings,
    index_dir: str = "",
    required: bool = False,
    found: Sequence[Index | None] | None = None,
) -> list[Index]:
    """The index of each local shard; builds and stores those that are missing.

    Of two concurrent processes one builds them and the other waits. If no folder is
    writable, the indices stay in memory, unless `required`.

    Args:
        found: those of `find_all`, if that was asked before.

    Raises:
        ValueError: for an unreadable or compressed shard, or a required index that
            cannot be written.
    """
    found = list(found or find_all(shards, data, index_dir))
    missing = [i for i, index in enumerate(found) if index is None]
    if not missing:
        return found
    writable = functools.cache(_writable)  # One question per folder, not per shard.
    target = {
        shards[i]: next(filter(writable, folders(shards[i], index_dir)), "")
        for i in missing
    }
    lost = [shard for shard, folder in target.items() if not folder]
    if lost and required:
        raise ValueError(f"No folder takes the index of {lost[0]}: name --index_dir.")
    if lost:
        _LOG.warning("No folder takes the index of %s: it stays in memory.", lost[0])
    locks = sorted({folder for folder in target.values() if folder})
    with _held(locks):
        sizes = {i: identity(shards[i])[0] for i in missing}
        total = sum(sizes.values())
        bar = tqdm.tqdm(
            desc="index", total=total, unit="B", unit_scale=True, disable=None
        )

        def build_one(i: int) -> Index:
            shard = shards[i]
            # Another process may have built it in the meantime.
            index = find(shard, data, index_dir) if locks else None
            if index is None and framing.compression_of(shard):
                raise ValueError(
                    f"{shard} is compressed and cannot be indexed: unpack it."
                )
            if index is None:
                index = build(shard, data, bar.update)
                _keep(index, target[shard], shard, required)
            else:
                bar.update(sizes[i])
            return index

        # TensorFlow reads and verifies without the GIL.
        workers = min(len(missing), os.cpu_count() or 1, _MAX_BUILDERS)
        with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
            try:
                for i, index in zip(missing, pool.map(build_one, missing), strict=True):
                    found[i] = index
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return found


def _keep(index: Index, folder: str, shard: str, required: bool) -> None:
    """Writes an index atomically, if a folder was found for it."""
    # Without videos the file is none of the user's shards, or costs nothing to read.
    if not folder or not (required or len(index.numbers)):
        return
    content = io.BytesIO()
    np.savez_compressed(content, **index._asdict())
    try:
        with files.writing(path_in(folder, shard), "wb") as file:
            file.write(content.getvalue())
    except ValueError as error:
        if required:
            raise
        _LOG.warning("%s It stays in memory.", error)


def _writable(folder: str) -> bool:
    """Whether a folder is there, or can be made, and files can be written to it."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextlib.contextmanager
def _held(folders_: Sequence[str]) -> Iterator[None]:
    """Locks folders against other processes that build indices, where possible."""
    # Not next to the shards, where a pattern could match the lock file.
    prefix = os.path.join(tempfile.gettempdir(), f"yt8m_distill-{getpass.getuser()}")
    with contextlib.ExitStack() as stack:
        for folder in folders_:
            name = hashlib.sha256(folder.encode()).hexdigest()[:16]
            lock = filelock.FileLock(f"{prefix}-{name}.lock")
            # Without locks an index is built twice at worst.
            with contextlib.suppress(OSError, NotImplementedError):
                stack.enter_context(lock)
        yield
