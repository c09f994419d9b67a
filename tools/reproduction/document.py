"""Documents of headings, texts, tables and figures, as Markdown and HTML.

And how numbers are written in them; a missing one is "–".
"""

import base64
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jinja2
import markupsafe
import pandas as pd
import tabulate

# Prefix of the headers of columns with published numbers.
PAPER = "paper"
MISSING = "–"
TEMPLATE = pathlib.Path(__file__).with_name("report.html.j2")


def number(value: float | None, form: str = ".3f", unit: str = "") -> str:
    """A number with its unit."""
    return MISSING if value is None else format(value, form) + unit


def count(value: float | None) -> str:
    """`5.65 G`, `29.5 M`, `812`: three digits and a unit prefix."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value is not None and value >= size:
            return f"{value / size:.3g}{unit}"
    return number(value, ".3g")


def spread(values: pd.Series) -> str:
    """`0.803 ± 0.002`: mean and sample standard deviation; one value has none."""
    if values.empty:
        return MISSING
    deviation = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{deviation}"


class Heading(NamedTuple):
    """A heading; level 1 is the document's title."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph; `code` is between backticks."""

    text: str


class Table(NamedTuple):
    """Rows of text under a header; the first column names the row.

    Attributes:
        header, rows: of equal lengths.
        rivals: names of the rows among which the best value of each column is marked.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    rivals: Sequence[str] = ()

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the cells that start with the largest number of a column."""
        cells = set()
        for column in range(1, len(self.header)):
            numbers = {
                number: float(begin[0])
                for number, row in enumerate(self.rows)
                if row[0] in self.rivals
                and (begin := re.match(r"-?\d+(\.\d+)?", row[column]))
            }
            largest = max(numbers.values(), default=None)
            cells |= {(n, column) for n, value in numbers.items() if value == largest}
        return cells


class Figure(NamedTuple):
    """A plot: the name of its file without .svg, a caption, and its content."""

    name: str
    caption: str
    svg: bytes


Block = Heading | Text | Table | Figure


def table_text(table: Table) -> str:
    """A table in Markdown; the best value of each column is bold."""
    best = table.best()

    def cell(row, column, text):
        text = text.replace("|", "\\|")
        return f"**{text}**" if (row, column) in best else text

    rows = [
        [cell(number, column, text) for column, text in enumerate(row)]
        for number, row in enumerate(table.rows)
    ]
    aligned = ["left", *["right"] * (len(table.header) - 1)]
    return tabulate.tabulate(
        rows, table.header, "pipe", disable_numparse=True, colalign=aligned
    )


def to_markdown(blocks: Iterable[Block]) -> str:
    """Markdown; figures are links to files in `figures/`."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {text}")
            case Text(text):
                parts.append(text)
            case Figure(name, caption):
                parts += [f"![{caption}](figures/{name}.svg)", caption]
            case Table():
                parts.append(table_text(block))
    return "\n\n".join(parts) + "\n"


def _with_code(text: str) -> markupsafe.Markup:
    parts = re.split(r"`([^`]*)`", text)
    marked = (
        markupsafe.Markup("<code>{}</code>").format(part) if number % 2 else part
        for number, part in enumerate(parts)
    )
    return markupsafe.Markup("").join(marked)


def to_html(blocks: Iterable[Block]) -> str:
    """A self-contained HTML page; the figures are embedded."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["code"] = _with_code
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    kinds = [(type(block).__name__, block) for block in blocks]
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(blocks=kinds, paper=PAPER)


def write(folder: pathlib.Path, blocks: Sequence[Block]) -> None:
    """Writes report.md with its figures/*.svg, and report.html."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Figure):
            (figures / f"{block.name}.svg").write_bytes(block.svg)
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(to_html(blocks), encoding="utf-8")


def find_section(path: pathlib.Path, name: str) -> tuple[str, str, str]:
    """The text of a file before, between and after <!-- NAME --> and <!-- /NAME -->.

    Raises:
        ValueError: if the markers are missing.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, first, rest = path.read_text("utf-8").partition(begin)
    section, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"--write_to={path} has no {begin.strip()} ... {end}.")
    return before + first, section, last + after


def write_section(path: pathlib.Path, name: str, table: str) -> None:
    """Replaces a section of a Markdown file; see `find_section`."""
    before, _, after = find_section(path, name)
    path.write_text(f"{before}{table}\n{after}", "utf-8")
