"""Runs that are killed at any moment, and go on to the same bits.

Every run is killed (some of them twice), started again with the same command until it
is finished, and compared with one that nobody disturbed: networks, optimizers and
position in the last state of each phase, the best networks, and all results.
"""

import concurrent.futures
import pathlib
import random
import signal
import tempfile
import time
from typing import NamedTuple

import tqdm

from tools.torturing import results, runs
from yt8m_distill.training import checkpoints

# What is trained; `cache`: with a teacher cache beside the run.
VARIANTS = {
    "teacher": ("--mode=teacher",),
    "serial": ("--mode=serial",),
    "serial with cache": ("--mode=serial", "--teacher_cache"),
    "parallel": ("--mode=parallel",),
}
ANY_MOMENT, WRITING, ASKED = "kill -9", "kill -9 while it writes", "SIGTERM"
TWICE = 0.25  # Share of runs that are killed a second time.
JOBS = 2  # Runs side by side.


class Trial(NamedTuple):
    """One run to kill."""

    variant: str
    kind: str
    number: int


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        lost: what was lost, or None.
        half_written: whether the kill left a checkpoint that was being written.
    """

    lost: str | None
    half_written: bool


def plan(kills: int) -> list[Trial]:
    """As many kills over the variants, every third while something is written.

    One run in five, beyond these, is asked to stop by a signal.
    """
    names = list(VARIANTS)
    trials = [
        Trial(
            names[number % len(names)],
            WRITING if number // len(names) % 3 == 2 else ANY_MOMENT,
            number,
        )
        for number in range(kills)
    ]
    asked = range(kills, kills + max(kills // 5, 1))
    return trials + [Trial(names[n % len(names)], ASKED, n) for n in asked]


def flags_of(variant: str, data: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """The command line of a variant whose files are all in a folder."""
    more = [
        f"{flag}={folder / 'cache'}" if flag == "--teacher_cache" else flag
        for flag in VARIANTS[variant]
    ]
    return runs.training_flags(data, folder / "run", *more)


def is_writing(train_dir: pathlib.Path) -> bool:
    """Whether a checkpoint or a best network is being written."""
    places = (f"*/{checkpoints.CHECKPOINTS}", f"*/{checkpoints.BEST}/*")
    patterns = [f"{place}/{checkpoints.WRITING}" for place in places]
    return any(True for p in patterns for _ in train_dir.glob(p))


def kill(process, trial: Trial, seconds: float, train_dir, rng) -> None:
    """Ends a process at a moment that the random numbers choose."""
    time.sleep(max(seconds, 0))
    if trial.kind == WRITING:
        while process.poll() is None and not is_writing(train_dir):
            time.sleep(1e-4)
        time.sleep(rng.uniform(0, 0.02))
    number = signal.SIGTERM if trial.kind == ASKED else signal.SIGKILL
    process.send_signal(number)


def attempt(
    trial: Trial,
    seed: int,
    data: pathlib.Path,
    folder: pathlib.Path,
    reference: tuple[float, dict],
) -> Outcome:
    """Kills a run, lets it go on to its end and compares it.

    Args:
        trial: which run.
        seed: of the moment.
        data: folder of the shards.
        folder: for this run alone.
        reference: seconds and end of an undisturbed run.
    """
    rng = random.Random(f"{seed} {trial}")
    seconds, expected = reference
    folder.mkdir()
    flags, train_dir = flags_of(trial.variant, data, folder), folder / "run"
    half_written = False
    moments = [rng.uniform(0, seconds)]
    if trial.kind != ASKED and rng.random() < TWICE:
        moments.append(rng.uniform(0, seconds))
    for moment in moments:
        process = runs.start("train", *flags)
        kill(process, trial, moment, train_dir, rng)
        ended = runs.finish(process)
        half_written |= is_writing(train_dir)
        if trial.kind == ASKED:
            lost = _badly_stopped(ended, folder)
            if lost:
                return Outcome(f"after {moment:.1f} s: {lost}", half_written)
        elif ended.code not in (0, -signal.SIGKILL):
            return Outcome(f"exit code {ended.code}: {ended.last_line}", half_written)
    ended = runs.call("train", *flags)
    where = f"killed after {' and '.join(f'{m:.1f}' for m in moments)} s"
    if ended.code:
        return Outcome(f"{where}, it did not go on: {ended.last_line}", half_written)
    different = runs.differences(expected, runs.end_of(train_dir))
    left = runs.leftovers(folder)
    lost = None
    if different:
        lost = (
            f"{where}, it ended with another {different[0]} ({len(different)} in all)"
        )
    elif left:
        lost = f"{where}, it left {left[0]}"
    return Outcome(lost, half_written)


def _badly_stopped(ended: runs.Ended, folder: pathlib.Path) -> str | None:
    """What is wrong with the end of a run that got a SIGTERM."""
    if ended.code == 0:
        return None  # It had finished before.
    if ended.code == -signal.SIGTERM and not ended.said:
        return None  # It came before there was a handler, or anything to lose.
    left = runs.leftovers(folder)
    if left:
        return f"it left {left[0]}"
    return ended.problem("train", 128 + signal.SIGTERM, "SIGTERM", "goes on")


def rows(quick: bool, kills: int = 30, seed: int = 0) -> list[results.Row]:
    """The table's rows; `quick`: one kill of each variant."""
    trials = plan(len(VARIANTS) if quick else kills)
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        data = place / "data"
        runs.make_data(data)
        used = [v for v in VARIANTS if any(t.variant == v for t in trials)]
        bar = tqdm.tqdm(total=len(used) + len(trials), unit="run")
        with bar, concurrent.futures.ThreadPoolExecutor(JOBS) as pool:

            def counted(function, *arguments):
                try:
                    return function(*arguments)
                finally:
                    bar.update()

            def undisturbed(variant):
                folder = place / f"undisturbed {variant}"
                folder.mkdir()
                seconds = runs.succeed("train", *flags_of(variant, data, folder))
                return seconds, runs.end_of(folder / "run")

            references = dict(
                zip(
                    used, pool.map(lambda v: counted(undisturbed, v), used), strict=True
                )
            )

            def tried(trial):
                folder = place / f"trial {trial.number}"
                outcome = attempt(trial, seed, data, folder, references[trial.variant])
                # At once: what is known is not lost with this process.
                tqdm.tqdm.write(
                    f"{trial.number}: {trial.kind}: {trial.variant}: "
                    f"{outcome.lost or 'survived'}"
                    f"{', half written' if outcome.half_written else ''}"
                )
                return outcome

            outcomes = list(pool.map(lambda t: counted(tried, t), trials))
    return _table(trials, outcomes, references)


def _table(trials, outcomes, references) -> list[results.Row]:
    found: dict[tuple, list[Outcome]] = {}
    for trial, outcome in zip(trials, outcomes, strict=True):
        found.setdefault((trial.kind, trial.variant), []).append(outcome)
    table = []
    for (kind, variant), these in sorted(found.items()):
        lost = [outcome.lost for outcome in these if outcome.lost]
        half = sum(outcome.half_written for outcome in these)
        seconds, end = references[variant]
        remark = (
            f"within the {seconds:.0f} s of a run; {len(end)} numbers and results equal"
        )
        if kind != ASKED:
            remark += f"; {half} left a checkpoint half written"
        remark = "; ".join(lost) or remark
        table.append(
            results.Row(
                f"{kind}: {variant}", len(these), len(these) - len(lost), remark
            )
        )
    return table
