"""The judge: what a valid record holds, or the fault of an invalid one.

Index, pipeline, skipped records, yt8m-inspect and yt8m-thin all ask it. It runs outside
the graph; a server checks features by the same rules in the graph (data/parsing.py).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from yt8m_distill import settings
from yt8m_distill.data import faults, parsing, records, segments, wire


class Video(NamedTuple):
    """What a valid record holds.

    Attributes:
        record: the record.
        video_id: its id.
        labels: its classes, unsorted, repeats possible.
        frames: name → the frames of each feature, 0 if it is missing. The floats of a
            video-level record are one frame.
        num_frames: of the shortest feature; 1 for video-level records.
        loose: what `frames` are offsets in, for an encoding that only a parser reads;
            empty if that is the record.
        ratings: of its segments, with --segment_labels.
    """

    record: faults.Record
    video_id: bytes
    labels: list[int]
    frames: dict[str, wire.Frames]
    num_frames: int
    loose: bytes = b""
    ratings: Sequence[segments.Rating] = ()

    def frames_of(self, name: str) -> Sequence[np.ndarray]:
        """[T, size] uint8, the frames of a feature; empty if it is missing."""
        found = self.frames[name]
        return found.rows(self.loose or self.record.content) if found.count else ()


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


def judge_batch(
    batch: Sequence[faults.Record], data: settings.DataSettings
) -> Iterator[Video]:
    """Validates records; raises ValueError, naming the first invalid one."""
    odd = [number for number, record in enumerate(batch) if record.layout is None]
    read = dict.fromkeys(range(len(batch)))
    if len(odd) > 1:  # Together they take a fifth of the time.
        contents = [bytes(batch[number].content) for number in odd]
        read |= zip(odd, parsing.read_by_parser(contents, data) or (), strict=False)
    for number, record in enumerate(batch):
        try:
            yield judge(record, data, read[number])
        except faults.Invalid as error:
            raise ValueError(record.bad(error).message) from error


def judge(
    record: faults.Record,
    data: settings.DataSettings,
    read: parsing.Read | None = None,
) -> Video:
    """Validates a record.

    A record in the encoding of all writers is not parsed but located. Any other holds
    what TensorFlow's parser reads, as in a server: it rejects some encodings that
    protobuf's accepts. Protobuf's names the fault.

    Args:
        read: what TensorFlow's parser reads of it, if that is known.

    Raises:
        Invalid: for an invalid record.
    """
    video_id = _judge_id(record.context.feature, data)
    try:
        video = None
        if record.layout is None:
            video = _read_by_parser(record, data, read)
        if video is None:
            video = _read_by_protobuf(record, data, video_id)
        if data.segment_labels:
            read_frames = min(video.num_frames, data.max_frames)
            ratings, detail = segments.read(record.context)
            detail = detail or segments.problem(ratings, read_frames, data)
            if detail:
                raise faults.Invalid(faults.Fault.SEGMENTS, detail)
            video = video._replace(ratings=ratings)
        return video
    except faults.Invalid as error:
        error.video_id = video_id
        raise


def _read_by_protobuf(record: faults.Record, data, video_id: bytes) -> Video:
    """The located video without its ratings; raises Invalid if there is none."""
    feature = record.context.feature.get(data.labels_key)
    kind, values = records.kind_and_values(feature)
    labels = list(values)
    if kind:
        judge_labels(labels, kind, data)
    if frames := _located(record, data):
        return Video(record, video_id, labels, frames, _shortest(frames))
    _judge_features(record, data)
    raise faults.Invalid(faults.Fault.NOT_AN_EXAMPLE, faults.NOT_AN_EXAMPLE)


def _read_by_parser(
    record: faults.Record, data, read: parsing.Read | None
) -> Video | None:
    """The video without its ratings; None if TensorFlow's parser refuses the record.

    Raises:
        Invalid: for its labels, or its features at video level.
    """
    if not data.frame_features:  # Of numbers that come twice TensorFlow reads the last.
        _judge_features(record, data)
    if read is None:
        (read,) = parsing.read_by_parser([bytes(record.content)], data) or [None]
    if read is None or not read.video_id:
        return None
    judge_labels(read.labels, "int64", data)
    frames, loose = {}, b""
    for name, strings in zip(data.names, read.frames, strict=True):
        size = len(strings[0]) if strings else 0
        found = wire.Frames(len(loose), size, len(strings), size)
        frames[name] = found if strings else _MISSING
        loose += b"".join(strings)
    return Video(record, read.video_id, read.labels, frames, _shortest(frames), loose)


def _judge_id(context, data: settings.DataSettings) -> bytes:
    key = data.video_id_key
    kind, values = records.kind_and_values(context.get(key))
    if not values or values[0] == b"":
        raise faults.Invalid(
            faults.Fault.NO_ID, f"there is no id. Is --video_id_key={key} right?"
        )
    if kind != "bytes":
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
        kind: `int64`, `float` or `bytes`.

    Raises:
        Invalid: without the id of the video.
    """
    key, classes = data.labels_key, data.num_classes
    # Integers are a 0/1 vector only if their number is C; floats are never indices.
    could_be = kind == "float" or (kind == "int64" and len(labels) == classes)
    if could_be and len(labels) > 2 and all(value in (0, 1) for value in labels):
        raise faults.Invalid(
            faults.Fault.LABEL_VECTOR,
            f"--labels_key={key} holds a vector of {len(labels)} zeros and ones, not "
            "the indices of the labels; yt8m-convert turns one into the other.",
        )
    if kind != "int64":
        raise faults.Invalid(
            faults.Fault.LABEL_TYPE,
            f"--labels_key={key} holds {kind}, not int64; yt8m-convert turns whole "
            "floats into integers.",
        )
    for label in labels:
        if not 0 <= label < classes:
            raise faults.Invalid(
                faults.Fault.LABEL_RANGE,
                f"label {label} is not in 0..{classes - 1}, the range of "
                "--num_classes.",
            )


_MISSING = wire.Frames(-1, 0, 0, 0)
_FLAGS = " Are --feature_names, --feature_sizes and --frame_features right?"


def _located(
    record: faults.Record, data: settings.DataSettings
) -> dict[str, wire.Frames]:
    """`Video.frames` of a valid record; empty if they cannot be located."""
    layout, frames = record.layout, {}
    if layout is None:
        return {}
    may_lack = data.frame_features and data.missing_feature == "zeros"
    for name, size in zip(data.names, data.sizes, strict=True):
        if data.frame_features:
            found = layout.features.get(name, _MISSING)
        else:
            found = layout.floats(record.content, name)
            size *= 4
        if not (found.size == size if found.count else may_lack):
            return {}
        if not data.frame_features:
            numbers = found.rows(record.content).view("<f4")
            if not np.isfinite(numbers).all():
                return {}
        frames[name] = found if found.count else _MISSING
    return frames if any(found.count for found in frames.values()) else {}


def _shortest(frames: dict[str, wire.Frames]) -> int:
    """The number of frames of a video: of its shortest feature."""
    return min(found.count for found in frames.values() if found.count)


def _judge_features(record: faults.Record, data: settings.DataSettings) -> None:
    """Checks the features of a record, as protobuf reads them."""
    lists = record.example.feature_lists.feature_list
    for name, size in zip(data.names, data.sizes, strict=True):
        if data.frame_features:
            _judge_frames(lists, data, name, size)
        else:
            _judge_vector(record.context.feature, name, size)


def _judge_frames(lists, data, name: str, size: int) -> None:
    """Checks a frame-level feature: one byte string of `size` bytes per frame."""
    steps = lists[name].feature if name in lists else ()
    if not steps:
        if data.missing_feature == "zeros" and any(
            other in lists for other in data.names
        ):
            return
        text = parsing.NO_FRAMES.format(name=name) + _FLAGS
        raise faults.Invalid(faults.Fault.NO_FRAMES, text)
    for step in steps:
        kind, values = records.kind_and_values(step)
        if kind != "bytes":
            raise faults.Invalid(
                faults.Fault.FRAME_TYPE,
                f"feature {name} holds {kind or 'nothing'}, not bytes; yt8m-convert "
                "quantizes frames.",
            )
        if len(values) != 1:
            text = parsing.STRINGS.format(name=name, value=len(values))
            raise faults.Invalid(faults.Fault.ONE_FEATURE, text)
        width = len(values[0])
        if width != size:
            whole = width and width % size == 0 and len(steps) == 1
            raise faults.Invalid(
                faults.Fault.ONE_FEATURE if whole else faults.Fault.WIDTH,
                parsing.WIDTH.format(name=name, value=width, size=size) + _FLAGS,
            )


def _judge_vector(context, name: str, size: int) -> None:
    """Checks a video-level feature: `size` finite floats."""
    kind, values = records.kind_and_values(context.get(name))
    if kind not in ("", "float"):
        raise faults.Invalid(
            faults.Fault.FRAME_TYPE, f"feature {name} holds {kind}, not floats."
        )
    values = np.array(values, np.float32)
    if len(values) != size:
        text = parsing.NUMBERS.format(name=name, value=len(values), size=size)
        raise faults.Invalid(faults.Fault.WIDTH, text + _FLAGS)
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
