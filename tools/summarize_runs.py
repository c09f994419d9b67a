"""Prints a table of runs: model, frames, GAP, mAP, Hit@1, ms a video.

    python tools/summarize_runs.py run1 run2 ...

A row is the newest evaluation of a network in <run>/eval/metrics.jsonl, so every
number comes from eval.py.
"""

import json
import os
import pathlib
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

from tools import sections

FLAGS = flags.FLAGS
flags.DEFINE_bool("markdown", False, "Print the table as Markdown.")
flags.DEFINE_string(
    "write_to",
    "",
    "Markdown file in which the table is put between <!-- NAME --> and <!-- /NAME -->.",
)
flags.DEFINE_string("section", "results", "NAME of that place.")

HEADER = ("model", "frames", "GAP", "mAP", "Hit@1", "ms a video")


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


def read_rows(train_dir: pathlib.Path) -> list[tuple[str, ...]]:
    """The rows of one run, teacher first.

    Raises:
        ValueError: if the run was never evaluated.
    """
    path = train_dir / "eval" / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run eval.py on {train_dir} first.")
    newest = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        newest[record["network"]] = record
    manifest = json.loads((train_dir / "manifest.json").read_text())
    frames = {
        name: network["frames"]
        for phase in manifest["phases"].values()
        for name, network in phase["networks"].items()
    }
    rows = []
    for network in sorted(newest, reverse=True):  # teacher, student
        record = newest[network]
        name = describe(network, manifest["settings"])
        rows.append(
            (
                name,
                str(frames[network]),
                f"{record['gap']:.3f}",
                f"{record['map']:.3f}",
                f"{record['hit_at_one']:.3f}",
                f"{1000 / record['videos_per_second']:.2f}",
            )
        )
    return rows


def format_table(rows: list[tuple[str, ...]], markdown: bool = False) -> str:
    """Rows under the header, in columns; the first is left aligned."""
    table = [HEADER, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]

    def line(row):
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        text = (" | " if markdown else "  ").join(cells)
        return f"| {text} |" if markdown else text

    rule = ["-" * width for width in widths]
    return "\n".join(line(row) for row in (HEADER, rule, *rows))


def main(argv: list[str]) -> None:
    """Prints the table of the runs named on the command line."""
    if len(argv) < 2:
        raise app.UsageError("Name one train_dir or more.")
    rows = [row for folder in argv[1:] for row in read_rows(pathlib.Path(folder))]
    table = format_table(rows, FLAGS.markdown or bool(FLAGS.write_to))
    print(table)
    if FLAGS.write_to:
        path = pathlib.Path(FLAGS.write_to)
        path.write_text(
            sections.replace_section(path.read_text(), FLAGS.section, table)
        )


if __name__ == "__main__":
    app.run(main)
