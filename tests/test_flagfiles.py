"""Every file in flags/ parses, builds, and says what it reproduces."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from tools import list_flagfiles
from tools.reproduction import published
from yt8m_distill import flag_groups, registry
from yt8m_distill.models import builder
from yt8m_distill.training import modes

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "flags").glob("*.flags"))
OTHER_KINDS = ("data_", "preset_", "training_", "ablation_")
EXPERIMENTS = [path for path in FILES if not path.stem.startswith(OTHER_KINDS)]
ABLATIONS = [path for path in FILES if path.stem.startswith("ablation_")]
SETTINGS = ["--train_dir=x", "--train_data_pattern=y"]

# The paper's tables: GAP/mAP at k = 6, 10, 15, 20, 30 (Table 1), and at k = 30.
TABLE_1 = {
    "baseline_uniform": ".715/.266 .759/.324 .777/.350 .785/.363 .795/.378",
    "baseline_random": ".679/.246 .681/.254 .717/.268 .763/.329 .774/.339",
    "baseline_first": ".478/.133 .539/.163 .595/.199 .632/.223 .676/.258",
    "baseline_middle": ".577/.178 .600/.198 .620/.214 .638/.229 .665/.250",
    "baseline_last": ".255/.062 .267/.067 .282/.077 .294/.083 .317/.094",
    "baseline_first_middle_last": ".640/.215 .671/.242 .680/.249 .698/.268 .721/.287",
    "parallel_rep": ".724/.280 .762/.331 .785/.365 .794/.380 .803/.392",
    "parallel_rep_ce": ".726/.285 .766/.334 .785/.362 .795/.381 .804/.396",
    "parallel_rep_pred_ce": ".729/.292 .770/.337 .789/.371 .796/.388 .806/.404",
    "serial_rep": ".727/.288 .768/.339 .786/.365 .795/.381 .802/.394",
    "serial_rep_ce": ".728/.291 .769/.341 .786/.368 .794/.383 .803/.399",
    "serial_rep_pred_ce": ".731/.297 .771/.349 .789/.375 .798/.390 .806/.405",
}
OTHERS = {
    "teacher_skyline": ".811/.414",
    "parallel_rep_intermediate": ".803/.393",
    "parallel_rep_ce_intermediate": ".803/.396",
    "parallel_rep_pred_ce_intermediate": ".804/.400",
    "serial_rep_intermediate": ".804/.395",
    "serial_rep_ce_intermediate": ".803/.397",
    "serial_rep_pred_ce_intermediate": ".806/.405",
    "serial_10_percent": ".774/.345",
    "serial_25_percent": ".788/.369",
    "serial_50_percent": ".796/.373",
    "uniform_10_percent": ".718/.220",
    "uniform_25_percent": ".756/.301",
    "uniform_50_percent": ".776/.349",
    "serial_pred": ".722 .766 .784 .793 .798",  # GAP alone, CVPR 2019
    "serial_pred_ce": ".724 .763 .785 .795 .799",
}


def parse(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    flag_groups.define(flag_groups.RUN_GROUPS, values)
    flag_groups.define_preset(values)
    assert values(["train.py", *arguments]) == ["train.py"]
    return values


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_flagfile_builds_its_phases(path):
    arguments = [f"--flagfile={path}", *SETTINGS]
    run = flag_groups.read_run(parse(*arguments))
    assert modes.phases(run)
    # The networks, with their cells cut so that they are quick to make.
    small = registry.parse(run.networks.teacher)
    small = registry.Specification(small.name, {**small.arguments, "cells": 2})
    run = flag_groups.read_run(parse(*arguments, f"--teacher={small}"))
    share = any(phase.share_classifier for phase in modes.phases(run))
    builder.build_networks(run, ["teacher", "student"], share)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_states_the_published_numbers(path):
    header = list_flagfiles.read_header(path)
    assert {"Reproduces", "Published GAP/mAP", "Cost", "Command"} <= header.keys()
    expected = {**TABLE_1, **OTHERS}[path.stem].split()
    published = header["Published GAP/mAP"]
    assert re.findall(r"\.\d{3}(?:/\.\d{3})?", published) == expected
    if len(expected) == 5:
        assert re.findall(r"k=(\d+)", published) == ["6", "10", "15", "20", "30"]


def test_every_ablation_has_its_file_and_its_row():
    assert {path.stem for path in ABLATIONS} == set(published.ABLATIONS)


# Controls that are others with more epochs.
LONGER = {
    "ablation_no_teacher_long": "ablation_no_teacher",
    "ablation_uniform_long": "baseline_uniform",
}


@pytest.mark.parametrize("name", LONGER)
def test_a_longer_control_differs_in_its_epochs_alone(name):
    short, long = (
        flag_groups.read_run(
            parse(f"--flagfile={ROOT / 'flags' / stem}.flags", *SETTINGS)
        ).to_dict()
        for stem in (LONGER[name], name)
    )
    assert {key for key in short if short[key] != long[key]} == {"num_epochs"}


@pytest.mark.parametrize(
    "path",
    [path for path in ABLATIONS if path.stem not in LONGER],
    ids=lambda path: path.stem,
)
def test_an_ablation_changes_one_thing_of_the_best_preset(path):
    best, other = (
        flag_groups.read_run(parse(flag, *SETTINGS)).to_dict()
        for flag in ("--preset=best", f"--flagfile={path}")
    )
    changed = {name for name in best if best[name] != other[name]}
    if other["mode"] == "baseline":
        # Without a teacher there is neither its loss nor its weights.
        assert changed == {"mode", "student_loss", "student_start"}
    else:
        assert len(changed) == 1


def test_every_experiment_of_the_tables_has_its_file():
    assert {path.stem for path in EXPERIMENTS} == {*TABLE_1, *OTHERS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_command_in_the_header_is_the_experiment(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(list_flagfiles.read_header(path)["Command"])
    assert words[:2] == ["python", "yt8m_distill/train.py"]
    given = parse(*words[2:])
    alone = parse(f"--flagfile={path}")
    for name in ("mode", "student_loss", "frame_sampler", "match", "train_fraction"):
        assert given[name].value == alone[name].value


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_costs_follow_from_the_closed_formula(path):
    frame = 4 * 1024 * (1152 + 1024 + 2 * 1024)  # both lower layers, W and U
    block = 4 * 1024 * (4096 + 1024 + 2 * 1024)  # both upper layers
    classifier = 4096 * 3862
    header = list_flagfiles.read_header(path)
    costs = {300: 300 * frame + 15 * block + classifier}
    for k in (6, 10, 15, 20, 30):
        blocks = -(-k // (3 if k == 6 else 5))
        costs[k] = k * frame + blocks * block + classifier
    for k, stated in re.findall(r"k=(\d+) ([\d.]+) G", header["Cost"]):
        assert float(stated) == pytest.approx(costs[int(k)] / 1e9, abs=0.005)
    for stated in re.findall(r"(?:video: |teacher \()([\d.]+) G", header["Cost"]):
        assert float(stated) == pytest.approx(costs[300] / 1e9, abs=0.005)


def test_the_readme_has_the_table_of_all_files():
    text = (ROOT / "flags" / "README.md").read_text(encoding="utf-8")
    assert text == list_flagfiles.replaced(text, list_flagfiles.make_table())
    assert all(f"({path.name})" in text for path in FILES)
