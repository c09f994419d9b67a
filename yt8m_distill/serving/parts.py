"""Inference in parts: which files a part predicts, and where its CSV goes.

Part I of N takes a contiguous range of the sorted files. So the CSVs one after
another, in the order of their parts, have the rows in the order of a single process.
"""

import os
import re
from collections.abc import Sequence

import tensorflow as tf

_NAMED = 10  # Files that a message names at most.


def files_of_part(files: Sequence[str], index: int, count: int) -> list[str]:
    """The files of part `index`, in their order.

    Args:
        files: of all parts, sorted.
        index: in [0, count).
        count: number of parts.

    Returns:
        len(files) / count of them, rounded up or down: none, for some of the parts,
        if there are fewer files than parts. Each file is in one part.
    """
    return list(files[len(files) * index // count : len(files) * (index + 1) // count])


def part_path(path: str, index: int, count: int) -> str:
    """`out.csv`, 3, 10 → `out-00003-of-00010.csv`; a count of 1 has no suffix."""
    return path if count == 1 else _numbered(path, index, count)


def find_parts(path: str) -> list[str]:
    """The CSVs of all parts, in the order of the parts.

    Args:
        path: the name without the suffix of a part; local, or one that tf.io.gfile
            knows.

    Raises:
        ValueError: if there are none, if some are missing, or if they are of several
            counts. One line that begins with `--input`.
    """
    where = f"--input={path}"
    folder, name = os.path.split(path)
    stem, extension = map(re.escape, os.path.splitext(name))
    pattern = re.compile(rf"{stem}-([0-9]{{5}})-of-([0-9]{{5}}){extension}")
    try:
        matches = map(pattern.fullmatch, tf.io.gfile.listdir(folder or "."))
    except tf.errors.OpError as error:
        raise ValueError(f"{where}: {folder or '.'} cannot be listed.") from error
    found = {tuple(map(int, match.groups())) for match in matches if match}
    counts = sorted({count for _, count in found})
    if not counts:
        raise ValueError(f"{where}: no file {_with_suffix(path, '?????-of-?????')}.")
    if len(counts) > 1:
        raise ValueError(
            f"{where} has parts of several --num_shards: {_listed(counts)}. Remove "
            "those of the others."
        )
    (count,) = counts
    beyond = [index for index, _ in found if index >= count]
    if beyond:
        name = _numbered(path, min(beyond), count)
        raise ValueError(f"{where}: {name} has a number that is not below {count}.")
    missing = [
        _numbered(path, index, count)
        for index in range(count)
        if (index, count) not in found
    ]
    if missing:
        raise ValueError(
            f"{where} lacks {len(missing)} of {count} parts: {_listed(missing)}."
        )
    return [_numbered(path, index, count) for index in range(count)]


def _numbered(path: str, index: int, count: int) -> str:
    return _with_suffix(path, f"{index:05d}-of-{count:05d}")


def _with_suffix(path: str, suffix: str) -> str:
    stem, extension = os.path.splitext(path)
    return f"{stem}-{suffix}{extension}"


def _listed(values: Sequence) -> str:
    more = len(values) - _NAMED
    listed = ", ".join(map(str, values[:_NAMED]))
    return f"{listed} and {more} more" if more > 0 else listed
