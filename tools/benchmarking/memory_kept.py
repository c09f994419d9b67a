"""What it is worth that freed memory stays with the process (see allocator.py)."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from tools.benchmarking import results, shards
from yt8m_distill import allocator, settings

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _train(folder: str, paths: list[str], name: str, steps: int, kept: bool) -> dict:
    """The last log line of a run of train.py, on one thread a pool.

    Args:
        kept: with freed memory kept; otherwise as glibc does it by itself, which a
            variable that changes nothing else says.
    """
    train_dir = os.path.join(folder, name)
    command = [
        sys.executable,
        str(ROOT / "yt8m_distill" / "train.py"),
        f"--train_dir={train_dir}",
        f"--train_data_pattern={','.join(paths)}",
        "--mode=teacher",
        "--teacher=HierarchicalLSTM(cells=256, block_len=5)",
        "--feature_names=audio",
        "--feature_sizes=128",
        "--num_classes=527",
        "--max_frames=10",
        "--batch_size=128",
        f"--max_steps={2 * steps}",
        f"--num_epochs={2 * steps}",
        f"--log_steps={steps}",
        "--steps_per_loop=10",
        "--num_gpus=0",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in allocator.VARIABLES}
    environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    if not kept:
        environment["GLIBC_TUNABLES"] = ""
    subprocess.run(command, check=True, capture_output=True, env=environment)
    path = pathlib.Path(train_dir, "teacher", "metrics.jsonl")
    return json.loads(path.read_text("utf-8").splitlines()[-1])


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` takes seconds, at small sizes and without bars."""
    data = settings.DataSettings(
        feature_names="audio", feature_sizes="128", num_classes=527, max_frames=10
    )
    steps, rounds = (2, 1) if quick else (60, 3)
    rates: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        paths = shards.write(folder, 512, data)
        for number in range(rounds):
            for kept, found in rates.items():
                line = _train(folder, paths, f"{number}{kept}", steps, kept)
                found.append(line["global_step/Examples/Second"])
    ours, theirs = (statistics.median(rates[kept]) for kept in (True, False))
    return [
        results.Row(
            "training a small network, rate with freed memory kept over without",
            ours / theirs,
            unit="x",
            detail=f"{ours:.0f} and {theirs:.0f} videos/s on one thread; 2 x 256 "
            "cells, 10 frames of 128 numbers, batch 128",
        )
    ]
