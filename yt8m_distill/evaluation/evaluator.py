"""Evaluates a network on a data set."""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import settings, structures
from yt8m_distill.evaluation import average_precision, segments, top_predictions
from yt8m_distill.losses import classification
from yt8m_distill.models import replicas

_LOG = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Metrics and speed of an evaluation.

    Attributes:
        metrics: GAP, mAP, Hit@1, PERR, loss; for segments GAP, mAP@K, loss.
        videos_per_second: end to end, from the shards to the metrics, without the first
            batch, in which the graph is traced, if there are more.
        num_skipped: number of invalid records, skipped under `--bad_records=skip`.
        num_repeated_ids: number of videos with the id of an earlier one; None if no
            process has all ids.
        class_precisions: [C] average precision, NaN for a class without positives.
        class_positives: [C] number of videos with each label.
        exits: with early exit, the mean number of frames read (`mean_frames`), and the
            number of videos by frames read (`frames_histogram`) and by the budget at
            which they stopped (`stopped_at`).
        num_unlabeled: videos without labels, which count in no metric; if there are no
            others, all metrics are 0.
    """

    metrics: average_precision.Metrics | segments.SegmentMetrics
    videos_per_second: float
    num_skipped: int = 0
    num_repeated_ids: int | None = 0
    class_precisions: np.ndarray | None = None
    class_positives: np.ndarray | None = None
    exits: dict | None = None
    num_unlabeled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Numbers by name, as JSON values."""
        return {
            **self.metrics._asdict(),
            "videos_per_second": round(self.videos_per_second, 2),
            "num_skipped": self.num_skipped,
            "num_repeated_ids": self.num_repeated_ids,
            **(self.exits or {}),
        }


def _write(writer, top: average_precision.TopPredictions) -> None:
    """Writes a batch's predictions, without its padding rows."""
    if top.video_ids is None:
        raise ValueError(
            "Predictions are written by a single process, which sees all video ids; "
            "several processes evaluate here."
        )
    keep = top.weights > 0
    frames = None if top.exits is None else top.exits[keep, 1]
    writer.write(top.video_ids[keep], top.classes[keep], top.scores[keep], frames)


def _summarize(exits: list[np.ndarray]) -> dict | None:
    """See Evaluation.exits; None without early exit."""
    if not exits:
        return None
    budgets, frames = np.concatenate(exits).T

    def count(values) -> dict[int, int]:
        numbers, counts = np.unique(values, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    return {
        "mean_frames": float(frames.mean()),
        "frames_histogram": count(frames),
        "stopped_at": count(budgets),
    }


def hashes_of(video_ids) -> np.ndarray:
    """[N] int64, a hash per id; two ids collide with probability 2^-64."""
    return np.fromiter(map(hash, video_ids), np.int64, len(video_ids))


def count_repeated(hashes: Sequence[np.ndarray]) -> int:
    """Number of ids that occurred before."""
    joined = np.concatenate([*hashes, np.zeros(0, np.int64)])
    return len(joined) - len(np.unique(joined))


def _rate(began: float, ends: list[float], videos: list[int]) -> float:
    """Videos per second, without the first batch if there are more."""
    if len(ends) > 1:
        began, videos = ends[0], videos[1:]
    return sum(videos) / max(ends[-1] - began, 1e-9)


class Evaluator:
    """Runs a network over batches and pools its predictions.

    The graph returns the top k of each video and one number per class, nothing of size
    B x C.

    Args:
        runner: the network.
        num_classes: C.
        top_k: predictions per video.
        view: name of another view than the role's own.
    """

    def __init__(
        self,
        runner: replicas.Runner,
        num_classes: int,
        top_k: int = 20,
        view: str | None = None,
    ):
        self.view = view
        self.runner = runner
        self.num_classes = num_classes
        self.top_k = top_k
        self._on_replica = replicas.under_policy(self._replica_step)
        self._step = tf.function(self._distributed_step, autograph=False)

    def _replica_step(self, batch: structures.Batch):
        outputs = self.runner.forward(batch, view=self.view)
        found = top_predictions.top_predictions(
            tf.sigmoid(outputs.logits),
            batch[structures.LABELS],
            batch[structures.WEIGHTS],
            self.top_k,
        )
        # An infinite logit has a score, but no loss.
        finite = tf.reduce_all(tf.math.is_finite(outputs.logits), 1, keepdims=True)
        return found._replace(
            scores=tf.where(finite, found.scores, float("nan")),
            # The gather operation does not support booleans.
            hits=tf.cast(found.hits, tf.int32),
            loss=classification.cross_entropy(outputs, batch[structures.LABELS]),
            exits=outputs.exits,
        )

    def _distributed_step(self, batch):
        found = self.runner.strategy.run(self._on_replica, args=(batch,))
        return tf.nest.map_structure(self._gather, found)

    def _gather(self, value):
        """The rows of all replicas of all processes; None stays None."""
        if value is None:
            return None
        strategy = self.runner.strategy
        local = strategy.experimental_local_results(value)
        if len(local) == strategy.num_replicas_in_sync:
            return tf.concat(local, axis=0)
        return strategy.gather(value, axis=0)

    def evaluate(
        self,
        dataset,
        progress: bool = False,
        writer=None,
        num_skipped: int = 0,
    ) -> Evaluation:
        """Metrics over all batches of a distributed dataset.

        Args:
            dataset: yields global batches, see distribution.distribute.
            progress: whether to show a progress bar.
            writer: an opened predictions.PredictionWriter; gets the top k of every
                video, in the order of the dataset.
            num_skipped: number of records that the dataset skips, for the result.

        Raises:
            ValueError: for a score that is NaN, naming the video if one process has all
                ids; or for a `writer` with several processes, of which none has all
                ids.
        """
        pool = self._new_pool()
        began, ends, videos, num_unlabeled = time.perf_counter(), [], [], 0
        hashes, exits = [], []
        bar = tqdm.tqdm(dataset, disable=not progress, unit="batch", leave=False)
        for batch in bar:
            top = self._step(batch)
            top = type(top)(*(None if x is None else x.numpy() for x in top))
            top = top._replace(video_ids=self._video_ids(batch, len(top.scores)))
            labeled = top._replace(weights=top.weights * self._have_labels(top))
            num_unlabeled += int((top.weights - labeled.weights).sum())
            pool.update(labeled)
            if top.video_ids is not None:
                hashes.append(hashes_of(top.video_ids[top.weights > 0]))
            if getattr(top, "exits", None) is not None:
                exits.append(top.exits[top.weights > 0])
            if writer:
                _write(writer, top)
            ends.append(time.perf_counter())
            videos.append(int(top.weights.sum()))
        if num_unlabeled:
            _LOG.warning(
                "Without labels, in no metric: %s.",
                settings.counted(num_unlabeled, "video"),
            )
        if num_unlabeled and num_unlabeled == sum(videos):
            metrics = average_precision.Metrics(*[0.0] * 6, num_videos=0)
        else:
            metrics = pool.result()
        has_all_ids = len(hashes) == len(ends)
        repeated = count_repeated(hashes) if has_all_ids else None
        if repeated:
            _LOG.warning(
                "Ids of an earlier video, which are counted, too: %s.",
                settings.counted(repeated, "video"),
            )
        return Evaluation(
            metrics,
            _rate(began, ends, videos),
            num_skipped,
            repeated,
            pool.class_precisions,
            pool.class_positives,
            _summarize(exits),
            num_unlabeled,
        )

    def _new_pool(self):
        """The accumulator of all batches."""
        return average_precision.MetricsAccumulator(self.num_classes)

    def _have_labels(self, top) -> np.ndarray:
        """[B], whether a row's predictions can be right or wrong."""
        return top.num_labels > 0

    def _video_ids(self, batch, rows: int):
        """Ids of the rows, or None if other processes have some of them."""
        return self._local(batch[structures.VIDEO_ID], rows)

    def _local(self, value, rows: int):
        """The rows of this process, or None if other processes have some."""
        found = self.runner.local_rows(value)
        return found if len(found) == rows else None


class SegmentEvaluator(Evaluator):
    """An Evaluator of rated segments: mAP@K and GAP over their ratings.

    The graph returns all scores, since the segments of each class are ranked. `top_k`
    is K, the number of segments per class.
    """

    def _replica_step(self, batch: structures.Batch):
        outputs = self.runner.forward(batch, view=self.view)
        labels = batch[structures.LABELS]
        rated = batch[structures.LABEL_WEIGHTS]
        finite = tf.math.is_finite(outputs.logits)
        return segments.RatedScores(
            tf.where(finite, tf.sigmoid(outputs.logits), float("nan")),
            labels,
            rated,
            batch[structures.WEIGHTS],
            classification.cross_entropy(outputs, labels, rated),
        )

    def _new_pool(self):
        return segments.SegmentAccumulator(self.num_classes, self.top_k)

    def _have_labels(self, top) -> np.ndarray:
        # A row is a rated segment; classes without a rating have no weight.
        return np.ones_like(top.weights)

    def _video_ids(self, batch, rows: int):
        ids = super()._video_ids(batch, rows)
        starts = self._local(batch[structures.SEGMENT_STARTS], rows)
        if ids is None:
            return None
        names = [b"%s:%d" % pair for pair in zip(ids, starts, strict=True)]
        return np.array(names, object)


def build(
    runner: replicas.Runner,
    data: settings.DataSettings,
    top_k: int,
    segment_max_pred: int = settings.SEGMENT_MAX_PRED,
    view: str | None = None,
) -> Evaluator:
    """The evaluator of videos or of segments, according to the data settings.

    Args:
        runner, view: see Evaluator.
        data: num_classes and segment_labels.
        top_k: predictions per video.
        segment_max_pred: K of mAP@K.
    """
    if data.segment_labels:
        return SegmentEvaluator(runner, data.num_classes, segment_max_pred, view)
    return Evaluator(runner, data.num_classes, top_k, view)
