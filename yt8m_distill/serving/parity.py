"""Compares a written model with the network that it was made of, on the same videos."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.evaluation import average_precision
from yt8m_distill.serving import served

# frames [N, k, D] and num_frames [N] → classes [N, top_k] and scores, best first; of
# each segment [N, W, top_k].
Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Videos(NamedTuple):
    """Some videos.

    Attributes:
        frames: [N, k, D] uint8, or float32 of video-level records.
        num_frames: [N] int32.
        labels: [N, C] of 0 and 1, or None.
    """

    frames: np.ndarray
    num_frames: np.ndarray
    labels: np.ndarray | None = None


class Result(NamedTuple):
    """How a model agrees with its network.

    Attributes:
        videos: how many were compared.
        difference: largest difference of a score, over the model's classes and over
            the places of the sorted lists.
        gap: of the model's lists; None without labels.
        gap_of_network: of the network's.
    """

    videos: int
    difference: float
    gap: float | None = None
    gap_of_network: float | None = None


def of_batch(batch: structures.Batch) -> Videos:
    """The videos of a batch with one view, without its padding rows."""
    (view,) = batch[structures.VIEWS].values()
    keep = batch[structures.WEIGHTS].numpy() > 0
    parts = (view[structures.FRAMES], view[structures.NUM_FRAMES])
    return Videos(*(p.numpy()[keep] for p in (*parts, batch[structures.LABELS])))


def generated(given: served.Served) -> Videos:
    """Videos of noise, of 1 to k frames."""
    random = np.random.default_rng(0)
    k = given.num_frames
    num_frames = np.unique(np.linspace(1, k, 8).astype(np.int32))
    shape = [len(num_frames), k, given.network.feature_size]
    if given.data.frame_features:
        return Videos(random.integers(0, 256, shape, np.uint8), num_frames)
    return Videos(random.normal(size=shape).astype(np.float32), num_frames)


def compare(given: served.Served, run: Run, videos: Iterable[Videos] | None) -> Result:
    """Runs both on all videos; None: some of noise.

    Raises:
        ValueError: if there is no video, as nothing would be compared.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def scores_of(frames, num_frames):
        view = served.view_of(frames, num_frames)
        scores = tf.sigmoid(given.network(view, training=False).logits)
        return scores, *tf.math.top_k(scores, given.top_k)

    count, difference, positives = 0, 0.0, 0
    lists: list[tuple[np.ndarray, ...]] = []
    for frames, num_frames, labels in videos or [generated(given)]:
        classes, predictions = run(frames, num_frames)
        scores, best, best_classes = (x.numpy() for x in scores_of(frames, num_frames))
        count += len(frames)
        for own in (best, np.take_along_axis(scores, classes, -1)):
            apart = np.abs(own - predictions).max(initial=0.0)
            difference = float(np.maximum(difference, apart))  # Or a NaN.
        if labels is not None:
            hits = (
                np.take_along_axis(labels, c, 1) > 0 for c in (classes, best_classes)
            )
            lists.append((predictions, best, *hits))
            positives += int(labels.sum())  # Not in float32: 2^24 at most.
    if not count:
        raise ValueError("--eval_data_pattern: there are no videos to compare on.")
    if not positives:
        return Result(count, difference)
    predictions, best, *hits = map(np.concatenate, zip(*lists, strict=True))
    gaps = (
        average_precision.average_precision(scores, hit, positives)
        for scores, hit in zip((predictions, best), hits, strict=True)
    )
    return Result(count, difference, *gaps)
