"""The cost of a request to the exported model, over its `frames` signature."""

import tempfile

import numpy as np
import tensorflow as tf

from tools.benchmarking import results, shards
from yt8m_distill import registry, settings
from yt8m_distill.data import pipeline
from yt8m_distill.models import builder
from yt8m_distill.serving import export, served

_BATCHES = (1, 8, 64)
# A small network: the cost of a request itself shows most there.
_NETWORK = "HierarchicalLSTM(cells=64, layers=1, block_len=5)"


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    sizes = {"feature_sizes": "8,4", "num_classes": 10, "max_frames": 20}
    data = settings.DataSettings(**(sizes if quick else {}))
    k, name = (6, "FrameLevelLogisticModel") if quick else (30, _NETWORK)
    network = builder.build_network("student", registry.parse(name), data, k)
    view = pipeline.ViewSpec("uniform", k)
    with tempfile.TemporaryDirectory() as folder:
        export.export(served.Served(network, data, view, 20), f"{folder}/model")
        model = tf.saved_model.load(f"{folder}/model")  # noqa: TID251 (its own)
        signatures = model.signatures
    record = shards.make_video("video", data, np.random.default_rng(0))
    found = []
    for size in _BATCHES:
        repeats = 5 if quick else max(40, 1000 // size)
        records = tf.constant([record] * size)
        frames = tf.zeros([size, k, data.feature_size])
        counts = tf.fill([size], k)
        calls = {
            "records": lambda r=records: signatures["serving_default"](example_bytes=r),
            "frames": lambda f=frames, n=counts: signatures["frames"](
                frames=f, num_frames=n
            ),
        }
        times = results.timed(calls, repeats, untimed=5)
        walls, cpu = times["records"][:, 0], times["records"][:, 1].mean()
        cpu_frames = times["frames"][:, 1].mean()
        p50, p95 = 1e3 * np.percentile(walls, [50, 95])
        found.append(
            results.Row(
                f"CPU of a request of {size} records, over `frames`",
                cpu / cpu_frames,
                bar=5 if size == 1 else None,
                at_most=True,
                unit="x",
                detail=f"{1e3 * cpu:.2f} and {1e3 * cpu_frames:.2f} ms of CPU; "
                f"wall p50 {p50:.2f} ms, p95 {p95:.2f} ms; "
                f"{data.max_frames} frames per record",
            )
        )
    return found
