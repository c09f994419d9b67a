"""What a run writes about itself, and what it reads back."""

import json
import platform
import shutil

import keras
import pytest
import tensorflow as tf

import yt8m_distill
from tests import training_helpers as helpers
from yt8m_distill.training import loop, manifest, modes

pytestmark = pytest.mark.once


@pytest.fixture
def content(serial_run) -> dict:
    return manifest.read_json(f"{serial_run.training.train_dir}/manifest.json")


def test_the_manifest_has_settings_versions_and_machine(content, serial_run):
    assert content["settings"] == serial_run.to_dict()
    assert content["versions"] == {
        "yt8m_distill": yt8m_distill.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }
    assert content["data"].items() >= {"files": 2, "videos": 36}.items()
    assert content["replicas"] == 1
    assert content["machine"]["processors"] >= 1
    assert isinstance(content["command"], list)


def test_the_manifest_counts_parameters_and_multiply_adds(content):
    teacher = content["phases"]["teacher"]["networks"]["teacher"]
    # Frames of 12 numbers, 6 units, 10 classes with a bias each.
    assert teacher["parameters"] == 12 * 6 + 6 * 10 + 10
    assert teacher["frames"] == helpers.MAX_FRAMES
    assert teacher["multiply_adds"] == {
        "frames": helpers.MAX_FRAMES * 12 * 6,
        "bridge": 0,
        "classifier": 6 * 10,
    }
    networks = content["phases"]["student"]["networks"]
    assert networks.keys() == {"teacher", "student"}
    assert networks["student"]["frames"] == helpers.STUDENT_K
    frames = networks["student"]["multiply_adds"]["frames"]
    assert frames == helpers.STUDENT_K * 12 * 6


def test_the_manifest_holds_the_results_of_every_epoch(content):
    for phase, role in (("teacher", "teacher"), ("student", "student")):
        entry = content["phases"][phase]
        assert entry["finished"] is True and entry["step"] == 10
        (results,) = entry["results"].values()
        assert entry["results"].keys() == {role}
        assert [(e["epoch"], e["step"]) for e in results["epochs"]] == [(1, 5), (2, 10)]
        assert results["best"] in results["epochs"]
        gaps = [e["gap"] for e in results["epochs"]]
        assert results["best"]["gap"] == max(gaps)


def test_it_is_written_before_the_first_step(data, tmp_path, monkeypatch):
    def stop(self):
        raise helpers.Stop

    monkeypatch.setattr(loop.Loop, "run", stop)
    run = helpers.make_run(tmp_path / "run", data)
    with pytest.raises(helpers.Stop):
        helpers.train(run)
    written = manifest.read_json(str(tmp_path / "run" / "manifest.json"))
    assert written["settings"] == run.to_dict()
    assert written["phases"]["teacher"]["finished"] is False
    assert written["phases"]["teacher"]["networks"]["teacher"]["parameters"] == 142
    assert manifest.read_run_settings(str(tmp_path / "run")) == run


def phase_of(index: int = -1, **changes) -> set:
    """Names of the settings on which a phase of a run depends."""
    run = helpers.make_run("run", "data", **changes)
    return set(modes.phases(run)[index].settings)


def test_a_phase_depends_only_on_what_changes_its_result():
    everything = set(helpers.make_run("run", "data").to_dict())
    free = {"train_dir", "log_steps", "steps_per_loop", "num_gpus", "max_checkpoints"}
    guided = {"student_loss", "match", "temperature", "classifier"}
    sampled = {"student_k", "frame_sampler", "student"}
    teacher = phase_of(mode="teacher")
    assert not teacher & (free | guided | sampled)
    assert {"teacher", "batch_size", "epochs", "seed", "max_steps"} <= teacher
    assert phase_of(0, mode="serial") == teacher
    baseline = phase_of(mode="baseline")
    assert sampled <= baseline and not baseline & guided
    # Without --student the baseline is the teacher's model.
    assert "teacher" in baseline
    assert "teacher" not in phase_of(mode="baseline", student="MeanTanh()")
    for changes in (
        {"mode": "serial"},
        {"mode": "parallel"},
        {"mode": "serial", "student_loss": "rep"},
    ):
        found = phase_of(**changes)
        assert guided | sampled | {"teacher"} <= found
        assert found - {"epochs"} <= everything - free


def test_the_differences_are_listed(tmp_path):
    ends = {"epochs": 3}
    # Nothing began here.
    assert not manifest.check_same_settings(str(tmp_path), {"a": 1, **ends})
    path = str(tmp_path / manifest.PHASE_SETTINGS)
    manifest.write_json(path, {"a": 1, "b": "x", "gone": 2.5, **ends})
    same = {"gone": 2.5, "b": "x", "a": 1, **ends}
    assert not manifest.check_same_settings(str(tmp_path), same)
    wanted = {"a": 2, "b": "x", "new": True, **ends}
    with pytest.raises(ValueError) as error:
        manifest.check_same_settings(str(tmp_path), wanted)
    message = str(error.value)
    assert (
        "--a: was 1, is 2; --gone: was 2.5, is None; --new: was None, is True."
        in message
    )
    assert "--b" not in message and "--start_new_model" in message


def test_rejected_and_incomplete_lines_are_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 3}\n{"step": 2}\n{"st')
    manifest.keep_json_lines(str(path), lambda line: line["step"] < 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    before = path.stat().st_mtime_ns
    manifest.keep_json_lines(str(path), lambda line: True)
    assert path.stat().st_mtime_ns == before
    path.write_text('{"step": 1}\n{"step": 2}')  # Cut at the end of the line.
    manifest.keep_json_lines(str(path), lambda line: True)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    manifest.keep_json_lines(str(tmp_path / "none"), lambda line: True)


def test_files_that_are_absent_or_broken_are_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match=f"{path} does not exist"):
        manifest.read_json(str(path))
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{path} is not JSON"):
        manifest.read_json(str(path))


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"--train_dir={tmp_path} has no model_flags"):
        manifest.read_run_settings(str(tmp_path))
    (tmp_path / manifest.MODEL_FLAGS).write_text('{"mode": "serial", "frobnicate": 1}')
    with pytest.raises(ValueError, match="model_flags.json: .*frobnicate|--train_dir"):
        manifest.read_run_settings(str(tmp_path))


def test_an_entry_is_merged_and_survives_the_next_command(tmp_path):
    run = helpers.make_run(tmp_path, "data")
    record = manifest.Manifest(str(tmp_path), run)
    record.update("teacher", finished=True)
    record.update("teacher", step=3)
    again = manifest.Manifest(str(tmp_path), run)
    entry = again.phase("teacher")
    assert (entry["finished"], entry["step"]) == (True, 3)
    assert again.phase("student") == {}


def test_only_the_chief_writes_files(tmp_path):
    run = helpers.make_run(tmp_path, "data")
    record = manifest.Manifest(str(tmp_path), run, writes=False)
    record.update("teacher", finished=True)
    assert list(tmp_path.iterdir()) == []


def test_a_later_end_continues_a_phase_but_for_a_schedule_that_has_ended(tmp_path):
    folder = str(tmp_path / "run" / "teacher")
    path = f"{folder}/{manifest.PHASE_SETTINGS}"
    (tmp_path / "run" / "teacher").mkdir(parents=True)

    def check(epochs: int, steps: int = 9, schedule: str = "exponential") -> bool:
        ends = {"epochs": epochs, "max_steps": steps}
        values = {"learning_rate_schedule": schedule}
        manifest.write_json(path, {**values, "epochs": 3, "max_steps": 9})
        return manifest.check_same_settings(folder, {**values, **ends})

    assert not check(3) and not check(3, schedule="cosine")
    assert check(7) and check(3, 10) and check(3, 0)
    for epochs, steps in ((2, 9), (4, 8)):
        with pytest.raises(ValueError, match="3 epochs.*--num_epochs.*--max_steps"):
            check(epochs, steps)
    for epochs, steps in ((4, 9), (3, 0)):
        with pytest.raises(ValueError, match=f"--start_from={tmp_path}/run") as error:
            check(epochs, steps, "cosine")
        assert "--learning_rate_schedule=cosine" in str(error.value)


HARMED = [
    ("manifest.json", "[]"),
    ("manifest.json", '{"phases": 3}'),
    ("manifest.json", '{"phases": {"teacher": []}}'),
    ("manifest.json", '{"phases": {"teacher": {"results": 1}}}'),
    ("manifest.json", '{"phases": {"teacher": {"epoch_seconds": {}}}}'),
    ("manifest.json", '{"phases": {"teacher": {"data": "x"}}}'),
    ("manifest.json", "[" * 100_000),
    ("teacher/settings.json", "[]"),
    ("teacher/settings.json", "3"),
    ("teacher/settings.json", '{"epochs": "x"}'),
    ("teacher/settings.json", "{"),
]


@pytest.mark.parametrize("name, content", HARMED)
def test_a_damaged_file_of_a_run_is_one_line_that_names_it(
    serial_run, tmp_path, name, content
):
    run = helpers.change(serial_run, mode="teacher")
    train_dir = tmp_path / "run"
    shutil.copytree(serial_run.training.train_dir, train_dir)
    if name.startswith("teacher/") and content.startswith('{"'):
        stored = manifest.read_json(str(train_dir / name))
        content = json.dumps({**stored, **json.loads(content)})
    (train_dir / name).write_text(content)
    refusal = helpers.refusal(helpers.change(run, train_dir=str(train_dir)))
    assert str(train_dir / name) in refusal


@pytest.mark.parametrize("content", ["[]", "3", '{"batch_size": "8"}', '{"mode": []}'])
def test_damaged_settings_of_a_run_are_one_line(tmp_path, content):
    path = tmp_path / manifest.MODEL_FLAGS
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        manifest.read_run_settings(str(tmp_path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
