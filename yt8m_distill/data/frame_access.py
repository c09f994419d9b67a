"""The frames of a view without parsing the frames around them.

TensorFlow's parser copies every frame of a record into a string of its own; for a
student that looks at one frame in ten, that costs far more than all the rest. An
access knows where the frames of a video stand in its shard (`locate`) and copies
the chosen ones alone from there (`gather`). Between the two calls the sampler of
the view runs, which knows nothing of either.

Both calls are numpy functions inside the graph, on shards mapped into memory.
`RecordAccess` looks at each record as it is read and checked; an index
(frame_index.IndexAccess) says it without reading.
"""

import itertools
import mmap
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import records, wire

# What TensorFlow asks of memory that it does not copy, and more than any machine
# needs.
_ALIGNMENT = 128
# Frames are copied twice, which costs little while they stay in a core's cache.
_CACHED_BYTES = 1 << 20
# What Linux maps at once around a byte that is read.
_MAPPED_AROUND = 1 << 16


class References(NamedTuple):
    """Records that are not in memory: what a dataset carries instead of them.

    Attributes:
        files: [B] int64, positions in the list of shards, -1 for a filling row.
        numbers: [B] int64, of each record in its shard, counted from 0.
        offsets: [B] int64, where the record begins in its shard.
        lengths: [B] int64, its bytes.
    """

    files: tf.Tensor
    numbers: tf.Tensor
    offsets: tf.Tensor
    lengths: tf.Tensor


class Located(NamedTuple):
    """What is known of a batch of videos before any frame is read.

    Attributes:
        usable: bool scalar; False: a record is damaged or unusual, nothing else here
            means anything, and the parser has to look at the records.
        token: int64 scalar that names the batch to `gather`, once.
        video_ids: [B] string.
        label_rows: [L] int64, the video of each label.
        labels: [L] int64, all in range.
        num_frames: [B] int32, at most max_frames; 0 for a filling row.
    """

    usable: tf.Tensor
    token: tf.Tensor
    video_ids: tf.Tensor
    label_rows: tf.Tensor
    labels: tf.Tensor
    num_frames: tf.Tensor


_DTYPES = Located(tf.bool, tf.int64, tf.string, tf.int64, tf.int64, tf.int32)


class Places(NamedTuple):
    """Where the frames of a batch stand; F features.

    Attributes:
        references: of the records, as numpy arrays.
        first: [B, F] int64, position of frame 0 in the shard.
        stride: [B, F] int64, from a frame to the next. Where it is 0, `first` is the
            position in `scattered` instead.
        scattered: [S] int64, positions of frames that have no stride.
    """

    references: References
    first: np.ndarray
    stride: np.ndarray
    scattered: np.ndarray


class Shards:
    """The bytes of some files, mapped into memory when they are first asked for.

    Args:
        paths: local files.
        budget: bytes that may stay mapped. What is behind it belongs to the system's
            cache and not to the process, but would be counted as its memory.
    """

    def __init__(self, paths: Sequence[str], budget: int):
        self.paths = list(paths)
        self.budget = budget
        self._maps: dict[str, mmap.mmap] = {}
        self._touched: dict[str, int] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> mmap.mmap:
        path = self.paths[number]
        with self._lock:
            if path not in self._maps:
                with open(path, "rb") as file:
                    self._maps[path] = mmap.mmap(
                        file.fileno(), 0, access=mmap.ACCESS_READ
                    )
            return self._maps[path]

    def _note_touched(self, number: int, positions: np.ndarray, size: int) -> None:
        """Unmaps everything once about the budget is mapped; it comes back if read."""
        if not (positions.size and hasattr(mmap, "MADV_DONTNEED")):
            return
        span = int(positions.max() - positions.min()) + size
        touched = min(positions.size * _MAPPED_AROUND, span)
        path = self.paths[number]
        with self._lock:
            touched += self._touched.get(path, 0)
            self._touched[path] = min(touched, len(self._maps[path]))
            if sum(self._touched.values()) <= self.budget:
                return
            self._touched.clear()
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def _at(self, number: int, positions: np.ndarray, dtype: str) -> np.ndarray:
        """What stands at each position of a file, as one item of the dtype."""
        data, size = self[number], np.dtype(dtype).itemsize
        # Item p of this array is what stands from byte p on; nothing is copied yet.
        items = np.ndarray((max(len(data) - size + 1, 0),), dtype, data, 0, (1,))
        return items[positions]

    def are_frames(self, number: int, positions: np.ndarray, size: int) -> np.ndarray:
        """Whether the end of a frame's header stands before each position: bool."""
        header = wire.frame_header(size)
        dtype = "<u8" if len(header) >= 8 else "<u4"
        expected = np.frombuffer(header[-np.dtype(dtype).itemsize :], dtype)
        return self._at(number, positions - expected.nbytes, dtype) == expected

    def frames(self, number: int, positions: np.ndarray, size: int) -> np.ndarray:
        """The frames that begin at the positions [R, K] of a file, uint8 [R, K, size].

        Raises:
            IndexError: for a position outside of the file.
        """
        found = self._at(number, positions, f"V{size}")
        self._note_touched(number, positions, size)
        return found.view(np.uint8).reshape(*positions.shape, size)


class Access:
    """Locates batches and gathers their frames; a subclass knows how to locate.

    Args:
        data: what the records hold.
        shards: the bytes of the files, in the order of References.files.
    """

    def __init__(self, data: settings.DataSettings, shards):
        self.data = data
        self.shards = shards
        self._tokens = itertools.count()
        self._waiting: dict[int, Places] = {}
        self._lock = threading.Lock()

    def _locate(self, *elements: np.ndarray) -> tuple | None:
        """Places, and the fields of Located from `video_ids` on."""
        raise NotImplementedError

    def locate(self, *elements: tf.Tensor) -> Located:
        """In the graph: where the frames of the videos behind these [B] are."""
        rows = elements[0].shape[0]

        def call(*elements):
            found = self._locate(*elements)
            if found is None:
                none = np.zeros(0, np.int64)
                ids, frames = np.full(rows, b"", object), np.zeros(rows, np.int32)
                return (False, np.int64(-1), ids, none, none, frames)
            with self._lock:
                token = next(self._tokens)
                self._waiting[token] = found[0]
            return (True, np.int64(token), *found[1:])

        located = Located(*tf.numpy_function(call, elements, list(_DTYPES)))
        shapes = Located([], [], [rows], [None], [None], [rows])
        for value, shape in zip(located, shapes, strict=True):
            value.set_shape(shape)
        return located

    def gather(self, token: tf.Tensor, picks: Sequence[tuple]) -> list[tf.Tensor]:
        """In the graph: the frames of located videos.

        Args:
            token: of `Located`.
            picks: for each view, indices [B, K] int32 and valid [B] int32.

        Returns:
            For each view [B, K, D] uint8, 0 behind the valid ones.
        """

        def call(token, *flat):
            with self._lock:
                places = self._waiting.pop(int(token))
            picks = zip(flat[::2], flat[1::2], strict=True)
            return [self._gather(places, *pick) for pick in picks]

        flat = [tensor for pick in picks for tensor in pick]
        views = tf.numpy_function(call, [token, *flat], [tf.uint8] * len(picks))
        views = [views] if isinstance(views, tf.Tensor) else list(views)
        for view, (indices, _) in zip(views, picks, strict=True):
            view.set_shape([*indices.shape, self.data.feature_size])
        return views

    def _gather(self, places: Places, indices, valid) -> np.ndarray:
        """[B, K, D] uint8 from indices [B, K] and valid [B]."""
        view = _aligned((*indices.shape, self.data.feature_size))
        files, column = places.references.files, 0
        for feature, size in enumerate(self.data.sizes):
            positions = _positions(places, feature, indices)
            columns = slice(column, column + size)
            for rows in _groups(files, indices.shape[1] * size):
                file = files[rows][0]
                if file < 0:
                    continue
                right = self.shards.are_frames(file, positions[rows], size)
                right |= places.stride[rows, feature, np.newaxis] == 0
                if not right.all():
                    self._refuse(places.references, rows, right, feature)
                view[rows, :, columns] = self.shards.frames(file, positions[rows], size)
            column += size
        for row in np.flatnonzero(valid < indices.shape[1]):
            view[row, valid[row] :] = 0
        return view

    def _refuse(self, references, rows, right, feature) -> None:
        """Raises the error about the first video that has a frame out of place."""
        row = np.arange(len(references.files))[rows][(~right).any(axis=1).argmax()]
        file, number = references.files[row], references.numbers[row]
        origin, message = f"{self.shards.paths[file]}, record {number}", None
        if references.offsets is not None:
            begin = references.offsets[row]
            content = self.shards[file][begin : begin + references.lengths[row]]
            message = records.find_fault(tf.constant(content), origin, self.data)
        message = message or (
            f"{origin} (counted from 0): the frames of feature "
            f"{self.data.names[feature]} are not all {self.data.sizes[feature]} bytes "
            "wide."
        )
        raise ValueError(records.marked(message))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Room for bytes where TensorFlow takes it over without a copy."""
    size = int(np.prod(shape))
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].reshape(shape)


def _groups(files: np.ndarray, video_bytes: int) -> Iterator[np.ndarray | slice]:
    """Rows of one file each, few enough that their frames stay in the cache."""
    limit = max(_CACHED_BYTES // max(video_bytes, 1), 1)
    for file in np.unique(files):
        rows = np.flatnonzero(files == file)
        whole = len(rows) == rows[-1] - rows[0] + 1
        for start in range(0, len(rows), limit):
            part = rows[start : start + limit]
            # A slice where it can be: its frames are copied once less.
            yield slice(part[0], part[-1] + 1) if whole else part


def _positions(places: Places, feature: int, indices: np.ndarray) -> np.ndarray:
    """[B, K] int64: where each frame stands in its shard."""
    first = places.first[:, feature, np.newaxis]
    stride = places.stride[:, feature, np.newaxis]
    positions = first + indices * stride
    for row in np.flatnonzero(stride == 0):
        if places.references.files[row] >= 0:
            positions[row] = places.scattered[first[row] + indices[row]]
    return positions


class RecordAccess(Access):
    """Locates frames by looking at each record, which is mapped but not copied.

    Its elements are those of References.
    """

    def serialized(self, references: References) -> tf.Tensor:
        """In the graph: [B] string, the records themselves, for the parser."""

        def call(files, numbers, offsets, lengths):
            del numbers
            spans = zip(files, offsets, lengths, strict=True)
            found = [
                self.shards[f][begin : begin + length] if f >= 0 else b""
                for f, begin, length in spans
            ]
            return np.array(found, object)

        strings = tf.numpy_function(call, references, tf.string)
        strings.set_shape(references.files.shape)
        return strings

    def _locate(self, *elements):
        data, references = self.data, References(*elements)
        rows, features = len(references.files), len(data.names)
        ids, num_frames = np.full(rows, b"", object), np.zeros(rows, np.int32)
        first = np.zeros([rows, features], np.int64)
        stride = np.zeros([rows, features], np.int64)
        scattered: list[int] = []
        labels: list[int] = []
        label_rows: list[int] = []
        for row, (file, _, begin, length) in enumerate(
            zip(*(part.tolist() for part in references), strict=True)
        ):
            if file < 0:
                continue
            with memoryview(self.shards[file]) as view:
                layout = wire.locate(view[begin : begin + length])
            video = layout and read_video(layout, data)
            if not video:
                return None
            ids[row], found, frames = video
            labels += found
            label_rows += [row] * len(found)
            num_frames[row] = min(data.max_frames, *(f.count for f in frames))
            for column, f in enumerate(frames):
                first[row, column], stride[row, column] = begin + f.first, f.stride
                if not f.stride:
                    first[row, column] = len(scattered)
                    scattered += [begin + position for position in f.positions]
        places = Places(references, first, stride, np.array(scattered, np.int64))
        label_rows, labels = (np.array(x, np.int64) for x in (label_rows, labels))
        return places, ids, label_rows, labels, num_frames


def read_video(layout: wire.Layout, data: settings.DataSettings):
    """(id, labels, Frames of each feature), or None if the parser would object."""
    video_id = wire.context_id(layout.context, data.video_id_key)
    labels = wire.context_labels(layout.context)
    if not video_id or labels is None:
        return None
    if labels and not 0 <= min(labels) <= max(labels) < data.num_classes:
        return None
    frames = [layout.features.get(name) for name in data.names]
    sizes = [f.size if f and f.count else None for f in frames]
    return (video_id, labels, frames) if sizes == list(data.sizes) else None
