"""Disks that are full or refuse: one line, exit code 1, and nothing half-written.

A full disk is a limit on the size of files (every file system has that error in
common), and, where this process may mount one, a small file system in memory.
"""

import contextlib
import dataclasses
import pathlib
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import tqdm

from tools.torturing import results, runs

REFUSED = "cannot be written"


@contextlib.contextmanager
def mounted(folder: pathlib.Path, size: int) -> Iterator[bool]:
    """A file system in memory of that many KiB; False where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    try:
        allowed = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        allowed = False
    try:
        yield allowed
    finally:
        if allowed:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(folder: pathlib.Path) -> None:
    """Mounts a file system of `mounted` anew; it binds the superuser too."""
    options = ["mount", "-o", "remount,ro", str(folder)]
    subprocess.run(options, check=True)


class Disk:
    """The cases, over two runs: one that is finished and one that was stopped.

    Args:
        place: folder for everything.
        quick: one size a case.
        seed: of the sizes.
    """

    def __init__(self, place: pathlib.Path, quick: bool, seed: int):
        self.place, self.quick = place, quick
        self.rng = random.Random(f"{seed} disk")
        self.count = 0
        self.data = place / "data"
        runs.make_data(self.data)
        self.validation = f"{self.data}/validate*.tfrecord"
        self.whole = place / "whole"
        runs.succeed("train", *self.flags(self.whole))
        self.expected = runs.end_of(self.whole)
        self.stopped = place / "stopped"
        runs.stop_early(self.data, self.stopped, "--mode=teacher")

    def flags(self, train_dir, *more: str) -> list[str]:
        """Of the training of a teacher."""
        return runs.training_flags(self.data, train_dir, "--mode=teacher", *more)

    def new(self) -> pathlib.Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.place / f"case {self.count}"

    def sizes(self, largest: int) -> list[int]:
        """Random numbers of bytes below the largest."""
        count = 1 if self.quick else 4
        return [self.rng.randrange(1, largest) for _ in range(count)]

    # ------------------------------------------------------------- training

    def _went_on(self, train_dir, before, ended) -> str | None:
        """What is lost of a run that met a full disk and then goes on without."""
        problem = ended.problem("train", 1, REFUSED)
        if problem:
            return problem
        lost = [
            name
            for name, content in before.items()
            if "/ckpt-" in name
            and not (train_dir / name).exists()
            or (train_dir / name).exists()
            and "/ckpt-" in name
            and (train_dir / name).read_bytes() != content
        ]
        if lost:
            return f"{lost[0]} of the last checkpoint is not as it was"
        left = runs.leftovers(train_dir)
        if left:
            return f"it left {left[0]}"
        again = runs.call("train", *self.flags(train_dir))
        if again.code:
            return f"it did not go on: {again.last_line}"
        different = runs.differences(self.expected, runs.end_of(train_dir))
        return f"it ended with another {different[0]}" if different else None

    def training_hits_a_limit(self) -> Iterator[str | None]:
        """train.py goes on from a checkpoint, and no file can grow beyond a size"""
        state = max(p.stat().st_size for p in self.stopped.glob("*/*/ckpt-*.data*"))
        for size in self.sizes(state):
            train_dir = runs.copy(self.stopped, self.new())
            before = runs.files_of(train_dir)
            ended = runs.call("train", *self.flags(train_dir), file_size=size)
            problem = self._went_on(train_dir, before, ended)
            yield problem and f"{size} bytes: {problem}"

    def training_fills_the_disk(self) -> Iterator[str | None]:
        """train.py goes on from a checkpoint, on a file system that is full soon"""
        state = sum(p.stat().st_size for p in self.stopped.glob("*/*/ckpt-2.*"))
        for free in self.sizes(2 * state):
            folder = self.new()
            with mounted(folder, 8192) as allowed:
                if not allowed:
                    return
                train_dir = runs.copy(self.stopped, folder / "run")
                before = runs.files_of(train_dir)
                filler = folder / "filler"
                with contextlib.suppress(OSError), filler.open("wb", 0) as file:
                    while True:
                        file.write(bytes(1 << 12))
                kept = max(filler.stat().st_size - free, 0)
                with filler.open("r+b") as file:
                    file.truncate(kept)
                ended = runs.call("train", *self.flags(train_dir))
                filler.unlink()
                problem = self._went_on(train_dir, before, ended)
                yield problem and f"{free} bytes free: {problem}"

    def training_where_it_cannot_be(self) -> Iterator[str | None]:
        """train.py with --train_dir on a file, and below one"""
        path = self.new()
        path.write_text("mine")
        for train_dir in (path, path / "run"):
            ended = runs.call("train", *self.flags(train_dir))
            yield ended.problem("train", 1, f"--train_dir={train_dir} {REFUSED}")
        yield None if path.read_text() == "mine" else "the file was changed"

    def training_read_only(self) -> Iterator[str | None]:
        """train.py with --train_dir new, and with a run, on a read-only file system"""
        folder = self.new()
        with mounted(folder, 8192) as allowed:
            if not allowed:
                return
            runs.copy(self.stopped, folder / "run")
            make_read_only(folder)
            for name in ("run", "new"):
                ended = runs.call("train", *self.flags(folder / name))
                yield ended.problem("train", 1, REFUSED, "Read-only file system")

    def filling_a_cache(self) -> Iterator[str | None]:
        """train.py fills a teacher cache on a file system that is too small"""
        for size in (8,) if self.quick else (4, 8, 12):
            folder, train_dir = self.new(), self.new()
            flags = [
                *self.flags(train_dir, "--mode=serial", f"--teacher_cache={folder}"),
                f"--teacher_checkpoint={self.whole}",
            ]
            with mounted(folder, size) as allowed:
                if not allowed:
                    return
                ended = runs.call("train", *flags)
                problem = ended.problem("train", 1, "--teacher_cache")
                parts = list(folder.glob("*/*.ids.npz")) + list(folder.glob("*/*.tmp"))
                if not problem and parts:
                    problem = f"it left {parts[0].name}"
                yield problem and f"{size} KiB: {problem}"

    # ------------------------------------------------------ everything after

    def predictions_hit_a_limit(self) -> Iterator[str | None]:
        """inference.py and eval.py write a CSV over an old one, and no file can grow"""
        for script in ("inference", "eval"):
            folder = self.new()
            folder.mkdir()
            output = folder / "out.csv"
            output.write_text("old")
            pattern = "input" if script == "inference" else "eval"
            flags = [
                f"--train_dir={self.whole}",
                f"--{pattern}_data_pattern={self.validation}",
                f"--output_file={output}",
                *(["--run_once"] if script == "eval" else []),
            ]
            # Above metrics.jsonl, which eval.py opens before.
            ended = runs.call(script, *flags, file_size=self.rng.randrange(30, 2000))
            yield self._old_stands(
                ended.problem(script, 1, f"--output_file={output} {REFUSED}"), output
            )

    @staticmethod
    def _old_stands(problem, output: pathlib.Path) -> str | None:
        if problem:
            return problem
        if output.read_text() != "old" or len(list(output.parent.iterdir())) != 1:
            return f"beside the old file: {sorted(output.parent.iterdir())}"
        return None

    def predictions_where_they_cannot_be(self) -> Iterator[str | None]:
        """inference.py with --output_file in no folder, on one, and on /dev/full"""
        folder = self.new()
        folder.mkdir()
        for path in (folder / "none" / "out.csv", folder, pathlib.Path("/dev/full")):
            ended = runs.call(
                "inference",
                f"--train_dir={self.whole}",
                f"--input_data_pattern={self.validation}",
                f"--output_file={path}",
            )
            problem = ended.problem("inference", 1, f"--output_file={path} {REFUSED}")
            left = [p.name for p in folder.iterdir()]
            yield problem or (f"it left {left[0]}" if left else None)

    def reading_only(self) -> Iterator[str | None]:
        """eval.py, inference.py, export_model.py where nothing can be written"""
        folder = self.new()
        with mounted(folder, 8192) as allowed:
            if not allowed:
                return
            run = runs.copy(self.whole, folder / "run")
            make_read_only(folder)
            evaluation = [f"--eval_data_pattern={self.validation}", "--run_once"]
            ended = runs.call("eval", f"--train_dir={run}", *evaluation)
            yield ended.problem("eval", 1, REFUSED, "Read-only file system")
            ended = runs.call(
                "inference",
                f"--train_dir={run}",
                f"--input_data_pattern={self.validation}",
                f"--output_file={folder / 'out.csv'}",
            )
            yield ended.problem("inference", 1, f"--output_file={folder}", REFUSED)
            ended = runs.call("export_model", f"--train_dir={run}")
            yield ended.problem("export_model", 1, "--export_dir=", REFUSED)

    def export_hits_a_limit(self) -> Iterator[str | None]:
        """export_model.py over an old SavedModel, and no file can grow"""
        folder = self.new() / "model"
        flags = [f"--train_dir={self.whole}", f"--export_dir={folder}"]
        runs.succeed("export_model", *flags)
        before = runs.files_of(folder.parent)
        for size in self.sizes(max(map(len, before.values()))):
            ended = runs.call("export_model", *flags, file_size=size)
            problem = ended.problem("export_model", 1, "--export_dir=", REFUSED)
            if not problem and runs.files_of(folder.parent) != before:
                problem = "the old model is not as it was, or something is beside it"
            yield problem and f"{size} bytes: {problem}"

    def export_where_it_cannot_be(self) -> Iterator[str | None]:
        """export_model.py with --export_dir on a file, and below one"""
        path = self.new()
        path.write_text("mine")
        for folder in (path, path / "model"):
            flags = [f"--train_dir={self.whole}", f"--export_dir={folder}"]
            ended = runs.call("export_model", *flags)
            yield ended.problem("export_model", 1, f"--export_dir={folder}")
        yield None if path.read_text() == "mine" else "the file was changed"

    def index_hits_a_limit(self) -> Iterator[str | None]:
        """yt8m_distill/index_records.py, and no file can grow"""
        folder = self.new()
        folder.mkdir()
        flags = [
            f"--input_data_pattern={self.data}/train*.tfrecord",
            f"--index_dir={folder}",
            "--feature_names=rgb,audio",
            "--feature_sizes=16,8",
        ]
        ended = runs.call("index_records", *flags, file_size=100)
        left = [p.name for p in folder.iterdir()]
        if ended.code == 0 or any("Traceback" in line for line in ended.said):
            yield f"exit code {ended.code}: {ended.last_line}"
        else:
            yield f"it left {left[0]}" if left else None

    @property
    def cases(self) -> list[Callable]:
        """All of them."""
        return [
            self.training_hits_a_limit,
            self.training_fills_the_disk,
            self.training_where_it_cannot_be,
            self.training_read_only,
            self.filling_a_cache,
            self.predictions_hit_a_limit,
            self.predictions_where_they_cannot_be,
            self.reading_only,
            self.export_hits_a_limit,
            self.export_where_it_cannot_be,
            self.index_hits_a_limit,
        ]


def rows(quick: bool, seed: int = 0) -> list[results.Row]:
    """The table's rows; `quick`: one size each."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        disk = Disk(pathlib.Path(name), quick, seed)
        for case in tqdm.tqdm(disk.cases, unit="case"):
            row = results.judged(case.__doc__, case())
            if not row.tried:
                remark = "not tried: this process may not mount a file system"
                row = dataclasses.replace(row, remark=remark)
            table.append(row)
    return table
