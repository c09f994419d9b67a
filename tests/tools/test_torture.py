"""tools/torture.py: its table says what was tried and what was lost."""

import collections
import importlib
import json
import sys

import numpy as np
import pytest

from tools import torture
from tools.torturing import checkpoints, kills, results, runs


def use_areas(monkeypatch, **rows) -> None:
    """Areas with given functions `rows` in the place of the real ones."""
    monkeypatch.setattr(torture, "AREAS", tuple(rows))
    areas = {f"tools.torturing.{name}": function for name, function in rows.items()}

    class Module:
        def __init__(self, function):
            self.rows = function

    monkeypatch.setattr(importlib, "import_module", lambda name: Module(areas[name]))


def run(monkeypatch, *arguments: str) -> int:
    """The exit code of the tool with these arguments."""
    monkeypatch.setattr(sys, "argv", ["torture.py", *arguments])
    with pytest.raises(SystemExit) as end:
        torture.main()
    return end.value.code


def test_the_exit_code_says_whether_something_was_lost(monkeypatch, capsys):
    use_areas(
        monkeypatch,
        good=lambda quick: [results.Row("this", 3, 3)],
        bad=lambda quick: [results.Row("that", 4, 3, "the | fourth")],
    )
    assert run(monkeypatch, "--areas=good") == 0
    assert "| good | this | 3 | 3 | 0 |  |" in capsys.readouterr().out
    assert run(monkeypatch) == 1
    shown = capsys.readouterr().out
    assert "| bad | that | 4 | 3 | **1** | the \\| fourth |" in shown
    assert "1 of 7 lost." in shown


def test_an_area_gets_the_options_that_it_takes(monkeypatch):
    seen = {}

    def one(quick, seed):
        seen["one"] = (quick, seed)
        return []

    def two(quick, kills, seed):
        seen["two"] = (quick, kills, seed)
        return []

    use_areas(monkeypatch, one=one, two=two)
    assert run(monkeypatch, "--quick", "--seed=7", "--kills=5") == 0
    assert seen == {"one": (True, 7), "two": (True, 5, 7)}


def test_an_unknown_area_is_refused_with_those_that_are_known(monkeypatch, capsys):
    use_areas(monkeypatch, one=lambda quick: [])
    assert run(monkeypatch, "--areas=two") == 2
    assert "--areas=two: known are one." in capsys.readouterr().err


def test_tables_of_several_runs_stand_side_by_side(monkeypatch, tmp_path):
    use_areas(
        monkeypatch,
        one=lambda quick: [results.Row("this", 1, 1)],
        two=lambda quick: [results.Row("that", 2, 2)],
    )
    for area in ("two", "one"):
        run(monkeypatch, f"--areas={area}", f"--output_dir={tmp_path}")
    content = json.loads((tmp_path / "torture.json").read_text())
    assert list(content) == ["one", "two"]
    assert content["two"]["command"] == (
        "tools/torture.py --areas=two --kills=30 --seed=0"
    )
    text = (tmp_path / "torture.md").read_text()
    assert text.index("| one | this | 1 |") < text.index("| two | that | 2 |")


def test_damage_to_checkpoints_is_survived():
    rows = checkpoints.rows(quick=True)
    assert [row.name for row in rows if row.lost] == []
    # Each of the harms once to data, index and digest; five files `checkpoint`. A best
    # network without a digest is one of an earlier version.
    assert sum(row.tried for row in rows) == 2 * 3 * len(checkpoints.HARMS) - 1 + 5


def test_every_variant_is_killed_at_any_moment_and_while_it_writes():
    trials = kills.plan(30)
    killed = collections.Counter((t.variant, t.kind) for t in trials)
    for variant in kills.VARIANTS:
        assert killed[variant, kills.ANY_MOMENT] >= 4
        assert killed[variant, kills.WRITING] >= 2
        assert killed[variant, kills.ASKED] >= 1
    assert sum(t.kind != kills.ASKED for t in trials) == 30


def test_what_differs_between_two_runs_is_named():
    one = {"a": np.float32([1, 2]), "b": {"gap": 0.5}, "c": 1}
    same = {"a": np.float32([1, 2]), "b": {"gap": 0.5}, "c": 1}
    assert runs.differences(one, same) == []
    # A zero of the other sign is another number here.
    assert runs.differences({"x": np.float32([0.0])}, {"x": np.float32([-0.0])}) == [
        "x"
    ]
    other = {"a": np.float64([1, 2]), "b": {"gap": 0.25}, "d": 1}
    assert runs.differences(one, other) == ["a", "b", "c", "d"]


def test_what_no_finished_run_has_is_found(tmp_path):
    for name in ("checkpoints/writing/ckpt-1.index", "a.json.tmp-7", "ckpt-1.index"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert runs.leftovers(tmp_path) == [
        "a.json.tmp-7",
        "checkpoints/writing",
        "checkpoints/writing/ckpt-1.index",
    ]


@pytest.mark.parametrize(
    ("code", "said", "problem"),
    [
        (1, ["12:00:00 x", "train.py: no room"], None),
        (0, [], "exit code 0, not 1: "),
        (
            1,
            ["Traceback (most)", "train.py: no room"],
            "a traceback: train.py: no room",
        ),
        (1, ["oh"], "0 lines of train.py: oh"),
        (1, ["train.py: no"], "no 'no room' in: train.py: no"),
    ],
)
def test_an_end_that_is_not_one_line_is_a_problem(code, said, problem):
    assert runs.Ended(code, said).problem("train", 1, "no room") == problem
