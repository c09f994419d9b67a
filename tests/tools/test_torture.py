"""tools/torture.py: its table says what was tried and what was lost."""

import collections
import importlib
import json
import random
import sys

import numpy as np
import pytest

from tools import torture
from tools.torturing import checkpoints, data, kills, results, runs
from yt8m_distill import settings
from yt8m_distill.data import validation


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


def test_a_row_counts_the_tries_without_a_problem(capsys):
    row = results.judged("this", iter([None, "it broke", None, "it fell"]))
    assert row == results.Row("this", 4, 2, "it broke; it fell")
    assert "this: it broke; it fell" in capsys.readouterr().out
    assert results.judged("that", [None, None]) == results.Row("that", 2, 2)


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Shards of frame-level and of video-level records of the same videos."""
    folder = tmp_path_factory.mktemp("levels") / "frame"
    video = runs.make_data(folder, video_level=True)
    return {data.FRAME_LEVEL.name: folder, data.VIDEO_LEVEL.name: video}


def data_settings(level: data.Level) -> settings.DataSettings:
    frames = level is data.FRAME_LEVEL
    return settings.DataSettings(
        feature_names="rgb,audio" if frames else "mean_rgb,mean_audio",
        feature_sizes="16,8",
        num_classes=10,
        max_frames=24,
        frame_features=frames,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("level", "other"),
    [
        (data.FRAME_LEVEL, data.VIDEO_LEVEL),
        (data.VIDEO_LEVEL, data.FRAME_LEVEL),
    ],
    ids=["frame-level", "video-level"],
)
def test_bad_shards_are_as_bad_as_they_are_said_to_be(
    levels, tmp_path, level, other, seed
):
    """What the scripts are held to is what each record's check finds."""
    folders = levels[level.name], levels[other.name]
    twins = data.write_twins(*folders, tmp_path, level, random.Random(seed))
    assert [s.name for s in twins.all_spoilt] == sorted(
        path.name
        for path in twins.bad.glob("*.tfrecord")
        if path.read_bytes() != (twins.clean / path.name).read_bytes()
    )
    for spoilt in twins.all_spoilt:
        found = list(
            validation.walk(str(twins.bad / spoilt.name), data_settings(level))
        )
        bad = [record for record in found if isinstance(record, validation.BadRecord)]
        assert [record.number for record in bad] == list(spoilt.bad)
        assert {record.reason for record in bad} == {spoilt.harm.reason}
        for record in bad:
            assert spoilt.harm.rule in record.message
            assert data.unnamed(record.message, spoilt, twins.bad) is None
            assert data.unnamed(record.message, spoilt, twins.clean)
        good = runs.read_shard(twins.clean / spoilt.name)
        assert len(good) == len(found) - len(bad)


def test_what_is_allowed_is_no_bad_record(levels, tmp_path):
    kept = runs.read_shard(levels["frame-level"] / "validate0000.tfrecord")[:3]
    for name, change in data.ALLOWED.items():
        shard = tmp_path / name
        runs.write_shard(shard, change(kept))
        check = validation.check_shard(str(shard), data_settings(data.FRAME_LEVEL))
        assert (name, check.bad) == (name, ())


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
