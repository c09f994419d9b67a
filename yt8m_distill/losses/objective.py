"""Objectives: parses sums of losses such as `"ce + 0.1*rep"`."""

import ast
import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from yt8m_distill import registry, settings, structures
from yt8m_distill.losses import registered

registry.import_modules("yt8m_distill.losses")


@dataclasses.dataclass(frozen=True)
class Term:
    """One part of an objective: weight * loss.

    Attributes:
        weight, name, loss: see above.
        guide: position of the guide that it compares with, counted from 0; None for the
            only one, or for the mean of all predictions.
    """

    weight: float
    name: str
    loss: registered.Loss
    guide: int | None = None


def mean_prediction(
    guides: Sequence[structures.Outputs], mean: str = "probabilities"
) -> structures.Outputs:
    """The mean of several guides' predictions, as logits; without encodings.

    Args:
        guides: logits are [B, C].
        mean: `logits`, or `probabilities`: the log-odds of the mean probability.
    """
    logits = tf.stack([guide.logits for guide in guides])  # [guides, B, C]
    if mean == "logits":
        return structures.Outputs(tf.reduce_mean(logits, axis=0), None)
    yes = tf.reduce_logsumexp(tf.math.log_sigmoid(logits), axis=0)
    no = tf.reduce_logsumexp(tf.math.log_sigmoid(-logits), axis=0)
    return structures.Outputs(yes - no, None)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each still one number per video.

    Attributes:
        terms: the parts.
        mean: of several guides' predictions, see mean_prediction.
        flag: the flag of the terms, for errors.
    """

    terms: tuple[Term, ...]
    mean: str = "probabilities"
    flag: str = "student_loss"

    @property
    def needs(self) -> set[str]:
        """The targets of its losses, of registered.NEEDS.

        With `self`, the learner is its own last guide.
        """
        return {term.loss.needs for term in self.terms}

    @property
    def compares(self) -> set[str]:
        """The student's outputs that it depends on, of registered.COMPARES.

        Without `logits` the classifier does not learn; from `states` alone no layer
        after them does.
        """
        return {term.loss.compares for term in self.terms}

    def check_guides(self, count: int) -> None:
        """Checks that each term has a unique guide.

        Raises:
            ValueError: if a term that compares encodings or states does not name one of
                several guides, or a term names a guide that does not exist.
        """
        for term in self.terms:
            if term.guide is not None and not 0 <= term.guide < count:
                raise ValueError(
                    f"--student_loss: {term.name}(teacher={term.guide + 1}), but there "
                    f"are {count} teachers."
                )
            alone = term.loss.is_of_labels or term.loss.compares == "logits"
            if count > 1 and term.guide is None and not alone:
                raise ValueError(
                    f"--student_loss: {term.name} compares with one of the {count} "
                    f"teachers: name it, as in {term.name}(teacher=1)."
                )

    def _target(self, term: Term, labels, guides, label_weights, of_videos):
        if term.loss.needs == "labels":
            return labels
        if term.loss.needs == "weighted_labels":
            return labels, label_weights
        if term.loss.needs == "video_labels":
            if of_videos is None:
                raise ValueError(
                    f"--{self.flag}: {term.name} is a second task on segments: it goes "
                    "with --segment_labels."
                )
            return of_videos, label_weights
        if term.loss.needs == "self":
            return guides[-1]
        guides = guides[:-1] if "self" in self.needs else guides
        if term.guide is not None or len(guides) <= 1:
            return guides[term.guide or 0] if guides else None
        return mean_prediction(guides, self.mean)

    def __call__(
        self,
        student: structures.Outputs,
        labels: tf.Tensor,
        guides: Sequence[structures.Outputs] = (),
        label_weights: tf.Tensor | None = None,
        video_labels: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The weighted parts, name → [B] float32; their sum is the objective.

        Args:
            student: outputs of the learner.
            labels: [B, C].
            guides: outputs of its guides, in order; the last is the learner itself if
                that is one of its needs.
            label_weights: [B] or [B, C]; None if all are 1.
            video_labels: [B, C], of the videos whose segments the rows are.

        Raises:
            ValueError: for a loss that cannot be computed or is not [B].
        """
        parts = {}
        for term in self.terms:
            target = self._target(term, labels, guides, label_weights, video_labels)
            try:
                values = term.loss.fn(student, target)
            except tf.errors.InvalidArgumentError as error:
                what = error.message.split("}} ")[-1].split(" [Op:")[0]
                raise ValueError(
                    f"--{self.flag}: loss {term.name}: {what}. One that looks at "
                    "encodings says compares='encoding' in its registered.Loss."
                ) from error
            what = f"--{self.flag}: loss {term.name}"
            parts[term.name] = term.weight * _one_per_video(what, values, labels)
        return parts


def _one_per_video(what: str, values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Checks that the values of a loss are [B] float32.

    Another shape would be broadcast with the weights [B]: with [B, 1] the loss would be
    B times too large.
    """
    rows, received = labels.shape[0], repr(values)
    if tf.is_tensor(values):
        received = f"{values.shape.as_list()} {values.dtype.name}"
        if values.dtype == tf.float32 and values.shape.is_compatible_with([rows]):
            return tf.ensure_shape(values, [rows])
    raise ValueError(
        f"{what} gives {received}, not one number per video, "
        f"[{'B' if rows is None else rows}] float32."
    )


def _parse_term(node: ast.expr, rule: str) -> tuple[float, registry.Specification]:
    """`0.1*rep` → the weight and the specification of the loss."""
    weight = 1.0
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left = node.left
        is_number = isinstance(left, ast.Constant) and type(left.value) in (int, float)
        if not is_number:
            raise ValueError(f"{rule}: a weight is a number on the left of a *.")
        weight, node = left.value, node.right
    if not isinstance(node, ast.Name | ast.Call):
        raise ValueError(f"{rule}.")
    try:
        return weight, registry.parse(ast.unparse(node))
    # ast.unparse gives up on depth before ast.parse does.
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{rule}: {error}") from error


def _parse_sum(text: str, flag: str) -> list[tuple[float, registry.Specification]]:
    """`"ce + 0.1*rep"` → [(1.0, ce), (0.1, rep)], parsed, never evaluated."""
    rule = f"--{flag}={text} must be a sum such as 'ce + 0.001*rep + 0.01*pred'"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{rule}.") from error
    found = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found.append(node.right)
        node = node.left
    found.append(node)
    return [_parse_term(node, rule) for node in reversed(found)]


# The losses that `rep` means for each --match.
_MATCHED = {
    "final": ("rep",),
    "intermediate": ("rep_intermediate",),
    "both": ("rep", "rep_intermediate"),
}


def _make_terms(
    weight: float,
    spec: registry.Specification,
    distillation_settings: settings.DistillationSettings,
) -> list[Term]:
    """The terms of one part of the sum: two for `rep` with --match=both."""
    if not 0 < weight <= float(tf.float32.max):
        raise ValueError(f"weight {weight} is not a finite number above 0.")
    defaults = {
        "distance": distillation_settings.prediction_distance,
        "temperature": distillation_settings.temperature,
    }
    arguments = dict(spec.arguments)
    guide = arguments.pop("teacher", None)
    if guide is not None and (type(guide) is not int or guide < 1):
        raise ValueError(
            f"teacher={guide!r} is not a position in --teacher_checkpoint."
        )
    is_rep = spec.name == "rep"
    names = _MATCHED[distillation_settings.match] if is_rep else (spec.name,)
    terms = []
    for name in names:
        accepted = {
            key: value
            for key, value in defaults.items()
            if registered.LOSSES.accepts(name, key)
        }
        full = registry.Specification(name, arguments).with_defaults(**accepted)
        loss = registered.LOSSES.create(full)
        if not isinstance(loss, registered.Loss):
            raise ValueError(
                f"loss {name}: its factory gives a {type(loss).__name__}, not a "
                "registered.Loss."
            )
        position = None if guide is None else guide - 1
        terms.append(Term(float(weight), name, loss, position))
    return terms


def build_objective(
    distillation_settings: settings.DistillationSettings, flag: str = "student_loss"
) -> Objective:
    """The student's objective, or that of another flag, from the settings.

    Raises:
        ValueError: for a malformed sum, an unknown or repeated loss, an unknown
            argument, or a weight that is not positive.
    """
    text = getattr(distillation_settings, flag)
    terms: dict[str, Term] = {}
    for weight, spec in _parse_sum(text, flag):
        try:
            found = _make_terms(weight, spec, distillation_settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--{flag}={text}: {error}") from error
        for term in found:
            if term.name in terms:
                raise ValueError(f"--{flag}={text} has {term.name} twice.")
            terms[term.name] = term
    return Objective(tuple(terms.values()), distillation_settings.teacher_mean, flag)


def label_objective(distillation_settings: settings.DistillationSettings) -> Objective:
    """The objective without a guide: of teachers, baselines and fine-tuning.

    Raises:
        ValueError: as build_objective, or for a loss against a guide.
    """
    found = build_objective(distillation_settings, "label_loss")
    for term in found.terms:
        if not term.loss.is_of_labels:
            raise ValueError(
                f"--label_loss={distillation_settings.label_loss}: {term.name} needs a "
                "guide; without one there are labels alone."
            )
    return found
