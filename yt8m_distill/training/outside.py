"""Networks trained by other runs: the teachers of `--teacher_checkpoint`."""

import dataclasses
import logging
import os
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.models import builder
from yt8m_distill.training import checkpoints, manifest

_LOG = logging.getLogger(__name__)

_ROLE = settings.TEACHER  # The role of the network in the other run.


class Teacher(NamedTuple):
    """A network of another run.

    Attributes:
        role: its role there.
        network: its class and arguments.
        prefix: of its checkpoint.
        is_finished: whether that run has finished.
        label_fraction: that of its run.
    """

    role: str
    network: registry.Specification
    prefix: str
    is_finished: bool = True
    label_fraction: float = 0.0  # Of a checkpoint alone nothing is known.


def teachers(run: settings.RunSettings) -> tuple[Teacher, ...]:
    """The teachers of `--teacher_checkpoint`, in the order of the flag.

    Raises:
        ValueError: for an entry that is neither a run nor a checkpoint, a run on other
            data or without a teacher, or a single entry with another `--teacher`.
    """
    entries = settings.split_names(run.distillation.teacher_checkpoint)
    return tuple(_teacher(entry, run, len(entries) == 1) for entry in entries)


def _teacher(entry: str, run: settings.RunSettings, alone: bool) -> Teacher:
    entry = os.path.expanduser(entry)
    where = f"--teacher_checkpoint={entry}"
    if tf.io.gfile.exists(f"{entry}.index"):
        return Teacher(_ROLE, builder.parse(_ROLE, run.networks.teacher), entry)
    if not tf.io.gfile.isdir(entry):
        raise ValueError(f"{where} is neither a train_dir nor a checkpoint prefix.")
    source_run = manifest.read_run_settings(entry)
    registry.import_user_modules(source_run.networks.import_modules)
    same = settings.is_same(_ROLE, source_run.networks.teacher, run.networks.teacher)
    if alone and not same:
        raise ValueError(
            f"{where} was trained with --teacher={source_run.networks.teacher!r}, but "
            f"this command has {run.networks.teacher!r}: give it that --teacher, too."
        )
    check_same_data(where, source_run, run)
    plan = manifest.read_plan(entry)
    best = checkpoints.find(entry, plan, _ROLE)
    if best is None:
        raise ValueError(f"{where} has no trained teacher yet.")
    network = registry.parse(plan.network(_ROLE)["network"])
    entries, last = manifest.read_phases(entry), plan.phases_of(_ROLE)[0]
    is_finished = bool(entries.get(last, {}).get("finished"))
    seen = source_run.training.label_fraction
    return Teacher(_ROLE, network, best.prefix, is_finished, seen)


def check_same_data(
    where: str, source_run: settings.RunSettings, run: settings.RunSettings
) -> None:
    """Raises ValueError if a network of another run reads other frames or classes.

    Weights do not depend on the keys of id and labels, nor on what a row is.

    Args:
        where: the flag that names the other run, and its value.
        source_run, run: the settings of the other run and of this one.
    """
    source_data, data = (
        dataclasses.asdict(
            dataclasses.replace(
                r.data,
                video_id_key="",
                labels_key="labels",
                segment_labels=False,
                segment_negatives=0.0,
            )
        )
        for r in (source_run, run)
    )
    different = settings.differences(source_data, data)
    if different:
        raise ValueError(f"{where} was trained on other data: {different}.")


def warn(run: settings.RunSettings) -> None:
    """Logs a warning for each run of `--teacher_checkpoint` that may surprise.

    It has not finished, or it learned from labels that this run withholds.
    """
    for teacher in teachers(run):
        if not teacher.is_finished:
            _LOG.warning(
                "--teacher_checkpoint: the run of %s has not finished; the student "
                "learns from its best teacher so far.",
                teacher.prefix,
            )
        if teacher.label_fraction > run.training.label_fraction:
            _LOG.warning(
                "--label_fraction=%g: the teacher of %s has learned from a share of %g "
                "of the labels.",
                run.training.label_fraction,
                teacher.prefix,
                teacher.label_fraction,
            )
