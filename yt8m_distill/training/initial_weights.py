"""Initial weights of the networks of a phase."""

import logging

from yt8m_distill import settings
from yt8m_distill.training import checkpoints, roles, transfer

_LOG = logging.getLogger(__name__)


def start_heads(
    phase: roles.Phase, networks, shards, training: settings.TrainingSettings
) -> None:
    """Initializes new classifiers to the class frequencies of the training data.

    Counts only videos of `--train_fraction` that keep their labels under
    `--label_fraction`.
    """
    new = [role for role in phase.trained if role.start is None]
    heads = [networks.network(role.name).head for role in new]
    heads = [head for head in heads if hasattr(head, "start_at")]
    if heads:
        share = training.train_fraction, training.label_fraction
        frequencies = shards.class_frequencies(*share)
        for head in heads:
            head.start_at(frequencies)


def assign(phase: roles.Phase, networks, run: settings.RunSettings) -> None:
    """Restores the weights that a phase takes from earlier phases and other runs.

    Raises:
        ValueError: if such a network is missing or incompatible.
    """
    for role in phase.roles:
        if role.start is None:
            continue
        prefix, source = role.start.prefix, role.start.role
        if not prefix:
            train_dir = run.training.train_dir
            best = checkpoints.read_best(train_dir, role.start.phase, source)
            if best is None:
                raise ValueError(
                    f"--train_dir={train_dir} has no trained {source} yet: train it "
                    "first, or name a --teacher_checkpoint."
                )
            prefix = best.prefix
        checkpoints.restore_network(prefix, source, networks.network(role.name))
        verb = "is read from" if role.frozen else "starts from"
        _LOG.info("The %s %s %s.", role.name, verb, prefix)
    copy_from_guide(phase, networks)
    for role in phase.trained:
        if role.copies_network:
            new = "; the weights of the video's context are new" if role.context else ""
            _LOG.info("The %s starts as the %s%s.", role.name, role.guides[0], new)
        if role.start_from:
            transfer.plan(role, networks.network(role.name), run).assign(role.name)


def copy_from_guide(phase: roles.Phase, networks) -> None:
    """Copies to each learner the weights that it takes from its guide.

    Raises:
        ValueError: if the two networks are incompatible.
    """
    for role in phase.trained:
        pair = (*role.guides[:1], role.name)
        if role.copies_classifier and role.trains_classifier:
            networks.copy_classifier(*pair)
        elif role.copies_classifier:
            names = " + ".join(term.name for term in role.objective.terms)
            networks.copy_classifier(*pair, f"--student_loss={names} alone")
        if role.copies_network:
            networks.copy_network(*pair)
