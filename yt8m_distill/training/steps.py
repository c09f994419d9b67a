"""One training step: forward, objectives, gradients, sum, clip, apply.

The loss of a step is the mean over the videos of the *global* batch. A replica divides
the sum over its rows by the number of videos of all replicas, and gradients are summed
over the replicas before they are clipped, so the step does not depend on the number of
devices.
"""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.evaluation import top_predictions
from yt8m_distill.models import heads, layers, teacher_student
from yt8m_distill.training import averaging, optimizers, roles, teacher_cache

# L2 penalties are given in this unit (the paper's "penalty of 2").
REGULARIZATION_UNIT = 1e-8


def _all_reduce_sum(value):
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


class _Counts(NamedTuple):
    """Numbers of videos of the global batch; float32 scalars of at least 1.

    Attributes:
        videos: all videos; losses against guides are averaged over these.
        labeled: videos with labels; losses of labels are averaged over these.
    """

    videos: tf.Tensor
    labeled: tf.Tensor


def _has_labels(batch: structures.Batch) -> tf.Tensor:
    """[B] bool: the videos with a nonzero label weight."""
    weights = batch[structures.LABEL_WEIGHTS]
    return (weights if weights.shape.rank == 1 else tf.reduce_max(weights, 1)) > 0


def _l2_penalty(kernels: list, scale: float) -> tf.Tensor:
    """scale * sum(w^2) / 2 over all kernels, a scalar."""
    total = tf.add_n([tf.nn.l2_loss(tf.convert_to_tensor(k)) for k in kernels])
    return scale * total


def batch_gap(scores: tf.Tensor, hits: tf.Tensor, num_labels: tf.Tensor) -> tf.Tensor:
    """GAP of one batch in the graph, for the log (evaluation computes the exact one).

    Args:
        scores: [B, k] float32.
        hits: [B, k] bool.
        num_labels: [B], all labels of each video.

    Returns:
        A float32 scalar.
    """
    order = tf.argsort(tf.reshape(scores, [-1]), direction="DESCENDING", stable=True)
    hit = tf.cast(tf.gather(tf.reshape(hits, [-1]), order), tf.float32)
    precision = tf.cumsum(hit) / tf.range(1, tf.size(hit) + 1, dtype=tf.float32)
    positives = tf.reduce_sum(tf.cast(num_labels, tf.float32))
    return tf.math.divide_no_nan(tf.reduce_sum(precision * hit), positives)


@dataclasses.dataclass(frozen=True)
class Learner:
    """A role that learns in this phase, with its optimizer and variables."""

    role: roles.Role
    optimizer: Any
    variables: list
    kernels: list

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics of a step for this role."""
        parts = [term.name for term in self.role.objective.terms]
        names = [*(f"{part}_loss" for part in parts), "label_loss", "reg_loss"]
        names += ["loss", "Hit@1", "PERR", "GAP", "gradient_norm"]
        return [f"{self.role.name}/{name}" for name in names]


def trained_variables(network, role: roles.Role) -> list:
    """The variables that a role's optimizer owns."""
    if role.objective.compares == {"states"}:
        return network.state_variables()
    if role.trains_classifier:
        return list(network.trainable_variables)
    return network.variables_without_head()


def trained_kernels(network, role: roles.Role, scope: str) -> list:
    """The kernels under the L2 penalty that the role trains.

    A shared classifier is only under the guide's penalty.
    """
    trained = {id(v) for v in trained_variables(network, role)}
    if role.shares_classifier_with:
        trained -= {id(kernel) for kernel in heads.kernels(network.head)}
    return [kernel for kernel in network.kernels(scope) if id(kernel) in trained]


def _check_reached(role: roles.Role, network, gradients: list, variables: list) -> None:
    """Raises ValueError during tracing if a variable has no gradient."""
    pairs = zip(gradients, variables, strict=True)
    lost = [v for gradient, v in pairs if gradient is None]
    if not lost:
        return
    of_head = {id(v) for v in network.head.trainable_variables}
    if role.objective.compares == {"states"}:
        advice = "say in state_variables() of the network what its states depend on"
    elif any(id(v) in of_head for v in lost):
        advice = (
            "a loss that looks at encodings alone says compares='encoding' in its "
            "registered.Loss"
        )
    else:
        advice = "what the network's outputs do not depend on must not be trainable"
    names = ", ".join(v.name for v in lost)
    raise ValueError(
        f"The loss of the {role.name} does not depend on {names}: {advice}."
    )


class TrainStep:
    """Computes and applies the gradients of all learners of a phase.

    Args:
        learners: one per role that is not frozen.
        batch_size: of all replicas.
        seed: of the dropout, which depends only on it, the step and the row: neither on
            the number of replicas nor on interruptions.
        top_k: of the logged GAP.
        loss_scale: None, or the factor on the loss under mixed_float16.
    """

    def __init__(
        self,
        networks: teacher_student.TeacherStudent,
        phase: roles.Phase,
        learners: list[Learner],
        optimization: settings.OptimizationSettings,
        batch_size: int,
        seed: int,
        top_k: int = 20,
        loss_scale: tf.Variable | None = None,
        average: averaging.WeightAverage | None = None,
    ):
        self.networks = networks
        self.phase = phase
        self.learners = {learner.role.name: learner for learner in learners}
        self.optimization = optimization
        self.batch_size = batch_size
        self.seed = seed
        self.top_k = top_k
        self.loss_scale = loss_scale
        self.average = average
        self.policy = keras.mixed_precision.global_policy()

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `compute` returns."""
        learners = self.learners.values()
        return [name for learner in learners for name in learner.metric_names]

    def _noise(self, role: roles.Role, step, place: int) -> layers.Noise | None:
        """The source of a network's random numbers in a view; None if frozen."""
        if role.frozen:
            return None
        index = [r.name for r in self.phase.roles].index(role.name)
        seed = tf.stack([self.seed * 2 + index, tf.cast(step, tf.int32)])
        if place:  # Negative: networks fold in positive numbers.
            seed = tf.random.experimental.stateless_fold_in(seed, -place)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        first_row = tf.cast(replica, tf.int32) * (self.batch_size // replicas)
        return layers.Noise(seed, first_row, tf.constant(self.batch_size))

    def compute(self, batch: structures.Batch, step: tf.Tensor):
        """Clipped gradients of the global batch; runs in a replica.

        Args:
            batch: this replica's rows.
            step: int64 scalar, the number of steps before this one.

        Returns:
            Role → gradients; a float32 vector of `metric_names`, means over the global
            batch; whether all gradients are finite.
        """
        # Keras 3 (3.15) has a policy per thread, and each replica runs in its own.
        keras.mixed_precision.set_global_policy(self.policy)
        counts = self._count(batch)
        outputs, gradients, numbers = {}, {}, {}
        for role in self.phase.roles:
            cached = batch.get(structures.GUIDES, {}).get(role.name)
            if cached is not None:
                classes = self.networks.network(role.name).num_classes
                outputs[role.name] = teacher_cache.restored(cached, classes)
                continue
            with tf.GradientTape() as tape:
                by_view = []
                for place, view in enumerate(role.every_view):
                    found = self.networks.forward(
                        role.name,
                        batch[structures.VIEWS],
                        training=not role.frozen,
                        states_of=self.phase.states_of,
                        noise=self._noise(role, step, place),
                        view=view,
                        context=outputs.get(role.context),
                    )
                    if not place:
                        main = outputs[role.name] = found
                        if not role.frozen:
                            outputs[role.name] = self._as_guide(role, found)
                    if not role.frozen:
                        by_view.append(
                            self._losses(role, found, outputs, batch, counts)
                        )
                if role.frozen:
                    continue
                losses = {
                    name: tf.add_n([part[name] for part in by_view]) / len(by_view)
                    for name in by_view[0]
                }
                target = losses["loss"]
                if self.loss_scale is not None:
                    target *= self.loss_scale
            variables = self.learners[role.name].variables
            slopes = tape.gradient(target, variables)
            network = self.networks.network(role.name)
            _check_reached(role, network, slopes, variables)
            gradients[role.name] = [tf.convert_to_tensor(g) for g in slopes]
            quality = self._batch_quality(main, batch, counts.labeled)
            numbers[role.name] = [*losses.values(), *quality]
        # A single reduction over the replicas: few, large messages.
        gradients, numbers = _all_reduce_sum((gradients, numbers))
        metrics, finite = [], tf.constant(True)
        for name in self.learners:
            gradients[name], norm = self._clip(gradients[name])
            finite = tf.logical_and(finite, tf.math.is_finite(norm))
            metrics += [*numbers[name], norm]
        return gradients, tf.stack(metrics), finite

    def _as_guide(self, role: roles.Role, outputs) -> structures.Outputs:
        """A training network's outputs as targets: without dropout, constant.

        If nothing uses these logits, the graph does not compute them.
        """
        logits = self.networks.network(role.name).classify(outputs.encoding)
        logits, encoding = map(tf.stop_gradient, (logits, outputs.encoding))
        return outputs._replace(logits=logits, encoding=encoding)

    def _count(self, batch: structures.Batch) -> _Counts:
        """Counts the videos of the global batch, and those with labels."""
        local = [
            tf.reduce_sum(batch[structures.WEIGHTS]),
            tf.reduce_sum(tf.cast(_has_labels(batch), tf.float32)),
        ]
        return _Counts(*(tf.maximum(n, 1.0) for n in _all_reduce_sum(local)))

    def _losses(self, role, found, outputs, batch, counts) -> dict[str, tf.Tensor]:
        """This replica's share of each loss and of their sum: scalars by name.

        Compares the outputs `found` in one view with those of the role's guides.
        """
        learner = self.learners[role.name]
        guides = [outputs[name] for name in role.guides]
        label_weights = batch[structures.LABEL_WEIGHTS]
        targets = batch[structures.LABELS], guides, label_weights
        of_videos = batch.get(structures.VIDEO_LABELS)
        values = role.objective(found, *targets, of_videos)
        row_weights = tf.cast(_has_labels(batch), tf.float32)
        if label_weights.shape.rank == 1:
            row_weights = label_weights
        parts = {}
        for term in role.objective.terms:
            weights, count = batch[structures.WEIGHTS], counts.videos
            if term.loss.is_of_labels:
                weights, count = row_weights, counts.labeled
            # tf.where, since the value of a padding row may be NaN.
            kept = tf.where(weights > 0, values[term.name] * weights, 0.0)
            parts[term.name] = tf.reduce_sum(kept) / count
        losses = {f"{name}_loss": value for name, value in parts.items()}
        losses["label_loss"] = tf.add_n(list(parts.values()))
        losses["reg_loss"] = tf.constant(0.0)
        penalty = self.optimization.regularization_penalty * REGULARIZATION_UNIT
        if penalty and learner.kernels:
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            losses["reg_loss"] = _l2_penalty(learner.kernels, penalty / replicas)
        losses["loss"] = losses["label_loss"] + losses["reg_loss"]
        return losses

    def _clip(self, gradients: list) -> tuple[list, tf.Tensor]:
        """Unscales summed gradients and clips them by their global norm."""
        if self.loss_scale is not None:
            gradients = [g / self.loss_scale for g in gradients]
        norm = tf.linalg.global_norm(gradients)
        limit = self.optimization.clip_gradient_norm
        if limit:
            gradients, _ = tf.clip_by_global_norm(gradients, limit, use_norm=norm)
        return gradients, norm

    def _batch_quality(self, outputs, batch, count) -> list[tf.Tensor]:
        """This replica's share of Hit@1, PERR and GAP, for the log: scalars.

        Summed over replicas they are the Hit@1 and PERR of the global batch, and the
        mean GAP of the replicas.
        """
        valid = _has_labels(batch)
        scores, weights = tf.sigmoid(outputs.logits), batch[structures.LABEL_WEIGHTS]
        if weights.shape.rank == 2:  # Unrated classes are ignored.
            scores = tf.where(weights > 0, scores, 0.0)
        found = top_predictions.top_predictions(
            scores,
            tf.sign(batch[structures.LABELS]),  # With --mix those of both videos.
            tf.cast(valid, tf.float32),
            self.top_k,
        )
        hits = tf.logical_and(found.hits, valid[:, tf.newaxis])
        scores = tf.where(valid[:, tf.newaxis], found.scores, -1.0)
        hit_at_one = tf.reduce_sum(tf.cast(hits[:, 0], tf.float32)) / count
        perr = tf.reduce_sum(tf.where(valid, found.perr, 0.0)) / count
        gap = batch_gap(scores, hits, tf.where(valid, found.num_labels, 0))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return [hit_at_one, perr, gap / replicas]

    def apply(self, gradients: dict[str, list], step: tf.Tensor) -> None:
        """Updates every learner with the gradients of `compute`; runs in a replica."""
        for name, values in gradients.items():
            learner = self.learners[name]
            optimizers.apply_summed(learner.optimizer, values, learner.variables)
        if self.average:
            self.average.follow(step)
