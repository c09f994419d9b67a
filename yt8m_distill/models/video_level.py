"""LogisticModel and MoeModel: the starter code's classifiers of video-level features.

A video-level record counts as one frame; frame-level records are averaged.
"""

from yt8m_distill.models import base, frame_average


@base.MODELS.register("LogisticModel")
class LogisticModel(frame_average.FrameLevelLogisticModel):
    """FrameLevelLogisticModel under the starter code's name for video-level records."""


@base.MODELS.register("MoeModel")
class MoeModel(frame_average.FrameLevelLogisticModel):
    """A mixture of logistic experts on the mean of the frames.

    Args:
        feature_size, num_classes, max_frames, dropout, encoding_size: as in
            VideoClassifier.
        head: the mixture; `moe(num_mixtures=4)` has more experts.
    """

    def __init__(self, head: str = "moe", **kwargs):
        super().__init__(head=head, **kwargs)
