"""Rows of the benchmark's table, and how something is timed."""

import dataclasses
import statistics
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number beside its bar.

    Attributes:
        name: what was measured.
        value: the number, mostly a ratio of two times of the same run.
        bar: what it is to reach, or None where it is only reported.
        at_most: whether the bar is an upper limit; otherwise a lower one.
        unit: behind the value: empty for a ratio, "x", "s", "MB", ...
        detail: the numbers it was made of, for the reader.
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
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict:
    """Median seconds of each call, taken in turns so that all see the same machine.

    Each is called once before, untimed: that traces its graphs.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}
