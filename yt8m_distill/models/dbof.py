"""DbofModel: the starter code's deep bag of frames."""

import tensorflow as tf

from yt8m_distill.models import arguments, base, layers, sets

POOLINGS = ("max", "average")


@base.MODELS.register("DbofModel")
class DbofModel(sets.SetClassifier):
    """Projects each frame up, pools over frames and projects down.

        f_t = relu6(BN(BN(x_t) W_c))
        e   = relu6(BN(pool_t(f_t) W_h))

    The starter code draws 30 random frames inside the network; here the sampler of the
    view selects the frames.

    Args, besides those of VideoClassifier:
        cluster_size: width of f.
        hidden_size: width of the encoding.
        pooling_method: `max` or `average`.
        add_batch_norm: False replaces BN(x W) by x W + b and drops the BN of the input.

    Raises:
        ValueError: if a count is not a positive integer, or the pooling is unknown.
    """

    def __init__(
        self,
        cluster_size: int = 8192,
        hidden_size: int = 1024,
        pooling_method: str = "max",
        add_batch_norm: bool = True,
        head: str = "moe",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(head=head, dropout=dropout, **kwargs)
        arguments.require_counts(cluster_size=cluster_size, hidden_size=hidden_size)
        if pooling_method not in POOLINGS:
            raise ValueError(
                f"pooling_method={pooling_method!r} is not one of "
                f"{', '.join(POOLINGS)}."
            )
        self.pooling_method = pooling_method
        bias = not add_batch_norm
        self.cluster = layers.Linear(self.feature_size, cluster_size, bias)
        self.hidden = layers.Linear(cluster_size, hidden_size, bias)
        self.input_norm = self.cluster_norm = self.hidden_norm = None
        if add_batch_norm:
            self.input_norm = layers.BatchNorm(self.feature_size)
            self.cluster_norm = layers.BatchNorm(cluster_size)
            self.hidden_norm = layers.BatchNorm(hidden_size)
        self.build_classifier(hidden_size)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        return {
            "frames": num_frames * base.num_weights([self.cluster.kernel]),
            "hidden": base.num_weights([self.hidden.kernel]),
            **self.classifier_multiply_adds(),
        }

    def read(self, frames, mask, training=False, noise=None) -> sets.State:
        x = frames
        if self.input_norm is not None:
            x = self.input_norm(x, mask, training=training)
        x = self.cluster(x)
        if self.cluster_norm is not None:
            x = self.cluster_norm(x, mask, training=training)
        x = tf.where(mask[..., tf.newaxis], x, 0.0)
        if self.pooling_method == "average":
            return (tf.reduce_sum(tf.nn.relu6(x), axis=1),)
        # relu6 never falls, so it may follow the maximum. f >= 0, so 0 also is the
        # maximum over an empty set of frames.
        return (tf.nn.relu6(tf.reduce_max(x, axis=1)),)

    def join(self, one: sets.State, other: sets.State) -> sets.State:
        if self.pooling_method == "average":
            return super().join(one, other)
        return one[0] + other[0], tf.maximum(one[1], other[1])

    def finish(self, state, training=False, noise=None) -> tf.Tensor:
        count, pooled = state
        if self.pooling_method == "average":
            pooled = sets.mean(pooled, count)
        x = self.hidden(pooled)
        if self.hidden_norm is not None:
            x = self.hidden_norm(x, sets.has_frames(state), training=training)
        return tf.nn.relu6(x)
