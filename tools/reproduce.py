"""Runs the experiments of the paper and writes a report.

    python tools/reproduce.py --table=1 --data=data --output_dir=reproduction \\
        --base_flags='flags/data_yt8m_2018.flags --num_gpus=1' --seeds=0,1,2

--data is a folder with train*.tfrecord and valid*.tfrecord, or a flagfile that names
the shards. Each cell of a table is a run of train.py with its flagfile in flags/, and
with --base_flags, one string, in which a file name alone is a flagfile. Finished runs
are not repeated; after an interruption, the same command continues. report.html and
report.md, in --output_dir or --report_dir, contain the paper's tables with the results
of these runs next to the published numbers. runs.jsonl in the same folder has the
results of the finished runs, which --known_runs reuses on any machine.
--table=cvpr_5,cvpr_6,families --networks=... are the tables of other networks,
--table=budgets is one student for all of --frames, at each of them and with early exit.
"""

import dataclasses
import os
import pathlib
import shlex
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from tools.reproduction import document, plan, published
from yt8m_distill import flag_groups, settings
from yt8m_distill.training import interruption

AFTER_A_STOP = "The same command continues."


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """What to run and to report; each field is a flag. Lists have commas."""

    table: str = settings.setting(
        "all",
        "Any of 1, 2, 3, 4, figure2, figure3; all of these: all. cvpr_2019: additional "
        "rows of Table 1 from the paper's later version. ablation: the ablation of the "
        "best preset. budgets: its student for all of --frames, and early exit. "
        "cvpr_5, cvpr_6: that version's NetVLAD and NeXtVLAD, as teacher, Uniform-k "
        "and student. families: each of --networks as teacher and as Uniform-k.",
    )
    networks: str = settings.setting(
        plan.PUBLISHED_NETWORKS,
        "Flagfiles in flags/, without .flags, of the networks in cvpr_5, cvpr_6 and "
        "families; wildcards are allowed, as in network_audioset_*.",
    )
    data: str = settings.setting(
        "",
        "Folder of shards, or a flagfile with their patterns.",
        required="name a folder of shards or a flagfile.",
    )
    output_dir: str = settings.setting(
        "",
        "Folder of the runs and reports.",
        required="name the folder of runs and reports.",
    )
    frames: str = settings.setting(
        ",".join(map(str, published.FRAMES)),
        "Values of k. The largest is used where the paper has k = 30.",
    )
    seeds: str = settings.setting("0", "Seeds; every cell is run with each of them.")
    methods: str = settings.setting(
        "", "Flagfiles in flags/, without .flags, to run. Empty: all."
    )
    jobs: int = settings.setting(1, "Number of concurrent runs.", minimum=1)
    test_data_pattern: str = settings.setting(
        "",
        "Shards on which eval.py scores every network for the report. Empty: report "
        "the scores on the validation shards.",
    )
    teacher_cache: str = settings.setting(
        "",
        "Folder of the teacher caches that the serial students of a seed share "
        "(train.py's --teacher_cache). Empty: each student computes its teacher's "
        "outputs.",
    )
    report_dir: str = settings.setting("", "Folder of the report. Empty: --output_dir.")
    known_runs: str = settings.setting(
        "",
        "runs.jsonl of an earlier report with the same settings; its runs count as "
        "finished. A known teacher is trained again if a missing student needs it.",
    )
    write_to: str = settings.setting(
        "",
        "Markdown file in which a short form of Table 1 is written between "
        "<!-- NAME --> and <!-- /NAME -->, where NAME is --section.",
    )
    section: str = settings.setting("results", "See --write_to.", goes_with="write_to")
    dry_run: bool = settings.setting(False, "Print the commands and exit.")
    report_only: bool = settings.setting(
        False, "Only write the report of the finished runs."
    )

    def grid(self) -> plan.Grid:
        """The grid of the request.

        Raises:
            ValueError: for an unknown table, method or network, or invalid numbers.
        """
        named = settings.split_names(self.table)
        wanted = [
            t for name in named for t in (plan.PAPER if name == "all" else [name])
        ]
        return plan.Grid(
            tuple(dict.fromkeys(wanted)),
            plan.read_numbers("frames", self.frames, minimum=1),
            plan.read_numbers("seeds", self.seeds, minimum=0),
            settings.split_names(self.methods),
            plan.find_networks(settings.split_names(self.networks)),
        )

    def check(self) -> None:
        """Rules of several fields."""
        grid = self.grid()
        if plan.BUDGETS in grid.tables and not self.test_data_pattern:
            raise ValueError(
                f"--table={plan.BUDGETS} needs --test_data_pattern: early exit is "
                "calibrated on the validation shards."
            )
        if self.write_to:
            document.find_section(pathlib.Path(self.write_to), self.section)


def print_plan(
    experiments: list[plan.Experiment], missing: list[plan.Experiment]
) -> None:
    """Prints the commands, which of them are finished, and the remaining cost."""
    from tools.reproduction import cost, runs

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


def main(request: Request) -> None:
    """Request → plan → runs → report."""
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from tools.reproduction import measures, report, runner, runs, scores
    from yt8m_distill import file_patterns

    output_dir = os.path.abspath(request.output_dir)
    report_dir = pathlib.Path(os.path.abspath(request.report_dir or output_dir))
    grid, test = request.grid(), request.test_data_pattern
    if unused := grid.unused_methods():
        where = f"in none of --table={','.join(grid.tables)}"
        print(f"Left out: {', '.join(unused)}: {where}.", file=sys.stderr)
    base_flags = plan.split_flags(" ".join(flags.FLAGS.base_flags))
    base = [*plan.data_flags(request.data), *base_flags]
    cache = os.path.abspath(request.teacher_cache) if request.teacher_cache else ""
    experiments = plan.make_experiments(grid, output_dir, base, cache)
    if not experiments:
        raise ValueError("No method of --methods is in --table: nothing to run.")
    common = plan.common_settings(output_dir, base)
    runner.check_settings(experiments)
    known = runs.read(request.known_runs, common, test)

    def write_results() -> None:
        archive = runs.collect(output_dir, grid.cells(), test, known)
        results = scores.Results(grid, archive, test)
        document.write(report_dir, report.make_report(results))
        runs.write(report_dir / runs.RUNS, common, test, archive)
        if request.write_to:
            write_summary(results, pathlib.Path(request.write_to), request.section)

    if request.report_only:
        write_results()
        return
    missing = known.missing(experiments, bool(test))
    for name in plan.SHARDS:
        file_patterns.expand(getattr(common.training, name), name)
    if test:
        file_patterns.expand(test, "test_data_pattern")
    if request.dry_run:
        print_plan(experiments, missing)
        return
    experiment_runner = runner.Runner(missing, request.jobs, test)
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
        line = f"stopped by {interruption.name_of(received)}. {AFTER_A_STOP}"
        raise interruption.Interrupted(received, line)
    print(f"The report is {report_dir / 'report.html'}")
    for name, reason in failures.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


def write_summary(results, path: pathlib.Path, section: str) -> None:
    """Writes the section of --write_to, unless a cell has no score yet."""
    from tools.reproduction import report, tables

    missing = report.missing_in_summary(results)
    if missing:
        print(
            f"{path} is unchanged: {missing[0]} has no score yet"
            + (f", nor have {len(missing) - 1} others." if missing[1:] else "."),
            file=sys.stderr,
        )
        return
    table = document.table_text(tables.summary(results))
    document.write_section(path, section, table)


def run() -> None:
    """Defines --base_flags, too: no setting, which must not begin with two hyphens."""
    flags.DEFINE_multi_string("base_flags", [], "See the module.")
    flag_groups.script(main, (Request,), after_a_stop=AFTER_A_STOP)()


if __name__ == "__main__":
    run()
