"""A digest beside each checkpoint: it is whole if its files still give it.

TensorFlow verifies less than it reads: of the index not every byte, and of a tensor
nothing beyond its own checksum (see tools/torturing/checkpoints.py for what gets
through). So <prefix>.sha256.json, written last, holds size and SHA-256 of every file.
"""

import hashlib
import json
import os

import tensorflow as tf

from yt8m_distill import files

SUFFIX = ".sha256.json"
_BLOCK = 1 << 20


def parts(prefix: str) -> list[str]:
    """Suffixes of a checkpoint's files: data first, then the index."""
    folder, name = os.path.split(prefix)
    found = [n for n in files.names_in(folder or ".") if n.startswith(f"{name}.")]
    suffixes = [n.removeprefix(name) for n in found]
    return [s for s in suffixes if s.startswith(".data-")] + [
        s for s in suffixes if s == ".index"
    ]


def _digest(path: str) -> dict:
    found, size = hashlib.sha256(), 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            size += len(block)
    return {"bytes": size, "sha256": found.hexdigest()}


def write(prefix: str) -> None:
    """Writes the digest of a checkpoint as it stands on the disk."""
    found = {suffix: _digest(prefix + suffix) for suffix in parts(prefix)}
    files.write_text(prefix + SUFFIX, json.dumps(found, indent=2) + "\n")


def problem(prefix: str) -> str | None:
    """What is wrong with a checkpoint, in one line that names a file; else None.

    A checkpoint without a digest, which another program or an earlier version wrote,
    has no problem that could be seen here.
    """
    path = prefix + SUFFIX
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            wanted = {str(k): dict(v) for k, v in json.loads(file.read()).items()}
        expected = {k: (v["bytes"], v["sha256"]) for k, v in wanted.items()}
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeError):
        return f"{path} is damaged"
    for suffix in sorted({*expected, *parts(prefix)}):
        path = prefix + suffix
        if suffix not in expected:
            return f"{path} is not one of its files"
        try:
            found = _digest(path)
        except tf.errors.NotFoundError:
            return f"{path} is missing"
        size, sha256 = expected[suffix]
        if found["bytes"] != size:
            return f"{path} has {found['bytes']} bytes, not {size}"
        if found["sha256"] != sha256:
            return f"{path} is damaged: its SHA-256 is not that of {prefix}{SUFFIX}"
    return None
