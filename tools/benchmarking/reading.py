"""The speed of reading a student's frames, over that of reading whole records."""

import os
import pathlib
import tempfile

import tensorflow as tf

from tools.benchmarking import results, shards
from yt8m_distill import settings
from yt8m_distill.data import index, pipeline
from yt8m_distill.data import shards as shards_module


def _through(dataset):
    """A call that reads a dataset to its end."""

    def call():
        for _ in dataset:
            pass

    return call


def _raw(paths):
    """Reads all records and verifies their checksums, which no reader can avoid."""
    # In groups: passing records on one by one would cost as much as reading them.
    dataset = tf.data.TFRecordDataset(paths, buffer_size=1 << 20).batch(32)
    return _through(dataset.map(tf.size))


def _starter(paths, data, k):
    """Reads record by record and decodes every frame, as the starter code does."""

    def decode(record):
        _, lists = tf.io.parse_single_sequence_example(
            record,
            {"id": tf.io.FixedLenFeature([], tf.string)},
            {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in data.names},
        )
        frames = [
            tf.reshape(tf.io.decode_raw(lists[name], tf.uint8), [-1, size])
            for name, size in zip(data.names, data.sizes, strict=True)
        ]
        frames = tf.concat([tf.cast(f, tf.float32) for f in frames], axis=1)
        return frames[: data.max_frames][:: data.max_frames // k]

    dataset = tf.data.TFRecordDataset(paths).map(
        decode, num_parallel_calls=tf.data.AUTOTUNE
    )
    return _through(dataset.padded_batch(256).prefetch(2))


def _view(paths, data, view, use_index):
    reading = settings.ReadingSettings(use_index=use_index)
    opened = shards_module.open_shards(paths, data, reading)
    views = {"view": view}
    dataset = pipeline.build_dataset(opened, views, batch_size=256, training=False)
    return _through(dataset)


def _first_epoch(folder, paths, data, view):
    """Makes the index and reads an epoch with it."""
    epoch = _view(paths, data, view, "always")

    def call():
        for path in pathlib.Path(folder).glob(f"*{index.SUFFIX}"):
            path.unlink()
        index.load_or_build(paths, data)
        epoch()

    return call


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    if quick:
        data = settings.DataSettings(
            feature_sizes="16,4", num_classes=20, max_frames=60
        )
        num_videos, times, rounds = 80, {"raw": 1, "index": 1}, 1
    else:
        # The same shards repeatedly, so that they are read from the page cache.
        data = settings.DataSettings()
        num_videos, times, rounds = 1024, {"raw": 6, "index": 32}, 4
    with tempfile.TemporaryDirectory() as folder:
        paths = shards.write(folder, num_videos, data)
        size = sum(os.path.getsize(path) for path in paths)
        longer, longest = paths * times["raw"], paths * times["index"]
        uniform = {k: pipeline.ViewSpec("uniform", k) for k in (30, 10)}
        everything = pipeline.ViewSpec("all", data.max_frames)
        calls = {
            "first": _first_epoch(folder, paths, data, uniform[30]),
            "plain": _view(paths, data, uniform[30], "never"),
            "raw": _raw(longer),
            "starter": _starter(longer, data, 30),
            "k=30": _view(longer, data, uniform[30], "never"),
            "k=10": _view(longer, data, uniform[10], "never"),
            "all frames": _view(longer, data, everything, "never"),
            "k=30, index": _view(longest, data, uniform[30], "always"),
            "k=10, index": _view(longest, data, uniform[10], "always"),
            "all frames, index": _view(longer, data, everything, "always"),
        }
        seconds = results.interleaved(calls, rounds)

    def rate(name):
        mapped = name in ("k=30, index", "k=10, index")
        factor = times["index" if mapped else "raw"]
        return num_videos * factor / seconds[name]

    bars = {"k=30, index": 5.0, "k=10, index": 10.0}
    raw = rate("raw")
    gigabytes = size * times["raw"] / seconds["raw"] / 1e9
    first = results.Row(
        "first epoch at k=30, its index still to be made, time over one without index",
        seconds["first"] / seconds["plain"],
        1.15,
        at_most=True,
        unit="x",
        detail=f"{num_videos} videos in {seconds['first']:.2f} and "
        f"{seconds['plain']:.2f} s",
    )
    return [first] + [
        results.Row(
            f"reading {name}, rate over reading and checking raw records",
            rate(name) / raw,
            bars.get(name),
            unit="x",
            detail=f"{rate(name):.0f} and {raw:.0f} videos/s ({gigabytes:.2f} GB/s)",
        )
        for name in list(calls)[3:]
    ]
