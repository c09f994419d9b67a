"""The starter code's classifiers on the mean of the frames.

They also read video-level records, which count as one frame.
"""

import tensorflow as tf

from yt8m_distill.models import base


@base.MODELS.register("FrameLevelLogisticModel")
class FrameLevelLogisticModel(base.VideoClassifier):
    """A bag of frames: the encoding is the mean frame [B, D]."""

    def __init__(self, *args, head: str = "logistic", dropout: float = 0.0, **kwargs):
        super().__init__(*args, head=head, dropout=dropout, **kwargs)
        self.build_classifier(self.feature_size)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        return self.classifier_multiply_adds()

    def encode(self, frames, num_frames, state_indices, training, noise):
        count = tf.cast(tf.maximum(num_frames, 1), tf.float32)
        return tf.reduce_sum(frames, axis=1) / count[:, tf.newaxis], None


@base.MODELS.register("LogisticModel")
class LogisticModel(FrameLevelLogisticModel):
    """FrameLevelLogisticModel under the starter code's name for video-level records."""


@base.MODELS.register("MoeModel")
class MoeModel(FrameLevelLogisticModel):
    """A mixture of logistic experts on the mean of the frames.

    Args, besides those of VideoClassifier:
        head: the mixture; `moe(num_mixtures=4)` has more experts.
    """

    def __init__(self, head: str = "moe", **kwargs):
        super().__init__(head=head, **kwargs)
