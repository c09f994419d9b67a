"""Several machines, played by processes of this one with TF_CONFIG."""

import json
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

import numpy as np
import pytest

from tests import script_helpers, training_helpers
from tests.faults import processes

pytestmark = pytest.mark.faults
slow = pytest.mark.slow

START_SECONDS = 600  # Until a job has its first checkpoint, or ends.
STOP_SECONDS = 60  # The bound for the others after the loss of one.
# Float32 sums in another order, over a few dozen steps with rates up to 0.5.
TOLERANCE = 1e-5
ENDLESS = ["--num_epochs=5000", "--max_checkpoints=5000", "--log_steps=50"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Job:
    """A training job of some processes; killed when the `with` block ends.

    Args:
        data: folder of the shards.
        train_dir: of the run; the logs are next to it.
        count: processes; 1: without TF_CONFIG.
        flags: for all of them, over the ordinary ones.
        own_flags: process → flags for it alone.
        absent: processes that are named and not started.
    """

    def __init__(
        self,
        data: pathlib.Path,
        train_dir: pathlib.Path,
        count: int,
        flags: Sequence[str] = (),
        own_flags: dict[int, list[str]] | None = None,
        absent: Sequence[int] = (),
    ):
        self.train_dir = train_dir
        self._first = self.latest_step()
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.processes: dict[int, subprocess.Popen] = {}
        self._logs = {}
        for index in sorted(set(range(count)) - set(absent)):
            task = {"type": "worker", "index": index}
            cluster = {"worker": self.addresses}
            if count == 3:  # With a chief by name.
                cluster = {"chief": self.addresses[:1], "worker": self.addresses[1:]}
                name = "worker" if index else "chief"
                task = {"type": name, "index": max(index - 1, 0)}
            config = {"cluster": cluster, "task": task} if count > 1 else {}
            own = (own_flags or {}).get(index, [])
            self._logs[index] = train_dir.with_name(f"{train_dir.name}-{index}.log")
            with self._logs[index].open("w") as log:
                self.processes[index] = processes.start(
                    "train",
                    *(*_flags(data, train_dir), *flags, *own),
                    task=json.dumps(config),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def latest_step(self) -> int:
        """That of the newest checkpoint; 0 without one."""
        found = self.train_dir.glob("parallel/checkpoints/*.index")
        return max((int(path.stem.split("-")[1]) for path in found), default=0)

    def wait_for_steps(self, count: int) -> None:
        """Returns once the chief has saved so many steps of this job."""
        until = time.monotonic() + START_SECONDS
        while self.latest_step() < self._first + count:
            assert time.monotonic() < until, "no checkpoint"
            ended = [i for i, p in self.processes.items() if p.poll() is not None]
            assert not ended, self.last_lines()
            time.sleep(0.1)

    def wait(self, seconds: float = START_SECONDS, but: int = -1) -> set[int | None]:
        """Exit codes of all (but one); None for one that still runs after all."""
        until = time.monotonic() + seconds
        others = [p for i, p in self.processes.items() if i != but]
        while time.monotonic() < until and any(p.poll() is None for p in others):
            time.sleep(0.1)
        return {p.poll() for p in others}

    def last_lines(self, but: int = -1) -> list[str]:
        """The last line of each (but one)."""
        logs = [log for i, log in self._logs.items() if i != but]
        return [(p.read_text(errors="replace").splitlines() or [""])[-1] for p in logs]


def _flags(data: pathlib.Path, train_dir: pathlib.Path) -> list[str]:
    return [
        "--mode=parallel",
        f"--train_dir={train_dir}",
        f"--train_data_pattern={data}/train*.tfrecord",
        f"--validation_data_pattern={data}/validate*.tfrecord",
        "--feature_names=rgb,audio",
        "--feature_sizes=8,4",
        "--num_classes=10",
        "--max_frames=20",
        "--student_k=4",
        "--teacher=FrameLevelLogisticModel(dropout=0.2)",
        # With batch norm, whose statistics are those of all processes.
        "--student=NeXtVLAD(clusters=2, groups=2, hidden_size=8)",
        # By 2 and by 3. The third and last batch of an epoch holds 4 of the 28 videos:
        # all in the first of three processes, so that the others have no row in it.
        "--batch_size=12",
        "--num_epochs=4",
        "--optimizer=SGD",
        "--base_learning_rate=0.5",
    ]


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("machines") / "data"
    training_helpers.write_data(folder, num_train=28, num_valid=13)
    return folder


def train(*job, **how) -> pathlib.Path:
    """The train_dir of a job that ended well."""
    with Job(*job, **how) as running:
        assert running.wait() == {0}, running.last_lines()
    return running.train_dir


@pytest.fixture(scope="session")
def alone(shards, tmp_path_factory) -> pathlib.Path:
    """The run of one process, which is this one."""
    train_dir = tmp_path_factory.mktemp("alone") / "run"
    script_helpers.succeed("train", *_flags(shards, train_dir))
    return train_dir


def furthest(one: pathlib.Path, other: pathlib.Path) -> float:
    """The largest difference between the networks of two runs after the first's end."""
    name = pathlib.Path(training_helpers.latest(one, "parallel")).name
    a, b = (
        training_helpers.read_variables(f"{x}/parallel/checkpoints/{name}")
        for x in (one, other)
    )
    names = [name for name in a if name.split("/")[0] in ("teacher", "student")]
    assert names and a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in names)


def validations(train_dir: pathlib.Path) -> dict[str, list]:
    """Role → videos and GAP of each of the first four epochs."""
    content = json.loads((train_dir / "manifest.json").read_text())
    found = content["phases"]["parallel"]["results"]
    return {
        role: [(e["num_videos"], round(e["gap"], 5)) for e in found[role]["epochs"][:4]]
        for role in found
    }


@pytest.mark.parametrize(
    "count, lost, by",
    [
        (2, 1, signal.SIGKILL),
        *(
            pytest.param(*case, marks=slow)
            for case in [
                (3, 0, signal.SIGKILL),
                (3, 1, signal.SIGKILL),
                (3, 2, signal.SIGKILL),
                (2, 1, signal.SIGSTOP),
            ]
        ),
    ],
)
def test_processes_train_the_weights_of_one_until_one_of_them_is_lost(
    count, lost, by, shards, alone, tmp_path
):
    """And validate every video once; the chief alone leaves files.

    The loss ends the others with a line that names the lost one.
    """
    run = tmp_path / "run"
    with Job(shards, run, count, ENDLESS) as job:
        job.wait_for_steps(15)  # The fifth epoch; `alone` has four.
        assert not [p for p in run.rglob("*") if "worker" in p.name]
        job.processes[lost].send_signal(by)
        assert job.wait(STOP_SECONDS, but=lost) == {1}
        assert any(job.addresses[lost] in line for line in job.last_lines(but=lost))
    assert furthest(alone, run) <= TOLERANCE
    assert validations(alone) == validations(run)


@slow
@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_before_the_first_step_ends_all(asked, shards, tmp_path):
    """The asked one by its signal, the other by its loss; or both, once they train."""
    with Job(shards, tmp_path / "run", 2, ENDLESS) as job:
        until = time.monotonic() + START_SECONDS
        while not job.train_dir.exists() and time.monotonic() < until:
            time.sleep(0.01)
        job.processes[asked].send_signal(signal.SIGTERM)
        codes = job.wait(STOP_SECONDS)
    assert 128 + signal.SIGTERM in codes and codes <= {1, 128 + signal.SIGTERM}


@slow
@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_to_one_process_stops_all_at_one_step(asked, shards, tmp_path):
    with Job(shards, tmp_path / "run", 2, ENDLESS) as job:
        job.wait_for_steps(3)
        job.processes[asked].send_signal(signal.SIGTERM)
        assert job.wait(STOP_SECONDS) == {128 + signal.SIGTERM}
        steps = {line.partition("at step ")[2] for line in job.last_lines()}
    assert len(steps) == 1 and steps != {""}


@slow
@pytest.mark.parametrize(
    "how, word",
    [
        (
            {"flags": ["--cluster_timeout_secs=15"], "absent": [1]},
            "--cluster_timeout_secs=15",
        ),
        ({"own_flags": {1: ["--seed=7"]}}, "--seed"),
    ],
)
def test_invalid_settings_are_refused_by_every_process(how, word, shards, tmp_path):
    with Job(shards, tmp_path / "run", 2, **how) as job:
        assert job.wait() == {1}
        assert all(word in line for line in job.last_lines())


@slow
def test_a_train_dir_that_not_all_share_is_refused(shards, alone, tmp_path):
    run = tmp_path / "run"
    run.symlink_to(alone)  # Finished, for the first process.
    own = {1: [f"--train_dir={tmp_path}/other"]}
    with Job(shards, run, 2, own_flags=own) as job:
        assert job.wait() == {1}
        assert all("finished phases" in line for line in job.last_lines())


@slow
def test_a_job_continues_with_three_two_and_one_processes(shards, tmp_path):
    long = ["--num_epochs=20", "--log_steps=50"]
    whole = train(shards, tmp_path / "whole", 1, long)
    for count in (3, 2):
        with Job(shards, tmp_path / "broken", count, long) as job:
            job.wait_for_steps(6)
            job.processes[count - 1].kill()
            job.wait(STOP_SECONDS)
    broken = train(shards, tmp_path / "broken", 1, long)
    # 60 steps at a rate of 0.5 let a rounding grow.
    assert furthest(whole, broken) <= 100 * TOLERANCE
