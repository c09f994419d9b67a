"""Actions around the training steps: validation, best networks, checkpoints, logs.

Each action (see loop.Action) can be used alone; a phase has a list of them.
"""

import datetime
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.training import (
    checkpoints,
    distribution,
    interruption,
    loop,
    manifest,
    roles,
)

_LOG = logging.getLogger(__name__)


class MetricsLog:
    """Writes metrics to TensorBoard and metrics.jsonl.

    Args:
        folder: of the phase.
        writes: False on all workers but the chief.
    """

    def __init__(self, folder: str, writes: bool = True):
        self.folder = folder
        self.writes = writes
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    @property
    def _lines_path(self) -> str:
        return os.path.join(self.folder, "metrics.jsonl")

    def check_writable(self) -> None:
        """Creates the folder and metrics.jsonl now, before any work.

        A line that a full disk has cut short is dropped: the next would be lost in it.

        Raises:
            ValueError: if they cannot be written.
        """
        with files.one_line_errors(self._lines_path):
            tf.io.gfile.makedirs(self.folder)
            tf.io.gfile.GFile(self._lines_path, "a").close()
        manifest.keep_json_lines(self._lines_path, lambda line: True)

    def go_back_to(self, step: int, epoch: int) -> None:
        """Drops the lines that a run resumed at these counters will write again."""
        if self.writes:
            manifest.keep_json_lines(
                self._lines_path,
                lambda line: (
                    line.get("step", 0) <= step and line.get("epoch", 0) <= epoch
                ),
            )

    def _writer(self, subfolder: str):
        if subfolder not in self._writers:
            path = os.path.join(self.folder, subfolder)
            self._writers[subfolder] = tf.summary.create_file_writer(path)
        return self._writers[subfolder]

    def scalars(self, values: dict[str, float], step: int, subfolder: str = "") -> None:
        """Writes TensorBoard scalars by name."""
        if not self.writes:
            return
        with (
            files.one_line_errors(self.folder),
            self._writer(subfolder).as_default(),
        ):
            for name, value in values.items():
                tf.summary.scalar(name, value, step=step)

    def line(self, kind: str, step: int, values: dict) -> None:
        """Appends one JSON object to metrics.jsonl."""
        if self.writes:
            record = {"kind": kind, "step": step, "time": round(time.time(), 3)}
            with (
                files.one_line_errors(self._lines_path),
                tf.io.gfile.GFile(self._lines_path, "a") as file,
            ):
                file.write(json.dumps({**record, **values}) + "\n")

    def flush(self) -> None:
        """Flushes everything to disk."""
        with files.one_line_errors(self.folder):
            for writer in self._writers.values():
                writer.flush()


# Names of a role's metrics → the starter code's names in TensorBoard.
_STARTER_NAMES = {
    "label_loss": "label_loss",
    "reg_loss": "reg_loss",
    "Hit@1": "model/Training_Hit@1",
    "PERR": "model/Training_Perr",
    "GAP": "model/Training_GAP",
}


# The starter code's names of metrics; an evaluation of segments has some of them.
_EVALUATED = {
    "Avg_Hit@1": "hit_at_one",
    "Avg_Perr": "perr",
    "Avg_Loss": "loss",
    "MAP": "map",
    "MAP_all_classes": "map_all_classes",
    "GAP": "gap",
}


def evaluation_scalars(numbers: dict[str, float]) -> dict[str, float]:
    """TensorBoard names of an evaluation, as in the starter code."""
    return {
        **{
            f"Epoch/Eval_{title}": numbers[name]
            for title, name in _EVALUATED.items()
            if name in numbers
        },
        "Epoch/Eval_Skipped": numbers.get("num_skipped", 0),
        "Epoch/Eval_Repeated_Ids": numbers.get("num_repeated_ids") or 0,
        # For a student for several k, and with early exit.
        **{
            f"Epoch/Eval_{name.upper()}": value
            for name, value in numbers.items()
            if name == "mean_frames"
            or ("_k" in name and name.startswith(("gap", "map")))
        },
    }


def log_training(step: int, means: dict, speed: float, tail: str) -> None:
    """The starter code's log line, one per learner; `tail` is appended."""
    for role in sorted({name.split("/")[0] for name in means}):
        _LOG.info(
            "training step %d | %s | Loss: %.4g Examples/sec: %.1f | Hit@1: %.3f "
            "PERR: %.3f GAP: %.3f%s",
            step,
            role,
            means[f"{role}/loss"],
            speed,
            means[f"{role}/Hit@1"],
            means[f"{role}/PERR"],
            means[f"{role}/GAP"],
            tail,
        )


def place_of(loop: loop.Loop, epoch: int) -> str:
    """` | epoch 2/5, 0:12:30 left`, the suffix of a log line; the time once known."""
    place = f" | epoch {epoch}/{loop.epochs}"
    if loop.seconds_left is None:
        return place
    return f"{place}, {datetime.timedelta(seconds=round(loop.seconds_left))} left"


def evaluation_line(prefix: str, numbers: dict[str, float]) -> str:
    """The starter code's evaluation line, with the number of skipped records if any."""
    skipped = numbers.get("num_skipped")
    tail = f" | Skipped: {skipped}" if skipped else ""
    shown = [
        f"{title}: {numbers[name]:{form}}"
        for title, name, form in (
            ("Avg_Hit@1", "hit_at_one", ".3f"),
            ("Avg_PERR", "perr", ".3f"),
            ("MAP", "map", ".3f"),
            ("GAP", "gap", ".3f"),
            ("Avg_Loss", "loss", ".4f"),
            ("Mean_frames", "mean_frames", ".3f"),
        )
        if name in numbers
    ]
    shown += [
        f"{name.upper()}: {value:.3f}"
        for name, value in numbers.items()
        if name.startswith("gap_k")
    ]
    return " | ".join([prefix, *shown]) + tail


class StopOnNaN(loop.Action):
    """Stops a run whose loss or gradient is NaN or Inf; names the last checkpoint."""

    def __init__(self, state: checkpoints.State):
        self.state = state

    def after_steps(self, loop: loop.Loop, chunk: loop.Chunk) -> None:
        """Raises a FloatingPointError that names the step and the metrics."""
        if chunk.bad_step < 0:
            return
        bad = [name for name, x in chunk.means.items() if not math.isfinite(x)]
        raise FloatingPointError(
            f"Step {chunk.bad_step}: {', '.join(bad) or 'the gradient'} is not a "
            f"finite number{self.state.what_is_left}. Try a lower --base_learning_rate "
            "or smaller weights in --student_loss."
        )


class ShowProgress(loop.Action):
    """Updates a tqdm progress bar."""

    def __init__(self, bar):
        self.bar = bar

    def after_steps(self, loop: loop.Loop, chunk: loop.Chunk) -> None:
        self.bar.update(chunk.count)


class LogTraining(loop.Action):
    """Logs means over the steps since the last log line, also if a stop is between.

    Args:
        state: keeps the steps that are not logged yet.
        log: the log; lines that a resumed run will repeat are dropped from it.
        every: steps between two lines; an epoch ends with a line, too.
        batch_size: videos per step.
        rate: () → learning rate of the last step that changed the weights.
        padding: rows without a video in the last step of an epoch.
    """

    def __init__(
        self,
        state: checkpoints.State,
        log: MetricsLog,
        every: int,
        batch_size: int,
        rate: Callable[[], float],
        padding: int = 0,
    ):
        self.state = state
        self.log = log
        self.every = every
        self.batch_size = batch_size
        self.rate = rate
        self.padding = padding

    def start(self, loop: loop.Loop) -> None:
        self.log.go_back_to(loop.step, loop.epoch)

    def steps_until_next(self, step: int) -> int:
        return self.every - step % self.every

    def after_steps(self, loop: loop.Loop, chunk: loop.Chunk) -> None:
        self.state.unlogged.append(chunk)
        at_the_end = loop.batch == loop.batches
        if loop.step % self.every and not at_the_end and loop.step < loop.total_steps:
            return
        chunks = [type(chunk)(*values) for values in self.state.unlogged]
        self.state.unlogged = []
        count, taken = sum(c.count for c in chunks), sum(c.taken for c in chunks)
        if not taken:
            _LOG.warning(
                "training step %d | none of the last %d steps had a finite gradient: "
                "the loss scale goes down.",
                loop.step,
                count,
            )
            return
        videos = count * self.batch_size - self.padding * at_the_end
        speed = videos / sum(c.seconds for c in chunks)
        means = {
            name: sum(c.means[name] * c.taken for c in chunks) / taken
            for name in chunk.means
        }
        # Of two learners the last, the student, has the starter's names.
        role = list(means)[-1].split("/")[0]
        titles = {f"{role}/{name}": title for name, title in _STARTER_NAMES.items()}
        once = {
            "learning_rate": self.rate(),
            "global_step/Examples/Second": speed,
            **{titles.get(name, name): value for name, value in means.items()},
        }
        self.log.scalars(once, loop.step)
        every = {**once, **means}
        rounded = {name: float(f"{value:.6g}") for name, value in every.items()}
        self.log.line("training", loop.step, rounded)
        log_training(loop.step, means, speed, place_of(loop, loop.epoch + 1))

    def end(self, loop: loop.Loop) -> None:
        self.log.flush()


class Validate(loop.Action):
    """Evaluates the roles after every epoch; `loop.results[name]` has the metrics.

    Args:
        evaluate: (role, function that the batches are passed through) → metrics.
        between: called between two batches; an exception ends the validation.
        name: of the data set.
    """

    def __init__(
        self,
        roles: Sequence[roles.Role],
        evaluate: Callable,
        log: MetricsLog,
        between: Callable[[loop.Loop], None] | None = None,
        name: str = "validation",
    ):
        self.roles = roles
        self.evaluate = evaluate
        self.log = log
        self.between = between
        self.name = name

    def after_epoch(self, loop: loop.Loop) -> None:
        def watched(batches) -> Iterator:
            for batch in batches:
                if self.between:
                    self.between(loop)
                yield batch

        step, epoch = loop.step, loop.epoch + 1
        found = loop.results.setdefault(self.name, {})
        for role in self.roles:
            numbers = found[role.name] = self.evaluate(role, watched)
            scalars = evaluation_scalars(numbers)
            self.log.scalars(scalars, step, subfolder=f"{self.name}_{role.name}")
            line = {"network": role.name, "epoch": epoch, **numbers}
            self.log.line(self.name, step, line)
            prefix = f"epoch {epoch} | step {step} | {role.name}"
            line = evaluation_line(prefix, numbers) + place_of(loop, epoch)
            _LOG.info("%s", line)


class Save(loop.Action):
    """Saves the state after every epoch, and every few minutes within an epoch."""

    def __init__(self, state: checkpoints.State, minutes: float):
        self.state = state
        self.minutes = minutes
        self._saved_at = 0.0

    def start(self, loop: loop.Loop) -> None:
        self._saved_at = time.monotonic()

    def after_steps(self, loop: loop.Loop, chunk: loop.Chunk) -> None:
        if time.monotonic() - self._saved_at >= 60 * self.minutes:
            self.next_epoch(loop)

    def next_epoch(self, loop: loop.Loop) -> None:
        self.state.save()
        self._saved_at = time.monotonic()


class KeepBest(loop.Action):
    """Keeps the network of the best epoch by GAP; of equal epochs the first.

    Without validation data the last one is kept. The results of all epochs are stored
    in the notes of the state. A new best network is written before the state that
    refers to it, and replaces the old one afterwards, so this action follows `Save`.

    Args:
        roles: the roles that learn.
        folder_of: role → folder of its best network.
        largest: a number → the largest of those of all workers.
    """

    def __init__(
        self,
        roles: Sequence[roles.Role],
        networks,
        folder_of: Callable[[roles.Role], str],
        state: checkpoints.State,
        largest: Callable[[int], int] = int,
    ):
        self.roles = roles
        self.networks = networks
        self.folder_of = folder_of
        self.state = state
        self.largest = largest
        self._improved: list[roles.Role] = []

    def start(self, loop: loop.Loop) -> None:
        """Resolves a proposed network that a killed process has left.

        Raises:
            ValueError: in all workers, if the best network is damaged and cannot be
                replaced.
        """
        notes = self.state.read_notes()
        for role in self.roles:
            noted = notes.get(role.name, {}).get("best")
            lost = self.state.writes and self._settle(role, noted, loop) is None
            # The others learn of it from the chief, or they would stop at other epochs.
            lost = self.largest(int(lost))
            if not noted:
                continue
            if lost and loop.epoch >= loop.epochs:
                raise ValueError(
                    f"The best network in {self.folder_of(role)} is damaged and all "
                    "epochs are done: put it back, or begin anew with "
                    "--start_new_model."
                )
            best = None if lost else checkpoints.settled(self.folder_of(role))
            notes[role.name]["best"] = best
        self.state.write_notes(notes)

    def _settle(self, role, noted: dict | None, loop: loop.Loop) -> dict | None:
        """The best network on disk, or None; writes it if it is the one in memory."""
        folder = self.folder_of(role)
        best = checkpoints.settle_best(folder, noted, verify=True)
        if noted and best is None and noted["step"] == loop.step:
            network = self.networks.network(role.name)
            checkpoints.write_best(folder, role.name, network, noted)
            return noted
        return best

    def after_epoch(self, loop: loop.Loop) -> None:
        epoch, self._improved = loop.epoch + 1, []
        notes = self.state.read_notes()
        for role in self.roles:
            numbers = loop.results.get("validation", {}).get(role.name, {})
            entry = notes.setdefault(role.name, {"best": None, "epochs": []})
            result = {"epoch": epoch, "step": loop.step, **numbers}
            # A run that was stopped by a later action repeats this epoch's end.
            before = [other for other in entry["epochs"] if other["epoch"] < epoch]
            entry["epochs"] = [*before, result]
            best = entry["best"]
            better = best is None or numbers.get("gap", epoch) > best.get("gap", 0)
            if better or role.keeps_last:
                entry["best"] = result
                self._improved.append(role)
        if self.state.writes:
            for role in self._improved:
                checkpoints.propose_best(
                    self.folder_of(role),
                    role.name,
                    self.networks.network(role.name),
                    notes[role.name]["best"],
                )
        self.state.write_notes(notes)

    def next_epoch(self, loop: loop.Loop) -> None:
        if self.state.writes:
            notes = self.state.read_notes()
            for role in self._improved:
                best = notes[role.name]["best"]
                checkpoints.settle_best(self.folder_of(role), best)


class RecordResults(loop.Action):
    """Copies the notes of the state to the run's manifest."""

    def __init__(self, record: manifest.Manifest, state: checkpoints.State):
        self.record = record
        self.state = state

    def start(self, loop: loop.Loop) -> None:
        notes = self.state.read_notes()
        if notes:
            self.record.update(loop.name, step=loop.step, results=notes)

    def next_epoch(self, loop: loop.Loop) -> None:
        before = self.record.phase(loop.name).get("epoch_seconds", [])
        whole = loop.epoch if loop.batch else loop.epoch - 1
        seconds = [*before[:whole], round(loop.epoch_seconds, 3)]
        self.start(loop)
        self.record.update(loop.name, epoch_seconds=seconds)


class StopEarly(loop.Action):
    """Stops after a number of epochs without a better network; follows KeepBest."""

    def __init__(self, state: checkpoints.State, epochs: int):
        self.state = state
        self.epochs = epochs

    def start(self, loop: loop.Loop) -> None:
        found = [entry["best"] for entry in self.state.read_notes().values()]
        if not found or not all(found):  # A damaged one has to be replaced first.
            return
        best = max(entry["epoch"] for entry in found)
        if loop.epoch - best >= self.epochs:
            _LOG.info(
                "Phase %s stops early: no better GAP since epoch %d.", loop.name, best
            )
            loop.stop()

    def next_epoch(self, loop: loop.Loop) -> None:
        self.start(loop)


class StopOnSignal(loop.Action):
    """Saves and stops after a signal to any process, all at the same step."""

    def __init__(
        self,
        watch: interruption.Watch,
        strategy: tf.distribute.Strategy,
        state: checkpoints.State,
        log: MetricsLog,
    ):
        self.watch = watch
        self.strategy = strategy
        self.state = state
        self.log = log

    def check(self, loop: loop.Loop) -> None:
        """Saves the state and stops, if a signal was received.

        Raises:
            interruption.Interrupted: after a signal.
        """
        received = distribution.largest(self.strategy, self.watch.received or 0)
        if not received:
            return
        self.state.save()
        self.log.flush()
        raise interruption.Interrupted(
            received,
            f"stopped by {interruption.name_of(received)}: phase {loop.name} is saved "
            f"at step {loop.step}. The same command, without --start_new_model, goes "
            "on from there.",
        )

    def after_steps(self, loop: loop.Loop, chunk: loop.Chunk) -> None:
        self.check(loop)

    def next_epoch(self, loop: loop.Loop) -> None:
        self.check(loop)
