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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import files

HEADER = ("VideoId", "LabelConfidencePairs")
HEADER_LINE = (",".join(HEADER) + "\n").encode()
FRAMES_HEADER = ("VideoId", "Frames")
FRAMES_SUFFIX, NAMES_SUFFIX = ".frames.csv", ".names.csv"

_NEEDS_QUOTES = re.compile(rb'[,"\r\n]')
_PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst")  # Readers unpack by these names.
csv.field_size_limit(1 << 30)  # An id may be longer than the 131,072 bytes by default.


class PredictionWriter:
    """Writes the CSV atomically, see files.replacing.

    Use it as a context manager. The target appears, or is replaced, only when the
    block ends without an exception; an older target stays as it was otherwise. With
    early exit, `<path>.frames.csv` gets the frames that were read of each video, in the
    same way.

    `path` is a local path or one that tf.io.gfile knows by its scheme. A symbolic
    link is followed, so that the file behind it is replaced.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        header: tuple[str, ...] = HEADER,
        inputs: Sequence[str] = (),
    ) -> None:
        """Checks that the file can be written; nothing is created yet.

        Raises:
            ValueError: if the directory is missing or read-only, or the path is
                that of a directory, a device, one of the `inputs` or a packed file.
        """
        self.header = header
        self._target = os.fspath(path)
        self._what = f"--output_file={self._target}"
        if self._target.endswith(_PACKED):
            raise ValueError(f"{self._what} cannot be written: CSVs are not packed.")
        if not files.is_remote(self._target):
            self._target = os.path.realpath(path)
            files.check_target(self._target, self._what, inputs)
        self._open_files = contextlib.ExitStack()
        self._frames: PredictionWriter | None = None  # Once it has something to write.

    def __enter__(self) -> "PredictionWriter":
        """Opens a temporary file and writes the header.

        Raises:
            ValueError: if the file system refuses.
        """
        with contextlib.ExitStack() as stack, files.one_line_errors(self._what):
            temporary = stack.enter_context(files.replacing(self._target))
            self._file = stack.enter_context(tf.io.gfile.GFile(temporary, "wb"))
            self._file.write(",".join(self.header) + "\n")
            self._file.flush()
            self._open_files = stack.pop_all()
        return self

    def write(
        self,
        video_ids: Iterable[bytes],
        classes: np.ndarray,
        scores: np.ndarray,
        num_frames: np.ndarray | None = None,
    ) -> None:
        """Appends a line per video. Rows that fill up a batch must be left out.

        Args:
            video_ids: [B] bytes.
            classes: [B, k] int.
            scores: [B, k] float, descending in each row.
            num_frames: [B] int, frames read under early exit.

        Raises:
            ValueError: if the file system refuses.
        """
        ids = np.asarray(video_ids, object).tolist()
        self.write_text(_format_lines(ids, np.asarray(classes), np.asarray(scores)))
        if num_frames is None:
            return
        if self._frames is None:
            frames = PredictionWriter(self._target + FRAMES_SUFFIX, FRAMES_HEADER)
            self._frames = self._open_files.enter_context(frames)
        rows = zip(map(quoted, ids), num_frames.tolist(), strict=True)
        self._frames.write_text(b"".join(b"%s,%d\n" % row for row in rows))

    def write_text(self, lines: bytes) -> None:
        """Appends lines that are in the format already, each with its end.

        Raises:
            ValueError: if the file system refuses.
        """
        with files.one_line_errors(self._what):
            self._file.write(lines)

    def __exit__(self, *error) -> None:
        """Renames the finished files, or removes them after an exception."""
        with files.one_line_errors(self._what):
            self._open_files.__exit__(*error)
        if error[0] is None:  # Those of an earlier CSV would contradict it.
            files.remove(self._target + NAMES_SUFFIX)
            if self._frames is None:
                files.remove(self._target + FRAMES_SUFFIX)


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


def read_header(path: str | os.PathLike) -> list[str]:
    """The columns of a CSV; raises ValueError if it is missing."""
    return next(csv.reader(_lines(path, [])), [])


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
    text: list[bytes] = []  # The lines of the row at hand.
    reader = csv.reader(_lines(path, text), strict=True)
    line = 1
    try:
        columns = next(reader, [])
        if tuple(columns) != header:
            raise csv.Error(
                f"the header must be {','.join(header)}; received "
                f"{','.join(columns)[:80]!r}"
            )
        line = reader.line_num + 1
        text.clear()
        for columns in reader:
            if len(columns) != len(header):
                raise csv.Error(
                    f"{len(header)} columns are expected; received {len(columns)}"
                )
            yield Row(line, columns, b"".join(text))
            line = reader.line_num + 1
            text.clear()
    except csv.Error as error:
        raise ValueError(f"{os.fspath(path)}, line {line}: {error}.") from error


def _lines(path: str | os.PathLike, read: list[bytes]) -> Iterator[str]:
    """The lines of a file, with every byte accepted; `read` gets them as they are."""
    path = os.fspath(path)
    try:
        if files.is_remote(path):  # GFile would leave carriage returns out of lines.
            with tf.io.gfile.GFile(path, "rb") as file:
                lines = io.BytesIO(file.read())
        else:
            lines = open(path, "rb")
        with lines:
            for line in lines:
                read.append(line)
                yield line.decode("utf-8", "surrogateescape")
    except files.ERRORS as error:
        raise ValueError(f"{path} cannot be read: {files.reason(error)}.") from error


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


def _format_lines(ids: list[bytes], classes: np.ndarray, scores: np.ndarray) -> bytes:
    """All lines of a batch. One template a batch is what makes this fast."""
    num_rows, k = classes.shape
    template = b",".join((b"%s", b" ".join([b"%i %g"] * k))) + b"\n"
    values = np.empty([num_rows, 1 + 2 * k], object)
    values[:, 0] = [quoted(video_id) for video_id in ids]
    values[:, 1::2] = classes
    values[:, 2::2] = scores
    return (template * num_rows) % tuple(values.ravel().tolist())


def quoted(cell: bytes) -> bytes:
    """A cell of the CSV, in quotes where it needs them (RFC 4180)."""
    if _NEEDS_QUOTES.search(cell):
        return b'"' + cell.replace(b'"', b'""') + b'"'
    return cell
