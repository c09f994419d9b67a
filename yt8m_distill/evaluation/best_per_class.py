"""The best K scores of each class, in bounded memory (numpy only)."""

import numpy as np

# A class is cut to its best K when it holds so many times K.
_SLACK = 1.25


class BestPerClass:
    """Keeps the K highest scores of each class, and what they belong to.

    Of equal scores the earlier is better. Memory does not depend on how many rows come:
    1.25 K entries per class of 4 bytes, or 12 with references.

    Args:
        num_classes: C.
        k: scores that are kept per class.
    """

    def __init__(self, num_classes: int, k: int):
        self.k = k
        self._scores = [np.zeros(0, np.float32)] * num_classes
        self._references: list[np.ndarray] | None = None
        # A score up to here is not among the best K; what comes later loses a tie.
        self._bounds = np.full(num_classes, -np.inf, np.float32)

    def update(self, scores: np.ndarray, references: np.ndarray | None = None) -> None:
        """Takes in some rows.

        Args:
            scores: [N, C] float32, finite.
            references: [N] int64, what each row is; in all calls or in none.
        """
        if references is not None and self._references is None:
            self._references = [np.zeros(0, np.int64)] * len(self._scores)
        columns = np.ascontiguousarray(scores.T, np.float32)
        for label, column in enumerate(columns):
            rows = np.flatnonzero(column > self._bounds[label])
            if not rows.size:
                continue
            self._scores[label] = np.concatenate([self._scores[label], column[rows]])
            if references is not None:
                kept = [self._references[label], references[rows]]
                self._references[label] = np.concatenate(kept)
            if len(self._scores[label]) >= max(_SLACK * self.k, self.k + 1):
                self._cut(label)

    def _cut(self, label: int) -> None:
        """Sorts a class and drops all but its best K."""
        order = np.argsort(-self._scores[label], kind="stable")[: self.k]
        self._scores[label] = self._scores[label][order]
        if self._references is not None:
            self._references[label] = self._references[label][order]
        if len(order) == self.k:
            self._bounds[label] = self._scores[label][-1]

    def best(self, label: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores [n] of a class, descending, n at most K, and their references [n]."""
        self._cut(label)
        found = None if self._references is None else self._references[label]
        return self._scores[label], found

    def references(self) -> np.ndarray:
        """All references that are held, ascending, each once."""
        return np.unique(np.concatenate(self._references or [np.zeros(0, np.int64)]))

    def rename(self, old: np.ndarray, new: np.ndarray) -> None:
        """Replaces references: each of `old`, ascending, by the one of `new`."""
        self._references = [
            new[np.searchsorted(old, held)] for held in self._references or ()
        ] or None
