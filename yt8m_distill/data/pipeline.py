"""From globs to a tf.data.Dataset of Batches.

    files → places of records → shuffle → batches → own rows → views

No record is taken apart before its batch is known, so skipping batches on resume
and leaving rows to other processes cost next to nothing. A view's frames are
picked before they are copied: a student does not pay for a frame that it does not
see.
"""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import registry, settings, structures
from yt8m_distill.data import (
    frame_access,
    frame_index,
    frame_sampling,
    records,
    validation,
)

registry.import_modules("yt8m_distill.data")  # A new file may add a sampler.

# Batches that are made side by side, and that wait for the network.
PARALLEL_BATCHES = min(max(os.cpu_count() or 1, 2), 8)
BATCHES_AHEAD = 4

_READ_BYTES = 1 << 20
_MAPPED_BYTES = 1 << 26  # Of shards that are read from end to end.
_GROUP = 16  # Records whose places are noted in one call.
_GROUPS_AHEAD = 16  # Read while the frames of others are copied.


class ViewSpec(NamedTuple):
    """How a view is made.

    Attributes:
        sampler: specification of a registered sampler.
        k: frames it picks.
    """

    sampler: str
    k: int


def sampled_view(sampling: settings.SamplingSettings, training: bool) -> ViewSpec:
    """The student's view, in training or elsewhere.

    Raises:
        ValueError: for an unknown sampler, where the message lists the known, or an
            argument that it does not take.
    """
    flag, name = "frame_sampler", sampling.frame_sampler
    if training and sampling.train_frame_sampler:
        flag, name = "train_frame_sampler", sampling.train_frame_sampler
    try:
        spec = frame_sampling.parse(name)
    except ValueError as error:
        raise ValueError(f"--{flag}={name}: {error}") from error
    return ViewSpec(str(spec), sampling.student_k)


def _is_kept(serialized: tf.Tensor, fraction: float) -> tf.Tensor:
    """Which records belong to a share of the data, whatever their order: [N] bool."""
    buckets = tf.strings.to_hash_bucket_fast(serialized, records.HASH_BUCKETS)
    return buckets < int(fraction * records.HASH_BUCKETS)


def count_videos(
    files: Sequence[str],
    train_fraction: float = 1.0,
    index: frame_index.IndexAccess | None = None,
    *,
    data: settings.DataSettings | None = None,
    use_index: str = "never",
    index_dir: str = "",
    bad_records: str = validation.STOP,
    max_bad_fraction: float = 0.01,
) -> int:
    """Videos of these shards that training uses.

    Args:
        files: the shards.
        train_fraction: share of them.
        index: of the shards; without one their records are counted.
        data, use_index, index_dir, bad_records, max_bad_fraction: how they are read,
            as in build_dataset, where there is no `index` yet.

    Raises:
        ValueError: for a truncated file.
    """
    if data is not None:
        places = _open_places(
            files, data, use_index, index_dir, bad_records, max_bad_fraction
        )
        if isinstance(places, frame_index.IndexAccess):
            index = places
        elif places is not None:
            return len(places.rows(train_fraction))
    if index:
        return len(index.rows(train_fraction))
    total = records.count_records(files)
    if train_fraction >= 1:
        return total
    paths = list(files)
    compressions = [records.compression_of(path) for path in paths]
    dataset = tf.data.Dataset.from_tensor_slices((paths, compressions))
    dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=2)
    dataset = dataset.filter(lambda record: _is_kept(record, train_fraction))
    return int(dataset.reduce(np.int64(0), lambda count, _: count + 1))


def find_skipped(
    files: Sequence[str],
    data: settings.DataSettings,
    use_index: str = "auto",
    index_dir: str = "",
    bad_records: str = validation.SKIP,
    max_bad_fraction: float = 0.01,
) -> validation.Skipped | None:
    """What is left out of these shards; None under `stop`, when nothing is checked.

    Raises:
        ValueError: if it is more than `max_bad_fraction` of them.
    """
    if bad_records == validation.STOP:
        return None
    places = _open_places(
        files, data, use_index, index_dir, bad_records, max_bad_fraction
    )
    return _skipped(places)


def _open_places(files, data, use_index, index_dir, bad_records, max_bad_fraction):
    """Where the records are: an index, a list of the good ones, or None.

    Raises:
        ValueError: if too many are bad.
    """
    files = list(files)
    skip = bad_records == validation.SKIP
    index = frame_index.open_index(files, data, use_index, index_dir, skip)
    places = index or (_Places(files, data) if skip else None)
    for path in filter(os.path.isfile, files if places is None else ()):
        found = os.stat(path)
        _check_lengths(path, (found.st_size, found.st_mtime_ns))
    if skip:
        validation.check_fraction(_skipped(places), max_bad_fraction)
    return places


def _skipped(places) -> validation.Skipped:
    return validation.Skipped(len(places.rows()), places.bad, places.num_lost)


@functools.lru_cache(maxsize=1 << 14)
def _check_lengths(path: str, identity: tuple) -> None:
    """Once in a process, while the shard is the same."""
    del identity
    records.check_lengths(path)


class _Places:
    """The good records of some shards, one behind the other.

    Attributes:
        starts: [shards + 1] int64, where each shard's begin.
        columns: file, number, offset and length, each [N] int64.
        bad: the others.
        num_lost: videos that this makes.
    """

    def __init__(self, files, data):
        checks = [validation.check_shard(path, data) for path in files]
        counts = [len(check.numbers) for check in checks]
        self.starts = np.cumsum([0, *counts], dtype=np.int64)
        self.columns = [np.repeat(np.arange(len(files)), counts)] + [
            np.concatenate([check[column] for check in checks]) for column in range(3)
        ]
        self._buckets = np.concatenate([check.buckets for check in checks])
        self.bad = tuple(bad for check in checks for bad in check.bad)
        self.num_lost = validation.count_lost(self.bad, self.columns[3])

    def rows(self, fraction: float = 1.0) -> np.ndarray:
        """As frame_index.IndexAccess.rows."""
        if fraction >= 1:
            return np.arange(len(self._buckets))
        return np.flatnonzero(self._buckets < int(fraction * records.HASH_BUCKETS))


# Nothing here has Python's own control flow over tensors. Looking for it in every
# function takes seconds in a process, and half as long again a dataset (TensorFlow
# 2.21).
@tf.autograph.experimental.do_not_convert
def build_dataset(
    files: str | Sequence[str],
    data: settings.DataSettings,
    views: dict[str, ViewSpec],
    *,
    batch_size: int,
    training: bool,
    seed: int = 0,
    epoch: int = 0,
    num_readers: int = 8,
    shuffle_buffer_size: int = 0,
    train_fraction: float = 1.0,
    skip_batches: int = 0,
    input_shard: tuple[int, int] = (0, 1),
    use_index: str = "auto",
    index_dir: str = "",
    bad_records: str = validation.STOP,
    max_bad_fraction: float = 0.01,
) -> tf.data.Dataset:
    """One epoch of batches, the same ones for the same arguments.

    Args:
        files: comma separated globs, or file names.
        data: what the records hold.
        views: name → how it is made.
        batch_size: B, of all processes together.
        training: shuffle by (seed, epoch), and draw random frames anew in every
            epoch; otherwise the order is that of the files.
        seed: see training.
        epoch: see training.
        num_readers: shards read side by side.
        shuffle_buffer_size: records among which the next one is drawn.
        train_fraction: share of the videos, the same ones in every epoch.
        skip_batches: leaves out that many batches, to resume within an epoch.
        input_shard: (index, count): this process' part of the rows of each batch.
        use_index: `auto`, `always` or `never`; see frame_index. The batches are the
            same in any case.
        index_dir: where the indices are; empty: beside the shards.
        bad_records: `stop` at the first one, or `skip` them; see validation.
        max_bad_fraction: share of them above which `skip` stops, too.

    Returns:
        A dataset of Batch dicts with B / count rows; see structures.

    Raises:
        ValueError: for a batch that cannot be shared, or too many bad records.
    """
    if isinstance(files, str):
        files = records.expand_patterns(files, "data_pattern")
    process, count = input_shard
    if batch_size % count:
        raise ValueError(
            f"--batch_size={batch_size} is not divisible by {count} processes."
        )
    rows = batch_size // count
    salt = _mixed(seed, epoch) if training else 0
    files = list(files)
    places = _open_places(
        files, data, use_index, index_dir, bad_records, max_bad_fraction
    )
    source = _open_source(files, data, views, salt, train_fraction, places)
    if training:
        dataset = source.interleaved(seed, epoch, num_readers)
        if shuffle_buffer_size > 1:
            dataset = dataset.shuffle(shuffle_buffer_size, seed=_mixed(seed, epoch))
        dataset = dataset.concatenate(source.filling_rows(batch_size - 1))
        dataset = dataset.skip(skip_batches * batch_size)
        dataset = dataset.batch(batch_size, drop_remainder=True)
    else:
        dataset = source.in_order(batch_size).skip(skip_batches)

    def make_batch(*parts):
        return source.make_batch(
            *(part[process * rows : (process + 1) * rows] for part in parts)
        )

    dataset = dataset.map(make_batch, num_parallel_calls=PARALLEL_BATCHES)
    options = tf.data.Options()
    options.deterministic = True
    # The end of an iterator waits for the tuning thread to wake up, which sleeps twice
    # as long each time: up to a minute at the end of every epoch (TensorFlow 2.21).
    options.autotune.enabled = False
    return dataset.prefetch(BATCHES_AHEAD).with_options(options)


def _mixed(seed: int, epoch: int) -> int:
    """A seed for each epoch; 0 is left out, which tf.data takes for none."""
    return 1 + (seed * 1_000_003 + epoch) % (2**31 - 2)


def _is_plain(path: str) -> bool:
    """Whether a shard's records stand in a local file as they are."""
    return os.path.isfile(path) and not records.compression_of(path)


def _open_source(files, data, views, salt, fraction, places=None):
    """How the records of these shards become batches."""
    arguments = (files, data, views, salt, fraction)
    if isinstance(places, frame_index.IndexAccess):
        return _ByIndex(*arguments, places)
    plain = all(map(_is_plain, files))
    if places is not None:
        return (_ByPlace if plain else _ParsedByPlace)(*arguments, places)
    return (_ByReference if plain and data.frame_features else _Parsed)(*arguments)


class _Source:
    """What becomes of a shard and of a batch.

    `read` makes a shard's dataset of elements, `filling_rows` one of elements that
    are no record (with B - 1 of them behind the last video, none lacks a batch), and
    `make_batch` turns B elements into a Batch.

    Args:
        files: the shards.
        data: what the records hold.
        views: name → how it is made.
        salt: of the keys that `random` draws from.
        fraction: share of the records that is used.
    """

    def __init__(self, files, data, views, salt, fraction):
        self.files = files
        self.data = data
        self.views = views
        self.salt = salt
        self.fraction = fraction

    def interleaved(self, seed, epoch, num_readers) -> tf.data.Dataset:
        """The elements of all shards for training, several shards at a time."""
        files = np.arange(len(self.files))
        np.random.default_rng([seed, epoch]).shuffle(files)
        num_readers = min(num_readers, len(files))
        return tf.data.Dataset.from_tensor_slices(files).interleave(
            self.read,
            cycle_length=num_readers,
            num_parallel_calls=num_readers,
            deterministic=True,
        )

    def in_order(self, batch_size) -> tf.data.Dataset:
        """Batches of elements, shard by shard, each read ahead."""
        dataset = self._one_by_one(self.read)
        dataset = dataset.concatenate(self.filling_rows(batch_size - 1))
        return dataset.batch(batch_size, drop_remainder=True)

    def _one_by_one(self, read) -> tf.data.Dataset:
        return tf.data.Dataset.range(len(self.files)).interleave(
            read, cycle_length=1, num_parallel_calls=1, deterministic=True
        )

    def located(self, access, located, is_video) -> structures.Batch:
        """The batch of videos of which an access knows where their frames are."""
        return _located_batch(
            is_video, access, located, self.data, self.views, self.salt
        )

    def parsed(self, files, numbers, serialized) -> structures.Batch:
        """The batch of serialized records, or the error that says what is wrong."""
        is_video = files >= 0
        paths = tf.gather(tf.constant(self.files), tf.maximum(files, 0))
        numbers = tf.strings.as_string(numbers)
        origins = tf.strings.join([paths, ", record ", numbers, " (counted from 0)"])
        samplers = [
            frame_sampling.parse(view.sampler).name for view in self.views.values()
        ]
        parse = _parsing(
            self.data,
            tuple(self.views.items()),
            tuple(map(frame_sampling.SAMPLERS.get, samplers)),
        )
        return parse(serialized, origins, is_video, tf.constant(self.salt))


class _Parsed(_Source):
    """Records go through the dataset whole: video-level, remote or compressed ones.

    Elements: file, number, serialized record.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._compressions = [records.compression_of(path) for path in self.files]
        self._sizes = [
            -1 if packed else records.remote_size(path)
            for path, packed in zip(self.files, self._compressions, strict=True)
        ]

    def read(self, file):
        records_ = tf.data.TFRecordDataset(
            tf.gather(tf.constant(self.files), file),
            tf.gather(tf.constant(self._compressions), file),
            buffer_size=_READ_BYTES,
        )
        numbers = tf.data.Dataset.range(2**62)
        dataset = tf.data.Dataset.zip(
            (tf.data.Dataset.from_tensors(file).repeat(), numbers, records_)
        )
        if any(size >= 0 for size in self._sizes):
            dataset = self._to_the_end(dataset, file)
        if self.fraction < 1:
            dataset = dataset.filter(
                lambda file, number, record: _is_kept(record, self.fraction)
            )
        return dataset

    def _to_the_end(self, dataset, file):
        """The same elements; fails where a remote shard goes on behind the last.

        A local shard's lengths are gone over before (records.check_lengths). Here that
        would be a request a record, so the bytes are counted while they are read.
        """
        size = tf.gather(tf.constant(self._sizes, tf.int64), file)
        path = tf.gather(tf.constant(self.files), file)
        end = tf.data.Dataset.from_tensors((file, np.int64(-1), ""))

        def count(state, element):
            number, offset = state
            _, index, record = element
            is_end = index < 0
            message = records.cut_short(path, number, offset)
            whole = tf.debugging.Assert(
                ~is_end | (size < 0) | (offset == size), [message]
            )
            with tf.control_dependencies([whole]):
                length = tf.cast(tf.strings.length(record), tf.int64)
                state = (number + 1, offset + length + records.FRAMING)
            return state, element

        dataset = dataset.concatenate(end).scan((np.int64(0), np.int64(0)), count)
        return dataset.filter(lambda file, number, record: number >= 0)

    def filling_rows(self, count):
        return tf.data.Dataset.from_tensors((np.int64(-1), np.int64(0), "")).repeat(
            count
        )

    def make_batch(self, files, numbers, serialized):
        return self.parsed(files, numbers, serialized)


class _ByReference(_Source):
    """Records are read and checked once, and then only their places are carried.

    So a shuffle buffer holds a few numbers a video, and of a batch only the frames
    of its views are copied. Elements: those of
    frame_access.References.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        shards = frame_access.Shards(self.files, _MAPPED_BYTES)
        self.access = frame_access.RecordAccess(self.data, shards)

    def read(self, file):
        return self._read_groups(file).unbatch()

    def in_order(self, batch_size):
        # Elements stay in groups: to handle them one by one takes half as long as to
        # read their records.
        rows = np.array([-1, 0, 0, 0])[:, np.newaxis].repeat(batch_size - 1, axis=1)
        filling = tf.data.Dataset.from_tensors(tuple(rows))
        dataset = self._one_by_one(self._read_groups).concatenate(filling)
        return dataset.rebatch(batch_size, drop_remainder=True)

    def _read_groups(self, file):
        # In groups: a function call a record would cost as much as the reading.
        groups = tf.data.TFRecordDataset(
            tf.gather(tf.constant(self.files), file), buffer_size=_READ_BYTES
        ).batch(_GROUP)

        def places(state, serialized):
            number, offset = state
            lengths = tf.cast(tf.strings.length(serialized), tf.int64)
            ends = offset + tf.cumsum(lengths + records.FRAMING)
            numbers = number + tf.range(tf.size(lengths, tf.int64))
            found = (
                tf.fill(tf.shape(lengths), file),
                numbers,
                ends - lengths - records.FRAMING + records.HEADER,
                lengths,
            )
            if self.fraction < 1:
                kept = _is_kept(serialized, self.fraction)
                found = tuple(tf.boolean_mask(part, kept) for part in found)
            return (numbers[-1] + 1, ends[-1]), found

        start = (np.int64(0), np.int64(0))
        return groups.scan(start, places).prefetch(_GROUPS_AHEAD)

    def filling_rows(self, count):
        nothing = tuple(np.array([-1, 0, 0, 0]))
        return tf.data.Dataset.from_tensors(nothing).repeat(count)

    def make_batch(self, *parts):
        references = frame_access.References(*parts)
        if not self.data.frame_features:
            return self.parsed(
                references.files,
                references.numbers,
                self.access.serialized(references),
            )
        located = self.access.locate(*parts)
        return tf.cond(
            located.usable,
            lambda: self.located(self.access, located, references.files >= 0),
            lambda: self.parsed(
                references.files,
                references.numbers,
                self.access.serialized(references),
            ),
        )


class _ParsedByPlace(_Parsed):
    """The same without the bad records, and only up to where a shard can be read.

    Shards that are local and not compressed are read at their records' places: behind
    a record whose checksum is wrong TensorFlow's reader stops.
    """

    def __init__(self, *arguments):
        *arguments, places = arguments
        super().__init__(*arguments)
        columns = [column[places.rows(self.fraction)] for column in places.columns]
        plain = np.array([_is_plain(path) for path in self.files])
        by_place = plain[columns[0]]
        self._columns = [column[by_place] for column in columns]
        self._begins = np.searchsorted(self._columns[0], np.arange(len(plain) + 1))
        self._access = frame_access.RecordAccess(
            self.data, frame_access.Shards(self.files, _MAPPED_BYTES)
        )
        files, numbers = (column[~by_place] for column in columns[:2])
        lengths = [
            1 + max(numbers[files == file], default=-1)
            for file in range(len(self.files))
        ]
        self._lengths = np.array(lengths, np.int64)
        self._starts = np.cumsum([0, *lengths], dtype=np.int64)
        self._kept = np.zeros(self._starts[-1], bool)
        self._kept[self._starts[files] + numbers] = True
        self.fraction = 1.0  # `rows` has seen to it.

    def read(self, file):
        starts, lengths = tf.constant(self._starts), tf.constant(self._lengths)
        kept = tf.constant(self._kept)
        in_order = (
            super()
            .read(file)
            .take(lengths[file])
            .filter(lambda file, number, record: kept[starts[file] + number])
        )
        # One of the two is empty.
        return in_order.concatenate(self._read_places(file))

    def _read_places(self, file):
        begins = tf.constant(self._begins, tf.int64)

        def look_up(rows):
            columns = (tf.gather(column, rows) for column in self._columns)
            references = frame_access.References(*columns)
            serialized = self._access.serialized(references)
            return references.files, references.numbers, serialized

        rows = tf.data.Dataset.range(begins[file], begins[file + 1]).batch(_GROUP)
        return rows.map(look_up).unbatch()


class _ByPlace(_ByReference):
    """Records are known to be good: their places come from a list, none is read."""

    def __init__(self, *arguments):
        *arguments, places = arguments
        super().__init__(*arguments)
        self._rows = places.rows(self.fraction)
        self._starts = np.searchsorted(self._rows, places.starts)
        self._columns = [column[self._rows] for column in places.columns]

    def read(self, file):
        starts = tf.constant(self._starts, tf.int64)
        dataset = tf.data.Dataset.range(starts[file], starts[file + 1])
        return dataset.map(
            lambda row: tuple(tf.gather(column, row) for column in self._columns)
        )

    def _read_groups(self, file):
        return self.read(file).batch(_GROUP)


class _ByIndex(_Source):
    """Records are not read at all. Elements: the rows of frame_index.IndexAccess."""

    def __init__(self, *arguments):
        *arguments, self.access = arguments
        super().__init__(*arguments)
        self._rows = self.access.rows(self.fraction)
        self._starts = np.searchsorted(self._rows, self.access.starts)

    def read(self, file):
        starts = tf.constant(self._starts, tf.int64)
        dataset = tf.data.Dataset.range(starts[file], starts[file + 1])
        if len(self._rows) == self.access.starts[-1]:  # A place is its row.
            return dataset
        return dataset.map(lambda place: tf.gather(tf.constant(self._rows), place))

    def in_order(self, batch_size):
        count = len(self._rows)

        def batch(number):
            places = number * batch_size + tf.range(batch_size, dtype=tf.int64)
            rows = tf.gather(tf.constant(self._rows), tf.minimum(places, count - 1))
            return (tf.where(places < count, rows, -1),)

        return tf.data.Dataset.range(-(-count // batch_size)).map(batch)

    def filling_rows(self, count):
        return tf.data.Dataset.from_tensors(np.int64(-1)).repeat(count)

    def make_batch(self, rows):
        return self.located(self.access, self.access.locate(rows), rows >= 0)


def _located_batch(is_video, access, located, data, views, salt) -> structures.Batch:
    """The batch of records in which only the views' frames are looked at."""
    names = list(views)
    keys = _video_keys(located.video_ids, salt)
    picks = [_pick(views[name], located.num_frames, data, keys) for name in names]
    frames = access.gather(located.token, picks)
    return {
        structures.VIDEO_ID: located.video_ids,
        structures.LABELS: records.multi_hot(
            located.label_rows, located.labels, is_video.shape[0], data.num_classes
        ),
        structures.WEIGHTS: tf.cast(is_video, tf.float32),
        structures.VIEWS: {
            name: {
                structures.FRAMES: view,
                structures.NUM_FRAMES: valid,
                structures.FRAME_INDICES: indices,
            }
            for name, view, (indices, valid) in zip(names, frames, picks, strict=True)
        },
    }


def _pick(view: ViewSpec, num_frames, data, keys) -> tuple[tf.Tensor, tf.Tensor]:
    """The sampler's indices [B, K] and valid [B], checked."""
    return frame_sampling.pick(view.sampler, num_frames, view.k, data.max_frames, keys)


@functools.lru_cache(maxsize=16)
def _parsing(data: settings.DataSettings, views: tuple, samplers: tuple):
    """`_parsed_batch` as a function that is traced once, not for every epoch.

    Args:
        data: what the records hold.
        views: (name, ViewSpec) pairs.
        samplers: the functions behind the views' names, which one can register anew.
    """
    del samplers

    @tf.function(autograph=False)  # As in build_dataset.
    def parse(serialized, origins, is_video, salt):
        return _parsed_batch(serialized, origins, is_video, data, dict(views), salt)

    return parse


def _parsed_batch(serialized, origins, is_video, data, views, salt) -> structures.Batch:
    """The batch of records that the parser reads whole; it finds what is wrong."""
    parsed = records.parse_batch(serialized, origins, data, is_video)
    video_ids = records.required_ids(parsed, data, is_video)
    keys = _video_keys(video_ids, salt)
    labels = records.checked_labels(parsed, data.num_classes)
    return {
        structures.VIDEO_ID: video_ids,
        structures.LABELS: records.multi_hot(
            labels.value_rowids(), labels.values, video_ids.shape[0], data.num_classes
        ),
        structures.WEIGHTS: tf.cast(is_video, tf.float32),
        structures.VIEWS: {
            name: _make_view(parsed, data, view, keys) for name, view in views.items()
        },
    }


def _video_keys(video_ids: tf.Tensor, salt: int | tf.Tensor) -> tf.Tensor:
    """[B] int64 that `random` draws from: the id, mixed with seed and epoch."""
    salted = tf.strings.join([video_ids, "#", tf.strings.as_string(salt)])
    return tf.strings.to_hash_bucket_fast(salted, 2**62)


def read_view(
    serialized: tf.Tensor,
    data: settings.DataSettings,
    view: ViewSpec,
    is_video: tf.Tensor | None = None,
    is_sound: bool = False,
) -> tuple[tf.Tensor, structures.View]:
    """Ids and one view of serialized records, as evaluation sees them.

    Labels are not looked at; an id may be missing and is empty then.

    Args:
        serialized: [B] string.
        data: what the records hold.
        view: how the view is made.
        is_video: [B] bool; where it is False the record must be empty, and gives no
            frames. None: all are videos.
        is_sound: see records.parse_batch.
    """
    numbers = tf.strings.as_string(tf.range(tf.size(serialized)))
    origins = tf.strings.join(["record ", numbers, " (counted from 0)"])
    if is_video is None:
        is_video = tf.ones_like(serialized, tf.bool)
    parsed = records.parse_batch(serialized, origins, data, is_video, is_sound)
    keys = _video_keys(parsed.video_ids, 0)
    return parsed.video_ids, _make_view(parsed, data, view, keys)


def _make_view(parsed, data, view: ViewSpec, keys) -> structures.View:
    """Picks, decodes and joins the frames of a view."""
    if not data.frame_features:
        return {
            structures.FRAMES: tf.concat(parsed.frames, axis=1)[:, tf.newaxis],
            structures.NUM_FRAMES: parsed.num_frames,
            structures.FRAME_INDICES: tf.zeros_like(parsed.num_frames)[:, tf.newaxis],
        }
    indices, valid = _pick(view, parsed.num_frames, data, keys)
    inside = tf.sequence_mask(valid, tf.shape(indices)[1])
    frames = [
        _decode(ragged, indices, inside, valid, size)
        for ragged, size in zip(parsed.frames, data.sizes, strict=True)
    ]
    return {
        structures.FRAMES: tf.concat(frames, axis=2),
        structures.NUM_FRAMES: valid,
        structures.FRAME_INDICES: indices,
    }


def _decode(ragged, indices, inside, valid, size: int) -> tf.Tensor:
    """The chosen byte strings of one feature as [B, K, size] uint8, 0 behind."""
    starts = tf.cast(ragged.row_starts(), tf.int32)
    where = tf.boolean_mask(starts[:, tf.newaxis] + indices, inside)
    chosen = tf.io.decode_raw(
        tf.gather(ragged.values, where), tf.uint8, fixed_length=size
    )  # [valid frames of all videos, size]
    rows = tf.RaggedTensor.from_row_lengths(chosen, valid, validate=False)
    shape = [indices.shape[0], indices.shape[1], size]
    return tf.ensure_shape(rows.to_tensor(shape=[None, *shape[1:]]), shape)
