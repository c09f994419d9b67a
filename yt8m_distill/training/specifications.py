"""The networks that a run's settings specify, and how they share classifiers."""

from yt8m_distill import registry, settings
from yt8m_distill.losses import objective
from yt8m_distill.models import base, builder


def classifier_of(distillation: settings.DistillationSettings) -> str:
    """Resolves `--classifier` to `shared`, `copied` or `own`, depending on the mode.

    With L_REP alone the student always has the teacher's classifier: its own would
    learn nothing before the fine-tuning.
    """
    classifier, mode = distillation.classifier, distillation.mode
    automatic = {"parallel": "shared", "serial": "copied"}
    if mode in automatic and objective.is_representation_only(distillation):
        return automatic[mode]
    return automatic.get(mode, "own") if classifier == "auto" else classifier


def default_block_len(student_k: int) -> int:
    """The student's block length l: 5, or 3 if only 3 divides k (the paper's k = 6)."""
    return 3 if student_k % 5 and student_k % 3 == 0 else 5


def teacher_specification(run: settings.RunSettings) -> registry.Specification:
    """The network of `--teacher`."""
    return builder.parse(settings.TEACHER, run.networks.teacher)


def student_specification(run: settings.RunSettings) -> registry.Specification:
    """The network of `--student`, or the teacher's with short blocks."""
    if run.networks.student:
        return builder.parse(settings.STUDENT, run.networks.student)
    teacher = teacher_specification(run)
    arguments = dict(teacher.arguments)
    k = run.sampling.largest_k
    if "num_blocks" in arguments:
        arguments["num_blocks"] = 3 if k == 6 else 5
    elif base.MODELS.accepts(teacher.name, "block_len"):
        arguments["block_len"] = default_block_len(k)
    return registry.Specification(teacher.name, arguments)


def with_encoding_size(
    spec: registry.Specification,
    guide: registry.Specification,
    data: settings.DataSettings,
) -> registry.Specification:
    """The specification with an encoding as wide as its guide's.

    If the widths differ, a learned linear map (the bridge) is added.

    Raises:
        ValueError: if the network's constructor takes no encoding_size.
    """
    try:
        width = builder.encoding_size(spec, data)
    except ValueError as error:
        raise ValueError(f"--student={spec}: {error}") from error
    guide_width = builder.encoding_size(guide, data)
    if width == guide_width:
        return spec
    if not base.MODELS.accepts(spec.name, "encoding_size"):
        raise ValueError(
            f"--student={spec}: the encoding is {width} wide, the teacher's "
            f"{guide_width}, and the constructor of {spec.name} takes no encoding_size."
        )
    return spec.with_defaults(encoding_size=guide_width)


def check_shared_head(
    spec: registry.Specification,
    guide: registry.Specification,
    distillation: settings.DistillationSettings,
) -> None:
    """Raises ValueError unless the two networks can share one classifier."""
    alone = objective.is_representation_only(distillation)
    loss = distillation.student_loss
    reason = f"--student_loss={loss} alone" if alone else "--classifier=shared"
    other = "" if alone else ", or --classifier=own"
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
