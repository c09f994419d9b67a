"""How fast the other networks are, at their published sizes."""

import dataclasses
import math
import tempfile

import tensorflow as tf

from tools.benchmarking import end_to_end, network, results
from yt8m_distill import registry
from yt8m_distill.models import builder

# Network → shares of the product rate that its forward pass and step are to reach.
BARS = {
    "NeXtVLAD": (0.8, 0.65),
    "NetVLAD": (None, None),
    "AttentionPooling": (None, None),
    "DbofModel": (None, None),
    "TransformerModel": (None, None),
}
SMALL = {
    "NeXtVLAD": "NeXtVLAD(clusters=4, groups=2, hidden_size=8)",
    "NetVLAD": "NetVLAD(clusters=4, hidden_size=8)",
    "AttentionPooling": "AttentionPooling(hidden_size=8)",
    "DbofModel": "DbofModel(cluster_size=16, hidden_size=8)",
    "TransformerModel": "TransformerModel(width=16, layers=1)",
}
BATCH = 16


def _share_rows(name: str, case: network.Case, quick: bool) -> list[results.Row]:
    """Forward pass and step of one network as shares of the product rate."""
    calls = {
        "product": network.product(tf.float32),
        "forward": lambda: case.forward()[0, 0].numpy(),
        "step": lambda: case.step().numpy(),
    }
    seconds = results.interleaved(calls, 1 if quick else 5)
    rate = 2 * math.prod(network.PRODUCT) / seconds["product"]
    table = []
    for what, bar in zip(("forward", "step"), BARS[name], strict=True):
        speed = case.floating_operations(what == "step") / seconds[what]
        videos = case.inputs["frames"].shape[0]
        table.append(
            results.Row(
                f"{name}, {what}, share of the float32 product rate",
                speed / rate,
                None if quick else bar,
                detail=f"{seconds[what]:.3f} s for {videos} videos; {speed / 1e9:.0f} "
                f"of {rate / 1e9:.0f} GFLOP/s",
            )
        )
    return table


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` takes seconds, at small sizes and without bars."""
    table = []
    data = end_to_end.run_settings(quick, "unused", "unused").data
    for name in BARS:
        spec = registry.parse(SMALL[name] if quick else name)
        made = builder.build_network("teacher", spec, data, data.max_frames)
        table += _share_rows(name, network.Case(made, 2 if quick else BATCH), quick)
        del made
        with tempfile.TemporaryDirectory() as folder:
            found = end_to_end.evaluation_rows(
                quick, folder, frames=(30,), teacher=str(spec)
            )
        table += [dataclasses.replace(r, name=f"{name}, {r.name}") for r in found]
    return table
