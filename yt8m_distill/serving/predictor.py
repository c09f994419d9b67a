"""The top classes of every video of a data set, batch by batch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import replicas, teacher_student


class Predictions(NamedTuple):
    """The top k of some videos, best first.

    Attributes:
        video_ids: [N] bytes.
        classes: [N, k] int32.
        scores: [N, k] float32 in [0, 1].
        num_frames: [N] int32, the frames that were read.
    """

    video_ids: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    num_frames: np.ndarray


class Predictor:
    """Runs one role's network and keeps the top k of every video.

    Args:
        networks: of the run; only the role's is used.
        role: `teacher` or `student`.
        strategy: the devices.
        top_k: predictions a video, cut to the number of classes.
    """

    def __init__(
        self,
        networks: teacher_student.TeacherStudent,
        role: str,
        strategy: tf.distribute.Strategy,
        top_k: int = 20,
    ):
        self.networks = networks
        self.role = role
        self.strategy = strategy
        self.top_k = min(top_k, networks.network(role).num_classes)
        self._step = replicas.on_replicas(strategy, self._replica_step)

    def _replica_step(self, batch):
        views = batch[structures.VIEWS]
        outputs = self.networks.forward(self.role, views)
        num_frames = views[self.networks.views[self.role]][structures.NUM_FRAMES]
        if outputs.exits is not None:
            num_frames = outputs.exits[:, 1]
        scores, classes = tf.math.top_k(tf.sigmoid(outputs.logits), self.top_k)
        # A NaN could stay outside the top k: where a sort puts it is undefined.
        finite = tf.reduce_all(tf.math.is_finite(outputs.logits), 1, keepdims=True)
        scores = tf.where(finite, scores, float("nan"))
        # The logits leave the graph so that TensorFlow (2.21) does not fuse the sigmoid
        # with the classifier's product, which changes last bits: so the scores are the
        # Evaluator's, whose loss needs the logits.
        return scores, classes, outputs.logits, num_frames

    def predict(self, dataset) -> Iterator[Predictions]:
        """Predictions of each batch of a distributed dataset, in its order.

        Raises:
            ValueError: for a score that is not a number, naming the video.
        """
        for batch in dataset:
            scores, classes, _, num_frames = self._step(batch)
            keep = self._local(batch[structures.WEIGHTS]) > 0
            found = Predictions(
                self._local(batch[structures.VIDEO_ID])[keep],
                self._local(classes)[keep],
                self._local(scores)[keep],
                self._local(num_frames)[keep],
            )
            bad = np.flatnonzero(~np.isfinite(found.scores).all(axis=1))
            if bad.size:
                name = structures.readable_id(found.video_ids[bad[0]])
                raise ValueError(f"Video {name} has a score that is not a number.")
            yield found

    def _local(self, value) -> np.ndarray:
        return replicas.local_rows(self.strategy, value)
