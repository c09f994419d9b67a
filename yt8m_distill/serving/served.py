"""What is exported: a network with what it reads and gives."""

from typing import NamedTuple

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.data import pipeline
from yt8m_distill.models import base

# The file next to a model that says what it reads.
DESCRIPTION = "model.json"


class Served(NamedTuple):
    """A network to be exported.

    Attributes:
        network: with its variables.
        data: what the records hold.
        view: which frames the network reads.
        top_k: predictions a video, at most the classes.
        budgets: numbers of frames that the network was trained for, where there are
            several.
    """

    network: base.VideoClassifier
    data: settings.DataSettings
    view: pipeline.ViewSpec
    top_k: int
    budgets: tuple[int, ...] = ()

    @property
    def num_frames(self) -> int:
        """Frames that the network reads at most."""
        return self.view.width(self.data)


def view_of(frames: tf.Tensor, num_frames: tf.Tensor) -> structures.View:
    """The view of a caller's frames: no video has more of them than are there."""
    num_frames = tf.minimum(num_frames, tf.shape(frames)[1])
    return {structures.FRAMES: frames, structures.NUM_FRAMES: num_frames}
