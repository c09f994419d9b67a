"""Dry run: builds every phase once, so that errors in the settings surface first."""

import os

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import builder
from yt8m_distill.training import (
    checkpoints,
    initial_weights,
    modes,
    optimizers,
    outside,
    specifications,
    steps,
    transfer,
)


def rehearse(plan: list[modes.Phase], run: settings.RunSettings) -> None:
    """Makes the networks and the optimizer of every phase once and drops them.

    A mistake in the student's settings must not show only when the teacher has been
    trained for days. What the mode has no use for is parsed too: a slip in it must not
    be in model_flags.json as if it had been obeyed.

    Raises:
        ValueError: if a phase cannot be built, or a setting cannot be parsed.
    """
    objectives.build_objective(run.distillation)
    specifications.student_specification(run)
    for phase in plan:
        networks = builder.build_networks(phase.roles, run.data, to_be_read=True)
        initial_weights.copy_from_guide(phase, networks)
        folder = os.path.join(run.training.train_dir, phase.name)
        if run.training.start_new_model or not checkpoints.has_weights(folder):
            for role, network in transfer.receivers(
                phase, phase is plan[0], networks, run.training.start_from
            ):
                transfer.plan(role, network, run)
        _rehearse_losses(phase, networks, run)
    optimizers.build_optimizer(
        run.optimization, optimizers.LearningRate(run.optimization, 1, 1)
    )
    outside.warn_of_unfinished(run)
    if run.training.start_new_model:
        _check_not_inside(run, "teacher_checkpoint", run.distillation)
        _check_not_inside(run, "start_from", run.training)


def _check_not_inside(run: settings.RunSettings, flag: str, group) -> None:
    """Raises ValueError if the train_dir that is moved holds what a flag names."""
    train_dir = os.path.join(os.path.abspath(run.training.train_dir), "")
    for given in settings.split_names(getattr(group, flag)):
        if os.path.join(os.path.abspath(given), "").startswith(train_dir):
            raise ValueError(f"--start_new_model would move --{flag}={given} away.")


def _rehearse_losses(phase: modes.Phase, networks, run: settings.RunSettings) -> None:
    """Computes the losses of a phase on a video of nothing.

    Raises:
        ValueError: if outputs do not fit together, or there is nothing to be trained.
    """
    dtype = tf.uint8 if run.data.frame_features else tf.float32
    views = {
        role.view: {
            structures.FRAMES: tf.zeros([1, role.frames, run.data.feature_size], dtype),
            structures.NUM_FRAMES: tf.ones([1], tf.int32),
            structures.FRAME_INDICES: tf.zeros([1, role.frames], tf.int32),
        }
        for role in phase.roles
    }
    outputs = {}
    for role in phase.roles:
        network = networks.network(role.name)
        before = {id(variable) for variable in network.trainable_variables}
        outputs[role.name] = networks.forward(
            role.name, views, states_of=phase.states_of
        )
        late = [v.name for v in network.trainable_variables if id(v) not in before]
        if late:
            raise ValueError(
                f"--{role.name}: {type(network).__name__} makes {', '.join(late)} when "
                "it is called, too late to be trained: build its layers in the "
                "constructor (layer.build)."
            )
        if role.frozen:
            continue
        labels = tf.zeros([1, run.data.num_classes])
        guides = [outputs[name] for name in role.guides]
        role.objective(outputs[role.name], labels, guides, tf.ones([1]))
        if not steps.trained_variables(network, role):
            raise ValueError(
                f"--student_loss={run.distillation.student_loss} has nothing to train "
                f"in the {role.name}, whose classifier it leaves alone."
            )
