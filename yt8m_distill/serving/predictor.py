"""The top classes of every video of a data set, batch by batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import replicas


class Predictions(NamedTuple):
    """The top k of some videos, best first.

    Attributes:
        video_ids: [N] bytes.
        classes: [N, k] int32.
        scores: [N, k] float32 in [0, 1].
        num_frames: [N] int32, the frames that were read with early exit, or None.
    """

    video_ids: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    num_frames: np.ndarray | None = None

    def name(self, row: int) -> str:
        """Which video a row is, for an error."""
        return f"Video {structures.readable_id(self.video_ids[row])}"


class Predictor:
    """Runs a network and keeps the top k of every video.

    A subclass scores other rows: `_replica_step` in the graph, `_rows` of its results.

    `top_k` is cut to the number of classes.
    """

    def __init__(self, runner: replicas.Runner, top_k: int = 20):
        self.runner = runner
        self.top_k = top_k
        self._step = runner.on_replicas(self._replica_step)

    def _replica_step(self, batch) -> tuple:
        outputs = self.runner.forward(batch)
        logits = outputs.logits
        k = min(self.top_k, logits.shape[1])
        scores, classes = tf.math.top_k(tf.sigmoid(logits), k)
        # A NaN could stay outside the top k: where a sort puts it is undefined.
        finite = tf.reduce_all(tf.math.is_finite(logits), 1, keepdims=True)
        scores = tf.where(finite, scores, float("nan"))
        exits = () if outputs.exits is None else (outputs.exits[:, 1],)
        # The logits leave the graph so that TensorFlow (2.21) does not fuse the sigmoid
        # with the classifier's product, which changes last bits: so the scores are the
        # Evaluator's, whose loss needs the logits.
        return logits, classes, scores, *exits

    def _rows(self, batch, logits, *results) -> Any:
        """What is predicted of the rows that do not fill up a batch."""
        local = self.runner.local_rows
        keep = local(batch[structures.WEIGHTS]) > 0
        columns = (batch[structures.VIDEO_ID], *results)
        return Predictions(*(local(column)[keep] for column in columns))

    def predict(self, dataset) -> Iterator:
        """Predictions of each batch of a distributed dataset, in its order.

        Raises:
            ValueError: for a score that is not a number, naming the row.
        """
        for batch in dataset:
            found = self._rows(batch, *self._step(batch))
            bad = np.flatnonzero(~np.isfinite(found.scores).all(axis=1))
            if bad.size:
                name = found.name(bad[0])
                raise ValueError(f"{name} has a score that is not a number.")
            yield found
