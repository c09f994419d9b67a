"""From shards to a tf.data.Dataset of Batches.

    shards → positions of records → shuffle → batches → own rows → views

Records are judged only after they are batched, so skipping batches on resume and rows
of other processes cost almost nothing. Frames are selected before they are copied, so
unused frames cost nothing.

There are two sources: indexed (elements are positions in a table; only the frames of
the views are read), and parsed (complete records pass through the dataset). Their
batches are identical, bit for bit.
"""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import registry, settings, structures
from yt8m_distill.data import (
    frame_sampling,
    framing,
    lookups,
    mixing,
    parsing,
    records,
    segments,
)
from yt8m_distill.data import shards as shards_module

registry.import_modules("yt8m_distill.data")  # A new file may add a sampler.

# Batches that are prepared in parallel, and that are prefetched.
PARALLEL_BATCHES = min(max(os.cpu_count() or 1, 2), 8)
BATCHES_AHEAD = 4

_READ_BYTES = 1 << 20


class ViewSpec(NamedTuple):
    """A named set of frames of a video, as data.

    Attributes:
        sampler: specification of a registered sampler.
        k: number of sampled frames.
        features: names of the features to read, in this order; empty for all.
        segment_context: frames to each side of the row's segment that the sampler can
            select, with those of the segment. None: it samples the whole video.
    """

    sampler: str
    k: int
    features: tuple[str, ...] = ()
    segment_context: int | None = None

    def in_segments(self, context: int) -> "ViewSpec":
        """The view for segments with `context` frames to each side."""
        width = segments.width(context)
        k = width if self.sampler == "all" else min(self.k, width)
        return self._replace(k=k, segment_context=context)

    def width(self, data: settings.DataSettings) -> int:
        """T of the view."""
        if not data.frame_features:
            return 1
        whole = self.sampler == "all" and self.segment_context is None
        return data.max_frames if whole else self.k

    def columns(self, data: settings.DataSettings) -> list[int]:
        """The positions of its features among those of the data.

        Raises:
            ValueError: for a feature that is not in --feature_names.
        """
        return [data.names.index(name) for name in data.only(self.features).names]


class Altered(NamedTuple):
    """Changes to the videos of a batch, before their frames are selected.

    Attributes:
        label_fraction: share of the videos that keep their labels; the others become
            unlabeled.
        mix: one of mixing.KINDS, or mixing.NONE.
        negatives: of segments, see segments.labels_and_weights.
    """

    label_fraction: float = 1.0
    mix: str = mixing.NONE
    negatives: float = 0.0


def sampled_view(sampling: settings.SamplingSettings, training: bool) -> ViewSpec:
    """The student's view, in training or in evaluation.

    Raises:
        ValueError: for an unknown sampler (listing the known ones) or argument.
    """
    flag, name = "frame_sampler", sampling.frame_sampler
    if training and sampling.train_frame_sampler:
        flag, name = "train_frame_sampler", sampling.train_frame_sampler
    try:
        spec = frame_sampling.parse(name)
    except ValueError as error:
        raise ValueError(f"--{flag}={name}: {error}") from error
    return ViewSpec(str(spec), sampling.largest_k)


def num_unlabeled_rows(batch_size: int, fraction: float) -> int:
    """Number of rows of each batch that are unlabeled videos.

    Raises:
        ValueError: if no row would be left for one of the two kinds; 0 asks for that.
    """
    rows = round(fraction * batch_size)
    if rows >= batch_size or fraction and not rows:
        kind = "labeled" if rows else "unlabeled"
        raise ValueError(
            f"--unlabeled_fraction={fraction} leaves no row of "
            f"--batch_size={batch_size} for {kind} videos."
        )
    return rows


def num_batches(num_videos: int, batch_size: int, unlabeled_fraction: float) -> int:
    """Number of batches of an epoch, which is one pass over the labeled videos."""
    rows = batch_size - num_unlabeled_rows(batch_size, unlabeled_fraction)
    return -(-num_videos // rows)


# No function here needs AutoGraph, whose conversion takes seconds per process, and half
# as long again per dataset (TensorFlow 2.21).
@tf.autograph.experimental.do_not_convert
def build_dataset(
    shards: shards_module.Shards,
    views: dict[str, ViewSpec],
    *,
    batch_size: int,
    training: bool,
    seed: int = 0,
    epoch: int = 0,
    shuffle_buffer_size: int = 0,
    train_fraction: float = 1.0,
    label_fraction: float = 1.0,
    only_labeled: bool = False,
    mix: str = mixing.NONE,
    skip_batches: int = 0,
    input_shard: tuple[int, int] = (0, 1),
    unlabeled: shards_module.Shards | None = None,
    unlabeled_fraction: float = 0.0,
) -> tf.data.Dataset:
    """One epoch of batches, a deterministic function of the arguments.

    Args:
        batch_size: B, of all processes together.
        training: shuffle by (seed, epoch) and draw new random frames in every epoch;
            otherwise keep the order of the files.
        shuffle_buffer_size: number of records from which the next one is drawn.
        train_fraction: share of the videos to use, the same in every epoch.
        label_fraction: share of the videos that keep their labels, selected by id; the
            others become unlabeled.
        only_labeled: skip those others.
        mix: in training, how each video is mixed with another one of the batch.
        skip_batches: number of batches to skip, to resume within an epoch.
        input_shard: (index, count), this process' part of the rows of each batch.
        unlabeled: in training, shards whose videos fill a share of every batch,
            repeated as often as needed; their labels are ignored.
        unlabeled_fraction: that share.

    Returns:
        A dataset of Batch dicts with B / count rows; see structures.

    Raises:
        ValueError: if the batch size is not divisible by the number of processes, or
            shards have changed since they were opened.
    """
    process, count = input_shard
    if batch_size % count:
        raise ValueError(
            f"--batch_size={batch_size} is not divisible by {count} processes."
        )
    own = slice(process * (batch_size // count), (process + 1) * (batch_size // count))
    shards.check_unchanged()
    salt = _mixed(seed, epoch) if training else 0
    labeled = label_fraction if only_labeled else 1.0
    altered = Altered(
        1.0 if only_labeled else label_fraction,
        mix if training else mixing.NONE,
        shards.data.segment_negatives if training else 0.0,
    )
    rows = own
    if altered.mix != mixing.NONE:  # The partner may be in another process' rows.
        own = slice(0, batch_size)
    source = _open_source(shards, views, salt, altered, train_fraction, labeled)

    def make(*parts):
        return source.make_batch(*(part[own] for part in parts))

    if not training:
        dataset = source.in_order(batch_size).skip(skip_batches)
    else:
        extra = num_unlabeled_rows(batch_size, unlabeled_fraction) if unlabeled else 0
        shuffling = (seed, epoch, shuffle_buffer_size)
        dataset = source.shuffled(*shuffling, batch_size - extra, skip_batches)
        if extra:
            unlabeled.check_unchanged()
            other = _open_source(unlabeled, views, salt, altered)
            others = other.shuffled(*shuffling, extra, skip_batches, repeat=True)
            dataset = tf.data.Dataset.zip((dataset, others))
            make = _mixer(source, other, batch_size, extra, own)
    dataset = _mapped(dataset, make)
    if rows != own:
        dataset = _mapped(
            dataset, lambda batch: tf.nest.map_structure(lambda x: x[rows], batch)
        )
    options = records.untuned()
    options.deterministic = True
    return dataset.prefetch(BATCHES_AHEAD).with_options(options)


def _mapped(dataset, function) -> tf.data.Dataset:
    return dataset.map(function, num_parallel_calls=PARALLEL_BATCHES)


def _mixer(source, other, batch_size: int, extra: int, own: slice):
    """A function that makes this process' rows of a batch from two sources.

    Unlabeled rows are spread evenly over the batch, so that each replica gets its
    share.
    """
    ends = (np.arange(batch_size) + 1) * extra // batch_size
    is_extra = np.diff(ends, prepend=0) > 0
    place = np.where(is_extra, np.cumsum(is_extra), np.cumsum(~is_extra)) - 1
    is_extra, place = is_extra[own], place[own]
    order = np.argsort(
        np.concatenate([np.flatnonzero(~is_extra), np.flatnonzero(is_extra)])
    )

    def mix(parts, other_parts):
        batches = []
        for one, elements, rows in (
            (source, parts, place[~is_extra]),
            (other, other_parts, place[is_extra]),
        ):
            if len(rows):
                # An element of one part is no tuple.
                elements = tf.nest.flatten(elements)
                made = one.make_batch(*(tf.gather(part, rows) for part in elements))
                if one is other:
                    made[structures.LABELS] *= 0.0
                    made[structures.LABEL_WEIGHTS] *= 0.0
                batches.append(made)
        return tf.nest.map_structure(
            lambda *pair: tf.gather(tf.concat(pair, axis=0), order), *batches
        )

    return mix


def _mixed(seed: int, epoch: int) -> int:
    """A seed for each epoch; never 0, which tf.data would treat as no seed."""
    return 1 + (seed * 1_000_003 + epoch) % (2**31 - 2)


def _open_source(shards, *arguments) -> "_Source":
    """The indexed or the parsed source of these shards."""
    source = _Parsed if shards.table is None else _Indexed
    return source(shards, *arguments)


class _Source:
    """Makes batches of the records of some shards.

    `read` returns a dataset of elements of a shard, `padding_rows` one of padding
    elements (B - 1 of them complete the last batch), and `make_batch` turns B elements
    into a Batch.

    Args:
        salt: of the keys of random samplers.
        share: of the records to use: `fraction` and `labeled` of tables.Table.rows.
    """

    def __init__(self, shards, views, salt, altered, *share):
        self.shards = shards
        self.data = shards.data
        self.views = views
        self.salt = salt
        self.altered = altered
        self.share = share or (1.0, 1.0)

    def shuffled(
        self, seed, epoch, buffer_size, rows, skip_batches, repeat=False
    ) -> tf.data.Dataset:
        """Batches of elements for training, several shards at a time."""
        files = np.arange(len(self.shards.paths))
        np.random.default_rng([seed, epoch]).shuffle(files)
        num_readers = min(self.shards.reading.num_readers, len(files))
        dataset = tf.data.Dataset.from_tensor_slices(files).interleave(
            self.read,
            cycle_length=num_readers,
            num_parallel_calls=num_readers,
            deterministic=True,
        )
        if buffer_size > 1:
            dataset = dataset.shuffle(buffer_size, seed=_mixed(seed, epoch))
        if repeat:
            dataset = dataset.repeat()
        else:
            dataset = dataset.concatenate(self.padding_rows(rows - 1))
        dataset = dataset.skip(skip_batches * rows)
        return dataset.batch(rows, drop_remainder=True)

    def in_order(self, rows) -> tf.data.Dataset:
        """Batches of elements in order, with prefetching of shards."""
        dataset = tf.data.Dataset.range(len(self.shards.paths)).interleave(
            self.read, cycle_length=1, num_parallel_calls=1, deterministic=True
        )
        dataset = dataset.concatenate(self.padding_rows(rows - 1))
        return dataset.batch(rows, drop_remainder=True)

    def made(self, find, *elements) -> structures.Batch:
        """The batch of elements that lookups.judge or lookups.look_up finds."""
        samplers = [frame_sampling.parse(v.sampler).name for v in self.views.values()]
        making = _making(
            find,
            self.data,
            tuple(self.views.items()),
            tuple(map(frame_sampling.SAMPLERS.get, samplers)),
            self.altered,
        )
        token = tf.constant(self.shards.token, tf.int64)
        return making(token, tf.constant(self.salt), *elements)


class _Parsed(_Source):
    """Complete records pass through the dataset; for remote and compressed shards.

    Elements: file, number, serialized record; with --segment_labels one element per
    rated segment, with its start.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        paths, packed = self.shards.paths, self.shards.compressions
        self._sizes = [
            -1 if compression else framing.remote_size(path)
            for path, compression in zip(paths, packed, strict=True)
        ]
        kept = self.shards.kept
        if kept is not None:
            self._lengths = np.array([len(valid) for valid in kept], np.int64)
            self._starts = np.cumsum([0, *self._lengths], dtype=np.int64)
            self._is_kept = np.concatenate(kept)

    def read(self, file):
        dataset = tf.data.TFRecordDataset(
            tf.gather(tf.constant(self.shards.paths), file),
            tf.gather(tf.constant(self.shards.compressions), file),
            buffer_size=_READ_BYTES,
        )
        numbers = tf.data.Dataset.range(2**62)
        dataset = tf.data.Dataset.zip(
            (tf.data.Dataset.from_tensors(file).repeat(), numbers, dataset)
        )
        if self.shards.kept is not None:
            starts, is_kept = tf.constant(self._starts), tf.constant(self._is_kept)
            dataset = dataset.take(tf.constant(self._lengths)[file]).filter(
                lambda file, number, record: is_kept[starts[file] + number]
            )
        elif any(size >= 0 for size in self._sizes):
            dataset = self._to_the_end(dataset, file)
        fraction, labeled = self.share
        if fraction < 1:
            dataset = dataset.filter(
                lambda file, number, record: records.in_share(record, fraction)
            )
        if labeled < 1 or self.data.segment_labels:
            dataset = dataset.flat_map(self._judged)
        return dataset

    def _judged(self, file, number, record):
        """The element of a video that keeps its labels; one per rated segment."""
        token, element = self.shards.token, (file, number, record)
        video_id, starts = lookups.judge_one(token, *element)
        dataset = tf.data.Dataset.from_tensors(element)
        if self.data.segment_labels:
            dataset = tf.data.Dataset.from_tensor_slices(starts)
            dataset = dataset.map(lambda start: (*element, start))
        if self.share[1] < 1:
            kept = records.keeps_labels(video_id, self.share[1])
            dataset = dataset.take(tf.cast(kept, tf.int64))
        return dataset

    def _to_the_end(self, dataset, file):
        """The same elements; raises if a remote shard has data after the last one.

        The lengths of local shards are checked in advance (framing.check_lengths). For
        remote shards that would be a request per record, so bytes are counted instead.
        """
        size = tf.gather(tf.constant(self._sizes, tf.int64), file)
        end = tf.data.Dataset.from_tensors((file, np.int64(-1), ""))

        def count(state, element):
            number, offset = state
            _, index, record = element
            is_end = index < 0
            where = [": damaged at byte ", tf.strings.as_string(offset)]
            what = [", and nothing after it is read: it is truncated."]
            path = tf.gather(tf.constant(self.shards.paths), tf.maximum(file, 0))
            at = [", record ", tf.strings.as_string(number), " (counted from 0)"]
            message = [path, *at, *where, *what]
            message = records.marked_in_graph(message)
            whole = tf.debugging.Assert(
                ~is_end | (size < 0) | (offset == size), [message]
            )
            with tf.control_dependencies([whole]):
                length = tf.cast(tf.strings.length(record), tf.int64)
                state = (number + 1, offset + length + framing.FRAMING)
            return state, element

        dataset = dataset.concatenate(end).scan((np.int64(0), np.int64(0)), count)
        return dataset.filter(lambda file, number, record: number >= 0)

    def padding_rows(self, count):
        nothing = (np.int64(-1), np.int64(0), "")
        if self.data.segment_labels:
            nothing = (*nothing, np.int64(0))
        return tf.data.Dataset.from_tensors(nothing).repeat(count)

    def make_batch(self, *elements):
        return self.made(lookups.judge, *elements)


class _Indexed(_Source):
    """Elements are positions in the kept rows of the table, -1 for padding."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        table = self.shards.table
        rows = self.shards.kept_rows(*self.share)
        self._count = len(rows)
        self._starts = np.searchsorted(rows, table.starts)

    def read(self, file):
        starts = tf.constant(self._starts, tf.int64)
        return tf.data.Dataset.range(starts[file], starts[file + 1])

    def in_order(self, rows):
        count = self._count

        def batch(number):
            places = number * rows + tf.range(rows, dtype=tf.int64)
            return (tf.where(places < count, places, -1),)

        return tf.data.Dataset.range(-(-count // rows)).map(batch)

    def padding_rows(self, count):
        return tf.data.Dataset.from_tensors(np.int64(-1)).repeat(count)

    def make_batch(self, places):
        share = tf.constant(self.share, tf.float64)
        if self.shards.table.located:
            return self.made(lookups.look_up, share, places)
        of_segments = self.data.segment_labels
        found = lookups.serialized(self.shards.token, share, places, of_segments)
        return self.made(lookups.judge, *found)


@functools.lru_cache(maxsize=16)
def _making(find, data: settings.DataSettings, views: tuple, samplers: tuple, altered):
    """The batch of elements as a function, traced once, not in every epoch.

    Args:
        find: lookups.judge or lookups.look_up.
        views: (name, ViewSpec) pairs.
        samplers: the functions of the views' samplers; part of the cache key, since a
            name can be registered again.
    """
    del samplers

    @tf.function(autograph=False)  # As in build_dataset.
    def make(token, salt, *elements):
        found = find(token, data, *elements)
        return _batch(found, data, dict(views), salt, altered)

    return make


def _batch(found: lookups.Found, data, views, salt, altered) -> structures.Batch:
    """The batch of videos whose frames are not read yet; arguments as of _Source."""
    is_video, video_ids, label_rows, labels, num_frames, rated, gather = found
    size = is_video.shape[0], data.num_classes
    labels = records.multi_hot(label_rows, labels, *size)
    starts = None if rated is None else rated.starts
    keys = _video_keys(video_ids, salt, starts)
    weights, more = tf.cast(is_video, tf.float32), {}
    label_weights = tf.reduce_max(labels, axis=1)
    if rated is not None:
        more = {structures.SEGMENT_STARTS: starts, structures.VIDEO_LABELS: labels}
        labels, label_weights = segments.labels_and_weights(
            rated, labels, altered.negatives
        )
    if altered.label_fraction < 1:
        kept = records.keeps_labels(video_ids, altered.label_fraction)
        kept = tf.cast(kept, tf.float32)
        labels *= kept[:, tf.newaxis]
        label_weights *= kept if rated is None else kept[:, tf.newaxis]
    mixture = None
    if altered.mix != mixing.NONE:
        groups = tf.cast(weights + label_weights, tf.int32)
        mixture = mixing.KINDS[altered.mix](groups, keys, num_frames)
        labels, num_frames = mixture.labels(labels), mixture.num_frames
    picks = [
        (view.columns(data), *_pick(view, num_frames, data, keys, starts))
        for view in views.values()
    ]
    frames = _mixed_frames(mixture, picks, gather) if mixture else gather(picks)
    return {
        structures.VIDEO_ID: video_ids,
        structures.LABELS: labels,
        structures.WEIGHTS: weights,
        structures.LABEL_WEIGHTS: label_weights,
        **more,
        structures.VIEWS: {
            name: _view(view, valid, indices)
            for name, view, (_, indices, valid) in zip(
                views, frames, picks, strict=True
            )
        },
    }


def _mixed_frames(mixture: mixing.Mixture, picks, gather) -> list[tf.Tensor]:
    """The frames [B, K, D] of each pick, mixed from both videos of each pair."""
    places = [mixture.places(indices) for _, indices, _ in picks]
    parts = [
        gather(
            [
                (columns, pair[side], valid)
                for (columns, _, valid), pair in zip(picks, places, strict=True)
            ],
            partner,
        )
        for side, partner in enumerate((None, mixture.partner))
    ]
    return [
        mixture.join(indices, own, other)
        for (_, indices, _), own, other in zip(picks, *parts, strict=True)
    ]


def _view(frames, num_frames, indices) -> structures.View:
    return {
        structures.FRAMES: frames,
        structures.NUM_FRAMES: num_frames,
        structures.FRAME_INDICES: indices,
    }


def _pick(
    view: ViewSpec, num_frames, data, keys, starts=None, each_k=None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The sampler's indices [B, K] and valid [B], checked; `starts` [B] of segments."""
    if not data.frame_features:
        return tf.zeros_like(num_frames)[:, tf.newaxis], num_frames
    if each_k is not None:
        given = (num_frames, each_k, view.k, data.max_frames, keys)
        return frame_sampling.pick_each(view.sampler, *given)
    if view.segment_context is None:
        given = (num_frames, view.k, data.max_frames, keys)
        return frame_sampling.pick(view.sampler, *given)
    begins, lengths = segments.window(starts, num_frames, view.segment_context)
    width = segments.width(view.segment_context)
    found, valid = frame_sampling.pick(view.sampler, lengths, view.k, width, keys)
    inside = tf.sequence_mask(valid, tf.shape(found)[1])
    return tf.where(inside, found + begins[:, tf.newaxis], 0), valid


def _video_keys(
    video_ids: tf.Tensor, salt: int | tf.Tensor, starts: tf.Tensor | None = None
) -> tf.Tensor:
    """[B] int64, the keys of random samplers: hash of id, salt and segment start."""
    parts = [video_ids, "#", tf.strings.as_string(salt)]
    if starts is not None:
        parts += ["#", tf.strings.as_string(starts)]
    return tf.strings.to_hash_bucket_fast(tf.strings.join(parts), 2**62)


def pick_frames(
    view: ViewSpec,
    num_frames: Sequence[int],
    max_frames: int,
    video_ids: Sequence[str | bytes],
) -> list[list[int]]:
    """The frames of each video that a view selects in evaluation, in order."""
    sampler = frame_sampling.SAMPLERS.get(frame_sampling.parse(view.sampler).name)
    picking = _picking(view, max_frames, sampler)
    found = picking(tf.constant(num_frames, tf.int32), tf.constant(video_ids))
    rows = zip(*(part.numpy().tolist() for part in found), strict=True)
    return [indices[:valid] for indices, valid in rows]


@functools.lru_cache(maxsize=16)
def _picking(view: ViewSpec, max_frames: int, sampler):
    """A sampler as a function, traced once; see `_making`."""
    del sampler
    each = (tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.string))

    @tf.function(input_signature=tuple(each), autograph=False)
    def pick(num_frames, video_ids):
        counts, keys = tf.minimum(num_frames, max_frames), _video_keys(video_ids, 0)
        return frame_sampling.pick(view.sampler, counts, view.k, max_frames, keys)

    return pick


def view_of(
    parsed: parsing.Parsed,
    data: settings.DataSettings,
    view: ViewSpec,
    each_k: tf.Tensor | None = None,
) -> structures.View:
    """One view of parsed records, as in evaluation.

    Args:
        each_k: [B] int32, number of frames of each video, at most the view's k; None
            for the view's k.
    """
    keys = _video_keys(parsed.video_ids, 0)
    indices, valid = _pick(view, parsed.num_frames, data, keys, each_k=each_k)
    frames = _frames(parsed.frames, data, view.columns(data), indices, valid)
    return _view(frames, valid, indices)


def _frames(features, data, columns, indices, valid) -> tf.Tensor:
    """The selected frames of parsed features: [B, K, D], 0 after the valid ones."""
    if not data.frame_features:
        vectors = tf.concat([features[c] for c in columns], axis=1)
        return vectors[:, tf.newaxis]
    inside = tf.sequence_mask(valid, tf.shape(indices)[1])
    blanks = [None] * len(data.sizes)
    if data.missing_feature == "zeros":
        blanks = [records.zero_byte(*low_high) for low_high in data.ranges]
    frames = [
        _decode(features[c], indices, inside, valid, data.sizes[c], blanks[c])
        for c in columns
    ]
    return tf.concat(frames, axis=2)


def _decode(ragged, indices, inside, valid, size: int, blank: int | None) -> tf.Tensor:
    """The selected byte strings of one feature: [B, K, size] uint8, then 0.

    A video that lacks the feature has frames of the byte `blank`, where that is given.
    """
    strings = ragged.values
    where = tf.cast(ragged.row_starts(), tf.int32)[:, tf.newaxis] + indices
    if blank is not None:  # Copies all strings.
        strings = tf.concat([strings, [bytes([blank]) * size]], axis=0)
        has_any = (ragged.row_lengths() > 0)[:, tf.newaxis]
        where = tf.where(has_any, where, tf.size(strings) - 1)
    chosen = tf.io.decode_raw(
        tf.gather(strings, tf.gather_nd(where, tf.where(inside))),
        tf.uint8,
        fixed_length=size,
    )  # [valid frames of all videos, size]
    rows = tf.RaggedTensor.from_row_lengths(chosen, valid, validate=False)
    shape = [indices.shape[0], indices.shape[1], size]
    return tf.ensure_shape(rows.to_tensor(shape=[None, *shape[1:]]), shape)
