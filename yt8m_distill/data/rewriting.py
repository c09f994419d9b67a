"""Rewriting of shards: output paths and atomic writes.

A shard keeps its file name. It is written atomically, so several processes may write it
at the same time.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.data import faults, framing

_COMPARED = 16  # Records of an existing shard that are compared with the expected ones.


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
def output_folder(folder: str, paths: Sequence[str] = ()) -> Iterator[None]:
    """Makes the folder of --output_dir; after an error a new, empty one is removed.

    Raises:
        ValueError: naming the flag, if it cannot be made or written to; as
            check_places.
    """
    check_places(paths, folder)
    where, is_new = f"--output_dir={folder}", not tf.io.gfile.exists(folder)
    with files.one_line_errors(where):
        tf.io.gfile.makedirs(folder)
    if not files.is_remote(folder) and not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{where} cannot be written: it is read-only.")
    try:
        yield
    except BaseException:
        if is_new and not files.is_remote(folder):
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # Only if it is empty.
        raise


def is_written(target: str, expected: Iterator[bytes], count: int) -> bool:
    """Whether a shard exists whole; its first records are compared.

    Args:
        expected: its records, of which no more are made than are compared.
        count: their number.

    Raises:
        ValueError: if it contains others.
    """
    if not tf.io.gfile.exists(target):
        return False
    first = itertools.islice(faults.walk(target), _COMPARED)
    first = itertools.takewhile(lambda found: isinstance(found, faults.Record), first)
    existing = [record.content for record in first]
    if existing != list(itertools.islice(expected, len(existing))):
        raise ValueError(
            f"{target} exists with other records, as of other flags: use --overwrite "
            "or another --output_dir."
        )
    try:
        return framing.count_records(target) == count
    except ValueError:  # Truncated.
        return False


@contextlib.contextmanager
def writing(target: str) -> Iterator[tf.io.TFRecordWriter]:
    """Opens a writer for an atomic write of a shard."""
    with (
        files.replacing(target) as temporary,
        tf.io.TFRecordWriter(temporary) as writer,
    ):
        yield writer
