"""The outer loop of a phase: owns the steps and calls a list of actions.

It knows nothing of validation, checkpoints or logs: those are actions.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


class Chunk(NamedTuple):
    """The steps of one call of the inner loop.

    Attributes:
        count: how many.
        taken: those that were not skipped (see inner_loop).
        means: name → mean over the steps taken; after a step that is not finite, the
            numbers of that step alone.
        bad_step: number of the first step that is not finite, or -1.
        seconds: wall time, waiting for the data included.
    """

    count: int
    taken: float
    means: dict[str, float]
    bad_step: int
    seconds: float


class Action:
    """What happens around the steps; a subclass overrides what it needs.

    The actions of a loop are called in the order of its list.
    """

    def start(self, loop: "Loop") -> None:
        """Called before the first step, also when a stopped phase continues."""

    def steps_until_next(self, step: int) -> int | None:
        """Steps after which `after_steps` must be called at the latest; None: any."""

    def after_steps(self, loop: "Loop", chunk: Chunk) -> None:
        """Called after each chunk of steps."""

    def after_epoch(self, loop: "Loop") -> None:
        """Called after the steps of an epoch, before the counters say so.

        A run that stops here and is resumed gets here again.
        """

    def next_epoch(self, loop: "Loop") -> None:
        """Called once the counters have moved to the next epoch.

        After an epoch that total_steps has ended early, they stay.
        """

    def end(self, loop: "Loop") -> None:
        """Called after the last epoch, not after an error."""


class Loop:
    """Trains to the end of a phase from wherever its counters are.

    Args:
        name: of the phase.
        run_steps: (iterator, number of steps) → means, number of the bad step and
            steps taken, as tensors; moves `counters.step`.
        counters: has the int64 variables `step`, `epoch` and `batch` (of the epoch).
        make_dataset: (epoch, batches to skip) → iterable of batches.
        batches: per epoch.
        total_steps: steps after which the phase ends, within an epoch if need be.
        steps_per_loop: largest number of steps in a chunk.

    Attributes:
        results: what actions have found in this epoch: name → role → metrics.
        epoch_seconds: training time of the epoch, since the start of the process.
    """

    def __init__(
        self,
        name: str,
        run_steps: Callable,
        metric_names: Sequence[str],
        counters,
        make_dataset: Callable,
        actions: Sequence[Action],
        *,
        epochs: int,
        batches: int,
        total_steps: int,
        steps_per_loop: int,
    ):
        self.name = name
        self.actions = list(actions)
        self.epochs = epochs
        self.batches = batches
        self.total_steps = total_steps
        self.results: dict[str, dict[str, dict]] = {}
        self.epoch_seconds = 0.0
        self._run_steps = run_steps
        self._metric_names = list(metric_names)
        self._counters = counters
        self._make_dataset = make_dataset
        self._steps_per_loop = steps_per_loop
        self._stopped = False
        self._clock: tuple[float, int] | None = None  # Time and step of a start.

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return int(self._counters.step.numpy())

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return int(self._counters.epoch.numpy())

    @property
    def batch(self) -> int:
        """Number of finished batches of the current epoch."""
        return int(self._counters.batch.numpy())

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end, from the steps of this process.

        None until there are two chunks: the first one includes tracing.
        """
        since, first = self._clock or (0.0, self.step)
        if self.step == first:
            return None
        pace = (time.monotonic() - since) / (self.step - first)
        return pace * (self.total_steps - self.step)

    def stop(self) -> None:
        """Ends the phase after the current epoch."""
        self._stopped = True

    def run(self) -> None:
        """Trains to the end of the phase."""
        self._call("start")
        # A run may have been stopped between the last step and its validation.
        while (
            not self._stopped
            and self.epoch < self.epochs
            and (self.step < self.total_steps or self.batch > 0)
        ):
            began = time.perf_counter()
            self._train_epoch()
            self.epoch_seconds = time.perf_counter() - began
            self.results = {}
            self._call("after_epoch")
            if self.batch < self.batches:
                # Ended by total_steps; it can go on from here if they are raised.
                self._stopped = True
            else:
                self._counters.epoch.assign_add(1)
                self._counters.batch.assign(0)
            self._call("next_epoch")
        self._call("end")

    def _call(self, method: str, *arguments) -> None:
        for action in self.actions:
            getattr(action, method)(self, *arguments)

    def _train_epoch(self) -> None:
        """Trains the rest of the current epoch."""
        iterator = iter(self._make_dataset(self.epoch, self.batch))
        while self.batch < self.batches and self.step < self.total_steps:
            chunk = self._train_chunk(iterator)
            self._clock = self._clock or (time.monotonic(), self.step)
            self._call("after_steps", chunk)

    def _train_chunk(self, iterator) -> Chunk:
        step = self.step
        wanted = [action.steps_until_next(step) for action in self.actions]
        count = min(
            self._steps_per_loop,
            self.batches - self.batch,
            self.total_steps - step,
            *(number for number in wanted if number is not None),
        )
        began = time.perf_counter()
        means, bad_step, taken = self._run_steps(iterator, tf.constant(count))
        means = dict(zip(self._metric_names, means.numpy().tolist(), strict=True))
        seconds = time.perf_counter() - began
        self._counters.batch.assign_add(count)
        return Chunk(count, float(taken), means, int(bad_step.numpy()), seconds)
