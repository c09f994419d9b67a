"""Thin shards, which contain only the sampled frames of each video; see yt8m-thin.

File names and the order of records are kept; the output is deterministic.
"""

import itertools
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.data import (
    faults,
    judging,
    pipeline,
    rewriting,
    segments,
)

NUM_FRAMES = "num_frames"
FRAME_INDICES = "frame_indices"

_BATCH = 64  # Videos whose frames are chosen at a time.


def thin_record(
    video: judging.Video, indices: Sequence[int], names: Sequence[str]
) -> bytes:
    """Reduces a record to some frames of some features.

    Raises:
        ValueError: if it was thinned before and its `frame_indices` do not match its
            frames.
    """
    thin = tf.train.SequenceExample(context=video.record.context)
    features = {name: video.frames_of(name) for name in names}
    features = {name: frames for name, frames in features.items() if len(frames)}
    for name, frames in features.items():
        kept = thin.feature_lists.feature_list[name].feature
        for index in indices:
            kept.add().bytes_list.value.append(bytes(frames[index]))
    num_frames, context = min(map(len, features.values())), thin.context.feature
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
        ValueError: for an invalid record, or if the sampler selects no frame of it.
    """
    videos = judging.read(path, data)
    while some := list(itertools.islice(videos, _BATCH)):
        for video in some:
            if isinstance(video, faults.Bad):
                raise ValueError(video.message)
        counts = [video.num_frames for video in some]
        video_ids = [video.video_id for video in some]
        chosen = pipeline.pick_frames(view, counts, data.max_frames, video_ids)
        for video, indices in zip(some, chosen, strict=True):
            name = structures.readable_id(video.video_id)
            where = f"{video.record.where}, video {name}"
            if not indices:
                raise ValueError(
                    f"{where}: --frame_sampler={view.sampler} selects none of its "
                    "frames, and a record needs at least one."
                )
            try:
                yield thin_record(video, indices, data.names)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


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
        count: number of its records.
        folder: output folder; the thin shard has the same file name.

    Returns:
        False if the thin shard existed already.

    Raises:
        ValueError: one line, for a bad record or an existing shard with other records.
    """
    target = os.path.join(folder, os.path.basename(source))
    with faults.named([source], target):
        thinned = thin_records(source, data, view)
        if not overwrite and rewriting.is_written(target, thinned, count):
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
