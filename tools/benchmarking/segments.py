"""The cost of scoring all segments of a video, over one pass over its frames.

Next to the ratio of times is that of the multiply-adds of the same work.
"""

import numpy as np
import tensorflow as tf

from tools.benchmarking import families, results
from yt8m_distill import registry, settings
from yt8m_distill.models import base, builder, sets
from yt8m_distill.serving import segments

# Network → bar. Networks for sets read each frame once; the LSTM projects each frame
# once and has 11 steps for every 5 frames. What comes after the frames is computed once
# per segment.
BARS = {
    "AttentionPooling": 2.0,
    "NeXtVLAD": None,
    "DbofModel": 2.0,
    "HierarchicalLSTM": 2.0,
}
BATCH = 8


def multiply_adds(network, bounds: np.ndarray, frames: int) -> float:
    """Multiply-adds for all parts of a video, over those of one pass."""
    whole = network.multiply_adds(frames)
    if isinstance(network, sets.SetClassifier):
        after = sum(whole.values()) - whole["frames"]
        parts = whole["frames"] + len(bounds) * after
    else:
        lengths = np.diff(bounds)[:, 0].tolist()
        parts = sum(sum(network.multiply_adds(n).values()) for n in lengths)
        shared = base.num_weights(network.lower.kernels()[:1])
        parts -= (sum(lengths) - frames) * shared
    return parts / sum(whole.values())


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    data = settings.DataSettings()
    frames = 30 if quick else data.max_frames
    batch = 1 if quick else BATCH
    random = np.random.default_rng(0)
    shape = (batch, frames, data.feature_size)
    view = {
        "frames": tf.constant(random.integers(0, 256, shape, dtype=np.uint8)),
        "num_frames": tf.fill([batch], frames),
    }
    bounds = segments.Grid(frames).bounds()
    table = []
    for name in families.SMALL if quick else BARS:
        spec = registry.parse(families.SMALL[name] if quick else name)
        network = builder.build_network("teacher", spec, data, frames)
        whole = tf.function(lambda network=network: network(view).logits)
        parts = tf.function(lambda network=network: network.parts_logits(view, bounds))
        calls = {
            "one pass": lambda whole=whole: whole()[0, 0].numpy(),
            "segments": lambda parts=parts: parts()[0, 0, 0].numpy(),
        }
        limit = multiply_adds(network, bounds, frames)
        seconds = results.interleaved(calls, 1 if quick else 5)
        table.append(
            results.Row(
                f"{name}, all {len(bounds)} segments of {frames} frames, over one pass",
                seconds["segments"] / seconds["one pass"],
                BARS[name],
                at_most=True,
                unit="x",
                detail=f"{limit:.2f} by multiply-adds; "
                f"{seconds['segments']:.3f} s and {seconds['one pass']:.3f} s for "
                f"{batch} videos",
            )
        )
    return table
