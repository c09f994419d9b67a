"""The scores of a grid's runs, and the share of the gap that they close."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

from tools.reproduction import (
    archive,
    compare,
    figures,
    measures,
    plan,
    published,
    runs,
)

TEACHER, STUDENT = "teacher", "student"


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
        """Cells whose run here gave another GAP than the one that was known.

        A known teacher is trained again if a student that is missing needs it; the
        other students are those of the one before.

        Returns:
            Cell's name → GAP of the known run and of the one here, best epochs on the
            validation shards.
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

    def runs(self, method: str, k: int | None) -> list[runs.Run]:
        """The runs of a method under all seeds."""
        return [self.run(plan.Cell(method, k, seed)) for seed in self.grid.seeds]

    def scores(
        self, method: str, k: int | None, metric: str, role: str = ""
    ) -> list[float]:
        """A metric, `gap` or `map`, of the finished runs of a method.

        Args:
            role: of another network than the cell's; its validation scores.
        """
        return list(self.by_seed(method, k, metric, role).values())

    def by_seed(
        self, method: str, k: int | None, metric: str, role: str = ""
    ) -> dict[int, float]:
        """Seed → score, of those that are finished; see `scores`."""
        of_cell = role_of(k)
        found = {
            seed: run.evaluation(of_cell, self.test_data_pattern)
            if self.test_data_pattern and not role
            else run.validation(role or of_cell)
            for seed, run in zip(self.grid.seeds, self.runs(method, k), strict=True)
        }
        return {seed: numbers[metric] for seed, numbers in found.items() if numbers}

    def mean(self, method: str, k: int | None, metric: str = "gap") -> float | None:
        """The mean over seeds, or None."""
        return compare.mean(self.scores(method, k, metric))

    def network(self, method: str, k: int | None) -> dict | None:
        """What the manifests say of a method's network, or None."""
        role = role_of(k)
        found = (run.network(role) for run in self.runs(method, k))
        return next((network for network in found if network), None)

    def methods(self, table: str, *kinds: str) -> list[str]:
        """The methods of a table's rows, in its order, each once.

        Args:
            kinds: those of these kinds alone, `baseline` or `student`; none: all.
        """
        names = dict.fromkeys(method for method, _ in self.grid.rows(table))
        kind = {name: m.kind for name, m in published.METHODS.items()}
        return [name for name in names if not kinds or kind.get(name) in kinds]


def share_of(
    results: Results, method: str, k: int, seeds: Sequence[int] | None = None
) -> float | None:
    """Of the means over the seeds that student, Uniform-k and teacher all have.

    Args:
        seeds: of these alone; None: of all.
    """
    rows = ((method, k), (published.UNIFORM, k), (published.TEACHER, None))
    return share(*(results.by_seed(*row, "gap") for row in rows), seeds=seeds)


def share(
    student: Mapping[int, float],
    uniform: Mapping[int, float],
    teacher: Mapping[int, float],
    seeds: Sequence[int] | None = None,
) -> float | None:
    """Of the means over the seeds that all three have, among `seeds` if given."""
    common = set(student) & set(uniform) & set(teacher)
    seeds = common if seeds is None else common.intersection(seeds)
    found = (student, uniform, teacher)
    return compare.gap_share(*(compare.mean([f[s] for s in seeds]) for f in found))
