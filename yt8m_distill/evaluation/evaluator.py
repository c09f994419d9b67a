"""Evaluates a network on a data set; knows nothing of training."""

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
from yt8m_distill.models import replicas, teacher_student

_LOG = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Metrics of a data set and how fast they came.

    Attributes:
        metrics: GAP, mAP, Hit@1, PERR, loss; of segments GAP, mAP@K, loss.
        videos_per_second: end to end, from the shards to the metrics; the first
            batch, during which the graph is traced, is left out where there are
            more.
        num_skipped: bad records that were left out, under `--bad_records=skip`.
        num_repeated_ids: videos whose id an earlier video had; None where no process
            sees all ids.
        class_precisions: [C] average precision, NaN for a class without positives.
        class_positives: [C] videos with each label.
        exits: with early exit, the mean number of frames that were read
            (`mean_frames`), and how many videos were read for each number of frames
            (`frames_histogram`) and stopped at each budget (`stopped_at`).
    """

    metrics: average_precision.Metrics | segments.SegmentMetrics
    videos_per_second: float
    num_skipped: int = 0
    num_repeated_ids: int | None = 0
    class_precisions: np.ndarray | None = None
    class_positives: np.ndarray | None = None
    exits: dict | None = None

    @property
    def num_rows(self) -> int:
        """Videos, or segments."""
        found = self.metrics._asdict()
        return found.get("num_videos", found.get("num_segments"))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name, counts of `exits` by number of frames."""
        numbers = {k: _plain(v) for k, v in self.metrics._asdict().items()}
        return {
            **numbers,
            "videos_per_second": round(self.videos_per_second, 2),
            "num_skipped": self.num_skipped,
            "num_repeated_ids": self.num_repeated_ids,
            **(self.exits or {}),
        }


def _write(writer, top: average_precision.TopPredictions) -> None:
    """Writes a batch's predictions, without its filling rows."""
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
    """[N] int64: 8 bytes an id, of which two are alike by chance once in 2^64."""
    return np.fromiter(map(hash, video_ids), np.int64, len(video_ids))


def count_repeated(hashes: Sequence[np.ndarray]) -> int:
    """How many of all ids came before."""
    joined = np.concatenate([*hashes, np.zeros(0, np.int64)])
    return len(joined) - len(np.unique(joined))


def _plain(value):
    return value.item() if hasattr(value, "item") else value


class _Clock:
    """Videos a second, without the first batch where there are more."""

    def __init__(self):
        self._since = time.perf_counter()
        self._videos = 0
        self._batches = 0
        self._rate = 0.0

    def batch_done(self, videos: int) -> None:
        """Counts a batch that ended just now."""
        now = time.perf_counter()
        self._videos += videos
        self._rate = self._videos / max(now - self._since, 1e-9)
        self._batches += 1
        if self._batches == 1:
            self._since, self._videos = now, 0

    @property
    def videos_per_second(self) -> float:
        """The rate so far."""
        return self._rate


class Evaluator:
    """Runs one role's network over batches and pools its predictions.

    The graph returns the top k of every video and one number a class, nothing of
    the size B x C.

    Args:
        networks: of the run; only the role's is used.
        role: `teacher` or `student`.
        strategy: the devices.
        num_classes: C.
        top_k: predictions a video.
        view: name of another view than the role's own.
    """

    def __init__(
        self,
        networks: teacher_student.TeacherStudent,
        role: str,
        strategy: tf.distribute.Strategy,
        num_classes: int,
        top_k: int = 20,
        view: str | None = None,
    ):
        self.view = view
        self.networks = networks
        self.role = role
        self.strategy = strategy
        self.num_classes = num_classes
        self.top_k = top_k
        self._on_replica = replicas.under_policy(self._replica_step)
        self._step = tf.function(self._distributed_step)

    def _replica_step(self, batch: structures.Batch):
        outputs = self.networks.forward(
            self.role, batch[structures.VIEWS], view=self.view
        )
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
            # One row a replica, so that the rows can be gathered like all others.
            class_positives=found.class_positives[tf.newaxis],
            # The gathering operation knows no booleans.
            hits=tf.cast(found.hits, tf.int32),
            loss=classification.cross_entropy(outputs, batch[structures.LABELS]),
            exits=outputs.exits,
        )

    def _distributed_step(self, batch):
        found = self.strategy.run(self._on_replica, args=(batch,))
        return tf.nest.map_structure(self._gather, found)

    def _gather(self, value):
        """The rows of all replicas of all processes; None stays None."""
        if value is None:
            return None
        local = self.strategy.experimental_local_results(value)
        if len(local) == self.strategy.num_replicas_in_sync:
            return tf.concat(local, axis=0)
        return self.strategy.gather(value, axis=0)

    def evaluate(
        self,
        dataset,
        num_batches: int | None = None,
        progress: bool = False,
        writer=None,
        num_skipped: int = 0,
    ) -> Evaluation:
        """Metrics over all batches of a distributed dataset.

        Args:
            dataset: yields global batches, see distribution.distribute.
            num_batches: for the progress bar.
            progress: whether to show it.
            writer: an opened predictions.PredictionWriter; gets the top k of every
                video, in the order of the dataset.
            num_skipped: records that the dataset leaves out, for the result.

        Raises:
            ValueError: for a score that is not a number; the message names the
                video where one process sees all of them. For a `writer` where
                several processes evaluate: none has the ids of all videos.
        """
        pool = self._new_pool()
        clock, hashes, exits, all_ids = _Clock(), [], [], True
        bar = tqdm.tqdm(
            dataset, total=num_batches, disable=not progress, unit="batch", leave=False
        )
        for batch in bar:
            top = self._to_arrays(self._step(batch))
            top = top._replace(video_ids=self._video_ids(batch, len(top.scores)))
            pool.update(top)
            if top.video_ids is None:
                all_ids = False
            else:
                hashes.append(hashes_of(top.video_ids[top.weights > 0]))
            if getattr(top, "exits", None) is not None:
                exits.append(top.exits[top.weights > 0])
            if writer:
                _write(writer, top)
            clock.batch_done(int(top.weights.sum()))
        metrics = pool.result()
        repeated = count_repeated(hashes) if all_ids else None
        if repeated:
            _LOG.warning(
                "%d videos have the id of an earlier one, and are counted again.",
                repeated,
            )
        return Evaluation(
            metrics,
            clock.videos_per_second,
            num_skipped,
            repeated,
            pool.class_precisions,
            pool.class_positives,
            _summarize(exits),
        )

    def _new_pool(self):
        """What collects the batches."""
        return average_precision.MetricsAccumulator(self.num_classes, self.top_k)

    def _to_arrays(self, found):
        """What a step gives, out of the graph."""
        found = type(found)(*(None if x is None else x.numpy() for x in found))
        return found._replace(class_positives=found.class_positives.sum(axis=0))

    def _video_ids(self, batch, rows: int):
        """Ids of the rows, or None where other processes have some of them."""
        return self._local(batch[structures.VIDEO_ID], rows)

    def _local(self, value, rows: int):
        """The rows of this process, or None where other processes have some."""
        found = replicas.local_rows(self.strategy, value)
        return found if len(found) == rows else None


class SegmentEvaluator(Evaluator):
    """The same of rated segments: mAP@K and GAP over their ratings.

    All scores leave the graph: a class ranks the segments, and not a segment the
    classes. `top_k` is K, segments that count per class.
    """

    def _replica_step(self, batch: structures.Batch):
        outputs = self.networks.forward(
            self.role, batch[structures.VIEWS], view=self.view
        )
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

    def _to_arrays(self, found):
        return type(found)(*(None if x is None else x.numpy() for x in found))

    def _video_ids(self, batch, rows: int):
        ids = super()._video_ids(batch, rows)
        starts = self._local(batch[structures.SEGMENT_STARTS], rows)
        if ids is None:
            return None
        names = [b"%s:%d" % pair for pair in zip(ids, starts, strict=True)]
        return np.array(names, object)


def build(
    networks: teacher_student.TeacherStudent,
    role: str,
    strategy: tf.distribute.Strategy,
    data: settings.DataSettings,
    top_k: int,
    segment_max_pred: int = settings.SEGMENT_MAX_PRED,
    view: str | None = None,
) -> Evaluator:
    """The evaluator of videos, or of segments, as the data settings say.

    Args:
        networks, role, strategy, view: see Evaluator.
        data: num_classes and segment_labels.
        top_k: predictions a video.
        segment_max_pred: K of mAP@K.
    """
    given = (networks, role, strategy, data.num_classes)
    if data.segment_labels:
        return SegmentEvaluator(*given, segment_max_pred, view)
    return Evaluator(*given, top_k, view)
