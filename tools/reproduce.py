"""Runs the experiments of the paper and writes a report.

    python tools/reproduce.py --table=1 --data=data --output_dir=reproduction \\
        --base_flags='flags/data_yt8m_2018.flags --num_gpus=1' --seeds=0,1,2

--data is a folder with train*.tfrecord and valid*.tfrecord, or a flagfile that names
the shards. Each cell of a table is a run of train.py with its flagfile in flags/; what
is finished is not run again, and the same command goes on after an interruption.
report.html and report.md, in --output_dir or --report_dir, have the tables of the paper
with the numbers of these runs beside the published ones. runs.jsonl beside them keeps
the numbers of the finished runs: with --known_runs they need not be run again, and a
grid can grow from machine to machine. --table=cvpr_5,cvpr_6,families --networks=... are
the tables of other networks than the paper's.
"""

import os
import pathlib
import shlex
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags
from absl import logging as absl_logging

from tools.reproduction import plan, published
from yt8m_distill import flag_groups, settings

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "table",
    ["all"],
    "Among 1, 2, 3, 4, figure2, figure3; all: every one of them. cvpr_2019: more rows "
    "for Table 1, those of the paper's later version. ablation: what the best preset "
    "is made of. cvpr_5, cvpr_6: that version's NetVLAD and NeXtVLAD, as teacher, "
    "Uniform-k and student. families: each of --networks as teacher and as Uniform-k.",
)
flags.DEFINE_list(
    "networks",
    list(plan.PUBLISHED_NETWORKS),
    "Flagfiles of flags/, without .flags, of the networks in cvpr_5, cvpr_6 and "
    "families; * stands for anything, as in network_audioset_*.",
)
flags.DEFINE_string("data", "", "Folder of shards, or a flagfile with their patterns.")
flags.DEFINE_string("output_dir", "", "Where runs and reports go.")
flags.DEFINE_list(
    "frames",
    list(map(str, published.FRAMES)),
    "The k. The largest stands where the paper has k = 30.",
)
flags.DEFINE_list("seeds", ["0"], "Seeds: every cell is run with each of them.")
flags.DEFINE_string(
    "base_flags",
    "",
    "Flags of train.py for every run, in one string; a flagfile may stand there by its "
    "name.",
)
flags.DEFINE_list(
    "methods", [], "Flagfiles of flags/, without .flags, to run. Empty: all."
)
flags.DEFINE_integer("jobs", 1, "Runs side by side.", lower_bound=1)
flags.DEFINE_string(
    "test_data_pattern",
    "",
    "Shards on which eval.py scores every network; the reported numbers are those "
    "then. Empty: they are those of the validation shards.",
)
flags.DEFINE_string(
    "teacher_cache",
    "",
    "Folder in which the serial students of a seed find what their teacher says of the "
    "training videos (train.py's --teacher_cache). Empty: each asks the teacher.",
)
flags.DEFINE_string("report_dir", "", "Where the report goes. Empty: --output_dir.")
flags.DEFINE_string(
    "known_runs",
    "",
    "runs.jsonl of an earlier report under the same settings: its runs count as "
    "finished. A teacher of it is trained again if a student that is missing needs it.",
)
flags.DEFINE_string(
    "write_to",
    "",
    "Markdown file in which a small table of Table 1 is put between <!-- NAME --> and "
    "<!-- /NAME -->, where NAME is --section.",
)
flags.DEFINE_string("section", "results", "See --write_to.")
flags.DEFINE_bool("dry_run", False, "Print the commands and stop.")
flags.DEFINE_bool("report_only", False, "Run nothing: report on what is there.")


def read_numbers(name: str) -> tuple[int, ...]:
    """The numbers of a list flag, rising, each once.

    Raises:
        ValueError: for anything else.
    """
    try:
        return tuple(sorted({int(word) for word in FLAGS[name].value}))
    except ValueError as error:
        raise ValueError(
            f"--{name}={','.join(FLAGS[name].value)} is not a list of whole numbers."
        ) from error


def read_grid(stored: plan.Grid | None = None) -> plan.Grid:
    """The grid of the flags; those that are not given are as stored.

    Raises:
        ValueError: for an unknown table or method.
    """
    tables = tuple(FLAGS.table)
    if "all" in tables:
        tables = (*plan.PAPER, *(t for t in tables if t not in ("all", *plan.PAPER)))
    given = {
        "tables": ("table", tables),
        "frames": ("frames", read_numbers("frames")),
        "seeds": ("seeds", read_numbers("seeds")),
        "methods": ("methods", tuple(FLAGS.methods)),
        "networks": ("networks", plan.find_networks(FLAGS.networks)),
    }
    return plan.Grid(
        **{
            field: getattr(stored, field)
            if stored and not FLAGS[flag].present
            else value
            for field, (flag, value) in given.items()
        },
        left_out=stored.left_out if stored else (),
    )


def print_plan(
    experiments: list[plan.Experiment], missing: list[plan.Experiment]
) -> None:
    """The commands, and what is finished."""
    from tools.reproduction import cost, runner

    left = [e for e in missing if not runner.is_trained(e)]
    for experiment in experiments:
        done = "" if experiment in left else " (finished)"
        print(f"# {experiment.cell.name}{done}")
        print(shlex.join(experiment.command))
    costs = sum(sum(cost.training_cost(e.run).values()) for e in left)
    print(
        f"{len(experiments)} runs, {len(experiments) - len(left)} of them finished; "
        f"the others take {costs / 1e9:.3g} G multiply-adds for each training video."
    )


def run_experiments(output_dir: str, grid: plan.Grid) -> int:
    """Runs and measures; returns the exit status.

    Raises:
        ValueError: for settings or data with which nothing can run.
    """
    base = [*plan.data_flags(FLAGS.data), *plan.split_flags(FLAGS.base_flags)]
    cache = os.path.abspath(FLAGS.teacher_cache) if FLAGS.teacher_cache else ""
    grid = plan.suited(grid, base)
    for names, reason in (
        (grid.unused_methods(), f"in none of --table={','.join(grid.tables)}"),
        (grid.left_out[:1], "--base_flags has another --preset"),
    ):
        if names:
            print(f"Left out: {', '.join(names)}: {reason}.", file=sys.stderr)
    experiments = plan.make_experiments(grid, output_dir, base, cache)
    if not experiments:
        raise ValueError("--methods has none of those in --table: nothing to run.")
    common = plan.common_settings(output_dir, base)
    plan.check_settings(output_dir, common, FLAGS.test_data_pattern)
    flag_groups.load_tensorflow()
    from tools.reproduction import archive, measures, runner
    from yt8m_distill.data import records

    known = archive.read(FLAGS.known_runs, common, FLAGS.test_data_pattern)
    missing = known.missing(experiments, FLAGS.test_data_pattern)
    for name in plan.SHARDS:
        records.expand_patterns(getattr(common.training, name), name)
    if FLAGS.test_data_pattern:
        records.expand_patterns(FLAGS.test_data_pattern, "test_data_pattern")
    if FLAGS.dry_run:
        print_plan(experiments, missing)
        return 0
    plan.write(output_dir, grid, common, FLAGS.test_data_pattern)
    work = runner.Runner(missing, FLAGS.jobs, FLAGS.test_data_pattern)
    failures = work.run()
    # Before anything is measured, which takes a while and may fail by itself.
    write_results(output_dir, grid, FLAGS.test_data_pattern, common, known)
    if work.received is not None:
        command = shlex.join([sys.executable, *sys.argv])
        print(f"Stopped. This goes on from there:\n{command}", file=sys.stderr)
        return 128 + work.received
    try:
        measures.make_all(grid, missing, output_dir)
    except (ValueError, OSError) as error:
        failures.append(runner.Failure("Measuring", str(error)))
    write_results(output_dir, grid, FLAGS.test_data_pattern, common, known)
    print(f"The report is {os.path.join(report_dir(output_dir), 'report.html')}")
    for failure in failures:
        print(f"{failure.name} failed: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def write_results(
    output_dir: str,
    grid: plan.Grid,
    test_data_pattern: str,
    common: settings.RunSettings,
    known,
) -> None:
    """Report, runs.jsonl and the section of --write_to, of what there is.

    Args:
        output_dir, grid, test_data_pattern: see scores.Results.
        common: see plan.common_settings.
        known: the archive.Archive of --known_runs.
    """
    from tools.reproduction import archive, document, report, scores

    results = scores.Results(grid, output_dir, test_data_pattern, known)
    folder = pathlib.Path(report_dir(output_dir))
    document.write(folder, report.make_report(results))
    kept = results.to_archive()
    archive.write(folder / archive.RUNS, common, test_data_pattern, kept)
    if FLAGS.write_to:
        write_summary(results)


def write_summary(results) -> None:
    """The section of --write_to, once every cell of it has its score.

    What stood there stays as long as runs of it are missing.
    """
    from tools.reproduction import document, report

    missing = report.missing_in_summary(results)
    if missing:
        print(
            f"{FLAGS.write_to} stays as it is: {missing[0]} has no score yet"
            + (f", nor have {len(missing) - 1} others." if missing[1:] else "."),
            file=sys.stderr,
        )
        return
    path = pathlib.Path(FLAGS.write_to)
    text = path.read_text(encoding="utf-8")
    table = document.table_text(report.summary(results))
    text = document.replace_section(text, FLAGS.section, table)
    path.write_text(text, encoding="utf-8")


def check_summary(grid: plan.Grid) -> None:
    """Raises ValueError unless --write_to can be filled: now, not after hours."""
    if not FLAGS.write_to:
        return
    if "1" not in grid.tables:
        raise ValueError(
            f"--write_to={FLAGS.write_to} takes a summary of Table 1, which is not in "
            f"--table={','.join(grid.tables)}."
        )
    text = pathlib.Path(FLAGS.write_to).read_text(encoding="utf-8")
    if f"<!-- {FLAGS.section} -->" not in text:
        raise ValueError(
            f"--write_to={FLAGS.write_to} has no <!-- {FLAGS.section} -->."
        )


def report_dir(output_dir: str) -> str:
    """Where the report goes."""
    return os.path.abspath(FLAGS.report_dir) if FLAGS.report_dir else output_dir


def run_command() -> int:
    """Flags → plan → runs → report; returns the exit status.

    Raises:
        ValueError: for flags, data or an output_dir with which nothing can be done.
    """
    if not FLAGS.output_dir:
        raise ValueError("--output_dir is empty: name the folder of runs and reports.")
    output_dir = os.path.abspath(FLAGS.output_dir)
    if FLAGS.report_only:
        grid, common, test_data_pattern = plan.read(output_dir)
        flag_groups.load_tensorflow()
        grid = read_grid(grid)
        check_summary(grid)
        from tools.reproduction import archive

        known = archive.read(FLAGS.known_runs, common, test_data_pattern)
        write_results(output_dir, grid, test_data_pattern, common, known)
        return 0
    if not FLAGS.data:
        raise ValueError("--data is empty: name a folder of shards or a flagfile.")
    grid = read_grid()
    check_summary(grid)
    return run_experiments(output_dir, grid)


def main(argv: list[str]) -> None:
    """Runs the command; an error of the user's is one line and exit status 1."""
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
