"""Kills, damages, fills and spoils what runs depend on, and looks what is lost.

    python tools/torture.py                        all areas
    python tools/torture.py --areas=kills          one of them
    python tools/torture.py --quick                a little of each: does it run?

The runs are tiny; what costs time is that each is a process of its own. The seed
decides when a run is killed and which byte is flipped, so what was lost can be looked
at again. Exit code 1 where something was lost. --output_dir writes the table as
Markdown and JSON.
"""

import argparse
import importlib
import inspect
import os
import pathlib
import platform
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorflow as tf
import tqdm

from tools import areas
from tools.torturing import results

# An area is a module of tools/torturing with a function rows(quick) → list[Row],
# which may also take `kills` and `seed`.
AREAS: tuple[str, ...] = (
    "kills",
    "checkpoints",
    "disk",
    "numbers",
    "data",
    "machines",
)


def machine() -> str:
    """What it ran on."""
    return (
        f"{platform.system()}, {os.cpu_count()} processors, TensorFlow "
        f"{tf.__version__}, Python {platform.python_version()}"
    )


def markdown(found: dict[str, list[results.Row]]) -> str:
    """The table."""
    lines = [
        "| area | what was done | tried | survived | lost | remarks |",
        "|---|---|---:|---:|---:|---|",
    ]
    for area, rows in found.items():
        for row in rows:
            lost = f"**{row.lost}**" if row.lost else "0"
            remark = row.remark.replace("|", "\\|").replace("\n", " ")
            lines.append(
                f"| {area} | {row.name} | {row.tried} | {row.survived} | {lost} | "
                f"{remark} |"
            )
    return "\n".join(lines)


def write(found: dict[str, list[results.Row]], folder: str, command: str) -> None:
    """torture.md and torture.json; areas that are in them and did not run are kept."""
    os.makedirs(folder, exist_ok=True)
    store = pathlib.Path(folder, "torture.json")
    content = areas.keep(store, AREAS, found, command=command, machine=machine())
    parts = ["# Torture\n\nMade by `tools/torture.py`; each area in one run.\n"]
    for area, kept in content.items():
        head = f"## {area}\n\n`{kept['command']}`. {kept['machine']}. "
        rows = [results.Row(**row) for row in kept["rows"]]
        parts += [f"{head}{kept['date']}.\n", markdown({area: rows}) + "\n"]
    pathlib.Path(folder, "torture.md").write_text("\n".join(parts), "utf-8")


def run_area(area: str, given: argparse.Namespace) -> list[results.Row]:
    """The rows of an area, which gets those of the options that it takes."""
    rows = importlib.import_module(f"tools.torturing.{area}").rows
    taken = inspect.signature(rows).parameters
    options = {name: getattr(given, name) for name in ("kills", "seed")}
    return rows(given.quick, **{k: v for k, v in options.items() if k in taken})


def main() -> None:
    """Flags → areas → table; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--areas", default=",".join(AREAS), help="which, comma separated"
    )
    parser.add_argument("--kills", type=int, default=30, help="how many runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--quick", action="store_true", help="a little of each area")
    parser.add_argument("--output_dir", default="", help="where the table is written")
    given = parser.parse_args()
    names = areas.read_names(parser, given.areas, AREAS)
    if given.kills < 1:
        parser.error(f"--kills={given.kills} is less than 1.")
    options = [f"--kills={given.kills}", f"--seed={given.seed}"]
    options += ["--quick"] if given.quick else []
    done: dict[str, list[results.Row]] = {}
    bar = tqdm.tqdm(names, disable=not sys.stderr.isatty(), unit="area")
    for area in bar:
        bar.set_description(area)
        done[area] = run_area(area, given)
        if given.output_dir:
            # After each area: what is known is kept whatever comes.
            command = " ".join(["tools/torture.py", f"--areas={area}", *options])
            write({area: done[area]}, given.output_dir, command)
    print(markdown(done))
    lost = sum(row.lost for rows in done.values() for row in rows)
    tried = sum(row.tried for rows in done.values() for row in rows)
    print(f"{lost} of {tried} lost.")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
