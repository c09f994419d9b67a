"""Shards that hold only the sampled frames of each video; see yt8m-thin.

A shard keeps its name, its records their order. Made twice, its bytes are the same.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import pipeline, records, rewriting

NUM_FRAMES = "num_frames"
FRAME_INDICES = "frame_indices"

_BATCH = 64  # Records that are parsed together.
_COMPARED = 16  # First records by which a shard shows how it was thinned.


@functools.cache
def _chooser(data: settings.DataSettings, view: pipeline.ViewSpec):
    """A graph: path, number of the first record, serialized [B] → ids, indices, valid.

    Cached, since tracing it takes as long as thinning a few hundred videos.
    """

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([None], tf.string),
        ]
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
    """A serialized SequenceExample with these frames of these features alone.

    Raises:
        ValueError: if its `frame_indices` are not those of its frames.
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
    # Otherwise the order of features changes from process to process.
    return thin.SerializeToString(deterministic=True)


def thin_records(
    path: str, data: settings.DataSettings, view: pipeline.ViewSpec
) -> Iterator[bytes]:
    """The thinned records of a shard, in their order.

    Raises:
        ValueError: for a record of which the sampler chooses no frame.
        tf.errors.OpError: as records.parse_batch, for a record that is none.
    """
    choose, number = _chooser(data, view), 0
    compression = records.compression_of(path)
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
                    f"{where}: --frame_sampler={view.sampler} chooses none of its "
                    "frames, and a record needs one."
                )
            chosen = indices[row, : valid[row]].tolist()
            try:
                yield thin_record(serialized, chosen, data.names)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            number += 1


def _first_records(path: str) -> list[bytes]:
    """The first records of a shard, fewer where it is damaged."""
    found = []
    try:
        for record in tf.data.TFRecordDataset(path, records.compression_of(path)).take(
            _COMPARED
        ):
            found.append(record.numpy())
    except tf.errors.DataLossError:
        pass
    return found


def _is_made_already(
    target: str, thinned: Iterator[bytes], count: int, overwrite: bool
) -> bool:
    """Whether this very shard stands there, whole.

    Args:
        target: the shard.
        thinned: the records that it is to hold.
        count: how many these are.
        overwrite: it is to be written anew whatever it is.

    Raises:
        ValueError: if a shard with other records does.
    """
    if overwrite or not tf.io.gfile.exists(target):
        return False
    found = _first_records(target)
    if found != list(itertools.islice(thinned, len(found))):
        raise ValueError(
            f"{target} stands there with other records, perhaps of another "
            "--student_k or --frame_sampler. Use --overwrite or another --output_dir."
        )
    try:
        return records.count_records([target]) == count
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
    """Writes one shard under its final name once it is whole.

    Args:
        source: the full shard.
        count: records in it.
        folder: where the thin one goes, under the same name.
        data: what the records hold.
        view: the sampler and its k.
        overwrite: also where it stands already.

    Returns:
        False if it stood there already.

    Raises:
        ValueError: for a bad record, or another shard in its place. One line.
    """
    target = os.path.join(folder, os.path.basename(source))
    with rewriting.named_errors(source, target):
        thinned = thin_records(source, data, view)
        if _is_made_already(target, thinned, count, overwrite):
            return False
        with rewriting.writing(target) as writer:
            for record in thin_records(source, data, view):
                writer.write(record)
    return True


def view_to_keep(
    sampling: settings.SamplingSettings, max_frames: int
) -> pipeline.ViewSpec:
    """The view of a video that a thin shard holds.

    Raises:
        ValueError: for an unknown sampler, `all`, or a k above max_frames.
    """
    view = pipeline.sampled_view(sampling, training=False)
    if view.sampler == "all":
        raise ValueError("--frame_sampler=all leaves no frame out: name another one.")
    if view.k > max_frames:
        raise ValueError(
            f"--student_k={view.k} is more than --max_frames={max_frames}."
        )
    return view
