"""How fast the other networks are, and what memory they need, at published sizes."""

import dataclasses
import math
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if __name__ == "__main__":  # Run as a file, the root is two folders up.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

import tensorflow as tf

from tools.benchmarking import end_to_end, evaluation, network, results
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
# Videos of the batch whose memory is measured; a TransformerModel on 256 would take
# more than most machines have.
MEMORY_BATCH = {"NeXtVLAD": 256}


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


def _specification(name: str, quick: bool) -> str:
    return SMALL[name] if quick else name


def _build(name: str, quick: bool):
    data = end_to_end.run_settings(quick, "unused", "unused").data
    spec = registry.parse(_specification(name, quick))
    return builder.build_network("teacher", spec, data, data.max_frames)


def _memory_row(name: str, quick: bool) -> results.Row:
    """What a training step takes, in a process of its own."""
    batch = 2 if quick else MEMORY_BATCH.get(name, 64)
    command = [sys.executable, __file__, name, str(batch), str(int(quick))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    step, view = map(int, done.stdout.split()[-2:])
    return results.Row(
        f"{name}, memory of a step of {batch} videos",
        step / 2**30,
        unit="GiB",
        detail=f"{step / view:.1f} times its frames as float32",
    )


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` takes seconds, at small sizes and without bars."""
    table = []
    for name in list(BARS)[:1] if quick else BARS:
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


def main() -> None:
    """The process of one network: prints the bytes of a step and of its frames."""
    name, batch, quick = sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3]))
    before = evaluation.resident_bytes(peak=False)
    case = network.Case(_build(name, quick), batch)
    case.step()
    frames = case.inputs["frames"]
    print(evaluation.resident_bytes(peak=True) - before, 4 * math.prod(frames.shape))


if __name__ == "__main__":
    main()
