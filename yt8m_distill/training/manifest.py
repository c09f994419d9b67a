"""Files that describe a run: settings, versions, progress, results.

Files of a train_dir:

    model_flags.json         the settings of the newest command
    manifest.json            settings, versions, data, networks, results
    vocabulary.csv           names of the classes, with --vocabulary
    <phase>/settings.json    the settings that this phase depends on
    <phase>/metrics.jsonl    one JSON object per log line and per evaluation
    <phase>/best/<role>/     the best network by validation GAP
    <phase>/checkpoints/     the full state, to resume from
"""

import dataclasses
import datetime
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import yt8m_distill
from yt8m_distill import files, settings

_LOG = logging.getLogger(__name__)

MODEL_FLAGS = "model_flags.json"
MANIFEST = "manifest.json"
PHASE_SETTINGS = "settings.json"
VOCABULARY = "vocabulary.csv"
_DEPTH = 4  # A checkpoint is at most this many folders below its train_dir.

# Settings that may change when a training continues.
CHANGEABLE = (
    "train_dir",
    "mode",
    "import_modules",
    "steps_per_loop",
    "log_steps",
    "save_checkpoint_minutes",
    "max_checkpoints",
    "early_stop_epochs",
    "allow_moved_shards",
    "start_new_model",
    "num_gpus",
    "cluster_timeout_secs",
    "deterministic",
    "use_index",
    "index_dir",
    "max_bad_fraction",
    "teacher_cache",
    "vocabulary",
)
_JSON_TYPES = {dict: "object", list: "array"}


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file atomically.

    Raises:
        ValueError: if the file cannot be written.
    """
    files.write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str, kind: type = object) -> Any:
    """Reads JSON.

    Raises:
        ValueError: naming the file, if it does not exist, is not JSON or its value is
            not a `kind`.
    """
    if not tf.io.gfile.exists(path):
        raise ValueError(f"{path} does not exist.")
    with tf.io.gfile.GFile(path) as file:
        try:
            value = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    return _checked(value, kind, path)


def _checked(value: Any, kind: type, where: str) -> Any:
    """The value; raises ValueError if it is not a `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{where} is no JSON {_JSON_TYPES[kind]}.")
    return value


def keep_json_lines(path: str, keep: Callable[[dict], bool]) -> None:
    """Keeps the lines for which `keep` is true; drops the others and incomplete ones.

    Raises:
        ValueError: if the file cannot be written.
    """
    if not tf.io.gfile.exists(path):
        return
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    kept = []
    for line in content.splitlines():
        try:
            if keep(json.loads(line)):
                kept.append(line.decode())
        except (ValueError, AttributeError, TypeError):
            _LOG.warning("%s: an incomplete line is dropped.", path)
    text = "".join(f"{line}\n" for line in kept)
    if text.encode() != content:
        files.write_text(path, text)


def read_run_settings(train_dir: str) -> settings.RunSettings:
    """The settings of the run in a train_dir.

    Raises:
        ValueError: if there is no run, or its settings are invalid.
    """
    path = os.path.join(train_dir, MODEL_FLAGS)
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"--train_dir={train_dir} has no {MODEL_FLAGS}: no run of train.py."
        )
    try:
        return settings.RunSettings.from_dict(read_json(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def train_dir_of(path: str) -> str | None:
    """The train_dir that this is, or that contains this checkpoint prefix, or None."""
    depth = _DEPTH if tf.io.gfile.exists(f"{path}.index") else 0
    for _ in range(1 + depth):
        if tf.io.gfile.exists(os.path.join(path, MODEL_FLAGS)):
            return path
        path = os.path.dirname(path)
    return None


class Plan:
    """The phases and networks of a run, read from its manifest.

    Args:
        path: of the manifest, for errors.
        phases: a list of {"phase": name, "roles": {role: description}}.

    Raises:
        ValueError: if `phases` has another form.
    """

    def __init__(self, path: str, phases: Any):
        self._path = path
        try:
            self._phases = [(p["phase"], dict(p["roles"])) for p in phases]
            entries = [entry for _, roles in self._phases for entry in roles.items()]
            self._trained = {role: e for role, e in entries if e["trained"]}
            self._networks = {**dict(entries), **self._trained}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no plan of phases and networks.") from error

    @property
    def trained(self) -> list[str]:
        """The roles that are trained, in the order of their training."""
        return list(self._trained)

    def network(self, role: str) -> dict:
        """The description of a role."""
        return self._networks[role]

    def phases_of(self, role: str) -> list[str]:
        """The phases that train a role, in reverse order."""
        return [
            name
            for name, roles in reversed(self._phases)
            if roles.get(role, {}).get("trained")
        ]


def read_plan(train_dir: str) -> Plan:
    """The phases and networks of the run in a train_dir.

    Raises:
        ValueError: naming the file, if there is no manifest or it contains no plan.
    """
    path = os.path.join(train_dir, MANIFEST)
    return Plan(path, read_json(path, dict).get("plan"))


# What ends a phase; it may be raised later.
_ENDS = ("epochs", "max_steps")


def check_same_settings(folder: str, wanted: dict) -> bool:
    """Compares the settings of a phase with those that it was started with.

    Only `epochs` and `max_steps` may differ: a phase can go on beyond its end, if its
    schedule does not depend on it.

    Returns:
        Whether it now ends later than when it was started.

    Raises:
        ValueError: listing the settings that differ, or if its end cannot change so.
    """
    path = os.path.join(folder, PHASE_SETTINGS)
    if not tf.io.gfile.exists(path):
        return False
    # Settings added after the run started had their defaults; the mode was not stored.
    mode = {name: wanted[name] for name in ("mode",) if name in wanted}
    stored = {**_defaults(wanted), **mode, **read_json(path, dict)}
    old, new = ({name: x.get(name, 0) for name in _ENDS} for x in (stored, wanted))
    different = settings.differences(
        *({k: v for k, v in x.items() if k not in _ENDS} for x in (stored, wanted))
    )
    if different:
        raise ValueError(
            f"{folder} was trained with other settings: {different}. Use "
            "the old ones, another --train_dir, or --start_new_model."
        )
    for name, value in old.items():
        if type(value) is not int:
            raise ValueError(f"{path}: {name}={value!r} is not a whole number.")
    if new == old:
        return False
    change = (
        f"{folder} was started with {old['epochs']} epochs and --max_steps="
        f"{old['max_steps']}, not {new['epochs']} and {new['max_steps']}"
    )
    limits = [ends["max_steps"] or math.inf for ends in (old, new)]
    if new["epochs"] < old["epochs"] or limits[1] < limits[0]:
        raise ValueError(
            f"{change}: --num_epochs and --max_steps can be raised, not lowered; 0 "
            "steps are no limit."
        )
    if wanted.get("learning_rate_schedule") == "cosine":
        raise ValueError(
            f"{change}: --learning_rate_schedule=cosine ends at 0, so it cannot go on. "
            f"Use another --train_dir and --start_from={os.path.dirname(folder)}."
        )
    return True


def _defaults(names) -> dict:
    groups = [field.type for field in dataclasses.fields(settings.RunSettings)]
    fields = [field for group in groups for field in dataclasses.fields(group)]
    return {field.name: field.default for field in fields if field.name in names}


# Parts of a phase's entry that are read back, and their types.
_READ_BACK = {"data": dict, "goal": dict, "results": dict, "epoch_seconds": list}


def read_phases(train_dir: str) -> dict[str, dict]:
    """The phases' entries in the manifest of a run; empty without a manifest.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    path = os.path.join(train_dir, MANIFEST)
    if not tf.io.gfile.exists(path):
        return {}
    phases = _checked(read_json(path, dict).get("phases", {}), dict, f"{path}: phases")
    for name, entry in phases.items():
        _checked(entry, dict, f"{path}: {name}")
        for key in _READ_BACK.keys() & entry:
            _checked(entry[key], _READ_BACK[key], f"{path}: {name}.{key}")
    return phases


class Manifest:
    """manifest.json of a run: settings, versions, machine and results.

    Args:
        writes: False on all workers but the chief.
    """

    def __init__(self, train_dir: str, run: settings.RunSettings, writes: bool = True):
        self.path = os.path.join(train_dir, MANIFEST)
        self.writes = writes
        phases = read_phases(train_dir)
        self.content = {
            "started": _now(),
            "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
            "settings": run.to_dict(),
            "versions": {
                "yt8m_distill": yt8m_distill.__version__,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "python": platform.python_version(),
            },
            "machine": {
                "processors": os.cpu_count(),
                "gpus": len(tf.config.list_physical_devices("GPU")),
            },
            "phases": phases,
        }

    def update(self, phase: str, **values: Any) -> None:
        """Merges values into a phase's entry and writes the file."""
        entry = self.content["phases"].setdefault(phase, {})
        entry.update(values, updated=_now())
        self.write()

    def phase(self, name: str) -> dict:
        """A phase's entry."""
        return self.content["phases"].get(name, {})

    def write(self) -> None:
        """Writes the file."""
        if self.writes:
            write_json(self.path, self.content)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
