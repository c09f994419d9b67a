"""From settings to networks."""

from yt8m_distill import registry, settings, structures
from yt8m_distill.models import (  # noqa: F401 (registers the models)
    base,
    frame_average,
    hierarchical_lstm,
    lstm_model,
)

# The view of each role.
VIEWS = {"teacher": structures.ALL, "student": structures.SAMPLED}


def classifier_of(run: settings.RunSettings) -> str:
    """`shared`, `copied` or `own`: what `--classifier=auto` means in each mode."""
    given = run.distillation.classifier
    automatic = {"parallel": "shared", "serial": "copied"}
    return automatic.get(run.distillation.mode, "own") if given == "auto" else given


def default_block_len(student_k: int) -> int:
    """The student's l: 5, or 3 where only that divides k (the paper's k = 6)."""
    return 3 if student_k % 5 and student_k % 3 == 0 else 5


def student_specification(run: settings.RunSettings) -> registry.Specification:
    """The student as `--student` gives it, or the teacher's with short blocks."""
    if run.networks.student:
        return registry.parse(run.networks.student)
    teacher = registry.parse(run.networks.teacher)
    arguments = dict(teacher.arguments)
    k = run.sampling.student_k
    if "num_blocks" in arguments:
        arguments["num_blocks"] = 3 if k == 6 else 5
    elif base.MODELS.accepts(teacher.name, "block_len"):
        arguments["block_len"] = default_block_len(k)
    return registry.Specification(teacher.name, arguments)


def _needs_equal_widths(run: settings.RunSettings) -> bool:
    """Whether the student's encoding must be as wide as the teacher's."""
    guided = run.distillation.mode in settings.GUIDED_MODES
    compares = "rep" in run.distillation.student_loss
    return guided and (compares or classifier_of(run) != "own")


def _encoder_size(spec: registry.Specification, run: settings.RunSettings) -> int:
    arguments = base.MODELS.arguments(spec)
    wanted = arguments.get("encoding_size")
    if wanted:
        return wanted
    entry = base.MODELS.get(spec.name)
    return entry.encoder_size(run.data.feature_size, arguments)


def build_network(role: str, run: settings.RunSettings) -> base.VideoClassifier:
    """Makes the network of a role, with its variables.

    A student that is compared with a wider or narrower teacher, or takes its
    classifier, gets a learned linear map to the teacher's width.

    Raises:
        ValueError: for an unknown model or argument; the message lists the known.
    """
    teacher = registry.parse(run.networks.teacher)
    spec = teacher if role == "teacher" else student_specification(run)
    try:
        width = run.data.max_frames if role == "teacher" else run.sampling.student_k
        if not run.data.frame_features:
            width = 1
        if role == "student" and _needs_equal_widths(run):
            wanted = _encoder_size(teacher, run)
            if _encoder_size(spec, run) != wanted:
                spec = spec.with_defaults(encoding_size=wanted)
        return base.MODELS.create(
            spec,
            feature_size=run.data.feature_size,
            num_classes=run.data.num_classes,
            max_frames=width,
        )
    except ValueError as error:
        raise ValueError(f"--{role}={spec}: {error}") from error
