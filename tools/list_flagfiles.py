"""The table of flags/README.md from the headers of the flagfiles, and their costs.

python tools/list_flagfiles.py            # prints the table
python tools/list_flagfiles.py --write    # into flags/README.md; Cost lines too
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "flags"
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


def write_costs() -> None:
    """Writes the Cost line of every flagfile, from its Command.

    Raises:
        ValueError: for a Command that train.py would refuse; names the flagfile.
    """
    # Run as a file, the root is one folder up. TensorFlow is loaded here alone.
    sys.path.insert(0, str(ROOT))
    from yt8m_distill import flag_groups

    flag_groups.load_tensorflow()
    from tools import flagfile_costs

    for path in sorted(FOLDER.glob("*.flags")):
        text = path.read_text(encoding="utf-8")
        try:
            path.write_text(flagfile_costs.replaced(text), encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"flags/{path.name}: {error}") from error


def main() -> None:
    """Prints the table, or writes it and the costs."""
    if "--write" not in sys.argv[1:]:
        print(make_table(), end="")
        return
    try:
        write_costs()
    except ValueError as error:
        sys.exit(f"list_flagfiles.py: {error}")
    path = FOLDER / "README.md"
    text = replaced(path.read_text(encoding="utf-8"), make_table())
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
