"""Speed of evaluation and of training epochs, end to end."""

import os
import tempfile

import tensorflow as tf

from tools.benchmarking import results, shards
from yt8m_distill import settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import builder, replicas
from yt8m_distill.serving import predictions
from yt8m_distill.training import distribution, inputs, modes, trainer


def run_settings(quick: bool, folder: str, pattern: str, **changes):
    """The settings of a run at published size, or at a small one."""
    values = {
        "teacher": "HierarchicalLSTM(block_len=20)",
        "train_dir": os.path.join(folder, "unused"),
        "train_data_pattern": pattern,
        "student_k": 30,
        "mode": "baseline",
        "batch_size": 32,
        "num_epochs": 3,
        # So that the work between epochs is not measured.
        "log_steps": 1_000_000,
        "steps_per_loop": 1_000_000,
    }
    small = {
        "teacher": "HierarchicalLSTM(cells=8, block_len=20)",
        "feature_sizes": "16,4",
        "num_classes": 20,
        "max_frames": 60,
        "batch_size": 8,
        "num_epochs": 2,
    }
    return settings.RunSettings.from_dict(
        {**values, **(small if quick else {}), **changes}
    )


def _evaluation(run, role: str, paths, folder: str):
    """A callable that evaluates a network and writes its CSV, as eval.py does."""
    strategy = distribution.mirrored_strategy(["CPU:0"])
    with strategy.scope():
        networks = builder.build_networks([modes.networks(run)[role]], run.data)
    runner = replicas.Runner(networks, role, strategy)
    judge = evaluator.Evaluator(runner, run.data.num_classes)
    path = os.path.join(folder, f"{role}.csv")

    def call():
        # As in eval.py, the dataset is created and read once.
        dataset = inputs.evaluation_dataset(
            strategy,
            inputs.open_shards(run, paths, "paths"),
            modes.views_of(run, [role]),
            run.training.batch_size,
        )
        with predictions.PredictionWriter(path) as writer:
            judge.evaluate(dataset, writer=writer)

    network = networks.network(role)
    return call, sum(network.multiply_adds(network.max_frames).values())


def evaluation_rows(
    quick: bool,
    folder: str,
    frames: tuple[int, ...] = (30, 10),
    **changes,
) -> list[results.Row]:
    """Time of evaluating a student over its teacher, with eval.py's batch size.

    Args:
        quick, folder: see `rows`.
        frames: k of the students.
        **changes: settings, such as another teacher.
    """
    batch_size = settings.CheckpointSettings.batch_size
    size = changes if quick else {"batch_size": batch_size, **changes}
    run = run_settings(quick, folder, "unused", **size)
    num_videos = 16 if quick else 512
    paths = shards.write(folder, num_videos, run.data)
    calls, work = {}, {}
    calls["teacher"], work["teacher"] = _evaluation(run, "teacher", paths, folder)
    for k in frames:
        student_run = run_settings(quick, folder, "unused", student_k=k, **size)
        calls[k], work[k] = _evaluation(student_run, "student", paths, folder)
    seconds = results.interleaved(calls, 1 if quick else 2)
    return [
        results.Row(
            f"evaluating a student of k={k} end to end, time over the teacher's",
            seconds[k] / seconds["teacher"],
            round(work[k] / work["teacher"] + 0.03, 3),
            at_most=True,
            detail=f"{seconds[k]:.2f} s and {seconds['teacher']:.2f} s, {num_videos} "
            f"videos in batches of {run.training.batch_size}; multiply-adds "
            f"{work[k] / work['teacher']:.3f} of the teacher's",
        )
        for k in frames
    ]


def training_rows(quick: bool, folder: str) -> list[results.Row]:
    """Time of a serial epoch over a baseline epoch, with and without a cache."""
    data = run_settings(quick, folder, "unused").data
    num_videos = 32 if quick else 256
    paths = shards.write(folder, num_videos, data)
    pattern = ",".join(paths)
    strategy = distribution.mirrored_strategy(["CPU:0"])
    teacher = run_settings(
        quick,
        folder,
        pattern,
        mode="teacher",
        train_dir=os.path.join(folder, "teacher"),
        max_steps=1,
    )
    trainer.train(teacher, strategy)
    seconds = {}
    variants = {
        "baseline": {"mode": "baseline"},
        "cache": {"mode": "serial", "teacher_cache": os.path.join(folder, "cache")},
        "no cache": {"mode": "serial", "num_epochs": 2},
    }
    for name, changes in variants.items():
        if changes["mode"] == "serial":
            changes["teacher_checkpoint"] = teacher.training.train_dir
        train_dir = os.path.join(folder, name.replace(" ", "_"))
        run = run_settings(quick, folder, pattern, train_dir=train_dir, **changes)
        *_, phase = trainer.train(run, strategy).values()
        # The first epoch includes tracing.
        seconds[name] = min(phase["epoch_seconds"][1:])
        os.sync()
    return [
        results.Row(
            f"serial training epoch (k=30, ce + rep + pred) {what}, over the "
            "baseline's",
            seconds[name] / seconds["baseline"],
            bar,
            at_most=True,
            unit="x",
            detail=f"{seconds[name]:.2f} s and {seconds['baseline']:.2f} s for "
            f"{num_videos} videos",
        )
        for name, what, bar in (
            ("cache", "with a teacher cache", 1.3),
            ("no cache", "without", None),
        )
    ]


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    table = []
    for part in (evaluation_rows, training_rows):
        with tempfile.TemporaryDirectory() as folder:
            table += part(quick, folder)
        tf.keras.backend.clear_session()
    return table
