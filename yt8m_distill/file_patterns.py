"""Comma separated patterns of file names, as in --train_data_pattern."""

import os
import re
from collections.abc import Sequence

import tensorflow as tf

# Suffix of the index file of a shard (data/index.py), which no pattern matches.
INDEX_SUFFIX = ".frame_index"


def expand(patterns: str, flag: str) -> list[str]:
    """Expands comma separated globs to sorted file names, without index files.

    A name of an existing file or folder is taken literally, even if it contains commas
    or wildcards; `~` is the home folder.

    Raises:
        ValueError: naming the flag, if a glob matches nothing or a directory.
    """
    files: list[str] = []
    for pattern in _split(patterns):
        expanded = os.path.expanduser(pattern)
        try:
            found = [expanded]
            if not os.path.isfile(expanded):
                found = tf.io.gfile.glob(_with_literal_folder(expanded))
        except tf.errors.OpError as error:
            raise ValueError(f"--{flag}={pattern}: {error.message}") from error
        found = [path for path in found if not path.endswith(INDEX_SUFFIX)]
        if not found:
            raise ValueError(f"--{flag}={pattern} matches no file.")
        _refuse_directories(found, f"--{flag}={pattern}", pattern)
        broken = [p for p in found if os.path.islink(p) and not os.path.exists(p)]
        if broken:
            raise ValueError(
                f"--{flag}={pattern}: {broken[0]} is a link to "
                f"{os.readlink(broken[0])}, which does not exist."
            )
        files.extend(found)
    if not files:
        raise ValueError(f"--{flag} is empty: name the files.")
    return sorted(set(files))


def named(files: Sequence[str]) -> str:
    """The first of some files, and whether there are others, for a message."""
    return files[0] + " and others" * (len(files) > 1)


_COMMAS = 3  # Supported commas in one file name.


def _split(patterns: str) -> list[str]:
    """Splits at commas, except inside the names of existing files and folders."""
    parts, found = patterns.split(","), []
    while parts:
        joined = [",".join(parts[: n + 1]).strip() for n in range(_COMMAS + 1)]
        files = [name for name in joined if os.path.isfile(os.path.expanduser(name))]
        below = [name for name in joined if "," in _existing_folder(name)]
        chosen = [*files[-1:], *below[:1], joined[0]][0]
        found.append(chosen)
        del parts[: 1 + chosen.count(",")]
    return [pattern for pattern in found if pattern]


def _existing_folder(path: str) -> str:
    """The longest prefix of a path that is an existing folder; may be empty."""
    folder = os.path.dirname(os.path.expanduser(path))
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _with_literal_folder(pattern: str) -> str:
    """Escapes the existing folder at the beginning of a pattern."""
    folder = _existing_folder(pattern)
    escaped = re.sub(r"([\[*?])", r"[\1]", folder.replace("\\", "\\\\"))
    return escaped + pattern[len(folder) :]


def _refuse_directories(found: Sequence[str], where: str, pattern: str) -> None:
    """Raises a ValueError if a directory is among the matches of a pattern."""
    # Of several matches only local ones are checked: remotely each check is a request.
    is_directory = os.path.isdir if len(found) > 1 else tf.io.gfile.isdir
    for path in filter(is_directory, found):
        path = path.rstrip("/")
        if path == pattern.rstrip("/"):
            where += " is a directory"
        else:
            where += f" matches the directory {path}"
        raise ValueError(
            f"{where}: name its files, as in {path}/*.tfrecord (or .mp4, .npz)."
        )
