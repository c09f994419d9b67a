"""Measures speed and memory and compares them with bars.

    python tools/benchmark.py                      all areas, about twenty minutes
    python tools/benchmark.py --areas=reading      one of them
    python tools/benchmark.py --quick              small sizes, without bars: a test

Most numbers are ratios within one run on one machine, so run nothing else at the same
time. --output_dir writes the table as Markdown and JSON, and a plot.
"""

import argparse
import dataclasses
import importlib
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

from tools.benchmarking import results

AREAS = (
    "network",
    "families",
    "peers",
    "segments",
    "reading",
    "evaluation",
    "end_to_end",
    "precision",
    "memory",
    "saving",
    "requests",
    "edge",
    "scale",
)


def machine() -> str:
    """A description of this machine."""
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


def plot(rows: list[results.Row], path: str) -> None:
    """Plots each number over its bar as a factor; the bar is met from 1 on."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.bar and row.value][::-1]
    factors = [
        row.bar / row.value if row.at_most else row.value / row.bar for row in shown
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(shown) + 1.2))
    colors = ["#2a7f62" if factor >= 1 else "#c2452d" for factor in factors]
    axes.barh([row.name for row in shown], factors, color=colors, height=0.6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    ticks = (0.5, 0.7, 1, 1.5, 2, 3, 5, 10)
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("measured over bar (bar over measured for upper limits)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def write(found: dict[str, list[results.Row]], folder: str) -> None:
    """Writes benchmark.md, .json and .svg; keeps the other areas in them."""
    os.makedirs(folder, exist_ok=True)
    store = pathlib.Path(folder, "benchmark.json")
    content = json.loads(store.read_text("utf-8")) if store.exists() else {}
    facts = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    for area, rows in found.items():
        content[area] = {**facts, "rows": [vars(row) for row in rows]}
    content = {x: content[x] for x in (*AREAS, *content) if x in content}
    store.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    parts = ["# Benchmark\n\nMade by `tools/benchmark.py`; each area in one run.\n"]
    everything = []
    for area, kept in content.items():
        rows = [results.Row(**row) for row in kept["rows"]]
        everything += rows
        head = f"## {area}\n\n{kept['machine']}. {kept['date']}.\n"
        parts += [head, markdown(rows) + "\n"]
    parts.append("![measured over bar](benchmark.svg)\n")
    pathlib.Path(folder, "benchmark.md").write_text("\n".join(parts), "utf-8")
    plot(everything, os.path.join(folder, "benchmark.svg"))


def measure(area: str, quick: bool, *options) -> list[results.Row]:
    """The rows of an area; the bars do not apply to small sizes."""
    module = importlib.import_module(f"tools.benchmarking.{area}")
    rows = module.rows(quick, *options)
    return [dataclasses.replace(row, bar=None) for row in rows] if quick else rows


def main() -> None:
    """Flags → areas → table, and the number of missed bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--areas", default=",".join(AREAS), help="which, comma separated"
    )
    parser.add_argument("--quick", action="store_true", help="small, without bars")
    parser.add_argument("--output_dir", default="", help="where the table is written")
    parser.add_argument("--scale_dir", default="", help="where `scale` keeps its data")
    parser.add_argument(
        "--scale_videos", type=int, default=5_600_000, help="of `scale`, in all shards"
    )
    given = parser.parse_args()
    names = [name for name in given.areas.split(",") if name]
    if not names or not set(names) <= set(AREAS):
        parser.error(f"--areas={given.areas}: known are {', '.join(AREAS)}.")
    measured: dict[str, list[results.Row]] = {}
    bar = tqdm.tqdm(names, disable=not sys.stderr.isatty(), unit="area")
    for area in bar:
        bar.set_description(area)
        options = (given.scale_dir, given.scale_videos) if area == "scale" else ()
        measured[area] = measure(area, given.quick, *options)
        tqdm.tqdm.write(f"{area}\n{markdown(measured[area])}", file=sys.stderr)
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
