"""Prints a table of runs: model, frames, GAP, mAP, Hit@1, milliseconds per video.

    python tools/summarize_runs.py run1 run2 ...

A row is the newest evaluation of a network in <run>/eval/metrics.jsonl, so every
number comes from eval.py. --write_to puts the table between <!-- NAME --> and
<!-- /NAME --> of a Markdown file, where NAME is --section.
"""

import argparse
import json
import os
import pathlib
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.reproduction import document

HEADER = ("model", "frames", "GAP", "mAP", "Hit@1", "ms per video")


def describe(network: str, settings: dict) -> str:
    """What a network of a run is: `serial student (ce + pred)`."""
    mode = settings["mode"]
    if network == "teacher":
        return "teacher" if mode in ("teacher", "serial") else f"{mode} teacher"
    other_frames = settings.get("train_frame_sampler", "")
    suffix = f", {other_frames} frames in training" if other_frames else ""
    if mode == "baseline":
        return f"{settings['frame_sampler']} baseline{suffix}"
    return f"{mode} student ({settings['student_loss']}){suffix}"


def read_rows(train_dir: pathlib.Path) -> list[list[str]]:
    """The rows of one run, teacher first.

    Raises:
        ValueError: if the run was never evaluated.
    """
    path = train_dir / "eval" / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run eval.py on {train_dir} first.")
    lines = map(json.loads, path.read_text().splitlines())
    newest = {line["network"]: line for line in lines}
    manifest = json.loads((train_dir / "manifest.json").read_text())
    rows = []
    for network, line in sorted(newest.items(), reverse=True):  # teacher, student
        phases = manifest["phases"].values()
        facts = next(p["networks"][network] for p in phases if network in p["networks"])
        scores = [f"{line[name]:.3f}" for name in ("gap", "map", "hit_at_one")]
        name = describe(network, manifest["settings"])
        seconds = f"{1000 / line['videos_per_second']:.2f}"
        rows.append([name, str(facts["frames"]), *scores, seconds])
    return rows


def main() -> None:
    """Prints the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train_dirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--write_to", type=pathlib.Path, help="a Markdown file")
    parser.add_argument("--section", default="results", help="NAME of the place in it")
    given = parser.parse_args()
    try:
        rows = [row for folder in given.train_dirs for row in read_rows(folder)]
        table = document.table_text(document.Table(HEADER, rows))
        print(table)
        if given.write_to:
            text = given.write_to.read_text()
            text = document.replace_section(text, given.section, table)
            given.write_to.write_text(text)
    except (ValueError, OSError) as error:
        sys.exit(f"summarize_runs.py: {error}")


if __name__ == "__main__":
    main()
