"""Writes the table of flags/README.md from the headers of the flagfiles.

python tools/list_flagfiles.py            # prints it
python tools/list_flagfiles.py --write    # into flags/README.md
"""

import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "flags"
# What a flagfile says it is, in its header.
KINDS = ("Reproduces", "Data", "Preset", "Training", "Ablation")
BEGIN, END = "<!-- table -->\n", "<!-- /table -->"


def read_header(path: pathlib.Path) -> dict[str, str]:
    """The `# Name: value` lines at the top of a flagfile."""
    header = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        name, _, value = line[2:].partition(": ")
        header[name] = value
    return header


def make_table() -> str:
    """A Markdown row for every flagfile."""
    rows = ["| flagfile | what | published GAP/mAP |", "|---|---|---|"]
    for path in sorted(FOLDER.glob("*.flags")):
        header = read_header(path)
        what = next(header[name] for name in KINDS if name in header)
        published = header.get("Published GAP/mAP", "").replace(" | ", ", ")
        rows.append(f"| [{path.stem}]({path.name}) | {what} | {published} |")
    return "\n".join(rows) + "\n"


def replaced(text: str, table: str) -> str:
    """The text with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table}{END}{after}"


def main() -> None:
    """Prints or writes the table."""
    if "--write" in sys.argv[1:]:
        path = FOLDER / "README.md"
        path.write_text(replaced(path.read_text(encoding="utf-8"), make_table()))
    else:
        print(make_table(), end="")


if __name__ == "__main__":
    main()
