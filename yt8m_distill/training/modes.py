"""Modes: which networks learn from which, in each phase.

A mode is a list of phases and a phase a set of roles, and all of them are data: other
modules work with roles and views and do not know the mode.
"""

import dataclasses
from typing import NamedTuple

from yt8m_distill import registry, settings, structures
from yt8m_distill.data import pipeline
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import builder
from yt8m_distill.training import manifest, outside, specifications

TEACHER, STUDENT = settings.TEACHER, settings.STUDENT
# The view with a random number of frames for each video.
_MIXED = f"{structures.SAMPLED}_mixed"


class Start(NamedTuple):
    """The source of a role's initial weights.

    Attributes:
        role: its name there.
        phase: of this run, whose best network is used; empty if prefix is given.
        prefix: of a checkpoint of another run.
    """

    role: str
    phase: str = ""
    prefix: str = ""


class View(NamedTuple):
    """The specifications of a view in training and in evaluation."""

    training: pipeline.ViewSpec
    evaluation: pipeline.ViewSpec


@dataclasses.dataclass(frozen=True)
class Role:
    """One network's part in a phase.

    Attributes:
        name: its name in logs, folders and checkpoints.
        network: its class and arguments.
        view: name of the view that it reads.
        frames: T, the width of that view.
        more_views: other views that it reads in the same training step; the loss is the
            mean over all views.
        budgets: frames → view, if it is evaluated on several; the largest has the view
            above.
        objective: what it minimizes; None if it is frozen and only guides.
        guides: the roles whose outputs its objective compares with; last its own name,
            if it learns from its main view in the others.
        start: source of its initial weights; None for new weights.
        copies_classifier: whether it starts with its guide's classifier.
        copies_network: whether it starts with all of its guide's weights.
        trains_classifier: False keeps the classifier unchanged (L_REP alone does not
            depend on it).
        shares_classifier_with: the role whose classifier it uses; None for its own.
        context: the role whose encoding it reads, too; None for its view alone.
    """

    name: str
    network: registry.Specification
    view: str
    frames: int
    more_views: tuple[str, ...] = ()
    budgets: dict[int, str] = dataclasses.field(default_factory=dict)
    objective: objectives.Objective | None = None
    guides: tuple[str, ...] = ()
    start: Start | None = None
    copies_classifier: bool = False
    copies_network: bool = False
    trains_classifier: bool = True
    shares_classifier_with: str | None = None
    context: str | None = None

    @property
    def frozen(self) -> bool:
        """Whether the network only guides."""
        return self.objective is None

    @property
    def every_view(self) -> tuple[str, ...]:
        """The views that it reads in a training step, the main one first."""
        return (self.view, *(() if self.frozen else self.more_views))

    @property
    def keeps_last(self) -> bool:
        """Whether its last epoch counts as the best.

        If only states are compared, the layers after them do not learn, so GAP does not
        measure progress.
        """
        return not self.frozen and self.objective.needs_states_alone

    @property
    def states_of(self) -> str | None:
        """The view at whose frames it compares intermediate states, or None."""
        needs = not self.frozen and self.objective.needs_states
        return self.view if needs else None


@dataclasses.dataclass(frozen=True)
class Phase:
    """Roles that train together, for some epochs.

    Attributes:
        name: also the name of its folder in the train_dir.
        roles: guides before the roles that they guide.
        views: name → specifications of all views that the roles read.
        epochs: passes over the training data.
    """

    name: str
    roles: tuple[Role, ...]
    views: dict[str, View]
    epochs: int

    @property
    def trained(self) -> tuple[Role, ...]:
        """The roles that learn."""
        return tuple(role for role in self.roles if not role.frozen)

    @property
    def frozen(self) -> tuple[Role, ...]:
        """The roles that only guide."""
        return tuple(role for role in self.roles if role.frozen)

    @property
    def is_guided(self) -> bool:
        """Whether any role learns from another."""
        return any(role.guides for role in self.roles)

    @property
    def states_of(self) -> str | None:
        """The view at whose frames intermediate states are compared, if any."""
        return next((r.states_of for r in self.trained if r.states_of), None)

    def view_specs(self, names, training: bool = False) -> dict[str, pipeline.ViewSpec]:
        """View specifications by name, for the pipeline."""
        return {
            name: view.training if training else view.evaluation
            for name, view in self.views.items()
            if name in names
        }

    def describe(self) -> dict:
        """The description of its networks for other programs, as JSON."""
        return {
            role.name: {
                "network": str(role.network),
                "view": role.view,
                "sampler": list(self.views[role.view].evaluation),
                "frames": role.frames,
                "trained": not role.frozen,
                "context": role.context,
            }
            for role in self.roles
        }


class _Run:
    """Makes the roles of a run.

    Args:
        run: the settings.
        resolved: whether to look up the teachers of other runs.
    """

    def __init__(self, run: settings.RunSettings, resolved: bool = True):
        self.run = run
        registry.import_user_modules(run.networks.import_modules)
        sampled, sampled_in_training = (
            pipeline.sampled_view(run.sampling, training) for training in (False, True)
        )
        if run.data.segment_labels:
            context = run.sampling.segment_context
            sampled = sampled.in_segments(context)
            sampled_in_training = sampled_in_training.in_segments(context)
            if run.sampling.largest_k > sampled.k and len(run.sampling.budgets) > 1:
                raise ValueError(
                    f"--student_k={run.sampling.student_k}: --segment_labels with "
                    f"--segment_context={context} has {sampled.k} frames."
                )
        every = pipeline.ViewSpec("all", run.data.max_frames)
        self.views = {
            structures.ALL: View(every, every),
            structures.SAMPLED: View(sampled_in_training, sampled),
        }
        self.budgets = self._add_budgets(run.sampling.budgets)
        self.outside = outside.teachers(run) if resolved else ()
        self.is_external = bool(run.distillation.teacher_checkpoint)
        self.label_objective = objectives.label_objective(run.distillation)
        self.alone = objectives.is_representation_only(run.distillation)

    def _add_budgets(self, numbers: tuple[int, ...]) -> dict[int, str]:
        """Makes the views of a student for several k: frames → view; empty otherwise.

        By the sandwich rule, a step uses the largest number of frames, the smallest,
        and a random number for each video.
        """
        if len(numbers) < 2:
            return {}
        largest = self.views[structures.SAMPLED]
        if largest.evaluation.sampler == "all":
            raise ValueError(
                f"--frame_sampler=all: it has one number of frames, --student_k="
                f"{self.run.sampling.student_k} several."
            )
        budgets = {k: f"{structures.SAMPLED}_{k}" for k in numbers[:-1]}
        for k, name in budgets.items():
            self.views[name] = View(*(spec._replace(k=k) for spec in largest))
        of = {"numbers": numbers, "of": largest.training.sampler}
        mixed = largest.training._replace(
            sampler=str(registry.Specification("mixed", of))
        )
        self.views[_MIXED] = View(mixed, mixed)
        return {**budgets, numbers[-1]: structures.SAMPLED}

    def frames(self, view: str) -> int:
        """T of a view."""
        return self.views[view].evaluation.width(self.run.data)

    def phase(self, name: str, roles: tuple[Role, ...], epochs: int) -> Phase:
        """A phase of these roles, with their views."""
        names = {name for role in roles for name in role.every_view}
        names |= {name for role in roles for name in role.budgets.values()}
        views = {name: view for name, view in self.views.items() if name in names}
        return Phase(name, roles, views, epochs)

    def teacher(self, **fields) -> Role:
        """The teacher that the settings describe."""
        spec, view = specifications.teacher_specification(self.run), structures.ALL
        return Role(TEACHER, spec, view, self.frames(view), **fields)

    def frozen_teachers(self) -> tuple[Role, ...]:
        """The teachers of a serial student."""
        if not self.outside:
            return (self.teacher(start=Start(TEACHER, phase=TEACHER)),)
        view, several = structures.ALL, len(self.outside) > 1
        return tuple(
            Role(
                f"{TEACHER}_{number}" if several else TEACHER,
                found.network,
                view,
                self.frames(view),
                start=Start(found.role, prefix=found.prefix),
            )
            for number, found in enumerate(self.outside, 1)
        )

    def student(self, guides: tuple[Role, ...] = (), **fields) -> Role:
        """The student that learns from these guides."""
        run, view = self.run, structures.SAMPLED
        spec = specifications.student_specification(run)
        objective = objectives.build_objective(run.distillation)
        if guides:
            objective.check_guides(len(guides))
            classifier = specifications.classifier_of(run.distillation)
            copies = run.distillation.student_start == "teacher"
            if len(guides) > 1 and (copies or classifier != "own"):
                flag = "student_start=teacher" if copies else f"classifier={classifier}"
                raise ValueError(
                    f"--{flag} takes weights of one teacher; with "
                    f"{len(guides)} of them use --classifier=own and "
                    "--student_start=new."
                )
            if objective.needs_self and not self.budgets:
                raise ValueError(
                    f"--student_loss={run.distillation.student_loss} compares with the "
                    "student on the most of several numbers of frames; received "
                    f"--student_k={run.sampling.student_k}."
                )
            names = [guide.name for guide in guides]
            if classifier == "shared":
                specifications.check_shared_head(
                    spec, guides[0].network, run.distillation
                )
            if classifier != "own" or objective.compares_representations:
                position = next((t.guide for t in objective.terms if t.guide), 0)
                guide = guides[position].network
                spec = specifications.with_encoding_size(spec, guide, run.data)
            context = None
            if run.distillation.video_context:
                self._check_context(guides, objective)
                context = guides[0].name
                width = builder.encoding_size(guides[0].network, run.data)
                spec = spec.with_defaults(**{builder.CONTEXT_SIZE: width})
            fields = {
                "context": context,
                "objective": objective,
                "guides": (*names, *([STUDENT] if objective.needs_self else [])),
                "copies_classifier": classifier == "copied",
                "copies_network": copies,
                "trains_classifier": not self.alone,
                "shares_classifier_with": (
                    guides[0].name if classifier == "shared" else None
                ),
            }
        if self.budgets:
            if objective.needs_states:
                raise ValueError(
                    f"--student_k={run.sampling.student_k}: intermediate states are "
                    "compared for a single number of frames."
                )
            smallest = self.budgets[run.sampling.budgets[0]]
            fields |= {"more_views": (smallest, _MIXED), "budgets": self.budgets}
        return Role(STUDENT, spec, view, self.frames(view), **fields)

    def _check_context(self, guides, objective) -> None:
        """Raises ValueError if a student cannot read its guide's encoding."""
        given = self.run.distillation
        for flag, is_wrong in (
            (f"teacher_checkpoint={given.teacher_checkpoint}", len(guides) > 1),
            (f"student_k={self.run.sampling.student_k}", self.budgets),
            (f"student_loss={given.student_loss}", not objective.compares_logits),
        ):
            if is_wrong:
                raise ValueError(
                    f"--{flag} does not go with --video_context: it needs one teacher, "
                    "one number of frames and a loss of the classifier."
                )

    def finetuning(self, student: Role, after: str) -> list[Phase]:
        """The second stage: trains the whole student on labels."""
        epochs = self.run.distillation.finetune_epochs
        if not (self.alone and epochs):
            return []
        alone = Role(
            student.name,
            student.network,
            student.view,
            student.frames,
            student.more_views,
            student.budgets,
            self.label_objective,
            start=Start(student.name, phase=after),
        )
        return [self.phase("finetune", (alone,), epochs)]


def _teacher_phase(made: _Run) -> Phase:
    teacher = made.teacher(objective=made.label_objective)
    return made.phase(TEACHER, (teacher,), made.run.training.num_epochs)


def _teacher(made: _Run) -> list[Phase]:
    return [_teacher_phase(made)]


def _baseline(made: _Run) -> list[Phase]:
    student = made.student(objective=made.label_objective)
    return [made.phase("baseline", (student,), made.run.training.num_epochs)]


def _serial(made: _Run) -> list[Phase]:
    teachers = made.frozen_teachers()
    student = made.student(teachers)
    run = made.run
    epochs = run.distillation.student_epochs or run.training.num_epochs
    return [
        *([] if made.is_external else [_teacher_phase(made)]),
        made.phase(STUDENT, (*teachers, student), epochs),
        *made.finetuning(student, after=STUDENT),
    ]


def _parallel(made: _Run) -> list[Phase]:
    teacher = made.teacher(objective=made.label_objective)
    student = made.student((teacher,))
    epochs = made.run.training.num_epochs
    return [
        made.phase("parallel", (teacher, student), epochs),
        *made.finetuning(student, after="parallel"),
    ]


_MODES = {
    "teacher": _teacher,
    "baseline": _baseline,
    "serial": _serial,
    "parallel": _parallel,
}


def phases(run: settings.RunSettings, resolved: bool = True) -> list[Phase]:
    """The phases of a run, in order.

    Args:
        run: the settings.
        resolved: whether to look up the teachers of other runs; otherwise a single one
            without weights replaces them.

    Raises:
        ValueError: for an invalid objective or network, or incompatible networks.
    """
    if run.data.segment_labels:
        _check_segments(run)
    return _MODES[run.distillation.mode](_Run(run, resolved))


def _check_segments(run: settings.RunSettings) -> None:
    """Raises ValueError for a run that cannot learn from segments."""
    mode, given = run.distillation.mode, run.distillation.teacher_checkpoint
    if mode != "baseline" and not given:
        raise ValueError(
            f"--segment_labels with --mode={mode}: a student learns from segments, in "
            "--mode=baseline, or in --mode=serial from the teacher of whole videos "
            "that --teacher_checkpoint names."
        )
    for name, nothing in (("unlabeled_data_pattern", ""), ("mix", "none")):
        value = getattr(run.training, name)
        if value != nothing:
            raise ValueError(f"--{name}={value} does not go with --segment_labels.")


def networks(run: settings.RunSettings) -> dict[str, Role]:
    """The two networks that the settings describe, whatever the mode trains."""
    made = _Run(run, resolved=False)
    teacher = made.teacher()
    guided = run.distillation.mode in settings.GUIDED_MODES
    student = made.student((teacher,) if guided else ())
    return {TEACHER: teacher, STUDENT: student}


def views_of(run: settings.RunSettings, names, training: bool = False) -> dict:
    """The views that the two networks of these names read."""
    made, found = _Run(run, resolved=False), networks(run)
    wanted = {found[name].view for name in names}
    every = Phase("", (), made.views, 0)
    return every.view_specs(wanted, training)


# Settings that a phase without a student, or without a guide, does not see.
_STUDENT_ONLY = (
    *("student_k", "best_budget", "frame_sampler", "train_frame_sampler", "student"),
)
_GUIDED_ONLY = (
    "student_loss",
    "match",
    "prediction_distance",
    "temperature",
    "classifier",
    "student_start",
    "video_context",
    "teacher_cache_top_k",
    "teacher_checkpoint",
    "teacher_mean",
    "student_epochs",
    "finetune_epochs",
    "unlabeled_data_pattern",
    "unlabeled_fraction",
)


def phase_settings(phase: Phase, run: settings.RunSettings) -> dict:
    """The settings that a phase depends on, name → value."""
    names = {role.name for role in phase.roles}
    guided = any(role.guides or role.start for role in phase.roles)
    left_out = set(manifest.CHANGEABLE)
    if STUDENT not in names:
        left_out |= {*_STUDENT_ONLY, *_GUIDED_ONLY}
    if not guided and TEACHER not in names:
        left_out |= {"teacher"} if run.networks.student else set()
        left_out |= set(_GUIDED_ONLY)
    if all(role.guides for role in phase.trained):
        left_out.add("label_loss")
    values = {k: v for k, v in run.to_dict().items() if k not in left_out}
    # What ends it, under one name in all phases.
    for name in ("num_epochs", "student_epochs", "finetune_epochs"):
        values.pop(name, None)
    values["epochs"] = phase.epochs
    if any(role.start for role in phase.trained):
        # What it continues from: serial and parallel mode have their own.
        values["mode"] = run.distillation.mode
    return values
