"""Every file in flags/ parses, builds and describes what it reproduces."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from tools import list_flagfiles
from tools.reproduction import document, plan, published
from yt8m_distill import flag_groups, settings
from yt8m_distill.training import modes

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "flags").glob("*.flags"))
OTHER_KINDS = ("data_", "preset_", "training_", "network_", "ablation_")
EXPERIMENTS = [path for path in FILES if not path.stem.startswith(OTHER_KINDS)]
ABLATIONS = [path for path in FILES if path.stem.startswith("ablation_")]
SETTINGS = ["--train_dir=x", "--train_data_pattern=y"]


def parse(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    flag_groups.define([flag_groups.Preset, *flag_groups.RUN_GROUPS], values)
    assert values(["train.py", *arguments]) == ["train.py"]
    return values


def read_file(stem: str, *arguments: str) -> settings.RunSettings:
    """The settings that a flagfile gives after some flags."""
    flagfile = f"--flagfile={ROOT / 'flags' / stem}.flags"
    return plan.read_settings([*arguments, flagfile, *SETTINGS])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_flagfile_alone_gives_phases(path):
    assert modes.phases(read_file(path.stem), resolved=False)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_states_the_published_numbers(path):
    stated = list_flagfiles.read_header(path)["Published GAP/mAP"]
    found = re.findall(r"(?:k=(\d+) )?(\.\d{3}(?:/\.\d{3})?)", stated)
    assert found
    for k, text in found:
        k = int(k) if k else None
        if published.score(path.stem, k, "gap") is None:
            k = published.LARGEST_K
        numbers = (published.score(path.stem, k, metric) for metric in ("gap", "map"))
        parts = filter(None, numbers)
        assert "/".join(f"{part:.3f}"[1:] for part in parts) == text


def test_every_ablation_has_its_file_and_its_row():
    assert {path.stem for path in ABLATIONS} == set(published.ABLATIONS)


# Controls that are others with more epochs.
LONGER = {
    "ablation_no_teacher_long": "ablation_no_teacher",
    "ablation_uniform_long": "baseline_uniform",
}


@pytest.mark.parametrize("name", LONGER)
@pytest.mark.parametrize("preset", flag_groups.PRESETS)
def test_a_longer_control_differs_in_its_epochs_alone(name, preset):
    short, long = (
        read_file(stem, f"--preset={preset}").to_dict() for stem in (LONGER[name], name)
    )
    assert {key for key in short if short[key] != long[key]} == {"num_epochs"}


@pytest.mark.parametrize(
    "path",
    [p for p in ABLATIONS if p.stem.endswith("_long")],
    ids=lambda path: path.stem,
)
def test_a_long_ablation_has_the_epochs_of_the_best_preset_and_its_teacher(path):
    words = list_flagfiles.read_header(path)["Command"]
    long, both = (
        modes.phases(list_flagfiles.read_command(text))
        for text in (words, words.replace(path.stem, "preset_best"))
    )
    assert [phase.epochs for phase in both] == [15, 15]
    assert long[-1].epochs == 15 + 15


@pytest.mark.parametrize("preset", flag_groups.PRESETS)
@pytest.mark.parametrize("percent", ["", 10, 25, 50])
def test_uniform_k_and_the_students_see_the_same_frames(preset, percent):
    stems = ("baseline_uniform", "serial_rep_pred_ce")
    if percent:
        stems = (f"uniform_{percent}_percent", f"serial_{percent}_percent")
    uniform, student = (read_file(stem, f"--preset={preset}") for stem in stems)
    assert uniform.sampling == student.sampling


@pytest.mark.parametrize(
    "path",
    [path for path in ABLATIONS if path.stem not in LONGER],
    ids=lambda path: path.stem,
)
def test_an_ablation_changes_one_thing_of_the_best_preset(path):
    best = plan.read_settings(["--preset=best", *SETTINGS]).to_dict()
    other = read_file(path.stem).to_dict()
    changed = {name for name in best if best[name] != other[name]}
    if other["mode"] == "baseline":
        # Without a teacher there is neither its loss nor its weights.
        assert changed == {"mode", "student_loss", "student_start"}
    else:
        assert len(changed) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_in_the_header_matches_the_file(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # Paths in a Command begin there.
    words = shlex.split(list_flagfiles.read_header(path)["Command"])[2:]
    assert f"--flagfile=flags/{path.name}" in words
    given = parse(*words)
    alone = parse(f"--flagfile={path}")
    names = {name for name in alone if alone[name].present} - {"flagfile"}
    # A base, a budget or a preset is shown with an experiment, which sets others.
    if path in EXPERIMENTS + ABLATIONS:
        names |= {"mode", "student_loss", "frame_sampler", "match", "train_fraction"}
    assert {n: given[n].value for n in names} == {n: alone[n].value for n in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_networks_of_the_command_are_built_and_cost_what_the_header_says(path):
    text = path.read_text(encoding="utf-8")
    assert text == list_flagfiles.with_cost(text)


def stated_phases(cost: str) -> dict[str, float]:
    """Phase → G multiply-adds, of a Cost line."""
    found = re.findall(r"([a-z][a-z ]*) ([\d.]+) G \(", cost)
    return {name: float(number) for name, number in found}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_costs_follow_from_the_closed_formula(path):
    frame = 4 * 1024 * (1152 + 1024 + 2 * 1024)  # both lower layers, W and U
    block = 4 * 1024 * (4096 + 1024 + 2 * 1024)  # both upper layers
    classifier = 4096 * 3862
    teacher = (300 * frame + 15 * block + classifier) / 1e9
    student = {
        k: (k * frame + -(-k // (3 if k == 6 else 5)) * block + classifier) / 1e9
        for k in (6, 10, 15, 20, 30)
    }
    # Forward and backward are three times forward; 5 epochs, 1 of fine-tuning.
    kind = path.stem.split("_")[0]
    expected = {
        "teacher": {"teacher": 3 * 5 * teacher},
        "serial": {
            "teacher": 3 * 5 * teacher,
            "student with the frozen teacher": 5 * (teacher + 3 * student[30]),
        },
        "parallel": {"parallel": 3 * 5 * (teacher + student[30])},
    }.get(kind, {"baseline": 3 * 5 * student[30]})
    if path.stem.removesuffix("_intermediate").endswith("_rep"):
        expected["finetune"] = 3 * student[30]
    percent = re.search(r"(\d+)_percent", path.stem)
    share = int(percent[1]) / 100 if percent else 1
    expected = {name: share * number for name, number in expected.items()}

    cost = list_flagfiles.read_header(path)["Cost"]
    rounding = {"abs": 0.0051}  # Two decimals.
    assert stated_phases(cost) == pytest.approx(expected, **rounding)
    if len(expected) > 1:
        total = float(re.search(r"([\d.]+) G in all", cost)[1])
        assert total == pytest.approx(sum(expected.values()), **rounding)
    forward = dict(re.findall(r"(teacher|k=\d+) ([\d.]+) G", cost.split(";")[0]))
    wanted = {"teacher": teacher} if kind in ("teacher", "serial", "parallel") else {}
    if kind != "teacher":
        wanted |= {f"k={k}": number for k, number in student.items()}
    stated = {name: float(number) for name, number in forward.items()}
    assert stated == pytest.approx(wanted, **rounding)
    assert bool(percent) == (f"on {100 * share:g} % of the videos" in cost)


def test_a_header_without_its_command_is_refused():
    with pytest.raises(ValueError, match="no line # Command:"):
        list_flagfiles.with_cost("# Ablation: x\n--mode=baseline\n")
    with pytest.raises(ValueError, match="does not begin with python"):
        list_flagfiles.with_cost("# Command: true\n--mode=baseline\n")


def test_the_readme_has_the_table_of_all_files():
    readme = ROOT / "flags" / "README.md"
    _, table, _ = document.find_section(readme, "table")
    assert table.rstrip("\n") == list_flagfiles.make_table()
    assert all(f"({path.name})" in table for path in FILES)
