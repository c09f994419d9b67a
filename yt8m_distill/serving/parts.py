"""Inference in parts: the input files and the CSV of each part.

Part I of N has a contiguous range of the sorted files, so the concatenated CSVs have
the rows of the CSV of a single process, in the same order.
"""

import os
import re
from collections.abc import Sequence

import tensorflow as tf

_MAX_LISTED = 10  # Files listed in a message.


def files_of_part(files: Sequence[str], index: int, count: int) -> list[str]:
    """The files of part `index` of [0, count), in order; `files` are those of all.

    len(files) / count of them, rounded up or down, so possibly none. Each file is in
    exactly one part.
    """
    return list(files[len(files) * index // count : len(files) * (index + 1) // count])


def part_path(path: str, index: int, count: int) -> str:
    """(`out.csv`, 3, 10) → `out-00003-of-00010.csv`; no suffix if count is 1."""
    return path if count == 1 else _numbered(path, index, count)


def find_parts(path: str) -> list[str]:
    """The CSVs of all parts, in the order of the parts.

    Args:
        path: without the suffix of the parts; local, or supported by tf.io.gfile.

    Raises:
        ValueError: one line that begins with `--input`, if there are no parts, parts
            are missing, or they belong to several counts.
    """
    where = f"--input={path}"
    folder, name = os.path.split(path)
    stem, extension = map(re.escape, os.path.splitext(name))
    pattern = re.compile(rf"{stem}-[0-9]{{5}}-of-([0-9]{{5}}){extension}")
    try:
        matches = map(pattern.fullmatch, tf.io.gfile.listdir(folder or "."))
    except tf.errors.OpError as error:
        raise ValueError(f"{where}: {folder or '.'} cannot be listed.") from error
    found = {os.path.join(folder, m[0]): int(m[1]) for m in matches if m}
    if not found:
        raise ValueError(f"{where}: no file {_with_suffix(path, '?????-of-?????')}.")
    count = max(found.values())
    parts = [_numbered(path, index, count) for index in range(count)]
    others = sorted(found.keys() - {*parts})
    if others:
        raise ValueError(
            f"{where}: these are not parts of --num_shards={count}: {_listed(others)}. "
            "Remove all but the parts of one inference."
        )
    missing = [part for part in parts if part not in found]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {count} parts are missing: {_listed(missing)}."
        )
    return parts


def _numbered(path: str, index: int, count: int) -> str:
    return _with_suffix(path, f"{index:05d}-of-{count:05d}")


def _with_suffix(path: str, suffix: str) -> str:
    stem, extension = os.path.splitext(path)
    return f"{stem}-{suffix}{extension}"


def _listed(values: Sequence) -> str:
    more = len(values) - _MAX_LISTED
    listed = ", ".join(map(str, values[:_MAX_LISTED]))
    return f"{listed} and {more} more" if more > 0 else listed
