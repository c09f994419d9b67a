"""Every file in flags/ parses, builds and describes what it reproduces."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from tools import list_flagfiles
from tools.reproduction import document, published
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
    return flag_groups.read_run(parse(*arguments, flagfile, *SETTINGS))


def command(path: pathlib.Path) -> list[str]:
    """The flags of the Command in a header; their paths begin at ROOT."""
    words = shlex.split(list_flagfiles.read_header(path)["Command"])
    assert words[:2] == ["python", "yt8m_distill/train.py"]
    return words[2:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_flagfile_alone_gives_phases(path):
    run = flag_groups.read_run(parse(f"--flagfile={path}", *SETTINGS))
    assert modes.phases(run, resolved=False)


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
def test_a_long_ablation_has_the_epochs_of_the_best_preset_and_its_teacher(
    path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    words = command(path)
    long = modes.phases(flag_groups.read_run(parse(*words)))
    best = [word.replace(path.stem, "preset_best") for word in words]
    both = modes.phases(flag_groups.read_run(parse(*best)))
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_in_the_header_matches_the_file(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = command(path)
    assert f"--flagfile=flags/{path.name}" in words
    given = parse(*words)
    flag_groups.read_run(given)
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
