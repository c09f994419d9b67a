"""The list of videos that a CSV of predictions does not have."""

import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.data import validation

SUFFIX = ".skipped.txt"


def write_list(output_file: str, skipped: validation.Skipped | None) -> None:
    """Writes `<output_file>.skipped.txt`: the message about each record, a line each.

    Without such records there is no file, and one of an earlier run is removed.

    Raises:
        ValueError: if the file system refuses.
    """
    path = output_file + SUFFIX
    if skipped and skipped.bad:
        files.write_text(path, "".join(f"{bad.message}\n" for bad in skipped.bad))
    elif tf.io.gfile.exists(path):
        with files.one_line_errors(path):
            tf.io.gfile.remove(path)
