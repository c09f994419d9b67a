"""Prints a table of runs: model, frames, GAP, mAP, Hit@1, milliseconds per video.

    python tools/summarize_runs.py run1 run2 ...
    python tools/summarize_runs.py 'labels alone=control-0,control-1' 'best=best-0' ...

A row of the first is the newest evaluation of a network in <run>/eval/metrics.jsonl,
so every number comes from eval.py; what differs from the network as it was trained,
such as --student_k or --mean_with, has a row of its own. The second compares ways of
training: a row per label, over the seeds of its runs, with the validation GAP of the
best epoch at each k, and what the training cost; --keep writes the numbers of its runs
to a JSON-lines file, and 'labels alone=' takes the runs of that label from there.
--write_to puts the table between <!-- NAME --> and <!-- /NAME --> of a Markdown file,
where NAME is --section.
"""

import argparse
import collections
import json
import os
import pathlib
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pandas as pd

from tools.reproduction import document
from yt8m_distill import flag_groups

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
    from tools.reproduction import runs

    path = train_dir / "eval" / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run eval.py on {train_dir} first.")
    run, rows, newest = runs.open_run(train_dir), [], {}
    settings = run.manifest["settings"]
    as_trained = f"--student_k={max(settings['student_k'].split(','), key=int)}"
    for line in map(json.loads, path.read_text().splitlines()):
        notes = [line.get("asked", "")]
        if notes == [as_trained]:  # Of a flagfile that the programs share.
            notes = []
        if line.get("mean_with"):
            weight = f"--mean_weight={line.get('mean_weight', '?')}"
            notes.append(f"--mean_with={line['mean_with']} {weight}")
        if line.get("segment_labels") and not settings.get("segment_labels"):
            notes.append("--segment_labels")
        newest[(line["network"], *filter(None, notes))] = line
    by_network = sorted(newest, key=lambda key: key[0], reverse=True)
    for network, *notes in by_network:  # teacher, student
        line = newest[(network, *notes)]
        scores = [  # Segments have no Hit@1.
            f"{line[name]:.3f}" if name in line else "–"
            for name in ("gap", "map", "hit_at_one")
        ]
        name = ", ".join([describe(network, settings), *notes])
        seconds = f"{1000 / line['videos_per_second']:.2f}"
        frames = str(run.network(network)["frames"])
        if notes:
            frames = line.get("asked", "").partition("--student_k=")[2] or "–"
        if "mean_frames" in line:
            frames = f"{line['mean_frames']:.1f}"
        rows.append([name, frames, *scores, seconds])
    return rows


def read_run(train_dir: pathlib.Path) -> dict:
    """The last phase of a finished run, and what its training cost.

    Returns:
        `settings` without folders, `best` epoch, `gap` (frames → GAP of that epoch),
        `epochs` (phase → number) and `multiply_adds` of a training video over all
        epochs, its teachers' own training included.

    Raises:
        ValueError: if the run has not finished.
    """
    from tools.reproduction import cost, runs

    run = runs.open_run(train_dir)
    if not run.finished:
        raise ValueError(f"{train_dir} has not finished.")
    settings = run.manifest["settings"]
    epochs, total = collections.Counter(), 0.0
    for teacher in run.settings.distillation.teacher_checkpoint.split(","):
        if teacher:
            of_teacher = read_run(pathlib.Path(teacher))
            total += of_teacher["multiply_adds"]
            epochs.update(of_teacher["epochs"])
    for phase in run.planned:
        number = run.epochs_done(phase.name)
        epochs[phase.name] += number
        networks = run.phases[phase.name]["networks"]
        parts = {role: network["multiply_adds"] for role, network in networks.items()}
        videos = number * cost.share_of_videos(run.settings, phase)
        total += cost.phase_cost(phase, parts, videos)
    role = phase.trained[-1].name
    best = max(run.epochs(role), key=lambda epoch: epoch["gap"])
    gaps = {k[5:]: gap for k, gap in best.items() if k.startswith("gap_k")}
    start = pathlib.PurePath(settings.get("start_from", "")).name
    return {
        "settings": {**runs.portable(settings), "start_from": start},
        "gap": gaps or {str(run.network(role)["frames"]): best["gap"]},
        "best": best,
        "epochs": epochs,
        "multiply_adds": total,
    }


def compare(groups: dict[str, list[dict]]) -> document.Table:
    """A row per label: epochs, multiply-adds, and GAP at each k over the seeds.

    The runs of a label may have different k; epochs and cost are those of the first.
    """
    ks = sorted(
        {k for group in groups.values() for r in group for k in r["gap"]}, key=int
    )
    header = ["training", "epochs", "G multiply-adds", "seeds", *(f"k={k}" for k in ks)]
    rows = []
    for label, group in groups.items():
        by_k = {k: [r["gap"][k] for r in group if k in r["gap"]] for k in ks}
        epochs = " + ".join(str(number) for number in group[0]["epochs"].values())
        row = [label, epochs, f"{group[0]['multiply_adds'] / 1e9:.2f}"]
        row.append(str(max(map(len, by_k.values()))))
        rows.append(row + [document.spread(pd.Series(v)) for v in by_k.values()])
    return document.Table(header, rows)


def read_kept(path: pathlib.Path) -> dict[str, list[dict]]:
    """Label → runs of a file that --keep wrote; empty if there is none."""
    groups: dict[str, list[dict]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        run = json.loads(line)
        groups.setdefault(run.pop("label"), []).append(run)
    return groups


def folder_of(path: str) -> pathlib.Path:
    """The folder of a run; raises ValueError if there is none."""
    if not os.path.isdir(path):
        raise ValueError(f"{path} is no folder of a run.")
    return pathlib.Path(path)


def read_group(label: str, paths: str, kept: dict[str, list[dict]]) -> list[dict]:
    """The runs of a row: those named, else those kept under its label.

    Raises:
        ValueError: if there are none, or a run has not finished.
    """
    if paths:
        return [read_run(folder_of(path)) for path in paths.split(",")]
    if label not in kept:
        raise ValueError(f"'{label}=' names no runs, and --keep has none of it.")
    return kept[label]


def main() -> None:
    """Prints the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="train_dirs, or LABEL=RUN,RUN,...")
    parser.add_argument("--keep", type=pathlib.Path, help="a JSON-lines file")
    parser.add_argument("--write_to", type=pathlib.Path, help="a Markdown file")
    parser.add_argument("--section", default="results", help="NAME of the place in it")
    given = parser.parse_args()
    flag_groups.load_tensorflow()  # Only once the arguments are right.
    try:
        if any("=" in run for run in given.runs):
            named = (run.rpartition("=") for run in given.runs)
            kept = read_kept(given.keep) if given.keep else {}
            groups = {
                label: read_group(label, paths, kept) for label, _, paths in named
            }
            made = compare(groups)
            if given.keep:
                lines = [
                    {"label": x, **run} for x, runs in groups.items() for run in runs
                ]
                given.keep.write_text("".join(json.dumps(x) + "\n" for x in lines))
        else:
            rows = [row for run in given.runs for row in read_rows(folder_of(run))]
            made = document.Table(HEADER, rows)
        table = document.table_text(made)
        print(table)
        if given.write_to:
            document.write_section(given.write_to, given.section, table)
    except (ValueError, OSError) as error:
        sys.exit(f"summarize_runs.py: {error}")


if __name__ == "__main__":
    main()
