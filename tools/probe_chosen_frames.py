"""Measures what choosing frames by their content could gain, and what a scorer finds.

    python tools/probe_chosen_frames.py --train_dir=run --student_k=1,2,3,5 \\
        --train_data_pattern='train*.tfrecord' --test_data_pattern='test*.tfrecord'

The student of the run reads one frame of each of k equal parts of a video: the middle
one (uniform_center); the one on which the student alone is nearest to its teacher's
answer on all frames, which is an upper limit and no method, since it knows that answer;
the farthest one; and the one that a scorer prefers. The scorer is a small recurrent
network (GRU, both directions) on --feature of all frames. It is trained by ranking
pairs of frames of the videos of --train_data_pattern: of two frames, the one nearer to
the teacher is to have the higher score. Prints the GAP of each on --test_data_pattern.
"""

import argparse
import os
import pathlib
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()

# isort: split
import keras
import numpy as np
import tensorflow as tf

from tools.reproduction import document
from yt8m_distill import settings, structures
from yt8m_distill.data import features, frame_sampling, pipeline
from yt8m_distill.evaluation import average_precision, top_predictions
from yt8m_distill.models import early_exit
from yt8m_distill.training import inputs, trained

MIDDLE, NEAREST, FARTHEST = "middle", "nearest to the teacher", "farthest"
SCORED = "scored by {}"
# Pairs of frames of a video in a step.
_PAIRS = 64


def choose(scores: np.ndarray, num_frames: np.ndarray, k: int) -> np.ndarray:
    """The best frame of each of k equal parts of a video.

    Args:
        scores: [B, T].
        num_frames: [B].
        k: parts; all frames of a video that has no more.

    Returns:
        [B, k] positions, in the order of time; the first min(k, num_frames) are valid.
    """
    positions = np.minimum(np.arange(k), scores.shape[1] - 1)
    chosen = np.tile(positions, [len(scores), 1])
    for row, n in enumerate(num_frames):
        for part in range(k) if n > k else ():
            start, stop = part * n // k, (part + 1) * n // k
            chosen[row, part] = start + scores[row, start:stop].argmax()
    return chosen


class Scorer(keras.Model):
    """A score for each frame: [B, T, D] and [B] numbers of frames → [B, T]."""

    def __init__(self, cells: int, seed: int):
        super().__init__()
        first, second, last = (
            keras.initializers.GlorotUniform(3 * seed + number) for number in range(3)
        )
        recurrent = keras.layers.GRU(
            cells,
            kernel_initializer=first,
            recurrent_initializer=second,
            return_sequences=True,
        )
        self.recurrent = keras.layers.Bidirectional(recurrent)
        self.last = keras.layers.Dense(1, kernel_initializer=last)

    def call(self, inputs):
        frames, num_frames = inputs
        mask = tf.sequence_mask(num_frames, tf.shape(frames)[1])
        return self.last(self.recurrent(frames, mask=mask))[..., 0]


def ranking_loss(scores, distances, num_frames, seed):
    """Mean of |d_t - d_u| log(1 + exp(-(s_t - s_u))) over pairs of which t is nearer.

    Args:
        scores: [B, T] s.
        distances: [B, T] d from the teacher.
        num_frames: [B]; pairs are of these.
        seed: [2], of the pairs.
    """
    shape = [tf.shape(scores)[0], 2 * _PAIRS]
    drawn = tf.random.stateless_uniform(shape, seed)
    counts = tf.cast(num_frames, tf.float32)[:, tf.newaxis]
    pairs = tf.cast(drawn * counts, tf.int32)
    s, d = (tf.gather(x, pairs, batch_dims=1) for x in (scores, distances))
    s, d = (x[:, :_PAIRS] - x[:, _PAIRS:] for x in (s, d))
    return tf.reduce_mean(tf.abs(d) * tf.math.softplus(s * tf.sign(d)))


def train_scorer(
    frames: np.ndarray,
    distances: np.ndarray,
    num_frames: np.ndarray,
    cells: int = 32,
    epochs: int = 10,
    seed: int = 0,
) -> Scorer:
    """A scorer of the frames [N, T, D] of N videos; see ranking_loss."""
    scorer, optimizer = Scorer(cells, seed), keras.optimizers.Adam(3e-3)
    columns = (frames, distances, num_frames)
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    dataset = dataset.shuffle(len(frames), seed).batch(
        32, drop_remainder=len(frames) > 32
    )

    @tf.function
    def step(frames, distances, num_frames, number):
        frames = features.dequantize(frames, num_frames)
        with tf.GradientTape() as tape:
            scores = scorer((frames, num_frames))
            pair = tf.stack([seed, number])
            loss = ranking_loss(scores, distances, num_frames, pair)
        variables = scorer.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )
        return loss

    number = 0
    for epoch in range(epochs):
        losses = []
        for batch in dataset:
            losses.append(step(*batch, tf.constant(number)))
            number += 1
        print(f"Scorer, epoch {epoch + 1}: loss {np.mean(losses):.4f}", file=sys.stderr)
    return scorer


class Probe:
    """A student and its teacher, on all frames of videos.

    Args:
        train_dir: of the student's run, which says where its teacher is.
        batch_size: videos at a time.
    """

    def __init__(self, train_dir: str, batch_size: int):
        def open_network(folder: str, name: str):
            given = settings.CheckpointSettings(
                train_dir=folder, network=name, batch_size=batch_size, num_gpus=0
            )
            return trained.open_network(given)

        self.student = open_network(train_dir, settings.STUDENT)
        self.data = self.student.run.data
        self.data.require_frames("this probe")
        folder = self.student.run.distillation.teacher_checkpoint or train_dir
        self.teacher = open_network(folder, settings.TEACHER)
        self.batch_size = batch_size

    def columns(self, feature: str) -> slice:
        """The place of a feature in the frames."""
        view = pipeline.ViewSpec("all", 0, (feature,))
        (place,) = view.columns(self.data)
        start = sum(self.data.sizes[:place])
        return slice(start, start + self.data.sizes[place])

    def batches(self, pattern: str, flag: str):
        """(batch, its view of all frames, distances [B, T]) of the shards of a flag."""
        opened = self.student.open_shards(pattern, settings.ReadingSettings(), flag)
        views = {structures.ALL: pipeline.ViewSpec("all", self.data.max_frames)}
        for batch in inputs.evaluation_dataset(
            self.student.strategy, opened, views, self.batch_size
        ):
            view = batch[structures.VIEWS][structures.ALL]
            yield batch, view, self._distances(view).numpy()

    @tf.function
    def _distances(self, view) -> tf.Tensor:
        """[B, T]: of the student's answer on each frame from its teacher's on all."""
        frames = view[structures.FRAMES]
        final = self.teacher.network(view).logits
        count = frames.shape[1]
        alone = tf.reshape(frames, [-1, 1, frames.shape[2]])  # [B * T, 1, D]
        single = tf.ones(tf.shape(alone)[0], tf.int32)
        logits = self.student.network(
            {structures.FRAMES: alone, structures.NUM_FRAMES: single}
        ).logits
        found = early_exit.divergence(logits, tf.repeat(final, count, axis=0))
        return tf.reshape(found, [-1, count])

    @tf.function
    def _answers(self, batch, chosen):
        view = batch[structures.VIEWS][structures.ALL]
        count = tf.minimum(view[structures.NUM_FRAMES], chosen.shape[1])
        frames = tf.gather(view[structures.FRAMES], chosen, batch_dims=1)
        chosen_view = {structures.FRAMES: frames, structures.NUM_FRAMES: count}
        probabilities = tf.sigmoid(self.student.network(chosen_view).logits)
        labels, weights = batch[structures.LABELS], batch[structures.WEIGHTS]
        return top_predictions.top_predictions(probabilities, labels, weights, 20)

    def train(self, pattern: str, feature: slice, **how) -> Scorer:
        """A scorer of a feature, trained on these shards."""
        parts = []
        for batch, view, distances in self.batches(pattern, "train_data_pattern"):
            keep = (batch[structures.WEIGHTS].numpy() > 0) & (view["num_frames"] > 0)
            frames = view[structures.FRAMES].numpy()[..., feature]
            counts = view[structures.NUM_FRAMES].numpy()
            parts.append([x[keep] for x in (frames, distances, counts)])
        columns = map(np.concatenate, zip(*parts, strict=True))
        return train_scorer(*columns, **how)

    def gaps(self, pattern: str, numbers, feature: slice, scorer: Scorer, name: str):
        """(k, way of choosing) → GAP on these shards."""
        pools, score = {}, tf.function(scorer)
        for batch, view, distances in self.batches(pattern, "test_data_pattern"):
            num_frames = view[structures.NUM_FRAMES]
            frames = view[structures.FRAMES][..., feature]
            scores = score((features.dequantize(frames, num_frames), num_frames))
            ways = {NEAREST: -distances, FARTHEST: distances, name: scores.numpy()}
            keys = tf.zeros(len(distances), tf.int64)
            for k in numbers:
                middle, _ = frame_sampling.pick(
                    "uniform_center", num_frames, k, self.data.max_frames, keys
                )
                of_ways = {
                    way: choose(values, num_frames.numpy(), k)
                    for way, values in ways.items()
                }
                for way, chosen in {MIDDLE: middle, **of_ways}.items():
                    found = self._answers(batch, tf.cast(chosen, tf.int32))
                    pool = pools.setdefault(
                        (k, way),
                        average_precision.MetricsAccumulator(self.data.num_classes),
                    )
                    arrays = (None if x is None else x.numpy() for x in found)
                    pool.update(average_precision.TopPredictions(*arrays))
        return {key: pool.result().gap for key, pool in pools.items()}


def main() -> None:
    """Arguments → table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_dir", required=True)
    parser.add_argument("--train_data_pattern", required=True)
    parser.add_argument("--test_data_pattern", required=True)
    parser.add_argument("--feature", default="audio")
    parser.add_argument("--student_k", default="1,2,3,5")
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        numbers = settings.SamplingSettings(student_k=given.student_k).budgets
        probe = Probe(given.train_dir, given.batch_size)
        feature = probe.columns(given.feature)
        how = {"cells": given.cells, "epochs": given.epochs, "seed": given.seed}
        scorer = probe.train(given.train_data_pattern, feature, **how)
        name = SCORED.format(given.feature)
        gaps = probe.gaps(given.test_data_pattern, numbers, feature, scorer, name)
    except (ValueError, OSError) as error:
        sys.exit(f"probe_chosen_frames.py: {error}")
    ways = (MIDDLE, name, NEAREST, FARTHEST)
    rows = [[str(k), *(f"{gaps[k, way]:.3f}" for way in ways)] for k in numbers]
    print(document.table_text(document.Table(["k", *ways], rows)))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
