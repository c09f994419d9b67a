"""Rewriting of shards: output paths and atomic writes.

A shard keeps its file name. It is written atomically, so several processes may write it
at the same time.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from yt8m_distill import files


def check_places(paths: Sequence[str], folder: str) -> None:
    """Raises a ValueError if an output would replace an input or another output."""
    sources: dict[str, str] = {}
    for path in paths:
        if os.path.realpath(os.path.dirname(path)) == os.path.realpath(folder):
            raise ValueError(
                f"--output_dir={folder} is the directory of {path}: name another one."
            )
        other = sources.setdefault(os.path.basename(path), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} have the same name: write them into two "
                "directories."
            )


@contextlib.contextmanager
def writing(target: str) -> Iterator[tf.io.TFRecordWriter]:
    """Opens a writer for an atomic write of a shard."""
    with (
        files.replacing(target) as temporary,
        tf.io.TFRecordWriter(temporary) as writer,
    ):
        yield writer
