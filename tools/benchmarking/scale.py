"""The number of shards and videos of YouTube-8M: time to start, memory, what is lost.

3,844 shards of small frame-level records are made once, in a folder of --scale_dir.
Every program is a process of its own that may open 256 files at once. Bytes per video
are the difference between the peak memory on all shards and on an eighth of them.
"""

import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tools.benchmarking import results

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_SHARDS, NUM_VIDEOS = 3844, 5_600_000
FRAMES, SIZE, CLASSES = 4, 8, 10
OPEN_FILES = 256
_DATA = [
    "--feature_names=rgb",
    f"--feature_sizes={SIZE}",
    f"--num_classes={CLASSES}",
    f"--max_frames={FRAMES}",
]


def _record(label: int) -> tuple[bytes, bytes]:
    """What is before and after the eight digits of a record's id."""
    example = tf.train.SequenceExample()
    example.context.feature["id"].bytes_list.value.append(b"########")
    example.context.feature["labels"].int64_list.value.append(label)
    frames = example.feature_lists.feature_list["rgb"].feature
    for row in np.random.default_rng(label).integers(0, 256, (FRAMES, SIZE), np.uint8):
        frames.add().bytes_list.value.append(row.tobytes())
    before, _, after = example.SerializeToString(deterministic=True).partition(b"#" * 8)
    return before, after


def write(folder: pathlib.Path, num_shards: int, num_videos: int) -> list[pathlib.Path]:
    """The shards of a folder, made unless they are there; equally many videos in each.

    Shard s has the videos s, s + num_shards, ...; video v has the label v % 10.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"shard{number:05d}.tfrecord" for number in range(num_shards)]
    done = folder / f"{num_videos}.videos"
    if not done.exists():
        parts = [_record(label) for label in range(CLASSES)]
        for number, path in enumerate(paths):
            with tf.io.TFRecordWriter(str(path)) as writer:
                for video in range(number, num_videos, num_shards):
                    before, after = parts[video % CLASSES]
                    writer.write(before + b"%08d" % video + after)
        done.touch()
    return paths


class Done(NamedTuple):
    """What a process cost: wall seconds, and its peak memory in bytes."""

    seconds: float
    memory: int


def _start(script: str, *flags: str) -> subprocess.Popen:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({OPEN_FILES}, {hard})); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"  # noqa: E501
    path = str(ROOT / "yt8m_distill" / f"{script}.py")
    return subprocess.Popen(
        [sys.executable, "-c", limit, path, *_DATA, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen, began: float, codes=(0,)) -> Done:
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise RuntimeError(said[-2000:])
    return Done(time.monotonic() - began, 1024 * usage.ru_maxrss)


def _call(script: str, *flags: str) -> Done:
    began = time.monotonic()
    return _finish(_start(script, *flags), began)


class _Scale:
    """The measurements on one set of shards, in a folder of its own."""

    def __init__(
        self, folder: pathlib.Path, paths: list[pathlib.Path], videos: int, batch: int
    ):
        self.folder, self.batch = folder, batch
        folder.mkdir()
        shards = folder / "shards"
        shards.mkdir()
        for path in paths:
            (shards / path.name).hardlink_to(path)
        self.pattern = f"{shards}/*.tfrecord"
        self.index = folder / "index"
        self.steps = -(-videos // batch)

    def train(self, name: str, *more: str) -> list[str]:
        """The flags of a run of two epochs that logs ten times in each."""
        return [
            f"--train_dir={self.folder / name}",
            f"--train_data_pattern={self.pattern}",
            f"--index_dir={self.index}",
            f"--batch_size={self.batch}",
            f"--log_steps={max(self.steps // 10, 1)}",
            "--teacher=FrameLevelLogisticModel",
            "--student=FrameLevelLogisticModel",
            "--student_k=2",
            "--num_epochs=2",
            "--num_gpus=0",
            *more,
        ]

    def log(self, name: str, phase: str) -> list[dict]:
        path = self.folder / name / phase / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if line["kind"] == "training"]

    def measure(self) -> dict[str, Done | float]:
        """Everything, by name."""
        found: dict[str, Done | float] = {}
        indexed = [f"--input_data_pattern={self.pattern}", f"--index_dir={self.index}"]
        found["index"] = _call("index_records", *indexed)
        found["index bytes"] = sum(p.stat().st_size for p in self.index.iterdir())
        first = self.train("first", "--mode=teacher", "--max_steps=1", "--log_steps=1")
        began = time.time()
        found["start"] = _call("train", *first)
        found["first step"] = self.log("first", "teacher")[0]["time"] - began
        found["training"] = _call("train", *self.train("run", "--mode=teacher"))
        found["between epochs"] = self._lost("run", "teacher")
        found["resume"] = self._resume()
        serial = ["--mode=serial", f"--teacher_checkpoint={self.folder / 'run'}"]
        cached = [*serial, f"--teacher_cache={self.folder / 'cache'}"]
        found["teacher cache"] = _call("train", *self.train("cached", *cached))
        csv = f"--output_file={self.folder / 'out.csv'}"
        # The run knows what its records hold.
        of_run = [f"--train_dir={self.folder / 'run'}", f"--index_dir={self.index}"]
        found["evaluation"] = _call(
            "eval", *of_run, f"--eval_data_pattern={self.pattern}", "--run_once"
        )
        found["inference"] = _call(
            "inference", *of_run, f"--input_data_pattern={self.pattern}", csv
        )
        return found

    def _lost(self, name: str, phase: str) -> float:
        """Seconds between two log lines with an epoch's end, beyond the others'."""
        lines = self.log(name, phase)
        apart = {True: [], False: []}
        for before, after in zip(lines, lines[1:], strict=False):
            crossed = before["step"] <= self.steps < after["step"]
            apart[crossed].append(after["time"] - before["time"])
        return max(apart[True]) - statistics.median(apart[False])

    def _resume(self) -> float:
        """Seconds from the command to the first line of a run stopped in its middle."""
        flags = self.train("stopped", "--mode=teacher")
        began = time.monotonic()
        process = _start("train", *flags)
        while len(self.log("stopped", "teacher")) < 5 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _finish(process, began, (0, 128 + signal.SIGTERM))
        before, began = len(self.log("stopped", "teacher")), time.monotonic()
        process = _start("train", *flags)
        while len(self.log("stopped", "teacher")) <= before and process.poll() is None:
            time.sleep(0.05)
        seconds = time.monotonic() - began
        process.kill()
        process.communicate()
        return seconds


def rows(
    quick: bool, folder: str = "", num_videos: int = NUM_VIDEOS
) -> list[results.Row]:
    """The table's rows; `quick`: 40 shards of 2,000 videos in all."""
    num_shards, num_videos = (40, 2000) if quick else (NUM_SHARDS, num_videos)
    with tempfile.TemporaryDirectory(dir=folder or None) as place:
        made = pathlib.Path(folder or place) / f"{num_shards}x{num_videos}"
        paths = write(made, num_shards, num_videos)
        few, part = len(paths) // 8, num_videos // 8
        # In equal batches: what differs is the number of videos.
        batch = 1024 if part >= 20_000 else 16
        small = _Scale(pathlib.Path(place, "part"), paths[:few], part, batch)
        whole = _Scale(pathlib.Path(place, "whole"), paths, num_videos, batch)
        small, whole = small.measure(), whole.measure()
    scaled = "" if num_videos == NUM_VIDEOS else f"; 1/{NUM_VIDEOS / num_videos:.3g}"
    what = f"{num_shards} shards, {num_videos:,} videos{scaled} of YouTube-8M's"
    seconds = {
        "command to first step": (whole["first step"], "s"),
        "index build": (num_videos / whole["index"].seconds, "videos/s"),
        "index size": (whole["index bytes"] / num_videos, "bytes per video"),
        "lost between two epochs": (whole["between epochs"], "s"),
        "resume in the middle of an epoch": (whole["resume"], "s"),
    }
    table = [
        results.Row(f"scale: {name}", value, unit=unit, detail=what)
        for name, (value, unit) in seconds.items()
    ]
    for name in ("training", "teacher cache", "evaluation", "inference"):
        grown = whole[name].memory - small[name].memory
        table.append(
            results.Row(
                f"scale: memory of {name}",
                grown / (num_videos - part),
                bar=None if quick else 200,
                at_most=True,
                unit="bytes per video",
                detail=f"peak {whole[name].memory / 2**20:.0f} MB, "
                f"{small[name].memory / 2**20:.0f} MB on an eighth; {what}",
            )
        )
    return table
