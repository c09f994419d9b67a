"""How our scores stand to the published ones: spread, shares, order."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two methods, the better one of ours first, by mean scores."""

    better: str
    worse: str
    as_published: bool


class Order(NamedTuple):
    """How far the order of the methods is the published one.

    Attributes:
        correlation: Spearman's, in [-1, 1]; None for fewer than two methods or
            where all are equal.
        pairs: those that differ clearly.
    """

    correlation: float | None
    pairs: list[Pair]


# A difference of GAP that counts where a single seed says nothing about its spread.
OF_ONE_SEED = 0.01


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 where a single value leaves it unknown."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def gap_share(
    student: float | None, uniform: float | None, teacher: float | None
) -> float | None:
    """(student - uniform) / (teacher - uniform).

    The share of the way from Uniform-k to the teacher that a student closes; None
    where a score is missing or the teacher is no better than Uniform-k.
    """
    if student is None or uniform is None or teacher is None or teacher <= uniform:
        return None
    return (student - uniform) / (teacher - uniform)


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value, from 0; equal values share the mean of their ranks."""
    array = np.asarray(values)
    return [(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's correlation, or None where it is not defined."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _is_clear(differences: Sequence[float]) -> bool:
    """Whether a mean difference is more than its spread over seeds."""
    least = deviation(differences) if len(differences) > 1 else OF_ONE_SEED
    return abs(statistics.fmean(differences)) > least


def order(
    ours: Mapping[str, Mapping[int, float]], theirs: Mapping[str, float]
) -> Order:
    """Compares the order of the methods that both have.

    Ranks are those of the means over the seeds that all methods have. A pair is clear
    if the mean of its differences, over the seeds that both have, is above their sample
    standard deviation; with one seed, above OF_ONE_SEED. Pairs that were published as
    equal are left out.

    Args:
        ours: method → seed → score.
        theirs: method → published score.
    """
    methods = [m for m in ours if ours[m] and m in theirs]
    pairs = []
    for one, other in itertools.combinations(methods, 2):
        common = ours[one].keys() & ours[other].keys()
        differences = [ours[one][seed] - ours[other][seed] for seed in sorted(common)]
        if theirs[one] == theirs[other] or not differences:
            continue
        if _is_clear(differences):
            first = statistics.fmean(differences) > 0
            better, worse = (one, other) if first else (other, one)
            pairs.append(Pair(better, worse, theirs[better] > theirs[worse]))
    common = set.intersection(*(set(ours[m]) for m in methods)) if methods else set()
    if not common:
        return Order(None, pairs)
    means = [statistics.fmean(ours[m][seed] for seed in common) for m in methods]
    return Order(rank_correlation(means, [theirs[m] for m in methods]), pairs)
