"""Time and memory with as many shards and videos as YouTube-8M has.

3,844 shards of frame-level records are made once, in a folder of --scale_dir. They have
few and small frames, but as many features, labels and ids as YouTube-8M, so programs
keep as much in memory per video. Each program is a process of its own that may open 256
files at a time. Training is stopped in the middle of its first epoch, resumed, and ends
after a quarter of the second; all other programs read all videos. Memory per video is
the difference between the peaks on all shards and on an eighth of them.
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tools.benchmarking import results, shards
from yt8m_distill import settings
from yt8m_distill.data import shards as data_shards

NUM_SHARDS, NUM_VIDEOS = 3844, 5_600_000
DATA = settings.DataSettings(
    feature_names="rgb,audio", feature_sizes="8,4", num_classes=20, max_frames=4
)
OPEN_FILES = 256
# The memory per video on a machine with 16 GB, of which 2 GB are for the rest.
BYTES_PER_VIDEO = 14 * 2**30 / NUM_VIDEOS
_DATA_FLAGS = [
    f"--{name}={getattr(DATA, name)}"
    for name in ("feature_names", "feature_sizes", "num_classes", "max_frames")
]


def _record(number: int) -> tuple[bytes, bytes]:
    """The bytes of a record before and after the eight digits of its id."""
    random = np.random.default_rng(number)
    record = shards.make_video("#" * 8, DATA, random)
    before, _, after = record.partition(b"#" * 8)
    return before, after


def write(folder: pathlib.Path, num_shards: int, num_videos: int) -> list[pathlib.Path]:
    """Makes the shards of a folder, unless they exist; all have equally many videos.

    Shard s has the videos s, s + num_shards, ...; they repeat the labels and frames of
    a few.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"shard{number:05d}.tfrecord" for number in range(num_shards)]
    done = folder / f"{num_videos}.videos"
    if not done.exists():
        parts = [_record(number) for number in range(20)]
        for number, path in enumerate(paths):
            with tf.io.TFRecordWriter(str(path)) as writer:
                for video in range(number, num_videos, num_shards):
                    before, after = parts[video % len(parts)]
                    writer.write(before + b"%08d" % video + after)
        done.touch()
    return paths


class Done(NamedTuple):
    """Wall time of a process in seconds, and its peak memory in bytes."""

    seconds: float
    memory: int


def _start(script: str, *flags: str) -> subprocess.Popen:
    path = str(results.ROOT / "yt8m_distill" / f"{script}.py")
    limited = f'ulimit -S -n {OPEN_FILES} && exec "$@"'
    return subprocess.Popen(
        ["bash", "-c", limited, script, sys.executable, path, *_DATA_FLAGS, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen, began: float, codes=(0,)) -> Done:
    output = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise RuntimeError(output[-2000:])
    done = Done(time.monotonic() - began, 1024 * usage.ru_maxrss)
    script, megabytes = process.args[3], done.memory >> 20
    print(f"{script}.py: {done.seconds:.1f} s, {megabytes} MB", file=sys.stderr)
    return done


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
        links = folder / "shards"
        links.mkdir()
        for path in paths:
            (links / path.name).hardlink_to(path)
        self.pattern = f"{links}/*.tfrecord"
        self.index = folder / "index"
        self.steps = -(-videos // batch)

    def train(self, name: str, *more: str) -> list[str]:
        """The flags of a run with a hundred log lines per epoch."""
        return [
            f"--train_dir={self.folder / name}",
            f"--train_data_pattern={self.pattern}",
            f"--index_dir={self.index}",
            f"--batch_size={self.batch}",
            f"--log_steps={max(self.steps // 100, 1)}",
            "--teacher=FrameLevelLogisticModel",
            "--student=FrameLevelLogisticModel",
            "--student_k=2",
            "--num_epochs=2",
            "--num_gpus=0",
            *more,
        ]

    def log(self, name: str) -> list[dict]:
        """The log lines of a run, which has one phase."""
        paths = (self.folder / name).glob("*/metrics.jsonl")
        lines = [line for path in paths for line in path.read_text().splitlines()]
        return [line for line in map(json.loads, lines) if line["kind"] == "training"]

    def first_line(self, name: str, *flags: str) -> tuple[Done, float]:
        """A run, and the seconds from its start to its first log line."""
        began = time.time()
        done = _call("train", *self.train(name, *flags))
        times = [line["time"] for line in self.log(name)]
        return done, min(x for x in times if x > began) - began

    def measure(self) -> dict[str, Done | float]:
        """All measurements by name."""
        found: dict[str, Done | float] = {}
        indexed = [f"--input_data_pattern={self.pattern}", f"--index_dir={self.index}"]
        found["index build"] = _call("index_records", *indexed)
        found["index bytes"] = _size(self.index)
        one_step = ["--max_steps=1", "--log_steps=1"]
        teacher = ["--mode=teacher", f"--max_steps={self.steps * 5 // 4}"]
        flags = "--mode=teacher", *one_step
        _, found["first step"] = self.first_line("first", *flags)
        self._train_half(teacher)
        found["training"], found["resume"] = self.first_line("run", *teacher)
        found["between epochs"] = self._lost()
        cache = self.folder / "cache"
        serial = ["--mode=serial", f"--teacher_checkpoint={self.folder / 'run'}"]
        serial.append(f"--teacher_cache={cache}")
        flags = self.train("fill", *serial, f"--max_steps={self.steps // 10}")
        found["teacher cache"] = _call("train", *flags)
        found["cache bytes"] = _size(cache)
        flags = *serial, *one_step
        _, found["first step, cached"] = self.first_line("cached", *flags)
        # The data flags are stored with the run.
        of_run = [f"--train_dir={self.folder / 'run'}", f"--index_dir={self.index}"]
        found["evaluation"] = _call(
            "eval", *of_run, f"--eval_data_pattern={self.pattern}", "--run_once"
        )
        csv = f"--output_file={self.folder / 'out.csv'}"
        found["inference"] = _call(
            "inference", *of_run, f"--input_data_pattern={self.pattern}", csv
        )
        return found

    def _lost(self) -> float:
        """Additional seconds between two log lines with the end of an epoch between."""
        lines = self.log("run")
        apart = {True: [], False: []}
        for before, after in zip(lines, lines[1:], strict=False):
            crossed = before["step"] <= self.steps < after["step"]
            apart[crossed].append(after["time"] - before["time"])
        return max(apart[True]) - statistics.median(apart[False])

    def _train_half(self, flags: list[str]) -> None:
        """Trains `run`, and stops it after half of its first epoch is logged."""
        began = time.monotonic()
        process = _start("train", *self.train("run", *flags))
        while process.poll() is None:
            lines = self.log("run")
            if lines and lines[-1]["step"] >= self.steps // 2:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.1)
        _finish(process, began, (0, 128 + signal.SIGTERM))

    def held(self) -> dict[str, int]:
        """Bytes of the index in memory, and of the order of the videos."""
        reading = settings.ReadingSettings(index_dir=str(self.index))
        opened = data_shards.open_shards(self.pattern, DATA, reading)
        columns = vars(opened.table).values()
        arrays = sum(x.nbytes for x in columns if isinstance(x, np.ndarray))
        ids = sum(len(x) for x in columns if isinstance(x, bytes))
        return {"index": arrays + ids, "order": opened.kept_rows(1.0).nbytes}


def _size(folder: pathlib.Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def rows(quick: bool, folder: str = "") -> list[results.Row]:
    """The table's rows; `quick`: 40 shards with 2,000 videos in total."""
    num_shards, num_videos = (40, 2000) if quick else (NUM_SHARDS, NUM_VIDEOS)
    with tempfile.TemporaryDirectory(dir=folder or None) as place:
        made = pathlib.Path(folder or place) / f"{num_shards}x{num_videos}"
        paths = write(made, num_shards, num_videos)
        few, part = len(paths) // 8, num_videos // 8
        # In batches of equal size, so that only the number of videos differs.
        batch = 1024 if part >= 20_000 else 16
        small = _Scale(pathlib.Path(place, "part"), paths[:few], part, batch)
        whole = _Scale(pathlib.Path(place, "whole"), paths, num_videos, batch)
        held = small.held
        small, whole = small.measure(), whole.measure()
        held = held()
    what = f"{num_shards:,} shards, {num_videos:,} videos of YouTube-8M's"
    of_video = "bytes per video"
    numbers = (
        ("command to first step", whole["first step"], "s"),
        ("command to first step, full teacher cache", whole["first step, cached"], "s"),
        ("lost between two epochs", whole["between epochs"], "s"),
        ("resume in the middle of an epoch", whole["resume"], "s"),
        ("index on disk", whole["index bytes"] / num_videos, of_video),
        ("index in memory", held["index"] / part, of_video),
        ("order of the videos in memory", held["order"] / part, of_video),
        ("teacher cache on disk", whole["cache bytes"] / num_videos, of_video),
    )
    table = [
        results.Row(f"scale: {name}", value, unit=unit, detail=what)
        for name, value, unit in numbers
    ]
    programs = "index build", "training", "teacher cache", "evaluation", "inference"
    for name in programs:
        grown = whole[name].memory - small[name].memory
        table.append(
            results.Row(
                f"scale: peak memory of {name}",
                grown / (num_videos - part),
                bar=BYTES_PER_VIDEO,
                at_most=True,
                unit=of_video,
                detail=f"{whole[name].memory / 2**20:.0f} MB, "
                f"{small[name].memory / 2**20:.0f} MB on an eighth; "
                f"{whole[name].seconds:.0f} s; {what}",
            )
        )
    return table
