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
    write_lines(output_file, [record.message for record in skipped.bad])


def write_lines(output_file: str, lines: Iterable[str]) -> None:
    """The same of lines."""
    path = output_file + SUFFIX
    text = "".join(f"{line}\n" for line in lines)
    if text:
        files.write_text(path, text)
    else:
        files.remove(path)


def merge_lists(parts: Sequence[str], output_file: str) -> None:
    """Concatenates the lists of these CSVs into that of `output_file`.

    Raises:
        ValueError: if the file cannot be written.
    """
    lines: list[str] = []
    for path in (part + SUFFIX for part in parts):
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                lines += file.read().rstrip("\n").split("\n")
    write_lines(output_file, lines)
