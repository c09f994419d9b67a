"""AttentionPooling: multi-head attention pooling over the frames of a video."""

import tensorflow as tf

from yt8m_distill.models import arguments, base, layers, sets

# Maximum score of an empty set of frames; finite, so that differences are defined.
_LOWEST = -1e30


@base.MODELS.register("AttentionPooling")
class AttentionPooling(sets.SetClassifier):
    """A two-layer perceptron per frame, pooled by attention heads.

        h_t = relu(LN(relu(LN(x_t W_1 + b_1)) W_2 + b_2))
        s_t = h_t W_s                                  one score per head
        p_j = Σ_t softmax_t(s_tj) h_tj                 h_tj: slice j of h_t
        e   = relu(LN([p_1 .. p_J, mean_t h_t] W_3 + b_3))

    The softmax is over the valid frames.

    Args, besides those of VideoClassifier:
        hidden_size: width of h and of the encoding.
        num_heads: J; must divide hidden_size.

    Raises:
        ValueError: if a count is not a positive integer, or num_heads does not divide
            hidden_size.
    """

    def __init__(self, hidden_size: int = 1024, num_heads: int = 8, **kwargs):
        super().__init__(**kwargs)
        arguments.require_counts(hidden_size=hidden_size, num_heads=num_heads)
        arguments.require_divisor(num_heads, hidden_size, "num_heads", "hidden_size")
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.first = layers.Linear(self.feature_size, hidden_size)
        self.first_norm = layers.LayerNorm(hidden_size)
        self.second = layers.Linear(hidden_size, hidden_size)
        self.second_norm = layers.LayerNorm(hidden_size)
        self.scores = layers.Linear(hidden_size, num_heads, bias=False)
        self.last = layers.Linear(2 * hidden_size, hidden_size)
        self.last_norm = layers.LayerNorm(hidden_size)
        self.build_classifier(hidden_size)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        kernels = [self.first.kernel, self.second.kernel, self.scores.kernel]
        width = self.second.kernel.shape[1]
        return {
            "frames": num_frames * (base.num_weights(kernels) + width),
            "hidden": base.num_weights([self.last.kernel]),
            **self.classifier_multiply_adds(),
        }

    def read(self, frames, mask, training=False, noise=None) -> sets.State:
        """Max score m [B, J], Σ exp(s-m) [B, J], Σ exp(s-m) h [B, J, W/J], Σ h."""
        h = tf.nn.relu(self.first_norm(self.first(frames)))
        h = tf.nn.relu(self.second_norm(self.second(h)))
        h = tf.where(mask[..., tf.newaxis], h, 0.0)
        scores = tf.where(mask[..., tf.newaxis], self.scores(h), _LOWEST)  # [B, T, J]
        largest = tf.maximum(tf.reduce_max(scores, axis=1), _LOWEST)
        largest = tf.stop_gradient(largest)
        share = tf.exp(scores - largest[:, tf.newaxis])
        share = tf.where(mask[..., tf.newaxis], share, 0.0)
        shape = [*tf.unstack(tf.shape(h)[:2]), self.num_heads, self.head_size]
        parts = tf.reshape(h, shape)  # [B, T, J, W/J]
        pooled = tf.reduce_sum(share[..., tf.newaxis] * parts, axis=1)
        return largest, tf.reduce_sum(share, axis=1), pooled, tf.reduce_sum(h, axis=1)

    def join(self, one: sets.State, other: sets.State) -> sets.State:
        largest = tf.maximum(one[1], other[1])
        a, b = tf.exp(one[1] - largest), tf.exp(other[1] - largest)
        return (
            one[0] + other[0],
            largest,
            a * one[2] + b * other[2],
            a[..., tf.newaxis] * one[3] + b[..., tf.newaxis] * other[3],
            one[4] + other[4],
        )

    def finish(self, state, training=False, noise=None) -> tf.Tensor:
        count, _, share, pooled, total = state
        # At least 1 for a video with frames: its largest score contributes exp(0).
        pooled /= tf.maximum(share, 1.0)[..., tf.newaxis]
        pooled = tf.reshape(pooled, tf.shape(total))
        together = tf.concat([pooled, sets.mean(total, count)], axis=1)
        return tf.nn.relu(self.last_norm(self.last(together)))
