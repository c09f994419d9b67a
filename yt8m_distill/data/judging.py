"""The judge: what a valid record holds, or the fault of an invalid one.

Index, skipped records, yt8m-inspect and yt8m-thin all ask it. It runs outside the
graph; the pipeline checks the same rules in the graph (data/records.py).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import faults, records, segments


class Video(NamedTuple):
    """What a valid record holds.

    Attributes:
        record: the record.
        video_id: its id.
        labels: its classes, unsorted, repeats possible.
        frames: for each feature the offset of frame 0 in the record (-1 if it is
            missing), bytes from one frame to the next, and number of frames; empty for
            an encoding that only a parser reads, and for video-level records.
        num_frames: of the shortest feature; 0 for video-level records.
        strings: name → [T] string, the frames of each feature if `frames` is empty.
    """

    record: faults.Record
    video_id: bytes
    labels: list[int]
    frames: list[int]
    num_frames: int
    strings: dict[str, tf.Tensor]

    def frames_of(self, name: str) -> Sequence[bytes | np.ndarray]:
        """The bytes of each frame of a feature, which may be missing."""
        if not self.frames:
            return self.strings[name].numpy()
        found = self.record.layout.features.get(name)
        return found.rows(self.record.content) if found and found.count else ()


def read(path: str, data: settings.DataSettings) -> Iterator[Video | faults.Bad]:
    """What is known of each record of a shard, in order; raises as faults.walk."""
    for record in faults.walk(path):
        if isinstance(record, faults.Bad):
            yield record
            continue
        try:
            yield judge(record, data)
        except faults.Invalid as error:
            yield record.bad(error)


def judge(record: faults.Record, data: settings.DataSettings) -> Video:
    """Validates a record.

    A record in the encoding of all writers is not parsed but located. Any other holds
    what the graph reads, whose parser rejects some encodings that protobuf's accepts;
    protobuf's, which is faster with invalid records, names the fault.

    Raises:
        Invalid: for an invalid record.
    """
    context = record.context.feature
    video_id = _judge_id(context, data)
    try:
        labels = []
        if data.labels_key in context and context[data.labels_key].WhichOneof("kind"):
            feature = context[data.labels_key]
            labels = list(_values(feature))
            judge_labels(labels, feature.WhichOneof("kind"), data)
        frames = _located(record, data)
        if frames:
            num_frames = min(filter(None, frames[2::3]))
        else:
            num_frames = _judge_features(record, data)
        if data.segment_labels:
            read_frames = min(num_frames, data.max_frames)
            ratings, detail = segments.read(record.context)
            detail = detail or segments.problem(ratings, read_frames, data)
            if detail:
                raise faults.Invalid(faults.Fault.SEGMENTS, detail)
        if frames:
            return Video(record, video_id, labels, frames, num_frames, {})
        if video := _parsed(record, data):
            return video
        raise faults.Invalid(faults.Fault.NOT_AN_EXAMPLE, faults.NOT_AN_EXAMPLE)
    except faults.Invalid as error:
        error.video_id = video_id
        # A frame with several lists of byte strings is one frame of several strings for
        # protobuf, and several frames for TensorFlow's parser (seen in 2.15 and 2.21).
        several = error.fault is faults.Fault.ONE_FEATURE
        if several and (video := _parsed(record, data)):
            return video
        raise


def _values(feature: tf.train.Feature):
    """The values of a feature of any type; empty if it is unset."""
    kind = feature.WhichOneof("kind")
    return getattr(feature, kind).value if kind else ()


def _judge_id(context, data: settings.DataSettings) -> bytes:
    key = data.video_id_key
    feature = context[key] if key in context else tf.train.Feature()
    values = _values(feature)
    if not values or values[0] == b"":
        raise faults.Invalid(
            faults.Fault.NO_ID, f"there is no id. Is --video_id_key={key} right?"
        )
    if feature.WhichOneof("kind") != "bytes_list":
        kind = feature.WhichOneof("kind").removesuffix("_list")
        raise faults.Invalid(
            faults.Fault.ID_TYPE,
            f"the id under --video_id_key={key} is {kind}, not bytes; yt8m-convert "
            "makes it text.",
        )
    if len(values) != 1:
        raise faults.Invalid(
            faults.Fault.ID_TYPE,
            f"there are {len(values)} ids under --video_id_key={key}.",
        )
    return values[0]


def judge_labels(labels, kind: str, data: settings.DataSettings) -> None:
    """Checks the values of the feature under --labels_key.

    Args:
        labels: the values.
        kind: `int64_list`, `float_list` or `bytes_list`.
        data: gives the number of classes.

    Raises:
        Invalid: without the id of the video.
    """
    key, classes = data.labels_key, data.num_classes
    # Integers are a 0/1 vector only if their number is C; floats are never indices.
    could_be = kind == "float_list" or (kind == "int64_list" and len(labels) == classes)
    if could_be and len(labels) > 2 and all(value in (0, 1) for value in labels):
        raise faults.Invalid(
            faults.Fault.LABEL_VECTOR,
            f"--labels_key={key} holds a vector of {len(labels)} zeros and ones, not "
            "the indices of the labels; yt8m-convert turns one into the other.",
        )
    if kind != "int64_list":
        raise faults.Invalid(
            faults.Fault.LABEL_TYPE,
            f"--labels_key={key} holds {kind.removesuffix('_list')}, not int64; "
            "yt8m-convert turns whole floats into integers.",
        )
    for label in labels:
        if not 0 <= label < classes:
            raise faults.Invalid(
                faults.Fault.LABEL_RANGE,
                f"label {label} is not in 0..{classes - 1}, the range of "
                "--num_classes.",
            )


def _located(record: faults.Record, data: settings.DataSettings) -> list[int]:
    """`Video.frames` of a valid frame-level record, if they can be located."""
    if not data.frame_features or record.layout is None:
        return []
    frames: list[int] = []
    for name, size in zip(data.names, data.sizes, strict=True):
        found = record.layout.features.get(name)
        if found and found.count and found.size == size:
            frames += [found.first, found.stride, found.count]
        elif data.missing_feature == "zeros" and not (found and found.count):
            frames += [-1, 0, 0]
        else:
            return []
    return frames if any(frames[2::3]) else []


def _judge_features(record: faults.Record, data: settings.DataSettings) -> int:
    """Checks the features of a record; returns its number of frames."""
    lists = record.example.feature_lists.feature_list
    for name, size in zip(data.names, data.sizes, strict=True):
        if data.frame_features:
            _judge_frames(lists, data, name, size)
        else:
            _judge_vector(record.context.feature, name, size)
    counts = [len(lists[name].feature) for name in data.names if name in lists]
    return min(filter(None, counts), default=0)


def _judge_frames(lists, data, name: str, size: int) -> None:
    """Checks a frame-level feature: one byte string of `size` bytes per frame."""
    steps = lists[name].feature if name in lists else ()
    if not steps:
        if data.missing_feature == "zeros" and any(
            other in lists for other in data.names
        ):
            return
        raise faults.Invalid(
            faults.Fault.NO_FRAMES,
            f"feature {name} has no frames. Is --feature_names right, and is this "
            "frame-level data?",
        )
    for step in steps:
        kind = step.WhichOneof("kind")
        if kind != "bytes_list":
            raise faults.Invalid(
                faults.Fault.FRAME_TYPE,
                f"feature {name} holds {(kind or 'nothing').removesuffix('_list')}, "
                "not bytes; yt8m-convert quantizes frames.",
            )
        values = step.bytes_list.value
        if len(values) != 1:
            raise faults.Invalid(
                faults.Fault.ONE_FEATURE,
                f"a frame of feature {name} is {len(values)} byte strings, not 1.",
            )
        if len(values[0]) != size:
            whole = len(values[0]) % size == 0 and len(steps) == 1
            raise faults.Invalid(
                faults.Fault.ONE_FEATURE if whole and values[0] else faults.Fault.WIDTH,
                f"a frame of feature {name} is {len(values[0])} bytes wide, not the "
                f"{size} of --feature_sizes.",
            )


def _judge_vector(context, name: str, size: int) -> None:
    """Checks a video-level feature: `size` finite floats."""
    feature = context[name] if name in context else tf.train.Feature()
    kind = feature.WhichOneof("kind") or "float_list"
    if kind != "float_list":
        raise faults.Invalid(
            faults.Fault.FRAME_TYPE,
            f"feature {name} holds {kind.removesuffix('_list')}, not floats.",
        )
    values = np.array(feature.float_list.value, np.float32)
    if len(values) != size:
        raise faults.Invalid(
            faults.Fault.WIDTH,
            f"feature {name} has {len(values)} numbers, not the {size} of "
            "--feature_sizes. Is --feature_names right, and is this video-level data?",
        )
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise faults.Invalid(
            faults.Fault.NOT_FINITE,
            f"number {where} of feature {name} is {values[where]}.",
        )


def judge_ranges(record: faults.Record, data: settings.DataSettings) -> str:
    """An error if a record was quantized over other ranges than --feature_ranges.

    Not a fault of the record, so only the first record is checked.
    """
    context = record.context.feature
    stored = [records.stored_range(context, name) for name in data.names]
    expected = [tuple(np.float32(pair).tolist()) for pair in data.ranges]
    if stored == expected:
        return ""
    text = ",".join(f"{low:g}:{high:g}" for low, high in stored)
    return (
        f"its features have the ranges {text}: use --feature_ranges={text}, not "
        f"{data.feature_ranges or 'the default -2:2'}."
    )


def _parsed(record: faults.Record, data: settings.DataSettings) -> Video | None:
    """What the graph reads; None for a record that it rejects."""
    try:
        parsed = _parser(data)(tf.constant([record.content]), tf.constant([""]))
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.DataLossError,
        UnicodeDecodeError,
    ):
        return None
    strings = {}
    if data.frame_features:
        frames = (feature.values for feature in parsed.frames)
        strings = dict(zip(data.names, frames, strict=True))
    num_frames = min(filter(None, map(len, strings.values())), default=0)
    video_id, labels = parsed.video_ids.numpy()[0], parsed.labels.values.numpy()
    return Video(record, video_id, labels.tolist(), [], num_frames, strings)


@functools.lru_cache(maxsize=8)
def _parser(data: settings.DataSettings):
    """A traced function that parses a record as the pipeline does."""
    text = tf.TensorSpec([1], tf.string)

    @tf.function(input_signature=[text, text], autograph=False)  # See build_dataset.
    def parse(serialized, origins):
        return records.parse_batch(serialized, origins, data, tf.constant([True]))

    return parse
