"""With which weights the networks of a phase begin."""

import logging

from yt8m_distill.training import checkpoints, modes

_LOG = logging.getLogger(__name__)


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
