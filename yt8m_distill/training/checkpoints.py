"""Checkpoints: the whole state to resume from, and the best networks to use."""

import json
import logging
import os
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.training import manifest, modes

_LOG = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
BEST = "best"
_BEST_PREFIX = "network"

# What reading a damaged or foreign checkpoint raises; IndexError: one cut short.
_UNREADABLE = (tf.errors.OpError, AssertionError, ValueError, IndexError)


class Found(NamedTuple):
    """A network's checkpoint.

    Attributes:
        prefix: what tf.train.Checkpoint restores.
        step: training steps done, within its phase.
        phase: name of the phase that wrote it.
    """

    prefix: str
    step: int
    phase: str


def best_folder(train_dir: str, phase: str, role: str) -> str:
    """Where a phase keeps its best network of a role."""
    return os.path.join(train_dir, phase, BEST, role)


def _check_complete(prefix: str, role: str, network) -> None:
    """Raises RuntimeError unless a checkpoint just written has every variable.

    tf.train.Checkpoint saves what it finds by following attributes; a variable
    behind one that it does not follow would be lost without a word.
    """
    saved = [name for name, _ in tf.train.list_variables(prefix)]
    count = sum(name.startswith(f"{role}/") for name in saved)
    wanted = len(network.trainable_variables)
    if count < wanted:
        raise RuntimeError(
            f"{prefix} holds {count} of the {wanted} variables of the {role}."
        )


def write_best(folder: str, role: str, network, info: dict) -> None:
    """Writes a network and then, at last, the file that points to it."""
    tf.io.gfile.makedirs(folder)
    name = f"{_BEST_PREFIX}-{info['step']}"
    prefix = os.path.join(folder, name)
    tf.train.Checkpoint(**{role: network}).write(prefix)
    _check_complete(prefix, role, network)
    manifest.write_json(os.path.join(folder, "best.json"), {"name": name, **info})
    for path in tf.io.gfile.glob(os.path.join(folder, f"{_BEST_PREFIX}-*")):
        if not os.path.basename(path).startswith(f"{name}."):
            tf.io.gfile.remove(path)


def read_best(train_dir: str, phase: str, role: str) -> Found | None:
    """The best network of a role in a phase, or None."""
    folder = best_folder(train_dir, phase, role)
    path = os.path.join(folder, "best.json")
    if not tf.io.gfile.exists(path):
        return None
    info = manifest.read_json(path)
    return Found(os.path.join(folder, info["name"]), info["step"], phase)


def _latest(train_dir: str, phase: str) -> Found | None:
    prefix = tf.train.latest_checkpoint(os.path.join(train_dir, phase, CHECKPOINTS))
    if prefix is None:
        return None
    return Found(prefix, int(prefix.rsplit("-", 1)[1]), phase)


def find(
    train_dir: str, run: settings.RunSettings, network: str, which: str = "best"
) -> Found | None:
    """The checkpoint of a network in a train_dir; None if there is none yet.

    Args:
        train_dir: of the run.
        run: its settings.
        network: `teacher` or `student`.
        which: `best`, `latest`, or a checkpoint prefix.
    """
    if which not in ("best", "latest"):
        if not tf.io.gfile.exists(f"{which}.index"):
            raise ValueError(f"--checkpoint={which}: {which}.index does not exist.")
        return Found(which, -1, "")
    for phase in modes.phases_of(run, network):
        if which == "best":
            found = read_best(train_dir, phase.name, network)
        else:
            found = _latest(train_dir, phase.name)
        if found:
            return found
    return None


def restore_network(found_prefix: str, role: str, network) -> None:
    """Sets a network's variables from a checkpoint of either kind.

    Raises:
        ValueError: if the file is damaged or lacks some of the variables.
    """
    checkpoint = tf.train.Checkpoint(**{role: network})
    try:
        # read, not restore: a best network has no save counter.
        status = checkpoint.read(found_prefix)
        status.expect_partial()
        status.assert_existing_objects_matched()
    except _UNREADABLE as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"The checkpoint {found_prefix} does not hold this {role}: {first}"
        ) from error


class State:
    """Everything that a phase needs to go on exactly where it stopped.

    Args:
        folder: of the phase.
        objects: name → trackable: networks and optimizers.
        max_to_keep: how many checkpoints stay.
        writes: False in a process that is not the chief. All have the same state
            after the same steps, and nothing of it is spread over processes, so that
            a save needs the chief alone.
    """

    def __init__(
        self, folder: str, objects: dict, max_to_keep: int, writes: bool = True
    ):
        def counter():
            return tf.Variable(
                0,
                dtype=tf.int64,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

        self.step = counter()
        self.epoch = counter()
        self.batch = counter()  # Batches of the epoch that are done.
        # Best validation so far and evaluations, as JSON.
        self.notes = tf.Variable("{}", dtype=tf.string, trainable=False)
        self.checkpoint = tf.train.Checkpoint(
            step=self.step,
            epoch=self.epoch,
            batch=self.batch,
            notes=self.notes,
            **objects,
        )
        self._folder = os.path.join(folder, CHECKPOINTS)
        self._writes = writes
        self.manager = tf.train.CheckpointManager(
            self.checkpoint,
            self._folder,
            max_to_keep=max_to_keep,
            checkpoint_name="ckpt",
        )

    def restore(self) -> str | None:
        """Restores the newest checkpoint that is whole; returns its prefix."""
        state = tf.train.get_checkpoint_state(self._folder)
        prefixes = list(state.all_model_checkpoint_paths) if state else []
        for prefix in reversed(prefixes):
            try:
                self.checkpoint.restore(prefix).assert_existing_objects_matched()
                return prefix
            except _UNREADABLE as error:
                first = str(error).strip().splitlines()[0]
                _LOG.warning("Checkpoint %s is passed over: %s", prefix, first)
        if prefixes:
            raise ValueError(f"None of the checkpoints in {self._folder} can be read.")
        return None

    def save(self) -> str:
        """Writes a checkpoint named after the step; returns its prefix.

        Empty where this process does not write.
        """
        if not self._writes:
            return ""
        return self.manager.save(checkpoint_number=int(self.step.numpy()))

    def read_notes(self) -> dict:
        """The notes as a dict."""
        return json.loads(self.notes.numpy().decode())

    def write_notes(self, notes: dict) -> None:
        """Sets the notes."""
        self.notes.assign(json.dumps(notes))
