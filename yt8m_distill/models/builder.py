"""Builds networks from specifications."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.data import features
from yt8m_distill.models import base, lstm, teacher_student

registry.import_modules("yt8m_distill.models")

# Arguments of every model that are derived from the settings.
_FROM_SETTINGS = ("feature_size", "num_classes", "max_frames")
# An argument that is no constructor's; see VideoClassifier.add_context.
CONTEXT_SIZE = "context_size"


def parse(name: str, text: str) -> registry.Specification:
    """Parses a flag and checks that the model exists and takes the arguments.

    Args:
        name: of the flag, for errors.
        text: its value.

    Raises:
        ValueError: naming the flag, for an unknown model or argument.
    """
    try:
        spec = registry.parse(text)
        base.MODELS.check(spec, (*_FROM_SETTINGS, "feature_sizes"))
    except ValueError as error:
        raise ValueError(f"--{name}={text}: {error}") from error
    return spec


def build_network(
    name: str,
    spec: registry.Specification,
    data: settings.DataSettings,
    frames: int,
    sharing: base.VideoClassifier | None = None,
) -> base.VideoClassifier:
    """Makes one network, with its variables.

    Args:
        name: of its role, which is the flag that an error names.
        spec: its class and arguments.
        data: widths of the features that it reads, and number of classes.
        frames: T, of the view that it reads.
        sharing: the network whose head it shares, or None.

    Raises:
        ValueError: if the network rejects an argument.
    """
    full_spec = spec
    if sharing is not None:
        arguments = {**spec.arguments, "head": sharing.head}
        full_spec = registry.Specification(spec.name, arguments)
    try:
        return _create(full_spec, data, frames)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name}={spec}: {error}") from error


def encoding_size(
    name: str, spec: registry.Specification, data: settings.DataSettings, frames: int
) -> int:
    """E, the width of the encoding of a network that is not built yet.

    Arguments and errors are those of build_network.
    """
    # A name can be registered again, so the network is part of the key.
    return _encoding_size(name, str(spec), base.MODELS.get(spec.name), data, frames)


@functools.lru_cache(maxsize=256)
def _encoding_size(name: str, text: str, registered, data, frames: int) -> int:
    del registered
    # In a graph no variable gets a value.
    with tf.Graph().as_default(), lstm.to_be_read():
        return build_network(name, registry.parse(text), data, frames).encoding_size


def _create(
    spec: registry.Specification, data: settings.DataSettings, frames: int
) -> base.VideoClassifier:
    arguments: dict[str, Any] = {
        "feature_size": data.feature_size,
        "num_classes": data.num_classes,
        "max_frames": frames,
    }
    if base.MODELS.accepts(spec.name, "feature_sizes"):
        arguments["feature_sizes"] = data.sizes
    of_network = dict(spec.arguments)
    context_size = of_network.pop(CONTEXT_SIZE, None)
    spec = registry.Specification(spec.name, of_network)
    network = base.MODELS.create(spec, **arguments)
    if not isinstance(network, base.VideoClassifier):
        raise ValueError(f"{spec.name} must be a base.VideoClassifier.")
    network.steps = features.steps(data)
    if not network.head.built:
        raise ValueError(
            f"the constructor of {spec.name} must end with build_classifier."
        )
    if context_size:
        network.add_context(context_size)
    _track_all(network)
    return network


def _track_all(network: base.VideoClassifier) -> None:
    """Makes checkpoints hold the variables that only Keras knows, under their number.

    tf.train.Checkpoint follows attributes; in Keras 3 (3.15) it finds neither layers in
    a list or dict nor the state of the generator of keras.layers.Dropout.
    """
    reached = {id(part) for part in tf.train.TrackableView(network).descendants()}
    for layer in network._flatten_layers():
        # No LSTM here draws from its generator, which earlier checkpoints lack.
        if isinstance(layer, lstm.StackedLSTM):
            reached |= {id(variable) for variable in layer.variables}
    for number, variable in enumerate(network.variables):
        if id(variable) not in reached:
            network._track_trackable(variable, name=f"variable_{number}")


def build_networks(
    roles: Sequence, data: settings.DataSettings, to_be_read: bool = False
) -> teacher_student.TeacherStudent:
    """New networks for these roles; call it in the strategy's scope.

    Args:
        roles: with `name`, `network` (a specification), `frames`, `view`, `features`
            (empty for all), and `shares_classifier_with` and `context`, an earlier role
            or None.
        data: description of the records.
        to_be_read: the weights will come from a checkpoint, or do not matter: slow
            initializers are replaced by zeros.
    """
    networks: dict[str, base.VideoClassifier] = {}
    with lstm.to_be_read() if to_be_read else contextlib.nullcontext():
        for role in roles:
            sharing = networks.get(role.shares_classifier_with)
            read = data.only(role.features)
            networks[role.name] = build_network(
                role.name, role.network, read, role.frames, sharing
            )
    views = {role.name: role.view for role in roles}
    contexts = {role.name: role.context for role in roles if role.context}
    return teacher_student.TeacherStudent(networks, views, contexts)
