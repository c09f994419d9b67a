"""tools/summarize_runs.py: ways of training in one table."""

import json
import pathlib

import pytest

from tests import script_helpers
from tools import summarize_runs
from tools.reproduction import document
from yt8m_distill import settings
from yt8m_distill.training import modes

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_run(folder, gaps, networks, **values):
    """A manifest of a run with one phase; `networks` are role → (frames, products)."""
    role = list(networks)[-1]
    patterns = dict.fromkeys(("train_data_pattern", "validation_data_pattern"), "/x/y*")
    values = {"mode": "baseline", "student_k": "4", **patterns, **values}
    run = settings.RunSettings.from_dict({**values, "train_dir": str(folder)})
    (phase,) = modes.phases(run, resolved=False)
    content = {
        "finished": True,
        "results": {role: {"epochs": gaps}},
        "networks": {
            name: {"frames": frames, "multiply_adds": {"lower": products}}
            for name, (frames, products) in networks.items()
        },
    }
    content = {"settings": run.to_dict(), "phases": {phase.name: content}}
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_ways_of_training_are_compared_over_seeds_with_their_teachers_cost(tmp_path):
    teacher = write_run(
        tmp_path / "teacher",
        [{"gap": 0.5}, {"gap": 0.6}],
        {"teacher": (10, 10)},
        mode="teacher",
    )
    networks = {"teacher": (10, 10), "student": (4, 4)}
    runs = [
        write_run(
            tmp_path / str(gap),
            [{"gap": 0.1}, {"gap": gap}, {"gap": 0.2}],
            networks,
            mode="serial",
            student_loss="pred",
            teacher_checkpoint=str(teacher),
        )
        for gap in (0.4, 0.5)
    ]
    several = write_run(
        tmp_path / "several",
        [{"gap": 0.3, "gap_k2": 0.2, "gap_k4": 0.4}],
        {"student": (4, 4)},
        student_k="2,4",
    )
    # The teacher: 2 epochs of a step of 3 * 10; its student: 3 epochs of a forward pass
    # of 10 and a step of 3 * 4. Both k: 4 frames, 2 frames and 3 in the mean.
    student, both = 2 * 30 + 3 * (10 + 12), 3 * (4 + 2 + 3)
    groups = {
        "student": [summarize_runs.read_run(run) for run in runs],
        "both": [summarize_runs.read_run(several)],
    }
    table = summarize_runs.compare(groups)
    assert list(table.header[-2:]) == ["k=2", "k=4"]
    # The sample standard deviation of two numbers is their distance over sqrt(2).
    assert table.rows == [
        ["student", "2 + 3", f"{student / 1e9:.2f}", "2", "–", "0.450 ± 0.071"],
        ["both", "1", f"{both / 1e9:.2f}", "1", "0.200", "0.400"],
    ]
    assert groups["student"][0]["multiply_adds"] == student
    assert groups["both"][0]["multiply_adds"] == both
    # Two teachers have names of their own in the manifest.
    twice = write_run(
        tmp_path / "twice",
        [{"gap": 0.4}] * 3,
        {"teacher_1": (10, 10), "teacher_2": (10, 10), "student": (4, 4)},
        mode="serial",
        student_loss="pred",
        teacher_checkpoint=f"{teacher},{teacher}",
    )
    cost = 2 * (2 * 30) + 3 * (2 * 10 + 12)
    assert summarize_runs.read_run(twice)["multiply_adds"] == cost
    kept = json.dumps(groups)  # No folder of this machine.
    assert str(tmp_path) not in kept and "/x" not in kept


def test_a_row_is_the_newest_evaluation_of_a_network(tmp_path):
    run = write_run(tmp_path / "run", [{"gap": 0.4}], {"student": (4, 4)})
    (run / "eval").mkdir()
    line = {"network": "student", "map": 0.25, "hit_at_one": 0.75}
    line["videos_per_second"] = 500.0
    line["asked"] = "--student_k=4"  # As in training.
    lines = [json.dumps({**line, "gap": gap}) + "\n" for gap in (0.6, 0.5)]
    (run / "eval" / "metrics.jsonl").write_text("".join(lines))
    row = ["uniform baseline", "4", "0.500", "0.250", "0.750", "2.00"]
    assert summarize_runs.read_rows(run) == [row]

    # Other frames, another network in a mean, and segments are no rows of this one.
    del line["asked"]
    of_segments = {name: line[name] for name in line if name != "hit_at_one"}
    others = [
        {**line, "asked": "--student_k=2"},
        {**line, "asked": "--mean_frames=3", "mean_frames": 2.96},
        {**of_segments, "segment_labels": True},
        *(
            {**of_segments, "mean_with": "videos", "mean_weight": weight}
            for weight in (0.3, 0.5)
        ),
    ]
    lines += [json.dumps({**other, "gap": 0.1}) + "\n" for other in others]
    (run / "eval" / "metrics.jsonl").write_text("".join(lines))
    first, *rows = summarize_runs.read_rows(run)
    assert first == row
    assert [frames for _, frames, *_ in rows] == ["2", "3.0", "–", "–", "–"]
    assert all(name.startswith("uniform baseline, --") for name, *_ in rows)
    assert [row[4] for row in rows] == ["0.750", "0.750", "–", "–", "–"]


def test_the_published_table_is_that_of_its_runs():
    folder = ROOT / "results" / "audioset_teaching"
    table = summarize_runs.compare(summarize_runs.read_kept(folder / "runs.jsonl"))
    _, published, _ = document.find_section(folder / "report.md", "teaching")
    assert document.table_text(table) + "\n" == published


def test_a_run_that_has_not_finished_is_named(tmp_path):
    run = write_run(tmp_path / "run", [{"gap": 0.5}], {"student": (1, 1)})
    path = run / "manifest.json"
    path.write_text(path.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(ValueError, match=str(run)):
        summarize_runs.read_run(run)
    cases = {f"label={run}": "not finished", "nope": "no folder", "x=nope": "no folder"}
    for argument, what in cases.items():
        done = script_helpers.in_place(summarize_runs.main, "summarize_runs", argument)
        line = script_helpers.refusal("summarize_runs", done)
        assert argument.rpartition("=")[2] in line and what in line


def test_a_label_without_runs_takes_those_that_were_kept(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "runs.jsonl"

    def table(*labels: str) -> str:
        words = ["summarize_runs.py", *labels, f"--keep={kept}"]
        monkeypatch.setattr("sys.argv", words)
        summarize_runs.main()
        return capsys.readouterr().out

    write_run(tmp_path / "run", [{"gap": 0.4}], {"student": (4, 4)})
    table(f"old={tmp_path}/run")
    before = kept.read_text()
    both = table("old=", f"new={tmp_path}/run")
    assert [line["label"] for line in map(json.loads, kept.open())] == ["old", "new"]
    assert both.count("0.400") == 2
    table("old=")
    assert kept.read_text() == before
    with pytest.raises(SystemExit, match="other"):
        table("other=")
