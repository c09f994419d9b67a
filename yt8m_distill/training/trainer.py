"""The loops around the steps.

The inner loop is one tf.function over many steps; the outer one logs, saves and
evaluates between its calls. A run is a list of phases (see modes); each leaves
its checkpoints, its best networks and its logs in a folder of its own.
"""

import contextlib
import dataclasses
import logging
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import files, settings, structures
from yt8m_distill.data import frame_sampling, pipeline, records, validation
from yt8m_distill.evaluation import evaluator
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import builder
from yt8m_distill.training import (
    actions,
    checkpoints,
    distribution,
    interruption,
    manifest,
    modes,
    optimizers,
    run_files,
    steps,
    teacher_cache,
)

_LOG = logging.getLogger(__name__)

# Loss scaling under mixed_float16: halved when a gradient overflows, doubled
# after this many steps without.
_INITIAL_LOSS_SCALE = 2.0**15
_STEPS_UNTIL_DOUBLED = 2000


def views_of(
    run: settings.RunSettings, roles: list[str], training: bool = False
) -> dict:
    """The views that the roles' networks read, name → pipeline.ViewSpec."""
    views = {
        structures.ALL: pipeline.ViewSpec("all", run.data.max_frames),
        structures.SAMPLED: pipeline.sampled_view(run.sampling, training),
    }
    return {builder.VIEWS[role]: views[builder.VIEWS[role]] for role in roles}


class InnerLoop:
    """Many training steps in one tf.function.

    Args:
        step: the step of one replica.
        strategy: the devices.
        counter: int64 variable, steps done; the loop moves it.
        loss_scale: float32 variable under mixed_float16, or None.
    """

    def __init__(self, step: steps.TrainStep, strategy, counter, loss_scale=None):
        self.step = step
        self.strategy = strategy
        self.counter = counter
        self.loss_scale = loss_scale
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._is_loss = [name.endswith("loss") for name in step.metric_names]
        self.run = tf.function(self._run)

    def _one_step(self, iterator):
        """One step on all replicas.

        Returns:
            Its metrics [M], 0 if it was skipped; whether it was finite or skipped; and
            whether it was skipped.
        """
        batch = next(iterator)
        gradients, metrics, finite = self.strategy.run(
            self.step.compute, args=(batch, self.counter)
        )
        # All replicas have the same sums, so the first speaks for all.
        metrics = self.strategy.experimental_local_results(metrics)[0]
        finite = self.strategy.experimental_local_results(finite)[0]
        skipped = tf.constant(False)
        if self.loss_scale is None:
            self.strategy.run(self.step.apply, args=(gradients,))
        else:
            if finite:
                self.strategy.run(self.step.apply, args=(gradients,))
            # An overflow is skipped and scaled away; at scale 1 it is an error. So is
            # a loss that is no number: the scale has no part in it.
            losses = tf.boolean_mask(metrics, self._is_loss)
            can_shrink = tf.logical_and(
                self.loss_scale > 1.0, tf.reduce_all(tf.math.is_finite(losses))
            )
            skipped = tf.logical_and(tf.logical_not(finite), can_shrink)
            metrics = tf.where(skipped, tf.zeros_like(metrics), metrics)
            self._rescale(finite)
            finite = tf.logical_or(finite, skipped)
        self.counter.assign_add(1)
        return metrics, finite, skipped

    def _rescale(self, finite):
        """Moves the loss scale after a step."""
        good = tf.where(finite, self.good_steps + 1, 0)
        double = good >= _STEPS_UNTIL_DOUBLED
        factor = tf.where(finite, tf.where(double, 2.0, 1.0), 0.5)
        self.loss_scale.assign(tf.maximum(self.loss_scale * factor, 1.0))
        self.good_steps.assign(tf.where(double, tf.zeros_like(good), good))

    def _run(self, iterator, num_steps):
        """Runs `num_steps` steps, fewer if a number is no longer finite.

        Returns:
            The means of the metrics [M] over the steps that were not skipped, of the
            last step alone if that one was not finite; that step's number, or -1; and
            over how many steps the means are.
        """
        total = tf.zeros([len(self.step.metric_names)])
        bad_step = tf.constant(-1, tf.int64)
        done = tf.constant(0.0)
        for _ in tf.range(num_steps):
            metrics, finite, skipped = self._one_step(iterator)
            finite = tf.logical_and(finite, tf.reduce_all(tf.math.is_finite(metrics)))
            total += metrics
            done += tf.where(skipped, 0.0, 1.0)
            if not finite:
                bad_step = self.counter - 1
                total, done = metrics, tf.constant(1.0)
                break
        return tf.math.divide_no_nan(total, done), bad_step, done


class PhaseRunner:
    """Trains the learners of one phase, from its start or from where it stopped.

    Args:
        phase: its roles.
        run: the settings.
        strategy: the devices.
        record: the run's manifest.
        num_videos: in the training data (as far as train_fraction takes them).
    """

    def __init__(self, phase, run, strategy, record, num_videos: int):
        self.phase = phase
        self.run_settings = run
        self.strategy = strategy
        self.record = record
        self.folder = os.path.join(run.training.train_dir, phase.name)
        self.chief = distribution.is_chief(strategy)
        self.cache: teacher_cache.TeacherCache | None = None
        self.num_videos = num_videos
        self.batches = -(-num_videos // run.training.batch_size)
        steps_planned = self.batches * phase.epochs
        limit = run.training.max_steps
        self.total_steps = min(steps_planned, limit) if limit else steps_planned

    def run(self) -> None:
        """Trains until the phase is finished, and says so in the manifest."""
        phase = self.phase
        if self.record.phase(phase.name).get("finished"):
            _LOG.info("Phase %s is finished: its networks are reused.", phase.name)
            return
        self._build()
        if self.chief:
            with files.one_line_errors(self.folder):
                tf.io.gfile.makedirs(self.folder)
            path = os.path.join(self.folder, manifest.PHASE_SETTINGS)
            manifest.write_json(path, phase_settings(phase, self.run_settings))
        resumed = self.state.restore()
        if resumed:
            self._check_same_data()
            _LOG.info("Phase %s goes on from %s.", phase.name, resumed)
        else:
            self._initialize()
        self._settle(int(self.state.step.numpy()))
        counters = [self.state.step, self.state.epoch, self.state.batch]
        place = [int(counter.numpy()) for counter in counters]
        distribution.check_agreement(
            self.strategy, {f"checkpoint of {phase.name}": place}
        )
        self.record.update(
            phase.name,
            finished=False,
            networks=self._describe_networks(),
            data=self._data,
        )
        self.cache = self._open_cache()
        self._train()
        self.record.update(phase.name, finished=True)

    @property
    def _data(self) -> dict[str, int]:
        """How much training data there is: its order and the schedule hang on it."""
        data = self.record.content["data"]
        return {name: data[name] for name in ("files", "videos")}

    def _check_same_data(self) -> None:
        """Raises ValueError if a phase began with more or less data than there is."""
        before, now = self.record.phase(self.phase.name).get("data"), self._data
        if before and before != now:
            raise ValueError(
                f"{self.folder} began with {before['videos']} videos in "
                f"{before['files']} shards of --train_data_pattern, now there are "
                f"{now['videos']} in {now['files']}: a phase goes on with its own data "
                "alone. Put that back, or take another --train_dir or "
                "--start_new_model."
            )

    def _settle(self, step: int) -> None:
        """Brings what a phase has written beside its state to where the state is.

        A process can be killed between any two of its files.

        Raises:
            ValueError: if the best network is damaged and nothing can replace it.
        """
        if not self.chief:
            return
        state, notes = self.state, self.state.read_notes()
        epoch = int(state.epoch.numpy())
        for role in self.phase.trained:
            folder = self._best_folder(role)
            noted = notes.get(role.name, {}).get("best")
            best = checkpoints.settle_best(folder, noted)
            if noted and best is None:
                if noted["step"] == step:  # It is the one in memory.
                    network = self.networks.network(role.name)
                    checkpoints.write_best(folder, role.name, network, noted)
                    best = noted
                elif epoch >= self.phase.epochs:
                    raise ValueError(
                        f"The best network in {folder} is damaged and all epochs are "
                        "done: put it back, or begin anew with --start_new_model."
                    )
            if noted:
                notes[role.name]["best"] = best
        state.write_notes(notes)
        self.log.go_back_to(step, epoch)
        if notes:
            self.record.update(self.phase.name, step=step, results=notes)

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
                    _INITIAL_LOSS_SCALE,
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
        self.loop = InnerLoop(self.step, self.strategy, self.state.step, scale)
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

    def _initialize(self) -> None:
        """Takes the networks that the phase starts from out of earlier ones."""
        run = self.run_settings
        for role in self.phase.roles:
            if role.initial is None:
                continue
            if role.initial == modes.EXTERNAL:
                prefix = find_teacher(run)
            else:
                train_dir = run.training.train_dir
                found = checkpoints.read_best(train_dir, role.initial, role.name)
                if found is None:
                    raise ValueError(
                        f"{train_dir}/{role.initial} has no finished {role.name}."
                    )
                prefix = found.prefix
            network = self.networks.network(role.name)
            checkpoints.restore_network(prefix, role.name, network)
            _LOG.info("The %s starts from %s.", role.name, prefix)
        copy_from_guide(self.phase, self.networks)

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
            check_same_frames(run)
        teacher = self.networks.network("teacher")
        key = teacher_cache.describe(teacher, run, states)
        cache = teacher_cache.TeacherCache(run.distillation.teacher_cache, key)
        builder_ = teacher_cache.Builder(cache, self.networks, self.strategy, states)
        views = views_of(run, ["teacher", *(["student"] if states else [])])
        training = run.training
        shards = records.expand_patterns(
            training.train_data_pattern, "train_data_pattern"
        )
        dataset = evaluation_dataset(
            self.strategy,
            shards,
            run.data,
            views,
            training.batch_size,
            {**reading(training), "train_fraction": training.train_fraction},
        )
        data = teacher_cache.data_key(shards, training.train_fraction)
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
        views = views_of(run, [role.name for role in roles], training=True)
        if self._needs_states:
            views |= views_of(run, ["student"], training=True)

        def make(shard):
            dataset = pipeline.build_dataset(
                run.training.train_data_pattern,
                run.data,
                views,
                batch_size=run.training.batch_size,
                training=True,
                seed=run.training.seed,
                epoch=epoch,
                **reading(run.training),
                shuffle_buffer_size=run.training.shuffle_buffer_size,
                train_fraction=run.training.train_fraction,
                skip_batches=skip_batches,
                input_shard=shard,
            )
            return cache.attach(dataset) if cache else dataset

        return distribution.distribute(self.strategy, make)

    def _train(self) -> None:
        state, epochs = self.state, self.phase.epochs
        bar = tqdm.tqdm(
            total=self.total_steps,
            initial=int(state.step.numpy()),
            desc=self.phase.name,
            unit="step",
            disable=not (self.chief and sys.stderr.isatty()),
        )
        self.saved_at = time.monotonic()
        with bar, interruption.Watch() as self.watch:
            # A run can have stopped between the last step and its validation.
            while state.epoch < epochs and (
                state.step.numpy() < self.total_steps or state.batch.numpy() > 0
            ):
                began = time.perf_counter()
                self._train_epoch(bar)
                self._finish_epoch(time.perf_counter() - began)
                self._stop_if_asked()
        self.log.flush()

    def _train_epoch(self, bar) -> None:
        """The rest of the present epoch."""
        state, training = self.state, self.run_settings.training
        done = int(state.batch.numpy())
        iterator = iter(self._dataset(int(state.epoch.numpy()), done))
        pending, counted, pending_steps = None, 0.0, 0
        began = time.perf_counter()
        while done < self.batches and state.step.numpy() < self.total_steps:
            step = int(state.step.numpy())
            # Up to the next log line, the end of the epoch or of the phase.
            count = min(
                training.steps_per_loop,
                training.log_steps - step % training.log_steps,
                self.batches - done,
                self.total_steps - step,
            )
            means, bad_step, taken = self.loop.run(iterator, tf.constant(count))
            names = self.step.metric_names
            means = dict(zip(names, means.numpy().tolist(), strict=True))
            actions.check_finite(means, int(bad_step.numpy()))
            done += count
            state.batch.assign(done)
            bar.update(count)
            pending = _weighted_sum(pending, means, float(taken))
            counted += float(taken)
            pending_steps += count
            step += count
            if step % training.log_steps == 0 or done == self.batches:
                seconds = time.perf_counter() - began
                speed = pending_steps * training.batch_size / seconds
                if counted:
                    means = {name: value / counted for name, value in pending.items()}
                    self._log(step, means, speed)
                else:
                    _LOG.warning(
                        "training step %d | none of the last %d steps had a finite "
                        "gradient: the loss scale goes down.",
                        step,
                        pending_steps,
                    )
                pending, counted, pending_steps = None, 0.0, 0
                began = time.perf_counter()
            self._save_if_due()
            self._stop_if_asked()

    def _steps_taken(self, step: int) -> int:
        """Of `step` steps, those that changed the weights; the schedule counts them."""
        if self.loop.loss_scale is None:
            return step
        (learner, *_) = self.step.learners.values()
        return int(learner.optimizer.iterations.numpy())

    def _log(self, step: int, means: dict[str, float], speed: float) -> None:
        rate = float(self.learning_rate(max(self._steps_taken(step) - 1, 0)))
        scalars = actions.training_scalars(means, rate, speed)
        self.log.scalars(scalars, step)
        self.log.line("training", step, {k: _rounded(v) for k, v in scalars.items()})
        actions.log_training(step, means, speed)

    def _save_if_due(self) -> None:
        minutes = self.run_settings.training.save_checkpoint_minutes
        if time.monotonic() - self.saved_at >= 60 * minutes:
            self.state.save()
            self.saved_at = time.monotonic()

    def _stop_if_asked(self) -> None:
        """Saves and stops after a signal to any process, all at the same step.

        Raises:
            interruption.Interrupted: if there was one.
        """
        received = distribution.largest(self.strategy, self.watch.received or 0)
        if not received:
            return
        self.state.save()
        self.log.flush()
        raise interruption.Interrupted(
            received,
            f"stopped by {interruption.name_of(received)}: phase {self.phase.name} is "
            f"saved at step {self.state.step.numpy()}. The same command goes on from "
            "there.",
        )

    def _finish_epoch(self, seconds: float) -> None:
        """Validates, keeps the best networks, saves.

        Args:
            seconds: of the epoch's training, since the last start of the program.

        Raises:
            interruption.Interrupted: after a signal during the validation; the state
                is that of before it then.
        """
        state = self.state
        step, epoch = int(state.step.numpy()), int(state.epoch.numpy()) + 1
        notes = state.read_notes()
        improved = []
        for role in self.phase.trained:
            numbers = self._validate(role, step, epoch)
            entry = notes.setdefault(role.name, {"best": None, "epochs": []})
            entry["epochs"].append({"epoch": epoch, "step": step, **numbers})
            best = entry["best"]
            better = best is None or numbers.get("gap", epoch) > best.get("gap", 0)
            if better or role.keeps_last:
                entry["best"] = {"epoch": epoch, "step": step, **numbers}
                improved.append(role)
        if self.chief:
            for role in improved:
                checkpoints.propose_best(
                    self._best_folder(role),
                    role.name,
                    self.networks.network(role.name),
                    notes[role.name]["best"],
                )
        state.epoch.assign(epoch)
        state.batch.assign(0)
        state.write_notes(notes)
        state.save()
        self.saved_at = time.monotonic()
        if self.chief:
            for role in improved:
                best = notes[role.name]["best"]
                checkpoints.settle_best(self._best_folder(role), best)
        before = self.record.phase(self.phase.name).get("epoch_seconds", [])
        self.record.update(
            self.phase.name,
            step=step,
            results=notes,
            epoch_seconds=[*before[: epoch - 1], round(seconds, 3)],
        )

    def _until_asked_to_stop(self, batches):
        """The batches of a validation, which can take longer than a stop may.

        With several processes all have to take part to the end.
        """
        alone = distribution.num_processes(self.strategy) == 1
        for batch in batches:
            if alone:
                self._stop_if_asked()
            yield batch

    def _validate(self, role: modes.Role, step: int, epoch: int) -> dict:
        """Metrics on the validation data; empty without such data."""
        run = self.run_settings
        pattern = run.training.validation_data_pattern
        if not pattern:
            return {}
        dataset = evaluation_dataset(
            self.strategy,
            pattern,
            run.data,
            views_of(run, [role.name]),
            run.training.batch_size,
            reading(run.training),
        )
        shards = records.expand_patterns(pattern, "validation_data_pattern")
        skipped = find_skipped(shards, run.data, run.training)
        result = self.evaluators[role.name].evaluate(
            self._until_asked_to_stop(dataset),
            num_skipped=len(skipped.bad) if skipped else 0,
        )
        numbers = result.to_dict()
        scalars = actions.evaluation_scalars(numbers)
        self.log.scalars(scalars, step, subfolder=f"validation_{role.name}")
        line = {"network": role.name, "epoch": epoch, **numbers}
        self.log.line("validation", step, line)
        prefix = f"epoch {epoch} | step {step} | {role.name}"
        _LOG.info("%s", actions.evaluation_line(prefix, numbers))
        return numbers


def check_same_frames(run: settings.RunSettings) -> None:
    """Raises ValueError unless a student sees what a cache of states is made of.

    Those are the frames of `--frame_sampler` outside training.
    """
    sampler = run.sampling.frame_sampler
    trained = run.sampling.train_frame_sampler or sampler
    if trained != sampler:
        raise ValueError(
            "--teacher_cache cannot hold the intermediate states at the frames of "
            f"--train_frame_sampler={trained}: it has those of "
            f"--frame_sampler={sampler}."
        )
    k, max_frames = run.sampling.student_k, run.data.max_frames
    if frame_sampling.changes_between_epochs(sampler, k, max_frames):
        raise ValueError(
            "--teacher_cache cannot hold the intermediate states at frames that "
            f"change from epoch to epoch, as with --frame_sampler={sampler}."
        )


def _weighted_sum(total, means: dict[str, float], count: int) -> dict[str, float]:
    total = total or dict.fromkeys(means, 0.0)
    return {name: total[name] + value * count for name, value in means.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def reading(given: settings.TrainingSettings | settings.CheckpointSettings) -> dict:
    """The arguments of pipeline.build_dataset that say how shards are read."""
    return {
        "num_readers": given.num_readers,
        "use_index": given.use_index,
        "index_dir": given.index_dir,
        "bad_records": given.bad_records,
        "max_bad_fraction": given.max_bad_fraction,
    }


def find_skipped(files, data, given) -> validation.Skipped | None:
    """What `--bad_records=skip` leaves out of some shards; None under `stop`."""
    return pipeline.find_skipped(files, data, **finding(given))


def finding(given) -> dict:
    """The arguments of pipeline.count_videos that say which records are read."""
    return {name: v for name, v in reading(given).items() if name != "num_readers"}


def evaluation_dataset(
    strategy,
    pattern: str | list[str],
    data,
    views: dict,
    batch_size: int,
    how: dict | None = None,
):
    """A distributed dataset for evaluation: every video once, in order.

    Args:
        strategy: the devices.
        pattern, data, views, batch_size: as in pipeline.build_dataset.
        how: see `reading`.
    """
    return distribution.distribute(
        strategy,
        lambda shard: pipeline.build_dataset(
            pattern,
            data,
            views,
            batch_size=batch_size,
            training=False,
            input_shard=shard,
            **(how or {}),
        ),
    )


def _report_skipped(skipped: validation.Skipped) -> None:
    """A line for each reason, before the training and at its end."""
    for line in skipped.lines():
        _LOG.warning("Training data: %s", line)


def find_teacher(run: settings.RunSettings) -> str:
    """The prefix that `--teacher_checkpoint` stands for.

    Raises:
        ValueError: if there is no teacher, or it is another network than
            `--teacher` describes.
    """
    given = run.distillation.teacher_checkpoint
    if tf.io.gfile.exists(f"{given}.index"):
        return given
    if not tf.io.gfile.isdir(given):
        raise ValueError(
            f"--teacher_checkpoint={given} is neither a train_dir nor a checkpoint "
            "prefix."
        )
    theirs = manifest.read_run_settings(given)
    trained, wanted = (
        settings.canonical("teacher", r.networks.teacher) for r in (theirs, run)
    )
    if trained != wanted:
        raise ValueError(
            f"--teacher_checkpoint={given} was trained with --teacher="
            f"{theirs.networks.teacher!r}, this command says "
            f"{run.networks.teacher!r}."
        )
    # They decide what the weights mean.
    trained, wanted = (
        dataclasses.asdict(dataclasses.replace(r.data, video_id_key=""))
        for r in (theirs, run)
    )
    different = settings.differences(trained, wanted)
    if different:
        raise ValueError(
            f"--teacher_checkpoint={given} was trained on other data: {different}."
        )
    found = checkpoints.find(given, theirs, "teacher")
    if found is None:
        raise ValueError(f"--teacher_checkpoint={given} has no trained teacher yet.")
    return found.prefix


def _warn_of_unfinished_teacher(train_dir: str) -> None:
    """A line if the run that trains a teacher has not come to its end."""
    path = os.path.join(train_dir, manifest.MANIFEST)
    if not tf.io.gfile.exists(path):
        return
    content = manifest.read_json(path)
    theirs = settings.RunSettings.from_dict(content["settings"])
    for phase in modes.phases_of(theirs, "teacher")[:1]:
        if not content["phases"].get(phase.name, {}).get("finished"):
            _LOG.warning(
                "--teacher_checkpoint=%s: that run has not finished; the student "
                "learns from the best teacher that it has now.",
                train_dir,
            )


def _has_weights(folder: str) -> bool:
    """Whether a phase has come to a checkpoint: before, it can begin otherwise."""
    pattern = os.path.join(folder, checkpoints.CHECKPOINTS, "*.index")
    best = os.path.join(folder, checkpoints.BEST)
    return bool(tf.io.gfile.glob(pattern)) or tf.io.gfile.isdir(best)


def phase_settings(phase: modes.Phase, run: settings.RunSettings) -> dict:
    """The settings that a phase depends on, name → value."""
    names = tuple(role.name for role in phase.roles)
    guided = any(role.guide or role.initial for role in phase.roles)
    values = manifest.phase_settings(run, names, guided)
    if any(role.initial for role in phase.trained):
        # What it goes on from: serial and parallel mode have their own.
        values["mode"] = run.distillation.mode
    return values


def copy_from_guide(phase: modes.Phase, networks) -> None:
    """Gives the student the weights of its guide that it starts with.

    Raises:
        ValueError: if the two networks do not fit.
    """
    for role in phase.roles:
        if role.copies_classifier and role.trains_classifier:
            networks.copy_classifier()
        elif role.copies_classifier:
            names = " + ".join(term.name for term in role.objective.terms)
            networks.copy_classifier(f"--student_loss={names} alone")
    if any(role.copies_network for role in phase.roles):
        networks.copy_network()


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
        views_of(run, roles)
        views_of(run, roles, training=True)
        networks = builder.build_networks(run, roles, phase.share_classifier)
        copy_from_guide(phase, networks)
        _rehearse_losses(phase, networks, run)
    optimizers.build_optimizer(
        run.optimization, optimizers.LearningRate(run.optimization, 1, 1)
    )
    if run.distillation.teacher_checkpoint:
        _warn_of_unfinished_teacher(run.distillation.teacher_checkpoint)
        found, train_dir = find_teacher(run), os.path.abspath(run.training.train_dir)
        inside = os.path.abspath(found).startswith(os.path.join(train_dir, ""))
        if inside and run.training.start_new_model:
            raise ValueError(
                "--start_new_model would remove "
                f"--teacher_checkpoint={run.distillation.teacher_checkpoint}."
            )


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


def _same_everywhere(run: settings.RunSettings) -> dict:
    """The settings that all processes of a job must share, by flag.

    Folders may be mounted elsewhere on another machine, and devices differ.
    """
    own = {"train_dir", "train_data_pattern", "validation_data_pattern", "index_dir"}
    own |= {"teacher_checkpoint", "teacher_cache", "num_gpus", "cluster_timeout_secs"}
    return {f"--{k}": v for k, v in run.to_dict().items() if k not in own}


def train(run: settings.RunSettings, strategy: tf.distribute.Strategy) -> dict:
    """Runs all phases of a mode; the phases' entries of the manifest come back.

    Raises:
        ValueError: for settings that do not fit the data or an earlier run.
        FloatingPointError: if a loss or gradient is no longer a number.
        distribution.WorkerLost: if another process of the job is gone.
    """
    with distribution.watching(strategy), contextlib.ExitStack() as until_the_end:
        return _train(run, strategy, until_the_end)


def _train(run, strategy, until_the_end: contextlib.ExitStack) -> dict:
    distribution.check_batch_size(run.training.batch_size, strategy)
    plan = modes.phases(run)
    train_dir = run.training.train_dir
    # Before anything is written or removed: a refused command leaves the run as it
    # was.
    for phase in plan if not run.training.start_new_model else ():
        folder = os.path.join(train_dir, phase.name)
        if _has_weights(folder):
            manifest.check_same_settings(folder, phase_settings(phase, run))
    chief = distribution.is_chief(strategy)
    shards = records.expand_patterns(
        run.training.train_data_pattern, "train_data_pattern"
    )
    if run.training.validation_data_pattern:
        records.expand_patterns(
            run.training.validation_data_pattern, "validation_data_pattern"
        )
    rehearse(plan, run)
    skipped = find_skipped(shards, run.data, run.training)
    num_videos = pipeline.count_videos(
        shards,
        run.training.train_fraction,
        data=run.data,
        **finding(run.training),
    )
    if num_videos == 0:
        raise ValueError(
            f"--train_data_pattern={run.training.train_data_pattern} has no videos."
        )
    if run.training.start_new_model:
        run_files.list_run(train_dir)  # Refused in every process, or in none.
    shared = {"names of the training shards": [os.path.basename(f) for f in shards]}
    shared |= {"number of training videos": num_videos}
    distribution.check_agreement(strategy, shared | _same_everywhere(run))
    if chief:
        what = f"--train_dir={train_dir}"
        with files.one_line_errors(what):
            tf.io.gfile.makedirs(train_dir)
        until_the_end.enter_context(files.held(train_dir, what))
        if run.training.start_new_model:
            run_files.remove_run(train_dir)
        path = os.path.join(train_dir, manifest.MODEL_FLAGS)
        manifest.write_json(path, run.to_dict())
    # Nobody looks into the folder before the chief is done with it.
    distribution.check_agreement(strategy, {})
    record = manifest.Manifest(train_dir, run, chief)
    finished = [
        phase.name for phase in plan if record.phase(phase.name).get("finished")
    ]
    distribution.check_agreement(strategy, {"finished phases": finished})
    record.content["data"] = {"files": len(shards), "videos": num_videos}
    if skipped:
        record.content["data"] |= skipped.to_dict()
        _report_skipped(skipped)
    record.content["replicas"] = strategy.num_replicas_in_sync
    record.write()
    for phase in plan:
        PhaseRunner(phase, run, strategy, record, num_videos).run()
    if skipped:
        _report_skipped(skipped)
    return record.content["phases"]
