"""The inner loop: many steps on all replicas in one tf.function."""

import tensorflow as tf

from yt8m_distill.training import steps

# Loss scaling under mixed_float16: halved when a gradient overflows, doubled after this
# many steps without overflow.
INITIAL_LOSS_SCALE = 2.0**15
_STEPS_UNTIL_DOUBLED = 2000


class InnerLoop:
    """Many training steps in one tf.function.

    Args:
        step: the step of one replica.
        counter: int64 variable, the number of steps done; updated by the loop.
        loss_scale: float32 variable under mixed_float16, or None.
    """

    def __init__(self, step: steps.TrainStep, strategy, counter, loss_scale=None):
        self.step = step
        self.strategy = strategy
        self.counter = counter
        self.loss_scale = loss_scale
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._is_loss = [name.endswith("loss") for name in step.metric_names]
        self.run = tf.function(self._run, autograph=False)

    def _one_step(self, iterator):
        """One step on all replicas.

        Returns:
            The metrics [M], 0 if the step was skipped; whether it was finite or
            skipped; whether it was skipped.
        """
        batch = next(iterator)
        gradients, metrics, finite = self.strategy.run(
            self.step.compute, args=(batch, self.counter)
        )
        # All replicas have the same sums, so the first one is enough.
        metrics = self.strategy.experimental_local_results(metrics)[0]
        finite = self.strategy.experimental_local_results(finite)[0]
        skipped = tf.constant(False)
        changes = (gradients, self.counter)
        if self.loss_scale is None:
            self.strategy.run(self.step.apply, args=changes)
        else:
            tf.cond(
                finite,
                lambda: self.strategy.run(self.step.apply, args=changes),
                lambda: None,
            )
            # A step with an overflow is skipped and the scale halved; at scale 1 it is
            # an error. So is a NaN or infinite loss, which no scale can repair.
            losses = tf.boolean_mask(metrics, self._is_loss)
            can_shrink = tf.logical_and(
                self.loss_scale > 1.0, tf.reduce_all(tf.math.is_finite(losses))
            )
            skipped = tf.logical_and(tf.logical_not(finite), can_shrink)
            metrics = tf.where(skipped, tf.zeros_like(metrics), metrics)
            self._rescale(finite)
            finite = tf.logical_or(finite, skipped)
        self.counter.assign_add(1)
        return metrics, finite, skipped

    def _rescale(self, finite):
        """Updates the loss scale after a step."""
        good = tf.where(finite, self.good_steps + 1, 0)
        double = good >= _STEPS_UNTIL_DOUBLED
        factor = tf.where(finite, tf.where(double, 2.0, 1.0), 0.5)
        self.loss_scale.assign(tf.maximum(self.loss_scale * factor, 1.0))
        self.good_steps.assign(tf.where(double, tf.zeros_like(good), good))

    def _run(self, iterator, num_steps):
        """Runs `num_steps` steps, or stops at the first that is not finite.

        Returns:
            The metrics [M], averaged over the steps that were not skipped, or those of
            the last step if it was not finite; the number of that step, or -1; the
            number of steps in the average.
        """
        counts = tf.constant(0), tf.constant(0.0), tf.constant(-1, tf.int64)
        total = tf.zeros([len(self.step.metric_names)])

        def is_good(number, done, bad_step, total):
            del done, total
            return tf.logical_and(number < num_steps, bad_step < 0)

        def one_step(number, done, bad_step, total):
            metrics, finite, skipped = self._one_step(iterator)
            finite = tf.logical_and(finite, tf.reduce_all(tf.math.is_finite(metrics)))
            done = tf.where(finite, done + tf.where(skipped, 0.0, 1.0), 1.0)
            bad_step = tf.where(finite, bad_step, self.counter - 1)
            return number + 1, done, bad_step, tf.where(finite, total, 0.0) + metrics

        _, done, bad_step, total = tf.while_loop(is_good, one_step, [*counts, total])
        return tf.math.divide_no_nan(total, done), bad_step, done
