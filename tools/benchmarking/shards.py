"""Shards of full-length videos of random bytes, and their indices."""

import os

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import arrays, index

VIDEOS_PER_SHARD = 64


def write(folder: str, num_videos: int, data: settings.DataSettings) -> list[str]:
    """Native frame-level shards of videos with `max_frames` frames each, indexed."""
    random = np.random.default_rng(0)
    paths = []
    for start in range(0, num_videos, VIDEOS_PER_SHARD):
        path = os.path.join(folder, f"shard{start // VIDEOS_PER_SHARD:04d}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for number in range(start, min(start + VIDEOS_PER_SHARD, num_videos)):
                writer.write(make_video(f"{number:05d}", data, random))
        paths.append(path)
    index.load_or_build(paths, data)
    return paths


def make_video(video_id: str, data: settings.DataSettings, random) -> bytes:
    """A record with three labels and `max_frames` frames of random bytes."""
    labels = random.choice(data.num_classes, 3, replace=False).tolist()
    frames = {
        name: random.integers(0, 256, (data.max_frames, size), np.uint8)
        for name, size in zip(data.names, data.sizes, strict=True)
    }
    record, _ = arrays.make_record(video_id, labels, frames, data.ranges)
    return record
