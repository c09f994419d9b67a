"""Names and counts of classes, from CSVs that come with data sets."""

import csv
import io
from collections.abc import Collection, Mapping

# YouTube-8M's vocabulary.csv, Kaggle's label_names.csv, AudioSet's
# class_labels_indices.csv.
_NAME_COLUMNS = ("display_name", "name", "label_name")
# In a --per_class_file, and in YouTube-8M's vocabulary.csv.
_COUNT_COLUMNS = ("num_videos", "trainvideocount")


def read(path: str, num_classes: int = 0, flag: str = "vocabulary") -> dict[int, str]:
    """Class number → name; empty without a path.

    The number is in the first column, the name in the column `display_name`, `name` or
    `label_name` (in any case), or else in the second column.

    Args:
        path: a local CSV.
        num_classes: of the run; 0 if unknown.

    Raises:
        ValueError: if it cannot be read, or names no class or one out of range.
    """
    if not path:
        return {}
    where = f"--{flag}={path}"
    header, rows = _read(path, where)
    column = next((header.index(n) for n in _NAME_COLUMNS if n in header), 1)
    names = {
        int(row[0]): row[column].strip()
        for row in rows
        if len(row) > column and row[0].strip().isdecimal()
    }
    _check(names, where, num_classes)
    return names


def read_classes(path: str, num_classes: int) -> list[int]:
    """The classes of --segment_label_ids_file, ascending; all without a path.

    They are in the first column of a CSV, such as Kaggle's segment_label_ids.csv.

    Raises:
        ValueError: as `read`.
    """
    if not path:
        return list(range(num_classes))
    where = f"--segment_label_ids_file={path}"
    _, rows = _read(path, where)
    cells = [row[0].strip() for row in rows if row]
    classes = sorted({int(cell) for cell in cells if cell.isdecimal()})
    _check(classes, where, num_classes)
    return classes


def _check(classes: Collection[int], where: str, num_classes: int) -> None:
    """Raises ValueError for no classes, or one that the run does not have."""
    if not classes:
        raise ValueError(f"{where} has no class numbers in its first column.")
    if num_classes and max(classes) >= num_classes:
        raise ValueError(
            f"{where} names class {max(classes)}; the run has --num_classes="
            f"{num_classes}."
        )


def to_text(names: Mapping[int, str]) -> str:
    """A CSV `index,display_name` that `read` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "display_name"])
    writer.writerows(sorted(names.items()))
    return text.getvalue()


def read_counts(path: str, where: str) -> dict[int, int]:
    """Class number → number of videos with the label.

    Args:
        path: a local CSV; the number is in the first column, the count in the column
            `num_videos` or `TrainVideoCount`.
        where: flag and file, for errors.

    Raises:
        ValueError: if it cannot be read, or a class has no count.
    """
    header, rows = _read(path, where)
    column = next((header.index(n) for n in _COUNT_COLUMNS if n in header), None)
    if column is None:
        raise ValueError(f"{where} has no column num_videos.")
    counts = {}
    for row in rows[1:]:
        cells = [row[at].strip() for at in (0, column) if at < len(row)]
        if len(cells) < 2 or not all(cell.isdecimal() for cell in cells):
            raise ValueError(f"{where}: {','.join(row)} is not a class and its count.")
        counts[int(cells[0])] = int(cells[1])
    return counts


def _read(path: str, where: str) -> tuple[list[str], list[list[str]]]:
    """The column names of a CSV, in lower case, and all rows."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(where, error) from error
    return [name.strip().lower() for name in rows[0]] if rows else [], rows


def unreadable(where: str, error: Exception) -> ValueError:
    """The error of a CSV that cannot be opened, or is not text."""
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, UnicodeDecodeError):
        reason = "it is not UTF-8 text"
    return ValueError(f"{where} cannot be read: {reason}.")
