"""Several machines, played by processes of this one: equality, losses, resumption.

    python tools/torture.py --areas=machines [--quick]

Every row starts real processes with TF_CONFIG, as a user would, and looks at what they
leave: weights, exit codes, last lines, and the time that they took to stop.
"""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import tqdm

from tools.torturing import results

ROOT = pathlib.Path(__file__).resolve().parents[2]

START_SECONDS = 600  # Until a job has its first checkpoint.
STOP_SECONDS = 60  # The bound for the others after the loss of one.
# Float32 sums in another order, over a few dozen steps with rates up to 0.5.
TOLERANCE = 1e-5


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Job:
    """A training job of some processes on this machine.

    Args:
        folder: of the data (see `write_data`) and of the processes' logs.
        train_dir: of the run.
        count: processes; 1: without TF_CONFIG.
        flags: for all of them, over the ordinary ones.
        own_flags: process → flags for it alone.
        absent: processes that are named and not started.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        train_dir: pathlib.Path,
        count: int,
        flags: Sequence[str] = (),
        own_flags: dict[int, list[str]] | None = None,
        absent: Sequence[int] = (),
    ):
        self.train_dir = train_dir
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.processes: dict[int, subprocess.Popen] = {}
        self._logs = {}
        for index in range(count):
            if index in absent:
                continue
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
            environment.pop("TF_CONFIG", None)
            environment["PYTHONPATH"] = str(ROOT)
            if count > 1:
                environment["TF_CONFIG"] = json.dumps(
                    {
                        "cluster": {"worker": self.addresses},
                        "task": {"type": "worker", "index": index},
                    }
                )
            path = folder / f"{train_dir.name}-{count}-{index}.log"
            self._logs[index] = path
            own = (own_flags or {}).get(index, [])
            command = [*_command(folder, train_dir), *flags, *own]
            with path.open("w") as log:
                self.processes[index] = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT
                )

    def wait_for_checkpoint(self) -> None:
        """Returns once the chief has saved.

        Raises:
            TimeoutError: if it does not.
        """
        until = time.monotonic() + START_SECONDS
        path = self.train_dir / "parallel" / "checkpoints" / "checkpoint"
        while not path.exists():
            ended = [i for i, p in self.processes.items() if p.poll() is not None]
            if ended or time.monotonic() > until:
                lines = {i: self.last_line(i) for i in ended}
                self.end()
                raise TimeoutError(f"no checkpoint in {self.train_dir}: {lines}")
            time.sleep(0.1)

    def wait(self, seconds: float) -> dict[int, int | None]:
        """Process → its exit code, None for one that still runs after all."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if all(p.poll() is not None for p in self.processes.values()):
                break
            time.sleep(0.1)
        return {index: p.poll() for index, p in self.processes.items()}

    def last_line(self, index: int) -> str:
        """The last line that a process wrote."""
        lines = self._logs[index].read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def end(self) -> None:
        """Kills what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def _command(folder: pathlib.Path, train_dir: pathlib.Path) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "yt8m_distill" / "train.py"),
        "--mode=parallel",
        f"--train_dir={train_dir}",
        f"--train_data_pattern={folder}/data/train*.tfrecord",
        f"--validation_data_pattern={folder}/data/validate*.tfrecord",
        "--feature_names=rgb",
        "--feature_sizes=8",
        "--num_classes=10",
        "--max_frames=12",
        "--student_k=4",
        "--teacher=HierarchicalLSTM(cells=6, block_len=4)",
        # By 2 and by 3. The third and last batch of an epoch holds 4 of the 28 videos:
        # all in the first of three processes, so that the others have no row in it.
        "--batch_size=12",
        "--num_epochs=4",
        "--optimizer=SGD",
        "--base_learning_rate=0.5",
    ]


def write_data(folder: pathlib.Path) -> None:
    """28 videos for training in two shards, 13 for validation."""
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "make_synthetic_records.py"),
            f"--output_dir={folder}/data",
            "--num_train=28",
            "--num_validate=13",
            "--num_test=0",
            "--num_classes=10",
            "--max_frames=12",
            "--feature_names=rgb",
            "--feature_sizes=8",
            "--videos_per_shard=14",
            "--jobs=1",
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def last_weights(train_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """The numbers of both networks in the newest checkpoint."""
    import tensorflow as tf

    prefix = tf.train.latest_checkpoint(str(train_dir / "parallel" / "checkpoints"))
    reader = tf.train.load_checkpoint(prefix)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.split("/")[0] in ("teacher", "student")
    }


def furthest(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest difference between two sets of weights."""
    if a.keys() != b.keys() or not a:
        return float("inf")
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def validations(train_dir: pathlib.Path) -> dict[str, list]:
    """What each role's validations counted and measured."""
    content = json.loads((train_dir / "manifest.json").read_text())
    found = content["phases"]["parallel"]["results"]
    return {
        role: [(e["num_videos"], round(e["gap"], 5)) for e in found[role]["epochs"]]
        for role in found
    }


def foreign_files(train_dir: pathlib.Path) -> list[str]:
    """What a process other than the chief left in the train_dir."""
    return sorted(p.name for p in train_dir.rglob("*") if "worker" in p.name)


def equality(folder: pathlib.Path, counts: Sequence[int]) -> results.Row:
    """So many processes train the weights of one, and validate each video once."""
    one = Job(folder, folder / "equal1", 1)
    assert_ended = one.wait(START_SECONDS)
    one.end()
    remarks, good = [], 0
    for count in counts:
        job = Job(folder, folder / f"equal{count}", count)
        codes = job.wait(START_SECONDS)
        job.end()
        if set(codes.values()) != {0} or set(assert_ended.values()) != {0}:
            remarks.append(f"{count} processes ended with {codes}: {job.last_line(0)}")
            continue
        apart = furthest(last_weights(one.train_dir), last_weights(job.train_dir))
        same = validations(one.train_dir) == validations(job.train_dir)
        left = foreign_files(job.train_dir)
        good += apart <= TOLERANCE and same and not left
        remarks.append(
            f"{count} processes: weights differ by {apart:.1e}, validations "
            f"{'are equal' if same else 'differ'}, {len(left)} files not the chief's"
        )
    return results.Row(
        "processes train the weights of one",
        len(counts),
        good,
        "; ".join(remarks),
    )


ENDLESS = ["--num_epochs=5000", "--save_checkpoint_minutes=0.02", "--log_steps=50"]


def losses(folder: pathlib.Path, tries: Sequence[tuple[int, int, int]]) -> results.Row:
    """One process is killed or frozen; the others stop by themselves.

    Args:
        folder: see Job.
        tries: (processes, which is lost, signal).
    """
    good, remarks = 0, []
    for number, (count, lost, by) in enumerate(tries):
        job = Job(folder, folder / f"loss{number}", count, ENDLESS)
        try:
            job.wait_for_checkpoint()
            time.sleep(1)
            job.processes[lost].send_signal(by)
            began = time.monotonic()
            others = {i: p for i, p in job.processes.items() if i != lost}
            while time.monotonic() - began < STOP_SECONDS and any(
                p.poll() is None for p in others.values()
            ):
                time.sleep(0.1)
            seconds = time.monotonic() - began
            codes = {i: p.poll() for i, p in others.items()}
            lines = [job.last_line(i) for i in others]
        finally:
            job.end()
        clear = all("so this one of the" in line for line in lines)
        named = any(job.addresses[lost] in line for line in lines)
        as_promised = set(codes.values()) == {1} and clear and named
        good += as_promised
        what = signal.Signals(by).name
        remarks.append(
            f"{what} to {lost} of {count}: the others ended after {seconds:.0f} s"
            + ("" if as_promised else f" with {codes}: {lines}")
        )
    return results.Row(
        "the loss of a process stops the others with a line and exit code 1",
        len(tries),
        good,
        "; ".join(remarks),
    )


def resumption(folder: pathlib.Path) -> results.Row:
    """3 processes, then 2, then 1, each killed: the weights of an unbroken run."""
    long = ["--num_epochs=20", "--save_checkpoint_minutes=0.01", "--log_steps=50"]
    whole = Job(folder, folder / "unbroken", 1, long)
    codes = whole.wait(2 * START_SECONDS)
    whole.end()
    train_dir, remarks = folder / "broken", []
    saved = train_dir / "parallel" / "checkpoints" / "checkpoint"
    for count in (3, 2):
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        job = Job(folder, train_dir, count, long)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and (
            not saved.exists() or saved.stat().st_mtime_ns == before
        ):
            time.sleep(0.05)
        time.sleep(1)
        job.processes[count - 1].kill()
        job.wait(STOP_SECONDS)
        job.end()
        state = saved.read_text().splitlines()[0].split('"')[1]
        remarks.append(f"{count} processes got to {state}")
    last = Job(folder, train_dir, 1, long)
    codes |= last.wait(2 * START_SECONDS)
    last.end()
    good = set(codes.values()) == {0}
    if good:
        apart = furthest(last_weights(whole.train_dir), last_weights(train_dir))
        # 60 steps at a rate of 0.5 let a rounding grow.
        good = apart <= 100 * TOLERANCE
        remarks.append(f"at the end the weights differ by {apart:.1e}")
    else:
        remarks.append(f"the last ended with {codes}: {last.last_line(0)}")
    return results.Row(
        "a job goes on with 3, 2 and 1 processes",
        1,
        int(good),
        "; ".join(remarks),
    )


def refusals(folder: pathlib.Path) -> results.Row:
    """What cannot work ends in every process, with a line."""
    cases = {
        "a process that never starts": (
            {"flags": ["--cluster_timeout_secs=15"], "absent": [1]},
            "Without them it ends after --cluster_timeout_secs=15",
        ),
        "another seed": (
            {"own_flags": {1: ["--seed=7"]}},
            "differ in what must be the same: --seed (here ",
        ),
        "another train_dir, in which no run is": (
            {"own_flags": {1: [f"--train_dir={folder}/other"]}},
            "differ in what must be the same: finished phases",
        ),
    }
    good, remarks = 0, []
    for number, (name, (arguments, expected)) in enumerate(cases.items()):
        # The last case resumes a run that is finished for one process alone.
        train_dir = folder / ("equal1" if "train_dir" in name else f"refused{number}")
        job = Job(folder, train_dir, 2, **arguments)
        codes = job.wait(START_SECONDS)
        lines = {i: job.last_line(i) for i in job.processes}
        job.end()
        as_promised = set(codes.values()) == {1}
        as_promised &= all(expected in line for line in lines.values())
        good += as_promised
        remarks.append(name + ("" if as_promised else f": {codes}, {lines}"))
    return results.Row(
        "what cannot work is refused by every process",
        len(cases),
        good,
        "; ".join(remarks),
    )


def request(folder: pathlib.Path) -> results.Row:
    """SIGTERM to one process: all save at the same step and stop."""
    good, remarks = 0, []
    for asked in (0, 1):
        job = Job(folder, folder / f"asked{asked}", 2, ENDLESS)
        try:
            job.wait_for_checkpoint()
            time.sleep(1)
            job.processes[asked].send_signal(signal.SIGTERM)
            codes = job.wait(STOP_SECONDS)
            lines = {i: job.last_line(i) for i in job.processes}
        finally:
            job.end()
        steps = {line.partition("is saved at step ")[2] for line in lines.values()}
        as_promised = (
            set(codes.values()) == {143} and len(steps) == 1 and "" not in steps
        )
        good += as_promised
        remarks.append(
            f"to {asked} of 2: {lines[0] if as_promised else (codes, lines)}"
        )
    return results.Row(
        "SIGTERM to one process stops all at one step",
        2,
        good,
        "; ".join(remarks),
    )


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick`: two processes, one loss, no resumption."""
    kill, freeze = signal.SIGKILL, signal.SIGSTOP
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_data(folder)
        areas = [lambda: equality(folder, (2,) if quick else (2, 3))]
        tries = [(3, 0, kill), (3, 1, kill), (3, 2, kill), (2, 1, freeze)]
        areas.append(lambda: losses(folder, [(2, 1, kill)] if quick else tries))
        if not quick:
            areas += [
                functools.partial(area, folder)
                for area in (request, refusals, resumption)
            ]
        return [_told(area()) for area in areas]


def _told(row: results.Row) -> results.Row:
    """Prints a row as soon as it is there."""
    tqdm.tqdm.write(f"{row.survived} of {row.tried} | {row.name} | {row.remark}")
    return row
