"""Checkpoints: the full state to resume from, and the best networks.

Each checkpoint is written to a scratch folder, flushed to disk and then renamed to a
new name. A killed process or a full disk therefore never damages the previous
checkpoint. Other damage is detected by TensorFlow's own checksums on reading.
"""

import json
import logging
import os
import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.training import manifest

_LOG = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
BEST = "best"
WRITING = "writing"  # The scratch folder.
_STATE_PREFIX = "ckpt"
_BEST_PREFIX = "network"
_UNLOGGED = ""  # Next to the names of roles, none of which is empty.
_BEST_FILE, _PROPOSED_FILE = "best.json", "proposed.json"
# The optional second number makes a name unique.
_NAME = re.compile(rf"({_STATE_PREFIX}|{_BEST_PREFIX})-(\d+)(?:-(\d+))?")

# Raised for a damaged or foreign checkpoint; IndexError for a truncated one.
_UNREADABLE = (tf.errors.OpError, AssertionError, ValueError, IndexError)


class Found(NamedTuple):
    """A network's checkpoint.

    Attributes:
        prefix: the prefix for tf.train.Checkpoint.
        step: number of training steps of its phase.
        phase: name of the phase that wrote it.
    """

    prefix: str
    step: int
    phase: str


def best_folder(train_dir: str, phase: str, role: str) -> str:
    """The folder of a phase's best network of a role."""
    return os.path.join(train_dir, phase, BEST, role)


def has_weights(folder: str) -> bool:
    """Whether a phase has a checkpoint; until then, its settings may change."""
    best = os.path.join(folder, BEST)
    return bool(_stems(os.path.join(folder, CHECKPOINTS))) or tf.io.gfile.isdir(best)


def _first_line(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        # TensorFlow prints the variables, values included, in one long line.
        return "it lacks variables of this network."
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(", value=")[0]


def _stem(name: str) -> str:
    """`ckpt-3.index` → `ckpt-3`."""
    return name.split(".", 1)[0]


def _order(stem: str) -> tuple[int, int]:
    """Sort key: the step, and the number among several of that step."""
    step, again = _NAME.fullmatch(stem).groups()[1:]
    return int(step), int(again or 0)


def _stems(folder: str) -> list[str]:
    """Checkpoints of a folder, oldest first, valid or not.

    Found by listing the folder, not from TensorFlow's file `checkpoint`, which may be
    empty. The index file is written last, so data without an index are ignored.
    """
    stems = {_stem(n) for n in files.names_in(folder) if n.endswith(".index")}
    return sorted(filter(_NAME.fullmatch, stems), key=_order)


def problem(prefix: str) -> str | None:
    """One line if TensorFlow cannot read every value of a checkpoint, else None."""
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except _UNREADABLE as error:
        return f"{prefix}: {_first_line(error)}"
    return None


def _variables_of(trackable) -> list:
    """The variables of a network, an optimizer or a plain checkpoint."""
    for name in ("weights", "variables"):
        variables = getattr(trackable, name, None)
        if variables is not None:
            return variables() if callable(variables) else variables
    parts = tf.train.TrackableView(trackable).descendants()
    return [part for part in parts if isinstance(part, tf.Variable)]


def _check_finite(objects: dict, step: int, folder: str) -> None:
    """Refuses to keep a checkpoint that contains NaN or Inf.

    Raises:
        FloatingPointError: naming the variables.
    """
    bad = []
    for name, trackable in objects.items():
        for variable in _variables_of(trackable):
            value = tf.convert_to_tensor(variable)
            if value.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(value)):
                bad.append(f"{name}/{getattr(variable, 'path', variable.name)}")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise FloatingPointError(
            f"Step {step}: NaN or Inf in {', '.join(bad[:3])}{more}. They were not "
            f"saved{_what_is_left(folder)}. Try a lower --base_learning_rate."
        )


def _what_is_left(folder: str) -> str:
    """The suffix of an error about writing: names the newest checkpoint, if any."""
    stems = _stems(folder)
    return f"; {os.path.join(folder, stems[-1])} is intact" if stems else ""


def _write(checkpoint: tf.train.Checkpoint, folder: str, name: str) -> str:
    """Writes a checkpoint atomically; returns its prefix.

    Args:
        name: of its files; a number is appended if it exists.

    Raises:
        ValueError: if it cannot be written.
    """
    scratch = os.path.join(folder, WRITING)
    left = _what_is_left(folder).removeprefix("; ")
    with (
        files.one_line_errors(os.path.join(folder, name), f"{left}." if left else ""),
        files.removed_after_errors(scratch),
    ):
        # A killed process may have left files in it.
        files.remove(scratch)
        _remove_others(folder, _stems(folder))
        tf.io.gfile.makedirs(scratch)
        written = checkpoint.write(os.path.join(scratch, name))
        # Above all of its step: the order of the names is that of the writing.
        taken = filter(_NAME.fullmatch, {_stem(n) for n in files.names_in(folder)})
        same = [_order(s)[1] for s in taken if f"{s}-".startswith(f"{name}-")]
        again = f"-{max(same) + 1}" if same else ""
        prefix = os.path.join(folder, f"{name}{again}")
        # The index last.
        parts = [n.removeprefix(name) for n in files.names_in(scratch)]
        for suffix in sorted(parts, key=lambda part: part == ".index"):
            files.to_disk(written + suffix)
            tf.io.gfile.rename(written + suffix, prefix + suffix)
        files.to_disk(folder)
        tf.io.gfile.rmtree(scratch)  # noqa: TID251
    return prefix


def _remove_others(folder: str, kept: list[str]) -> None:
    """Removes all checkpoints of a folder except these stems."""
    for name in files.names_in(folder):
        if _NAME.fullmatch(_stem(name)) and _stem(name) not in kept:
            files.remove(os.path.join(folder, name))


def propose_best(folder: str, role: str, network, info: dict) -> None:
    """Writes a network that becomes the best one with `settle_best`.

    In between, the state that refers to it is saved. So a process may be killed at any
    time: the best network always is the one that the last saved state refers to.
    The `info` has `epoch`, `step` and metrics.
    """
    tf.io.gfile.makedirs(folder)
    _check_finite({role: network}, info["step"], folder)
    checkpoint = tf.train.Checkpoint(**{role: network})
    prefix = _write(checkpoint, folder, f"{_BEST_PREFIX}-{info['step']}")
    content = {"name": os.path.basename(prefix), **info}
    manifest.write_json(os.path.join(folder, _PROPOSED_FILE), content)


def settle_best(folder: str, noted: dict | None, verify: bool = False) -> dict | None:
    """Makes the proposed network the best one, or drops it; removes all others.

    Args:
        folder: see best_folder.
        noted: `epoch` and `step` of the best network in the saved state, or None.
        verify: whether to read the network, as after a start.

    Returns:
        The `info` of the best network on disk; None if it is missing or damaged, with a
        warning in the latter case.
    """
    proposed = os.path.join(folder, _PROPOSED_FILE)
    best = os.path.join(folder, _BEST_FILE)
    files.remove(os.path.join(folder, WRITING))
    try:
        if tf.io.gfile.exists(proposed):
            info = manifest.read_json(proposed)
            if noted and all(info.get(k) == noted.get(k) for k in ("epoch", "step")):
                tf.io.gfile.rename(proposed, best, overwrite=True)
            else:
                tf.io.gfile.remove(proposed)
        if noted is None and not tf.io.gfile.exists(best):
            _remove_others(folder, [])
            return None
        info = manifest.read_json(best)
        name = info.pop("name")
        found = problem(os.path.join(folder, name)) if verify else None
    except ValueError as error:
        found = _first_line(error)
    except (KeyError, AttributeError, TypeError):
        found = f"{best} does not say which network is the best"
    if found:
        _LOG.warning("The best network in %s is passed over: %s", folder, found)
        return None
    _remove_others(folder, [name])
    return info


def settled(folder: str) -> dict:
    """The `info` of the best network on disk, as `settle_best`."""
    info = manifest.read_json(os.path.join(folder, _BEST_FILE))
    del info["name"]
    return info


def write_best(folder: str, role: str, network, info: dict) -> None:
    """Writes a network as the best one."""
    propose_best(folder, role, network, info)
    settle_best(folder, info)


def read_best(train_dir: str, phase: str, role: str) -> Found | None:
    """The best network of a role in a phase, or None.

    Raises:
        ValueError: naming the file that points to it, if that is damaged.
    """
    folder = best_folder(train_dir, phase, role)
    path = os.path.join(folder, _BEST_FILE)
    if not tf.io.gfile.exists(path):
        return None
    info = manifest.read_json(path)
    try:
        return Found(os.path.join(folder, info["name"]), int(info["step"]), phase)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say which network is the best.") from error


def _latest(train_dir: str, phase: str) -> Found | None:
    folder = os.path.join(train_dir, phase, CHECKPOINTS)
    stems = _stems(folder)
    if not stems:
        return None
    return Found(os.path.join(folder, stems[-1]), _order(stems[-1])[0], phase)


def find(
    train_dir: str, plan: manifest.Plan, role: str, which: str = "best"
) -> Found | None:
    """The checkpoint of a network in a train_dir; None if there is none yet.

    Damage is detected when it is restored.

    Args:
        which: `best`, `latest`, or a checkpoint prefix.
    """
    if which not in ("best", "latest"):
        if not tf.io.gfile.exists(f"{which}.index"):
            raise ValueError(f"--checkpoint={which}: {which}.index does not exist.")
        name = _NAME.fullmatch(os.path.basename(which))
        return Found(which, int(name[2]) if name else -1, "")
    for phase in plan.phases_of(role):
        found = read_best(train_dir, phase, role) if which == "best" else None
        if which == "latest":
            found = _latest(train_dir, phase)
        if found:
            return found
    return None


def restore_network(found_prefix: str, role: str, network) -> None:
    """Restores a network from a checkpoint of a state or of a best network.

    Raises:
        ValueError: if the checkpoint is damaged, lacks variables, or contains NaN or
            Inf.
    """
    checkpoint = tf.train.Checkpoint(**{role: network})
    try:
        # read, not restore: a best network has no save counter.
        status = checkpoint.read(found_prefix)
        status.expect_partial()
        status.assert_existing_objects_matched()
    except _UNREADABLE as error:
        raise ValueError(
            f"The checkpoint {found_prefix} is damaged or not of this {role}: "
            f"{_first_line(error)}"
        ) from error
    for variable in network.weights:
        if not np.isfinite(variable.numpy()).all():
            name = getattr(variable, "path", variable.name)
            raise ValueError(
                f"The checkpoint {found_prefix} has NaN or Inf in {name} of the {role}."
            )


class State:
    """The state that a phase needs to resume exactly.

    Args:
        folder: of the phase.
        objects: name → trackable: networks and optimizers.
        writes: False in all processes but the chief. All have the same complete state,
            so the chief alone saves it.
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
        self.batch = counter()  # Finished batches of the epoch.
        # Best validation so far and evaluations, as JSON.
        self.notes = tf.Variable("{}", dtype=tf.string, trainable=False)
        self.checkpoint = tf.train.Checkpoint(
            step=self.step,
            epoch=self.epoch,
            batch=self.batch,
            notes=self.notes,
            **objects,
        )
        # What goes into the next log line, as JSON values; saved with the notes.
        self.unlogged: list = []
        self._objects = objects
        self._folder = os.path.join(folder, CHECKPOINTS)
        self.writes = writes
        self._max_to_keep = max_to_keep
        self._saved: tuple = ()  # Counters, notes and prefix of the newest save.

    def restore(self) -> str | None:
        """Restores the newest valid checkpoint; returns its prefix.

        Raises:
            ValueError: if there are checkpoints, and all are damaged.
        """
        stems = _stems(self._folder)
        for stem in reversed(stems):
            prefix = os.path.join(self._folder, stem)
            try:
                self.checkpoint.read(prefix).assert_existing_objects_matched()
                notes = json.loads(self.notes.numpy().decode())
                self.unlogged = notes.pop(_UNLOGGED, [])
                self.write_notes(notes)
                return prefix
            except _UNREADABLE as error:
                reason = _first_line(error)
                _LOG.warning("Checkpoint %s is passed over: %s", prefix, reason)
        if stems:
            raise ValueError(f"None of the checkpoints in {self._folder} can be read.")
        return None

    def save(self) -> str:
        """Writes a checkpoint named after the step; returns its prefix.

        Empty where this process does not write. A state with the counters and notes of
        the newest save is not written again.

        Raises:
            ValueError: if the file system refuses.
            FloatingPointError: if a value is NaN or Inf.
        """
        if not self.writes:
            return ""
        step = int(self.step.numpy())
        counters = (step, int(self.epoch.numpy()), int(self.batch.numpy()))
        # Notes change without a counter where --max_steps has ended an epoch.
        position = (*counters, self.notes.numpy())
        if self._saved and self._saved[0] == position:
            return self._saved[1]
        _check_finite(self._objects, step, self._folder)
        notes = self.read_notes()
        self.write_notes(
            {**notes, _UNLOGGED: self.unlogged} if self.unlogged else notes
        )
        prefix = _write(self.checkpoint, self._folder, f"{_STATE_PREFIX}-{step}")
        self.write_notes(notes)
        self._saved = (position, prefix)
        self._tidy(os.path.basename(prefix))
        return prefix

    def _tidy(self, newest: str) -> None:
        """Keeps the newest checkpoint and those before it, as many as are to stay.

        Later steps are of a future that was given up, because its checkpoints were
        damaged; others of the same step have been replaced.
        """
        older = [s for s in _stems(self._folder) if _order(s)[0] < _order(newest)[0]]
        kept = [*older, newest][-self._max_to_keep :]
        # For TensorFlow's own tools: tf.train.latest_checkpoint reads it.
        lines = [f'model_checkpoint_path: "{newest}"']
        lines += [f'all_model_checkpoint_paths: "{stem}"' for stem in kept]
        path = os.path.join(self._folder, "checkpoint")
        files.write_text(path, "\n".join(lines) + "\n")
        _remove_others(self._folder, kept)

    @property
    def what_is_left(self) -> str:
        """`; <prefix> is intact`, of the newest checkpoint on the disk, or empty."""
        return _what_is_left(self._folder)

    def read_notes(self) -> dict:
        """The notes as a dict."""
        return json.loads(self.notes.numpy().decode())

    def write_notes(self, notes: dict) -> None:
        """Sets the notes."""
        self.notes.assign(json.dumps(notes))
