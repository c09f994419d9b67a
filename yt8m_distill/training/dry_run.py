"""Dry run: builds every phase once, so that errors in the settings surface first."""

import os

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.data import pipeline
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import builder
from yt8m_distill.training import (
    checkpoints,
    initial_weights,
    modes,
    optimizers,
    roles,
    steps,
    teacher_cache,
    transfer,
)


def build_phases(plan: list[roles.Phase], run: settings.RunSettings) -> None:
    """Builds the networks, losses and optimizer of every phase, and discards them.

    Otherwise an error in the student's settings would surface only after the teacher
    has trained for days. Settings that the mode does not use are parsed too, so that
    model_flags.json never records an invalid one.

    Raises:
        ValueError: if a phase cannot be built, its guide cannot be cached, or a setting
            cannot be parsed.
    """
    objectives.build_objective(run.distillation)
    modes.student_specification(run)
    training = run.training
    if training.unlabeled_data_pattern:
        pipeline.num_unlabeled_rows(training.batch_size, training.unlabeled_fraction)
        if not any(phase.is_guided for phase in plan):
            raise ValueError(
                f"--unlabeled_data_pattern={training.unlabeled_data_pattern}: no "
                f"network of --mode={run.distillation.mode} has a teacher, which alone "
                "teaches on videos without labels."
            )
    for phase in plan:
        networks = builder.build_networks(phase.roles, run.data, to_be_read=True)
        initial_weights.copy_from_guide(phase, networks)
        folder = os.path.join(run.training.train_dir, phase.name)
        if run.training.start_new_model or not checkpoints.has_weights(folder):
            for role in phase.trained:
                if role.start_from:
                    transfer.plan(role, networks.network(role.name), run)
        _compute_losses(phase, networks, run)
        if run.distillation.teacher_cache and phase.frozen and phase.states_of:
            view = phase.views[phase.states_of]
            teacher_cache.check_same_frames(view, run.data.max_frames)
    optimizers.build_optimizer(
        run.optimization, optimizers.LearningRate(run.optimization, 1, 1)
    )
    if run.training.start_new_model:
        _check_not_inside(run, "teacher_checkpoint", run.distillation)
        _check_not_inside(run, "start_from", run.training)


def _check_not_inside(run: settings.RunSettings, flag: str, group) -> None:
    """Raises ValueError if a path in the flag is inside the train_dir to be moved."""
    train_dir = os.path.join(os.path.abspath(run.training.train_dir), "")
    for path in settings.split_names(getattr(group, flag)):
        if os.path.join(os.path.abspath(path), "").startswith(train_dir):
            raise ValueError(f"--start_new_model would move --{flag}={path} away.")


def _compute_losses(phase: roles.Phase, networks, run: settings.RunSettings) -> None:
    """Computes the losses of a phase once, on zeros.

    Raises:
        ValueError: if the outputs are incompatible, or nothing would be trained.
    """
    dtype = tf.uint8 if run.data.frame_features else tf.float32
    views = {
        role.view: {
            structures.FRAMES: tf.zeros(
                [1, role.frames, run.data.only(role.features).feature_size], dtype
            ),
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
                f"--{role.name}: {type(network).__name__} creates {', '.join(late)} "
                "when it is called, too late to be trained. Build its layers in the "
                "constructor (layer.build)."
            )
        kept = {id(variable) for variable in network.weights}
        for part in tf.train.TrackableView(network).descendants():
            if isinstance(part, tf.Variable) and part.trainable:
                if id(part) not in kept:
                    raise ValueError(
                        f"--{role.name}: Keras does not train the tf.Variable "
                        f"{part.name} of {type(network).__name__}. Use add_weight in "
                        "the constructor, or trainable=False."
                    )
        if role.frozen:
            continue
        labels = tf.zeros([1, run.data.num_classes])
        guides = [outputs[name] for name in role.guides]
        of_videos = labels if run.data.segment_labels else None
        role.objective(outputs[role.name], labels, guides, tf.ones([1]), of_videos)
        if not steps.trained_variables(network, role):
            raise ValueError(
                f"--student_loss={run.distillation.student_loss} has nothing to train "
                f"in the {role.name}: it does not train the classifier."
            )
