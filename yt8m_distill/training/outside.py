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


class Teacher(NamedTuple):
    """A network of another run.

    Attributes:
        network: its class and arguments.
        prefix: of its checkpoint.
        role: its name there.
    """

    network: registry.Specification
    prefix: str
    role: str


def teachers(run: settings.RunSettings, role: str) -> tuple[Teacher, ...]:
    """The networks of `--teacher_checkpoint`, in the order of the flag.

    Of a run that trained none of this role, it is the last one that reads all frames.

    Logs a warning for each run that may surprise: it has not finished, or it learned
    from labels that this run withholds.

    Args:
        role: theirs there, also the flag of the network here.

    Raises:
        ValueError: for an entry that is neither a run nor a checkpoint, a run on other
            data or without such a network, or a single entry with another `--teacher`.
    """
    entries = settings.split_names(run.distillation.teacher_checkpoint)
    return tuple(_teacher(entry, run, role, len(entries) == 1) for entry in entries)


def _teacher(entry: str, run: settings.RunSettings, role: str, alone: bool) -> Teacher:
    entry = os.path.expanduser(entry)
    where, here = f"--teacher_checkpoint={entry}", getattr(run.networks, role)
    if tf.io.gfile.exists(f"{entry}.index"):
        train_dir = manifest.train_dir_of(entry)
        if train_dir:  # Of a checkpoint alone nobody knows what its network reads.
            check_same_data(where, manifest.read_run_settings(train_dir), run)
        return Teacher(builder.parse(role, here), entry, role)
    if not tf.io.gfile.isdir(entry):
        raise ValueError(f"{where} is neither a train_dir nor a checkpoint prefix.")
    source_run = manifest.read_run_settings(entry)
    registry.import_user_modules(source_run.networks.import_modules)
    check_same_data(where, source_run, run)
    plan = manifest.read_plan(entry)
    reading_all = (
        name
        for name in reversed(plan.trained)
        if plan.network(name)["frames"] == run.data.max_frames
    )
    name = role if role in plan.trained else next(reading_all, role)
    best = checkpoints.find(entry, plan, name)
    if best is None:
        raise ValueError(
            f"{where} has no trained {role} yet, nor another network that reads all "
            f"{run.data.max_frames} frames."
        )
    there = plan.network(name)["network"]
    if alone and not settings.is_same(role, there, here):
        raise ValueError(
            f"{where} was trained with --{name}={there!r}, but this command has "
            f"--{role}={here!r}: give it that --{role}, too."
        )
    last = plan.phases_of(name)[0]
    if not manifest.read_phases(entry).get(last, {}).get("finished"):
        _LOG.warning(
            "%s has not finished; the student learns from its best %s so far.",
            where,
            name,
        )
    seen, fraction = source_run.training.label_fraction, run.training.label_fraction
    if seen > fraction:
        _LOG.warning(
            "--label_fraction=%g: the %s of %s has learned from a share of %g of the "
            "labels.",
            fraction,
            name,
            where,
            seen,
        )
    return Teacher(registry.parse(there), best.prefix, name)


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
