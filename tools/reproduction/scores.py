"""The scores of a grid's runs: by seed, the share of the gap that they close, order."""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from tools.reproduction import archive, figures, measures, plan, published, runs

TEACHER, STUDENT = "teacher", "student"
# A difference of GAP that counts where a single seed says nothing about its spread.
OF_ONE_SEED = 0.01


def role_of(k: int | None) -> str:
    """The network whose scores a cell of k frames shows."""
    return TEACHER if k is None else STUDENT


class Results:
    """The scores of a grid.

    Args:
        grid: what is reported.
        output_dir: where its runs are.
        test_data_pattern: take eval.py's numbers on these shards; empty: the best
            epoch's on the validation shards.
        known: runs and measurements that stand in where output_dir has none.
    """

    def __init__(
        self,
        grid: plan.Grid,
        output_dir: str,
        test_data_pattern: str = "",
        known: archive.Archive | None = None,
    ):
        self.grid = grid
        self.output_dir = pathlib.Path(output_dir)
        self.test_data_pattern = test_data_pattern
        self.known = known or archive.Archive()
        self._runs: dict[plan.Cell, runs.Run] = {}

    def run(self, cell: plan.Cell) -> runs.Run:
        """A cell's run, which need not exist."""
        if cell not in self._runs:
            found = runs.Run(plan.train_dir(str(self.output_dir), cell))
            if not found.finished:
                found = self.known.runs.get(cell.name, found)
            self._runs[cell] = found
        return self._runs[cell]

    def runs(self, method: str, k: int | None) -> list[runs.Run]:
        """The runs of a method under all seeds."""
        return [self.run(plan.Cell(method, k, seed)) for seed in self.grid.seeds]

    def times(self) -> dict[str, dict]:
        """Cell's name → what measures.time_network found."""
        path = self.output_dir / measures.TIMING
        times = json.loads(path.read_text()) if path.is_file() else {}
        return {**self.known.times, **times}

    def points(self) -> dict | None:
        """What measures.embed found."""
        path = self.output_dir / figures.EMBEDDING / figures.POINTS
        return json.loads(path.read_text()) if path.is_file() else self.known.points

    def changed(self) -> dict[str, tuple[float, float]]:
        """Cell's name → validation GAP of the known run and of another one here.

        A known teacher is trained again if a student that is missing needs it; the
        other students are those of the one before.
        """
        found = {}
        for cell in self.grid.cells():
            known, role = self.known.runs.get(cell.name), role_of(cell.k)
            if known is None or self.run(cell) is known:
                continue
            before, now = (r.validation(role)["gap"] for r in (known, self.run(cell)))
            if not math.isclose(before, now, rel_tol=1e-6):
                found[cell.name] = (before, now)
        return found

    def to_archive(self) -> archive.Archive:
        """All that is finished or was known."""
        found = {cell.name: self.run(cell) for cell in self.grid.cells()}
        finished = {name: run for name, run in found.items() if run.finished}
        return archive.Archive(
            {**self.known.runs, **finished}, self.times(), self.points()
        )

    def by_seed(
        self, method: str, k: int | None, metric: str, role: str = ""
    ) -> pd.Series:
        """A metric, `gap` or `map`, of the finished runs of a method, by seed.

        Args:
            role: of another network than the cell's; its validation scores.
        """
        of_cell = role_of(k)
        found = {
            seed: run.evaluation(of_cell, self.test_data_pattern)
            if self.test_data_pattern and not role
            else run.validation(role or of_cell)
            for seed, run in zip(self.grid.seeds, self.runs(method, k), strict=True)
        }
        values = {seed: numbers[metric] for seed, numbers in found.items() if numbers}
        return pd.Series(values, dtype=float)

    def network(self, method: str, k: int | None) -> dict | None:
        """What the manifests say of a method's network, or None."""
        found = (run.network(role_of(k)) for run in self.runs(method, k))
        return next((network for network in found if network), None)

    def methods(self, table: str, *kinds: str) -> list[str]:
        """The methods of a table's rows, in its order, each once.

        Args:
            kinds: those of these kinds alone, `baseline` or `student`; none: all.
        """
        names = dict.fromkeys(method for method, _ in self.grid.rows(table))
        kind = {name: m.kind for name, m in published.METHODS.items()}
        return [name for name in names if not kinds or kind.get(name) in kinds]

    def share(
        self, method: str, k: int, seeds: Iterable[int] | None = None
    ) -> float | None:
        """The share of the gap between Uniform-k and the teacher; see `gap_share`."""
        rows = ((method, k), (published.UNIFORM, k), (published.TEACHER, None))
        return gap_share(*(self.by_seed(*row, "gap") for row in rows), seeds=seeds)


def gap_share(student, uniform, teacher, seeds=None) -> float | None:
    """(student - uniform) / (teacher - uniform), of means over their common seeds.

    None where nothing is common or the teacher is no better than Uniform-k.

    Args:
        student, uniform, teacher: scores by seed.
        seeds: of these alone; None: of all.
    """
    common = pd.concat([student, uniform, teacher], axis=1, join="inner")
    if seeds is not None:
        common = common[common.index.isin(list(seeds))]
    student, uniform, teacher = common.mean()
    return (student - uniform) / (teacher - uniform) if teacher > uniform else None


class Pair(NamedTuple):
    """Two methods, the better one of ours first, by mean scores."""

    better: str
    worse: str
    as_published: bool


class Order(NamedTuple):
    """How far the order of the methods is the published one.

    Attributes:
        correlation: Spearman's, in [-1, 1], of the means over the seeds that all
            methods have; None where it is not defined.
        pairs: those that differ clearly.
    """

    correlation: float | None
    pairs: list[Pair]


def order(ours: pd.DataFrame, theirs: pd.Series) -> Order:
    """Compares the order of the methods that both have.

    A pair is clear if the mean of its differences, over the seeds that both have, is
    above their sample standard deviation; with one seed, above OF_ONE_SEED. Pairs that
    were published as equal are left out.

    Args:
        ours: [seeds, methods] scores, NaN where there is none.
        theirs: published score of each method.
    """
    ours = ours[[m for m in ours if m in theirs.index and ours[m].notna().any()]]
    theirs = theirs[list(ours)]
    pairs = []
    for one, other in itertools.combinations(ours, 2):
        apart = (ours[one] - ours[other]).dropna()
        least = apart.std() if len(apart) > 1 else OF_ONE_SEED
        if theirs[one] == theirs[other] or not abs(apart.mean()) > least:
            continue
        better, worse = (one, other) if apart.mean() > 0 else (other, one)
        pairs.append(Pair(better, worse, bool(theirs[better] > theirs[worse])))
    means = ours.dropna().mean()
    if means.nunique() < 2 or theirs.nunique() < 2:
        return Order(None, pairs)
    return Order(float(means.rank().corr(theirs.rank())), pairs)
