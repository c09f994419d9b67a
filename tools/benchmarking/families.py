"""Speed and memory of the other networks, at published sizes."""

import dataclasses
import math
import tempfile

import tensorflow as tf

from tools.benchmarking import end_to_end, network, results
from yt8m_distill import processes, registry
from yt8m_distill.models import builder

# Network → bars of its forward pass and of its step, as shares of the product rate.
BARS = {
    "NeXtVLAD": (0.8, 0.65),
    "NetVLAD": (None, None),
    "AttentionPooling": (None, None),
    "DbofModel": (None, None),
    "TransformerModel": (None, None),
}
# The only one with `quick`.
SMALL = {"AttentionPooling": "AttentionPooling(hidden_size=8)"}
BATCH = 16
# Videos in the batch whose memory is measured; 256 would be too many for most machines
# with a TransformerModel.
MEMORY_BATCH = {"NeXtVLAD": 256}


def _share_rows(name: str, case: network.Case, quick: bool) -> list[results.Row]:
    """Forward pass and step of one network as shares of the product rate."""
    calls = {"product": network.product(tf.float32, quick), **case.calls()}
    seconds = results.interleaved(calls, 1 if quick else 5)
    return network.share_rows(f"{name}, {{}}", case, BARS[name], seconds, quick)


def _specification(name: str, quick: bool) -> str:
    return SMALL[name] if quick else name


def _build(name: str, quick: bool):
    data = end_to_end.run_settings(quick, "unused", "unused").data
    spec = registry.parse(_specification(name, quick))
    return builder.build_network("teacher", spec, data, data.max_frames)


def _memory_row(name: str, quick: bool) -> results.Row:
    """Peak memory of a training step, in a process of its own."""
    batch = 2 if quick else MEMORY_BATCH.get(name, 64)
    task = name, batch, quick
    if quick:  # Without the time of a process; the memory is of no interest.
        step, view = measure_step(*task)
    else:
        ((_, (step, view)),) = processes.call_all(measure_step, [task], 1)
    return results.Row(
        f"{name}, memory of a step of {batch} videos",
        step / 2**30,
        unit="GiB",
        detail=f"{step / view:.1f} times its frames as float32",
    )


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    table = []
    for name in SMALL if quick else BARS:
        made = _build(name, quick)
        table += _share_rows(name, network.Case(made, 2 if quick else BATCH), quick)
        table.append(_memory_row(name, quick))
        del made
        with tempfile.TemporaryDirectory() as folder:
            found = end_to_end.evaluation_rows(
                quick, folder, frames=(30,), teacher=_specification(name, quick)
            )
        table += [dataclasses.replace(r, name=f"{name}, {r.name}") for r in found]
    return table


def measure_step(name: str, batch: int, quick: bool) -> tuple[int, int]:
    """Bytes of memory of a training step, and of its frames as float32."""
    before = results.resident_bytes(peak=False)
    case = network.Case(_build(name, quick), batch)
    case.step()
    step = results.resident_bytes(peak=True) - before
    return step, 4 * math.prod(case.inputs["frames"].shape)
