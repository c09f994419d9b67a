"""Documents of headings, texts, tables and figures, as Markdown and HTML."""

import base64
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jinja2
import markupsafe
import tabulate

# Prefix of the headers of columns with published numbers.
PAPER = "paper"
TEMPLATE = pathlib.Path(__file__).with_name("report.html.j2")


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


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Figure):
        return f"![{block.caption}](figures/{block.name}.svg)\n\n{block.caption}"
    return table_text(block)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown; figures are links to files in `figures/`."""
    return "\n\n".join(map(_markdown_block, blocks)) + "\n"


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


def replace_section(text: str, name: str, table: str) -> str:
    """Replaces the text between <!-- NAME --> and <!-- /NAME --> by a table.

    Raises:
        ValueError: if the markers are missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"There is no {begin} ... {end} in the file.")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)
