"""Atomic writes, locks, and file system errors as one line."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence

import filelock
import tensorflow as tf

LOCK = ".lock"  # Name of a folder's lock file.

# Exceptions of the file system, raised by Python or by TensorFlow.
ERRORS = (OSError, tf.errors.OpError)


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, which only tf.io.gfile can open."""
    return "://" in path


def reason(error: BaseException) -> str:
    """The reason of a file system error; its type if it has no message."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # TensorFlow adds the operation, and the path in front.
    text = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*?\]", "", text).strip() or text
    return text.splitlines()[0].rsplit("; ", 1)[-1].rstrip(".")


@contextlib.contextmanager
def held(folder: str, what: str) -> Iterator[None]:
    """Locks a folder against other processes; released when this process ends.

    Does nothing where locks are not supported: on some network file systems, and in
    object stores.

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
    """Turns file system errors into a ValueError of one line.

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


def check_target(path: str, what: str, inputs: Sequence[str] = ()) -> None:
    """Checks in advance that a local file can be written.

    Args:
        path: of the file; it may exist.
        what: flag and value, for the error.
        inputs: files that must not be replaced.

    Raises:
        ValueError: if the directory is missing or read-only, or the path is that of a
            directory, a device or one of the inputs.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        problem = f"there is no directory {folder}"
    elif os.path.isdir(path):
        problem = "it is a directory"
    elif os.path.exists(path) and not os.path.isfile(path):
        # The rename would replace, for example, /dev/null by a file.
        problem = "it is not a regular file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = f"the directory {folder} is read-only"
    elif os.path.realpath(path) in map(os.path.realpath, inputs):
        problem = "it is one of the files that are read"
    else:
        return
    raise ValueError(f"{what} cannot be written: {problem}.")


def write_text(path: str, text: str) -> None:
    """Writes a text file atomically, see `writing`."""
    with writing(path) as file:
        file.write(text)


@contextlib.contextmanager
def writing(path: str, mode: str = "w", what: str = "") -> Iterator[tf.io.gfile.GFile]:
    """Opens a file for an atomic write, see `replacing`.

    Args:
        path: of the file.
        mode: `w`, or `wb` for bytes.
        what: name of the file in errors, by default its path.

    Raises:
        ValueError: if the file cannot be written.
    """
    with (
        one_line_errors(what or path),
        replacing(path) as temporary,
        tf.io.gfile.GFile(temporary, mode) as file,
    ):
        yield file


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Gives a temporary name; the file that the block writes there replaces `path`.

    Atomic: the file is flushed to disk (fsync) and renamed. If the block raises, it is
    removed, and an existing file of that name stays unchanged. The temporary name is
    hidden, so that no pattern matches it, and unique among all machines.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    with removed_after_errors(temporary):
        yield temporary
        to_disk(temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)


@contextlib.contextmanager
def removed_after_errors(path: str) -> Iterator[None]:
    """Removes a file or folder if the block raises."""
    try:
        yield
    except BaseException:
        remove(path)
        raise


def remove(path: str) -> None:
    """Removes a file or folder, if it exists; ignores errors."""
    with contextlib.suppress(*ERRORS):
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)  # noqa: TID251 (under a temporary name)
        elif tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)


def to_disk(path: str) -> None:
    """Flushes a local file or folder to disk (fsync), before it is renamed."""
    if is_remote(path) or os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # A full disk may come to light only here, where Python names no file.
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def names_in(folder: str) -> list[str]:
    """Sorted names in a folder; empty if it does not exist."""
    if not tf.io.gfile.isdir(folder):
        return []
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
