"""Sets up one phase of a run: networks, optimizers, state, data and actions.

A phase (see modes) leaves its checkpoints, its best networks and its logs in a folder
of its own.
"""

import functools
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
from yt8m_distill.models import base, builder, replicas
from yt8m_distill.training import (
    actions,
    averaging,
    checkpoints,
    distribution,
    initial_weights,
    inner_loop,
    inputs,
    interruption,
    loop,
    manifest,
    optimizers,
    roles,
    steps,
    teacher_cache,
)

_LOG = logging.getLogger(__name__)
# Metrics of which a network with several budgets has the mean.
AVERAGED = ("gap", "map", "map_all_classes", "hit_at_one", "perr", "loss")


def goal_of(phase: roles.Phase, run: settings.RunSettings) -> dict[str, int]:
    """What ends a phase; a finished one continues where that has changed."""
    return {
        "epochs": phase.epochs,
        "max_steps": run.training.max_steps,
        "early_stop_epochs": run.training.early_stop_epochs,
    }


def is_finished(
    phase: roles.Phase, run: settings.RunSettings, record: manifest.Manifest
) -> bool:
    """Whether a phase has come to the end that these settings give it."""
    entry = record.phase(phase.name)
    return bool(entry.get("finished")) and entry.get("goal") == goal_of(phase, run)


class PhaseRunner:
    """Trains the learners of one phase, from its start or from where it stopped."""

    def __init__(
        self,
        phase: roles.Phase,
        run: settings.RunSettings,
        strategy: tf.distribute.Strategy,
        record: manifest.Manifest,
        data: inputs.Data,
    ):
        self.phase = phase
        self.run_settings = run
        self.strategy = strategy
        self.record = record
        self.folder = os.path.join(run.training.train_dir, phase.name)
        self.chief = strategy.extended.should_checkpoint
        self.caches: dict[str, teacher_cache.TeacherCache] = {}
        self.shards = data.training
        self.validation = data.validation
        # Without a guide nobody learns anything from them.
        self.unlabeled = data.unlabeled if phase.is_guided else None
        # Nor from videos whose labels do not count.
        labeled = 1.0 if phase.is_guided else run.training.label_fraction
        self.num_videos = self.shards.num_videos(run.training.train_fraction, labeled)
        fraction = run.training.unlabeled_fraction if self.unlabeled else 0.0
        size = run.training.batch_size
        self.batches = pipeline.num_batches(self.num_videos, size, fraction)
        rows = size - pipeline.num_unlabeled_rows(size, fraction)
        # Rows without a video at the end of an epoch.
        self.padding = self.batches * rows - self.num_videos
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
            manifest.write_json(path, phase.settings)
        resumed = self.state.restore()
        if resumed:
            self._check_same_data()
            _LOG.info("Phase %s goes on from %s.", phase.name, resumed)
        else:
            run = self.run_settings
            initial_weights.start_heads(phase, self.networks, self.shards, run.training)
            initial_weights.assign(phase, self.networks, run)
            if self.average:
                self.average.start()
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
            "Phase %s: %s of %s; %s.",
            phase.name,
            settings.counted(phase.epochs, "epoch"),
            settings.counted(self.batches, "step"),
            ", ".join(
                f"{role.name} {described[role.name]['parameters']:,} parameters"
                f"{' (frozen)' if role.frozen else ''}"
                for role in phase.roles
            ),
        )
        self.caches = self._open_caches()
        self._train()
        self.record.update(
            phase.name, finished=True, goal=goal_of(phase, self.run_settings)
        )

    @property
    def _data(self) -> dict:
        """Identifies the training data, and the shards of the validation."""
        names = ["files", "videos", "shards", "names_and_sizes"]
        if self.unlabeled:
            names += ["unlabeled_shards", "unlabeled_names_and_sizes"]
        data = self.record.content["data"]
        validation = data.get("validation_names_and_sizes", "")
        return {n: data[n] for n in names} | {"validation": validation}

    def _check_same_data(self) -> None:
        """Raises ValueError if a phase was started with other training data.

        Other validation data are a line in the log, once an epoch has been validated.
        """
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
        what = "names or sizes" if moved else "names, sizes or times of change"
        for kind, digest in (("train", name), ("unlabeled", f"unlabeled_{name}")):
            # Each machine may have its own copy; the chief's is recorded.
            if self.chief and before.get(digest) != now.get(digest):
                raise ValueError(
                    f"{self.folder} began with other shards of --{kind}_data_pattern: "
                    f"their {what} differ. --allow_moved_shards leaves the times of "
                    "change out."
                )
        if before.get("validation", now["validation"]) != now["validation"]:
            if self.state.read_notes():
                _LOG.warning(
                    "Phase %s has validated its epochs so far on other shards than "
                    "those of --validation_data_pattern now: their GAPs, and so the "
                    "best network, are compared with those of other videos.",
                    self.phase.name,
                )

    def _build(self) -> None:
        """Builds networks, optimizers and state."""
        run, phase = self.run_settings, self.phase
        # The weights of a phase must not depend on earlier work of the process.
        keras.utils.set_random_seed(run.training.seed)
        rate = optimizers.LearningRate(
            run.optimization, run.training.batch_size, self.total_steps
        )
        self.learning_rate = rate
        scaled = run.networks.dtype_policy == "mixed_float16"
        with self.strategy.scope():
            self.networks = builder.build_networks(phase.roles, run.data)
            self.average = self._build_average()
            learners = [self._build_learner(role, rate) for role in phase.trained]
            scale = None
            if scaled:
                scale = tf.Variable(
                    inner_loop.INITIAL_LOSS_SCALE,
                    trainable=False,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
        objects = {r.name: self.networks.network(r.name) for r in phase.roles}
        if self.average:  # The role's own name is that of the averaged network.
            objects |= {f"{r.name}_in_training": objects[r.name] for r in phase.trained}
            objects |= {r.name: self.kept.network(r.name) for r in phase.trained}
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
            self.average,
        )
        self.loop = inner_loop.InnerLoop(
            self.step, self.strategy, self.state.step, scale
        )
        if scaled:
            self.state.checkpoint.good_steps = self.loop.good_steps
        self.evaluators = {
            (role.name, view): evaluator.build(
                replicas.Runner(self.kept, role.name, self.strategy),
                run.data,
                run.training.top_k,
                view=view,
            )
            for role in phase.trained
            for view in {role.view, *role.budgets.values()}
        }
        self.log = actions.MetricsLog(self.folder, self.chief)

    def _build_average(self) -> averaging.WeightAverage | None:
        """Creates the moving average, if any, and the networks to keep."""
        run, decay = self.run_settings, self.run_settings.optimization.ema_decay
        self.kept = self.networks
        if not decay:
            return None
        self.kept = builder.build_networks(self.phase.trained, run.data, True)
        average = averaging.WeightAverage(self.networks, self.kept, decay)
        for role in self.phase.frozen:  # What an averaged network may read.
            self.kept.add(role.name, self.networks.network(role.name), role.view)
        return average

    def _build_learner(self, role: roles.Role, rate) -> steps.Learner:
        network = self.networks.network(role.name)
        variables = steps.trained_variables(network, role)
        scope = self.run_settings.optimization.regularization_scope
        optimizer = optimizers.build_optimizer(self.run_settings.optimization, rate)
        optimizers.build_variables(optimizer, variables)
        kernels = steps.trained_kernels(network, role, scope)
        return steps.Learner(role, optimizer, variables, kernels)

    def _describe_networks(self) -> dict:
        """Parameters and multiply-adds of each network, for the manifest."""
        described = {}
        for role in self.phase.roles:
            network = self.networks.network(role.name)
            described[role.name] = {
                "parameters": base.num_weights(network.trainable_variables),
                "frames": network.max_frames,
                "multiply_adds": network.multiply_adds(network.max_frames),
            }
        return described

    def _open_caches(self) -> dict[str, teacher_cache.TeacherCache]:
        """The caches of the frozen guides' outputs by role, filled and checked."""
        if not self.run_settings.distillation.teacher_cache:
            return {}
        began = time.monotonic()
        found = {role.name: self._open_cache(role) for role in self.phase.frozen}
        if found:
            self.record.update(
                self.phase.name,
                teacher_cache={
                    "folder": ", ".join(cache.folder for cache, _ in found.values()),
                    "videos": max(len(cache) for cache, _ in found.values()),
                    "computed": sum(computed for _, computed in found.values()),
                    "seconds": round(time.monotonic() - began, 3),
                },
            )
        return {name: cache for name, (cache, _) in found.items()}

    def _open_cache(self, role: roles.Role) -> tuple[teacher_cache.TeacherCache, int]:
        """A guide's filled cache, and the number of new videos."""
        run = self.run_settings
        cache_builder = teacher_cache.Builder(
            self.phase, role, run, self.networks, self.strategy
        )
        cache = cache_builder.cache
        # Once per video, even if rows are segments.
        sources = [(self.shards.videos, run.training.train_fraction)]
        if self.unlabeled:
            sources.append((self.unlabeled, 1.0))
        computed = 0
        for opened, share in sources:
            shards = opened.files  # Not asked again: each may be a request.
            data = teacher_cache.data_key(shards.paths, shards.identities, share)
            if not cache.covers(data):
                if distribution.num_processes(self.strategy) > 1:
                    raise ValueError(
                        f"--teacher_cache={run.distillation.teacher_cache} does not "
                        "cover the training data yet, and several processes cannot "
                        "fill it: run the same command in one process first."
                    )
                with cache.filling():
                    # Another run may have done it in the meantime.
                    if not cache.covers(data):
                        _LOG.info(
                            "The outputs of the %s are collected in %s.",
                            role.name,
                            cache.folder,
                        )
                        before = len(cache)
                        dataset = cache_builder.dataset(opened, share)
                        cache_builder.fill(dataset, opened.num_videos(share))
                        cache.note_covered(data)
                        computed += len(cache) - before
            if distribution.num_processes(self.strategy) == 1:
                # To its end: TensorFlow (2.21) may crash where an iterator of several
                # devices is deleted while it reads ahead.
                for batch in cache_builder.dataset(opened, share, num_batches=1):
                    cache_builder.check(batch)
        return cache, computed

    def _dataset(self, epoch: int, skip_batches: int):
        run, caches = self.run_settings, self.caches
        computed = [role for role in self.phase.roles if role.name not in caches]
        names = {name for role in computed for name in role.every_view}
        names |= {self.phase.states_of} - {None}
        views = self.phase.view_specs(names, training=True)

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
                label_fraction=run.training.label_fraction,
                only_labeled=not self.phase.is_guided,
                mix=run.training.mix,
                skip_batches=skip_batches,
                input_shard=shard,
                unlabeled=self.unlabeled,
                unlabeled_fraction=run.training.unlabeled_fraction,
            )
            for name, cache in caches.items():
                dataset = cache.attach(dataset, name)
            return dataset

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
        """The actions around the steps, in order."""
        training, learners = self.run_settings.training, self.phase.trained
        patience = training.early_stop_epochs
        stop = actions.StopOnSignal(watch, self.strategy, self.state, self.log)
        # A signal interrupts a long validation, except with several processes, which
        # all have to finish it.
        alone = distribution.num_processes(self.strategy) == 1
        validate = []
        if self.validation is not None:
            between = stop.check if alone else None
            validate = [actions.Validate(learners, self._evaluate, self.log, between)]
        keep = actions.KeepBest(
            learners,
            self.kept,
            lambda role: checkpoints.best_folder(
                training.train_dir, self.phase.name, role.name
            ),
            self.state,
            functools.partial(distribution.largest, self.strategy),
        )
        return [
            actions.StopOnNaN(self.state),
            actions.ShowProgress(bar),
            actions.LogTraining(
                self.state,
                self.log,
                training.log_steps,
                training.batch_size,
                self._rate,
                self.padding,
            ),
            *validate,
            actions.Save(self.state, training.save_checkpoint_minutes),
            keep,  # After the save: the state must refer to a best network first.
            actions.RecordResults(self.record, self.state),
            *([actions.StopEarly(self.state, patience)] if patience else []),
            stop,
        ]

    def _rate(self) -> float:
        """The learning rate of the last step that changed the weights."""
        (learner, *_) = self.step.learners.values()
        taken = int(learner.optimizer.iterations.numpy())
        return float(self.learning_rate(max(taken - 1, 0)))

    def _evaluate(self, role: roles.Role, watched: Callable) -> dict:
        """Metrics of a role on the validation videos.

        For a role with several budgets: the means over them (or the GAP of
        --best_budget, if given), and the GAP and mAP of each.
        """
        if not role.budgets:
            return self._evaluate_view(role, role.view, watched)
        found = {
            k: self._evaluate_view(role, view, watched)
            for k, view in role.budgets.items()
        }
        means = dict(found[max(found)])
        for name in set(AVERAGED) & set(means):
            means[name] = float(np.mean([numbers[name] for numbers in found.values()]))
        best = self.run_settings.sampling.best_budget
        if best:
            means["gap"] = found[best]["gap"]
        for k, numbers in found.items():
            means |= {f"{name}_k{k}": numbers[name] for name in ("gap", "map")}
        return means

    def _evaluate_view(self, role, view: str, watched: Callable) -> dict:
        run = self.run_settings
        dataset = inputs.evaluation_dataset(
            self.strategy,
            self.validation,
            self.phase.view_specs({view, self.networks.views.get(role.context)}),
            run.training.batch_size,
        )
        result = self.evaluators[role.name, view].evaluate(
            watched(dataset), num_skipped=len(self.validation.skipped().bad)
        )
        return result.to_dict()
