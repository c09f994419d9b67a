"""Modes: which networks learn from what, phase by phase.

A mode is a list of phases, a phase a set of roles. Everything below this module
works on roles and knows no mode.
"""

import dataclasses

from yt8m_distill import settings
from yt8m_distill.losses import objective as objectives
from yt8m_distill.models import builder


@dataclasses.dataclass(frozen=True)
class Role:
    """One network's part in a phase.

    Attributes:
        name: `teacher` or `student`.
        objective: what it minimises; None: it is frozen and only guides.
        guide: the role whose outputs its objective compares with.
        initial: the phase whose best network of this role it starts from; None:
            from new weights.
        copies_classifier: it starts with the guide's classifier.
        copies_network: it starts with all of the guide's weights.
        trains_classifier: False leaves the classifier as it is (L_REP alone
            says nothing about it).
    """

    name: str
    objective: objectives.Objective | None
    guide: str | None = None
    initial: str | None = None
    copies_classifier: bool = False
    copies_network: bool = False
    trains_classifier: bool = True

    @property
    def view(self) -> str:
        """Name of the view that the network reads."""
        return builder.VIEWS[self.name]

    @property
    def frozen(self) -> bool:
        """Whether the network only guides."""
        return self.objective is None

    @property
    def keeps_last(self) -> bool:
        """Whether its last epoch counts as the best.

        Where states alone are compared, nothing behind them learns, so that GAP says
        nothing about what does.
        """
        return not self.frozen and self.objective.needs_states_alone


@dataclasses.dataclass(frozen=True)
class Phase:
    """Roles that train together, for some epochs.

    Attributes:
        name: also the name of its folder in the train_dir.
        roles: a guide stands before whom it guides.
        epochs: passes over the training data.
        share_classifier: the student uses the teacher's.
    """

    name: str
    roles: tuple[Role, ...]
    epochs: int
    share_classifier: bool = False

    @property
    def trained(self) -> tuple[Role, ...]:
        """The roles that learn."""
        return tuple(role for role in self.roles if not role.frozen)


# The source of a teacher that another run has trained.
EXTERNAL = "external"


def _finetuning(run: settings.RunSettings, after: str) -> list[Phase]:
    """The second stage: everything in the student, with L_CE."""
    epochs = run.distillation.finetune_epochs
    alone = objectives.is_representation_only(run.distillation)
    if not (alone and epochs):
        return []
    student = Role("student", objectives.cross_entropy_objective(), initial=after)
    return [Phase("finetune", (student,), epochs)]


def _student(run: settings.RunSettings) -> Role:
    """The student beside its teacher."""
    return Role(
        "student",
        objectives.build_objective(run.distillation),
        guide="teacher",
        copies_classifier=builder.classifier_of(run) == "copied",
        copies_network=run.distillation.student_start == "teacher",
        trains_classifier=not objectives.is_representation_only(run.distillation),
    )


def _teacher_phase(run: settings.RunSettings) -> Phase:
    teacher = Role("teacher", objectives.cross_entropy_objective())
    return Phase("teacher", (teacher,), run.training.num_epochs)


def _teacher(run: settings.RunSettings) -> list[Phase]:
    return [_teacher_phase(run)]


def _baseline(run: settings.RunSettings) -> list[Phase]:
    student = Role("student", objectives.cross_entropy_objective())
    return [Phase("baseline", (student,), run.training.num_epochs)]


def _serial(run: settings.RunSettings) -> list[Phase]:
    outside = bool(run.distillation.teacher_checkpoint)
    teacher = Role("teacher", None, initial=EXTERNAL if outside else "teacher")
    epochs = run.distillation.student_epochs or run.training.num_epochs
    return [
        *([] if outside else [_teacher_phase(run)]),
        Phase("student", (teacher, _student(run)), epochs),
        *_finetuning(run, after="student"),
    ]


def _parallel(run: settings.RunSettings) -> list[Phase]:
    teacher = Role("teacher", objectives.cross_entropy_objective())
    share = builder.classifier_of(run) == "shared"
    return [
        Phase("parallel", (teacher, _student(run)), run.training.num_epochs, share),
        *_finetuning(run, after="parallel"),
    ]


_MODES = {
    "teacher": _teacher,
    "baseline": _baseline,
    "serial": _serial,
    "parallel": _parallel,
}


def phases(run: settings.RunSettings) -> list[Phase]:
    """What a run does, in order.

    Raises:
        ValueError: for an objective that cannot be parsed.
    """
    return _MODES[run.distillation.mode](run)


def phases_of(run: settings.RunSettings, network: str) -> list[Phase]:
    """The phases that train a network (`teacher` or `student`), the last one first."""
    found = [
        phase
        for phase in phases(run)
        if any(role.name == network for role in phase.trained)
    ]
    return found[::-1]
