"""tools/paper_size_step.py takes its step, here with smaller layers."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_tool_takes_a_step_and_says_what_it_cost():
    cells, classes = 16, 50
    done = subprocess.run(
        [
            sys.executable,
            "tools/paper_size_step.py",
            f"--cells={cells}",
            f"--num_classes={classes}",
            "--batch_size=4",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # Four LSTM layers, whose inputs are a frame, the layer below, and a block's
    # 4 * cells states.
    inputs = (1152, cells, 4 * cells, cells)
    layers = sum(4 * cells * (size + cells + 1) for size in inputs)
    head = (4 * cells + 1) * classes
    assert f"teacher: {layers + head:,} parameters, 300 frames" in done.stdout
    assert f"student: {layers + head:,} parameters, 30 frames" in done.stdout
    # The classifier is shared.
    assert f"together: {2 * layers + head:,} parameters" in done.stdout
    assert re.search(r"step 0: [\d.]+ s.*; finite: True", done.stdout)
    for part in ("teacher/ce", "student/ce", "student/rep", "student/pred"):
        assert re.search(rf"{part}_loss = [\d.e-]+\n", done.stdout), part
    assert re.search(r"peak memory: \d+\.\d\d GiB", done.stdout)
