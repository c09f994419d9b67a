"""Runs experiments as concurrent processes: resumable, with a progress bar."""

import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import tensorflow as tf
import tqdm

from tools.reproduction import cost, plan, runs
from yt8m_distill.training import trained

LOG = "train.log"
# Prefix of commands in the log.
_COMMAND = "$ "
_POLL_SECONDS = 0.5


@dataclasses.dataclass
class _Job:
    """A process that runs an experiment."""

    experiment: plan.Experiment
    process: subprocess.Popen
    slot: int
    signals_sent: int = 0


def find_gpus() -> list[str]:
    """The GPUs for jobs, as named in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(n) for n, _ in enumerate(tf.config.list_physical_devices("GPU"))]


def job_environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment variables that give a job its share of the machine.

    Args:
        slot: index of the job, from 0.
        jobs: number of concurrent jobs; a single one gets everything.
        gpus: see find_gpus. Without GPUs, the cores are shared.
    """
    if jobs == 1:
        return {}
    if gpus:
        job_gpus = gpus[slot::jobs] or [gpus[slot % len(gpus)]]
        return {"CUDA_VISIBLE_DEVICES": ",".join(job_gpus)}
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    return {
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }


def check_settings(experiments: Sequence[plan.Experiment]) -> None:
    """Raises ValueError if a run has begun with other settings."""
    for experiment in experiments:
        run = runs.open_run(experiment.train_dir)
        if run.begun and (different := run.differences(experiment)):
            raise ValueError(
                f"{experiment.train_dir} was made with other settings: {different}. "
                "Use the old ones or another --output_dir."
            )


def network_command(
    script: str, experiment: plan.Experiment, *flags: str
) -> tuple[str, ...]:
    """The command of a script on the network whose scores the cell shows."""
    training = experiment.run.training
    return (
        sys.executable,
        str(plan.ROOT / "yt8m_distill" / f"{script}.py"),
        *flags,
        f"--train_dir={experiment.train_dir}",
        f"--network={experiment.cell.role}",
        f"--batch_size={training.batch_size}",
        f"--num_gpus={training.num_gpus}",
        *(f"--{name}={value}" for name, value in vars(experiment.run.reading).items()),
    )


def last_line(path: pathlib.Path) -> str:
    """The last non-empty line of a log."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def failure_text(status: int, log: pathlib.Path) -> str:
    """Why a process failed, and the path of its log.

    Args:
        status: nonzero exit status; negative for the signal that ended the process.
        log: its last line is the reason, unless that is the command.
    """
    line = last_line(log)
    if status < 0:
        reason = f"ended by {signal.Signals(-status).name}"
        if -status == signal.SIGKILL:
            reason += ", possibly out of memory"
    elif line and not line.startswith(_COMMAND):
        reason = line
    else:
        reason = f"exit status {status}"
    return f"{reason} (log: {log})"


class Runner:
    """Runs the experiments that are not finished.

    Args:
        experiments: every teacher before its students.
        jobs: number of concurrent processes.
        test_data_pattern: shards on which every network is evaluated at the end; empty
            for no evaluation.
    """

    def __init__(
        self,
        experiments: Sequence[plan.Experiment],
        jobs: int = 1,
        test_data_pattern: str = "",
    ):
        self.experiments = list(experiments)
        self.jobs = jobs
        self.pattern = test_data_pattern
        self.gpus = find_gpus()
        self.waiting: list[plan.Experiment] = []
        self.running: list[_Job] = []
        self.done: set[plan.Cell] = set()
        self.failures: dict[plan.Cell, str] = {}  # And why.
        self.received: int | None = None
        self._signals = 0
        self._started: set[tuple[str, ...]] = set()
        self._costs = {
            e.cell: sum(cost.training_cost(e.run).values()) for e in self.experiments
        }
        self._began, self._cost_done = time.monotonic(), 0.0

    def run(self) -> dict[str, str]:
        """Runs all experiments; returns the names of those that failed, and why.

        After SIGTERM or Ctrl-C the processes are asked to save and exit, and `received`
        is the number of the signal.
        """
        self.waiting = list(self.experiments)
        old_handlers = {
            number: signal.signal(number, self._stop)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            # On terminals only.
            with tqdm.tqdm(total=len(self.experiments), disable=None) as bar:
                while self.running or (self.waiting and self.received is None):
                    self._start_ready()
                    self._forward_signals()
                    self._collect()
                    bar.update(len(self.done) - bar.n)
                    if self.running:
                        time.sleep(_POLL_SECONDS)
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
        return {cell.name: reason for cell, reason in self.failures.items()}

    def _stop(self, number, frame) -> None:
        del frame
        self.received = number
        self._signals += 1

    def _forward_signals(self) -> None:
        """The first signal makes train.py save and exit, a second one exit at once."""
        for job in self.running:
            while job.signals_sent < self._signals:
                job.process.send_signal(signal.SIGTERM)
                job.signals_sent += 1

    def _next_command(self, experiment: plan.Experiment) -> tuple[str, ...] | None:
        """The next command of an experiment, or None if it is complete."""
        run = runs.open_run(experiment.train_dir, self.pattern)
        if not run.has(experiment):
            return experiment.command
        for asked in plan.asked(experiment.run) if self.pattern else ():
            if (asked or experiment.cell.role) in run.evaluations:
                continue
            is_exit = asked.startswith(plan.MEAN_FRAMES)
            calibrated = pathlib.Path(experiment.train_dir, trained.EXIT_FILE)
            if is_exit and not calibrated.is_file():
                validation = experiment.run.training.validation_data_pattern
                flags = (f"--calibration_data_pattern={validation}",)
                return network_command("calibrate", experiment, *flags)
            flags = ("--run_once", f"--eval_data_pattern={self.pattern}")
            flags += (asked,) if asked else ()
            return network_command("eval", experiment, *flags)
        return None

    def _start_ready(self) -> None:
        for experiment in list(self.waiting):
            if self.received is not None or len(self.running) >= self.jobs:
                return
            teacher = experiment.teacher
            if teacher and teacher.cell in self.failures:
                self.waiting.remove(experiment)
                self._fail(experiment, f"its teacher {teacher.cell.name} failed")
            elif not teacher or teacher.cell in self.done:
                self.waiting.remove(experiment)
                self._start(experiment)

    def _start(self, experiment: plan.Experiment) -> None:
        """Starts the next command of an experiment, or marks it as done."""
        command = self._next_command(experiment)
        if command is None:
            self.done.add(experiment.cell)
            return
        if command in self._started:
            self._fail(experiment, f"{command[1]} ended without its result")
            return
        path = pathlib.Path(experiment.train_dir) / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = {job.slot for job in self.running}
        slot = next(i for i in range(self.jobs) if i not in taken)
        with path.open("ab") as log:
            log.write(f"{_COMMAND}{shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **job_environment(slot, self.jobs, self.gpus)},
                # Ctrl-C is forwarded once; a second SIGINT would end it unsaved.
                start_new_session=True,
            )
        if command == experiment.command:
            line = f"{experiment.cell.name} is trained; its log is {path}"
            tqdm.tqdm.write(line, file=sys.stderr)
        self._started.add(command)
        self.running.append(_Job(experiment, process, slot))

    def _collect(self) -> None:
        """Handles the processes that have ended."""
        for job in list(self.running):
            status = job.process.poll()
            if status is None:
                continue
            self.running.remove(job)
            experiment = job.experiment
            if status != 0:
                if self.received is None:
                    log = pathlib.Path(experiment.train_dir) / LOG
                    self._fail(experiment, failure_text(status, log))
                continue
            if self.received is None:
                self._start(experiment)
            if experiment.cell in self.done:
                self._report(experiment)

    def _fail(self, experiment: plan.Experiment, reason: str) -> None:
        self.failures[experiment.cell] = reason
        tqdm.tqdm.write(f"FAILED {experiment.cell.name}: {reason}", file=sys.stderr)

    def _report(self, experiment: plan.Experiment) -> None:
        """Prints one line for a successful run.

        The time left is estimated from the multiply-adds of whole runs.
        """
        run = runs.open_run(experiment.train_dir)
        numbers = run.validation(experiment.cell.role)
        self._cost_done += self._costs[experiment.cell]
        ended = self.done | set(self.failures)
        left = sum(c for cell, c in self._costs.items() if cell not in ended)
        seconds = (time.monotonic() - self._began) * left / self._cost_done
        tqdm.tqdm.write(
            f"[{len(self.done)}/{len(self.experiments)}] {experiment.cell.name}: "
            f"validation GAP {numbers['gap']:.3f}, mAP {numbers['map']:.3f}; "
            f"about {tqdm.tqdm.format_interval(seconds)} left",
            file=sys.stderr,
        )
