"""Objective: `"ce + 0.1*rep"` as named, weighted losses."""

import ast
import dataclasses

import tensorflow as tf

from yt8m_distill import registry, settings, structures
from yt8m_distill.losses import (  # noqa: F401 (registers the losses)
    classification,
    distillation,
    registered,
)


@dataclasses.dataclass(frozen=True)
class Term:
    """One part of an objective: weight * loss."""

    weight: float
    name: str
    loss: registered.Loss


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each still one number a video."""

    terms: tuple[Term, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether a part compares with the teacher."""
        return any(term.loss.needs != "labels" for term in self.terms)

    @property
    def needs_states(self) -> bool:
        """Whether a part compares intermediate states."""
        return any(term.loss.needs == "teacher_states" for term in self.terms)

    def __call__(
        self,
        student: structures.Outputs,
        labels: tf.Tensor,
        teacher: structures.Outputs | None = None,
    ) -> dict[str, tf.Tensor]:
        """The weighted parts, name → [B] float32; their sum is the objective."""
        return {
            term.name: term.weight
            * term.loss.fn(student, labels if term.loss.needs == "labels" else teacher)
            for term in self.terms
        }


def _split_sum(text: str) -> list[tuple[float, str]]:
    """`"ce + 0.1*rep"` → [(1.0, "ce"), (0.1, "rep")], parsed, never evaluated."""
    rule = f"--student_loss={text} must be a sum such as 'ce + 0.001*rep + 0.01*pred'"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{rule}.") from error
    found = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found.append(node.right)
        node = node.left
    found.append(node)
    terms = []
    for node in reversed(found):
        weight = 1.0
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            left = node.left
            is_number = isinstance(left, ast.Constant) and (
                type(left.value) in (int, float)
            )
            if not is_number:
                raise ValueError(f"{rule}: a weight is a number on the left of a *.")
            weight, node = float(left.value), node.right
        if not isinstance(node, ast.Name | ast.Call):
            raise ValueError(f"{rule}.")
        terms.append((weight, ast.unparse(node)))
    return terms


# What --match makes of `rep`.
_MATCHED = {
    "final": ("rep",),
    "intermediate": ("rep_intermediate",),
    "both": ("rep", "rep_intermediate"),
}


def build_objective(distillation_settings: settings.DistillationSettings) -> Objective:
    """The student's objective as the settings describe it.

    Raises:
        ValueError: for a malformed sum, an unknown or repeated loss, or a weight
            that is not positive.
    """
    text = distillation_settings.student_loss
    defaults = {
        "distance": distillation_settings.prediction_distance,
        "temperature": distillation_settings.temperature,
    }
    terms: dict[str, Term] = {}
    for weight, part in _split_sum(text):
        if not 0 < weight < float("inf"):
            raise ValueError(f"--student_loss={text}: weight {weight} is not above 0.")
        spec = registry.parse(part)
        is_rep = spec.name == "rep"
        names = _MATCHED[distillation_settings.match] if is_rep else (spec.name,)
        for name in names:
            if name in terms:
                raise ValueError(f"--student_loss={text} has {name} twice.")
            accepted = {
                key: value
                for key, value in defaults.items()
                if name in registered.LOSSES and registered.LOSSES.accepts(name, key)
            }
            full = registry.Specification(name, spec.arguments)
            loss = registered.LOSSES.create(full.with_defaults(**accepted))
            terms[name] = Term(weight, name, loss)
    return Objective(tuple(terms.values()))


def cross_entropy_objective() -> Objective:
    """L_CE alone: the teacher's, the baselines' and the fine-tuning objective."""
    return Objective((Term(1.0, "ce", registered.LOSSES.create("ce")),))


def is_representation_only(distillation_settings) -> bool:
    """Whether the objective is `rep` alone, which is followed by fine-tuning."""
    parts = [
        registry.parse(part).name
        for _, part in _split_sum(distillation_settings.student_loss)
    ]
    return all(name in ("rep", "rep_intermediate") for name in parts)
