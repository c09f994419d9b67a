"""Thin shards, which contain only the sampled frames of each video; see yt8m-thin.

File names and the order of records are kept; the output is deterministic.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import (
    faults,
    framing,
    pipeline,
    records,
    rewriting,
    segments,
)

NUM_FRAMES = "num_frames"
FRAME_INDICES = "frame_indices"

_BATCH = 64  # Records parsed at a time.
_COMPARED = 16  # Records compared to see whether a shard was thinned in the same way.


@functools.cache
def _chooser(data: settings.DataSettings, view: pipeline.ViewSpec):
    """(path, number of the first record, serialized [B]) → (ids, indices, valid).

    Cached, since tracing the graph takes as long as thinning a few hundred videos.
    """

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([None], tf.string),
        ],
        autograph=False,
    )
    def choose(path, first, serialized):
        numbers = first + tf.range(tf.size(serialized, tf.int64))
        numbers = tf.strings.as_string(numbers)
        origins = tf.strings.join([path, ", record ", numbers, " (counted from 0)"])
        is_video = tf.ones_like(serialized, tf.bool)
        parsed = records.parse_batch(serialized, origins, data, is_video)
        video_ids = records.required_ids(parsed, data, is_video)
        return video_ids, *pipeline.choose_frames(parsed, view, data, video_ids)

    return choose


def thin_record(
    serialized: bytes, indices: Sequence[int], names: Sequence[str]
) -> bytes:
    """Reduces a serialized SequenceExample to some frames of some features.

    Raises:
        ValueError: if it was thinned before and its `frame_indices` do not match its
            frames.
    """
    full = tf.train.SequenceExample.FromString(serialized)
    lists = full.feature_lists.feature_list
    thin = tf.train.SequenceExample(context=full.context)
    for name in names:
        frames = lists[name].feature
        kept = thin.feature_lists.feature_list[name].feature
        kept.extend([frames[index] for index in indices])
    num_frames = min(len(lists[name].feature) for name in names)
    context = thin.context.feature
    for name in segments.KINDS:  # The frames of a segment are not all there.
        context.pop(name, None)
    if NUM_FRAMES in context and FRAME_INDICES in context:  # Thinned before.
        original = context[NUM_FRAMES].int64_list.value
        positions = context[FRAME_INDICES].int64_list.value
        if len(original) != 1 or len(positions) != num_frames:
            raise ValueError(
                f"its context has {len(original)} {NUM_FRAMES} and {len(positions)} "
                f"{FRAME_INDICES}, not 1 and {num_frames} as a record thinned to "
                f"{num_frames} frames."
            )
        (num_frames,) = original
        indices = [positions[index] for index in indices]
    for name, values in ((NUM_FRAMES, [num_frames]), (FRAME_INDICES, indices)):
        numbers = tf.train.Int64List(value=values)
        context[name].CopyFrom(tf.train.Feature(int64_list=numbers))
    # Otherwise the order of features differs between processes.
    return thin.SerializeToString(deterministic=True)


def thin_records(
    path: str, data: settings.DataSettings, view: pipeline.ViewSpec
) -> Iterator[bytes]:
    """The thinned records of a shard, in order.

    Raises:
        ValueError: if the sampler selects no frame of a record.
        tf.errors.OpError: as records.parse_batch, for an invalid record.
    """
    choose, number = _chooser(data, view), 0
    compression = framing.compression_of(path)
    dataset = tf.data.TFRecordDataset(path, compression, buffer_size=1 << 20)
    dataset = dataset.batch(_BATCH)
    for batch in dataset.prefetch(1):
        ids, indices, valid = (part.numpy() for part in choose(path, number, batch))
        for row, serialized in enumerate(batch.numpy()):
            where = (
                f"{path}, record {number} (counted from 0), video "
                f"{ids[row].decode(errors='replace')}"
            )
            if not valid[row]:
                raise ValueError(
                    f"{where}: --frame_sampler={view.sampler} selects none of its "
                    "frames, and a record needs at least one."
                )
            chosen = indices[row, : valid[row]].tolist()
            try:
                yield thin_record(serialized, chosen, data.names)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            number += 1


def _first_records(path: str) -> list[bytes]:
    """The first records of a shard, up to the first damaged one."""
    first = []
    try:
        for record in tf.data.TFRecordDataset(path, framing.compression_of(path)).take(
            _COMPARED
        ):
            first.append(record.numpy())
    except tf.errors.DataLossError:
        pass
    return first


def _is_complete(
    target: str, thinned: Iterator[bytes], count: int, overwrite: bool
) -> bool:
    """Whether the target exists with the expected records.

    Args:
        target: path of the thin shard.
        thinned: the expected records.
        count: their number.
        overwrite: treat an existing target as missing.

    Raises:
        ValueError: if the target contains other records.
    """
    if overwrite or not tf.io.gfile.exists(target):
        return False
    existing = _first_records(target)
    if existing != list(itertools.islice(thinned, len(existing))):
        raise ValueError(
            f"{target} exists with other records, perhaps of another --student_k or "
            "--frame_sampler. Use --overwrite or another --output_dir."
        )
    try:
        return framing.count_records([target]) == count
    except ValueError:  # Truncated.
        return False


def thin_shard(
    source: str,
    count: int,
    folder: str,
    data: settings.DataSettings,
    view: pipeline.ViewSpec,
    overwrite: bool = False,
) -> bool:
    """Writes one thin shard, atomically.

    Args:
        source: the full shard.
        count: number of its records.
        folder: output folder; the thin shard has the same file name.
        data: description of the records.
        view: the sampler and its k.
        overwrite: replace an existing shard.

    Returns:
        False if the thin shard existed already.

    Raises:
        ValueError: one line, for a bad record or an existing shard with other records.
    """
    target = os.path.join(folder, os.path.basename(source))
    with faults.named([source], target):
        thinned = thin_records(source, data, view)
        if _is_complete(target, thinned, count, overwrite):
            return False
        with rewriting.writing(target) as writer:
            for record in thin_records(source, data, view):
                writer.write(record)
    return True


def view_to_keep(
    sampling: settings.SamplingSettings, max_frames: int
) -> pipeline.ViewSpec:
    """The view of each video that a thin shard contains.

    Raises:
        ValueError: for an unknown sampler, `all`, or a k above max_frames.
    """
    view = pipeline.sampled_view(sampling, training=False)
    if view.sampler == "all":
        raise ValueError("--frame_sampler=all keeps every frame: name another one.")
    if view.k > max_frames:
        raise ValueError(
            f"--student_k={view.k} is more than --max_frames={max_frames}."
        )
    return view
