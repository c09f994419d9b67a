"""The Kaggle CSV of predictions: `VideoId,LabelConfidencePairs`.

A line is `id,class score class score ...`, best class first, written with
`%i %g`: scores keep six significant digits.

Ids are written byte for byte as they stand in the records, so an id that is not
UTF-8 survives the round trip (read such a file with
`errors="surrogateescape"`). An id with a comma, a quote or a line break is
quoted as in RFC 4180: such an id may span lines.
"""

import contextlib
import csv
import io
import os
import re
import types
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import files

HEADER = ("VideoId", "LabelConfidencePairs")
HEADER_LINE = (",".join(HEADER) + "\n").encode()
FRAMES_HEADER, FRAMES_SUFFIX = ("VideoId", "Frames"), ".frames.csv"

_NEEDS_QUOTES = re.compile(rb'[,"\r\n]')
_BUFFER_BYTES = 1 << 20
csv.field_size_limit(1 << 30)  # An id may be longer than the 131,072 bytes by default.


class PredictionWriter:
    """Writes the CSV under a temporary name and renames it at the end.

    Use it as a context manager. The target appears, or is replaced, only when the
    block ends without an exception; otherwise the temporary file is removed and
    an older target stays as it was. With early exit, `<path>.frames.csv` gets the
    frames that were read of each video, in the same way. A killed process leaves
    `<path>.<8 digits>.tmp` behind.

    `path` is a local path or one that tf.io.gfile knows by its scheme. A symbolic
    link is followed, so that the file behind it is replaced.
    """

    def __init__(
        self, path: str | os.PathLike, header: tuple[str, ...] = HEADER
    ) -> None:
        """Checks that the file can be written; nothing is created yet.

        Raises:
            ValueError: if the directory is missing or read-only, or the path is
                that of a directory or a device.
        """
        self.path = os.fspath(path)
        self.header = header
        self._target = self.path
        if not files.is_remote(self.path):
            self._target = os.path.realpath(self.path)
            files.check_target(self._target, f"--output_file={self.path}")
        self._temporary = f"{self._target}.{uuid.uuid4().hex[:8]}.tmp"
        self._file: Any = None
        self._width: int | None = None
        # What `<path>.frames.csv` is written with, once there is something to write.
        self._frames = contextlib.ExitStack()
        self._frames_file: Any = None

    def __enter__(self) -> "PredictionWriter":
        """Opens the temporary file and writes the header.

        Raises:
            ValueError: if the file system refuses.
        """
        try:
            with self._one_line_errors():
                self._file = _open_new(self._temporary)
                self._file.write((",".join(self.header) + "\n").encode())
                self._file.flush()
        except BaseException:
            self._discard()
            raise
        return self

    def write(
        self,
        video_ids: Iterable[Any],
        classes: np.ndarray,
        scores: np.ndarray,
        num_frames: np.ndarray | None = None,
    ) -> None:
        """Appends a line per video. Rows that fill up a batch must be left out.

        Args:
            video_ids: [B] bytes or str.
            classes: [B, k] int.
            scores: [B, k] float, descending in each row.
            num_frames: [B] int, frames read under early exit.

        Raises:
            ValueError: for shapes that differ, a score that is NaN, infinite or out of
                order (naming the video), or if the file system refuses.
        """
        ids = [_as_bytes(video_id) for video_id in np.asarray(video_ids, object)]
        classes, scores = np.asarray(classes), np.asarray(scores)
        self._check(ids, classes, scores)
        self.write_text(_format_lines(ids, classes, scores))
        if num_frames is not None:
            self._write_frames(ids, num_frames)

    def _write_frames(self, ids: list[bytes], num_frames: np.ndarray) -> None:
        if self._frames_file is None:
            writing = files.writing(self._target + FRAMES_SUFFIX)
            self._frames_file = self._frames.enter_context(writing)
            self._frames_file.write(",".join(FRAMES_HEADER) + "\n")
        rows = zip(map(_quoted, ids), num_frames.tolist(), strict=True)
        lines = "".join(f"{video_id},{count}\n" for video_id, count in rows)
        self._frames_file.write(_encoded(lines))

    def write_text(self, lines: bytes) -> None:
        """Appends lines that are in the format already, each with its end.

        Raises:
            ValueError: if the file system refuses.
        """
        if self._file is None:
            raise ValueError("PredictionWriter is used outside its with block.")
        with self._one_line_errors():
            self._file.write(lines)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Renames the finished file, or removes it after an exception."""
        if kind is not None:
            self._frames.__exit__(kind, error, trace)
            self._discard()
            return
        try:
            self._frames.close()
            with self._one_line_errors():
                self._commit()
        except BaseException:
            self._discard()
            raise

    def _check(self, ids: list[bytes], classes: np.ndarray, scores: np.ndarray) -> None:
        if classes.ndim != 2 or classes.shape != scores.shape:
            raise ValueError(
                "classes and scores must both be [B, k]; received shapes "
                f"{classes.shape} and {scores.shape}."
            )
        if len(ids) != len(classes):
            raise ValueError(f"{len(ids)} video ids for {len(classes)} predictions.")
        if classes.shape[1] != (self._width or classes.shape[1]):
            raise ValueError(
                f"{classes.shape[1]} predictions a video after {self._width}."
            )
        self._width = classes.shape[1]
        ordered = (scores[:, :-1] >= scores[:, 1:]).all(axis=1)
        bad = ~(ordered & np.isfinite(scores).all(axis=1))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"The scores of video {_readable(ids[row])} are not descending "
                f"finite numbers: {scores[row].tolist()}."
            )

    def _commit(self) -> None:
        if files.is_remote(self.path):
            self._file.close()
            tf.io.gfile.rename(self._temporary, self._target, overwrite=True)
        else:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._target)
        self._file = None

    def _discard(self) -> None:
        """Removes the temporary file; what led here is the error worth raising."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(*files.ERRORS):
            file.close()
        with contextlib.suppress(*files.ERRORS):
            tf.io.gfile.remove(self._temporary)

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except files.ERRORS as error:
            raise ValueError(_cannot_write(self.path, files.reason(error))) from error


class Row(NamedTuple):
    """A video's row of the CSV.

    Attributes:
        line: where it begins, counted from 1; the header is line 1.
        columns: the cells, the id and the pairs, in which surrogates stand for bytes
            that are not UTF-8.
        text: its bytes in the file, with quotes and the end of the line.
    """

    line: int
    columns: list[str]
    text: bytes


def read_header(path: str | os.PathLike) -> tuple[str, ...]:
    """The columns of a CSV; raises ValueError if it is missing."""
    with _open_text(os.fspath(path)) as file:
        return tuple(file.readline().rstrip("\n").split(","))


def read_rows(
    path: str | os.PathLike, header: tuple[str, ...] = HEADER
) -> Iterator[Row]:
    """The rows below the header, one after another; the pairs are not looked at.

    Args:
        path: a local path or one that tf.io.gfile knows, which is read whole.
        header: that it must have.

    Raises:
        ValueError: if the file is missing, the header is another, or a row has another
            number of columns; the message names the line.
    """
    path = os.fspath(path)
    with _open_text(path) as file:
        text: list[str] = []  # The lines of the row at hand.
        reader = csv.reader(_noted(file, text), strict=True)
        line = 1
        try:
            _check_header(next(reader, []), header)
            line = reader.line_num + 1
            text.clear()
            for columns in reader:
                if len(columns) != len(header):
                    raise ValueError(
                        f"{len(header)} columns are expected; received {len(columns)}"
                    )
                yield Row(line, columns, _encoded("".join(text)))
                line = reader.line_num + 1
                text.clear()
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {line}: {error}.") from error


NAMES_SUFFIX = ".names.csv"


def write_names(path: str, names: Mapping[int, str]) -> None:
    """Writes `<path>.names.csv`: one row per prediction, with the name of its class.

    Args:
        path: a CSV that `PredictionWriter` wrote.
        names: of the classes; a class without one has an empty cell.

    Raises:
        ValueError: if the file system refuses.
    """
    with files.writing(path + NAMES_SUFFIX) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["VideoId", "Class", "Name", "Score"])
        for row in read_rows(path):
            video_id, pairs = row.columns
            numbers = pairs.split()
            for number, score in zip(numbers[::2], numbers[1::2], strict=True):
                writer.writerow([video_id, number, names.get(int(number), ""), score])


def _check_header(row: list[str], header: tuple[str, ...]) -> None:
    if tuple(row) != header:
        raise ValueError(
            f"the header must be {','.join(header)}; received {','.join(row)[:80]!r}"
        )


def _noted(lines: Iterable[str], notes: list[str]) -> Iterator[str]:
    for line in lines:
        notes.append(line)
        yield line


def _format_lines(ids: list[bytes], classes: np.ndarray, scores: np.ndarray) -> bytes:
    """All lines of a batch. One template a batch is what makes this fast."""
    num_rows, k = classes.shape
    template = ",".join(("%s", " ".join(["%i %g"] * k))) + "\n"
    values = np.empty([num_rows, 1 + 2 * k], object)
    values[:, 0] = [_quoted(video_id) for video_id in ids]
    values[:, 1::2] = classes
    values[:, 2::2] = scores
    text = (template * num_rows) % tuple(values.ravel().tolist())
    return _encoded(text)


def quoted(cell: bytes) -> bytes:
    """A cell of the CSV, in quotes where it needs them (RFC 4180)."""
    if _NEEDS_QUOTES.search(cell):
        return b'"' + cell.replace(b'"', b'""') + b'"'
    return cell


def _quoted(video_id: bytes) -> str:
    return quoted(video_id).decode("utf-8", "surrogateescape")


def _as_bytes(video_id: Any) -> bytes:
    if isinstance(video_id, bytes):
        return video_id
    return _encoded(str(video_id))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _readable(video_id: bytes) -> str:
    return repr(video_id.decode("utf-8", "backslashreplace"))


def _cannot_write(path: str, reason: str) -> str:
    return f"--output_file={path} cannot be written: {reason}."


def _open_new(path: str) -> BinaryIO:
    if files.is_remote(path):
        return tf.io.gfile.GFile(path, "wb")
    return open(path, "xb", buffering=_BUFFER_BYTES)


def _open_text(path: str) -> io.TextIOWrapper:
    """Opens for the csv module: no newline translation, every byte accepted."""
    try:
        if files.is_remote(path):
            with tf.io.gfile.GFile(path, "rb") as file:
                binary: BinaryIO = io.BytesIO(file.read())
        else:
            binary = open(path, "rb", buffering=_BUFFER_BYTES)
    except files.ERRORS as error:
        raise ValueError(f"{path} cannot be read: {files.reason(error)}.") from error
    return io.TextIOWrapper(
        binary, encoding="utf-8", errors="surrogateescape", newline=""
    )
