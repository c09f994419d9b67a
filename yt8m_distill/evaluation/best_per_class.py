"""The best K scores of each class, in bounded memory (numpy only)."""

import numpy as np

# A class is cut to its best K when it holds so many times K.
_SLACK = 1.25

_CLASSES = 64  # Whose references are sorted at a time.


class BestPerClass:
    """Keeps the K highest scores of each class, and what they belong to.

    Of equal scores the earlier is better. Memory does not depend on how many rows come:
    1.25 K entries per class (K and a batch, where that is more) of 4 bytes, or 12 with
    references.

    Args:
        num_classes: C.
        k: scores that are kept per class.
    """

    def __init__(self, num_classes: int, k: int):
        self.k = k
        self._limit = max(int(_SLACK * k), k + 1)
        # Buffers with the first `_held` entries in use, in the order of arrival.
        self._scores = [np.zeros(0, np.float32)] * num_classes
        self._references: list[np.ndarray] | None = None
        self._held = np.zeros(num_classes, np.int64)
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
            held = self._held[label]
            self._append(self._scores, label, column[rows])
            if references is not None:
                self._append(self._references, label, references[rows])
            self._held[label] = held + len(rows)
            if self._held[label] >= self._limit:
                self._cut(label)

    def _append(self, buffers: list, label: int, values: np.ndarray) -> None:
        held, buffer = self._held[label], buffers[label]
        needed = held + len(values)
        if needed > len(buffer):
            # Doubled, so that an entry is copied about once.
            size = max(needed, min(2 * len(buffer), self._limit))
            buffers[label] = np.empty(size, buffer.dtype)
            buffers[label][:held] = buffer[:held]
        buffers[label][held:needed] = values

    def _cut(self, label: int) -> None:
        """Drops all but the best K of a class, without sorting them."""
        scores = self._scores[label][: self._held[label]]
        bound = np.partition(scores, -self.k)[-self.k]
        kept, equal = scores > bound, np.flatnonzero(scores == bound)
        kept[equal[: self.k - np.count_nonzero(kept)]] = True
        for buffers in filter(None, (self._scores, self._references)):
            buffers[label][: self.k] = buffers[label][: len(scores)][kept]
        self._held[label], self._bounds[label] = self.k, bound

    def best(self, label: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores [n] of a class, descending, n at most K, and their references [n]."""
        scores = self._scores[label][: self._held[label]]
        order = np.argsort(-scores, kind="stable")[: self.k]
        if self._references is None:
            return scores[order], None
        return scores[order], self._references[label][order]

    def _held_references(self) -> list[np.ndarray]:
        pairs = zip(self._references or (), self._held, strict=False)
        return [buffer[:held] for buffer, held in pairs]

    def references(self) -> np.ndarray:
        """All references that are held, ascending, each once."""
        held, found = self._held_references(), np.zeros(0, np.int64)
        for begin in range(0, len(held), _CLASSES):  # Not all at once: gigabytes.
            found = np.unique(np.concatenate([found, *held[begin : begin + _CLASSES]]))
        return found

    def rename(self, old: np.ndarray, new: np.ndarray) -> None:
        """Replaces references: each of `old`, ascending, by the one of `new`."""
        for held in self._held_references():
            held[:] = new[np.searchsorted(old, held)]
