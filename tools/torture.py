"""Kills runs, damages files, fills disks and spoils numbers, and looks what is lost.

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
import json
import os
import pathlib
import platform
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorflow as tf
import tqdm

from tools.torturing import results

# An area is a module of tools/torturing with a function rows(quick) → list[Row],
# which may also take `kills` and `seed`.
AREAS: tuple[str, ...] = (
    "kills",
    "checkpoints",
    "disk",
    "numbers",
)


def machine() -> str:
    """What it ran on."""
    return (
        f"{platform.system()}, {os.cpu_count()} processors, TensorFlow "
        f"{tf.__version__}, Python {platform.python_version()}"
    )


def markdown(areas: dict[str, list[results.Row]]) -> str:
    """The table."""
    lines = [
        "| area | what was done | tried | survived | lost | remarks |",
        "|---|---|---:|---:|---:|---|",
    ]
    for area, rows in areas.items():
        for row in rows:
            lost = f"**{row.lost}**" if row.lost else "0"
            remark = row.remark.replace("|", "\\|").replace("\n", " ")
            lines.append(
                f"| {area} | {row.name} | {row.tried} | {row.survived} | {lost} | "
                f"{remark} |"
            )
    return "\n".join(lines)


def write(areas: dict[str, list[results.Row]], folder: str, command: str) -> None:
    """torture.md and torture.json; areas that are in them and did not run are kept."""
    os.makedirs(folder, exist_ok=True)
    store = pathlib.Path(folder, "torture.json")
    content = json.loads(store.read_text("utf-8")) if store.exists() else {}
    for area, rows in areas.items():
        content[area] = {
            "command": command,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": [vars(row) for row in rows],
        }
    content = {area: content[area] for area in AREAS if area in content}
    store.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    parts = ["# Torture\n\nMade by `tools/torture.py`; each area in one run.\n"]
    for area, found in content.items():
        head = f"## {area}\n\n`{found['command']}`. {found['machine']}. "
        rows = [results.Row(**row) for row in found["rows"]]
        parts += [f"{head}{found['date']}.\n", markdown({area: rows}) + "\n"]
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
    areas = [area.strip() for area in given.areas.split(",") if area.strip()]
    unknown = [area for area in areas if area not in AREAS]
    if unknown or not areas:
        parser.error(f"--areas={given.areas}: known are {', '.join(AREAS)}.")
    if given.kills < 1:
        parser.error(f"--kills={given.kills} is less than 1.")
    options = [f"--kills={given.kills}", f"--seed={given.seed}"]
    options += ["--quick"] if given.quick else []
    done: dict[str, list[results.Row]] = {}
    bar = tqdm.tqdm(areas, disable=not sys.stderr.isatty(), unit="area")
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
