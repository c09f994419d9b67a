"""Runs the experiments of the paper and writes a report.

    python tools/reproduce.py --table=1 --data=data --output_dir=reproduction \\
        --base_flags='flags/data_yt8m_2018.flags --num_gpus=1' --seeds=0,1,2

--data is a folder with train*.tfrecord and valid*.tfrecord, or a flagfile that names
the shards. Each cell of a table is a run of train.py with its flagfile in flags/.
Finished runs are not repeated; after an interruption, the same command continues.
report.html and report.md, in --output_dir or --report_dir, contain the paper's tables
with the results of these runs next to the published numbers. runs.jsonl in the same
folder has the results of the finished runs, which --known_runs reuses on any machine.
--table=cvpr_5,cvpr_6,families --networks=... are the tables of other networks,
--table=budgets is one student for all of --frames, at each of them and with early exit.
"""

import os
import pathlib
import shlex
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags
from absl import logging as absl_logging

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()

from tools.reproduction import (  # noqa: E402
    cost,
    document,
    measures,
    plan,
    published,
    report,
    runner,
    runs,
    scores,
    tables,
)
from yt8m_distill.data import records  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "table",
    ["all"],
    "Any of 1, 2, 3, 4, figure2, figure3; all of these: all. cvpr_2019: additional "
    "rows of Table 1 from the paper's later version. ablation: the ablation of the "
    "best preset. budgets: its student for all of --frames, and early exit. cvpr_5, "
    "cvpr_6: that version's NetVLAD and NeXtVLAD, as teacher, Uniform-k and student. "
    "families: each of --networks as teacher and as Uniform-k.",
)
flags.DEFINE_list(
    "networks",
    list(plan.PUBLISHED_NETWORKS),
    "Flagfiles in flags/, without .flags, of the networks in cvpr_5, cvpr_6 and "
    "families; wildcards are allowed, as in network_audioset_*.",
)
flags.DEFINE_string("data", "", "Folder of shards, or a flagfile with their patterns.")
flags.DEFINE_string("output_dir", "", "Folder of the runs and reports.")
flags.DEFINE_list(
    "frames",
    list(map(str, published.FRAMES)),
    "Values of k. The largest is used where the paper has k = 30.",
)
flags.DEFINE_list("seeds", ["0"], "Seeds; every cell is run with each of them.")
flags.DEFINE_string(
    "base_flags",
    "",
    "Flags of train.py for every run, in one string; a file name alone is a flagfile.",
)
flags.DEFINE_list(
    "methods", [], "Flagfiles in flags/, without .flags, to run. Empty: all."
)
flags.DEFINE_integer("jobs", 1, "Number of concurrent runs.", lower_bound=1)
flags.DEFINE_string(
    "test_data_pattern",
    "",
    "Shards on which eval.py scores every network for the report. Empty: report the "
    "scores on the validation shards.",
)
flags.DEFINE_string(
    "teacher_cache",
    "",
    "Folder of the teacher caches that the serial students of a seed share (train.py's "
    "--teacher_cache). Empty: each student computes its teacher's outputs.",
)
flags.DEFINE_string("report_dir", "", "Folder of the report. Empty: --output_dir.")
flags.DEFINE_string(
    "known_runs",
    "",
    "runs.jsonl of an earlier report with the same settings; its runs count as "
    "finished. A known teacher is trained again if a missing student needs it.",
)
flags.DEFINE_string(
    "write_to",
    "",
    "Markdown file in which a short form of Table 1 is written between <!-- NAME --> "
    "and <!-- /NAME -->, where NAME is --section.",
)
flags.DEFINE_string("section", "results", "See --write_to.")
flags.DEFINE_bool("dry_run", False, "Print the commands and exit.")
flags.DEFINE_bool("report_only", False, "Only write the report of the finished runs.")


def read_numbers(name: str) -> tuple[int, ...]:
    """The distinct numbers of a list flag, in ascending order.

    Raises:
        ValueError: if an entry is not a whole number.
    """
    try:
        return tuple(sorted({int(word) for word in FLAGS[name].value}))
    except ValueError as error:
        raise ValueError(
            f"--{name}={','.join(FLAGS[name].value)} is not a list of whole numbers."
        ) from error


def read_grid() -> plan.Grid:
    """The grid of the flags.

    Raises:
        ValueError: for an unknown table or method.
    """
    tables = tuple(FLAGS.table)
    if "all" in tables:
        tables = (*plan.PAPER, *(t for t in tables if t not in ("all", *plan.PAPER)))
    return plan.Grid(
        tables,
        read_numbers("frames"),
        read_numbers("seeds"),
        tuple(FLAGS.methods),
        plan.find_networks(FLAGS.networks),
    )


def print_plan(
    experiments: list[plan.Experiment], missing: list[plan.Experiment]
) -> None:
    """Prints the commands, which of them are finished, and the remaining cost."""
    unfinished = [e for e in missing if not runs.open_run(e.train_dir).has(e)]
    for experiment in experiments:
        state = "" if experiment in unfinished else " (finished)"
        print(f"# {experiment.cell.name}{state}")
        print(shlex.join(experiment.command))
    costs = sum(sum(cost.training_cost(e.run).values()) for e in unfinished)
    num_finished = len(experiments) - len(unfinished)
    print(
        f"{len(experiments)} runs, {num_finished} of them finished; the others take "
        f"{costs / 1e9:.3g} G multiply-adds per training video."
    )


def run_command() -> int:
    """Flags → plan → runs → report; returns the exit status.

    Raises:
        ValueError: for invalid flags, data or output_dir.
    """
    if not FLAGS.output_dir:
        raise ValueError("--output_dir is empty: name the folder of runs and reports.")
    if not FLAGS.data:
        raise ValueError("--data is empty: name a folder of shards or a flagfile.")
    output_dir = os.path.abspath(FLAGS.output_dir)
    report_dir = pathlib.Path(os.path.abspath(FLAGS.report_dir or output_dir))
    grid, test = read_grid(), FLAGS.test_data_pattern
    if FLAGS.write_to:
        document.find_section(pathlib.Path(FLAGS.write_to), FLAGS.section)
    if unused := grid.unused_methods():
        where = f"in none of --table={','.join(grid.tables)}"
        print(f"Left out: {', '.join(unused)}: {where}.", file=sys.stderr)
    if plan.BUDGETS in grid.tables and not test:
        raise ValueError(
            f"--table={plan.BUDGETS} needs --test_data_pattern: early exit is "
            "calibrated on the validation shards."
        )
    base = [*plan.data_flags(FLAGS.data), *plan.split_flags(FLAGS.base_flags)]
    cache = os.path.abspath(FLAGS.teacher_cache) if FLAGS.teacher_cache else ""
    experiments = plan.make_experiments(grid, output_dir, base, cache)
    if not experiments:
        raise ValueError("No method of --methods is in --table: nothing to run.")
    common = plan.common_settings(output_dir, base)
    runner.check_settings(experiments)
    known = runs.read(FLAGS.known_runs, common, test)

    def write_results() -> None:
        archive = runs.collect(output_dir, grid.cells(), test, known)
        results = scores.Results(grid, archive, test)
        document.write(report_dir, report.make_report(results))
        runs.write(report_dir / runs.RUNS, common, test, archive)
        if FLAGS.write_to:
            write_summary(results)

    if FLAGS.report_only:
        write_results()
        return 0
    missing = known.missing(experiments, bool(test))
    for name in plan.SHARDS:
        records.expand_patterns(getattr(common.training, name), name)
    if test:
        records.expand_patterns(test, "test_data_pattern")
    if FLAGS.dry_run:
        print_plan(experiments, missing)
        return 0
    experiment_runner = runner.Runner(missing, FLAGS.jobs, test)
    failures = experiment_runner.run()
    received = experiment_runner.received
    try:
        if received is None:
            measures.make_all(grid, missing, output_dir)
    except (ValueError, OSError) as error:
        failures["Measuring"] = str(error)
    finally:
        write_results()
    if received is not None:
        command = shlex.join([sys.executable, *sys.argv])
        print(f"Stopped. To continue, run:\n{command}", file=sys.stderr)
        return 128 + received
    print(f"The report is {report_dir / 'report.html'}")
    for name, reason in failures.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    return 1 if failures else 0


def write_summary(results: scores.Results) -> None:
    """Writes the section of --write_to, unless a cell has no score yet."""
    missing = report.missing_in_summary(results)
    if missing:
        print(
            f"{FLAGS.write_to} is unchanged: {missing[0]} has no score yet"
            + (f", nor have {len(missing) - 1} others." if missing[1:] else "."),
            file=sys.stderr,
        )
        return
    table = document.table_text(tables.summary(results))
    document.write_section(pathlib.Path(FLAGS.write_to), FLAGS.section, table)


def main(argv: list[str]) -> None:
    """Runs the command; invalid input gives one line and exit status 1."""
    if not FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        if len(argv) > 1:
            raise ValueError(f"Not a flag: {' '.join(argv[1:])}")
        status = run_command()
    except (ValueError, OSError) as error:
        print(f"reproduce.py: {' '.join(str(error).split())}", file=sys.stderr)
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(main)
