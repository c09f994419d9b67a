"""A run that is killed at any moment goes on to the bits of one that was not.

Compared are networks, optimizers and position in the last state of each phase, the best
networks and all results.
"""

import random
import signal
import time

import pytest

from tests import training_helpers
from tests.faults import processes
from yt8m_distill.training import checkpoints, manifest

pytestmark = pytest.mark.faults

VARIANTS = {
    "teacher": ("--mode=teacher",),
    "serial": ("--mode=serial",),
    "cached": ("--mode=serial", "--teacher_cache={}/cache"),
    "parallel": ("--mode=parallel",),
}
# Kind → how often in each variant; a quarter of the killed are killed twice.
KINDS = {"any moment": 5, "while it writes": 3, "SIGTERM": 2}
SHORT = {("cached", "while it writes", 0)}
TRIALS = [
    pytest.param(*trial, marks=() if trial in SHORT else pytest.mark.slow)
    for trial in (
        (variant, kind, number)
        for kind, count in KINDS.items()
        for variant in VARIANTS
        for number in range(count)
    )
]


def flags_of(variant, data, folder) -> list[str]:
    more = [flag.format(folder) for flag in VARIANTS[variant]]
    return processes.training_flags(data, folder / "run", *more)


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory):
    """Variant → seconds and end of an undisturbed run; each is trained once."""
    found = {}

    def get(variant):
        if variant not in found:
            folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
            flags = flags_of(variant, data, folder)
            processes.call("train", *flags).assert_succeeded()
            seconds = time.monotonic() - began
            found[variant] = seconds, training_helpers.end_of(folder / "run")
        return found[variant]

    return get


def has_begun(train_dir, since: float) -> bool:
    """Whether a process that started then has come to the training."""
    path = train_dir / manifest.MANIFEST
    return path.exists() and path.stat().st_mtime > since


def is_writing(train_dir) -> bool:
    places = (checkpoints.CHECKPOINTS, f"{checkpoints.BEST}/*")
    return any(list(train_dir.glob(f"*/{p}/{checkpoints.WRITING}")) for p in places)


@pytest.mark.parametrize("variant, kind, number", TRIALS)
def test_a_killed_run_ends_like_one_that_was_not(
    variant, kind, number, data, undisturbed, tmp_path
):
    rng = random.Random(f"{variant} {kind} {number}")
    seconds, expected = undisturbed(variant)
    flags = flags_of(variant, data, tmp_path)
    asked = kind == "SIGTERM"
    for _ in range(1 if asked or rng.random() > 0.25 else 2):
        started = time.time()
        process = processes.start("train", *flags)
        while process.poll() is None and not has_begun(tmp_path / "run", started):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, seconds))
        while kind == "while it writes" and process.poll() is None:
            if is_writing(tmp_path / "run"):
                time.sleep(rng.uniform(0, 0.02))
                break
            time.sleep(1e-4)
        process.send_signal(signal.SIGTERM if asked else signal.SIGKILL)
        ended = processes.finish(process)
        # It may have finished before.
        if asked and ended.code:
            ended.assert_refused("SIGTERM", code=128 + signal.SIGTERM)
            processes.assert_nothing_left(tmp_path)
        elif not asked:
            assert ended.code in (0, -signal.SIGKILL), ended.lines
    processes.call("train", *flags).assert_succeeded()
    training_helpers.assert_same_end(
        expected, training_helpers.end_of(tmp_path / "run")
    )
    processes.assert_nothing_left(tmp_path)
