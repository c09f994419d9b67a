"""Modes: which networks learn from which, in each phase.

A mode is a function that makes a list of phases from `Parts`, registered with
`@MODES.register("name")`. No other module knows the modes or their networks' names.
"""

import dataclasses

from yt8m_distill import registry, settings, structures
from yt8m_distill.data import pipeline
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import base, builder
from yt8m_distill.training import manifest, outside
from yt8m_distill.training.roles import Phase, Role, Start, View

MODES = registry.Registry("mode")

# The two networks that have a flag of that name.
TEACHER, STUDENT = "teacher", "student"
# The view with a random number of frames for each video.
_MIXED = f"{structures.SAMPLED}_mixed"


def teacher_specification(run: settings.RunSettings) -> registry.Specification:
    """The network of `--teacher`."""
    return builder.parse(TEACHER, run.networks.teacher)


def student_specification(run: settings.RunSettings) -> registry.Specification:
    """The network of `--student`, or the teacher's with short blocks.

    Their length l is 5, or 3 if only 3 divides k (the paper's k = 6).
    """
    if run.networks.student:
        return builder.parse(STUDENT, run.networks.student)
    teacher = teacher_specification(run)
    arguments, k = dict(teacher.arguments), run.sampling.largest_k
    if "num_blocks" in arguments:
        arguments["num_blocks"] = 3 if k == 6 else 5
    elif base.MODELS.accepts(teacher.name, "block_len"):
        arguments["block_len"] = 3 if k % 5 and k % 3 == 0 else 5
    return registry.Specification(teacher.name, arguments)


def _with_encoding_size(
    spec: registry.Specification, width: int, guide_width: int
) -> registry.Specification:
    """The student with an encoding as wide as its guide's.

    If the widths differ, a learned linear map (the bridge) is added.

    Raises:
        ValueError: if the network's constructor takes no encoding_size.
    """
    if width == guide_width:
        return spec
    if not base.MODELS.accepts(spec.name, "encoding_size"):
        raise ValueError(
            f"--student={spec}: the encoding is {width} wide, the teacher's "
            f"{guide_width}, and the constructor of {spec.name} takes no encoding_size."
        )
    return spec.with_defaults(encoding_size=guide_width)


def _check_shared_head(
    spec: registry.Specification, guide: registry.Specification, reason: str
) -> None:
    """Raises ValueError unless the student can use its guide's classifier."""
    other = ", or --classifier=own" if reason.startswith("--classifier") else ""
    for name in (guide.name, spec.name):
        if not base.MODELS.accepts(name, "head"):
            raise ValueError(
                f"--student={spec}: {reason} needs models that take a head; the "
                f"constructor of {name} does not. Add the argument{other}."
            )
    guide_head = base.MODELS.arguments(guide)["head"]
    head = base.MODELS.arguments(spec)["head"]
    if head != guide_head:
        raise ValueError(
            f"--student={spec}: {reason} needs the teacher's head {guide_head!r}; the "
            f"student's is {head!r}. Give both the same head{other}."
        )


class Parts:
    """Makes the views, roles and phases of a run, for a mode.

    Args:
        resolved: whether to look up the teachers of other runs.

    Attributes:
        views: name → View; a mode may add some.
        label_objective: that of a role without a guide.
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
        self.outside = outside.teachers(run, TEACHER) if resolved else ()
        self.is_external = bool(run.distillation.teacher_checkpoint)
        self.label_objective = objectives.label_objective(run.distillation)
        self.objective = objectives.build_objective(run.distillation)
        self.alone = "logits" not in self.objective.compares

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

    def role(
        self, name: str, network: registry.Specification, view: str, **fields
    ) -> Role:
        """A role that reads one of the views."""
        spec = self.views[view].evaluation
        frames = spec.width(self.run.data)
        return Role(name, network, view, frames, features=spec.features, **fields)

    def _encoding_size(self, role: Role) -> int:
        data = self.run.data.only(role.features)
        return builder.encoding_size(role.name, role.network, data, role.frames)

    def phase(self, name: str, roles: tuple[Role, ...], epochs: int) -> Phase:
        """A phase of these roles, with their views."""
        names = {name for role in roles for name in role.every_view}
        names |= {name for role in roles for name in role.budgets.values()}
        views = {name: view for name, view in self.views.items() if name in names}
        depends_on = _settings_of(roles, epochs, self.run)
        return Phase(name, roles, views, epochs, depends_on)

    def teacher(self, **fields) -> Role:
        """The teacher that the settings describe."""
        spec = teacher_specification(self.run)
        return self.role(TEACHER, spec, structures.ALL, **fields)

    def frozen_teachers(self) -> tuple[Role, ...]:
        """The teachers of a serial student."""
        if not self.outside:
            return (self.teacher(start=Start(TEACHER, phase=TEACHER)),)
        several = len(self.outside) > 1
        return tuple(
            self.role(
                f"{TEACHER}_{number}" if several else TEACHER,
                found.network,
                structures.ALL,
                start=Start(found.role, prefix=found.prefix),
            )
            for number, found in enumerate(self.outside, 1)
        )

    def student(
        self, guides: tuple[Role, ...] = (), view: str = structures.SAMPLED, **fields
    ) -> Role:
        """The student that learns from these guides in a view."""
        run = self.run
        spec = student_specification(run)
        objective = self.objective
        if guides:
            objective.check_guides(len(guides))
            classifier = self._classifier_of(guides[0])
            copies = run.distillation.student_start == "teacher"
            if len(guides) > 1 and (copies or classifier != "own"):
                flag = "student_start=teacher" if copies else f"classifier={classifier}"
                raise ValueError(
                    f"--{flag} takes weights of one teacher; with "
                    f"{len(guides)} of them use --classifier=own and "
                    "--student_start=new."
                )
            if "self" in objective.needs and not self.budgets:
                raise ValueError(
                    f"--student_loss={run.distillation.student_loss} compares with the "
                    "student on the most of several numbers of frames; received "
                    f"--student_k={run.sampling.student_k}."
                )
            names = [guide.name for guide in guides]
            if classifier == "shared":
                loss = f"--student_loss={run.distillation.student_loss} alone"
                reason = loss if self.alone else "--classifier=shared"
                _check_shared_head(spec, guides[0].network, reason)
            if classifier != "own" or objective.compares != {"logits"}:
                position = next((t.guide for t in objective.terms if t.guide), 0)
                guide_width = self._encoding_size(guides[position])
                width = self._encoding_size(self.role(STUDENT, spec, view))
                spec = _with_encoding_size(spec, width, guide_width)
            context = None
            if run.distillation.video_context:
                self._check_context(guides, objective)
                context = guides[0].name
                width = self._encoding_size(guides[0])
                spec = spec.with_defaults(**{builder.CONTEXT_SIZE: width})
            fields = {
                "context": context,
                "objective": objective,
                "guides": (*names, *([STUDENT] if "self" in objective.needs else [])),
                "copies_classifier": classifier == "copied",
                "copies_network": copies,
                "trains_classifier": not self.alone,
                "shares_classifier_with": (
                    guides[0].name if classifier == "shared" else None
                ),
            }
        if self.budgets:
            if "guide_states" in objective.needs:
                raise ValueError(
                    f"--student_k={run.sampling.student_k}: intermediate states are "
                    "compared for a single number of frames."
                )
            smallest = self.budgets[run.sampling.budgets[0]]
            fields |= {"more_views": (smallest, _MIXED), "budgets": self.budgets}
        return self.role(STUDENT, spec, view, **fields)

    def _classifier_of(self, guide: Role) -> str:
        """Resolves `--classifier` to `shared`, `copied` or `own`.

        With L_REP alone the student always has its guide's classifier: its own would
        learn nothing before the fine-tuning.
        """
        given = self.run.distillation.classifier
        if given == "auto" or self.alone:
            return "copied" if guide.frozen else "shared"
        return given

    def _check_context(self, guides, objective) -> None:
        """Raises ValueError if a student cannot read its guide's encoding."""
        given = self.run.distillation
        for flag, is_wrong in (
            (f"teacher_checkpoint={given.teacher_checkpoint}", len(guides) > 1),
            (f"student_k={self.run.sampling.student_k}", self.budgets),
            (f"student_loss={given.student_loss}", "logits" not in objective.compares),
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
        alone = self.role(
            student.name,
            student.network,
            student.view,
            more_views=student.more_views,
            budgets=student.budgets,
            objective=self.label_objective,
            start=Start(student.name, phase=after),
        )
        return [self.phase("finetune", (alone,), epochs)]


def _teacher_phase(parts: Parts) -> Phase:
    teacher = parts.teacher(objective=parts.label_objective)
    return parts.phase(TEACHER, (teacher,), parts.run.training.num_epochs)


@MODES.register("teacher")
def _teacher(parts: Parts) -> list[Phase]:
    return [_teacher_phase(parts)]


@MODES.register("baseline")
def _baseline(parts: Parts) -> list[Phase]:
    student = parts.student(objective=parts.label_objective)
    return [parts.phase("baseline", (student,), parts.run.training.num_epochs)]


@MODES.register("serial")
def _serial(parts: Parts) -> list[Phase]:
    teachers = parts.frozen_teachers()
    student = parts.student(teachers)
    run = parts.run
    epochs = run.distillation.student_epochs or run.training.num_epochs
    return [
        *([] if parts.is_external else [_teacher_phase(parts)]),
        parts.phase(STUDENT, (*teachers, student), epochs),
        *parts.finetuning(student, after=STUDENT),
    ]


@MODES.register("parallel")
def _parallel(parts: Parts) -> list[Phase]:
    teacher = parts.teacher(objective=parts.label_objective)
    student = parts.student((teacher,))
    epochs = parts.run.training.num_epochs
    return [
        parts.phase("parallel", (teacher, student), epochs),
        *parts.finetuning(student, after="parallel"),
    ]


def phases(run: settings.RunSettings, resolved: bool = True) -> list[Phase]:
    """The phases of a run, in order.

    Args:
        resolved: whether to look up the teachers of other runs; otherwise a single one
            without weights replaces them.

    Raises:
        ValueError: for an unknown mode, an invalid objective or network, or
            incompatible networks.
    """
    if run.data.segment_labels:
        _check_segments(run)
    parts, mode = Parts(run, resolved), run.distillation.mode
    try:
        make = MODES.get(mode)
    except ValueError as error:
        raise ValueError(f"--mode={mode}: {error}") from error
    made = make(parts)
    if not (made and isinstance(made, list | tuple) and isinstance(made[0], Phase)):
        raise ValueError(
            f"--mode={mode}: a mode must return a list of phases; received "
            f"{type(made).__name__}."
        )
    first, *others = made
    start = {"start_from": run.training.start_from}
    begun = (r if r.frozen else dataclasses.replace(r, **start) for r in first.roles)
    return [dataclasses.replace(first, roles=tuple(begun)), *others]


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


def _described(run: settings.RunSettings) -> tuple[dict[str, Role], dict[str, View]]:
    """All networks and all views, by name."""
    plan, parts = phases(run, resolved=False), Parts(run, resolved=False)
    found = {TEACHER: parts.teacher(), STUDENT: parts.student()}
    views = dict(parts.views)
    for phase in plan:
        found |= {role.name: role for role in phase.roles}
        views |= phase.views  # A mode may have added some.
    return found, views


def networks(run: settings.RunSettings) -> dict[str, Role]:
    """The networks that the settings describe; the two with a flag in any mode."""
    return _described(run)[0]


def views_of(run: settings.RunSettings, names) -> dict[str, pipeline.ViewSpec]:
    """The views that the networks of these names read in an evaluation."""
    found, views = _described(run)
    read = (found[name].view for name in names)
    return {view: views[view].evaluation for view in read}


# Settings that a phase without a student, or without a guide, does not see.
_STUDENT_ONLY = {
    *("student_k", "best_budget", "frame_sampler", "train_frame_sampler", "student"),
}
_GUIDED_ONLY = {"unlabeled_data_pattern", "unlabeled_fraction"}
_GUIDED_ONLY |= {f.name for f in dataclasses.fields(settings.DistillationSettings)}
_GUIDED_ONLY -= {"label_loss"}


def _settings_of(
    roles: tuple[Role, ...], epochs: int, run: settings.RunSettings
) -> dict:
    """The settings that a phase of these roles depends on, name → value."""
    names = {role.name for role in roles}
    guided = any(role.guides or role.start for role in roles)
    # What ends a phase has one name in all of them, `epochs`.
    left_out = {*manifest.CHANGEABLE, "num_epochs", "student_epochs", "finetune_epochs"}
    if names == {TEACHER}:
        left_out |= _STUDENT_ONLY | _GUIDED_ONLY
    if names == {STUDENT} and not guided:
        left_out |= {"teacher"} if run.networks.student else set()
        left_out |= _GUIDED_ONLY
    if all(role.guides for role in roles if not role.frozen):
        left_out.add("label_loss")
    values = {k: v for k, v in run.to_dict().items() if k not in left_out}
    values["epochs"] = epochs
    if any(role.start and not role.frozen for role in roles):
        # What it continues from: serial and parallel mode have their own.
        values["mode"] = run.distillation.mode
    return values
