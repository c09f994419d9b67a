"""A document of headings, texts, tables and figures, as Markdown and as HTML."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Sequence

# How the headers of the columns with published numbers begin.
PAPER = "paper"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem;
  border-bottom: 1px solid #ddd; } h3 { font-size: 1rem; margin-top: 1.5rem; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: 13px; margin: .5rem 0 1rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: right;
  white-space: nowrap; }
th { border-bottom: 2px solid #999; } tr > :first-child { text-align: left; }
.paper { color: #7a6a3a; background: #faf7ee; }
img { max-width: 100%; display: block; margin: .5rem 0; }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts under a header; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: of its file, without .svg.
        caption: says what it shows.
        svg: its content.
    """

    name: str
    caption: str
    svg: bytes


Block = Heading | Text | Table | Figure


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Figure):
        return f"![{block.caption}](figures/{block.name}.svg)\n\n{block.caption}"

    def line(cells):
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---", *["---:"] * (len(block.header) - 1)]
    return "\n".join(map(line, (block.header, rule, *block.rows)))


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown; figures are links to files in `figures/`."""
    return "\n\n".join(map(_markdown_block, blocks)) + "\n"


def _html_row(tag: str, header: Sequence[str], cells: Sequence[str]) -> str:
    found = [
        f'<{tag} class="paper">' if name.startswith(PAPER) else f"<{tag}>"
        for name in header
    ]
    inside = "".join(
        f"{begin}{html.escape(cell)}</{tag}>"
        for begin, cell in zip(found, cells, strict=True)
    )
    return f"<tr>{inside}</tr>"


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Figure):
        data = base64.b64encode(block.svg).decode()
        caption = html.escape(block.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = _html_row("th", block.header, block.header)
    rows = "\n".join(_html_row("td", block.header, row) for row in block.rows)
    return f'<div class="table"><table>\n{head}\n{rows}\n</table></div>'


def to_html(blocks: Sequence[Block]) -> str:
    """One HTML page that needs no other file: figures are inside it."""
    title = next(b.text for b in blocks if isinstance(b, Heading))
    body = "\n".join(map(_html_block, blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def write(folder: pathlib.Path, blocks: Sequence[Block]) -> None:
    """Writes report.md with its figures/*.svg, and report.html."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Figure):
            (figures / f"{block.name}.svg").write_bytes(block.svg)
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(to_html(blocks), encoding="utf-8")
