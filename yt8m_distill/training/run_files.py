"""Which files of a train_dir a run made, and their removal.

A file is a run's by its whole path below the train_dir, not by the folder that it
stands in: what somebody put into <train_dir>/teacher is theirs.
"""

import logging
import os
import re

import tensorflow as tf

from yt8m_distill.training import manifest

_LOG = logging.getLogger(__name__)

_NAMED = 10  # Files that a message names at most.

_PHASE = r"(?:teacher|baseline|student|parallel|finetune)"
_ROLE = r"(?:teacher|student)"
_EVENTS = r"events\.out\.tfevents\.[^/]+"
# JSON is written under a temporary name, which a killed process leaves.
_JSON = r"\.json(?:\.tmp-[0-9]+)?"
_SAVED = r"(?:index|data-[0-9]{5}-of-[0-9]{5})(?:\.tempstate[0-9]+)?"
# A checkpoint, and the folder of parts that TensorFlow joins to it.
_CHECKPOINT = rf"(?:\.{_SAVED}|_temp(?:/part-[0-9]{{5}}-of-[0-9]{{5}}\.{_SAVED})?)"
_NUMBER = r"[0-9]+(?:-[0-9]+)?"
# The same with its digest, and as it is written in a folder of its own.
_WHOLE = rf"(?:{_CHECKPOINT}|\.sha256{_JSON})"
_SAVED_MODEL = (
    r"(?:/(?:saved_model|fingerprint)\.pb|/assets|/keras_metadata\.pb"
    rf"|/variables(?:/variables{_CHECKPOINT})?)?"
)

# Files and folders that the scripts make, by their paths below the train_dir.
_OWN = re.compile(
    "|".join(
        (
            rf"model_flags{_JSON}",
            rf"manifest{_JSON}",
            _PHASE,
            rf"{_PHASE}/settings{_JSON}",
            rf"{_PHASE}/metrics\.jsonl(?:\.tmp-[0-9]+)?",
            rf"{_PHASE}/{_EVENTS}",
            rf"{_PHASE}/validation_{_ROLE}(?:/{_EVENTS})?",
            # Workers of older versions saved beside the chief.
            rf"{_PHASE}/checkpoints(?:\.worker-[0-9]+)?",
            rf"{_PHASE}/checkpoints(?:\.worker-[0-9]+)?/"
            rf"(?:checkpoint(?:\.tmp[^/]*)?|writing|(?:writing/)?ckpt-{_NUMBER}{_WHOLE})",
            rf"{_PHASE}/best",
            rf"{_PHASE}/best/{_ROLE}",
            rf"{_PHASE}/best/{_ROLE}/(?:(?:best|proposed){_JSON}|writing)",
            rf"{_PHASE}/best/{_ROLE}/(?:writing/)?network-{_NUMBER}{_WHOLE}",
            # Older versions wrote the events of both roles into one folder.
            rf"eval(?:/metrics\.jsonl|/{_ROLE}|(?:/{_ROLE})?/{_EVENTS})?",
            rf"export(?:/{_ROLE}(?:\.(?:tmp|old)-[0-9]+)?{_SAVED_MODEL})?",
        )
    )
)


def list_run(train_dir: str) -> tuple[list[str], list[str]]:
    """The files and the folders that runs made in a train_dir.

    Returns:
        Paths of the files; paths of the folders, those within a folder before it. Both
        are empty where the folder is empty or absent.

    Raises:
        ValueError: if the folder holds anything that no run made, or a symbolic link;
            the message names it.
    """
    if not tf.io.gfile.isdir(train_dir):
        return [], []
    files, folders, foreign = [], [], []
    _walk(train_dir, "", files, folders, foreign)
    settings_there = os.path.join(train_dir, manifest.MODEL_FLAGS) in files
    if not settings_there:
        # Without a run's settings it is no train_dir, whatever its parts are called.
        foreign = sorted(os.path.relpath(path, train_dir) for path in files + folders)
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise ValueError(
            f"--start_new_model: --train_dir={train_dir} holds what no run wrote: "
            f"{', '.join(sorted(foreign)[:_NAMED])}{more}. Nothing was removed."
        )
    return files, folders


def _walk(train_dir: str, below: str, files: list, folders: list, foreign: list):
    """Sorts what stands in a folder, and below it, into the three lists."""
    for name in sorted(tf.io.gfile.listdir(os.path.join(train_dir, below))):
        inside = os.path.join(below, name.rstrip("/"))
        path = os.path.join(train_dir, inside)
        # A link is neither followed nor removed, whatever it is called.
        if os.path.islink(path):
            foreign.append(f"{inside} (a symbolic link)")
        elif not _OWN.fullmatch(inside):
            foreign.append(inside)
        elif tf.io.gfile.isdir(path):
            _walk(train_dir, inside, files, folders, foreign)
            folders.append(path)
        else:
            files.append(path)


def remove_run(train_dir: str) -> None:
    """Removes what earlier runs made in a train_dir, file by file, and nothing else.

    What appears in the meantime stays: a folder is removed only once it is empty.

    Raises:
        ValueError: see `list_run`; nothing is removed then.
        OSError: if the file system refuses.
    """
    files, folders = list_run(train_dir)
    # The settings last: a removal that was cut short can be repeated.
    files.sort(key=lambda path: os.path.basename(path) == manifest.MODEL_FLAGS)
    for path in files:
        _LOG.info("--start_new_model removes %s.", path)
        tf.io.gfile.remove(path)
    for path in folders:
        # Elsewhere, in an object store, a folder goes with its last file.
        if "://" not in path:
            os.rmdir(path)
