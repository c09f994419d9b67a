"""The effect of mixed_bfloat16 on the metrics of a trained network."""

import os
import pathlib
import subprocess
import sys
import tempfile

import keras

from tools.benchmarking import results
from yt8m_distill import settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.training import distribution, trained, trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _make_data(folder: str, quick: bool) -> None:
    sizes = (64, 32, 4, 20) if quick else (1500, 500, 4, 120)
    train, validate, test, frames = map(str, sizes)
    command = [
        sys.executable,
        str(ROOT / "tools" / "make_synthetic_records.py"),
        f"--output_dir={folder}/data",
        f"--num_train={train}",
        f"--num_validate={validate}",
        f"--num_test={test}",
        f"--max_frames={frames}",
        "--num_classes=50",
        "--feature_sizes=128,32",
    ]
    subprocess.run(command, check=True, capture_output=True)


def _gap(run: settings.RunSettings, policy: str) -> float:
    """GAP of the trained network with its products in a policy's precision."""
    keras.mixed_precision.set_global_policy(policy)
    strategy = distribution.mirrored_strategy(["CPU:0"])
    given = settings.CheckpointSettings(train_dir=run.training.train_dir)
    network = trained.open_network(given, strategy=strategy)
    keras.mixed_precision.set_global_policy(policy)
    judge = evaluator.Evaluator(
        network.networks, network.role, strategy, run.data.num_classes
    )
    dataset = network.dataset(run.training.validation_data_pattern, given.batch_size)
    return judge.evaluate(dataset).metrics.gap


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        _make_data(folder, quick)
        cells = 4 if quick else 128
        run = settings.RunSettings.from_dict(
            {
                "mode": "teacher",
                "teacher": f"HierarchicalLSTM(cells={cells}, block_len=20)",
                "feature_sizes": "128,32",
                "num_classes": 50,
                "max_frames": 20 if quick else 120,
                "batch_size": 32,
                "num_epochs": 1 if quick else 6,
                "base_learning_rate": 0.002,
                "train_dir": os.path.join(folder, "run"),
                "train_data_pattern": f"{folder}/data/train*.tfrecord",
                "validation_data_pattern": f"{folder}/data/validate*.tfrecord",
            }
        )
        trainer.train(run, distribution.mirrored_strategy(["CPU:0"]))
        try:
            gap = {p: _gap(run, p) for p in ("float32", "mixed_bfloat16")}
        finally:
            keras.mixed_precision.set_global_policy("float32")
    return [
        results.Row(
            "GAP under mixed_bfloat16, distance from float32's",
            abs(gap["mixed_bfloat16"] - gap["float32"]),
            0.002,
            at_most=True,
            detail=f"{gap['mixed_bfloat16']:.5f} and {gap['float32']:.5f}, a teacher "
            "trained in float32",
        )
    ]
