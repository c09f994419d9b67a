"""Networks that other runs have trained: the teachers of `--teacher_checkpoint`."""

import dataclasses
import logging
import os
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.models import builder
from yt8m_distill.training import checkpoints, manifest

_LOG = logging.getLogger(__name__)

_ROLE = settings.TEACHER  # The name under which other runs keep one.


class Teacher(NamedTuple):
    """A network of another run.

    Attributes:
        role: its name there.
        network: its class and arguments.
        prefix: of its checkpoint.
        is_finished: whether that run has come to its end.
    """

    role: str
    network: registry.Specification
    prefix: str
    is_finished: bool = True


def teachers(run: settings.RunSettings) -> tuple[Teacher, ...]:
    """The teachers of `--teacher_checkpoint`, in the order of the flag.

    Raises:
        ValueError: for an entry that is no run and no checkpoint, a run on other data,
            without a teacher, or (of one entry) with another `--teacher`.
    """
    given = settings.split_names(run.distillation.teacher_checkpoint)
    return tuple(_teacher(entry, run, len(given) == 1) for entry in given)


def _teacher(entry: str, run: settings.RunSettings, alone: bool) -> Teacher:
    entry = os.path.expanduser(entry)
    where = f"--teacher_checkpoint={entry}"
    if tf.io.gfile.exists(f"{entry}.index"):
        return Teacher(_ROLE, builder.parse(_ROLE, run.networks.teacher), entry)
    if not tf.io.gfile.isdir(entry):
        raise ValueError(f"{where} is neither a train_dir nor a checkpoint prefix.")
    theirs = manifest.read_run_settings(entry)
    registry.import_user_modules(theirs.networks.import_modules)
    same = settings.is_same(_ROLE, theirs.networks.teacher, run.networks.teacher)
    if alone and not same:
        raise ValueError(
            f"{where} was trained with --teacher={theirs.networks.teacher!r}, this "
            f"command says {run.networks.teacher!r}."
        )
    # They decide what the weights mean.
    trained, wanted = (
        dataclasses.asdict(
            dataclasses.replace(
                r.data,
                video_id_key="",
                labels_key="labels",
                segment_labels=False,
                segment_negatives=0.0,
            )
        )
        for r in (theirs, run)
    )
    different = settings.differences(trained, wanted)
    if different:
        raise ValueError(f"{where} was trained on other data: {different}.")
    plan = manifest.read_plan(entry)
    found = checkpoints.find(entry, plan, _ROLE)
    if found is None:
        raise ValueError(f"{where} has no trained teacher yet.")
    network = registry.parse(plan.network(_ROLE)["network"])
    entries, last = manifest.read_phases(entry), plan.phases_of(_ROLE)[0]
    is_finished = bool(entries.get(last, {}).get("finished"))
    return Teacher(_ROLE, network, found.prefix, is_finished)


def warn_of_unfinished(run: settings.RunSettings) -> None:
    """A line for each run of `--teacher_checkpoint` that has not come to its end."""
    for found in teachers(run):
        if not found.is_finished:
            _LOG.warning(
                "--teacher_checkpoint: the run of %s has not finished; the student "
                "learns from the best teacher that it has now.",
                found.prefix,
            )
