"""The cost of an exported network on a small machine, in each format.

The encoders have random weights and a classifier that is fitted to videos with planted
classes, so that a loss of GAP can be measured.
"""

import os
import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf

from tools.benchmarking import results
from yt8m_distill import registry, settings
from yt8m_distill.data import features, pipeline
from yt8m_distill.models import builder
from yt8m_distill.serving import export, parity, served

# Network, frames.
_CASES = (
    ("HierarchicalLSTM(cells=256, block_len=5)", 10),
    ("HierarchicalLSTM(cells=256, block_len=5)", 30),
    ("LstmModel(cells=256, head='logistic')", 30),
    ("AttentionPooling(hidden_size=512)", 30),
    ("NeXtVLAD(clusters=32, hidden_size=512)", 30),
    ("NetVLAD(clusters=32, hidden_size=256, head='logistic')", 30),
    ("DbofModel(cluster_size=2048, hidden_size=512, head='logistic')", 30),
    ("TransformerModel(width=256, layers=2)", 30),
)
_QUICK = (("AttentionPooling(hidden_size=8)", 4),)
_BATCH = 32
_PLANTED = 100  # Classes that occur.
_NOISE = 8.0  # In units of a class's direction, so that GAPs are far from 1.


def _videos(data: settings.DataSettings, k: int, count: int) -> parity.Videos:
    """Videos whose frames are the sums of their classes' directions, and noise."""
    random = np.random.default_rng(0)
    planted = min(_PLANTED, data.num_classes)
    directions = random.normal(size=(planted, data.feature_size))
    labels = np.zeros([count, data.num_classes], np.float32)
    for row in labels:
        row[random.choice(planted, random.integers(1, 4), replace=False)] = 1
    frames = (labels[:, :planted] @ directions)[:, np.newaxis]
    frames = frames + _NOISE * random.normal(size=(count, k, data.feature_size))
    frames = np.clip(127 + 6 * frames, 0, 255).astype(np.uint8)
    return parity.Videos(frames, np.full([count], k, np.int32), labels)


def _parts(videos: parity.Videos, size: int):
    for start in range(0, len(videos.frames), size):
        yield parity.Videos(*(part[start : start + size] for part in videos))


def _fit_classifier(network, videos: parity.Videos) -> None:
    """Ridge regression of the labels on the encodings, as logits around 0.

    After a pass that gives batch norm the statistics of the videos, as training does:
    the encodings of NeXtVLAD and NetVLAD hardly differ between videos otherwise, and
    the classifier has such weights that rounding moves the scores.
    """
    views = [
        {"frames": part.frames, "num_frames": part.num_frames}
        for part in _parts(videos, _BATCH)
    ]
    for view in views:
        network(view, training=True)
    found = [network(view).encoding for view in views]
    x = np.concatenate(found).astype(np.float64)
    mean, y = x.mean(axis=0), videos.labels
    x = x - mean
    covariance = x.T @ x
    ridge = 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    kernel = 8 * np.linalg.solve(covariance + ridge, x.T @ (y - y.mean(axis=0)))
    network.head.kernel.assign(kernel.astype(np.float32))
    bias = 8 * y.mean(axis=0) - 5 - mean @ kernel
    network.head.bias.assign(bias.astype(np.float32))


def _megabytes(folder: str) -> float:
    files = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files if "assets.extra" not in p.parts) / 1e6


def _call(name: str, folder: str, run: parity.Run, videos: parity.Videos):
    """A call of the model alone; a SavedModel receives dequantized frames."""
    if name != "saved_model":
        return lambda: run(videos.frames, videos.num_frames)
    model = tf.saved_model.load(folder)  # noqa: TID251 (its own)
    counts = tf.constant(videos.num_frames)
    frames = features.dequantize(videos.frames, counts, *model.steps())
    signature = model.signatures["frames"]
    return lambda: signature(frames=frames, num_frames=counts)["predictions"].numpy()


def _rows(text: str, k: int, data: settings.DataSettings, quick: bool):
    spec = registry.parse(text)
    network = builder.build_network("student", spec, data, k)
    videos = _videos(data, k, 48 if quick else 768)
    half = len(videos.frames) // 2
    _fit_classifier(network, parity.Videos(*(part[:half] for part in videos)))
    evaluated = parity.Videos(*(part[half:] for part in videos))
    view = pipeline.ViewSpec("uniform", k)
    given = served.Served(network, data, view, min(20, data.num_classes))
    one, many = (parity.Videos(*(p[:n] for p in evaluated)) for n in (1, _BATCH))
    singles, batches, facts = {}, {}, {}
    with tempfile.TemporaryDirectory() as root:
        for name, chosen in export.FORMATS.items():
            folder = os.path.join(root, name)
            try:
                chosen.write(given, folder)
            except ValueError as error:  # A package is missing.
                print(error)
                continue
            began = time.perf_counter()
            run = chosen.run(folder)
            run(one.frames, one.num_frames)
            cold = 1e3 * (time.perf_counter() - began)
            found = parity.compare(given, run, _parts(evaluated, _BATCH))
            facts[name] = (
                f"opened and first answer {cold:.0f} ms; {_megabytes(folder):.1f} MB; "
                f"largest difference of a score {found.difference:.1e}; GAP "
                f"{found.gap:.4f}, {found.gap - found.gap_of_network:+.4f}"
            )
            singles[name] = _call(name, folder, run, one)
            if not name.startswith("litert"):
                batches[name] = _call(name, folder, run, many)
        alone = results.timed(singles, 3 if quick else 100, untimed=3)
        together = results.timed(batches, 2 if quick else 20, untimed=3)
    rows = []
    for name, times in alone.items():
        p50, p95 = 1e3 * np.percentile(times[:, 0], [50, 95])
        detail = f"p95 {p95:.2f} ms; CPU {1e3 * np.median(times[:, 1]):.2f} ms; "
        if name in together:
            batch = 1e3 * np.median(together[name][:, 0])
            detail += f"{_BATCH} videos {batch:.1f} ms; "
        title = f"{text}, k={k}, {name}: p50 of a video"
        rows.append(results.Row(title, p50, unit="ms", detail=detail + facts[name]))
    if "litert" in alone:
        wall, cpu = (
            np.median(alone["saved_model"][:, n]) / np.median(alone["litert"][:, n])
            for n in (0, 1)
        )
        rows.append(
            results.Row(
                f"{text}, k={k}: SavedModel over LiteRT, p50",
                wall,
                bar=1.3,
                at_most=True,
                unit="x",
                detail=f"CPU {cpu:.2f} times; called from Python",
            )
        )
    return rows


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    tf.random.set_seed(0)
    sizes = {"feature_sizes": "8,4", "num_classes": 200, "max_frames": 20}
    data = settings.DataSettings(**(sizes if quick else {}))
    cases = _QUICK if quick else _CASES
    return [row for text, k in cases for row in _rows(text, k, data, quick)]
