"""Rows of the benchmark's table, and how time and memory are measured."""

import dataclasses
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number and its bar.

    Attributes:
        name: what was measured.
        value: the number, usually a ratio of two times of the same run.
        bar: the value to reach; None if the number is only reported.
        at_most: whether the bar is an upper limit; otherwise a lower one.
        unit: of the value: empty for a ratio, "x", "s", "MB", ...
        detail: the numbers that the value was computed from.
    """

    name: str
    value: float
    bar: float | None = None
    at_most: bool = False
    unit: str = ""
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar is None:
            return None
        met = self.value <= self.bar if self.at_most else self.value >= self.bar
        return bool(met)  # Values may be of numpy, whose True is not True.


def timed(
    calls: dict[str, Callable[[], object]], rounds: int, untimed: int = 1
) -> dict[str, np.ndarray]:
    """Wall and CPU seconds of each call, [rounds, 2].

    The calls take turns, so conditions are equal. Each is called `untimed` times
    before, which traces its graphs.
    """
    times: dict[str, list] = {name: [] for name in calls}
    for turn in range(untimed + rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            passed = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= untimed:
                times[name].append(passed)
    return {name: np.array(passed) for name, passed in times.items()}


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict:
    """Median wall seconds of each call; see `timed`."""
    found = timed(calls, rounds)
    return {name: float(np.median(times[:, 0])) for name, times in found.items()}


def processor() -> str:
    """The model name of this machine's processor."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def resident_bytes(peak: bool) -> int:
    """Memory of this process: now, or its peak.

    On Linux, ru_maxrss of a new process starts at the memory of its parent, so /proc is
    read there. Other systems only know the peak.
    """
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else 1024 * size
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(lines["VmHWM" if peak else "VmRSS"].split()[0])
