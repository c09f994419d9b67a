"""Reads records of other writers: where ids, labels and frames are, and in what form.

Frames are byte strings, integers or floats, in one Feature per frame or all in one;
labels are indices, floats or a 0/1 vector; a file is a TFRecord file or one bare
SequenceExample.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import faults, framing

# Published data sets: widths of features, classes of each version, maximum frames.
PUBLISHED = (
    ({"inc3": 1024, "mean_inc3": 1024}, (4800,), 300),
    ({"rgb": 1024, "audio": 128}, (3862, 4716, 4800), 300),
    ({"mean_rgb": 1024, "mean_audio": 128}, (3862, 4716, 4800), 300),
    ({"audio_embedding": 128}, (527,), 10),
)
_WIDTHS = {name: width for known, *_ in PUBLISHED for name, width in known.items()}
MAX_CLASSES, MAX_FRAMES = (
    settings.DataSettings.__dataclass_fields__[name].metadata["maximum"]
    for name in ("num_classes", "max_frames")
)
_RARE = 20  # A feature in less than one video of so many is ignored.
_IS_ID = re.compile(r"(?i)(.*[^a-z])?(video|media|clip|file)?_?(id|name|path|url)")
_IS_LABELS = re.compile(
    r"(?i)(.*[^a-z])?(labels?|class(es)?|tags?|targets?)([^a-z].*)?"
)


class Source(NamedTuple):
    """The source of a native feature.

    Attributes:
        name: of the native feature.
        key: of the feature list or context feature in the input.
        size: width of a frame; 0 for any width, with one frame per Feature.
    """

    name: str
    key: str
    size: int = 0


class Layout(NamedTuple):
    """The form of a writer's records.

    Attributes:
        sources: the features.
        video_id_key, labels_key: context keys.
        frame_features: False for one float vector per feature and video.
        missing_feature: see DataSettings.
        ranges: low and high of each source, for quantizing floats; empty for
            YouTube-8M's.
    """

    sources: tuple[Source, ...]
    video_id_key: str = "id"
    labels_key: str = "labels"
    frame_features: bool = True
    missing_feature: str = "refuse"
    ranges: tuple[tuple[float, float], ...] = ()


class Video(NamedTuple):
    """The contents of a record.

    Attributes:
        video_id: empty if missing.
        labels: indices.
        frames: name → [T, size] uint8 or float32, of the features that it has.
    """

    video_id: bytes
    labels: list[int]
    frames: dict[str, np.ndarray]


def read_id(feature: tf.train.Feature | None) -> bytes:
    """The id: one byte string, or one integer as decimal text; otherwise empty."""
    if feature is None:
        return b""
    values = feature.bytes_list.value or feature.int64_list.value
    if len(values) != 1:
        return b""
    return values[0] if isinstance(values[0], bytes) else str(values[0]).encode()


def label_vector(feature: tf.train.Feature | None) -> int:
    """The length of a 0/1 vector over all classes; 0 for a list of indices.

    Three or more numbers that are all 0 or 1 are a vector, since indices would repeat.
    """
    feature = feature or tf.train.Feature()
    values = feature.int64_list.value or feature.float_list.value
    return len(values) if len(values) > 2 and set(values) <= {0, 1} else 0


def read_labels(feature: tf.train.Feature | None) -> list[int]:
    """Label indices from a list of indices or a 0/1 vector over all classes.

    Raises:
        Invalid: for text, or a number that is not an integer in [0, MAX_CLASSES).
    """
    if feature is None:
        return []
    if feature.bytes_list.value:
        raise faults.Invalid(faults.Fault.LABEL_TYPE, "labels are text, not numbers.")
    values = list(feature.int64_list.value) or list(feature.float_list.value)
    for value in values:
        if not float(value).is_integer():
            raise faults.Invalid(
                faults.Fault.LABEL_TYPE, f"label {value} is not whole."
            )
        if not 0 <= value < MAX_CLASSES:
            detail = f"label {value} is not in 0..{MAX_CLASSES - 1}."
            raise faults.Invalid(faults.Fault.LABEL_RANGE, detail)
    if label_vector(feature):
        return [index for index, value in enumerate(values) if value]
    return [int(value) for value in values]


def _rows(feature: tf.train.Feature, size: int = 0) -> list[np.ndarray]:
    """The frames in one Feature, as uint8 (from bytes or integers) or float32."""
    strings = feature.bytes_list.value
    if strings:
        flat = [np.frombuffer(string, np.uint8) for string in strings]
    elif feature.int64_list.value:
        numbers = np.array(feature.int64_list.value, np.int64)
        if numbers.min() < 0 or numbers.max() > 255:
            raise ValueError("an integer of a frame is not in 0..255")
        flat = [numbers.astype(np.uint8)]
    else:
        flat = [np.array(feature.float_list.value, np.float32)]
    if not size:
        return flat
    numbers = np.concatenate(flat)
    if numbers.size % size:
        raise ValueError(f"{numbers.size} numbers are not frames of {size}")
    return list(numbers.reshape(-1, size))


def _features(record: faults.Record, key: str) -> list[tf.train.Feature]:
    context = record.context.feature
    if record.layout is None or key in record.layout.features:
        lists = record.example.feature_lists.feature_list
        if key in lists:
            return list(lists[key].feature)
    return [context[key]] if key in context else []


def _frames(record: faults.Record, source: Source, split: bool) -> np.ndarray | None:
    """[T, size] uint8 or float32, None if there are none.

    With `split` one Feature may contain all frames.
    """
    located = record.layout and record.layout.features.get(source.key)
    fits = located and located.size and source.size in (0, located.size)
    if fits and located.count:
        return located.rows(record.content)
    features, where = _features(record, source.key), f"feature {source.key}"
    if not features:
        return None
    size = source.size if split and len(features) == 1 else 0
    try:
        frames = [row for feature in features for row in _rows(feature, size)]
    except ValueError as error:
        raise faults.Invalid(faults.Fault.FRAME_TYPE, f"{where}: {error}.") from error
    widths = sorted({frame.size for frame in frames})
    if len(widths) != 1 or not widths[0] or source.size not in (0, *widths):
        expected = f", not {source.size}" if source.size else ""
        detail = f"{where} has frames of widths {widths}{expected}."
        raise faults.Invalid(faults.Fault.WIDTH, detail)
    if len({frame.dtype for frame in frames}) > 1:
        raise faults.Invalid(faults.Fault.FRAME_TYPE, f"{where} has floats and bytes.")
    stacked = np.stack(frames)
    if not np.isfinite(stacked).all():
        detail = f"{where} has a number that is not finite."
        raise faults.Invalid(faults.Fault.NOT_FINITE, detail)
    return stacked


def read_video(record: faults.Record, layout: Layout) -> Video:
    """Reads one record.

    Raises:
        Invalid: if it cannot be read.
    """
    context = record.context.feature
    labels = read_labels(context.get(layout.labels_key))
    frames = {s: _frames(record, s, layout.frame_features) for s in layout.sources}
    missing = [source.key for source, found in frames.items() if found is None]
    frames = {s.name: found for s, found in frames.items() if found is not None}
    if missing and not (frames and layout.missing_feature == "zeros"):
        raise faults.Invalid(
            faults.Fault.NO_FRAMES, f"there is no feature {missing[0]}."
        )
    return Video(read_id(context.get(layout.video_id_key)), labels, frames)


def is_bare(path: str) -> bool:
    """Whether a file has no TFRecord framing and is not compressed."""
    with tf.io.gfile.GFile(path, "rb") as file:
        header = file.read(framing.HEADER)
    framed = not header or framing.header_length(header) is not None
    return not framed and not framing.compression_of(path)


def records_of(path: str) -> Iterator[faults.Record]:
    """The records of a TFRecord file, or the one of a file without framing.

    Raises:
        ValueError: for a file that is neither, or at a damage.
        tf.errors.OpError: for a file that cannot be read.
    """
    if not is_bare(path):
        yield from faults.sound(path)
        return
    with tf.io.gfile.GFile(path, "rb") as file:
        record = faults.Record(file.read(), path)
    if not record.is_example:
        detail = f"{framing.NOT_RECORDS}, and {faults.NOT_AN_EXAMPLE}"
        raise ValueError(f"{path}: damaged at byte 0: {detail}")
    yield record


def count(path: str) -> int:
    """The number of records_of a file, from the lengths in their headers.

    Raises:
        ValueError: for a truncated file.
    """
    return 1 if is_bare(path) else framing.count_records(path)


def recognize(
    samples: Sequence[faults.Record], video_id_key: str, labels_key: str
) -> tuple[Layout, dict[str, str]]:
    """The layout of some records, and the reason for each feature that is not read.

    Audio features come last. Empty keys are searched for. The records can be parsed.
    """
    contexts = [record.context.feature for record in samples]
    kinds = {k: f.WhichOneof("kind") or "" for c in contexts for k, f in c.items()}
    keys = [key for key in sorted(kinds) if not key.startswith("segment")]
    labels = [key for key in keys if _IS_LABELS.fullmatch(key)]
    # `clip/label/index` before `clip/label/string`.
    labels.sort(key=lambda key: (key != "labels", kinds[key] == "bytes_list"))
    ids = [key for key in keys if _IS_ID.fullmatch(key) and key not in labels]
    ids.sort(key=lambda key: (key not in ("id", "video_id"), key[-2:].lower() != "id"))
    video_id_key = video_id_key or next(iter(ids), "id")
    labels_key = labels_key or next(iter(labels), "labels")
    lists = {k for r in samples for k in r.example.feature_lists.feature_list}
    found, unused = _sources(samples, lists, False)
    vectors = False
    if not found:
        context = set(keys) - {video_id_key, labels_key}
        found, _ = _sources(samples, context, True)
        # If there are frames, vectors are ignored; if there are vectors, numbers are.
        widths = {s: [r.size for f in _of(samples, s.key) for r in f] for s in found}
        joint = [s for s in found if max(widths[s]) > s.size]
        vectors = not joint
        found = joint or [s for s in found if s.size > 1] or found
    if len({source.name for source in found}) < len(found):
        found = [source._replace(name=_plain(source.key)) for source in found]
    missing = "refuse" if vectors else "zeros"
    return Layout(tuple(found), video_id_key, labels_key, not vectors, missing), unused


def _sources(samples, keys, in_context: bool) -> tuple[list[Source], dict[str, str]]:
    order = sorted(keys, key=lambda key: ("audio" in key.lower(), key))
    found = {key: _source(samples, key, in_context) for key in order}
    unused = {key: why for key, why in found.items() if isinstance(why, str)}
    return [found[key] for key in order if key not in unused], unused


def _plain(key: str) -> str:
    return re.sub(r"\W+", "_", key.lower()).strip("_")


def _of(samples, key: str) -> list[list[np.ndarray]]:
    """The rows of a feature, for each record that has it."""
    holders = [features for r in samples if (features := _features(r, key))]
    return [[row for f in features for row in _rows(f)] for features in holders]


def _source(samples, key: str, in_context: bool) -> Source | str:
    """The source of a feature, or the reason why it does not contain frames."""
    kinds = {f.WhichOneof("kind") for r in samples for f in _features(r, key)}
    try:
        holders = _of(samples, key)
    except ValueError as error:
        return str(error)
    widths = collections.Counter(r.size for rows in holders for r in rows if r.size)
    if not widths or "," in key:
        return "there is a comma in its name" if widths else "it is empty"
    if _RARE * len(holders) < len(samples):
        return f"only {len(holders)} of the first {len(samples)} videos have it"
    common, times = widths.most_common(1)[0]
    name = _plain(key.partition("/feature/")[0])  # MediaPipe: `RGB/feature/floats`.
    published = _WIDTHS.get(name, 0)
    if all(len(rows) == 1 for rows in holders):  # All frames in one Feature?
        joint = math.gcd(*widths)
        if published and joint % published == 0 and max(widths) > published:
            return Source(name, key, published)
        varied = len(holders) > 1 and 2 * times <= len(holders) and joint > 1
        if varied and (not in_context or kinds == {"float_list"}):
            return Source(name, key, joint)
    elif kinds == {"bytes_list"} and published and common == 4 * published:
        return f"its frames are {common} bytes: write {published} floats as floats"
    if in_context and kinds != {"float_list"}:
        return "it is not a vector of floats"
    if 2 * times < widths.total():
        return "its width varies"
    if common == 1 and kinds == {"int64_list"}:
        return "it is one integer per frame"
    return Source(name, key, common)
