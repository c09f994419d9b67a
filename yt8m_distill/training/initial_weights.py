"""With which weights the networks of a phase begin."""

import logging

from yt8m_distill.training import checkpoints, modes

_LOG = logging.getLogger(__name__)


def start_heads(phase: modes.Phase, networks, shards, label_fraction: float) -> None:
    """Starts new classifiers at the frequencies of the classes in the training data.

    Of its videos whose labels count under `--label_fraction`.
    """
    new = [role for role in phase.trained if role.start is None]
    heads = [networks.network(role.name).head for role in new]
    heads = [head for head in heads if hasattr(head, "start_at")]
    if heads:
        frequencies = shards.class_frequencies(label_fraction)
        for head in heads:
            head.start_at(frequencies)


def assign(phase: modes.Phase, networks, train_dir: str) -> None:
    """Gives the networks of a phase what they take from earlier phases and runs.

    Raises:
        ValueError: if there is no such network, or two of them do not fit.
    """
    for role in phase.roles:
        if role.start is None:
            continue
        prefix, source = role.start.prefix, role.start.role
        if not prefix:
            found = checkpoints.read_best(train_dir, role.start.phase, source)
            if found is None:
                raise ValueError(
                    f"{train_dir}/{role.start.phase} has no finished {source}."
                )
            prefix = found.prefix
        checkpoints.restore_network(prefix, source, networks.network(role.name))
        verb = "is read from" if role.frozen else "starts from"
        _LOG.info("The %s %s %s.", role.name, verb, prefix)
    copy_from_guide(phase, networks)


def copy_from_guide(phase: modes.Phase, networks) -> None:
    """Gives each learner the weights of its guide that it starts with.

    Raises:
        ValueError: if the two networks do not fit.
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
