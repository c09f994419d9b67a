"""Average precision per class: a CSV, and the best and worst classes."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from yt8m_distill import files

HEADER = ("class", "name", "num_videos", "average_precision")


def write(
    path: str, precisions: np.ndarray, positives: np.ndarray, names: Mapping[int, str]
) -> None:
    """Writes one row per class: index, name, number of videos, average precision.

    Args:
        precisions: [C], NaN for a class without positives; its cell is empty.
        positives: [C], videos with the label.
        names: of the classes that have one.

    Raises:
        ValueError: if the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for number, (precision, count) in enumerate(
        zip(precisions, positives, strict=True)
    ):
        cell = "" if np.isnan(precision) else f"{precision:.6g}"
        writer.writerow([number, names.get(number, ""), int(count), cell])
    files.write_text(path, text.getvalue())


def best_and_worst(
    precisions: np.ndarray,
    positives: np.ndarray,
    names: Mapping[int, str],
    count: int = 5,
) -> list[str]:
    """Two lines about the classes with positives, e.g. `Best classes: Game 0.981 (34)`.

    The number in parentheses is the number of videos with the label.
    """
    order = np.argsort(-precisions, kind="stable")  # NaN last.
    order = order[: np.count_nonzero(~np.isnan(precisions))]

    def line(title: str, chosen) -> str:
        parts = (
            f"{names.get(int(c), int(c))} {precisions[c]:.3f} ({positives[c]:.0f})"
            for c in chosen
        )
        return f"{title} classes: {', '.join(parts)}"

    return [line("Best", order[:count]), line("Worst", order[::-1][:count])]
