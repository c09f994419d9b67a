"""How our scores stand to the published ones: spread, shares, order."""

import itertools
import math
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
        pairs: those that differ by more than their spread.
    """

    correlation: float | None
    pairs: list[Pair]


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


def order(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, float]) -> Order:
    """Compares the order of the methods that both have.

    A pair differs by more than its spread if the means are further apart than the
    root of the summed variances over seeds. Pairs that were published as equal are
    left out.

    Args:
        ours: method → scores over seeds.
        theirs: method → published score.
    """
    methods = [m for m in ours if ours[m] and m in theirs]
    means = {m: statistics.fmean(ours[m]) for m in methods}
    pairs = []
    for one, other in itertools.combinations(methods, 2):
        better, worse = sorted((one, other), key=means.get, reverse=True)
        spread = math.hypot(deviation(ours[one]), deviation(ours[other]))
        if means[better] - means[worse] > spread and theirs[one] != theirs[other]:
            pairs.append(Pair(better, worse, theirs[better] > theirs[worse]))
    correlation = rank_correlation(
        [means[m] for m in methods], [theirs[m] for m in methods]
    )
    return Order(correlation, pairs)
