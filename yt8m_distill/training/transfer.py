"""Initial weights out of another run: `--start_from`."""

import logging
import os
from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.training import checkpoints, manifest, trained

_LOG = logging.getLogger(__name__)

# A checkpoint is at most that many folders below its train_dir.
_DEPTH = 4


class Transfer(NamedTuple):
    """What a network takes from another one.

    Attributes:
        prefix: of the other network's checkpoint.
        pairs: (own variable, the other's) of the same shape.
        remark: what is not taken.
    """

    prefix: str
    pairs: list[tuple]
    remark: str

    def assign(self, role: str) -> None:
        """Sets the variables and logs what was taken."""
        for mine, other in self.pairs:
            mine.assign(other.numpy())
        size = sum(tf.size(other).numpy() for _, other in self.pairs)
        _LOG.info(
            "The %s starts from %s: %s parameters are taken%s.",
            role,
            self.prefix,
            f"{size:,}",
            self.remark,
        )


def receivers(phase, is_first: bool, networks, start_from: str) -> list[tuple]:
    """(role, network) of what `--start_from` is for: the first phase's learners."""
    if not (start_from and is_first):
        return []
    return [(role.name, networks.network(role.name)) for role in phase.trained]


def plan(role: str, network, run: settings.RunSettings) -> Transfer:
    """What a new network takes from `--start_from`.

    Its encoder, and its classifier if that has the same shape and classes.

    Args:
        role: of the network.
        network: in this run.
        run: the settings of this run.

    Raises:
        ValueError: if there is no such network, or its encoder is another one.
    """
    given = run.training.start_from
    train_dir = _train_dir_of(given)
    theirs = manifest.read_run_settings(train_dir)
    for name in ("feature_names", "feature_sizes", "frame_features"):
        there, here = getattr(theirs.data, name), getattr(run.data, name)
        if not settings.is_same(name, there, here):
            raise ValueError(
                f"--start_from={given} was trained with --{name}={there}, this command "
                f"says {here}."
            )
    registry.import_user_modules(theirs.networks.import_modules)
    their_plan = manifest.read_plan(train_dir)
    prefix, source = _find(given, train_dir, their_plan, role)
    other, _ = trained.read_network(their_plan, source, theirs.data)
    checkpoints.restore_network(prefix, source, other)
    (encoder, head), (other_encoder, other_head) = map(_parts, (network, other))
    if _shapes(encoder) != _shapes(other_encoder):
        raise ValueError(
            f"--start_from={given}: the encoder of its {source} has variables of the "
            f"shapes {_shapes(other_encoder)}, the {role} of this command "
            f"{_shapes(encoder)}."
        )
    pairs = list(zip(encoder, other_encoder, strict=True))
    classes, theirs_classes = run.data.num_classes, theirs.data.num_classes
    if _shapes(head) == _shapes(other_head) and classes == theirs_classes:
        return Transfer(prefix, pairs + list(zip(head, other_head, strict=True)), "")
    remark = f"; the classifier is new, for {classes} classes (there {theirs_classes})"
    return Transfer(prefix, pairs, remark)


def _train_dir_of(given: str) -> str:
    """The train_dir that is meant, or in which a checkpoint lies."""
    folder = given
    if not tf.io.gfile.exists(os.path.join(given, manifest.MODEL_FLAGS)):
        if not tf.io.gfile.exists(f"{given}.index"):
            raise ValueError(
                f"--start_from={given} is neither a train_dir nor a checkpoint prefix."
            )
        for _ in range(_DEPTH):
            folder = os.path.dirname(folder)
            if tf.io.gfile.exists(os.path.join(folder, manifest.MODEL_FLAGS)):
                return folder
        raise ValueError(
            f"--start_from={given}: no folder above it has {manifest.MODEL_FLAGS}."
        )
    return folder


def _find(
    given: str, train_dir: str, their_plan: manifest.Plan, role: str
) -> tuple[str, str]:
    """The prefix and the role of the network that is meant."""
    names = set(their_plan.trained)
    if given != train_dir:
        stored = {key.split("/")[0] for key, _ in tf.train.list_variables(given)}
        names &= stored
    if role not in names and len(names) != 1:
        raise ValueError(
            f"--start_from={given} has no {role}, but {', '.join(sorted(names))}."
        )
    source = role if role in names else names.pop()
    if given != train_dir:
        return given, source
    found = checkpoints.find(train_dir, their_plan, source)
    if found is None:
        raise ValueError(f"--start_from={given} has no trained {source} yet.")
    return found.prefix, source


def _parts(network) -> tuple[list, list]:
    """The variables of the encoder and those of the classifier."""
    head = list(network.head.weights)
    of_head = {id(variable) for variable in head}
    return [v for v in network.weights if id(v) not in of_head], head


def _shapes(variables: list) -> list[tuple]:
    return [tuple(variable.shape) for variable in variables]
