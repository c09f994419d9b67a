"""tools/torture.py: its table says what was tried and what was lost."""

import importlib
import json
import sys

import pytest

from tools import torture
from tools.torturing import results


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
