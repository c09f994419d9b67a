"""A trained network, loaded from a train_dir."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from yt8m_distill import file_patterns, registry, settings, structures, vocabulary
from yt8m_distill.data import pipeline, shards
from yt8m_distill.evaluation import exit_calibration
from yt8m_distill.models import (
    base,
    builder,
    early_exit,
    lstm,
    mean,
    replicas,
    teacher_student,
)
from yt8m_distill.training import checkpoints, distribution, inputs, manifest, outside

_LOG = logging.getLogger(__name__)

EXIT_FILE = "early_exit.json"


@dataclasses.dataclass
class TrainedNetwork:
    """A network with everything that is needed to run it.

    Attributes:
        networks: contains the role's network and its context's alone, or a
            mean.MeanNetworks.
        run: the settings of its training, with this script's --video_id_key.
        views: name → pipeline.ViewSpec of the view that it reads, and of those that
            its context and other networks of a mean read.
        view_name: name of its own.
        found: the checkpoint of its variables.
        names: class index → name, from the run's vocabulary; may be empty.
    """

    networks: teacher_student.TeacherStudent
    role: str
    run: settings.RunSettings
    plan: manifest.Plan
    views: dict[str, Any]
    view_name: str
    strategy: tf.distribute.Strategy
    train_dir: str
    found: checkpoints.Found | None
    names: dict[int, str]

    @property
    def network(self):
        """The VideoClassifier, or the EarlyExit that wraps it."""
        return self.networks.network(self.role)

    @property
    def runner(self) -> replicas.Runner:
        """Its networks, role and devices."""
        return replicas.Runner(self.networks, self.role, self.strategy)

    @property
    def view(self) -> pipeline.ViewSpec:
        """The view that it reads."""
        return self.views[self.view_name]

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of frames that a student for several k was trained on.

        Empty for other networks, and if --student_k selects another number.
        """
        view, numbers = self.view, self.run.sampling.budgets
        several = len(numbers) > 1 and view.sampler != "all" and view.k == numbers[-1]
        return numbers if several else ()

    @property
    def checkpoint_name(self) -> str:
        """Phase and name of the checkpoint, independent of the train_dir's path."""
        return f"{self.found.phase}/{os.path.basename(self.found.prefix)}"

    def read_nested(self) -> None:
        """Changes its view to that of early exit: frames of smaller budgets first.

        Raises:
            ValueError: if the network was trained for a single number of frames, or
                reads segments.
        """
        if not self.budgets:
            raise ValueError(
                "Early exit needs a student of several --student_k, not the "
                f"{self.role} of a run with "
                f"--student_k={self.run.sampling.student_k}."
            )
        self.run.data.require_frames("early exit")
        if self.run.data.segment_labels:
            raise ValueError(
                "Early exit (--mean_frames, --max_regret) is for videos, not for the "
                "segments of --segments or --segment_labels."
            )
        ((name, spec),) = self.views.items()
        self.views = {name: spec._replace(sampler=early_exit.SAMPLER)}

    def exit_early(self, given: settings.CheckpointSettings) -> None:
        """Enables early exit with the calibration in the train_dir.

        Raises:
            ValueError: if there is none, it belongs to another checkpoint, or it cannot
                reach the requested mean or regret.
        """
        self.read_nested()
        path = os.path.join(given.train_dir, EXIT_FILE)
        try:
            found = exit_calibration.Calibration.from_dict(
                manifest.read_json(path, dict)
            )
            if found.checkpoint != self.checkpoint_name:
                raise ValueError(
                    f"{path} is for {found.checkpoint}, not {self.checkpoint_name}."
                )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = error if path in str(error) else f"{path} is of no use ({error})."
            raise ValueError(
                f"{given.early_exit}: {reason} yt8m-calibrate "
                f"--train_dir={given.train_dir} makes it."
            ) from error
        if given.mean_frames:
            number = found.for_mean_frames(given.mean_frames)
        else:
            number = found.for_max_regret(given.max_regret, given.confidence)
        _LOG.info(
            "Early exit by %s: %.3f of %d frames and a regret of %.4f on average, on "
            "the calibration videos.",
            found.policy.rule,
            found.mean_frames[number],
            found.policy.budgets[-1],
            found.mean_regrets[number],
        )
        network = early_exit.EarlyExit(
            self.network,
            found.policy,
            found.thresholds[number],
            self.run.data.max_frames,
        )
        views = {self.role: self.networks.views[self.role]}
        self.networks = teacher_student.TeacherStudent({self.role: network}, views)

    def mean_with(
        self, given: settings.CheckpointSettings, train_dir: str, weight: float
    ) -> None:
        """Averages its logits for segments with those of another run's network.

        Args:
            given: of its own; devices and batch size are those of the other, too.
            train_dir: of the other run, whose best network is taken. If that run is of
                segments, it reads as many frames around them as this one.
            weight: of the other network, in [0, 1].

        Raises:
            ValueError: if there is no such network, or it reads other data.
        """
        where = f"--mean_with={train_dir}"
        given = settings.CheckpointSettings(
            train_dir, batch_size=given.batch_size, video_id_key=given.video_id_key
        )
        try:
            other_run = manifest.read_run_settings(train_dir)
            outside.check_same_data(where, other_run, self.run)
            of_videos = not other_run.data.segment_labels
            context = None if of_videos else self.view.segment_context
            policies = [run.networks.dtype_policy for run in (other_run, self.run)]
            if len({*policies}) > 1:
                raise ValueError(
                    f"{where} was trained with --dtype_policy={policies[0]}, this "
                    f"network with {policies[1]}."
                )
            other = open_network(given, strategy=self.strategy, segment_context=context)
        except ValueError as error:
            text = str(error).replace(f"--train_dir={train_dir}", where)
            raise ValueError(text) from error
        names = {name: f"mean_{name}" for name in other.views}
        others = other.networks
        others.views = {role: names[name] for role, name in others.views.items()}
        self.views |= {names[name]: view for name, view in other.views.items()}
        self.networks = mean.MeanNetworks(
            [
                mean.Member(self.networks, self.role, 1 - weight),
                mean.Member(others, other.role, weight, of_videos),
            ]
        )

    def load(self, found: checkpoints.Found) -> None:
        """Loads the variables from a checkpoint."""
        checkpoints.restore_network(found.prefix, self.role, self.network)
        source = self.plan.network(self.role).get("context")
        if source and self.found is None:  # Frozen: that of any state, read once.
            state = checkpoints.find(self.train_dir, self.plan, self.role, "latest")
            if state is None:
                raise ValueError(
                    f"{self.train_dir} has no checkpoint with the {source}, whose "
                    f"encoding the {self.role} reads."
                )
            network = self.networks.network(source)
            checkpoints.restore_network(state.prefix, source, network)
        self.found = found

    def class_names(self, path: str) -> dict[int, str]:
        """Class index → name, from a CSV or, without one, the run's vocabulary."""
        return vocabulary.read(path, self.run.data.num_classes) or self.names

    def open_shards(
        self,
        patterns: str | list[str],
        reading,
        flag: str,
        whole_videos: bool = False,
        may_be_empty: bool = False,
    ):
        """Opens shards of these globs or files; rows are segments or videos.

        Raises:
            ValueError: as shards.open_shards, or if there is no video, unless
                `may_be_empty`.
        """
        data = self.run.data
        if whole_videos:
            data = dataclasses.replace(data, segment_labels=False)
        opened = shards.open_shards(patterns, data, reading, flag)
        if not may_be_empty and opened.is_empty:
            where = file_patterns.named(opened.paths)
            raise ValueError(f"--{flag}: no videos in {where}.")
        return opened

    def dataset(self, opened: shards.Shards | str, batch_size: int):
        """A distributed dataset of all videos of open shards or globs, each once."""
        if isinstance(opened, str):
            opened = self.open_shards(opened, settings.ReadingSettings(), "opened")
        views = self.views
        if self.run.data.segment_labels and not opened.data.segment_labels:
            # All frames of a video, for all of its segments.
            whole = {n: v for n, v in views.items() if v.segment_context is None}
            every = pipeline.ViewSpec("all", opened.data.max_frames)
            views = {**whole, structures.ALL: every}
        return inputs.evaluation_dataset(self.strategy, opened, views, batch_size)


def resolve_role(run: settings.RunSettings, plan: manifest.Plan, network: str) -> str:
    """`auto` or a name → the role; `auto` is the role that is trained last.

    Raises:
        ValueError: if the run does not train this role.
    """
    role = plan.trained[-1] if network == "auto" else network
    if role not in plan.trained:
        given = run.distillation.teacher_checkpoint
        raise ValueError(
            f"--network={network}: a run with --mode={run.distillation.mode} "
            f"{f'and --teacher_checkpoint={given} ' if given else ''}trains no {role}, "
            f"but {' and '.join(plan.trained)}."
        )
    return role


def read_network(
    plan: manifest.Plan, role: str, data: settings.DataSettings
) -> tuple[base.VideoClassifier, str]:
    """The network of a role, without weights, and the name of its view.

    Only the plan is used, so the run's losses need not be registered.
    """
    entry = plan.network(role)
    spec = registry.parse(entry["network"])
    read = data.only(_view_of(entry).features)
    with lstm.to_be_read():
        network = builder.build_network(role, spec, read, entry["frames"])
    return network, entry["view"]


def _view_of(entry: dict) -> pipeline.ViewSpec:
    sampler, k, features, *more = entry["sampler"]
    return pipeline.ViewSpec(sampler, k, tuple(features), *more)


def _with_frames(
    spec: pipeline.ViewSpec, student_k: int, role: str, run: settings.RunSettings
) -> pipeline.ViewSpec:
    """A network's view with `--student_k` frames, by default as in training."""
    if student_k in (0, run.sampling.largest_k):
        return spec
    if spec.sampler == "all":
        raise ValueError(
            f"--student_k={student_k}: the {role} (--network={role}) reads all frames."
        )
    if student_k > spec.k:
        raise ValueError(
            f"--student_k={student_k} is more than the {spec.k} frames that the "
            f"{role} was trained on."
        )
    return spec._replace(k=student_k)


def _of_segments(
    spec: pipeline.ViewSpec, context: int, run: settings.RunSettings
) -> pipeline.ViewSpec:
    """A network's view for segments with `context` frames to each side."""
    if context < 0 and spec.segment_context is not None:
        return spec
    return spec.in_segments(run.sampling.segment_context if context < 0 else context)


def open_network(
    given: settings.CheckpointSettings,
    wait: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    stated: Mapping[str, Any] | None = None,
    segment_context: int | None = None,
) -> TrainedNetwork:
    """Builds the network that a train_dir describes and loads its variables.

    Args:
        given: selects the train_dir, the network and the checkpoint.
        wait: without a checkpoint, return the network unloaded (`found` is None)
            instead of raising.
        strategy: the devices; None for all that the flags allow.
        stated: settings that must agree with those of the run; the modules of
            `import_modules` are imported in addition to those of the run.
        segment_context: frames to each side of segments, if rows are segments; -1 for
            the value of training, or the default. None: rows are videos.

    Raises:
        ValueError: if there is no such run, network or checkpoint, the network cannot
            read this number of frames, or early exit is not calibrated for this
            checkpoint.
    """
    run = manifest.read_run_settings(given.train_dir)
    stated, of_run = dict(stated or {}), run.to_dict()
    more_modules = stated.pop("import_modules", "")
    different = settings.differences({k: of_run[k] for k in stated}, stated)
    if different:
        hint = ""
        if stated.get("segment_labels") and not run.data.segment_labels:
            hint = " yt8m-inference and yt8m-export score segments with --segments."
        raise ValueError(
            f"--train_dir={given.train_dir} was trained with other settings: "
            f"{different}. These flags can be left out.{hint}"
        )
    if given.video_id_key:
        data = dataclasses.replace(run.data, video_id_key=given.video_id_key)
        run = dataclasses.replace(run, data=data)
    if run.data.segment_labels and segment_context is None:
        raise ValueError(
            f"--train_dir={given.train_dir} was trained with --segment_labels: "
            "yt8m-eval --segment_labels, yt8m-inference --segments and yt8m-export "
            "--segments read its network."
        )
    if segment_context is not None:
        data = dataclasses.replace(run.data, segment_labels=True)
        run = dataclasses.replace(run, data=data)
    registry.import_user_modules(f"{run.networks.import_modules},{more_modules}")
    plan = manifest.read_plan(given.train_dir)
    role = resolve_role(run, plan, given.network)
    found = checkpoints.find(given.train_dir, plan, role, given.checkpoint)
    if found is None and not wait:
        raise ValueError(
            f"--train_dir={given.train_dir} has no {given.checkpoint} checkpoint of "
            f"the {role} yet."
        )
    distribution.prepare_runtime(run.networks.dtype_policy)
    strategy = strategy or distribution.build_strategy(given.num_gpus)
    distribution.check_batch_size(given.batch_size, strategy)
    with strategy.scope():
        network, view = read_network(plan, role, run.data)
    spec = _with_frames(_view_of(plan.network(role)), given.student_k, role, run)
    if segment_context is not None:
        spec = _of_segments(spec, segment_context, run)
    networks = teacher_student.TeacherStudent({role: network}, {role: view})
    views, source = {view: spec}, plan.network(role).get("context")
    if source:
        with strategy.scope():
            network, view_of_source = read_network(plan, source, run.data)
        networks.add(source, network, view_of_source)
        networks.contexts[role] = source
        views[view_of_source] = _view_of(plan.network(source))
    stored = os.path.join(given.train_dir, manifest.VOCABULARY)
    names = vocabulary.read(stored) if tf.io.gfile.exists(stored) else {}
    trained = TrainedNetwork(
        networks,
        role,
        run,
        plan,
        views,
        view,
        strategy,
        given.train_dir,
        None,
        names,
    )
    if found:
        trained.load(found)
    if given.early_exit:
        trained.exit_early(given)
    return trained
