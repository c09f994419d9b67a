"""Measures speed and memory and compares them with bars.

    python tools/benchmark.py --areas=reading,network
    python tools/benchmark.py --areas=all                a long run
    python tools/benchmark.py --areas=all --quick        small sizes, without bars

Most numbers are ratios within one run on one machine, so run nothing else at the same
time. --output_dir writes the table as Markdown and JSON.
"""

import argparse
import ast
import dataclasses
import importlib
import json
import os
import pathlib
import platform
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tqdm

from tools.benchmarking import results
from yt8m_distill import flag_groups, processes

AREAS = (
    "network",
    "families",
    "peers",
    "segments",
    "reading",
    "evaluation",
    "end_to_end",
    "requests",
    "edge",
    "scale",
)


def machine() -> str:
    """A description of this machine."""
    import tensorflow as tf

    return (
        f"{os.cpu_count()} cores ({results.processor()}), TensorFlow {tf.__version__}, "
        f"Python {platform.python_version()}"
    )


def markdown(rows: list[results.Row]) -> str:
    """The table in Markdown."""
    lines = ["| what | measured | bar | met | made of |", "|---|---|---|---|---|"]
    for row in rows:
        bar = "" if row.bar is None else f"{'≤' if row.at_most else '≥'} {row.bar:g}"
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        value = f"{row.value:.3g} {row.unit}".strip()
        lines.append(f"| {row.name} | {value} | {bar} | {met} | {row.detail} |")
    return "\n".join(lines)


def write(found: dict[str, list[results.Row]], folder: str) -> None:
    """Writes benchmark.md and .json; keeps the other areas in them."""
    os.makedirs(folder, exist_ok=True)
    store = pathlib.Path(folder, "benchmark.json")
    content = json.loads(store.read_text("utf-8")) if store.exists() else {}
    facts = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    for area, rows in found.items():
        content[area] = {**facts, "rows": [vars(row) for row in rows]}
    content = {area: content[area] for area in AREAS if area in content}
    store.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    parts = ["# Benchmark\n\nMade by `tools/benchmark.py`; each area in one run.\n"]
    for area, kept in content.items():
        rows = [results.Row(**row) for row in kept["rows"]]
        head = f"## {area}\n\n{kept['machine']}. {kept['date']}.\n"
        parts += [head, markdown(rows) + "\n"]
    pathlib.Path(folder, "benchmark.md").write_text("\n".join(parts), "utf-8")


def describe() -> str:
    """Each area and the first line of its module, which is not imported."""
    folder = pathlib.Path(__file__).with_name("benchmarking")
    lines = []
    for area in AREAS:
        module = ast.parse((folder / f"{area}.py").read_text("utf-8"))
        summary = (ast.get_docstring(module) or "").splitlines()[0]
        lines.append(f"  {area:<10}  {summary}")
    return "\n".join(["areas:", *lines])


def measure(area: str, quick: bool, *options) -> list[results.Row]:
    """The rows of an area; the bars do not apply to small sizes."""
    module = importlib.import_module(f"tools.benchmarking.{area}")
    rows = module.rows(quick, *options)
    return [dataclasses.replace(row, bar=None) for row in rows] if quick else rows


def main() -> None:
    """Flags → areas → table, and the number of missed bars."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--areas", default="", help="comma separated, or all")
    parser.add_argument("--quick", action="store_true", help="small, without bars")
    parser.add_argument("--output_dir", default="", help="where the table is written")
    parser.add_argument("--scale_dir", default="", help="where `scale` keeps its data")
    given = parser.parse_args()
    names = [name for name in given.areas.split(",") if name]
    if names == ["all"]:
        names = list(AREAS)
    if not names or not set(names) <= set(AREAS):
        # Asked for, since all of them run for long.
        known = ", ".join(AREAS)
        parser.error(f"--areas={given.areas}: name some of {known}, or all.")
    flag_groups.load_tensorflow()
    measured: dict[str, list[results.Row]] = {}
    bar = tqdm.tqdm(names, disable=not sys.stderr.isatty(), unit="area")
    for area in bar:
        bar.set_description(area)
        options = (given.scale_dir,) if area == "scale" else ()
        start = time.perf_counter()
        # In a process of its own: the peak memory of others would count as its own.
        task = (area, given.quick, *options)
        ((_, measured[area]),) = processes.call_all(measure, [task], 1)
        heading = f"{area}, {time.perf_counter() - start:.0f} s"
        tqdm.tqdm.write(f"{heading}\n{markdown(measured[area])}", file=sys.stderr)
        if given.output_dir:
            # After each area, so that an interruption loses little.
            write(measured, given.output_dir)
    rows = [row for found in measured.values() for row in found]
    print(markdown(rows))
    missed = [row.name for row in rows if row.met is False]
    if missed:
        print(f"{len(missed)} of {sum(r.bar is not None for r in rows)} bars missed.")


if __name__ == "__main__":
    main()
