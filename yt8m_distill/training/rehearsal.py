"""A look at a whole run before its first step: what would fail later fails now."""

import os

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import builder
from yt8m_distill.training import (
    checkpoints,
    initial_weights,
    inputs,
    modes,
    optimizers,
    steps,
    transfer,
)


def rehearse(plan: list[modes.Phase], run: settings.RunSettings) -> None:
    """Makes the views, networks and optimizer of every phase once and drops them.

    A mistake in the student's settings must not show only when the teacher has been
    trained for days. What the mode has no use for is parsed too: a slip in it must not
    stand in model_flags.json as if it had been obeyed.

    Raises:
        ValueError: if a phase cannot be built, or a setting cannot be parsed.
    """
    objectives.build_objective(run.distillation)
    builder.student_specification(run)
    for phase in plan:
        roles = [role.name for role in phase.roles]
        inputs.views_of(run, roles)
        inputs.views_of(run, roles, training=True)
        networks = builder.build_networks(
            run, roles, phase.share_classifier, to_be_read=True
        )
        initial_weights.copy_from_guide(phase, networks)
        folder = os.path.join(run.training.train_dir, phase.name)
        if run.training.start_new_model or not checkpoints.has_weights(folder):
            for role, network in transfer.receivers(phase, networks, run):
                transfer.plan(role, network, run)
        _rehearse_losses(phase, networks, run)
    optimizers.build_optimizer(
        run.optimization, optimizers.LearningRate(run.optimization, 1, 1)
    )
    if run.distillation.teacher_checkpoint:
        initial_weights.warn_of_unfinished_teacher(run.distillation.teacher_checkpoint)
        initial_weights.find_teacher(run)
    if run.training.start_new_model:
        _check_not_inside(run, "teacher_checkpoint", run.distillation)
        _check_not_inside(run, "start_from", run.training)


def _check_not_inside(run: settings.RunSettings, flag: str, group) -> None:
    """Raises ValueError if the train_dir that is moved holds what a flag names."""
    given = getattr(group, flag)
    train_dir = os.path.abspath(run.training.train_dir)
    if given and os.path.join(os.path.abspath(given), "").startswith(
        os.path.join(train_dir, "")
    ):
        raise ValueError(f"--start_new_model would move --{flag}={given} away.")


def _rehearse_losses(phase: modes.Phase, networks, run: settings.RunSettings) -> None:
    """Computes the losses of a phase on a video of nothing.

    Raises:
        ValueError: if outputs do not fit together, or there is nothing to be trained.
    """
    dtype = tf.uint8 if run.data.frame_features else tf.float32
    views = {}
    for role in phase.roles:
        width = networks.network(role.name).max_frames
        views[role.view] = {
            structures.FRAMES: tf.zeros([1, width, run.data.feature_size], dtype),
            structures.NUM_FRAMES: tf.ones([1], tf.int32),
            structures.FRAME_INDICES: tf.zeros([1, width], tf.int32),
        }
    with_states = any(role.objective.needs_states for role in phase.trained)
    outputs = {}
    for role in phase.roles:
        network = networks.network(role.name)
        before = {id(variable) for variable in network.trainable_variables}
        outputs[role.name] = networks.forward(role.name, views, with_states=with_states)
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
        role.objective(outputs[role.name], labels, outputs.get(role.guide))
        if not steps.trained_variables(network, role):
            raise ValueError(
                f"--student_loss={run.distillation.student_loss} has nothing to train "
                f"in the {role.name}, whose classifier it leaves alone."
            )
