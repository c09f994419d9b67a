"""From settings to networks."""

import contextlib
from collections.abc import Sequence

from yt8m_distill import registry, settings, structures
from yt8m_distill.losses import objective
from yt8m_distill.models import base, lstm, teacher_student

registry.import_modules("yt8m_distill.models")

# Arguments of every model that follow from the settings.
_GIVEN = ("feature_size", "num_classes", "max_frames")

# The view of each role.
VIEWS = {"teacher": structures.ALL, "student": structures.SAMPLED}


def classifier_of(run: settings.RunSettings) -> str:
    """`shared`, `copied` or `own`: what `--classifier` means in each mode.

    With L_REP alone the student has the teacher's, whatever the flag says: its own
    would learn nothing before the fine-tuning.
    """
    given, mode = run.distillation.classifier, run.distillation.mode
    automatic = {"parallel": "shared", "serial": "copied"}
    if mode in automatic and objective.is_representation_only(run.distillation):
        return automatic[mode]
    return automatic.get(mode, "own") if given == "auto" else given


def default_block_len(student_k: int) -> int:
    """The student's l: 5, or 3 where only that divides k (the paper's k = 6)."""
    return 3 if student_k % 5 and student_k % 3 == 0 else 5


def _parse(role: str, text: str) -> registry.Specification:
    """The specification in a role's flag, of a model that exists and takes it."""
    try:
        spec = registry.parse(text)
        base.MODELS.check(spec, _GIVEN)
    except ValueError as error:
        raise ValueError(f"--{role}={text}: {error}") from error
    return spec


def student_specification(run: settings.RunSettings) -> registry.Specification:
    """The student as `--student` gives it, or the teacher's with short blocks."""
    if run.networks.student:
        return _parse("student", run.networks.student)
    teacher = _parse("teacher", run.networks.teacher)
    arguments = dict(teacher.arguments)
    k = run.sampling.student_k
    if "num_blocks" in arguments:
        arguments["num_blocks"] = 3 if k == 6 else 5
    elif base.MODELS.accepts(teacher.name, "block_len"):
        arguments["block_len"] = default_block_len(k)
    return registry.Specification(teacher.name, arguments)


def _needs_equal_widths(run: settings.RunSettings) -> bool:
    """Whether the student's encoding must be as wide as the teacher's."""
    if run.distillation.mode not in settings.GUIDED_MODES:
        return False
    if classifier_of(run) != "own":
        return True
    return objective.build_objective(run.distillation).compares_representations


def _encoder_size(spec: registry.Specification, run: settings.RunSettings) -> int:
    arguments = base.MODELS.arguments(spec)
    wanted = arguments.get("encoding_size")
    if wanted:
        return wanted
    entry = base.MODELS.get(spec.name)
    try:
        return entry.encoder_size(run.data.feature_size, arguments)
    except KeyError as error:
        raise ValueError(
            f"encoder_size of {spec.name} asks for {error}, which its constructor does "
            "not take."
        ) from error


def _with_encoding_size(
    spec: registry.Specification, teacher: registry.Specification, run
) -> registry.Specification:
    """The student's specification with the width of the teacher's encoding."""
    width, wanted = _encoder_size(spec, run), _encoder_size(teacher, run)
    if width == wanted:
        return spec
    if not base.MODELS.accepts(spec.name, "encoding_size"):
        raise ValueError(
            f"the encoding is {width} wide, the teacher's {wanted}, and the "
            f"constructor of {spec.name} takes no encoding_size to bring it there."
        )
    return spec.with_defaults(encoding_size=wanted)


def _share_head(
    spec: registry.Specification, teacher: base.VideoClassifier, run
) -> registry.Specification:
    """The student's specification with the teacher's own head layer in it."""
    alone = objective.is_representation_only(run.distillation)
    loss = run.distillation.student_loss
    reason = f"--student_loss={loss} alone" if alone else "--classifier=shared"
    other = "" if alone else ", or --classifier=own"
    of_teacher = registry.parse(run.networks.teacher)
    for name in (of_teacher.name, spec.name):
        if not base.MODELS.accepts(name, "head"):
            raise ValueError(
                f"{reason} needs models that take a head; the constructor of {name} "
                f"does not. Add the argument{other}."
            )
    wanted = base.MODELS.arguments(of_teacher)["head"]
    given = base.MODELS.arguments(spec)["head"]
    if given != wanted:
        raise ValueError(
            f"{reason} needs the teacher's head {wanted!r}; the student's is "
            f"{given!r}. Give both the same head{other}."
        )
    return registry.Specification(spec.name, {**spec.arguments, "head": teacher.head})


def num_frames(role: str, run: settings.RunSettings) -> int:
    """T, the frames of the view that a role's network reads."""
    if not run.data.frame_features:
        return 1
    sampler = registry.parse(run.sampling.frame_sampler)
    whole = role == "teacher" or sampler.name == "all"
    return run.data.max_frames if whole else run.sampling.student_k


def build_network(
    role: str,
    run: settings.RunSettings,
    sharing: base.VideoClassifier | None = None,
) -> base.VideoClassifier:
    """Makes the network of a role, with its variables.

    A student that is compared with a wider or narrower teacher, or takes its
    classifier, gets a learned linear map to the teacher's width.

    Args:
        role: `teacher` or `student`.
        run: the settings.
        sharing: the teacher whose classifier a student is to use, or None.

    Raises:
        ValueError: for an unknown model or argument; the message names the flag
            and lists the known.
    """
    teacher = _parse("teacher", run.networks.teacher)
    spec = teacher if role == "teacher" else student_specification(run)
    try:
        width = num_frames(role, run)
        full = spec
        if role == "student" and _needs_equal_widths(run):
            full = _with_encoding_size(full, teacher, run)
        if sharing is not None:
            full = _share_head(full, sharing, run)
        network = base.MODELS.create(
            full,
            feature_size=run.data.feature_size,
            num_classes=run.data.num_classes,
            max_frames=width,
        )
        if not network.head.built:
            raise ValueError(
                f"the constructor of {spec.name} must end with build_classifier."
            )
        return network
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{role}={spec}: {error}") from error


def build_networks(
    run: settings.RunSettings,
    roles: Sequence[str],
    share_classifier: bool = False,
    to_be_read: bool = False,
) -> teacher_student.TeacherStudent:
    """New networks of these roles; call it in the strategy's scope.

    Args:
        run: the settings.
        roles: `teacher`, `student` or both.
        share_classifier: both networks use one head with one set of variables.
        to_be_read: their weights will come from a checkpoint, or do not matter: what
            takes long to draw is 0.
    """
    networks: dict[str, base.VideoClassifier] = {}
    with lstm.to_be_read() if to_be_read else contextlib.nullcontext():
        for role in sorted(roles, key=("teacher", "student").index):
            shares = share_classifier and role == "student"
            sharing = networks["teacher"] if shares else None
            networks[role] = build_network(role, run, sharing)
    return teacher_student.TeacherStudent(networks, {r: VIEWS[r] for r in roles})
