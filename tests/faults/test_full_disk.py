"""Full or failing disks: one line, exit code 1, no partial file.

A full disk is a limit on the size of files (every file system has that error), and,
where this process may mount one, a small file system in memory.
"""

import contextlib
import pathlib
import random
import shutil
import subprocess

import pytest

from tests import training_helpers
from tests.faults import processes

pytestmark = pytest.mark.faults
slow = pytest.mark.slow


@pytest.fixture
def stopped(whole) -> pathlib.Path:
    """The train_dir of a teacher that was stopped with two checkpoints."""
    return pathlib.Path(f"{whole.train_dir}.stopped")


@pytest.fixture
def mount(tmp_path):
    """Makes a file system in memory of so many KiB; skips where that is refused."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def make(kib: int = 8192) -> pathlib.Path:
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            subprocess.run(["mount", *options], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this process may not mount a file system")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(folder: pathlib.Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def teacher_flags(data, train_dir, *more: str) -> list[str]:
    return processes.training_flags(data, train_dir, "--mode=teacher", *more)


def assert_goes_on(ended, before: dict[str, bytes], train_dir, whole) -> None:
    """A stopped run keeps its last checkpoint and ends like an undisturbed one."""
    ended.assert_refused(processes.REFUSED)
    after = training_helpers.snapshot(train_dir)
    states = [name for name in before if "/ckpt-" in name]
    assert [name for name in states if after.get(name) != before[name]] == []
    processes.assert_nothing_left(train_dir)
    again = processes.call("train", *teacher_flags(whole.data, train_dir))
    again.assert_succeeded()
    training_helpers.assert_same_end(whole.end, training_helpers.end_of(train_dir))


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=slow) for s in (1, 2, 3))])
def test_training_that_cannot_write_continues_later(seed, whole, stopped, tmp_path):
    train_dir = shutil.copytree(stopped, tmp_path / "run")
    largest = max(p.stat().st_size for p in stopped.glob("*/*/ckpt-*.data*"))
    size = random.Random(seed).randrange(1, largest)
    before = training_helpers.snapshot(train_dir)
    flags = teacher_flags(whole.data, train_dir)
    ended = processes.call("train", *flags, file_size=size)
    assert_goes_on(ended, before, train_dir, whole)


@slow
@pytest.mark.parametrize("seed", range(4))
def test_training_that_fills_the_disk_continues_later(seed, whole, stopped, mount):
    folder = mount()
    train_dir = shutil.copytree(stopped, folder / "run")
    before = training_helpers.snapshot(train_dir)
    state = sum(p.stat().st_size for p in stopped.glob("*/*/ckpt-2.*"))
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", 0) as file:
        while True:
            file.write(bytes(1 << 12))
    with filler.open("r+b") as file:
        free = random.Random(seed).randrange(1, 2 * state)
        file.truncate(max(filler.stat().st_size - free, 0))
    ended = processes.call("train", *teacher_flags(whole.data, train_dir))
    filler.unlink()
    assert_goes_on(ended, before, train_dir, whole)


@slow
def test_a_teacher_cache_on_a_disk_that_is_too_small_is_refused(whole, tmp_path, mount):
    folder = mount(8)
    more = ("--mode=serial", f"--teacher_checkpoint={whole.train_dir}")
    flags = teacher_flags(whole.data, tmp_path / "run", *more)
    ended = processes.call("train", *flags, f"--teacher_cache={folder}")
    ended.assert_refused("--teacher_cache")
    assert not [*folder.glob("*/*.ids.npz"), *folder.glob("*/*.tmp")]


@pytest.mark.parametrize("script", ["inference", pytest.param("eval", marks=slow)])
def test_an_old_csv_is_kept_if_a_new_one_cannot_be_written(script, whole, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("old")
    # eval.py opens metrics.jsonl before, in which there is room.
    flags = processes.outputs(script, whole, output)
    ended = processes.call(script, *flags, file_size=1000)
    ended.assert_refused(f"--output_file={output}", processes.REFUSED)
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


@slow
@pytest.mark.parametrize("path", ["{}/none/out.csv", "{}", "/dev/full"])
def test_a_csv_that_cannot_be_is_refused(path, whole, tmp_path):
    path = path.format(tmp_path)
    ended = processes.call("inference", *processes.outputs("inference", whole, path))
    ended.assert_refused(f"--output_file={path}", processes.REFUSED)
    assert not list(tmp_path.iterdir())


@slow
def test_an_old_model_is_kept_if_a_new_one_cannot_be_written(whole, tmp_path):
    flags = processes.outputs("export_model", whole, tmp_path / "model")
    processes.call("export_model", *flags).assert_succeeded()
    before = training_helpers.snapshot(tmp_path)
    for size in (10, max(map(len, before.values())) // 2):
        ended = processes.call("export_model", *flags, file_size=size)
        ended.assert_refused("--export_dir=", processes.REFUSED)
        assert training_helpers.snapshot(tmp_path) == before


@slow
def test_a_model_on_or_below_a_file_is_refused(whole, tmp_path):
    path = tmp_path / "mine"
    path.write_text("mine")
    for folder in (path, path / "model"):
        ended = processes.call(
            "export_model", *processes.outputs("export_model", whole, folder)
        )
        ended.assert_refused(f"--export_dir={folder}")
    assert path.read_text() == "mine"


@slow
def test_an_index_that_cannot_be_written_is_refused_and_leaves_nothing(data, tmp_path):
    flags = [f"--input_data_pattern={data}/train*.tfrecord", *processes.DATA_FLAGS]
    flags.append(f"--index_dir={tmp_path}")
    ended = processes.call("index_records", *flags, file_size=100)
    assert ended.code == 1
    assert not [line for line in ended.lines if "Traceback" in line]
    assert not list(tmp_path.iterdir())


@slow
@pytest.mark.parametrize("script", ["train", "inference", "eval", "export_model"])
def test_a_read_only_file_system_is_refused(script, whole, mount):
    folder = mount()
    run = whole._replace(train_dir=shutil.copytree(whole.train_dir, folder / "run"))
    make_read_only(folder)
    if script == "train":
        flags = teacher_flags(run.data, folder / "new")
    else:
        flags = processes.outputs(script, run, folder / "out")
    processes.call(script, *flags).assert_refused(processes.REFUSED)
