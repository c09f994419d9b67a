"""Scores of a grid's runs: per seed, shares of the gap closed, order of methods."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from tools.reproduction import document, plan, published, runs

# The smallest clear difference of GAP with one seed, where the spread is unknown.
OF_ONE_SEED = 0.01


class Results:
    """The scores of a grid.

    Args:
        grid: the grid of the report.
        archive: its runs and measurements.
        test_data_pattern: the scores are eval.py's on these shards; empty for those of
            the best epoch on the validation shards.
        seeds: some of the grid's; None for all.
    """

    def __init__(
        self,
        grid: plan.Grid,
        archive: runs.Archive,
        test_data_pattern: str = "",
        seeds: Sequence[int] | None = None,
    ):
        self.grid = grid
        self.seeds = grid.seeds if seeds is None else seeds
        self.archive = archive
        self.test_data_pattern = test_data_pattern

    def runs(self, method: str, k: int | str | None) -> list[runs.Run]:
        """The runs of a method with all seeds."""
        cells = (plan.Cell(method, k, seed) for seed in self.seeds)
        return [self.archive.run(cell) for cell in cells]

    def by_seed(
        self,
        method: str,
        k: int | str | None,
        metric: str = "gap",
        role: str = "",
        asked: str = "",
    ) -> pd.Series:
        """A metric, `gap` or `map`, of the finished runs of a method, by seed.

        Args:
            role: another network than the cell's, for its validation scores.
            asked: of eval.py, on the test shards; see plan.asked.
        """
        values = {}
        for cell in (plan.Cell(method, k, seed) for seed in self.seeds):
            run = self.archive.run(cell)
            if self.test_data_pattern and not role:
                numbers = run.evaluations.get(asked or cell.role)
            else:
                numbers = run.validation(role or cell.role)
            if numbers:
                values[cell.seed] = numbers[metric]
        return pd.Series(values, dtype=float)

    def network(self, method: str, k: int | str | None) -> dict:
        """The manifests' entry of a method's network, or nothing."""
        role = plan.Cell(method, k, 0).role
        entries = (run.network(role) for run in self.runs(method, k))
        return next(filter(None, entries), {})

    def multiply_adds(self, method: str, k: int | str | None) -> int | None:
        """Of a method's network, or None."""
        return sum(self.network(method, k).get("multiply_adds", {}).values()) or None

    def lines(self, rows: Iterable[tuple[str, int | None]]) -> pd.DataFrame:
        """The rows (method, k) that have finished runs, as lines of a figure.

        `k`, `frames` and `multiply_adds` are the columns of x.
        """
        points = []
        for method, k in rows:
            gaps, network = self.by_seed(method, k), self.network(method, k)
            if network and not gaps.empty:
                point = {"k": k, "frames": network["frames"]}
                point["multiply_adds"] = self.multiply_adds(method, k)
                points.append({"method": method, **point, **mean_and_spread(gaps)})
        return pd.DataFrame(points)

    def skyline(self) -> float | None:
        """The teacher's mean GAP, or None."""
        gaps = self.by_seed(published.TEACHER, None)
        return None if gaps.empty else gaps.mean()

    def text(self, method: str, k: int | str | None, *metrics: str) -> str:
        """`0.803 ± 0.002 / 0.399 ± 0.001`, with the number of seeds if some miss."""
        parts = []
        for metric in metrics:
            ours = self.by_seed(method, k, metric)
            is_complete = ours.empty or len(ours) == len(self.seeds)
            seeds = "" if is_complete else f" (n={len(ours)})"
            parts.append(document.spread(ours) + seeds)
        return " / ".join(parts)

    def methods(self, table: str) -> list[str]:
        """The distinct methods of a table but the teacher, in order."""
        names = dict.fromkeys(method for method, _ in self.grid.rows(table))
        return [name for name in names if name != published.TEACHER]

    def share(self, method: str, k: int) -> float | None:
        """The share of the gap between Uniform-k and the teacher; see `gap_share`."""
        rows = ((method, k), (published.UNIFORM, k), (published.TEACHER, None))
        return gap_share(*(self.by_seed(*row) for row in rows))


def mean_and_spread(gaps: pd.Series) -> dict[str, float]:
    """`gap` and `spread` of a point of a figure."""
    return {"gap": gaps.mean(), "spread": gaps.std() if len(gaps) > 1 else 0.0}


def published_text(method: str, k: int | None, *metrics: str) -> str:
    """`.803 / .399` of the paper."""
    return " / ".join(document.number(published.score(method, k, m)) for m in metrics)


def gap_share(student, uniform, teacher) -> float | None:
    """(student - uniform) / (teacher - uniform), of the means over common seeds.

    All are scores by seed. None without common seeds, or if the teacher is not better
    than Uniform-k.
    """
    common = pd.concat([student, uniform, teacher], axis=1, join="inner")
    student, uniform, teacher = common.mean()
    return (student - uniform) / (teacher - uniform) if teacher > uniform else None


class Pair(NamedTuple):
    """Two methods, the better one of ours first, by mean scores."""

    better: str
    worse: str
    as_published: bool


class Order(NamedTuple):
    """Agreement of the order of the methods with the published order.

    Attributes:
        correlation: Spearman's, in [-1, 1], of the means over the seeds that all
            methods have; None if undefined.
        pairs: the pairs that differ clearly.
    """

    correlation: float | None
    pairs: list[Pair]


def order(ours: pd.DataFrame, theirs: pd.Series) -> Order:
    """Compares our order of the methods with the published one.

    A pair is clear if the absolute mean of its differences over common seeds exceeds
    their sample standard deviation, or OF_ONE_SEED if there is one seed. Pairs that
    were published as equal are excluded.

    Args:
        ours: [seeds, methods] scores, NaN if missing.
        theirs: published score of each method.
    """
    ours = ours[[m for m in ours if m in theirs.index and ours[m].notna().any()]]
    theirs = theirs[list(ours)]
    pairs = []
    for one, other in itertools.combinations(ours, 2):
        difference = (ours[one] - ours[other]).dropna()
        threshold = difference.std() if len(difference) > 1 else OF_ONE_SEED
        if theirs[one] == theirs[other] or not abs(difference.mean()) > threshold:
            continue
        better, worse = (one, other) if difference.mean() > 0 else (other, one)
        pairs.append(Pair(better, worse, bool(theirs[better] > theirs[worse])))
    means = ours.dropna().mean()
    if means.nunique() < 2 or theirs.nunique() < 2:
        return Order(None, pairs)
    return Order(float(means.rank().corr(theirs.rank())), pairs)
