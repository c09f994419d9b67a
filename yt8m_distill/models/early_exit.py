"""EarlyExit: reads each video until the network is sure enough of its answer.

A student for several k reads the fewest frames first, and more of them while its
confidence is below a threshold. A rule gives signals s [F] of an answer; with weights
and biases of the budget,

    confidence = -max_j (weights_j · s + biases_j)

A rule with a single signal is its own confidence. From several signals
evaluation/exit_calibration.py predicts, for each later budget j, what going on to it
would gain per frame; the best of these gains has to be worth more than a threshold.

To add a rule: a function with `@RULES.register("name")`.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from yt8m_distill import registry, structures
from yt8m_distill.data import frame_sampling
from yt8m_distill.models import base, sets

# Each: (logits [B, C], those of the budget before or None) -> signals [B, F] float32;
# a single one is larger for a surer answer.
RULES = registry.Registry("exit rule")
# An answer is its best classes, as in GAP@20.
TOP_K = 20
# The frames of a budget come before those that a larger one adds.
SAMPLER = "nested(in_time=False)"


def top(logits: tf.Tensor):
    """`values` and `indices` [B, min(20, C)] of the best classes of [B, C] logits."""
    return tf.math.top_k(logits, min(TOP_K, logits.shape[-1]))


@RULES.register("max_probability")
def max_probability(logits, previous):
    """The probability of the best class."""
    del previous
    return tf.reduce_max(tf.sigmoid(logits), axis=1, keepdims=True)


@RULES.register("entropy")
def entropy(logits, previous):
    """Minus the mean binary entropy of the 20 best classes, in nats."""
    del previous
    best = top(logits).values
    entropies = tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(best), best)
    return -tf.reduce_mean(entropies, axis=1, keepdims=True)


@RULES.register("change")
def change(logits, previous):
    """Minus the largest change of a probability since the budget before."""
    if previous is None:
        return tf.fill([tf.shape(logits)[0], 1], -2.0)  # Larger than any change.
    changes = tf.abs(tf.sigmoid(logits) - tf.sigmoid(previous))
    return -tf.reduce_max(changes, axis=1, keepdims=True)


@RULES.register("expected_saving")
def expected_saving(logits, previous):
    """The 20 best logits, their entropy and the last change."""
    signals = [top(logits).values, entropy(logits, None), change(logits, previous)]
    return tf.concat(signals, axis=1)


def divergence(logits: tf.Tensor, final: tf.Tensor) -> tf.Tensor:
    """[B]: binary KL divergence of an answer from the final one, summed over classes.

    Args:
        logits: [B, C] of the answer.
        final: [B, C] logits at the largest budget.
    """
    p = tf.sigmoid(final)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
    return tf.reduce_sum(cross_entropy(p, logits) - cross_entropy(p, final), axis=1)


def regret(logits: tf.Tensor, final: tf.Tensor) -> tf.Tensor:
    """How much worse an answer ranks the classes than the final answer.

    1 - nDCG@20 with the probabilities of the final answer as gains; no label is needed.

    Args:
        logits: [B, C] of the answer.
        final: [B, C] logits at the largest budget.

    Returns:
        [B] in [0, 1], 0 for the final answer itself.
    """
    gains = tf.sigmoid(final)
    reached = tf.gather(gains, top(logits).indices, batch_dims=1)
    best = top(gains).values  # [B, k]
    ranks = tf.range(best.shape[1], dtype=tf.float32)
    reached, best = (
        tf.linalg.matvec(x, 1 / tf.math.log(ranks + 2)) for x in (reached, best)
    )
    return tf.maximum(1 - tf.math.divide_no_nan(reached, best), 0)


@dataclasses.dataclass(frozen=True)
class Policy:
    """How sure an answer is, and the scale of the scores at each budget.

    Attributes:
        budgets: numbers of frames, rising; n of them.
        rule: name in RULES.
        weights: [n - 1][J][F]; J is 1, or the number of later budgets.
        biases: [n - 1][J].
        scales, offsets: [n] each; a logit z of a video that stops at a budget becomes
            scale * z + offset, so that the scores of all budgets can be pooled.
    """

    budgets: tuple[int, ...]
    rule: str
    weights: tuple
    biases: tuple
    scales: tuple[float, ...]
    offsets: tuple[float, ...]


def read_on(
    network: base.VideoClassifier, view: structures.View, start: int, stop: int, state
) -> tuple[tf.Tensor, Any]:
    """The answer on the first `stop` frames, after that on the first `start`.

    A SetClassifier reads the new frames alone. Any other network reads all frames
    again, in the order of time.

    Args:
        network: trained for several numbers of frames.
        view: in the order of SAMPLER.
        start, stop: numbers of frames.
        state: what this function returned for `start`; None where that is 0.

    Returns:
        logits [B, C], and the state for the next call.
    """
    count = view[structures.NUM_FRAMES]
    if isinstance(network, sets.SetClassifier):
        frames = view[structures.FRAMES][:, start:stop]
        count = tf.clip_by_value(count - start, 0, stop - start)
        state = network.add_frames(state, frames, count)
        return network.outputs_of(network.finish(state)).logits, state
    frames = view[structures.FRAMES][:, :stop]
    count = tf.minimum(count, stop)
    times = view[structures.FRAME_INDICES][:, :stop]
    is_valid = tf.sequence_mask(count, tf.shape(times)[1])
    order = tf.argsort(tf.where(is_valid, times, times.dtype.max), axis=1, stable=True)
    inputs = {
        structures.FRAMES: tf.gather(frames, order, batch_dims=1),
        structures.NUM_FRAMES: count,
    }
    return network(inputs, training=False).logits, ()


class EarlyExit(keras.layers.Layer):
    """A network that stops early, used in place of a VideoClassifier.

    Its view has the frames of the largest budget in the order of SAMPLER; or, without
    their indices, all frames in the order of time, of which it picks these. Each
    further budget is computed for those videos of the batch alone that go on to it.

    Args:
        network: trained for several numbers of frames.
        policy: of that network.
        threshold: a video stops at the first budget with this confidence or more.
        max_frames: frames of a video from which it picks; the rest is cut.
    """

    def __init__(
        self,
        network: base.VideoClassifier,
        policy: Policy,
        threshold: float,
        max_frames: int,
    ):
        super().__init__(dtype="float32")
        self.network = network
        self.policy = policy
        self.threshold = threshold
        self.max_frames = max_frames
        self.num_classes = network.num_classes
        self.feature_size = network.feature_size
        self.built = True

    def call(self, inputs: structures.View, training: bool = False):
        """View → Outputs with logits of one scale, and `exits`; no encoding.

        Raises:
            ValueError: in training.
        """
        if training:
            raise ValueError("EarlyExit is for trained networks.")
        view = dict(inputs)
        if structures.FRAME_INDICES not in view:
            view = self._pick(view)
        logits, budgets = self._from(0, view, None, None)
        frames = tf.minimum(budgets, view[structures.NUM_FRAMES])
        exits = tf.stack([budgets, frames], axis=1)
        return structures.Outputs(logits, None, exits=exits)

    def _pick(self, view: structures.View) -> structures.View:
        """The view that SAMPLER makes of whole videos."""
        count = tf.minimum(view[structures.NUM_FRAMES], self.max_frames)
        keys = tf.zeros(tf.shape(count), tf.int64)  # It does not look at them.
        chosen, valid = frame_sampling.pick(
            SAMPLER, count, self.policy.budgets[-1], self.max_frames, keys
        )
        return {
            structures.FRAMES: tf.gather(view[structures.FRAMES], chosen, batch_dims=1),
            structures.NUM_FRAMES: valid,
            structures.FRAME_INDICES: chosen,
        }

    def _from(self, stage: int, view: structures.View, state, previous):
        """Logits [B, C] and budgets [B] of videos that have come to a budget."""
        policy, count = self.policy, view[structures.NUM_FRAMES]
        start, budget = (0, *policy.budgets)[stage : stage + 2]
        answer, state = read_on(self.network, view, start, budget, state)
        logits = policy.scales[stage] * answer + policy.offsets[stage]
        budgets = tf.fill(tf.shape(count), budget)
        if stage == len(policy.budgets) - 1:
            return logits, budgets
        signals = RULES.get(policy.rule)(answer, previous)
        gains = tf.matmul(signals, policy.weights[stage], transpose_b=True)
        confidence = -tf.reduce_max(gains + policy.biases[stage], axis=1)
        # A video without further frames would only be read again.
        goes_on = (confidence < self.threshold) & (count > budget)
        rows = tf.where(goes_on)  # [R, 1]

        def go_on():
            ongoing = tf.nest.map_structure(
                lambda x: tf.gather(x, rows[:, 0]), (view, state, answer)
            )
            return self._from(stage + 1, *ongoing)

        def stop():
            return tf.zeros([0, self.num_classes]), tf.zeros([0], tf.int32)

        # No kernel gets a batch without rows.
        later_logits, later_budgets = tf.cond(tf.reduce_any(goes_on), go_on, stop)
        return (
            tf.tensor_scatter_nd_update(logits, rows, later_logits),
            tf.tensor_scatter_nd_update(budgets, rows, later_budgets),
        )
