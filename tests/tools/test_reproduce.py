"""tools/reproduce.py: which runs a table needs, how they are run, what is reported."""

import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import training_helpers as helpers
from tools import list_flagfiles
from tools.reproduction import (
    archive,
    compare,
    cost,
    document,
    figures,
    measures,
    plan,
    published,
    report,
    runner,
    runs,
    scores,
    texts,
)
from yt8m_distill import settings
from yt8m_distill.models import builder
from yt8m_distill.training import modes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = "HierarchicalLSTM(cells=4, block_len=5)"
BASE = [
    *("--train_data_pattern=t", "--validation_data_pattern=v"),
    *("--feature_sizes=8,4", "--num_classes=10", f"--teacher={SMALL}"),
]


@pytest.fixture(autouse=True)
def no_best_preset(tmp_path, monkeypatch):
    """The counts are those of the paper, whether there is a best preset or not."""
    monkeypatch.setattr(plan, "best_preset", lambda: tmp_path / "preset_best.flags")


def experiments(
    output_dir="out", base=BASE, teacher_cache="", **grid
) -> list[plan.Experiment]:
    return plan.make_experiments(
        plan.Grid(**grid), str(output_dir), base, teacher_cache
    )


# ------------------------------------------------------------------ published numbers


def flagfile_scores(method: str) -> list[tuple[str, str]]:
    """(k or nothing, score) in a flagfile's header."""
    header = list_flagfiles.read_header(plan.FLAGFILES / f"{method}.flags")
    text = header["Published GAP/mAP"]
    return re.findall(r"(?:k=(\d+) )?(\.\d{3}(?:/\.\d{3})?)", text)


@pytest.mark.parametrize("method", plan.known_methods())
def test_the_published_numbers_are_those_of_the_flagfiles(method):
    if method == published.BEST_PRESET or method in published.ABLATIONS:
        pytest.skip("nothing is published of the best preset")
    found = flagfile_scores(method)
    assert found
    for k, text in found:
        score = published.score(method, int(k) if k else None)
        parts = [score.gap] + [score.map] * (score.map is not None)
        assert "/".join(f"{part:.3f}"[1:] for part in parts) == text


def test_nothing_is_published_for_other_k():
    assert published.score("serial_rep", 7) is None
    assert published.score("serial_10_percent", 20) is None
    assert published.score("serial_rep_intermediate", 20) is None


@pytest.mark.parametrize(
    "method, label",
    [
        ("serial_rep_ce_intermediate", "Serial rep, ce, intermediate"),
        ("uniform_25_percent", "Uniform, 25 % of the data"),
    ],
)
def test_a_method_without_a_label_of_its_own_gets_one(method, label):
    assert published.label(method) == label


# ------------------------------------------------------------------------------ plan


@pytest.mark.parametrize(
    "table, count",
    [
        ("1", 61),  # the teacher, and 12 methods at 5 k
        ("2", 13),  # the teacher, and 6 losses matched in two ways
        ("3", 6),  # 2 methods on 3 shares; each serial run trains its own teacher
        ("4", 6),  # the teacher and 5 students
        ("figure2", 7),
        ("figure3", 2),
    ],
)
def test_a_table_takes_so_many_runs(table, count):
    assert len(experiments(tables=(table,))) == count
    other = count if table != "figure3" else count / 3  # one seed is drawn
    assert len(experiments(tables=(table,), seeds=(0, 1, 2))) == 3 * other


def test_what_tables_share_is_run_once():
    # Table 1's 61, the 6 with intermediate matching, and Table 3's 6.
    made = experiments()
    assert len(made) == 61 + 6 + 6
    assert len({e.train_dir for e in made}) == len(made)


def test_all_serial_students_of_a_seed_use_one_teacher():
    made = experiments(tables=("1",), frames=(3, 6), seeds=(0, 4))
    teachers = {e.cell.seed: e for e in made if e.cell.k is None}
    assert sorted(teachers) == [0, 4]
    serial = [e for e in made if e.run.distillation.mode == "serial"]
    assert len(serial) == 3 * 2 * 2
    for experiment in serial:
        assert experiment.teacher == teachers[experiment.cell.seed]
        folder = experiment.teacher.train_dir
        assert f"--teacher_checkpoint={folder}" in experiment.command
        assert made.index(experiment.teacher) < made.index(experiment)
    others = [e for e in made if e not in serial]
    assert not any("teacher_checkpoint" in word for e in others for word in e.command)


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
    assert run.sampling.student_k == 10  # the largest stands for the paper's 30
    assert run.training.seed == 7
    assert run.distillation.match == "intermediate"
    assert run.distillation.student_loss == "rep + ce"
    assert run.networks.teacher == SMALL
    assert run.training.train_dir == found.train_dir


def test_methods_restrict_the_runs_but_a_serial_student_keeps_its_teacher():
    def cells(*methods):
        made = experiments(tables=("1",), frames=(6,), methods=methods)
        return [e.cell.name for e in made]

    assert cells("baseline_uniform") == ["baseline_uniform/k6/seed0"]
    assert cells("serial_rep") == ["teacher_skyline/seed0", "serial_rep/k6/seed0"]
    assert cells("parallel_rep") == ["parallel_rep/k6/seed0"]
    # Of the CVPR 2019 version: on demand alone.
    assert cells("serial_pred")[1:] == ["serial_pred/k6/seed0"]


def test_the_later_version_adds_its_rows_to_table_1():
    plain, more = (
        {e.cell.method for e in experiments(tables=tables, frames=(6,))}
        for tables in (("1",), ("1", "cvpr_2019"))
    )
    assert more - plain == {"serial_pred", "serial_pred_ce"}
    with pytest.raises(ValueError, match="--table=cvpr_2019 has rows of Table 1"):
        plan.Grid(tables=("cvpr_2019",))


def test_methods_of_no_table_are_known():
    methods = ("baseline_uniform", "serial_10_percent", "serial_pred")
    grid = plan.Grid(tables=("1",), methods=methods)
    assert grid.unused_methods() == ["serial_10_percent"]


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_under_a_preset_all_methods_have_its_frames_and_networks(preset, monkeypatch):
    monkeypatch.undo()  # The best preset is there.
    base = [*BASE[:2], f"--preset={preset}"]
    grid = plan.suited(plan.Grid(tables=("1", "3")), base)
    made = plan.make_experiments(grid, "o", base)
    compared = ("baseline_uniform", "serial_", "parallel_", "uniform_")
    samplers = {
        e.run.sampling.frame_sampler for e in made if e.cell.method.startswith(compared)
    }
    assert samplers == {"uniform" if preset == "paper" else "uniform_stride"}
    assert len({e.run.networks.teacher for e in made}) == 1
    has_best = any(e.cell.method == published.BEST_PRESET for e in made)
    assert has_best == (preset == "paper")


@pytest.mark.parametrize(
    "given", [{"tables": ("1", "ablation")}, {"methods": ("preset_best", "serial_rep")}]
)
def test_the_best_preset_is_refused_beside_another(given, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="does not go together with --preset=authors"):
        plan.suited(plan.Grid(**given), [*BASE, "--preset=authors"])


def test_serial_students_of_one_teacher_share_its_cache():
    made = experiments(tables=("1", "3"), frames=(6,), teacher_cache="cache")
    cached = {e.cell.method for e in made if "--teacher_cache=cache" in e.command}
    assert cached == {"serial_rep", "serial_rep_ce", "serial_rep_pred_ce"}
    assert all(e.run.distillation.teacher_cache == "cache" for e in made if e.teacher)


def test_the_ablation_stands_at_the_middle_k():
    made = experiments(tables=("ablation",), frames=(3, 6, 9))
    assert {e.cell.k for e in made} == {None, 6}
    names = {"teacher_skyline", "baseline_uniform", "preset_best"}
    assert {e.cell.method for e in made} == names | set(published.ABLATIONS)
    # It is not the paper's.
    assert "ablation" not in plan.Grid().tables


def test_the_best_preset_is_a_student_of_table_1(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "FLAGFILES", tmp_path)
    for path in (ROOT / "flags").glob("*.flags"):
        (tmp_path / path.name).write_text(path.read_text())
    plan.best_preset().write_text("--student_loss=ce + pred\n")
    made = experiments(tables=("1",))
    best = [e for e in made if e.cell.method == published.BEST_PRESET]
    assert len(made) == 61 + 5 and len(best) == 5
    assert best[0].teacher == made[0]
    assert best[0].run.distillation.student_loss == "ce + pred"


def test_a_folder_of_shards_says_what_the_records_hold(tmp_path):
    recipe = {"feature_sizes": "5,3", "num_classes": 4, "num_train": 9}
    (tmp_path / "dataset.json").write_text(json.dumps({"recipe": recipe}))
    (tmp_path / "train0.tfrecord").touch()
    with pytest.raises(ValueError, match=r"--data=.* has no valid\*\.tfrecord"):
        plan.data_flags(str(tmp_path))
    (tmp_path / "validate0.tfrecord").touch()
    run = plan.read_settings([*plan.data_flags(str(tmp_path)), "--train_dir=x"])
    assert run.data.sizes == (5, 3) and run.data.num_classes == 4
    assert run.training.train_data_pattern == f"{tmp_path}/train*.tfrecord"
    assert run.training.validation_data_pattern == f"{tmp_path}/valid*.tfrecord"


def test_base_flags_are_flags_and_flagfiles(tmp_path):
    flagfile = tmp_path / "mine.flags"
    flagfile.write_text("--num_epochs=3\n")
    text = f"{flagfile} --teacher='HierarchicalLSTM(cells=2, block_len=4)'"
    words = plan.split_flags(text)
    run = plan.read_settings([*BASE, *words, "--train_dir=x"])
    assert run.training.num_epochs == 3
    assert run.networks.teacher == "HierarchicalLSTM(cells=2, block_len=4)"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: plan.Grid(tables=("5",)), "--table=5 is none of 1, 2, 3, 4, "),
        (lambda: plan.Grid(methods=("best",)), "--methods=best is unknown. Known: "),
        (lambda: plan.Grid(frames=()), "--frames takes"),
        (lambda: plan.Grid(seeds=(-1,)), "--seeds takes"),
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
    def check(*changes, test=""):
        run = plan.common_settings(str(tmp_path), [*BASE, *changes])
        plan.check_settings(str(tmp_path), run, test)
        return run

    run = check()
    plan.write(str(tmp_path), plan.Grid(seeds=(3,)), run, "")
    check("--log_steps=3")  # changes no result
    check(test="more*")  # adds to what is there
    with pytest.raises(ValueError, match="--batch_size: was 256, is 8.") as raised:
        check("--batch_size=8", "--num_epochs=9")
    assert "--num_epochs: was 5, is 9" in str(raised.value)
    plan.write(str(tmp_path), plan.Grid(), run, "more*")
    with pytest.raises(ValueError, match=r"--test_data_pattern: was 'more\*', is 'o'"):
        check(test="o")


def test_the_plan_of_an_output_dir_is_read_back(tmp_path):
    grid = plan.Grid(("2", "4"), (6, 10), (1, 2), ("serial_rep",))
    common = plan.common_settings("x", BASE)
    plan.write(str(tmp_path), grid, common, "test*")
    assert plan.read(str(tmp_path)) == (grid, common, "test*")
    with pytest.raises(ValueError, match="nothing ran there"):
        plan.read(str(tmp_path / "other"))


# ------------------------------------------------------------------------------ cost


def test_the_paper_s_accounting_gives_its_flops():
    account = cost.paper_account()
    assert account.products == 16_777_216  # two layers, four gates of 2 x 1024 x 1024
    assert account.element_wise == 28_672
    # The rows k = 10 and k = 20 were made with 9 and 15 frames.
    frames = {None: 300, 10: 9, 20: 15, 30: 30}
    for k, row in published.TABLE_4.items():
        assert round(account.billions(frames[k]), 3) == row.billions
        assert cost.frames_behind(row.billions) == frames[k]


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    "network",
    [
        "HierarchicalLSTM(cells=3, block_len=20)",
        "HierarchicalLSTM(cells=3, layers=1, num_blocks=4, head='moe')",
        "HierarchicalLSTM(cells=3, block_len=7, head='moe(num_mixtures=3)')",
        "LstmModel(cells=3)",
    ],
)
def test_the_closed_formula_is_the_networks_own_count(network, role):
    values = {
        "teacher": network,
        "feature_sizes": "8,4",
        "num_classes": 10,
        "max_frames": 20,
        "student_k": 6,
        "train_dir": "x",
        "train_data_pattern": "y",
    }
    run = settings.RunSettings.from_dict(values)
    built = builder.build_network(role, run)
    expected = built.multiply_adds(built.max_frames)
    assert expected.pop("bridge") == 0
    found = cost.multiply_adds(run, role)
    found.pop("bridge", None)
    assert found == expected


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


# ----------------------------------------------------------- fabricated finished runs


def fabricate(experiment: plan.Experiment, gaps, finished=True, teacher_gaps=None):
    """A train_dir as train.py leaves it, whose epochs have these GAPs."""
    folder = pathlib.Path(experiment.train_dir)
    folder.mkdir(parents=True, exist_ok=True)
    phases = {}
    for phase in modes.phases(experiment.run):
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
        "phases": phases,
        "versions": {"tensorflow": "2.0"},
        "machine": {"processors": 2, "gpus": 0},
        "data": {"videos": 36},
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    (folder / "model_flags.json").write_text(json.dumps(experiment.run.to_dict()))


def evaluate(
    experiment: plan.Experiment, gap: float, step: int, phase: str, pattern="test*"
):
    """A line of eval.py for a checkpoint of that step, on those shards."""
    folder = pathlib.Path(experiment.train_dir) / "eval"
    folder.mkdir(exist_ok=True)
    role = experiment.role
    line = {
        "network": role,
        "checkpoint": f"/moved/since/{phase}/best/{role}/network-{step}",
        "eval_data_pattern": pattern,
        "gap": gap,
        "map": gap / 2,
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


def report_of(grid, output_dir, test_data_pattern, known=None) -> list:
    results = scores.Results(grid, output_dir, test_data_pattern, known)
    return report.make_report(results)


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


def test_a_run_counts_with_the_best_epoch_of_its_last_phase(tmp_path):
    (experiment,) = experiments(
        tmp_path, tables=("1",), frames=(6,), methods=("parallel_rep",)
    )
    assert not runs.Run(experiment.train_dir).begun
    fabricate(experiment, [0.3, 0.5, 0.4])
    path = pathlib.Path(experiment.train_dir) / "manifest.json"
    content = json.loads(path.read_text())
    finetuned = {"epoch": 1, "step": 5, "gap": 0.45, "map": 0.2}
    entry = {"best": finetuned, "epochs": [finetuned]}
    content["phases"]["finetune"]["results"]["student"] = entry
    path.write_text(json.dumps(content))
    run = runs.Run(experiment.train_dir)
    assert run.finished
    assert run.validation("student")["gap"] == 0.45
    assert run.validation("teacher")["gap"] == 0.5
    assert [e["gap"] for e in run.epochs("student")] == [0.3, 0.5, 0.4, 0.45]
    del content["phases"]["finetune"]
    path.write_text(json.dumps(content))
    run = runs.Run(experiment.train_dir)
    assert not run.finished and run.validation("student") is None


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


def test_the_summary_has_scores_and_shares(tmp_path):
    grid, made = make_grid(tmp_path)
    fabricate_all(made)
    table = report.summary(scores.Results(grid, str(tmp_path)))
    assert table.header[1:] == ["k=6"]
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["Uniform-k"] == "0.400 ± 0.028 / 0.200 ± 0.014"
    assert rows["Serial rep, pred, ce"].endswith("(50%)")
    assert rows["Parallel rep, pred, ce"].endswith("(-40%)")
    assert rows["Teacher-Skyline"].startswith("0.600 ± 0.000 / ")


def kept(results: scores.Results, path, test_data_pattern="") -> archive.Archive:
    """What is left of results in the file beside a report."""
    common = plan.common_settings(str(path.parent), BASE)
    archive.write(path, common, test_data_pattern, results.to_archive())
    return archive.read(str(path), common, test_data_pattern)


def test_a_report_is_the_same_from_the_file_of_its_runs(tmp_path):
    grid, made = make_grid(tmp_path / "out", tables=plan.TABLES, methods=())
    gaps = dict.fromkeys({e.cell.method for e in made}, (0.5, 0.45)) | GAPS
    fabricate_all(made[:-3], gaps)
    for experiment in made[:-3]:
        step, phase = 20, modes.phases(experiment.run)[-1].name
        gap = gaps[experiment.cell.method][0] + 0.01
        evaluate(experiment, gap, step, phase, f"{tmp_path}/test*")
    out = tmp_path / "out"
    rate = {"checkpoint": f"{out}/x", "videos_per_second": 5.0}
    times = {made[0].cell.name: {**rate, "model_videos_per_second": 9.0}}
    (out / measures.TIMING).write_text(json.dumps(times))
    (out / figures.EMBEDDING).mkdir()
    points = {"source": [f"{out}/x"], "classes": [1, 2, 2], "student": "Serial", "k": 6}
    points["points"] = [[[0.5, 1], [1, 1], [2, 3]], [[1, 2], [3, 2], [4, 5]]]
    (out / figures.EMBEDDING / figures.POINTS).write_text(json.dumps(points))
    for test in ("", f"{tmp_path}/test*"):
        results = scores.Results(grid, str(out), test)
        known = kept(results, tmp_path / archive.RUNS, test)
        assert str(tmp_path) not in (tmp_path / archive.RUNS).read_text()
        expected = report_of(grid, str(out), test)
        found = report_of(grid, str(tmp_path / "none"), test, known)
        assert document.to_markdown(found) == document.to_markdown(expected)
        (every,) = tables_of(found)["All runs"]
        assert sum(row[0] == "finished" for row in every.values()) == len(made) - 3
        drawn = [b.svg for b in found if isinstance(b, document.Figure)]
        assert len(drawn) == 4
        # Once more through the file, and nothing is lost.
        again = scores.Results(grid, str(tmp_path / "none"), test, known)
        text = (tmp_path / archive.RUNS).read_text()
        kept(again, tmp_path / archive.RUNS, test)
        assert (tmp_path / archive.RUNS).read_text() == text


def test_known_runs_are_not_run_again_but_for_the_teachers_of_others(tmp_path):
    grid, made = make_grid(tmp_path / "out")
    absent = plan.Cell("serial_rep_pred_ce", 6, 1)
    fabricate_all([e for e in made if e.cell != absent])
    known = kept(scores.Results(grid, str(tmp_path / "out")), tmp_path / "x")
    _, anew = make_grid(tmp_path / "new")
    missing = known.missing(anew)
    assert [e.cell for e in missing] == [("teacher_skyline", None, 1), absent]
    # None of them has been evaluated.
    assert known.missing(anew, "test*") == anew
    other = plan.make_experiments(grid, str(tmp_path), [*BASE, "--num_epochs=9"])
    assert known.missing(other) == other
    assert archive.read("").missing(anew) == anew


def test_the_newer_run_counts_where_a_folder_is_finished_too(tmp_path):
    grid, made = make_grid(tmp_path / "out", methods=("baseline_uniform",))
    fabricate_all(made)
    known = kept(scores.Results(grid, str(tmp_path / "out")), tmp_path / "x")
    fabricate(made[0], [0.7])
    fabricate(made[1], [0.8], finished=False)
    results = scores.Results(grid, str(tmp_path / "out"), "", known)
    assert results.scores("baseline_uniform", 6, "gap") == [0.7, 0.42]
    (_, changed) = tables_of(report.make_report(results))["All runs"]
    assert changed == {"baseline_uniform/k6/seed0": ["0.380000", "0.700000"]}


def test_a_run_that_gives_the_same_again_is_not_said_to_have_changed(tmp_path):
    grid, made = make_grid(tmp_path / "out")
    fabricate_all(made)
    known = kept(scores.Results(grid, str(tmp_path / "out")), tmp_path / "x")
    blocks = report_of(grid, str(tmp_path / "out"), "", known)
    assert len(tables_of(blocks)["All runs"]) == 1


def test_frames_that_the_paper_has_not_have_no_column_of_its_own(tmp_path):
    grid, made = make_grid(tmp_path, frames=(3, 6))
    fabricate_all(made)
    blocks = report_of(grid, str(tmp_path), "")
    headers = [b.header for b in blocks if isinstance(b, document.Table)]
    assert headers.count(["model", "k=3", "k=6", document.PAPER]) == 3
    tables = tables_of(blocks)
    teacher = ["0.600 ± 0.000", "0.600 ± 0.000", "0.811"]
    assert tables["GAP"][0]["Teacher-Skyline"] == teacher
    shares = tables["Share of the gap that a student closes"][0]
    assert shares["Serial rep, pred, ce"] == ["0.50", "0.50", "0.17"]


def test_frames_that_the_paper_has_not_are_ordered_by_its_means(tmp_path):
    methods = ("baseline_random", "baseline_first", "baseline_middle")
    grid, made = make_grid(tmp_path, frames=(3,), seeds=(0,), methods=methods)
    # Published at k = 6 to 30: First .478 to .676, Middle .577 to .665, Random above.
    fabricate_all(made, {m: (0.3 - 0.1 * i,) for i, m in enumerate(methods)})
    order, contrary = tables_of(report_of(grid, str(tmp_path), ""))[
        "The order of the methods, by GAP"
    ]
    assert order["k=3"] == ["3", "0.50", "3", "2"]
    first = (0.478 + 0.539 + 0.595 + 0.632 + 0.676) / 5
    middle = (0.577 + 0.600 + 0.620 + 0.638 + 0.665) / 5
    assert contrary["k=3"] == [
        "First-k > Middle-k",
        "0.200, 0.100",
        f"{first:.3f}, {middle:.3f}",
    ]
    assert published.gap_for_order("baseline_first", 30) == 0.676
    assert published.gap_for_order("preset_best", 3) is None


def test_a_file_of_other_runs_is_refused(tmp_path):
    grid, made = make_grid(tmp_path / "out")
    fabricate_all(made)
    path = tmp_path / archive.RUNS
    kept(scores.Results(grid, str(tmp_path / "out")), path)
    moved = [*BASE, "--train_data_pattern=/elsewhere/t", "--log_steps=3"]
    assert archive.read(str(path), plan.common_settings("o", moved)).runs
    for change, complaint in (
        ("--num_epochs=9", "--num_epochs: was 5, is 9"),
        ("--train_data_pattern=u", "--train_data_pattern: was 't', is 'u'"),
    ):
        common = plan.common_settings("o", [*BASE, change])
        with pytest.raises(ValueError, match=f"x*runs.*{complaint}"):
            archive.read(str(path), common)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"runs.jsonl, line \d+: not written by"):
        archive.read(str(path))
    path.write_text("")
    with pytest.raises(ValueError, match="has no settings"):
        archive.read(str(path))
    with pytest.raises(ValueError, match="is not a file"):
        archive.read(str(tmp_path / "none"))


def ablation_rows(tmp_path, leave_out=()) -> dict:
    """The ablation of a grid with two seeds, as far as it has run."""
    grid, made = make_grid(tmp_path, tables=("ablation",), methods=(), frames=(6, 9))
    gaps = dict.fromkeys({e.cell.method for e in made}, (0.5, 0.5)) | GAPS
    fabricate_all([e for e in made if e.cell not in leave_out], gaps)
    tables = tables_of(report_of(grid, str(tmp_path), ""))
    (rows,) = tables["Ablation of the best preset, k=9"]
    return rows


def test_the_ablation_has_a_row_for_each_change(tmp_path):
    rows = ablation_rows(tmp_path)
    assert len(rows) == 3 + len(published.ABLATIONS)
    assert rows["Teacher-Skyline"][-1] == texts.MISSING
    # Uniform-k has 0.38 and 0.42, the teacher 0.6.
    changed = rows["best preset, but ce + pred"]
    assert changed == ["0.500 ± 0.000", "0.250 ± 0.000", "0.50"]


def test_the_rows_of_the_ablation_are_means_over_the_same_seeds(tmp_path):
    without = [("ablation_with_ce", 9, 1), ("ablation_long", 9, 0)]
    without.append(("ablation_long", 9, 1))  # Not begun: it restricts no other.
    rows = ablation_rows(tmp_path, without)
    # Under seed 0 alone: (.5 - .38) / (.6 - .38) = .545.
    assert rows["Uniform-k"] == ["0.380", "0.190", "0.00"]
    assert rows["best preset, but ce + pred"] == ["0.500", "0.250", "0.55"]
    assert rows["best preset, but pred + 0.01*rep"] == ["0.500", "0.250", "0.55"]
    assert rows["best preset, but 30 epochs"] == [texts.MISSING] * 3


def test_the_summary_misses_runs_without_a_score(tmp_path):
    grid, made = make_grid(tmp_path)
    missing = plan.Cell("serial_rep_pred_ce", 6, 1)
    fabricate_all([e for e in made if e.cell != missing])
    assert report.missing_in_summary(scores.Results(grid, str(tmp_path))) == [
        missing.name
    ]


def test_a_share_is_that_of_the_seeds_which_a_row_has(tmp_path):
    grid, made = make_grid(tmp_path)
    fabricate_all([e for e in made if e.cell != ("serial_rep_pred_ce", 6, 1)])
    tables = tables_of(report_of(grid, str(tmp_path), ""))
    (shares,) = tables["Share of the gap that a student closes"]
    # Under seed 0 alone: (.52 - .38) / (.6 - .38) = .636.
    assert shares["Serial rep, pred, ce"][0] == "0.64"


def test_a_report_names_shards_without_their_folders(tmp_path):
    grid, made = make_grid(tmp_path)
    fabricate_all(made)
    text = document.to_markdown(report_of(grid, str(tmp_path), "/a/b/t*,/c/u"))
    assert "/a/b" not in text and "t*, u" in text


def test_scores_on_test_data_are_eval_s_for_the_best_checkpoint(tmp_path):
    grid, made = make_grid(tmp_path, seeds=(0,))
    fabricate_all(made)
    for experiment in made:
        phase = modes.phases(experiment.run)[-1].name
        evaluate(experiment, 0.9, 30, phase)  # of another checkpoint
        if experiment.cell.method == "baseline_uniform":
            uniform = experiment
            evaluate(experiment, 0.7, 20, phase)
            evaluate(experiment, 0.71, 20, phase)  # the newest counts
            evaluate(experiment, 0.8, 20, phase, "train*")  # on other data
    tables = tables_of(report_of(grid, str(tmp_path), "test*"))
    (gap,) = tables["GAP"]
    assert gap["Uniform-k"][0] == "0.710"
    assert gap["Teacher-Skyline"][0] == texts.MISSING
    (every,) = tables["All runs"]
    of_uniform = every["baseline_uniform/k6/seed0"]
    assert of_uniform[2:] == ["0.380", "0.190", "0.710", "0.355"]
    run = runs.Run(uniform.train_dir)
    assert run.evaluation("student", "train*")["gap"] == 0.8
    assert run.evaluation("student", "other*") is None


def test_a_partly_finished_grid_has_a_report(tmp_path):
    grid, made = make_grid(tmp_path, tables=plan.PAPER, methods=())
    by_method = {e.cell.method: e for e in made if e.cell.seed == 0}
    fabricate(by_method["serial_rep"], [0.1], finished=False)
    tables = tables_of(report_of(grid, str(tmp_path), ""))
    (gap,), (every,) = tables["GAP"], tables["All runs"]
    assert gap["Serial rep"] == [texts.MISSING, "0.727"]
    assert every["serial_rep/k6/seed0"][0] == "2 of 6 epochs"  # one of each phase
    assert every["serial_rep/k6/seed1"][0] == "not begun"


def test_table_3_compares_with_the_teacher_of_as_little_data(tmp_path):
    grid = plan.Grid(tables=("3",), frames=(6,))
    for experiment in plan.make_experiments(grid, str(tmp_path), BASE):
        if experiment.cell.method == "serial_25_percent":
            fabricate(experiment, [0.35], teacher_gaps=[0.4])
        if experiment.cell.method == "uniform_25_percent":
            fabricate(experiment, [0.2])
    blocks = report_of(grid, str(tmp_path), "")
    (table,) = tables_of(blocks)["Table 3: less training data, k=6"]
    # Published for 30 frames alone.
    assert table["Serial"][2:4] == ["0.350 / 0.175", "– / –"]
    assert table["share of the gap closed"][2] == "0.75"  # (.35 - .2) / (.4 - .2)


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


def test_table_4_adds_up(tmp_path):
    grid, made = make_grid(tmp_path, tables=("4",), seeds=(0,), methods=())
    base = [*BASE, "--max_frames=20"]
    for experiment in plan.make_experiments(grid, str(tmp_path), base):
        fabricate(experiment, [0.5])
    rate = {"videos_per_second": 50.0, "model_videos_per_second": 100.0}
    times = {made[0].cell.name: rate}
    times[made[1].cell.name] = {name: 4 * value for name, value in rate.items()}
    (tmp_path / measures.TIMING).write_text(json.dumps(times))
    tables = tables_of(report_of(grid, str(tmp_path), ""))
    ((teacher, student),) = [list(t.values()) for t in tables["Table 4: cost"]]
    # Lower: 4 gates x 4 cells x (12 + 4, and 4 + 4) inputs x frames = 384 a frame;
    # upper: 16 x (16 + 4 + 4 + 4) = 448 a block, of 5 frames for the teacher and 3
    # for the student; classifier: 16 x 10.
    assert teacher[4:7] == ["1.79 k", "160", "9.63 k"]  # 4 x 448; 7680 + 1792 + 160
    assert student[3:6] == ["2.3 k", "896", "160"]
    # 2304 + 896 + 160 = 3360 of 9632. By the paper's account, which leaves out the 4
    # numbers of audio, a frame costs 16 x (8 + 4 + 4 + 4) + 2 x 14 x 4 = 432.
    assert student[6:9] == ["3.36 k", "34.9%", "2.59 k"]
    assert teacher[8:] == ["8.64 k", "5.042 G", "300"]
    ((teacher, student),) = [list(t.values()) for t in tables["Time"]]
    assert teacher[:5] == ["10", "100", "20", "50", "100%"]
    assert student[:5] == ["2.5", "400", "5", "200", "25%"]
    # Measured elsewhere, it has no share.
    where = {"machine": "1 x Z80", "batch_size": 8, "uses_index": True}
    times[made[1].cell.name] |= where
    (tmp_path / measures.TIMING).write_text(json.dumps(times))
    blocks = report_of(grid, str(tmp_path), "")
    ((_, student),) = [list(t.values()) for t in tables_of(blocks)["Time"]]
    assert student[:5] == ["2.5", "400", "5", "200", texts.MISSING]
    text = document.to_markdown(blocks)
    assert "Measured on: 1 x Z80, batches of 8, by an index" in text


def test_figure_2_shows_every_epoch_of_four_networks(tmp_path, monkeypatch):
    grid, made = make_grid(
        tmp_path,
        tables=("figure2",),
        methods=("teacher_skyline", "serial_rep_ce", "parallel_rep_ce"),
    )
    for experiment in made:
        shift = 0.02 * experiment.cell.seed
        fabricate(experiment, [0.2 + shift, 0.3 + shift], teacher_gaps=[0.5, 0.6])
    drawn = {}
    monkeypatch.setattr(figures, "gap_by_epoch", lambda p: drawn.update(p) or b"<svg/>")
    report_of(grid, str(tmp_path), "")
    assert drawn["rep, ce"] == {
        "Serial teacher": [0.5, 0.6],
        "Parallel teacher": [0.5, 0.6],
        "Parallel student": pytest.approx([0.21, 0.31]),
        "Serial student": pytest.approx([0.21, 0.31]),
    }


def test_the_html_page_needs_nothing_else(tmp_path):
    grid, made = make_grid(tmp_path, tables=plan.PAPER, frames=(6,))
    fabricate_all(made)
    blocks = report_of(grid, str(tmp_path), "")
    document.write(tmp_path, [*blocks, document.Text("<b> & |")])
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page and "<script" not in page and "<link" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) >= 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "&lt;b&gt; &amp; |" in page
    text = (tmp_path / "report.md").read_text()
    for name in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / name).read_bytes().startswith(b"<?xml")
    assert "| Uniform-k | 0.400 ± 0.028 | 0.715 |" in text


# --------------------------------------------------------------------------- compare


def test_the_deviation_is_the_sample_s_and_of_one_value_none():
    assert compare.deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert compare.deviation([1.0]) == 0
    assert texts.spread_text([]) == "–"
    assert texts.spread_text([0.5]) == "0.500"


def test_a_share_needs_a_gap():
    assert compare.gap_share(0.5, 0.4, 0.6) == pytest.approx(0.5)
    assert compare.gap_share(0.5, 0.6, 0.6) is None
    assert compare.gap_share(0.5, None, 0.6) is None


def test_rank_correlation_shares_the_ranks_of_equal_values():
    assert compare.rank_correlation([1, 2, 3], [10, 20, 99]) == pytest.approx(1)
    assert compare.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5 against 0, 1, 2: covariance 1.5, variances 1.5 and 2.
    expected = 1.5 / (1.5 * 2) ** 0.5
    assert compare.rank_correlation([1, 5, 5], [1, 2, 3]) == pytest.approx(expected)
    assert compare.rank_correlation([1, 1], [1, 2]) is None


def test_only_pairs_apart_by_more_than_their_spread_are_clear():
    ours = {
        "a": {0: 0.5, 1: 0.6},
        "b": {0: 0.45, 1: 0.62},
        "c": {0: 0.1, 1: 0.1},
        "d": {0: 0.9},
    }
    theirs = {"a": 0.5, "b": 0.6, "c": 0.6}
    # a and b: .05 and -.02, mean .015, deviation .0495; b and c are published as equal.
    found = compare.order(ours, theirs)
    assert found.pairs == [compare.Pair("a", "c", False)]
    # Ranks of .55, .535, .1: 2 1 0; of .5, .6, .6: 0 1.5 1.5. Covariance -1.5,
    # variances 2 and 1.5.
    assert found.correlation == pytest.approx(-1.5 / (2 * 1.5) ** 0.5)


def test_a_pair_is_compared_on_the_seeds_that_both_have():
    # Seeds differ more than methods do: b is .02 or .03 better under each seed.
    ours = {"a": {0: 0.5, 1: 0.7}, "b": {1: 0.72, 0: 0.53, 2: 0.3}}
    theirs = {"a": 0.5, "b": 0.6}
    found = compare.order(ours, theirs)
    assert found.pairs == [compare.Pair("b", "a", True)]
    assert found.correlation == pytest.approx(1)


def test_one_seed_tells_large_differences_alone():
    theirs = {"a": 0.5, "b": 0.6}
    near = compare.order({"a": {0: 0.509}, "b": {0: 0.5, 1: 0.1}}, theirs)
    assert near.pairs == [] and near.correlation == pytest.approx(-1)
    far = compare.order({"a": {0: 0.511}, "b": {0: 0.5}}, theirs)
    assert far.pairs == [compare.Pair("a", "b", False)]
    none = compare.order({"a": {0: 0.5}, "b": {1: 0.1}}, theirs)
    assert none == compare.Order(None, [])


# ---------------------------------------------------------------------------- runner

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


def prepare(tmp_path, made, status=0, seconds=0.0, failing=()):
    """Experiments whose commands are quick, and leave a fabricated run behind."""
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
        quick[experiment.cell] = plan.Experiment(
            experiment.cell, experiment.train_dir, command, experiment.run, teacher
        )
    return list(quick.values())


def test_runs_are_run_and_the_finished_ones_skipped(tmp_path, capfd):
    _, made = make_grid(tmp_path / "out")
    quick = prepare(tmp_path, made)
    fabricate(made[0], [0.25])
    assert runner.is_trained(made[0]) and not runner.is_trained(made[1])
    assert runner.Runner(quick, jobs=3).run() == []
    assert all(runner.is_trained(e) for e in made)
    logs = [pathlib.Path(e.train_dir) / runner.LOG for e in made]
    assert not logs[0].exists()
    assert all(runner.last_line(log) == "last words" for log in logs[1:])
    assert f"[{len(made)}/{len(made)}]" in capfd.readouterr().err
    times = [log.stat().st_mtime_ns for log in logs[1:]]
    assert runner.Runner(quick).run() == []
    assert [log.stat().st_mtime_ns for log in logs[1:]] == times


def test_a_run_under_other_settings_does_not_count_as_finished(tmp_path):
    (first,) = experiments(tmp_path, tables=("1",), methods=("teacher_skyline",))
    fabricate(first, [0.25])
    base = [*BASE, "--num_epochs=9"]
    (other,) = experiments(tmp_path, base, tables=("1",), methods=("teacher_skyline",))
    assert runner.is_trained(first) and not runner.is_trained(other)
    base = [*BASE, "--teacher=HierarchicalLSTM( block_len=5,cells=4 )"]
    (same,) = experiments(tmp_path, base, tables=("1",), methods=("teacher_skyline",))
    assert runner.is_trained(same)


def test_a_failure_stops_only_those_that_need_it(tmp_path, capfd):
    _, made = make_grid(tmp_path / "out", seeds=(0,))
    quick = prepare(tmp_path, made, failing=("teacher_skyline",))
    failures = runner.Runner(quick).run()
    log = pathlib.Path(made[0].train_dir) / runner.LOG
    assert [(f.name, f.reason) for f in failures] == [
        ("teacher_skyline/seed0", f"last words (log: {log})"),
        (
            "serial_rep_pred_ce/k6/seed0",
            "its teacher teacher_skyline/seed0 failed",
        ),
    ]
    assert "FAILED teacher_skyline/seed0: last words" in capfd.readouterr().err
    done = [e.cell.method for e in made if runner.is_trained(e)]
    assert done == ["baseline_uniform", "parallel_rep_pred_ce"]


@pytest.mark.parametrize(
    ("status", "lines", "reason"),
    [
        (-9, ["starts"], "ended by SIGKILL, as for want of memory"),
        (-11, ["$ train.py"], "ended by SIGSEGV"),
        (2, ["$ train.py --long=command"], "exit status 2"),
        (2, [], "exit status 2"),
        (1, ["$ train.py", "train.py: wrong", ""], "train.py: wrong"),
    ],
)
def test_a_failure_says_why_and_where_its_log_is(tmp_path, status, lines, reason):
    log = tmp_path / "train.log"
    log.write_text("\n".join(lines))
    assert runner.failure_text(status, log) == f"{reason} (log: {log})"


def test_a_command_that_leaves_no_result_is_a_failure(tmp_path):
    _, made = make_grid(tmp_path / "out", seeds=(0,), methods=("teacher_skyline",))
    (quick,) = prepare(tmp_path, made)
    words = (*quick.command[:3], str(tmp_path / "elsewhere"), *quick.command[4:])
    lost = plan.Experiment(quick.cell, quick.train_dir, words, quick.run)
    (failure,) = runner.Runner([lost]).run()
    assert "ended without its result" in failure.reason


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path):
    _, made = make_grid(tmp_path / "out", seeds=(0,), methods=("teacher_skyline",))
    (quick,) = prepare(tmp_path, made)
    log = pathlib.Path(quick.train_dir) / runner.LOG
    log.parent.mkdir(parents=True)
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (failure,) = runner.Runner([quick]).run()
    assert failure.reason == "another process is at work on it"
    assert runner.Runner([quick]).run() == []


def test_a_signal_reaches_the_processes_and_starts_nothing_new(tmp_path):
    _, made = make_grid(tmp_path / "out", seeds=(0,))
    quick = prepare(tmp_path, made, seconds=60)
    work = runner.Runner(quick, jobs=1)
    original = work._collect

    def collect(bar):
        log = pathlib.Path(quick[0].train_dir) / runner.LOG
        if runner.last_line(log) == "starts" and work.received is None:
            os.kill(os.getpid(), signal.SIGTERM)
        original(bar)

    work._collect = collect
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    assert work.run() == []
    assert time.monotonic() - began < 30  # it did not wait for the minute
    assert work.received == signal.SIGTERM
    assert not any(pathlib.Path(e.train_dir).exists() for e in made[1:])
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_share_the_gpus_or_the_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert runner.job_environment(0, 1, ["0", "1"]) == {}

    def gpus(slot, jobs, names):
        return runner.job_environment(slot, jobs, names)["CUDA_VISIBLE_DEVICES"]

    assert [gpus(slot, 2, ["0", "1", "2"]) for slot in (0, 1)] == ["0,2", "1"]
    assert [gpus(slot, 3, ["4", "7"]) for slot in (0, 1, 2)] == ["4", "7", "4"]
    shared = runner.job_environment(1, 3, [])
    assert shared["TF_NUM_INTRAOP_THREADS"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in shared


def test_gpus_that_are_hidden_are_not_found(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert runner.find_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert runner.find_gpus() == ["2", "3"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (20, "less than a minute"),
        (90, "about 2 min"),
        (3600 * 3 + 1300, "about 3 h 22 min"),
    ],
)
def test_time_left_is_told_in_minutes(seconds, text):
    assert runner.duration_text(seconds) == text


# ------------------------------------------------------------------------- end to end

ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}


def call(*arguments: str):
    return subprocess.run(
        [sys.executable, "tools/reproduce.py", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_summary_needs_table_1(tmp_path):
    arguments = ("--table=2", f"--output_dir={tmp_path}", f"--data={tmp_path}")
    done = call(*arguments, "--write_to=README.md")
    assert done.returncode == 1
    assert "--write_to=README.md takes a summary of Table 1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_command_is_one_line(tmp_path):
    done = call("--table=7", f"--output_dir={tmp_path}", f"--data={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("reproduce.py: --table=7 is none of ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_one_command_trains_evaluates_and_reports(tmp_path):
    data = tmp_path / "data"
    helpers.write_data(data)
    arguments = [
        "--table=all",
        f"--data={data}",
        f"--output_dir={tmp_path / 'out'}",
        "--frames=6",
        "--methods=teacher_skyline,baseline_uniform,serial_rep_pred_ce",
        f"--test_data_pattern={data}/valid*.tfrecord",
        "--jobs=2",
        f"--teacher_cache={tmp_path / 'cache'}",
        f"--report_dir={tmp_path / 'report'}",
        f"--write_to={tmp_path / 'page.md'}",
        "--section=table",
        "--base_flags=--feature_sizes=8,4 --num_classes=10 --max_frames=12 "
        f"--num_epochs=1 --batch_size=8 --num_gpus=0 --teacher='{SMALL}'",
    ]
    refused = call(*arguments, "--dry_run")
    assert refused.returncode == 1 and "page.md" in refused.stderr
    (tmp_path / "page.md").write_text("A\n<!-- table -->\n<!-- /table -->\nB\n")
    planned = call(*arguments, "--dry_run")
    assert planned.returncode == 0, planned.stderr
    assert "3 runs, 0 of them finished" in planned.stdout
    assert not (tmp_path / "out").exists()
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    (cache,) = (tmp_path / "cache").glob("*/complete.json")
    assert len(json.loads(cache.read_text())) == 1
    written = (tmp_path / "page.md").read_text()
    assert written.startswith("A\n<!-- table -->\n| GAP / mAP")
    assert written.endswith("<!-- /table -->\nB\n") and "| Uniform-k | " in written
    assert "3 of 3 runs are finished" in page
    grid, _, _ = plan.read(str(tmp_path / "out"))
    pattern = f"{data}/valid*.tfrecord"
    tables = tables_of(report_of(grid, str(tmp_path / "out"), pattern))
    (gap,) = tables["GAP"]
    cells = grid.cells()
    assert len(cells) == len(gap) == 3
    for row, cell in zip(gap.values(), cells, strict=True):
        folder = plan.train_dir(str(tmp_path / "out"), cell)
        (line,) = helpers.read_lines(folder / "eval" / "metrics.jsonl")
        assert row[0] == f"{line['gap']:.3f}"
    (times,) = tables["Time"]
    assert all(texts.MISSING not in row[:5] for row in times.values())
    rows = (tmp_path / "out" / "figure3" / "metadata.tsv").read_text().splitlines()
    tensors = (tmp_path / "out" / "figure3" / "tensors.tsv").read_text().splitlines()
    assert len(rows) == len(tensors) + 1 and len(tensors) % 2 == 0
    assert len(tensors[0].split("\t")) == 16  # [c1, h1, c2, h2] of 4 cells
    # Again: nothing is left to do, and the report is the same.
    before = (tmp_path / "report" / "report.md").read_text()
    again = call(*arguments)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "report" / "report.md").read_text() == before
    # From the file beside the report alone: nothing is trained, the report is the same.
    known = tmp_path / "known.jsonl"
    (tmp_path / "report" / archive.RUNS).rename(known)
    assert "teacher_cache" in known.read_text()
    assert str(tmp_path) not in known.read_text()
    elsewhere = [f"--output_dir={tmp_path / 'new'}", f"--known_runs={known}"]
    planned = call(*arguments, *elsewhere, "--dry_run")
    assert "3 runs, 3 of them finished" in planned.stdout
    third = call(*arguments, *elsewhere)
    assert third.returncode == 0, third.stderr
    assert not (tmp_path / "new" / "runs").exists()
    assert (tmp_path / "report" / "report.md").read_text() == before
    assert (tmp_path / "report" / archive.RUNS).read_text() == known.read_text()
    refused = call(*arguments[:-1], arguments[-1] + " --num_epochs=2")
    assert refused.returncode == 1
    assert "--num_epochs: was 1, is 2" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
