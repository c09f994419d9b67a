"""Runs scripts on tiny data, in processes that tests can kill, and their results."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
from unittest import mock

import tensorflow as tf

from tests import script_helpers, training_helpers
from tools import make_synthetic_records
from yt8m_distill.training import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600  # After which a process is taken for hanging.
REFUSED = "cannot be written"

DATA_FLAGS = (
    "--feature_names=rgb,audio",
    "--feature_sizes=16,8",
    "--num_classes=10",
    "--max_frames=24",
)
RUN_FLAGS = (
    "--student_k=6",
    # Its graph is traced in no time, and dropout makes every step's number matter.
    "--teacher=FrameLevelLogisticModel(dropout=0.2)",
    "--student=FrameLevelLogisticModel(dropout=0.2)",
    "--student_loss=ce + rep + pred",
    "--batch_size=16",
    "--num_epochs=3",
    "--base_learning_rate=0.01",
    "--shuffle_buffer_size=32",
    "--steps_per_loop=2",
    "--log_steps=3",
    # After every loop: most of the time something is being written.
    "--save_checkpoint_minutes=0",
    "--num_gpus=0",
    "--seed=3",
    "--deterministic",
)
VIDEO_LEVEL_FLAGS = (
    "--mode=baseline",
    "--noframe_features",
    "--feature_names=mean_rgb,mean_audio",
    "--student=FrameLevelLogisticModel",
    "--student_k=1",
    "--student_loss=ce",
)


def make_data(folder: pathlib.Path) -> pathlib.Path:
    """Synthetic shards for training and validation, of both levels."""
    recipe = make_synthetic_records.Recipe(
        num_classes=10,
        max_frames=24,
        feature_sizes="16,8",
        videos_per_shard=64,
        video_level=True,
        num_train=150,
        num_validate=48,
        num_test=0,
    )
    (folder / "video_level").mkdir(parents=True)
    for split, shard, count in make_synthetic_records.plan_shards(recipe):
        make_synthetic_records.write_shard(recipe, str(folder), split, shard, count)
    return folder


def training_flags(data: pathlib.Path, train_dir: pathlib.Path, *more: str) -> list:
    """The flags of a run; a later one wins over an earlier."""
    return [
        f"--train_data_pattern={data}/train*.tfrecord",
        f"--validation_data_pattern={data}/validate*.tfrecord",
        f"--train_dir={train_dir}",
        *DATA_FLAGS,
        *RUN_FLAGS,
        *more,
    ]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a script ended: exit code (negative: a signal) and its lines."""

    script: str
    code: int
    lines: list[str]

    @property
    def last_line(self) -> str:
        return self.lines[-1] if self.lines else ""

    def assert_refused(self, *words: str, code: int = 1) -> None:
        """It ended with one line that contains these words, without a traceback."""
        assert self.code == code, self.lines[-3:]
        assert not [line for line in self.lines if "Traceback" in line]
        (line,) = [x for x in self.lines if x.startswith(f"{self.script}.py: ")]
        assert not [word for word in words if word not in line], line

    def assert_succeeded(self) -> None:
        assert self.code == 0, self.lines[-3:]


def start(script: str, *flags: str, task: str = "{}", **streams) -> subprocess.Popen:
    """A script's process on the CPU; `task` is its TF_CONFIG, by default of no job."""
    command = [sys.executable, str(ROOT / "yt8m_distill" / f"{script}.py"), *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CONFIG": task}
    streams = streams or {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **streams)


def finish(process: subprocess.Popen, script: str = "train") -> Ended:
    """Waits for a process; one that hangs is killed."""
    try:
        _, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[1] + f"\nhung for {SECONDS} s"
    lines = [line for line in said.splitlines() if line.strip()]
    return Ended(script, process.returncode, lines)


def call(script: str, *flags: str, file_size: int | None = None) -> Ended:
    """A script, run to its end in this process.

    No file can grow beyond `file_size`, as on a full disk. --deterministic, which no
    process can take back, changes nothing without a GPU.
    """
    disk = contextlib.nullcontext()
    if file_size is not None:
        disk = training_helpers.full_disk(file_size)
    config = tf.config.experimental
    with disk, mock.patch.object(config, "enable_op_determinism", lambda: None):
        done = script_helpers.call(script, *flags)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return Ended(script, done.returncode, lines)


def outputs(script: str, run, path) -> list[str]:
    """The flags of a script that reads a run and its data, and writes to a path."""
    validation = f"{run.data}/validate*.tfrecord"
    return [f"--train_dir={run.train_dir}"] + {
        "inference": [f"--input_data_pattern={validation}", f"--output_file={path}"],
        "eval": [
            f"--eval_data_pattern={validation}",
            f"--output_file={path}",
            "--run_once",
        ],
        "export_model": [f"--export_dir={path}"],
    }[script]


def assert_nothing_left(folder: pathlib.Path) -> None:
    """No file is there that a finished run has not."""
    marks = (".tmp", f"/{checkpoints.WRITING}/", "proposed.json", ".worker-")
    names = [str(p.relative_to(folder)) for p in folder.rglob("*")]
    assert not [n for n in names if any(mark in f"/{n}/" for mark in marks)]
