"""Measurements of trained networks after all runs: speed, and encodings."""

import itertools
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tools.benchmarking import results
from tools.reproduction import figures, plan, published, runs
from yt8m_distill import settings, structures
from yt8m_distill.evaluation import evaluator
from yt8m_distill.training import inputs, manifest, trained

ROUNDS = 7
# More batches of a large data set would not change a rate or a figure.
TIMED_BATCHES = 50
_MAX_ENCODED = 20_000
# Figure 3: number of classes, and videos per class.
NUM_CLASSES, VIDEOS_PER_CLASS = 5, 100


def make_all(
    grid: plan.Grid, experiments: list[plan.Experiment], output_dir: str
) -> None:
    """Makes the measurements for the tables and Figure 3 on all finished runs."""
    finished = {e.cell: e for e in experiments if runs.open_run(e.train_dir).has(e)}
    seed = grid.seeds[0]

    def of(table):
        cells = [plan.Cell(method, k, seed) for method, k in grid.rows(table)]
        return [finished[cell] for cell in cells if cell in finished]

    for table in ("4", *plan.BY_NETWORK):
        if table in grid.tables:
            time_networks(of(table), output_dir)
    if "figure3" in grid.tables and len(of("figure3")) == 2:
        embed(*of("figure3"), output_dir)


def _open(experiment: plan.Experiment) -> tuple[trained.TrainedNetwork, object, bool]:
    """An experiment's network, its validation videos, whether by an index."""
    training = experiment.run.training
    checkpoint = settings.CheckpointSettings(
        train_dir=experiment.train_dir,
        network=experiment.cell.role,
        batch_size=training.batch_size,
        num_gpus=training.num_gpus,
    )
    network = trained.open_network(checkpoint)
    shards = inputs.open_shards(
        experiment.run, training.validation_data_pattern, "validation_data_pattern"
    )
    dataset = network.dataset(shards, training.batch_size)
    return network, dataset, shards.table is not None


def _forward(network: trained.TrainedNetwork, part: Callable) -> Callable:
    """A function: batch → a part of the outputs of its videos, on the replicas."""
    runner = network.runner
    return runner.on_replicas(lambda batch: part(runner.forward(batch)))


def _model_seconds(network: trained.TrainedNetwork, batch: structures.Batch) -> float:
    """Median seconds per batch, with the batch in memory."""
    forward = _forward(network, lambda outputs: tf.reduce_sum(outputs.logits, 1))
    # local_rows waits for the device.
    calls = {"forward": lambda: network.runner.local_rows(forward(batch))}
    return results.interleaved(calls, ROUNDS)["forward"]


def _machine() -> str:
    """A description of this machine: processors and GPUs."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join([f"{os.cpu_count()} x {results.processor()}", *gpus])


def time_network(experiment: plan.Experiment) -> dict:
    """Times a trained network on the validation shards of its run.

    Returns:
        `checkpoint`, `machine`, `batch_size`, `uses_index`, and two rates:
        `model_videos_per_second`, for one batch in memory; `videos_per_second`, end to
        end from the shards to the metrics, as in eval.py.
    """
    network, dataset, uses_index = _open(experiment)
    data = experiment.run.data
    network_evaluator = evaluator.Evaluator(network.runner, data.num_classes)
    # The first pass traces the graph and fills the file system cache.
    for _ in range(2):
        result = network_evaluator.evaluate(itertools.islice(dataset, TIMED_BATCHES))
    batch_size = experiment.run.training.batch_size
    seconds = _model_seconds(network, next(iter(dataset)))
    return {
        "checkpoint": network.found.prefix,
        "machine": _machine(),
        "batch_size": batch_size,
        "uses_index": uses_index,
        "model_videos_per_second": batch_size / seconds,
        "videos_per_second": result.videos_per_second,
    }


def time_networks(experiments: list[plan.Experiment], output_dir: str) -> None:
    """Times networks one after another; keeps up-to-date entries of timing.json."""
    path = str(pathlib.Path(output_dir) / runs.TIMING)
    times = manifest.read_json(path) if pathlib.Path(path).is_file() else {}
    for experiment in experiments:
        name = experiment.cell.name
        prefix = runs.best_prefix(experiment.train_dir, experiment.cell.role)
        if times.get(name, {}).get("checkpoint") != prefix:
            print(f"Timing {name}.", file=sys.stderr)
            times[name] = time_network(experiment)
            manifest.write_json(path, times)


def encode(experiment: plan.Experiment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encodings [N, E], labels [N, C] bool and ids [N] of validation videos."""
    network, dataset, _ = _open(experiment)
    batches = -(-_MAX_ENCODED // experiment.run.training.batch_size)
    forward = _forward(network, lambda outputs: outputs.encoding)
    parts = []
    for batch in itertools.islice(dataset, batches):
        columns = (
            forward(batch),
            batch[structures.LABELS],
            batch[structures.VIDEO_ID],
            batch[structures.WEIGHTS],
        )
        encodings, labels, ids, weights = (
            network.runner.local_rows(column) for column in columns
        )
        keep = weights > 0
        parts.append((encodings[keep], labels[keep] > 0, ids[keep]))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def choose_videos(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Videos with exactly one of the most frequent classes.

    Args:
        labels: [N, C] bool.

    Returns:
        Indices of at most VIDEOS_PER_CLASS videos per class, and the class of each,
        both [M].
    """
    frequent = np.argsort(-labels.sum(axis=0), kind="stable")[:NUM_CLASSES]
    alone = labels[:, frequent].sum(axis=1) == 1
    chosen = [
        np.flatnonzero(alone & labels[:, label])[:VIDEOS_PER_CLASS]
        for label in frequent
    ]
    return np.concatenate(chosen), np.repeat(frequent, [len(c) for c in chosen])


def embed(teacher: plan.Experiment, student: plan.Experiment, output_dir: str) -> None:
    """Writes Figure 3's points and the projector's files, unless up to date."""
    path = pathlib.Path(output_dir) / runs.POINTS
    source = [runs.best_prefix(e.train_dir, e.cell.role) for e in (teacher, student)]
    if path.is_file() and manifest.read_json(str(path))["source"] == source:
        return
    print("Embedding the encodings of Figure 3.", file=sys.stderr)
    teacher_encodings, labels, ids = encode(teacher)
    student_encodings, _, student_ids = encode(student)
    if not np.array_equal(ids, student_ids):
        raise ValueError("The networks read the validation videos in different orders.")
    rows, classes = choose_videos(labels)
    if len(rows) < 3:
        print("No Figure 3: too few videos with one frequent class.", file=sys.stderr)
        return
    pair = np.stack([teacher_encodings[rows], student_encodings[rows]])  # [2, M, E]
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [i.decode(errors="replace") for i in ids[rows]]
    figures.write_projector(path.parent, pair, classes, names)
    content = {
        "source": source,
        "classes": classes.tolist(),
        "points": figures.tsne(pair).tolist(),
        "student": published.label(student.cell.method),
        "k": student.cell.k,
    }
    manifest.write_json(str(path), content)
