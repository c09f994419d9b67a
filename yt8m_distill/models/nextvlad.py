"""NeXtVLAD: clusters of grouped frame descriptors (Lin et al., 2018)."""

import keras
import tensorflow as tf

from yt8m_distill.models import arguments, base, layers, sets


class NeXtVLADPooling(keras.layers.Layer):
    """Sums of one feature's residuals from K centers; equations in NeXtVLAD.

    Args:
        size: N, width of the feature.
        clusters: K.
        groups: G.
        expansion: λ.
        called: name of the groups in error messages.

    Raises:
        ValueError: if the groups do not divide λN.
    """

    def __init__(
        self,
        size: int,
        clusters: int,
        groups: int,
        expansion: int,
        called: str = "groups",
    ):
        super().__init__(dtype="float32")
        wide = expansion * size
        arguments.require_divisor(groups, wide, called, "expansion * feature size")
        self.clusters, self.groups, self.part = clusters, groups, wide // groups
        self.size = clusters * self.part  # K · λN/G
        self.expand = layers.Linear(size, wide)
        self.attend = layers.Linear(wide, groups)
        self.assign = layers.Linear(wide, groups * clusters, bias=False)
        self.assign_norm = layers.BatchNorm(groups * clusters)
        self.centers = self.add_weight(
            name="centers",
            shape=(clusters, self.part),
            initializer="glorot_uniform",
        )
        self.norm = layers.BatchNorm(self.size)
        self.built = True

    def multiply_adds(self) -> int:
        """Multiply-adds per frame."""
        kernels = [self.expand.kernel, self.attend.kernel, self.assign.kernel]
        return base.num_weights(kernels) + self.groups * self.size

    def read(self, x: tf.Tensor, mask: tf.Tensor, training: bool) -> sets.State:
        """x [B, T, N] → Σ_tg α a x̃ [B, K, λN/G] and Σ_tg α a [B, K]."""
        frames, x = x, self.expand(x)
        batch, length = tf.unstack(tf.shape(x)[:2])
        attention = tf.sigmoid(self.attend(x))  # [B, T, G]
        attention = tf.where(mask[..., tf.newaxis], attention, 0.0)
        a = self._assign(frames, x)
        a = self.assign_norm(a, mask, training=training)
        a = tf.reshape(a, [batch, length, self.groups, self.clusters])
        a = tf.nn.softmax(a) * attention[..., tf.newaxis]
        a = tf.reshape(a, [batch, length * self.groups, self.clusters])
        x = tf.reshape(x, [batch, length * self.groups, self.part])
        return layers.multiply(a, x, transpose_a=True), tf.reduce_sum(a, axis=1)

    def _assign(self, x: tf.Tensor, expanded: tf.Tensor) -> tf.Tensor:
        """x' W_a, of x [B, T, N] and x' [B, T, λN]: [B, T, G K]."""
        rows, (size, wide) = x.shape[:2].num_elements(), self.expand.kernel.shape
        # In half precision the rounded product of the kernels would be another network.
        exact = layers.product_dtype() == tf.float32
        if rows is None or not exact or rows * (wide - size) <= size * wide:
            return self.assign(expanded)
        # x (W_e W_a) + b_e W_a: fewer products, of so many frames.
        second = tf.convert_to_tensor(self.assign.kernel)
        kernel = layers.multiply(tf.convert_to_tensor(self.expand.kernel), second)
        bias = layers.multiply(self.expand.bias[tf.newaxis], second)[0]
        a = layers.multiply(tf.reshape(x, [rows, size]), kernel) + bias
        return tf.reshape(a, [*x.shape[:2], a.shape[1]])

    def finish(self, v, a, mask, training: bool) -> tf.Tensor:
        """The descriptor [B, K · λN/G] from the sums of `read`."""
        v -= a[..., tf.newaxis] * self.centers
        v = tf.math.l2_normalize(v, axis=2)
        v = tf.reshape(v, [-1, self.size])
        return self.norm(v, mask, training=training)


@base.MODELS.register("NeXtVLAD")
class NeXtVLAD(sets.SetClassifier):
    """Frames split into groups, each softly assigned to clusters.

    For each feature of width N, with expansion λ, G groups and K clusters:

        x'_t = x_t W_e + b_e                           width λN
        α_tg = sigmoid(x'_t W_g + b_g)                 attention of a group
        a_tg = softmax_k(BN(x'_t W_a))                 assignment to clusters
        V_k  = Σ_t Σ_g α_tg a_tgk (x̃_tg - c_k)         x̃_tg: part g of x'_t
        v    = BN(flatten(V_k / |V_k|))

    With the v of all features concatenated:

        h = BN(dropout(v) W_h)
        e = h * sigmoid(relu(BN(h W_1)) W_2)           h W_1: H / gating_reduction wide

    The groups share the centers c_k. The first feature has K clusters and G groups,
    every other feature (audio) half as many.

    Args, besides those of VideoClassifier:
        feature_sizes: N of each feature.
        clusters: K of the first feature.
        groups: G of the first feature.
        expansion: λ.
        hidden_size: H, width of the encoding.
        gating_reduction: see above.
        dropout: dropout rate of v.

    Raises:
        ValueError: if a count is not a positive integer, or the groups do not divide a
            width.
    """

    def __init__(
        self,
        feature_sizes: tuple[int, ...],
        clusters: int = 128,
        groups: int = 8,
        expansion: int = 2,
        hidden_size: int = 2048,
        gating_reduction: int = 8,
        dropout: float = 0.5,
        **kwargs,
    ):
        super().__init__(dropout=0.0, **kwargs)
        arguments.require_counts(
            clusters=clusters,
            groups=groups,
            expansion=expansion,
            hidden_size=hidden_size,
        )
        self.descriptor_dropout = arguments.require_rate(dropout=dropout)
        self.pooling = sets.FeatureEncoders(
            feature_sizes,
            lambda size, share: NeXtVLADPooling(
                size,
                -(-clusters // share),
                -(-groups // share),
                expansion,
                "groups" if share == 1 else f"half of groups={groups}",
            ),
        )
        self.hidden = layers.Linear(self.pooling.size, hidden_size, bias=False)
        self.norm = layers.BatchNorm(hidden_size)
        self.gating = layers.SqueezeGating(hidden_size, gating_reduction)
        self.build_classifier(hidden_size)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        gates = [self.gating.squeeze.kernel, self.gating.expand.kernel]
        return {
            "frames": num_frames * self.pooling.multiply_adds(),
            "hidden": base.num_weights([self.hidden.kernel, *gates]),
            **self.classifier_multiply_adds(),
        }

    def read(self, frames, mask, training=False, noise=None) -> sets.State:
        return self.pooling.read(frames, mask, training)

    def finish(self, state, training=False, noise=None) -> tf.Tensor:
        rows = sets.has_frames(state)
        v = self.pooling.finish(state[1:], rows, training)
        if training:
            v = layers.dropout(v, self.descriptor_dropout, noise, index=1)
        h = self.norm(self.hidden(v), rows, training=training)
        return self.gating(h, rows, training=training)
