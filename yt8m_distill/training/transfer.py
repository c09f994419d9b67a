"""Initial weights from another run: `--start_from`."""

import logging
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.models import base
from yt8m_distill.training import checkpoints, manifest, roles, trained

_LOG = logging.getLogger(__name__)


class Transfer(NamedTuple):
    """The variables that a network copies from another one.

    Attributes:
        prefix: of the other network's checkpoint.
        pairs: (target, source) variables of equal shapes.
        remark: for the log, which variables are not copied.
    """

    prefix: str
    pairs: list[tuple]
    remark: str

    def assign(self, role: str) -> None:
        """Copies the variables and logs how many."""
        for target, source in self.pairs:
            target.assign(source.numpy())
        size = base.num_weights([source for _, source in self.pairs])
        taken = f"{size:,} parameters are taken{self.remark}"
        _LOG.info("The %s starts from %s: %s.", role, self.prefix, taken)


def plan(role: roles.Role, network, run: settings.RunSettings) -> Transfer:
    """Plans what a role's new network copies from another run.

    That is the encoder, the classifier if its shapes and classes are the same, and the
    weights of the context if both networks have one of the same width.

    Args:
        role: its start_from names the other run.

    Raises:
        ValueError: if there is no such network, or its encoder has other shapes.
    """
    start_from = role.start_from
    train_dir = manifest.train_dir_of(start_from)
    if train_dir is None:
        raise ValueError(
            f"--start_from={start_from} is neither a train_dir nor a checkpoint in one."
        )
    source_run = manifest.read_run_settings(train_dir)
    for name in ("feature_names", "feature_sizes", "frame_features"):
        there, here = getattr(source_run.data, name), getattr(run.data, name)
        if not settings.is_same(name, there, here):
            raise ValueError(
                f"--start_from={start_from} was trained with --{name}={there}, but "
                f"this command has {here}."
            )
    registry.import_user_modules(source_run.networks.import_modules)
    source_plan = manifest.read_plan(train_dir)
    prefix, source_role = _find(start_from, train_dir, source_plan, role.name)
    source, _ = trained.read_network(source_plan, source_role, source_run.data)
    checkpoints.restore_network(prefix, source_role, source)
    (encoder, head, context), others = _parts(network), _parts(source)
    source_encoder, source_head, source_context = others
    if _shapes(encoder) != _shapes(source_encoder):
        raise ValueError(
            f"--start_from={start_from}: the encoder of its {source_role} has "
            f"variables of the shapes {_shapes(source_encoder)}, that of the "
            f"{role.name} here {_shapes(encoder)}."
        )
    pairs, remark = list(zip(encoder, source_encoder, strict=True)), ""
    classes, source_classes = run.data.num_classes, source_run.data.num_classes
    if _shapes(head) == _shapes(source_head) and classes == source_classes:
        pairs += zip(head, source_head, strict=True)
    else:
        remark += f"; the classifier is new, for {classes} classes "
        remark += f"(there {source_classes})"
    if _shapes(context) == _shapes(source_context):
        pairs += zip(context, source_context, strict=True)
    else:
        state = "new" if context else "left out"
        remark += f"; the weights of the video's context are {state}"
    return Transfer(prefix, pairs, remark)


def _find(
    start_from: str, train_dir: str, source_plan: manifest.Plan, role: str
) -> tuple[str, str]:
    """The checkpoint prefix and the role of the source network."""
    names = set(source_plan.trained)
    if start_from != train_dir:
        stored = {key.split("/")[0] for key, _ in tf.train.list_variables(start_from)}
        names &= stored
    if role not in names and len(names) != 1:
        raise ValueError(
            f"--start_from={start_from} has no {role}, but {', '.join(sorted(names))}."
        )
    source_role = role if role in names else names.pop()
    if start_from != train_dir:
        return start_from, source_role
    best = checkpoints.find(train_dir, source_plan, source_role)
    if best is None:
        raise ValueError(f"--start_from={start_from} has no trained {source_role} yet.")
    return best.prefix, source_role


def _parts(network) -> tuple[list, list, list]:
    """The variables of the encoder, of the classifier, and of the context."""
    head = list(network.head.weights)
    context = [] if network.context is None else [network.context]
    others = {id(variable) for variable in head + context}
    return [v for v in network.weights if id(v) not in others], head, context


def _shapes(variables: list) -> list[tuple]:
    return [tuple(variable.shape) for variable in variables]
