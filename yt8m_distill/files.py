"""Files that have their names only once they are whole, and errors in one line."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator

import filelock
import tensorflow as tf

LOCK = ".lock"  # The name of a lock's file.

# What a file system raises, by way of Python or of TensorFlow.
ERRORS = (OSError, tf.errors.OpError)


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, which only tf.io.gfile knows."""
    return "://" in path


def reason(error: BaseException) -> str:
    """What the file system said, in a few words; some TF errors carry no message."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # TensorFlow puts operations around the words, and the path before them.
    said = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*?\]", "", said).strip() or said
    return said.splitlines()[0].rsplit("; ", 1)[-1].rstrip(".")


@contextlib.contextmanager
def held(folder: str, what: str) -> Iterator[None]:
    """Holds a folder against other processes; the system frees it when this one ends.

    Nothing is held where there are no locks: on some network file systems, in an object
    store.

    Args:
        folder: must exist.
        what: flag and value, for the error.

    Raises:
        ValueError: if another process holds it.
    """
    with contextlib.ExitStack() as stack:
        if not is_remote(folder):
            lock = filelock.FileLock(os.path.join(folder, LOCK), timeout=0)
            try:
                stack.enter_context(lock)
            except filelock.Timeout as error:
                raise ValueError(
                    f"{what}: another process is training there now. Let it end, or "
                    "take another folder."
                ) from error
            except (NotImplementedError, OSError):
                pass
        yield


@contextlib.contextmanager
def one_line_errors(what: str, after: str = "") -> Iterator[None]:
    """Turns a refusal of the file system into a line for the person at the keyboard.

    Args:
        what: flag and value, or file: `--train_dir=run`.
        after: a sentence to end with.

    Raises:
        ValueError: `<what> cannot be written: <reason>. <after>`
    """
    try:
        yield
    except ERRORS as error:
        line = f"{what} cannot be written: {reason(error)}. {after}"
        raise ValueError(line.rstrip()) from error


def check_target(path: str, what: str) -> None:
    """Checks, before any work, that a local file can be written.

    Args:
        path: where to; replaced if it is a file.
        what: flag and value, for the error.

    Raises:
        ValueError: if the directory is missing or read-only, or the path is that of a
            directory or a device.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        problem = f"there is no directory {folder}"
    elif os.path.isdir(path):
        problem = "it is a directory"
    elif os.path.exists(path) and not os.path.isfile(path):
        # A rename would put a file in the place of, say, /dev/null.
        problem = "it is not a regular file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = f"the directory {folder} is read-only"
    else:
        return
    raise ValueError(f"{what} cannot be written: {problem}.")


def write_text(path: str, text: str) -> None:
    """Writes a text as `writing` does."""
    with writing(path) as file:
        file.write(text)


@contextlib.contextmanager
def writing(path: str) -> Iterator[tf.io.gfile.GFile]:
    """A text file under a temporary name, renamed once it is on the disk.

    Raises:
        ValueError: if the file system refuses; nothing is left behind then, and an
            older file of that name is as it was.
    """
    # A name of its own for each process, whatever machine it runs on.
    temporary = f"{path}.tmp-{uuid.uuid4().int}"
    with one_line_errors(path), removed_after_errors(temporary):
        with tf.io.gfile.GFile(temporary, "w") as file:
            yield file
        to_disk(temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)


@contextlib.contextmanager
def removed_after_errors(path: str) -> Iterator[None]:
    """Removes a file or folder if the block does not end well."""
    try:
        yield
    except BaseException:
        remove(path)
        raise


def remove(path: str) -> None:
    """Removes a file or folder, as far as there is one and the disk allows it."""
    with contextlib.suppress(*ERRORS):
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)  # noqa: TID251 (under a temporary name)
        elif tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)


def to_disk(path: str) -> None:
    """Brings a local file or folder to the disk, so that a rename cannot be first."""
    if is_remote(path) or os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def names_in(folder: str) -> list[str]:
    """Sorted names in a folder; none if it is not there."""
    if not tf.io.gfile.isdir(folder):
        return []
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
