"""Tiny runs as processes of their own, and what is compared of them."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from tools import make_synthetic_records
from yt8m_distill.training import checkpoints, digests, manifest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600  # After which a process is taken for hanging.

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

# What training on the records of `make_data(video_level=True)` needs beside these.
VIDEO_LEVEL_FLAGS = (
    "--mode=baseline",
    "--noframe_features",
    "--feature_names=mean_rgb,mean_audio",
    "--student=FrameLevelLogisticModel",
    "--student_k=1",
    "--student_loss=ce",
    "--frame_sampler=uniform",
)
TIMES = ("videos_per_second", "time", "seconds")


def make_data(folder: pathlib.Path, video_level: bool = False) -> pathlib.Path:
    """Synthetic shards, some for training and one for validation; where they are."""
    recipe = make_synthetic_records.Recipe(
        seed=0,
        num_classes=10,
        max_frames=24,
        feature_names="rgb,audio",
        feature_sizes="16,8",
        video_id_key="id",
        signal=0.55,
        shot_length=10.0,
        empty_shots=0.5,
        videos_per_shard=64,
        video_level=video_level,
        num_train=150,
        num_validate=48,
        num_test=0,
    )
    shards = folder / "video_level" if video_level else folder
    shards.mkdir(parents=True)
    for split, shard, count in make_synthetic_records.plan_shards(recipe):
        make_synthetic_records.write_shard(recipe, str(folder), split, shard, count)
    return shards


def read_shard(shard: pathlib.Path) -> list[bytes]:
    """The serialized records of a shard."""
    return [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]


def write_shard(shard: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes serialized records as a shard."""
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in records:
            writer.write(record)


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
    """How a script's process ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        said: the lines that it wrote to standard error, without progress bars.
        printed: what it wrote to standard output.
    """

    code: int
    said: list[str]
    printed: str = ""

    @property
    def last_line(self) -> str:
        """The last of them, or nothing."""
        return self.said[-1] if self.said else ""

    def problem(self, script: str, code: int, *words: str) -> str | None:
        """What is wrong with an end that should be one line and this exit code."""
        if self.code != code:
            return f"exit code {self.code}, not {code}: {self.last_line}"
        if any("Traceback" in line for line in self.said):
            return f"a traceback: {self.last_line}"
        lines = [line for line in self.said if line.startswith(f"{script}.py: ")]
        if len(lines) != 1:
            return f"{len(lines)} lines of {script}.py: {self.last_line}"
        missing = [word for word in words if word not in lines[0]]
        if missing:
            return f"no {missing[0]!r} in: {lines[0]}"
        return None


def start(script: str, *flags: str, file_size: int | None = None) -> subprocess.Popen:
    """A script's process.

    Args:
        script: `train`, `eval`, `inference`, `export_model` or `index_records`.
        flags: its command line.
        file_size: bytes beyond which no file can grow, as on a full disk.
    """
    command = [sys.executable, str(ROOT / "yt8m_distill" / f"{script}.py"), *flags]
    if file_size is not None:
        # Python ignores the signal of this limit, so writing fails with EFBIG.
        limit = (
            "import os, resource, sys; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, [int(sys.argv[1])] * 2); "
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        command = [sys.executable, "-c", limit, str(file_size), *command]
    hidden = ("TF_CONFIG", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.Popen(
        command,
        env={**environment, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Ended:
    """Waits for a process; one that hangs is killed."""
    try:
        printed, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, said = process.communicate()
        said += f"\nhung for {SECONDS} s"
    lines = [line for line in said.splitlines() if line.strip()]
    return Ended(process.returncode, lines, printed)


def call(script: str, *flags: str, file_size: int | None = None) -> Ended:
    """A script's process, ended."""
    return finish(start(script, *flags, file_size=file_size))


def succeed(script: str, *flags: str) -> float:
    """Seconds of a script that must end well."""
    began = time.monotonic()
    ended = call(script, *flags)
    if ended.code:
        raise RuntimeError(f"{script}.py failed: {ended.said}")
    return time.monotonic() - began


def stop_early(data: pathlib.Path, train_dir: pathlib.Path, *more: str) -> None:
    """Leaves a run that was asked to stop once it had a checkpoint."""
    process = start("train", *training_flags(data, train_dir, *more))
    while process.poll() is None and not list(train_dir.glob("*/*/ckpt-2.sha*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    if ended.code != 128 + signal.SIGTERM:
        raise RuntimeError(f"train.py was to stop: {ended.said}")


def numbers_of(prefix: str) -> dict[str, np.ndarray]:
    """Everything in a checkpoint but texts, name → value."""
    reader = tf.train.load_checkpoint(prefix)
    values = {
        name: np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
    }
    return {name: v for name, v in values.items() if v.dtype.kind in "fiub"}


def without(value, names: Sequence[str] = TIMES):
    """A result without some entries: those that depend on the machine's speed."""
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def end_of(train_dir: pathlib.Path) -> dict[str, object]:
    """All that two runs must have in common: names → numbers and results."""
    content = manifest.read_json(str(train_dir / manifest.MANIFEST))
    found: dict[str, object] = {}
    for phase, entry in content["phases"].items():
        found[f"{phase} finished"] = entry["finished"]
        found[f"{phase} results"] = without(entry["results"])
        folder = train_dir / phase
        newest = tf.train.latest_checkpoint(str(folder / checkpoints.CHECKPOINTS))
        prefixes = {"state": newest}
        for role in os.listdir(folder / checkpoints.BEST):
            best = checkpoints.read_best(str(train_dir), phase, role)
            prefixes[f"best {role}"] = best.prefix
            found[f"{phase} best {role} step"] = best.step
        for kind, prefix in prefixes.items():
            found[f"{phase} {kind} problem"] = digests.problem(prefix)
            for name, value in numbers_of(prefix).items():
                found[f"{phase} {kind} {name}"] = value
        found[f"{phase} validations"] = validations(folder / "metrics.jsonl")
    return found


def validations(path: pathlib.Path) -> list[dict]:
    """The lines of the validations in metrics.jsonl; each must be there once."""
    lines = read_json_lines(path)
    return [without(line) for line in lines if line["kind"] == "validation"]


def read_json_lines(path: pathlib.Path) -> list[dict]:
    """The objects of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what is not the same, bit for bit."""
    names = sorted({*one, *other})
    return [
        n for n in names if n not in one or n not in other or _differ(one, other, n)
    ]


def _differ(one: dict, other: dict, name: str) -> bool:
    a, b = one[name], other[name]
    if isinstance(a, np.ndarray):
        return a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes()
    return a != b


def leftovers(folder: pathlib.Path) -> list[str]:
    """Files that no finished run has."""
    marks = (".tmp", f"/{checkpoints.WRITING}/", "proposed.json", ".worker-")
    names = [str(p.relative_to(folder)) for p in folder.rglob("*")]
    return sorted(n for n in names if any(mark in f"/{n}/" for mark in marks))


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def copy(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """A copy of a folder; returns it."""
    shutil.copytree(folder, to)
    return to
