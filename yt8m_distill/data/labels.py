"""Labels of files from a CSV, by number or by name."""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from yt8m_distill import settings, vocabulary

_SEPARATOR = ";"  # Between labels in one cell: names of classes have commas.
_FLAGS = frozenset(("0", "1", "0.0", "1.0", "False", "True"))


class Labels(NamedTuple):
    """What a CSV of labels says.

    Attributes:
        of: key of a row, a path or a name → numbers of its classes, ascending.
        names: class number → name; empty where the CSV has numbers alone.
        header: first cell of the first line, which is not a key.
        is_like_a_row: whether the other cells of the first line are labels, too.
    """

    of: dict[str, list[int]]
    names: dict[int, str]
    header: str = ""
    is_like_a_row: bool = False

    def find_each(self, paths: Sequence[str]) -> dict[str, list[int] | None]:
        """Path → classes of each file, as `find`.

        Raises:
            ValueError: if the CSV has rows, but of none of the files, or its first line
                is the row of a file.
        """
        found = {path: self.find(path) for path in paths}
        for path, classes in found.items():
            # A header may be the stem of a file that has a row, as in video.mp4.
            is_a_stem_enough = classes is None or self.is_like_a_row
            names = _keys(path)[: 3 if is_a_stem_enough else 2]
            if self.header and self.header in names:
                raise ValueError(
                    f"--labels: the first line begins with {self.header!r}, the name "
                    f"of {path}; it must be a header, such as file,labels."
                )
        if self.of and all(classes is None for classes in found.values()):
            raise ValueError(
                f"--labels has a row for none of the files, such as {paths[0]}: its "
                f"first row is of {next(iter(self.of))!r}. Its columns are separated "
                "by commas."
            )
        return found

    def find(self, path: str) -> list[int] | None:
        """The classes of a file, by its path, its name or that without extension."""
        return next((self.of[key] for key in _keys(path) if key in self.of), None)


def _keys(path: str) -> tuple[str, str, str]:
    """What a row may call a file: its path, its name, that without extension."""
    name = os.path.basename(path)
    return path, name, os.path.splitext(name)[0]


def read(path: str, names: Mapping[int, str]) -> Labels:
    """The labels in a CSV with a header; several rows of one file add up.

    The first column is the file, all others are labels: names where there is a
    vocabulary or a label that is no number, otherwise numbers of classes.

    Args:
        path: of the CSV; empty: there are none.
        names: of the classes, from a vocabulary; empty: the names in the CSV in
            alphabetical order are classes 0, 1, ...

    Raises:
        ValueError: if it cannot be read, has a column of 0 and 1 per class, or a label
            that the vocabulary lacks or has twice; names the line.
    """
    if not path:
        return Labels({}, dict(names))
    where = f"--labels={path}"
    rows: list[tuple[int, str, list[str]]] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in filter(any, reader):
                cells = (part for cell in row[1:] for part in cell.split(_SEPARATOR))
                found = [cell.strip() for cell in cells if cell.strip()]
                rows.append((reader.line_num, row[0].strip(), found))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise vocabulary.unreadable(where, error) from error
    if len(rows) < 2:
        raise ValueError(f"{where} has no rows below its header.")
    (_, header, titles), *rows = rows
    if all(len(found) > 1 and _FLAGS.issuperset(found) for *_, found in rows):
        raise ValueError(
            f"{where} has a column of 0 and 1 per class: write the names or numbers of "
            f"the classes that a file has, as in {rows[0][1]},{';'.join(titles[:2])}"
        )
    stated = {label for *_, labels in rows for label in labels}
    if not names and not all(label.isdecimal() for label in stated):
        names = dict(enumerate(sorted(stated)))
    numbers: dict[str, list[int]] = {}
    for number, name in names.items():
        numbers.setdefault(name, []).append(number)
    of: dict[str, set[int]] = {}
    for line, key, labels in rows:
        at = f"{where}, line {line}"
        classes = {_class_of(label, names, numbers, at) for label in labels}
        of.setdefault(key, set()).update(classes)
    by_key = {key: sorted(classes) for key, classes in of.items()}
    known = {*stated, *names.values()}
    is_like_a_row = all(title in known or title.isdecimal() for title in titles)
    return Labels(by_key, dict(names), header, bool(titles) and is_like_a_row)


def _class_of(
    label: str, names: Mapping[int, str], numbers: Mapping[str, list[int]], where: str
) -> int:
    """The class of a label, which is a name or a number.

    Args:
        names: class → name; empty where there are numbers alone.
        numbers: name → its classes.
    """
    found = numbers.get(label, [])
    if len(found) > 1:
        raise ValueError(
            f"{where}: {label!r} is the name of the classes "
            f"{' and '.join(map(str, found))}: give the number."
        )
    if found:
        return found[0]
    if not label.isdecimal() or (names and int(label) not in names):
        raise ValueError(f"{where}: the vocabulary has no class {label!r}.")
    if int(label) >= settings.MAX_CLASSES:
        last = settings.MAX_CLASSES - 1
        raise ValueError(f"{where}: class {label} is not in 0..{last}.")
    return int(label)
