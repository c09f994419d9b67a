"""NetVLAD: clusters of frames, with context gating (Miech et al., 2017)."""

import keras
import tensorflow as tf

from yt8m_distill.models import arguments, base, layers, sets


class NetVLADPooling(keras.layers.Layer):
    """Sums of one feature's residuals from K centers; equations in NetVLAD.

    Args:
        size: N, width of the feature.
        clusters: K.
        centers: whether the centers c_k exist.
    """

    def __init__(self, size: int, clusters: int, centers: bool):
        super().__init__(dtype="float32")
        self.size = clusters * size
        self.input_norm = layers.BatchNorm(size)
        self.assign = layers.Linear(size, clusters, bias=False)
        self.assign_norm = layers.BatchNorm(clusters)
        self.centers = None
        if centers:
            self.centers = self.add_weight(
                name="centers", shape=(clusters, size), initializer="glorot_uniform"
            )
        self.built = True

    def multiply_adds(self) -> int:
        """Multiply-adds per frame."""
        return base.num_weights([self.assign.kernel]) + self.size

    def read(self, x: tf.Tensor, mask: tf.Tensor, training: bool) -> sets.State:
        """x [B, T, N] → Σ_t a x [B, K, N] and Σ_t a [B, K]."""
        x = self.input_norm(x, mask, training=training)
        a = self.assign_norm(self.assign(x), mask, training=training)
        a = tf.where(mask[..., tf.newaxis], tf.nn.softmax(a), 0.0)  # [B, T, K]
        return layers.multiply(a, x, transpose_a=True), tf.reduce_sum(a, axis=1)

    def finish(self, v, a, mask, training: bool) -> tf.Tensor:
        """The descriptor [B, K · N] from the sums of `read`."""
        if self.centers is not None:
            v -= a[..., tf.newaxis] * self.centers
        v = tf.math.l2_normalize(v, axis=2)
        return tf.math.l2_normalize(tf.reshape(v, [-1, self.size]), axis=1)


@base.MODELS.register("NetVLAD")
class NetVLAD(sets.SetClassifier):
    """Frames softly assigned to clusters.

    For each feature, with K clusters:

        x'_t = BN(x_t)
        a_t  = softmax_k(BN(x'_t W))
        V_k  = Σ_t a_tk (x'_t - c_k)
        v    = flatten(V_k / |V_k|), scaled to length 1

    With the v of all features concatenated:

        h = v W_h + b_h
        e = h * sigmoid(BN(h W_g))

    The first feature has K clusters, every other feature (audio) half as many.

    Args, besides those of VideoClassifier:
        feature_sizes: width of each feature.
        clusters: K of the first feature.
        hidden_size: width of the encoding.
        gating: whether h is gated; otherwise e = h.
        centers: whether the centers c_k exist; False is the light variant.

    Raises:
        ValueError: if a count is not a positive integer.
    """

    def __init__(
        self,
        feature_sizes: tuple[int, ...],
        clusters: int = 256,
        hidden_size: int = 1024,
        gating: bool = True,
        centers: bool = True,
        head: str = "moe",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(head=head, dropout=dropout, **kwargs)
        arguments.require_counts(clusters=clusters, hidden_size=hidden_size)
        self.pooling = sets.FeatureEncoders(
            feature_sizes,
            lambda size, share: NetVLADPooling(size, -(-clusters // share), centers),
        )
        self.hidden = layers.Linear(self.pooling.size, hidden_size)
        self.gating = layers.ContextGating(hidden_size) if gating else None
        self.build_classifier(hidden_size)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        gates = [] if self.gating is None else [self.gating.gates.kernel]
        return {
            "frames": num_frames * self.pooling.multiply_adds(),
            "hidden": base.num_weights([self.hidden.kernel, *gates]),
            **self.classifier_multiply_adds(),
        }

    def read(self, frames, mask, training=False, noise=None) -> sets.State:
        return self.pooling.read(frames, mask, training)

    def finish(self, state, training=False, noise=None) -> tf.Tensor:
        rows = sets.has_frames(state)
        h = self.hidden(self.pooling.finish(state[1:], rows, training))
        return h if self.gating is None else self.gating(h, rows, training=training)
