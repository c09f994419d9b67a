"""What --start_new_model removes, and what it leaves alone."""

import logging
import os
import shutil

import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.training import manifest, run_files


def copy_run(run, folder) -> str:
    """A finished run's folder, to be spoiled."""
    shutil.copytree(run.training.train_dir, folder)
    return str(folder)


def assert_refused(train_dir, *named: str) -> None:
    """It is refused by name, nothing is removed, and nothing says it were."""
    before = helpers.snapshot(train_dir)
    with pytest.raises(ValueError) as error:
        run_files.remove_run(str(train_dir))
    message = str(error.value)
    assert message.startswith(f"--start_new_model: --train_dir={train_dir} holds what")
    assert message.endswith(f": {', '.join(named)}. Nothing was removed.")
    assert "\n" not in message
    assert helpers.snapshot(train_dir) == before


@pytest.mark.parametrize("name", ["serial_run", "parallel_run"])
def test_all_files_of_a_run_are_listed_and_removed(name, request, tmp_path, caplog):
    train_dir = copy_run(request.getfixturevalue(name), tmp_path / "run")
    written = {os.path.join(train_dir, path) for path in helpers.snapshot(train_dir)}
    with caplog.at_level(logging.INFO, logger=run_files.__name__):
        run_files.remove_run(train_dir)
    assert os.listdir(train_dir) == []
    said = [record.getMessage() for record in caplog.records]
    assert len(written) > 10
    assert sorted(said) == sorted(f"--start_new_model removes {p}." for p in written)


def test_what_a_killed_run_leaves_is_the_runs_too(tmp_path):
    leftovers = [
        "model_flags.json",
        "manifest.json.tmp-4711",
        "eval/metrics.jsonl",
        "eval/events.out.tfevents.1700000000.host.4711.0.v2",
        "eval/student/events.out.tfevents.1700000000.host.4711.0.v2",
        "export/student/saved_model.pb",
        "export/student/variables/variables.data-00000-of-00001",
        "export/teacher.tmp-4711/variables/variables.index",
        "teacher/settings.json.tmp-4711",
        "teacher/best/teacher/best.json.tmp-4711",
        "teacher/best/teacher/network-12.index",
        "teacher/best/teacher/network-14_temp/part-00000-of-00001.index",
        "teacher/checkpoints/ckpt-12.data-00000-of-00001",
        "teacher/checkpoints/ckpt-12.data-00000-of-00001.tempstate1234",
        "teacher/checkpoints/ckpt-14_temp/part-00000-of-00001.data-00000-of-00001",
        "teacher/checkpoints/checkpoint.tmp0123abc",
        "teacher/checkpoints.worker-1/ckpt-12.index",
    ]
    for name in leftovers:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run_files.remove_run(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_absent_or_an_empty_folder_is_nothing_to_remove(tmp_path):
    run_files.remove_run(str(tmp_path / "absent"))
    run_files.remove_run(str(tmp_path))
    assert tmp_path.is_dir()


@pytest.mark.parametrize(
    "foreign",
    [
        "notes.txt",
        "teacher/notes.txt",
        "teacher/checkpoints/model.h5",
        "teacher/best/teacher/network-12.txt",
        "teacher/best/teacher/deep/file",
        "eval/plot.png",
        "export/student/assets.extra/labels.txt",
        "export/mine/saved_model.pb",
        "metrics.jsonl",
        "student/manifest.json",
        "saved_model/saved_model.pb",
    ],
)
def test_a_foreign_file_is_named_wherever_it_stands(serial_run, tmp_path, foreign):
    train_dir = copy_run(serial_run, tmp_path / "run")
    path = os.path.join(train_dir, foreign)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("years of work")
    # Of a foreign folder the folder.
    named = {
        "teacher/best/teacher/deep/file": "teacher/best/teacher/deep",
        "export/student/assets.extra/labels.txt": "export/student/assets.extra",
        "export/mine/saved_model.pb": "export/mine",
        "saved_model/saved_model.pb": "saved_model",
    }
    assert_refused(train_dir, named.get(foreign, foreign))


def test_a_foreign_folder_is_refused_though_it_is_empty(serial_run, tmp_path):
    train_dir = copy_run(serial_run, tmp_path / "run")
    os.mkdir(os.path.join(train_dir, "plans"))
    assert_refused(train_dir, "plans")


def test_without_a_runs_settings_nothing_is_the_runs(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "metrics.jsonl").write_text("x")
    assert_refused(tmp_path, "teacher", "teacher/metrics.jsonl")


@pytest.mark.parametrize("link", ["teacher", "eval", "teacher/best", "manifest.json"])
def test_a_symbolic_link_is_refused_and_not_followed(serial_run, tmp_path, link):
    train_dir = copy_run(serial_run, tmp_path / "run")
    elsewhere = str(tmp_path / "elsewhere")
    place = os.path.join(train_dir, link)
    if os.path.exists(place):
        os.rename(place, elsewhere)
    else:
        os.mkdir(elsewhere)
    os.symlink(elsewhere, place)
    assert_refused(train_dir, f"{link} (a symbolic link)")
    assert os.path.islink(place) and os.path.exists(elsewhere)


def test_a_link_to_nowhere_is_refused_too(serial_run, tmp_path):
    train_dir = copy_run(serial_run, tmp_path / "run")
    os.symlink(str(tmp_path / "gone"), os.path.join(train_dir, "export"))
    assert_refused(train_dir, "export (a symbolic link)")


def test_a_train_dir_that_is_a_link_itself_stays_one(serial_run, tmp_path):
    target = copy_run(serial_run, tmp_path / "disk")
    link = tmp_path / "run"
    link.symlink_to(target)
    run_files.remove_run(str(link))
    assert link.is_symlink() and os.listdir(target) == []


def test_many_foreign_files_are_counted(serial_run, tmp_path):
    train_dir = copy_run(serial_run, tmp_path / "run")
    for number in range(13):
        with open(os.path.join(train_dir, f"x{number:02d}"), "w"):
            pass
    named = [f"x{number:02d}" for number in range(10)]
    assert_refused(train_dir, *named[:-1], f"{named[-1]} and 3 more")


def test_what_appears_during_the_removal_stays(serial_run, tmp_path, monkeypatch):
    train_dir = copy_run(serial_run, tmp_path / "run")
    late = os.path.join(train_dir, "teacher", "late.txt")
    remove = tf.io.gfile.remove

    def remove_and_add(path):
        remove(path)
        with open(late, "w") as file:
            file.write("mine")

    monkeypatch.setattr(tf.io.gfile, "remove", remove_and_add)
    with pytest.raises(OSError):
        run_files.remove_run(train_dir)
    assert os.path.exists(late)


def test_a_removal_that_was_cut_short_can_be_repeated(
    serial_run, tmp_path, monkeypatch
):
    train_dir = copy_run(serial_run, tmp_path / "run")
    remove, removed = tf.io.gfile.remove, []

    def remove_three(path):
        if len(removed) == 3:
            raise helpers.Stop
        removed.append(path)
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "remove", remove_three)
        with pytest.raises(helpers.Stop):
            run_files.remove_run(train_dir)
    assert os.path.exists(os.path.join(train_dir, manifest.MODEL_FLAGS))
    run_files.remove_run(train_dir)
    assert os.listdir(train_dir) == []
