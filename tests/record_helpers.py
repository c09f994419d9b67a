"""Small native records and shards for tests.

Frame t of video v carries t, so that a mistake in the order of frames shows: its
bytes are (t + 16 * feature) everywhere, except the first, which is the video's own.
"""

import dataclasses
import gzip
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import faults, parsing, pipeline, shards

# Two narrow features instead of rgb and audio.
SIZES = {"rgb": 4, "audio": 3}


def data_settings(**changes) -> settings.DataSettings:
    """DataSettings that fit the records below."""
    values = {
        "feature_names": ",".join(SIZES),
        "feature_sizes": ",".join(str(size) for size in SIZES.values()),
        "num_classes": 5,
        "max_frames": 12,
    }
    return settings.DataSettings(**{**values, **changes})


READING = {field.name for field in dataclasses.fields(settings.ReadingSettings)}


def open_shards(files, data=None, **reading) -> shards.Shards:
    """Opened shards; `reading` are fields of ReadingSettings."""
    given = settings.ReadingSettings(**reading)
    return shards.open_shards(files, data or data_settings(), given, "some_pattern")


def build_dataset(files, views, data=None, **arguments):
    """pipeline.build_dataset, by default with four videos per batch, for evaluation.

    Fields of ReadingSettings are taken too.
    """
    reading = {name: arguments.pop(name) for name in READING & set(arguments)}
    arguments = {"batch_size": 4, "training": False, **arguments}
    opened = open_shards(files, data, **reading)
    return pipeline.build_dataset(opened, views, **arguments)


def read(files, views, data=None, **arguments) -> list[dict]:
    """All batches of `build_dataset`."""
    dataset = build_dataset(files, views, data, **arguments)
    return list(dataset.as_numpy_iterator())


def read_view(serialized, data, view, each_k=None) -> tuple[tf.Tensor, dict]:
    """Ids and one view of serialized records [B], as a server reads them."""
    parsed, faults = parsing.parse_request(serialized, data)
    assert not any(faults.numpy())
    return parsed.video_ids, pipeline.view_of(parsed, data, view, each_k)


def error_line(files, call, *arguments, **how) -> str:
    """The line that a script prints about the error with which a call ends."""
    with pytest.raises((ValueError, tf.errors.OpError)) as caught:
        call(*arguments, **how)
    line = faults.describe_error(caught.value, files) or str(caught.value)
    assert "\n" not in line
    return line


def joined(parts: list[list[dict]]) -> list[dict]:
    """The batches of all processes, from the parts of each."""
    return [
        tf.nest.map_structure(lambda *rows: np.concatenate(rows), *batches)
        for batches in zip(*parts, strict=True)
    ]


def rows_of(batches: list[dict]) -> list[dict]:
    """The batches row by row, with padding rows."""
    return [
        tf.nest.map_structure(lambda x, row=row: x[row], batch)
        for batch in batches
        for row in range(len(batch["video_id"]))
    ]


def assert_same_batches(some: list[dict], others: list[dict]) -> None:
    """Asserts that both lists have the same batches, bit for bit."""
    assert len(some) == len(others) > 0
    tf.nest.map_structure(np.testing.assert_array_equal, some, others)


def frames_of(num_frames: int, size: int, feature: int = 0, video: int = 0):
    """[num_frames, size] uint8 as the module's docstring describes."""
    frames = np.arange(num_frames, dtype=np.uint8)[:, np.newaxis] + 16 * feature
    frames = np.repeat(frames, size, axis=1)
    frames[:, 0] = video % 256
    return frames


def features_of(number: int, num_frames: int | Sequence[int]) -> dict:
    """Name → frames of video `number`; `num_frames` of both features or of each."""
    lengths = np.broadcast_to(num_frames, len(SIZES))
    return {
        name: frames_of(lengths[feature], size, feature, number)
        for feature, (name, size) in enumerate(SIZES.items())
    }


def bytes_feature(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def int64_feature(values: Sequence[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def float_feature(values: Sequence[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def context_of(video_id: str | None, labels, id_key: str = "id") -> dict:
    """Context features; without an id where `video_id` is None."""
    context = {"labels": int64_feature(labels)}
    if video_id is not None:
        context[id_key] = bytes_feature(video_id.encode())
    return context


def frame_level(
    video_id: str | None,
    labels: Sequence[int],
    frames: Mapping[str, Sequence],
    id_key: str = "id",
    context: Mapping[str, tf.train.Feature] | None = None,
) -> bytes:
    """A serialized SequenceExample.

    Args:
        video_id: None for a record without an id.
        labels: of the video.
        frames: feature → rows, uint8 arrays or whole tf.train.Features.
        id_key: context key of the id.
        context: more context features, or others instead.
    """
    lists = {
        name: tf.train.FeatureList(
            feature=[
                row
                if isinstance(row, tf.train.Feature)
                else bytes_feature(np.asarray(row, np.uint8).tobytes())
                for row in rows
            ]
        )
        for name, rows in frames.items()
    }
    features = {**context_of(video_id, labels, id_key), **(context or {})}
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=features),
        feature_lists=tf.train.FeatureLists(feature_list=lists),
    ).SerializeToString(deterministic=True)


def video(
    number: int,
    num_frames: int | Sequence[int],
    labels: Sequence[int] = (1,),
    **context: tf.train.Feature,
) -> bytes:
    """Video `number`, called v<number>, with frames that tell their time."""
    frames = features_of(number, num_frames)
    return frame_level(f"v{number}", labels, frames, context=context)


def video_level(
    video_id: str | None, labels: Sequence[int], vectors: Mapping[str, Sequence[float]]
) -> bytes:
    """A serialized Example."""
    features = context_of(video_id, labels)
    features |= {name: float_feature(vector) for name, vector in vectors.items()}
    return tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString(deterministic=True)


def ratings_of(ratings: Sequence[tuple]) -> dict:
    """Context features of rated segments, each (start, class, score)."""
    starts, labels, scores = zip(*ratings, strict=True) if ratings else ([], [], [])
    return {
        "segment_start_times": int64_feature(starts),
        "segment_labels": int64_feature(labels),
        "segment_scores": float_feature(scores),
    }


def rated_video(
    number: int, num_frames: int, labels: Sequence[int], ratings, **context
) -> bytes:
    """As `video`, with rated segments; `context` are other features instead."""
    return video(number, num_frames, labels, **ratings_of(ratings) | context)


def context_again(record: bytes) -> bytes:
    """What makes the encoding of a record unusual, not its meaning, if it is added."""
    context = tf.train.SequenceExample.FromString(record).context
    return tf.train.SequenceExample(context=context).SerializeToString()


# A byte string's tag and a length of 2**32 - 1, without data.
_ENDLESS = b"\x0a\xff\xff\xff\xff\x0f"


def endless_frame() -> bytes:
    """A frame-level record whose one frame claims to be 2**32 - 1 bytes long."""
    feature_of_list = _message(b"\x0a", _message(b"\x0a", _ENDLESS))
    entry = _message(b"\x0a", b"rgb") + _message(b"\x12", feature_of_list)
    return _message(b"\x12", _message(b"\x0a", entry))


def endless_id() -> bytes:
    """A record of either level whose id claims to be 2**32 - 1 bytes long."""
    in_feature = _message(b"\x12", _message(b"\x0a", _ENDLESS))
    return _message(b"\x0a", _message(b"\x0a", _message(b"\x0a", b"id") + in_feature))


def _message(tag: bytes, content: bytes) -> bytes:
    """A field of less than 128 bytes."""
    return tag + bytes([len(content)]) + content


def frames_in(example: tf.train.SequenceExample, name: str) -> np.ndarray:
    """[T, size] uint8 of a feature list, one byte string per frame."""
    steps = example.feature_lists.feature_list[name].feature
    (rows,) = zip(*(step.bytes_list.value for step in steps), strict=True)
    return np.stack([np.frombuffer(row, np.uint8) for row in rows])


def write_shard(path: pathlib.Path, serialized: Sequence[bytes]) -> str:
    """Writes a TFRecord file and returns its name."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in serialized:
            writer.write(record)
    return str(path)


def compressed(shard: str, by=gzip.compress) -> str:
    """The same shard, compressed, which the sequential reader reads."""
    path = pathlib.Path(shard).with_suffix(".packed")
    path.write_bytes(by(pathlib.Path(shard).read_bytes()))
    return str(path)


def write_shards(folder: pathlib.Path, per_shard: Sequence[int]) -> list[str]:
    """Shards of videos v0, v1, ...: video v has 1 + v % 11 frames, label v % 5."""
    files, first = [], 0
    for shard, count in enumerate(per_shard):
        videos = [
            video(number, 1 + number % 11, [number % 5])
            for number in range(first, first + count)
        ]
        files.append(write_shard(folder / f"shard{shard}.tfrecord", videos))
        first += count
    return files
