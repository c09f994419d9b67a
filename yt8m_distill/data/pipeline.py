"""From globs to a tf.data.Dataset of Batches.

    files → records → shuffle → batches of raw bytes → own rows → parse → views

Records stay serialized until their batch is known, so skipping batches on resume
and leaving rows to other processes cost no parsing. The frames of a view are
picked from the byte strings before they are decoded: a student does not pay for a
frame that it does not see.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import registry, settings, structures
from yt8m_distill.data import frame_sampling, records

registry.import_modules("yt8m_distill.data")  # A new file may add a sampler.

_HASH_BUCKETS = 1 << 30


class ViewSpec(NamedTuple):
    """How a view is made.

    Attributes:
        sampler: name of a registered sampler.
        k: frames it picks.
    """

    sampler: str
    k: int


def sampled_view(sampling: settings.SamplingSettings, training: bool) -> ViewSpec:
    """The student's view, in training or elsewhere.

    Raises:
        ValueError: for an unknown sampler; the message lists the known.
    """
    flag, name = "frame_sampler", sampling.frame_sampler
    if training and sampling.train_frame_sampler:
        flag, name = "train_frame_sampler", sampling.train_frame_sampler
    try:
        frame_sampling.SAMPLERS.get(name)
    except ValueError as error:
        raise ValueError(f"--{flag}={name}: {error}") from error
    return ViewSpec(name, sampling.student_k)


def _select_fraction(dataset: tf.data.Dataset, fraction: float) -> tf.data.Dataset:
    """Keeps the same share of the records whatever their order.

    The serialized record is the last part of an element.
    """
    if fraction >= 1:
        return dataset
    limit = int(fraction * _HASH_BUCKETS)
    return dataset.filter(
        lambda *parts: tf.strings.to_hash_bucket_fast(parts[-1], _HASH_BUCKETS) < limit
    )


def count_videos(files: Sequence[str], train_fraction: float = 1.0) -> int:
    """Videos of these shards that training uses.

    Raises:
        ValueError: for a truncated file.
    """
    total = records.count_records(files)
    if train_fraction >= 1:
        return total
    dataset = tf.data.TFRecordDataset(list(files), num_parallel_reads=2)
    dataset = _select_fraction(dataset, train_fraction)
    return int(dataset.reduce(np.int64(0), lambda count, _: count + 1))


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

    Returns:
        A dataset of Batch dicts with B / count rows; see structures.
    """
    if isinstance(files, str):
        files = records.expand_patterns(files, "data_pattern")
    index, count = input_shard
    if batch_size % count:
        raise ValueError(
            f"--batch_size={batch_size} is not divisible by {count} processes."
        )
    dataset = _raw_records(files, training, seed, epoch, num_readers)
    dataset = _select_fraction(dataset, train_fraction)
    if training and shuffle_buffer_size > 1:
        dataset = dataset.shuffle(shuffle_buffer_size, seed=_mixed(seed, epoch))
    dataset = dataset.concatenate(_filling_rows(batch_size - 1))
    dataset = dataset.skip(skip_batches * batch_size)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    rows = batch_size // count
    salt = _mixed(seed, epoch) if training else 0

    def make_batch(*parts):
        if count > 1:
            parts = [part[index * rows : (index + 1) * rows] for part in parts]
        return _make_batch(*parts, data, views, salt)

    dataset = dataset.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def _mixed(seed: int, epoch: int) -> int:
    """A seed for each epoch; 0 is left out, which tf.data takes for none."""
    return 1 + (seed * 1_000_003 + epoch) % (2**31 - 2)


def _raw_records(files, training, seed, epoch, num_readers) -> tf.data.Dataset:
    """(file, number in it, serialized record) of every record.

    Outside of training in the order of the files, each read ahead.
    """
    files = list(files)
    if training:
        np.random.default_rng([seed, epoch]).shuffle(files)
    num_readers = min(num_readers, len(files)) if training else 1

    def read(path):
        paths = tf.data.Dataset.from_tensors(path).repeat()
        numbers = tf.data.Dataset.range(2**62)
        serialized = tf.data.TFRecordDataset(path, buffer_size=1 << 20)
        return tf.data.Dataset.zip((paths, numbers, serialized))

    return tf.data.Dataset.from_tensor_slices(files).interleave(
        read,
        cycle_length=num_readers,
        num_parallel_calls=num_readers,
        deterministic=True,
    )


def _filling_rows(count: int) -> tf.data.Dataset:
    """Records of no file. With B - 1 of them behind it, no video lacks a batch."""
    return tf.data.Dataset.from_tensors(("", np.int64(0), "")).repeat(count)


def _make_batch(paths, numbers, serialized, data, views, salt) -> structures.Batch:
    is_video = paths != ""
    numbers = tf.strings.as_string(numbers)
    origins = tf.strings.join([paths, ", record ", numbers, " (counted from 0)"])
    parsed = records.parse_batch(serialized, origins, data, is_video)
    video_ids = records.required_ids(parsed, data, is_video)
    keys = _video_keys(video_ids, salt)
    return {
        structures.VIDEO_ID: video_ids,
        structures.LABELS: records.multi_hot(parsed, data.num_classes),
        structures.WEIGHTS: tf.cast(is_video, tf.float32),
        structures.VIEWS: {
            name: _make_view(parsed, data, view, keys) for name, view in views.items()
        },
    }


def _video_keys(video_ids: tf.Tensor, salt: int) -> tf.Tensor:
    """[B] int64 that `random` draws from: the id, mixed with seed and epoch."""
    salted = tf.strings.join([video_ids, f"#{salt}"])
    return tf.strings.to_hash_bucket_fast(salted, 2**62)


def read_view(
    serialized: tf.Tensor, data: settings.DataSettings, view: ViewSpec
) -> tuple[tf.Tensor, structures.View]:
    """Ids and one view of serialized records, as evaluation sees them.

    Labels are not looked at; an id may be missing and is empty then.

    Args:
        serialized: [B] string.
        data: what the records hold.
        view: how the view is made.
    """
    numbers = tf.strings.as_string(tf.range(tf.size(serialized)))
    origins = tf.strings.join(["record ", numbers, " (counted from 0)"])
    is_video = tf.ones_like(serialized, tf.bool)
    parsed = records.parse_batch(serialized, origins, data, is_video)
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
    sampler = frame_sampling.SAMPLERS.get(view.sampler)
    indices, valid = sampler(parsed.num_frames, view.k, data.max_frames, keys)
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
