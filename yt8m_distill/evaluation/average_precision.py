"""GAP, mAP, Hit@1 and PERR over the top predictions of all videos (numpy only).

Ties: predictions of equal score pass a threshold together, and all have the precision
of the whole group. This is the convention of sklearn's `average_precision_score`;
without ties it is the usual sum of hits_so_far / rank. No metric here therefore depends
on the order of the videos or the batch size, not even in the last bit.

Denominators count *all* positives, including those outside the top-k lists: a video
with 25 labels whose top 20 predictions are all correct scores 0.8.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from yt8m_distill import structures


class TopPredictions(NamedTuple):
    """The results of a batch that leave the graph: k per video and one [C] vector.

    Attributes:
        scores: [B, k] float32, descending; a row with a NaN is a video with an
            undefined prediction.
        classes: [B, k] int32, the class of each score.
        hits: [B, k] bool, whether that class is a label of the video.
        num_labels: [B] int32, all labels of the video, in its top k or not.
        perr: [B] float32, share of the video's top n that are its n labels.
        class_positives: [R, C] float32, videos with each label in each of R parts of
            the batch, without padding rows.
        weights: [B], 1 for a video, 0 for a padding row.
        loss: [B] float32.
        video_ids: [B] bytes or None; used only in the message about a NaN.
        exits: [B, 2] int32 or None, see structures.Outputs.
    """

    scores: Any
    classes: Any
    hits: Any
    num_labels: Any
    perr: Any
    class_positives: Any
    weights: Any
    loss: Any = None
    video_ids: Any = None
    exits: Any = None


class Metrics(NamedTuple):
    """The metrics of a data set; all in [0, 1] but `loss` and `num_videos`.

    Attributes:
        gap: average precision over the pooled top-k predictions of all videos.
        map: mean of the classes' average precisions over the same predictions,
            without classes that have no positives, as in the starter code.
        map_all_classes: likewise, but classes without positives count as 0, as the
            paper's authors do it.
        hit_at_one: share of videos whose highest-scored class is a label.
        perr: mean over videos of the precision at the video's number of labels.
        loss: mean over videos.
        num_videos: videos evaluated, without padding rows.

    Videos without labels count as 0 in `hit_at_one` and `perr`. Without any label,
    `gap` and both means are 0.
    """

    gap: float
    map: float
    map_all_classes: float
    hit_at_one: float
    perr: float
    loss: float
    num_videos: int


def average_precision(
    scores: np.ndarray, labels: np.ndarray, num_positives: int | None = None
) -> float:
    """Sum over thresholds of precision times the increase in recall.

    Every distinct score of a positive is a threshold t; it contributes
    (positives of score t) * (positives >= t) / (predictions >= t). Over the pooled
    top-k lists of all videos, with all their labels as positives, it is GAP@k.

    Args:
        scores: of any shape, in any order.
        labels: of the same shape, bool or 0/1, whether the prediction is correct.
        num_positives: the denominator, if there are positives without a score.
            Default: the positives in `labels`.

    Returns:
        In [0, 1]; 0 without positives.

    Raises:
        ValueError: for a NaN.
    """
    scores, hits = np.ravel(scores), np.ravel(labels).astype(bool, copy=False)
    undefined = np.isnan(scores)
    if undefined.any():
        raise ValueError(f"scores[{undefined.argmax()}] is NaN.")
    num_hits = np.count_nonzero(hits)
    if num_positives is None:
        num_positives = num_hits
    if not num_hits:
        return 0.0
    thresholds, gained = np.unique(scores[hits], return_counts=True)
    hits_above = np.cumsum(gained[::-1])[::-1]
    predictions_above = scores.size - np.searchsorted(np.sort(scores), thresholds)
    return float(np.sum(gained * (hits_above / predictions_above)) / num_positives)


def class_average_precisions(
    scores: np.ndarray,
    classes: np.ndarray,
    hits: np.ndarray,
    class_positives: np.ndarray,
) -> np.ndarray:
    """Average precision of each class over the predictions of that class.

    Args:
        scores: [N, k], the best k scores of each video.
        classes: [N, k] int in [0, C), the class of each score.
        hits: [N, k] bool, whether each is a label of its video.
        class_positives: [C], all videos with that label.

    Returns:
        [C] float64; NaN for a class without positives, 0 for one with positives but
        without predictions.

    Raises:
        ValueError: as `average_precision`.
    """
    scores, classes, hits = (np.ravel(x) for x in (scores, classes, hits))
    num_classes = len(class_positives)
    ends = np.cumsum(np.bincount(classes, minlength=num_classes))
    begins = np.concatenate([[0], ends[:-1]])
    order = np.argsort(classes, kind="stable")
    scores, hits = scores[order], hits[order]
    del order  # The largest array here: 8 bytes per prediction.
    result = np.full(num_classes, np.nan)
    for index in np.flatnonzero(class_positives):
        part = slice(begins[index], ends[index])
        result[index] = average_precision(
            scores[part], hits[part], class_positives[index]
        )
    return result


def mean_average_precisions(precisions: np.ndarray) -> dict[str, float]:
    """`map` and `map_all_classes` of Metrics, from class_average_precisions [C]."""
    total = float(np.nansum(precisions))
    num_defined = int(np.count_nonzero(~np.isnan(precisions)))
    return {
        "map": total / max(num_defined, 1),
        "map_all_classes": total / len(precisions),
    }


class MetricsAccumulator:
    """Collects the top predictions of all batches and computes the metrics at the end.

    A prediction takes 7 bytes (float32 score, uint16 class, bool hit), so 1.1 million
    videos with 20 predictions take 155 MB, and about four times that while `result`
    sorts them. Counts and sums are integers or float64.

    Attributes:
        class_positives: [C] videos with each label so far.
        class_precisions: [C] average precisions of the last `result`, or None.
    """

    def __init__(self, num_classes: int) -> None:
        """Starts with no videos of `num_classes` classes."""
        self._dtypes = {
            "scores": np.float32,
            "classes": np.uint16 if num_classes <= 2**16 else np.int32,
            "hits": bool,
            "perr": np.float32,
            "loss": np.float32,
        }
        self._columns: dict[str, list[np.ndarray]] = {n: [] for n in self._dtypes}
        self.class_positives = np.zeros(num_classes, np.float64)
        self.class_precisions: np.ndarray | None = None
        self._num_hits_at_one = 0
        self._num_videos = 0

    def update(self, batch: TopPredictions) -> None:
        """Adds a batch, without its padding rows.

        Raises:
            ValueError: for a NaN score, naming the video. The batch is not added then.
        """
        rows = np.flatnonzero(batch.weights)
        kept = {
            # The index makes a copy, which shares no memory with a tensor.
            name: np.asarray(getattr(batch, name))[rows].astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
        }
        scores = kept["scores"]
        self._check_scores(scores, batch.video_ids, rows)
        for name, column in kept.items():
            self._columns[name].append(column)
        self.class_positives += batch.class_positives.sum(axis=0)
        best = scores.argmax(axis=1)
        self._num_hits_at_one += int(kept["hits"][np.arange(rows.size), best].sum())
        self._num_videos += rows.size

    def result(self) -> Metrics:
        """The metrics of all videos so far; more batches may follow.

        Raises:
            ValueError: if there are no videos with labels.
        """
        if not self._num_videos:
            raise ValueError(
                "There are no videos to evaluate: none has labels under --labels_key."
            )
        for parts in self._columns.values():
            parts[:] = [np.concatenate(parts)]  # In place: only one copy remains.
        scores, classes, hits, perr, loss = (c[0] for c in self._columns.values())
        positives = self.class_positives
        self.class_precisions = class_average_precisions(
            scores, classes, hits, positives
        )
        return Metrics(
            gap=average_precision(scores, hits, int(positives.sum())),
            **mean_average_precisions(self.class_precisions),
            hit_at_one=self._num_hits_at_one / self._num_videos,
            perr=math.fsum(perr) / self._num_videos,
            loss=math.fsum(loss) / self._num_videos,
            num_videos=self._num_videos,
        )

    def _check_scores(
        self, scores: np.ndarray, video_ids: Any, rows: np.ndarray
    ) -> None:
        undefined = np.isnan(scores).any(axis=1)
        if not undefined.any():
            return
        position = int(undefined.argmax())
        if video_ids is None:
            name = f"number {self._num_videos + position}, counted from 0,"
        else:
            name = structures.readable_id(video_ids[rows[position]])
        raise ValueError(f"The score of video {name} is NaN.")
