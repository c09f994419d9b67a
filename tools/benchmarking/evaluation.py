"""The cost of evaluation besides the networks: time, memory, and the CSV.

`Evaluator.evaluate` runs as in eval.py, but on random logits instead of a network's. So
the top k in the graph, the loss, pooling, the metrics and the CSV are measured, without
reading the shards.
"""

import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tools.benchmarking import results
from yt8m_distill import structures
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import replicas
from yt8m_distill.serving import predictions
from yt8m_distill.training import distribution

TOP_K = 20
LABELS_PER_VIDEO = 3
# Number of batches made in advance; a longer data set repeats them.
MADE = 8


class GivenLogits:
    """Replaces the networks of a run by logits that are part of the batch."""

    def forward(
        self, role: str, views: dict, view: str | None = None
    ) -> structures.Outputs:
        """Logits [B, C] of the view, shifted by one number per video."""
        read = views[view or role]
        return structures.Outputs(read["logits"] + read["shifts"], encoding=None)


class Kept:
    """A writer that keeps (video_ids, classes, scores) of each batch."""

    def __init__(self):
        self.batches = []

    def write(self, *columns: np.ndarray) -> None:
        """Keeps a batch."""
        self.batches.append(columns)


def make_batches(batch_size: int, num_classes: int) -> list[structures.Batch]:
    """Batches that contain logits similar to a trained network's instead of frames.

    A video has three labels; the frequency of class c is proportional to 1 / (c + 10).
    A logit is the log frequency of its class, plus noise, plus 6 for a label.
    """
    random = np.random.default_rng(0)
    frequencies = 1 / (np.arange(num_classes) + 10)
    frequencies /= frequencies.sum()
    batches = []
    for number in range(MADE):
        labels = np.zeros([batch_size, num_classes], np.float32)
        for row in labels:
            row[random.choice(num_classes, LABELS_PER_VIDEO, False, frequencies)] = 1
        noise = random.normal(0, 1.5, labels.shape)
        logits = np.log(LABELS_PER_VIDEO * frequencies) + noise + 6 * labels
        ids = [f"{number * batch_size + row:04x}" for row in range(batch_size)]
        batches.append(
            {
                structures.VIDEO_ID: tf.constant(ids),
                structures.LABELS: tf.constant(labels),
                structures.WEIGHTS: tf.ones([batch_size]),
                structures.VIEWS: {
                    "student": {"logits": tf.constant(logits, "float32")}
                },
            }
        )
    return batches


def repeated(made: list[structures.Batch], count: int) -> Iterator[structures.Batch]:
    """`count` batches: these batches in turn, each time with other scores.

    Without the shifts, most of the pooled scores would be equal and easy to sort.
    """
    random = np.random.default_rng(1)
    for number in range(count):
        batch = made[number % len(made)]
        logits = batch[structures.VIEWS]["student"]["logits"]
        shifts = tf.constant(random.normal(0, 0.5, [len(logits), 1]), tf.float32)
        views = {"student": {"logits": logits, "shifts": shifts}}
        yield {**batch, structures.VIEWS: views}


def measure_data_set(num_batches: int, batch_size: int, num_classes: int) -> dict:
    """Time and memory of evaluating these batches, and time of writing their CSV.

    The process should do nothing else, since its peak memory is measured.
    """
    made = make_batches(batch_size, num_classes)
    strategy = distribution.mirrored_strategy(["CPU:0"])
    runner = replicas.Runner(GivenLogits(), "student", strategy)
    judge = evaluator.Evaluator(runner, num_classes, TOP_K)
    kept = Kept()
    judge.evaluate(repeated(made, MADE), writer=kept)  # Traces the graph.
    before = results.resident_bytes(peak=False)
    began, cpu_began = time.perf_counter(), time.process_time()
    found = judge.evaluate(repeated(made, num_batches)).metrics
    seconds = time.perf_counter() - began
    cpu_seconds = time.process_time() - cpu_began
    memory = results.resident_bytes(peak=True) - before
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = os.path.join(folder, "predictions.csv")
        with predictions.PredictionWriter(path) as writer:
            for number in range(num_batches):
                writer.write(*kept.batches[number % MADE])
        csv_seconds = time.perf_counter() - began
        csv_bytes = os.path.getsize(path)
    return {
        "num_videos": found.num_videos,
        "gap": found.gap,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": memory,
        "csv_seconds": csv_seconds,
        "csv_bytes": csv_bytes,
    }


def rows(quick: bool) -> list[results.Row]:
    """Evaluation of all validation videos of YouTube-8M; `quick`: of a few."""
    # 4297 * 256 is the first multiple of 256 above 1.1 million.
    sizes = (40, 64, 50) if quick else (4297, 256, 3862)
    found = measure_data_set(*sizes)
    data_set = f"{found['num_videos']:,} videos x {sizes[2]} classes, top {TOP_K}"
    per_video = 1e6 / found["num_videos"]
    return [
        results.Row(
            "evaluating a data set, without the model",
            found["seconds"],
            bar=60,
            at_most=True,
            unit="s",
            detail=f"{data_set}; {per_video * found['seconds']:.1f} us per video, "
            f"{found['cpu_seconds']:.0f} s of CPU time on {os.cpu_count()} cores; "
            f"GAP of the random logits {found['gap']:.3f}",
        ),
        results.Row(
            "memory of that evaluation",
            found["memory"] / results.MEBIBYTE,
            bar=1024,
            at_most=True,
            unit="MB",
            detail=f"{data_set}; peak minus the memory at the start",
        ),
        results.Row(
            "writing the CSV of that data set",
            found["csv_seconds"],
            unit="s",
            detail=f"{found['csv_bytes'] / results.MEBIBYTE:.0f} MB; "
            f"{per_video * found['csv_seconds']:.1f} us per video",
        ),
    ]
