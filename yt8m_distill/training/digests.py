"""A digest beside each checkpoint: it is whole if its files still give it.

TensorFlow has checksums of its own, of tensors and of blocks of the index. They speak
up while variables are being assigned already, and not of a file. The digest in
<prefix>.sha256.json, which is written last, is checked before anything is touched, and
says which file is damaged, missing or of another length.
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


def _text(of_files: dict) -> str:
    """The digest's file, which has a SHA-256 of its own."""
    own = hashlib.sha256(json.dumps(of_files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": of_files, "sha256": own}, indent=2) + "\n"


def write(prefix: str) -> None:
    """Writes the digest of a checkpoint as it stands on the disk."""
    found = {suffix: _digest(prefix + suffix) for suffix in parts(prefix)}
    files.write_text(prefix + SUFFIX, _text(found))


def _read(path: str) -> dict | None:
    """What `write` has written, suffix → bytes and sha256; None if it is damaged."""
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        found = json.loads(content)["files"]
        return found if content == _text(found).encode() else None
    except (ValueError, TypeError, KeyError):
        return None


def problem(prefix: str) -> str | None:
    """What is wrong with a checkpoint, in one line that names a file; else None.

    A checkpoint without a digest, which another program or an earlier version wrote,
    has no problem that could be seen here.
    """
    path = prefix + SUFFIX
    if not tf.io.gfile.exists(path):
        return None
    expected = _read(path)
    if expected is None:
        return f"{path} is damaged"
    for suffix in sorted({*expected, *parts(prefix)}):
        path = prefix + suffix
        if suffix not in expected:
            return f"{path} is not one of its files"
        try:
            found = _digest(path)
        except tf.errors.NotFoundError:
            return f"{path} is missing"
        size = expected[suffix]["bytes"]
        if found["bytes"] != size:
            return f"{path} has {found['bytes']} bytes, not {size}"
        if found != expected[suffix]:
            return f"{path} is damaged: its SHA-256 is not that of {prefix}{SUFFIX}"
    return None
