"""tools/reproduce.py: which runs a table needs, how they are run, what is reported."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import sys
import time
import types

import pandas as pd
import pytest

from tests import script_helpers
from tests import training_helpers as helpers
from tools import reproduce as reproduce_
from tools.reproduction import (
    cost,
    document,
    figures,
    plan,
    published,
    report,
    runner,
    runs,
    scores,
)
from tools.reproduction import tables as report_tables
from yt8m_distill.training import modes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = "HierarchicalLSTM(cells=4, block_len=5)"
BASE = [
    *("--train_data_pattern=t", "--validation_data_pattern=v"),
    *("--feature_sizes=8,4", "--num_classes=10", f"--teacher={SMALL}"),
]


def experiments(output_dir="out", base=BASE, **grid) -> list[plan.Experiment]:
    return plan.make_experiments(plan.Grid(**grid), str(output_dir), base)


@pytest.mark.parametrize(
    "table, count",
    [
        ("1", 66),  # the teacher, and 12 methods and the best preset at 5 k
        ("2", 13),  # the teacher, and 6 losses matched in two ways
        ("3", 6),  # 2 methods on 3 shares; each serial run trains its own teacher
        ("4", 6),  # the teacher and 5 students
        ("figure2", 7),
        ("figure3", 2),
        ("cvpr_5", 11),  # the teacher, Uniform-k and one student at 5 k
        ("cvpr_6", 11),
        ("budgets", 2),  # the teacher, and one student for all k
        ("families", 12),  # two networks; each as teacher, and as Uniform-k at 5 k
    ],
)
def test_a_table_takes_so_many_runs(table, count):
    assert len(experiments(tables=(table,))) == count
    seeds = 1 if table == "figure3" else 3  # One seed is drawn.
    assert len(plan.Grid(tables=(table,), seeds=(0, 1, 2)).cells()) == count * seeds


def test_all_serial_students_of_a_seed_use_one_teacher():
    made = experiments(tables=("1",), frames=(3, 6), seeds=(0, 4))
    teachers = {e.cell.seed: e for e in made if e.cell.k is None}
    assert sorted(teachers) == [0, 4]
    serial = [e for e in made if e.run.distillation.mode == "serial"]
    assert len(serial) == 4 * 2 * 2
    for experiment in serial:
        assert experiment.teacher == teachers[experiment.cell.seed]
        folder = experiment.teacher.train_dir
        assert f"--teacher_checkpoint={folder}" in experiment.command
        assert made.index(experiment.teacher) < made.index(experiment)
    others = [e for e in made if e not in serial]
    assert not any("teacher_checkpoint" in word for e in others for word in e.command)


def test_a_network_of_its_own_has_its_flags_and_its_teacher():
    made = experiments(tables=("cvpr_6",), frames=(30,), seeds=(3,))
    network = "network_yt8m_NeXtVLAD"
    names = ("teacher_skyline/", "baseline_uniform/k30/", "serial_rep_pred_ce/k30/")
    assert [e.cell.name for e in made] == [f"{network}/{name}seed3" for name in names]
    assert made[2].teacher == made[0]
    for experiment in made:
        run = plan.read_settings(experiment.command[2:])
        assert run == experiment.run and run.training.batch_size == 80
        assert run.networks.teacher.startswith("NeXtVLAD(clusters=128")
    (alone,) = plan.Grid(
        tables=("families",),
        methods=("baseline_uniform",),
        frames=(6,),
        networks=(network,),
    ).cells()
    assert alone.method == f"{network}/baseline_uniform"


def test_in_table_3_the_teacher_sees_as_little_as_the_student():
    for experiment in experiments(tables=("3",)):
        percent = int(experiment.cell.method.split("_")[1])
        assert experiment.run.training.train_fraction == percent / 100
        assert experiment.teacher is None
        assert experiment.run.distillation.teacher_checkpoint == ""


def test_a_command_gives_the_settings_of_its_cell():
    (found,) = [
        e
        for e in experiments(tables=("2",), frames=(6, 10), seeds=(7,))
        if e.cell.method == "serial_rep_ce_intermediate"
    ]
    run = plan.read_settings(found.command[2:])
    assert run == found.run
    assert run.sampling.student_k == "10"  # The largest is used for the paper's 30.
    assert run.training.seed == 7
    assert run.distillation.match == "intermediate"
    assert run.distillation.student_loss == "rep + ce"
    assert run.networks.teacher == SMALL
    assert run.training.train_dir == found.train_dir


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: plan.Grid(tables=("5",)), "--table=5 is "),
        (lambda: plan.Grid(methods=("best",)), "--methods=best is unknown. Known: "),
        (lambda: plan.read_numbers("frames", "6,", 7), "--frames=6, is "),
        (lambda: plan.read_numbers("frames", "", 1), "--frames= is "),
        (lambda: plan.Grid(("budgets",), frames=(6,)), "--table=budgets needs"),
        (lambda: plan.find_networks(["network_*", "x*"]), "--networks=x* is unknown."),
        (
            lambda: plan.Grid(("cvpr_5",), networks=("network_yt8m_NeXtVLAD",)),
            "--table=cvpr_5 needs a NetVLAD; --networks=network_yt8m_NeXtVLAD",
        ),
        (lambda: plan.read_numbers("seeds", "0,-1", 0), "--seeds=0,-1 is "),
        (lambda: plan.read_numbers("seeds", "many", 0), "--seeds=many is "),
        (lambda: plan.data_flags("nowhere"), "--data=nowhere is neither a folder"),
        (lambda: plan.split_flags("--a='b"), "--base_flags=--a='b: No closing"),
        (lambda: plan.read_settings(["--nonsense=1"]), "Unknown command line flag"),
        (lambda: plan.read_settings(["word"]), "--base_flags: not a flag: word"),
        (lambda: plan.read_settings(["--flagfile=none"]), "none"),
        (lambda: experiments(base=[*BASE, "--max_frames=4"]), "more than --max_frames"),
    ],
)
def test_a_mistake_is_named(make, message):
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_output_dir_is_not_used_with_other_settings(tmp_path):
    def check(*changes):
        grid = {"tables": ("figure3",), "frames": (6,)}
        made = experiments(tmp_path, [*BASE, *changes], **grid)
        runner.check_settings(made)
        return made

    fabricate(check()[0], [0.5], finished=False)
    check("--log_steps=3")  # changes no result
    with pytest.raises(ValueError, match=f"{tmp_path}/.*--num_epochs: was 5, is 9"):
        check("--batch_size=8", "--num_epochs=9")


def test_the_paper_s_accounting_gives_its_flops():
    # Two layers: four gates of 2 x 1024 x 1024, and 14 operations per cell.
    assert cost.paper_frame() == 2 * (4 * 2 * 1024**2 + 14 * 1024)
    # The rows k = 10 and k = 20 were made with 9 and 15 frames.
    frames = {None: 300, 10: 9, 20: 15, 30: 30}
    for k, billions in published.LOWER_LSTM.items():
        assert round(frames[k] * cost.paper_frame() / 1e9, 3) == billions
        assert cost.frames_for(billions) == frames[k]
    # The CVPR 2019 version: with the classifier, and a NeXtVLAD without.
    for table in ("4", "cvpr_6"):
        base = ["--train_data_pattern=t"]
        made = experiments(base=base, tables=(table,), frames=(9, 15, 30))
        counted = {}
        for e in made:
            network = e.run, e.cell.role
            parts = cost.multiply_adds(*network)
            _, counted[e.cell.k] = cost.paper_operations(*network, parts)
        family = published.family(made[0].cell.method)
        for k, billions in published.OPERATIONS[family].items():
            assert round(counted[k and frames[k]] / 1e9, 3) == billions


def test_a_guide_costs_a_forward_pass_and_a_learner_three():
    made = {e.cell.method: e.run for e in experiments(tables=("1",), frames=(6,))}
    teacher = sum(cost.multiply_adds(made["serial_rep"], "teacher").values())
    student = sum(cost.multiply_adds(made["serial_rep"], "student").values())
    # Five epochs, and one of fine-tuning.
    assert cost.training_cost(made["teacher_skyline"]) == {"teacher": 5 * 3 * teacher}
    assert cost.training_cost(made["serial_rep"]) == {
        "student": 5 * (teacher + 3 * student),
        "finetune": 3 * student,
    }
    assert cost.training_cost(made["parallel_rep_ce"]) == {
        "parallel": 5 * 3 * (teacher + student)
    }


def fabricate(experiment: plan.Experiment, gaps, finished=True, teacher_gaps=None):
    """A train_dir as train.py leaves it, whose epochs have these GAPs."""
    folder = pathlib.Path(experiment.train_dir)
    folder.mkdir(parents=True, exist_ok=True)
    phases = {}
    for phase in modes.phases(experiment.run, resolved=False):
        results, networks = {}, {}
        for role in phase.roles:
            networks[role.name] = {
                "parameters": 1234,
                "frames": 20 if role.name == "teacher" else experiment.cell.k,
                "multiply_adds": cost.multiply_adds(experiment.run, role.name),
            }
        for role in phase.trained:
            given = teacher_gaps if role.name == "teacher" and teacher_gaps else gaps
            epochs = [
                {"epoch": i + 1, "step": 10 * (i + 1), "gap": gap, "map": gap / 2}
                for i, gap in enumerate(given)
            ]
            best = max(epochs, key=lambda e: e["gap"])
            results[role.name] = {"best": best, "epochs": epochs}
            best_folder = folder / phase.name / "best" / role.name
            best_folder.mkdir(parents=True, exist_ok=True)
            info = {"name": f"network-{best['step']}", **best}
            (best_folder / "best.json").write_text(json.dumps(info))
        phases[phase.name] = {
            "finished": finished,
            "results": results,
            "networks": networks,
        }
    content = {
        "settings": experiment.run.to_dict(),
        "plan": [
            {"phase": phase.name, "roles": phase.describe()}
            for phase in modes.phases(experiment.run, resolved=False)
        ],
        "phases": phases,
        "versions": {"tensorflow": "2.0"},
        "machine": {"processors": 2, "gpus": 0},
        "data": {"videos": 36},
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    (folder / "model_flags.json").write_text(json.dumps(experiment.run.to_dict()))


def evaluate(
    experiment: plan.Experiment, gap: float, step=20, pattern="test*", **others
) -> None:
    """A line of eval.py for a checkpoint of the last phase, on those shards."""
    phase = modes.phases(experiment.run, resolved=False)[-1].name
    folder = pathlib.Path(experiment.train_dir) / "eval"
    folder.mkdir(exist_ok=True)
    role = experiment.cell.role
    line = {
        "network": role,
        "checkpoint": f"/moved/since/{phase}/best/{role}/network-{step}",
        "eval_data_pattern": pattern,
        "gap": gap,
        "map": gap / 2,
        **others,
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


# With the teacher at .6 and Uniform-k at .4, a student at .5 closes half of the gap.
GAPS = {
    "teacher_skyline": (0.6, 0.6),
    "baseline_uniform": (0.38, 0.42),
    "serial_rep_pred_ce": (0.52, 0.48),
    "parallel_rep_pred_ce": (0.31, 0.33),
}


def make_grid(tmp_path, **changes) -> tuple[plan.Grid, list[plan.Experiment]]:
    given = {
        "tables": ("1",),
        "frames": (6,),
        "seeds": (0, 1),
        "methods": tuple(GAPS),
        **changes,
    }
    grid = plan.Grid(**given)
    return grid, plan.make_experiments(grid, str(tmp_path), BASE)


def results_of(grid, output_dir, test_data_pattern="", known=None) -> scores.Results:
    known, output_dir = known or runs.Archive(), str(output_dir)
    archive = runs.collect(output_dir, grid.cells(), test_data_pattern, known)
    return scores.Results(grid, archive, test_data_pattern)


def report_of(*arguments) -> list:
    return report.make_report(results_of(*arguments))


def fabricate_all(made: list[plan.Experiment], gaps=GAPS) -> None:
    for experiment in made:
        gap = gaps[experiment.cell.method][experiment.cell.seed]
        fabricate(experiment, [gap - 0.1, gap, gap - 0.05])


def tables_of(blocks) -> dict[str, list]:
    """Heading → the rows of the table below it, each as label → cells."""
    found, heading = {}, ""
    for block in blocks:
        if isinstance(block, document.Heading):
            heading = block.text
        elif isinstance(block, document.Table):
            rows = {row[0]: list(row[1:]) for row in block.rows}
            found.setdefault(heading, []).append(rows)
    return found


def test_the_report_has_the_numbers_of_the_manifests(tmp_path):
    grid, made = make_grid(tmp_path)
    fabricate_all(made)
    tables = tables_of(report_of(grid, str(tmp_path), ""))
    (gap,), (mean_average_precision,) = tables["GAP"], tables["mAP"]
    # .38 and .42: mean .4, sample deviation sqrt((.02^2 + .02^2) / 1) = .0283.
    assert gap["Uniform-k"] == ["0.400 ± 0.028", "0.715"]
    assert mean_average_precision["Uniform-k"] == ["0.200 ± 0.014", "0.266"]
    assert gap["Teacher-Skyline"] == ["0.600 ± 0.000", "0.811"]
    (shares,) = tables["Share of the gap that a student closes"]
    # Published: (.731 - .715) / (.811 - .715) = 1/6, (.729 - .715) / .096 = .146.
    assert shares["Serial rep, pred, ce"] == ["0.50", "0.17"]
    # Worse than the baseline: (.32 - .4) / .2.
    assert shares["Parallel rep, pred, ce"] == ["-0.40", "0.15"]
    order, contrary = tables["The order of the methods, by GAP"]
    # Ours: parallel < uniform < serial; published: uniform < parallel < serial. Ranks
    # 1 0 2 against 0 1 2: 1 - 6 * (1 + 1) / (3 * 8) = .5. All three pairs are clear.
    assert order["k=6"] == ["3", "0.50", "3", "2"]
    assert contrary["k=6"] == [
        "Uniform-k > Parallel rep, pred, ce",
        "0.400 ± 0.028, 0.320 ± 0.014",
        "0.715, 0.729",
    ]
    (every,) = tables["All runs"]
    assert every["teacher_skyline/seed0"][:4] == ["finished", "2", "0.600", "0.300"]


def kept(results: scores.Results, path, test_data_pattern="") -> runs.Archive:
    """The results as stored in the file next to a report."""
    common = plan.common_settings(str(path.parent), BASE)
    runs.write(path, common, test_data_pattern, results.archive)
    return runs.read(str(path), common, test_data_pattern)


@pytest.fixture
def unsaved(monkeypatch):
    """Figures are drawn, but not saved, which takes most of the time."""
    monkeypatch.setattr(figures, "_svg", lambda figure: b"<svg>")


@pytest.mark.slow
def test_a_report_is_the_same_from_the_file_of_its_runs(tmp_path, unsaved):
    tables = (*plan.PAPER, plan.ABLATION, "cvpr_6")
    grid, made = make_grid(tmp_path / "out", tables=tables, methods=())
    gaps = dict.fromkeys({e.cell.method for e in made}, (0.5, 0.45)) | GAPS
    fabricate_all(made[:-3], gaps)
    for experiment in made[:-3]:
        gap = gaps[experiment.cell.method][0] + 0.01
        evaluate(experiment, gap, pattern=f"{tmp_path}/test*")
    out = tmp_path / "out"
    rate = {"checkpoint": f"{out}/x", "videos_per_second": 5.0}
    times = {made[0].cell.name: {**rate, "model_videos_per_second": 9.0}}
    (out / runs.TIMING).write_text(json.dumps(times))
    (out / runs.POINTS).parent.mkdir()
    points = {"source": [f"{out}/x"], "classes": [1, 2, 2], "student": "Serial", "k": 6}
    points["points"] = [[[0.5, 1], [1, 1], [2, 3]], [[1, 2], [3, 2], [4, 5]]]
    (out / runs.POINTS).write_text(json.dumps(points))
    for test in ("", f"{tmp_path}/test*"):
        results = results_of(grid, out, test)
        known = kept(results, tmp_path / runs.RUNS, test)
        assert str(tmp_path) not in (tmp_path / runs.RUNS).read_text()
        expected = report_of(grid, str(out), test)
        found = report_of(grid, str(tmp_path / "none"), test, known)
        assert document.to_markdown(found) == document.to_markdown(expected)
        tables_ = tables_of(found)
        (every,), (cvpr,) = tables_["All runs"], tables_["CVPR 2019, Table 6: NeXtVLAD"]
        assert sum(row[0] == "finished" for row in every.values()) == len(made) - 3
        assert cvpr["Uniform-k, k=6"][2:5:2] == ["0.715", "0.266"]
        drawn = [b.svg for b in found if isinstance(b, document.Figure)]
        assert len(drawn) == 4
        # Once more through the file, and nothing is lost.
        again = results_of(grid, tmp_path / "none", test, known)
        text = (tmp_path / runs.RUNS).read_text()
        kept(again, tmp_path / runs.RUNS, test)
        assert (tmp_path / runs.RUNS).read_text() == text


def test_known_runs_are_not_run_again_but_for_the_teachers_of_others(tmp_path):
    grid, made = make_grid(tmp_path / "out")
    absent = plan.Cell("serial_rep_pred_ce", 6, 1)
    fabricate_all([e for e in made if e.cell != absent])
    known = kept(results_of(grid, tmp_path / "out"), tmp_path / "x")
    _, anew = make_grid(tmp_path / "new")
    missing = known.missing(anew)
    assert [e.cell for e in missing] == [("teacher_skyline", None, 1), absent]
    # None of them has been evaluated.
    assert known.missing(anew, is_evaluated=True) == anew
    other = plan.make_experiments(grid, str(tmp_path), [*BASE, "--num_epochs=9"])
    assert known.missing(other) == other
    assert runs.read("").missing(anew) == anew


def test_a_file_of_other_runs_is_refused(tmp_path):
    grid, made = make_grid(tmp_path / "out")
    fabricate_all(made)
    path = tmp_path / runs.RUNS
    kept(results_of(grid, tmp_path / "out"), path)
    moved = [*BASE, "--train_data_pattern=/elsewhere/t", "--log_steps=3"]
    assert runs.read(str(path), plan.common_settings("o", moved)).runs
    for change, complaint in (
        ("--num_epochs=9", "--num_epochs: was 5, is 9"),
        ("--train_data_pattern=u", "--train_data_pattern: was 't', is 'u'"),
    ):
        common = plan.common_settings("o", [*BASE, change])
        with pytest.raises(ValueError, match=f"x*runs.*{complaint}"):
            runs.read(str(path), common)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"runs.jsonl, line \d+: not written by"):
        runs.read(str(path))
    path.write_text("")
    with pytest.raises(ValueError, match="has no settings"):
        runs.read(str(path))
    with pytest.raises(ValueError, match="is not a file"):
        runs.read(str(tmp_path / "none"))


def test_one_student_is_evaluated_at_each_k_then_calibrated_and_stopped_early(tmp_path):
    _, made = make_grid(tmp_path, tables=("budgets",), methods=(), frames=(2, 6))
    work = runner.Runner(made, test_data_pattern="test*")
    student = made[-1]
    assert student.cell.name == "preset_best/k2,6/seed1"
    fabricate(student, [0.4, 0.5, 0.45])
    commands = []
    # Half of the way from 2 to 6 frames is asked for.
    for asked in ("", "--student_k=2", "--mean_frames=4"):
        commands.append(work._next_command(student))
        if asked.startswith("--mean_frames"):
            (pathlib.Path(student.train_dir) / "early_exit.json").touch()
            commands.append(work._next_command(student))
        evaluate(student, 0.5, asked=asked)
    assert work._next_command(student) is None
    scripts = [pathlib.Path(command[1]).stem for command in commands]
    assert scripts == ["eval", "eval", "calibrate", "eval"]
    assert "--student_k=2" in commands[1] and "--mean_frames=4" in commands[3]
    assert "--calibration_data_pattern=v" in commands[2]


def test_the_rows_of_the_ablation_are_means_over_the_same_seeds(tmp_path):
    grid, made = make_grid(tmp_path, tables=("ablation",), methods=(), frames=(6, 9))
    gaps = dict.fromkeys({e.cell.method for e in made}, (0.5, 0.5)) | GAPS

    def table():
        blocks = report_of(grid, str(tmp_path), "")
        return tables_of(blocks)["Ablation of the best preset, k=9"][0]

    assert {cell for row in table().values() for cell in row} == {"–"}
    without = [("ablation_with_ce", 9, 1), ("ablation_long", 9, 0)]
    without.append(("ablation_long", 9, 1))  # Not begun: it restricts no other.
    fabricate_all([e for e in made if e.cell not in without], gaps)
    rows = table()
    # Under seed 0 alone: (.5 - .38) / (.6 - .38) = .545.
    assert rows["Uniform-k"] == ["0.380", "0.190", "0.00"]
    assert rows["best preset, but ce + pred"] == ["0.500", "0.250", "0.55"]
    assert rows["best preset, but pred + 0.01*rep"] == ["0.500", "0.250", "0.55"]
    assert rows["best preset, but 30 epochs"] == ["–"] * 3


def test_scores_on_test_data_are_eval_s_for_the_best_checkpoint(tmp_path):
    grid, made = make_grid(tmp_path, seeds=(0,))
    fabricate_all(made)
    for experiment in made:
        evaluate(experiment, 0.9, step=30)  # of another checkpoint
        if experiment.cell.method == "baseline_uniform":
            uniform = experiment
            evaluate(experiment, 0.7)
            evaluate(experiment, 0.71)  # the newest counts
            evaluate(experiment, 0.8, pattern="train*")  # on other data
    tables = tables_of(report_of(grid, str(tmp_path), "test*"))
    (gap,) = tables["GAP"]
    assert gap["Uniform-k"][0] == "0.710"
    assert gap["Teacher-Skyline"][0] == "–"
    (every,) = tables["All runs"]
    of_uniform = every["baseline_uniform/k6/seed0"]
    assert of_uniform[2:] == ["0.380", "0.190", "0.710", "0.355"]
    on_train = runs.open_run(uniform.train_dir, "train*")
    assert on_train.evaluations["student"]["gap"] == 0.8
    assert runs.open_run(uniform.train_dir, "other*").evaluations == {}


def test_table_3_takes_its_share_over_the_seeds_that_all_have(tmp_path):
    grid = plan.Grid(tables=("3",), frames=(6,), seeds=(0, 1))
    uniform = {0: 0.38, 1: 0.3}
    for experiment in plan.make_experiments(grid, str(tmp_path), BASE):
        cell = experiment.cell
        if cell.method == "serial_25_percent" and cell.seed == 0:
            fabricate(experiment, [0.4], teacher_gaps=[0.42])
        if cell.method == "uniform_25_percent":
            fabricate(experiment, [uniform[cell.seed]])
    blocks = report_of(grid, str(tmp_path), "")
    (table,) = tables_of(blocks)["Table 3: less training data, k=6"]
    assert table["share of the gap closed"][2] == "0.50"  # (.40 - .38) / (.42 - .38)
    assert table["Serial"][2] == "0.400 (n=1) / 0.200 (n=1)"
    assert table["Uniform"][2] == "0.340 ± 0.057 / 0.170 ± 0.028"


# Stands for train.py: ends well after it has copied a prepared manifest.
WORKER = """
import pathlib, shutil, sys, time
source, target, seconds, status = sys.argv[1:]
print("starts", flush=True)
time.sleep(float(seconds))
if status == "0":
    shutil.copytree(source, target, dirs_exist_ok=True)
print("last words")
sys.exit(int(status))
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Ended processes are noticed at once."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.02)


def prepare(tmp_path, made, status=0, seconds=0.0, failing=()):
    """Experiments with quick commands that leave a fabricated run."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    quick = {}
    for experiment in made:
        target = pathlib.Path(experiment.train_dir)
        fabricate(experiment, [0.5])
        source = tmp_path / "prepared" / experiment.cell.name
        source.parent.mkdir(parents=True, exist_ok=True)
        target.rename(source)
        code = 3 if experiment.cell.method in failing else status
        words = (source, target, seconds, code)
        command = (sys.executable, str(worker), *map(str, words))
        teacher = experiment.teacher and quick[experiment.teacher.cell]
        quick[experiment.cell] = dataclasses.replace(
            experiment, command=command, teacher=teacher
        )
    return list(quick.values())


def is_trained(experiment: plan.Experiment) -> bool:
    return runs.open_run(experiment.train_dir).has(experiment)


def test_runs_are_run_and_the_finished_ones_skipped(tmp_path, capfd):
    _, made = make_grid(tmp_path / "out")
    quick = prepare(tmp_path, made)
    fabricate(made[0], [0.25])
    assert is_trained(made[0]) and not is_trained(made[1])
    assert runner.Runner(quick, jobs=3).run() == {}
    assert all(map(is_trained, made))
    logs = [pathlib.Path(e.train_dir) / runner.LOG for e in made]
    assert not logs[0].exists()
    assert all(runner.last_line(log) == "last words" for log in logs[1:])
    shown = capfd.readouterr().err
    assert f"[{len(made)}/{len(made)}]" in shown
    # Where to look while a run is trained.
    assert [str(log) in shown for log in logs] == [False] + [True] * len(logs[1:])
    times = [log.stat().st_mtime_ns for log in logs[1:]]
    assert runner.Runner(quick).run() == {}
    assert [log.stat().st_mtime_ns for log in logs[1:]] == times


def test_a_failure_stops_only_those_that_need_it(tmp_path, capfd):
    _, made = make_grid(tmp_path / "out", seeds=(0,))
    quick = prepare(tmp_path, made, failing=("teacher_skyline",))
    failures = runner.Runner(quick).run()
    log = pathlib.Path(made[0].train_dir) / runner.LOG
    assert failures == {
        "teacher_skyline/seed0": f"last words (log: {log})",
        "serial_rep_pred_ce/k6/seed0": "its teacher teacher_skyline/seed0 failed",
    }
    assert "FAILED teacher_skyline/seed0: last words" in capfd.readouterr().err
    done = [e.cell.method for e in made if is_trained(e)]
    assert done == ["baseline_uniform", "parallel_rep_pred_ce"]


def test_a_signal_is_forwarded_and_no_process_is_started(tmp_path):
    _, made = make_grid(tmp_path / "out", seeds=(0,))
    quick = prepare(tmp_path, made, seconds=60)
    work = runner.Runner(quick, jobs=1)
    original = work._collect

    def collect():
        log = pathlib.Path(quick[0].train_dir) / runner.LOG
        if runner.last_line(log) == "starts" and work.received is None:
            os.kill(os.getpid(), signal.SIGTERM)
        original()

    work._collect = collect
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    assert work.run() == {}
    assert time.monotonic() - began < 30  # it did not wait for the minute
    assert work.received == signal.SIGTERM
    assert not any(pathlib.Path(e.train_dir).exists() for e in made[1:])
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_teacher_of_a_serial_student_is_a_row_and_a_run():
    for methods, teacher in (
        (("baseline_uniform", "serial_rep_pred_ce"), ["teacher_skyline"]),
        (("baseline_uniform",), []),
        (("serial_10_percent",), []),
        (("ablation_no_teacher",), []),
    ):
        cells = plan.Grid(tables=plan.TABLES, frames=(6, 9), methods=methods).cells()
        own = [cell.method for cell in cells if "/" not in cell.method]
        assert list(dict.fromkeys(own)) == [*teacher, *methods]


def test_a_page_begins_with_two_figures_and_marks_the_best(tmp_path):
    grid, made = make_grid(tmp_path, frames=(6, 7), seeds=(0,))
    fabricate_all(made)
    blocks = report_of(grid, str(tmp_path), "")
    kinds = [type(block).__name__ for block in blocks]
    assert kinds[:4] == ["Heading", "Text", "Figure", "Figure"]
    document.write(tmp_path, [*blocks, document.Text("<b> & `--flag`")])
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page and "<script" not in page and "`" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "&lt;b&gt; &amp; <code>--flag</code>" in page
    text = (tmp_path / "report.md").read_text()
    for name in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / name).read_bytes().startswith(b"<?xml")
    # The teacher is no rival; published numbers are marked among themselves.
    marked = re.findall(r"\*\*(.*?)\*\*", text)
    assert marked[:3] == ["0.520", "0.731", "0.520"] and "±" not in text
    assert "paper" not in document.to_markdown(
        report_of(
            plan.Grid(("1",), (7,), (0,), ("baseline_uniform",)), str(tmp_path), ""
        )[:2]
    )


def test_the_order_compares_clear_pairs_on_common_seeds():
    ours = pd.DataFrame(
        {
            "a": {0: 0.5, 1: 0.6},
            "b": {0: 0.45, 1: 0.62},
            "c": {0: 0.1, 1: 0.1},
        }
    )
    theirs = pd.Series({"a": 0.5, "b": 0.6, "c": 0.6, "d": 1.0})
    # a and b: .05 and -.02, mean .015, deviation .0495; b and c are published as equal.
    found = scores.order(ours, theirs)
    assert found.pairs == [scores.Pair("a", "c", False)]
    # Ranks of .55, .535, .1: 2 1 0; of .5, .6, .6: 0 1.5 1.5. Covariance -1.5,
    # variances 2 and 1.5.
    assert found.correlation == pytest.approx(-1.5 / (2 * 1.5) ** 0.5)
    # With one seed only differences above .01 are clear.
    one = pd.DataFrame({"a": {0: 0.511, 1: None}, "b": {0: 0.5}, "c": {0: 0.508}})
    found = scores.order(one, theirs)
    assert found.pairs == [scores.Pair("a", "b", False)]


class InThisProcess:
    """Stands for subprocess.Popen: the script has ended once it has started."""

    def __init__(self, command, stdout, **_):
        script = pathlib.Path(command[1])
        assert command[0] == sys.executable and script.parent == ROOT / "yt8m_distill"
        done = script_helpers.call(script.stem, *command[2:])
        stdout.write((done.stdout + done.stderr).encode())
        self.status = done.returncode

    def poll(self) -> int:
        return self.status


def reproduce(*arguments: str) -> script_helpers.Ended:
    return script_helpers.in_place(reproduce_.run, "reproduce", *arguments)


def test_a_mistake_on_the_command_line_is_one_line(tmp_path):
    arguments = ["--table=7", f"--output_dir={tmp_path}", "--data=x"]
    assert arguments[0] in script_helpers.refusal("reproduce", reproduce(*arguments))


@pytest.mark.slow
def test_one_command_trains_evaluates_and_reports(tmp_path, monkeypatch, unsaved):
    stand_in = types.SimpleNamespace(Popen=InThisProcess, DEVNULL=None)
    monkeypatch.setattr(runner, "subprocess", stand_in)
    monkeypatch.setattr(runner, "find_gpus", list)
    data, out, folder = tmp_path / "data", tmp_path / "out", tmp_path / "report"
    helpers.write_data(data)
    page = tmp_path / "page.md"
    page.write_text("A\n<!-- table -->\n<!-- /table -->\nB\n")
    arguments = [
        "--table=all",
        f"--data={data}",
        "--frames=6",
        "--methods=baseline_uniform,serial_rep_pred_ce",
        f"--test_data_pattern={data}/valid*.tfrecord",
        "--jobs=2",
        f"--teacher_cache={tmp_path / 'cache'}",
        f"--report_dir={folder}",
        f"--write_to={page}",
        "--section=table",
        "--base_flags=--feature_sizes=8,4 --num_classes=10 --max_frames=12 "
        "--num_epochs=1 --batch_size=8 --num_gpus=0 --base_learning_rate=0.3 "
        "--teacher=FrameLevelLogisticModel",
    ]
    done = reproduce(*arguments, f"--output_dir={out}")
    assert done.returncode == 0, done.stderr
    assert "| Uniform-k" in page.read_text()
    assert "3 of 3 runs are finished" in (folder / "report.html").read_text()
    methods = ("baseline_uniform", "serial_rep_pred_ce")
    grid = plan.Grid(frames=(6,), methods=methods)
    tables = tables_of(report_of(grid, str(out), f"{data}/valid*.tfrecord"))
    for row, cell in zip(tables["GAP"][0].values(), grid.cells(), strict=True):
        metrics = plan.train_dir(str(out), cell) / "eval" / "metrics.jsonl"
        (line,) = helpers.read_lines(metrics)
        assert row[0] == f"{line['gap']:.3f}"
    assert all("–" not in row[:5] for row in tables["Time"][0].values())
    # From the file next to the report: nothing is trained, and the report is the same.
    before = (folder / "report.md").read_text()
    known = (folder / runs.RUNS).rename(tmp_path / "known.jsonl")
    assert str(tmp_path) not in known.read_text()
    more = [f"--output_dir={tmp_path / 'new'}", f"--known_runs={known}"]
    done = reproduce(*arguments, *more)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "new" / "runs").exists()
    assert (folder / "report.md").read_text() == before


SEEDS = (0, 1, 2)
PUBLISHED = {
    "audioset": plan.Grid(
        ("1", "ablation"),
        (1, 2, 3, 5),
        SEEDS,
        (
            *(published.TEACHER, *published.TABLE_1, published.BEST_PRESET),
            *("ablation_with_ce", "ablation_with_rep", "ablation_paper_loss"),
            "ablation_new_weights",
        ),
    ),
    "audioset_networks": plan.Grid(
        ("families",),
        (1, 2, 3, 5),
        SEEDS,
        networks=plan.find_networks(["network_audioset_*"]),
    ),
    "synthetic": plan.Grid(),
    "synthetic_budgets": plan.Grid(("budgets",), (1, 2, 4, 8, 16)),
    "audioset_budgets": plan.Grid(("budgets",), (1, 2, 3, 5, 10), SEEDS),
}
TESTED_ON = {
    "synthetic_budgets": "test*.tfrecord",
    "audioset_budgets": "bal_train-00015-of-*",
}


@pytest.mark.parametrize("folder", PUBLISHED)
def test_a_published_report_is_that_of_its_runs(folder, unsaved):
    grid, test = PUBLISHED[folder], TESTED_ON.get(folder, "")
    kept_runs = runs.read(str(ROOT / "results" / folder / runs.RUNS), None, test)
    blocks = report_of(grid, "none", test, kept_runs)
    text = (ROOT / "results" / folder / "report.md").read_text("utf-8")
    assert document.to_markdown(blocks) == text


def test_the_table_in_the_readme_is_that_of_its_runs():
    grid = dataclasses.replace(PUBLISHED["audioset"], tables=("1",))
    kept_runs = runs.read(str(ROOT / "results" / "audioset" / runs.RUNS))
    results = results_of(grid, "none", "", kept_runs)
    assert report.missing_in_summary(results) == []
    table = document.table_text(report_tables.summary(results))
    assert f"<!-- audioset -->\n{table}\n<!-- /audioset -->" in (
        ROOT / "README.md"
    ).read_text("utf-8")
