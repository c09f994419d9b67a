"""Scores of a grid's runs: per seed, shares of the gap closed, order of methods."""

import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from tools.reproduction import archive, figures, measures, plan, published, runs

# The smallest clear difference of GAP with one seed, where the spread is unknown.
OF_ONE_SEED = 0.01


class Results:
    """The scores of a grid.

    Args:
        grid: the grid of the report.
        output_dir: the folder of its runs.
        test_data_pattern: use eval.py's scores on these shards; empty for those of the
            best epoch on the validation shards.
        known: runs and measurements to use where output_dir has none.
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
        """A cell's run, which may not exist."""
        if cell not in self._runs:
            run = runs.Run(plan.train_dir(str(self.output_dir), cell))
            if not run.finished:
                run = self.known.runs.get(cell.name, run)
            self._runs[cell] = run
        return self._runs[cell]

    def runs(self, method: str, k: int | None) -> list[runs.Run]:
        """The runs of a method with all seeds."""
        return [self.run(plan.Cell(method, k, seed)) for seed in self.grid.seeds]

    def times(self) -> dict[str, dict]:
        """Name of a cell → result of measures.time_network."""
        path = self.output_dir / measures.TIMING
        times = json.loads(path.read_text()) if path.is_file() else {}
        return {**self.known.times, **times}

    def points(self) -> dict | None:
        """The result of measures.embed, or None."""
        path = self.output_dir / figures.EMBEDDING / figures.POINTS
        return json.loads(path.read_text()) if path.is_file() else self.known.points

    def to_archive(self) -> archive.Archive:
        """All finished and known runs."""
        by_name = {cell.name: self.run(cell) for cell in self.grid.cells()}
        finished = {name: run for name, run in by_name.items() if run.finished}
        return archive.Archive(
            {**self.known.runs, **finished}, self.times(), self.points()
        )

    def by_seed(
        self,
        method: str,
        k: int | str | None,
        metric: str,
        role: str = "",
        asked: str = "",
    ) -> pd.Series:
        """A metric, `gap` or `map`, of the finished runs of a method, by seed.

        Args:
            role: another network than the cell's, for its validation scores.
            asked: of eval.py, on the test shards; see plan.asked.
        """
        cell_role = plan.role_of(k)
        scores = {
            seed: run.evaluation(cell_role, self.test_data_pattern, asked)
            if self.test_data_pattern and not role
            else run.validation(role or cell_role)
            for seed, run in zip(self.grid.seeds, self.runs(method, k), strict=True)
        }
        values = {seed: numbers[metric] for seed, numbers in scores.items() if numbers}
        return pd.Series(values, dtype=float)

    def network(self, method: str, k: int | None) -> dict | None:
        """The manifests' entry of a method's network, or None."""
        entries = (run.network(plan.role_of(k)) for run in self.runs(method, k))
        return next((network for network in entries if network), None)

    def methods(self, table: str, *kinds: str) -> list[str]:
        """The distinct methods of a table, in order.

        Args:
            kinds: keep methods of these kinds, `baseline` or `student`; empty for all.
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
    """(student - uniform) / (teacher - uniform), of the means over common seeds.

    None without common seeds, or if the teacher is not better than Uniform-k.

    Args:
        student, uniform, teacher: scores by seed.
        seeds: use only these; None for all.
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
