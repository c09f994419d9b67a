"""Sets up one phase of a run: networks, optimizers, state, data and actions.

A phase (see modes) leaves its checkpoints, its best networks and its logs in a folder
of its own.
"""

import logging
import os
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import files, settings
from yt8m_distill.data import pipeline
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import builder
from yt8m_distill.training import (
    actions,
    checkpoints,
    distribution,
    initial_weights,
    inner_loop,
    inputs,
    interruption,
    loop,
    manifest,
    modes,
    optimizers,
    steps,
    teacher_cache,
    transfer,
)

_LOG = logging.getLogger(__name__)


def goal_of(phase: modes.Phase, run: settings.RunSettings) -> dict[str, int]:
    """What ends a phase; a finished one continues where that has changed."""
    return {
        "epochs": phase.epochs,
        "early_stop_epochs": run.training.early_stop_epochs,
    }


def is_finished(
    phase: modes.Phase, run: settings.RunSettings, record: manifest.Manifest
) -> bool:
    """Whether a phase has come to the end that these settings give it."""
    entry = record.phase(phase.name)
    return bool(entry.get("finished")) and entry.get("goal") == goal_of(phase, run)


class PhaseRunner:
    """Trains the learners of one phase, from its start or from where it stopped.

    Args:
        phase: its roles.
        run: the settings.
        strategy: the devices.
        record: the run's manifest.
        shards: the training data, opened.
        validation: the validation data, or None.
    """

    def __init__(self, phase, run, strategy, record, shards, validation=None):
        self.phase = phase
        self.run_settings = run
        self.strategy = strategy
        self.record = record
        self.folder = os.path.join(run.training.train_dir, phase.name)
        self.chief = distribution.is_chief(strategy)
        self.cache: teacher_cache.TeacherCache | None = None
        self.shards = shards
        self.validation = validation
        self.num_videos = shards.num_videos(run.training.train_fraction)
        self.batches = pipeline.num_batches(self.num_videos, run.training.batch_size)
        steps_planned = self.batches * phase.epochs
        limit = run.training.max_steps
        self.total_steps = min(steps_planned, limit) if limit else steps_planned

    def run(self) -> None:
        """Trains until the phase is finished, and says so in the manifest."""
        phase = self.phase
        if is_finished(phase, self.run_settings, self.record):
            _LOG.info("Phase %s is finished: its networks are reused.", phase.name)
            return
        self._build()
        if self.chief:
            with files.one_line_errors(self.folder):
                tf.io.gfile.makedirs(self.folder)
            path = os.path.join(self.folder, manifest.PHASE_SETTINGS)
            manifest.write_json(path, manifest.phase_settings(phase, self.run_settings))
        resumed = self.state.restore()
        if resumed:
            self._check_same_data()
            _LOG.info("Phase %s goes on from %s.", phase.name, resumed)
        else:
            initial_weights.assign(phase, self.networks, self.run_settings)
            for role, network in transfer.receivers(
                phase, self.networks, self.run_settings
            ):
                transfer.plan(role, network, self.run_settings).assign(role)
        counters = [self.state.step, self.state.epoch, self.state.batch]
        place = [int(counter.numpy()) for counter in counters]
        distribution.check_agreement(
            self.strategy, {f"checkpoint of {phase.name}": place}
        )
        described = self._describe_networks()
        self.record.update(
            phase.name, finished=False, networks=described, data=self._data
        )
        _LOG.info(
            "Phase %s: %d epochs of %d steps; %s.",
            phase.name,
            phase.epochs,
            self.batches,
            ", ".join(
                f"{role.name} {described[role.name]['parameters']:,} parameters"
                f"{' (frozen)' if role.frozen else ''}"
                for role in phase.roles
            ),
        )
        self.cache = self._open_cache()
        self._train()
        self.record.update(
            phase.name, finished=True, goal=goal_of(phase, self.run_settings)
        )

    @property
    def _data(self) -> dict:
        """What the training data are: their order and the schedule depend on them."""
        names = ("files", "videos", "shards", "names_and_sizes")
        return {name: self.record.content["data"][name] for name in names}

    def _check_same_data(self) -> None:
        """Raises ValueError if a phase began with other data than there are now."""
        before, now = self.record.phase(self.phase.name).get("data"), self._data
        if not before:
            return
        if any(before.get(name) != now[name] for name in ("files", "videos")):
            raise ValueError(
                f"{self.folder} began with {before.get('videos')} videos in "
                f"{before.get('files')} shards of --train_data_pattern, now there are "
                f"{now['videos']} in {now['files']}: a phase goes on with its own data "
                "alone. Put that back, or take another --train_dir or "
                "--start_new_model."
            )
        moved = self.run_settings.training.allow_moved_shards
        name = "names_and_sizes" if moved else "shards"
        # Each machine may have a copy of its own; that of the chief is noted.
        if self.chief and before.get(name) != now[name]:
            what = "names or sizes" if moved else "names, sizes or times of change"
            raise ValueError(
                f"{self.folder} began with other shards of --train_data_pattern: their "
                f"{what} differ. --allow_moved_shards leaves the times of change out."
            )

    def _best_folder(self, role: modes.Role) -> str:
        train_dir = self.run_settings.training.train_dir
        return checkpoints.best_folder(train_dir, self.phase.name, role.name)

    def _build(self) -> None:
        """Makes networks, optimizers and state."""
        run, phase = self.run_settings, self.phase
        # A phase's weights do not depend on what ran before it in the process.
        keras.utils.set_random_seed(run.training.seed)
        rate = optimizers.LearningRate(
            run.optimization, run.training.batch_size, self.total_steps
        )
        self.learning_rate = rate
        scaled = run.networks.dtype_policy == "mixed_float16"
        with self.strategy.scope():
            names = [role.name for role in phase.roles]
            self.networks = builder.build_networks(run, names, phase.share_classifier)
            learners = [self._build_learner(role, rate) for role in phase.trained]
            scale = None
            if scaled:
                scale = tf.Variable(
                    inner_loop.INITIAL_LOSS_SCALE,
                    trainable=False,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
        objects = {name: self.networks.network(name) for name in names}
        objects |= {f"{x.role.name}_optimizer": x.optimizer for x in learners}
        self.state = checkpoints.State(
            self.folder,
            objects | ({"loss_scale": scale} if scaled else {}),
            run.training.max_checkpoints,
            writes=self.chief,
        )
        self.step = steps.TrainStep(
            self.networks,
            phase,
            learners,
            run.optimization,
            run.training.batch_size,
            run.training.seed,
            run.training.top_k,
            scale,
        )
        self.loop = inner_loop.InnerLoop(
            self.step, self.strategy, self.state.step, scale
        )
        if scaled:
            self.state.checkpoint.good_steps = self.loop.good_steps
        self.evaluators = {
            role.name: evaluator.Evaluator(
                self.networks,
                role.name,
                self.strategy,
                run.data.num_classes,
                run.training.top_k,
            )
            for role in phase.trained
        }
        self.log = actions.MetricsLog(self.folder, self.chief)

    def _build_learner(self, role: modes.Role, rate) -> steps.Learner:
        network = self.networks.network(role.name)
        variables = steps.trained_variables(network, role)
        scope = self.run_settings.optimization.regularization_scope
        optimizer = optimizers.build_optimizer(self.run_settings.optimization, rate)
        optimizers.build_variables(optimizer, variables)
        kernels = steps.trained_kernels(
            network, role, scope, self.phase.share_classifier
        )
        return steps.Learner(role, optimizer, variables, kernels)

    def _describe_networks(self) -> dict:
        """Parameters and multiply-adds of each network, for the manifest."""
        described = {}
        for role in self.phase.roles:
            network = self.networks.network(role.name)
            size = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
            described[role.name] = {
                "parameters": size,
                "frames": network.max_frames,
                "multiply_adds": network.multiply_adds(network.max_frames),
            }
        return described

    @property
    def _needs_states(self) -> bool:
        """Whether a learner compares intermediate states."""
        return any(role.objective.needs_states for role in self.phase.trained)

    def _open_cache(self) -> teacher_cache.TeacherCache | None:
        """The cache of the frozen teacher's outputs, filled and compared."""
        run = self.run_settings
        frozen = [role for role in self.phase.roles if role.frozen]
        if not (run.distillation.teacher_cache and frozen):
            return None
        states = self._needs_states
        if states:
            teacher_cache.check_same_frames(run)
        teacher = self.networks.network("teacher")
        key = teacher_cache.describe(teacher, run, states)
        cache = teacher_cache.TeacherCache(run.distillation.teacher_cache, key)
        builder_ = teacher_cache.Builder(cache, self.networks, self.strategy, states)
        views = inputs.views_of(run, ["teacher", *(["student"] if states else [])])
        training = run.training
        dataset = inputs.evaluation_dataset(
            self.strategy,
            self.shards,
            views,
            training.batch_size,
            training.train_fraction,
        )
        data = teacher_cache.data_key(self.shards.paths, training.train_fraction)
        began, computed = time.monotonic(), 0
        if not cache.covers(data):
            if distribution.num_processes(self.strategy) > 1:
                raise ValueError(
                    f"--teacher_cache={run.distillation.teacher_cache} does not cover "
                    "the training data yet, and several processes cannot fill it: "
                    "run the same command in one process first."
                )
            with cache.filling():
                # Another run may have done it in the meantime.
                if not cache.covers(data):
                    _LOG.info(
                        "The teacher's outputs are collected in %s.", cache.folder
                    )
                    before = len(cache)
                    builder_.fill(dataset, self.num_videos)
                    cache.note_covered(data)
                    computed = len(cache) - before
        if distribution.num_processes(self.strategy) == 1:
            builder_.check(next(iter(dataset)))
        self.record.update(
            self.phase.name,
            teacher_cache={
                "folder": cache.folder,
                "videos": len(cache),
                "computed": computed,
                "seconds": round(time.monotonic() - began, 3),
            },
        )
        return cache

    def _dataset(self, epoch: int, skip_batches: int):
        run, cache = self.run_settings, self.cache
        roles = self.phase.trained if cache else self.phase.roles
        views = inputs.views_of(run, [role.name for role in roles], training=True)
        if self._needs_states:
            views |= inputs.views_of(run, ["student"], training=True)

        def make(shard):
            dataset = pipeline.build_dataset(
                self.shards,
                views,
                batch_size=run.training.batch_size,
                training=True,
                seed=run.training.seed,
                epoch=epoch,
                shuffle_buffer_size=run.training.shuffle_buffer_size,
                train_fraction=run.training.train_fraction,
                skip_batches=skip_batches,
                input_shard=shard,
            )
            return cache.attach(dataset) if cache else dataset

        return distribution.distribute(self.strategy, make)

    def _train(self) -> None:
        bar = tqdm.tqdm(
            total=self.total_steps,
            initial=int(self.state.step.numpy()),
            desc=self.phase.name,
            unit="step",
            disable=not (self.chief and sys.stderr.isatty()),
        )
        with bar, interruption.Watch() as watch:
            outer = loop.Loop(
                self.phase.name,
                self.loop.run,
                self.step.metric_names,
                self.state,
                self._dataset,
                self._actions(bar, watch),
                epochs=self.phase.epochs,
                batches=self.batches,
                total_steps=self.total_steps,
                steps_per_loop=self.run_settings.training.steps_per_loop,
            )
            outer.run()

    def _actions(self, bar, watch: interruption.Watch) -> list[loop.Action]:
        """What happens around the steps, in this order."""
        training, roles = self.run_settings.training, self.phase.trained
        patience = training.early_stop_epochs
        stop = actions.StopOnSignal(watch, self.strategy, self.state, self.log)
        # A validation can take longer than a stop may. With several processes all
        # have to take part to the end.
        alone = distribution.num_processes(self.strategy) == 1
        keep = actions.KeepBest(
            roles, self.networks, self._best_folder, self.state, self.chief
        )
        return [
            actions.StopOnNaN(self.state),
            actions.ShowProgress(bar),
            actions.LogTraining(
                self.log, training.log_steps, training.batch_size, self._rate_at
            ),
            actions.Validate(
                roles, self._evaluate, self.log, stop.check if alone else None
            ),
            actions.Save(self.state, training.save_checkpoint_minutes),
            keep,  # After the save: a best network counts once the state knows of it.
            actions.RecordResults(self.record, self.state),
            *([actions.StopEarly(self.state, patience)] if patience else []),
            stop,
        ]

    def _rate_at(self, step: int) -> float:
        """The learning rate of the last of `step` steps."""
        return float(self.learning_rate(max(self._steps_taken(step) - 1, 0)))

    def _steps_taken(self, step: int) -> int:
        """Of `step` steps, those that changed the weights; the schedule counts them."""
        if self.loop.loss_scale is None:
            return step
        (learner, *_) = self.step.learners.values()
        return int(learner.optimizer.iterations.numpy())

    def _evaluate(self, role: modes.Role, watched: Callable) -> dict | None:
        """Metrics on the validation data; None without such data."""
        run = self.run_settings
        if self.validation is None:
            return None
        dataset = inputs.evaluation_dataset(
            self.strategy,
            self.validation,
            inputs.views_of(run, [role.name]),
            run.training.batch_size,
        )
        skipped = self.validation.skipped()
        result = self.evaluators[role.name].evaluate(
            watched(dataset),
            num_skipped=len(skipped.bad) if skipped else 0,
        )
        return result.to_dict()
