"""The list of records that inference skipped, next to its CSV."""

from collections.abc import Iterable, Sequence

import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.data import faults

SUFFIX = ".skipped.txt"


def write_list(output_file: str, skipped: faults.Skipped) -> None:
    """Writes `<output_file>.skipped.txt`, with one line per skipped record.

    Without skipped records no file is written, and that of an earlier run is removed.

    Raises:
        ValueError: if the file cannot be written.
    """
    write_lines(output_file, (record.message for record in skipped.bad))


def write_lines(output_file: str, lines: Iterable[str]) -> None:
    """The same of lines."""
    _write(output_file, "".join(f"{line}\n" for line in lines))


def merge_lists(parts: Sequence[str], output_file: str) -> None:
    """Concatenates the lists of these CSVs into that of `output_file`.

    Raises:
        ValueError: if the file cannot be written.
    """
    texts = []
    for path in (part + SUFFIX for part in parts):
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                texts.append(file.read())
    _write(output_file, "".join(texts))


def _write(output_file: str, text: str) -> None:
    """Writes the list, or removes that of an earlier run if `text` is empty."""
    path = output_file + SUFFIX
    if text:
        files.write_text(path, text)
    elif tf.io.gfile.exists(path):
        with files.one_line_errors(path):
            tf.io.gfile.remove(path)
