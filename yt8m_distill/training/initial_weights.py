"""With which weights the networks of a phase begin."""

import dataclasses
import logging
import os

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.training import checkpoints, manifest, modes

_LOG = logging.getLogger(__name__)


def assign(phase: modes.Phase, networks, run: settings.RunSettings) -> None:
    """Gives the networks of a phase what they take from earlier phases and runs.

    Raises:
        ValueError: if there is no such network, or two of them do not fit.
    """
    for role in phase.roles:
        if role.initial is None:
            continue
        if role.initial == modes.EXTERNAL:
            prefix = find_teacher(run)
        else:
            train_dir = run.training.train_dir
            found = checkpoints.read_best(train_dir, role.initial, role.name)
            if found is None:
                raise ValueError(
                    f"{train_dir}/{role.initial} has no finished {role.name}."
                )
            prefix = found.prefix
        checkpoints.restore_network(prefix, role.name, networks.network(role.name))
        how = "is read" if role.frozen else "starts"
        _LOG.info("The %s %s from %s.", role.name, how, prefix)
    copy_from_guide(phase, networks)


def copy_from_guide(phase: modes.Phase, networks) -> None:
    """Gives the student the weights of its guide that it starts with.

    Raises:
        ValueError: if the two networks do not fit.
    """
    for role in phase.roles:
        if role.copies_classifier and role.trains_classifier:
            networks.copy_classifier()
        elif role.copies_classifier:
            names = " + ".join(term.name for term in role.objective.terms)
            networks.copy_classifier(f"--student_loss={names} alone")
    if any(role.copies_network for role in phase.roles):
        networks.copy_network()


def find_teacher(run: settings.RunSettings) -> str:
    """The prefix that `--teacher_checkpoint` stands for.

    Raises:
        ValueError: if there is no teacher, or it is another network than
            `--teacher` describes.
    """
    given = run.distillation.teacher_checkpoint
    if tf.io.gfile.exists(f"{given}.index"):
        return given
    if not tf.io.gfile.isdir(given):
        raise ValueError(
            f"--teacher_checkpoint={given} is neither a train_dir nor a checkpoint "
            "prefix."
        )
    theirs = manifest.read_run_settings(given)
    if not settings.is_same("teacher", theirs.networks.teacher, run.networks.teacher):
        raise ValueError(
            f"--teacher_checkpoint={given} was trained with --teacher="
            f"{theirs.networks.teacher!r}, this command says "
            f"{run.networks.teacher!r}."
        )
    # They decide what the weights mean.
    trained, wanted = (
        dataclasses.asdict(dataclasses.replace(r.data, video_id_key=""))
        for r in (theirs, run)
    )
    different = settings.differences(trained, wanted)
    if different:
        raise ValueError(
            f"--teacher_checkpoint={given} was trained on other data: {different}."
        )
    found = checkpoints.find(given, theirs, "teacher")
    if found is None:
        raise ValueError(f"--teacher_checkpoint={given} has no trained teacher yet.")
    return found.prefix


def warn_of_unfinished_teacher(train_dir: str) -> None:
    """A line if the run that trains a teacher has not come to its end."""
    path = os.path.join(train_dir, manifest.MANIFEST)
    if not tf.io.gfile.exists(path):
        return
    content = manifest.read_json(path)
    theirs = settings.RunSettings.from_dict(content["settings"])
    for phase in modes.phases_of(theirs, "teacher")[:1]:
        if not content["phases"].get(phase.name, {}).get("finished"):
            _LOG.warning(
                "--teacher_checkpoint=%s: that run has not finished; the student "
                "learns from the best teacher that it has now.",
                train_dir,
            )
