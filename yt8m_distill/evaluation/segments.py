"""mAP@K and GAP over rated segments (YouTube-8M 2019; numpy only).

Of each class the segments are ranked by score and the first K kept; those without a
rating of the class are then removed, and the average precision is over what is left
with all positives of the class as its denominator. GAP pools all ratings.
"""

from typing import Any, NamedTuple

import numpy as np

from yt8m_distill import settings, structures
from yt8m_distill.evaluation import average_precision, best_per_class


class RatedScores(NamedTuple):
    """What leaves the graph of a batch of segments.

    Attributes:
        scores: [B, C] float32.
        labels: [B, C], 1 where a class is present.
        rated: [B, C], above 0 where a class is rated.
        weights: [B], 1 for a segment, 0 for a padding row.
        loss: [B] float32, over the rated classes.
        video_ids: [B] bytes, `id:start`, or None; for messages.
    """

    scores: Any
    labels: Any
    rated: Any
    weights: Any
    loss: Any
    video_ids: Any = None


class SegmentMetrics(NamedTuple):
    """The metrics of a data set's rated segments.

    Attributes:
        gap: average precision over all ratings, pooled.
        map: mAP@K, classes without positives left out.
        map_all_classes: likewise, but they count 0.
        loss: cross-entropy over the rated classes, mean over the segments.
        num_segments, num_ratings: how many there are.
    """

    gap: float
    map: float
    map_all_classes: float
    loss: float
    num_segments: int
    num_ratings: int


class SegmentAccumulator:
    """Collects ratings; the metrics come at the end.

    A rating takes 9 bytes. Where the K of a class are cut depends on all segments, and
    takes 5 K bytes per class at most. Equal scores count as one threshold: a segment is
    among the first K if at most K score as high or higher.

    Args:
        num_classes: C.
        k: K.

    Attributes:
        class_positives: [C] segments in which each class is present, so far.
        class_precisions: [C] average precisions of the last `result`, or None.
    """

    def __init__(self, num_classes: int, k: int = settings.SEGMENT_MAX_PRED):
        self._k = k
        self._best = best_per_class.BestPerClass(num_classes, k + 1)
        self._ratings: list[tuple[np.ndarray, ...]] = []
        self._losses: list[np.ndarray] = []
        self.class_positives = np.zeros(num_classes)
        self.class_precisions: np.ndarray | None = None

    def update(self, batch: RatedScores) -> None:
        """Adds a batch; its rows of weight 0 are dropped.

        Raises:
            ValueError: for a score that is not a number, naming the segment.
        """
        keep = np.flatnonzero(batch.weights)
        scores, labels, rated = (
            np.asarray(x)[keep] for x in (batch.scores, batch.labels, batch.rated)
        )
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if bad.size:
            name = f"number {bad[0]} of a batch"
            if batch.video_ids is not None:
                name = structures.readable_id(batch.video_ids[keep[bad[0]]])
            raise ValueError(f"The score of segment {name} is NaN.")
        rows, classes = np.nonzero(rated)
        hits = labels[rows, classes] > 0
        self._ratings.append((scores[rows, classes], classes.astype(np.int32), hits))
        self._losses.append(np.asarray(batch.loss)[keep].astype(np.float64))
        self.class_positives += np.bincount(classes[hits], minlength=labels.shape[1])
        self._best.update(scores)

    def result(self) -> SegmentMetrics:
        """The metrics of all segments so far.

        Raises:
            ValueError: if there was none.
        """
        losses = np.concatenate([*self._losses, np.zeros(0)])
        if not losses.size:
            raise ValueError("There is no rated segment to evaluate.")
        parts = zip(*self._ratings, strict=True)
        scores, classes, hits = (np.concatenate(part) for part in parts)
        positives = self.class_positives
        first = scores > self._cuts()[classes]
        self.class_precisions = average_precision.class_average_precisions(
            scores[first], classes[first], hits[first], positives
        )
        return SegmentMetrics(
            gap=average_precision.average_precision(scores, hits, int(positives.sum())),
            **average_precision.mean_average_precisions(self.class_precisions),
            loss=float(losses.mean()),
            num_segments=losses.size,
            num_ratings=len(scores),
        )

    def _cuts(self) -> np.ndarray:
        """[C]: the K + 1st score of each class; only what is above is kept."""
        cuts = np.full(len(self.class_positives), -np.inf)
        for label in range(len(cuts)):
            best, _ = self._best.best(label)
            if len(best) > self._k:
                cuts[label] = best[self._k]
        return cuts
