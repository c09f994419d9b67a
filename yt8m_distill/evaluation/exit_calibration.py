"""Calibrates early exit: answers at all budgets → weights, thresholds, scales.

All that is fitted takes every other video; the regret of each threshold is measured on
the rest, so that its bound holds for new videos. No labels are needed but for the
scales.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import early_exit, replicas

_NUM_THRESHOLDS = 257
# L2 penalty of the regression, on standardized signals: gains are small and noisy, and
# the largest of several predictions is taken. See docs/budgets.md.
_RIDGE = 1000.0
_PRIOR = 20.0  # Weight of the prior of scale 1 and offset 0, in predictions.


class Answers(NamedTuple):
    """What is kept of N videos' answers at n budgets.

    Attributes:
        signals: [N, n, F] float32, of the rule.
        divergences: [N, n], KL divergence from the answer at the largest budget.
        regrets: [N, n] in [0, 1].
        logits: [N, n, k], the best ones.
        hits: [N, n, k] bool, whether each is a label of the video.
        num_frames: [N] int32, frames of each video, at most the largest budget.
        has_labels: [N] bool.
    """

    signals: np.ndarray
    divergences: np.ndarray
    regrets: np.ndarray
    logits: np.ndarray
    hits: np.ndarray
    num_frames: np.ndarray
    has_labels: np.ndarray


def collect(
    runner: replicas.Runner,
    budgets: tuple[int, ...],
    rule: str,
    dataset,
) -> Iterator[Answers]:
    """Answers of each batch of a distributed dataset, without padding rows.

    Args:
        runner: the network; its view has the frames of the largest budget, in the order
            of early_exit.SAMPLER.
        budgets: numbers of frames, rising.
        rule: name in early_exit.RULES.
        dataset: yields global batches.
    """
    networks, role, _ = runner
    network, signals_of = networks.network(role), early_exit.RULES.get(rule)

    def replica_step(batch) -> Answers:
        view = batch[structures.VIEWS][networks.views[role]]
        logits, state = [], None
        for start, stop in zip((0, *budgets), budgets, strict=False):
            answer, state = early_exit.read_on(network, view, start, stop, state)
            logits.append(answer)
        top = [early_exit.top(answer) for answer in logits]
        signals = map(signals_of, logits, [None, *logits])
        labels = batch[structures.LABELS]
        hits = [tf.gather(labels, best.indices, batch_dims=1) > 0 for best in top]
        columns = (
            signals,
            [early_exit.divergence(answer, logits[-1]) for answer in logits],
            [early_exit.regret(answer, logits[-1]) for answer in logits],
            [best.values for best in top],
            hits,
        )
        return Answers(
            *(tf.stack(list(column), axis=1) for column in columns),
            view[structures.NUM_FRAMES],
            batch[structures.LABEL_WEIGHTS] > 0,
        )

    step, local = runner.on_replicas(replica_step), runner.local_rows
    for batch in dataset:
        keep = local(batch[structures.WEIGHTS]) > 0
        yield Answers(*(local(column)[keep] for column in step(batch)))


class Exits:
    """Where videos stop under each threshold.

    Args:
        confidences: [N, n - 1] at all budgets but the largest.
        num_frames: [N].
        budgets: [n].
    """

    def __init__(self, confidences: np.ndarray, num_frames: np.ndarray, budgets):
        # A video has stopped at a budget or before if one of its confidences so far
        # has reached the threshold.
        self._best = np.maximum.accumulate(confidences.astype(np.float64), axis=1)
        self.used = np.minimum(num_frames[:, np.newaxis], np.array(budgets))  # [N, n]
        # It stops where it has no further frames, too.
        self._best[np.diff(self.used) == 0] = np.inf

    def means(self, values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """The mean over the videos of a number where they stop, for each threshold.

        Args:
            values: [N, n], the number at each budget.
            thresholds: [T], rising.

        Returns:
            [T] float64.
        """
        # A video leaves a budget for the next one from this threshold on.
        first = np.searchsorted(thresholds, self._best, side="right")
        changes = np.diff(values.astype(np.float64), axis=1)
        count = len(thresholds)
        sums = np.bincount(first.ravel(), changes.ravel(), count + 1)[:count]
        return (values[:, 0].sum(dtype=np.float64) + np.cumsum(sums)) / len(values)

    def thresholds(self, count: int) -> np.ndarray:
        """At most `count` rising thresholds, evenly spaced in mean frames.

        They lie halfway between two confidences, out of reach of rounding.
        """
        gains = np.diff(self.used)  # Frames that going on costs.
        values, gains = self._best[gains > 0], gains[gains > 0]
        order = np.argsort(values)
        values, gains = values[order], gains[order]
        between = (values[1:] + values[:-1]) / 2
        between = np.concatenate([[values[0] - 1], between, [values[-1] + 1]])
        means = np.concatenate([[0], np.cumsum(gains)])
        places = np.searchsorted(means, np.linspace(0, means[-1], count))
        return np.unique(between[places])


def upper_bound(mean, deviation, count: int, confidence: float):
    """Empirical Bernstein bound of the expectation of numbers in [0, 1].

    mean + deviation * sqrt(2 ln(2/δ) / n) + 7 ln(2/δ) / (3 (n - 1)), δ = 1 - confidence
    (Maurer and Pontil, 2009, theorem 4).

    Args:
        mean, deviation: of the sample, the latter with n - 1 in its denominator.
        count: n.
        confidence: probability with which it holds.
    """
    log = math.log(2 / (1 - confidence))
    return mean + deviation * math.sqrt(2 * log / count) + 7 * log / (3 * (count - 1))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The result, as it is stored.

    Attributes:
        checkpoint: whose answers these were.
        num_videos: all of them.
        num_held_out: those on which the regrets were measured.
        policy: of that checkpoint.
        thresholds: rising.
        mean_frames: under each threshold, on all videos.
        mean_regrets, deviations: of the regret under each, on the held-out videos.
    """

    checkpoint: str
    num_videos: int
    num_held_out: int
    policy: early_exit.Policy
    thresholds: list[float]
    mean_frames: list[float]
    mean_regrets: list[float]
    deviations: list[float]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """The inverse of `dataclasses.asdict`.

        Raises:
            TypeError, ValueError, KeyError: if `values` are not those of one.
        """
        policy = early_exit.Policy(**values["policy"])
        if policy.rule not in early_exit.RULES:
            raise ValueError(
                f"there is no exit rule {policy.rule}; its module is one for "
                "--import_modules"
            )
        return cls(**{**values, "policy": policy})

    def for_mean_frames(self, mean_frames: float) -> int:
        """The threshold with the nearest mean number of frames, as its number.

        Raises:
            ValueError: if it is out of reach.
        """
        low, high = self.mean_frames[0], self.mean_frames[-1]
        if not low <= mean_frames <= high:
            raise ValueError(
                f"--mean_frames={mean_frames:g} is out of reach: the "
                f"{self.num_videos} calibration videos take {low:.4g} to {high:.4g}."
            )
        return int(np.abs(np.subtract(self.mean_frames, mean_frames)).argmin())

    def for_max_regret(self, max_regret: float, confidence: float) -> int:
        """The threshold with the fewest frames whose regret is bounded, as its number.

        Thresholds are tested from the safest down to the first one that fails. The
        order is fixed before the regrets are seen, so each test has the whole of
        1 - confidence (fixed-sequence testing).

        Raises:
            ValueError: if no threshold has such a bound.
        """
        bounds = upper_bound(
            np.array(self.mean_regrets),
            np.array(self.deviations),
            self.num_held_out,
            confidence,
        )
        fails = np.flatnonzero(bounds > max_regret)
        first = fails[-1] + 1 if len(fails) else 0
        if first == len(bounds):
            raise ValueError(
                f"--max_regret={max_regret:g} is out of reach: with "
                f"--confidence={confidence:g} and {self.num_held_out} held-out videos "
                f"the bound is {bounds[-1]:.4g} even for the largest budget."
            )
        return int(first)


def calibrate(
    answers: list[Answers], budgets: tuple[int, ...], rule: str, checkpoint: str
) -> Calibration:
    """Fits the rule, the thresholds and the scales.

    Args:
        answers: of all videos, in batches.
        budgets: rising.
        rule: that gave the signals.
        checkpoint: whose answers these are.

    Raises:
        ValueError: if there are too few videos, or none has more frames than the
            smallest budget.
    """
    count = sum(len(part.num_frames) for part in answers)
    is_held_out = np.arange(count) % 2 == 1
    if is_held_out.sum() < 2:
        raise ValueError(
            f"--calibration_data_pattern: {count} videos are too few to calibrate "
            "early exit; 4 are the least."
        )
    answers = Answers(*map(np.concatenate, zip(*answers, strict=True)))
    fitted = Answers(*(x[~is_held_out] for x in answers))
    if fitted.num_frames.max() <= budgets[0]:
        raise ValueError(
            f"No video has more than the {budgets[0]} frames of the smallest budget: "
            "there is nothing to calibrate."
        )
    weights, biases = fit_gains(fitted, budgets)
    confidences = [
        -(answers.signals[:, i] @ np.transpose(w) + b).max(axis=1)
        for i, (w, b) in enumerate(zip(weights, biases, strict=True))
    ]
    confidences = np.stack(confidences, axis=1)
    exits = Exits(confidences, answers.num_frames, budgets)
    grid = Exits(confidences[~is_held_out], fitted.num_frames, budgets)
    thresholds = grid.thresholds(_NUM_THRESHOLDS)
    regrets = answers.regrets[is_held_out]
    held_out = Exits(confidences[is_held_out], answers.num_frames[is_held_out], budgets)
    mean = held_out.means(regrets, thresholds)
    variance = held_out.means(np.square(regrets), thresholds) - np.square(mean)
    variance *= len(regrets) / (len(regrets) - 1)
    scales, offsets = zip(
        *(fit_scale(answers, i) for i in range(len(budgets))), strict=True
    )
    policy = early_exit.Policy(budgets, rule, weights, biases, scales, offsets)
    return Calibration(
        checkpoint,
        count,
        int(is_held_out.sum()),
        policy,
        thresholds.tolist(),
        exits.means(exits.used, thresholds).tolist(),
        mean.tolist(),
        np.sqrt(np.maximum(variance, 0)).tolist(),
    )


def fit_gains(answers: Answers, budgets: tuple[int, ...]) -> tuple[tuple, tuple]:
    """Weights [n - 1][J][F] and biases [n - 1][J] of a Policy.

    Of several signals s, by ridge regression for each budget i and later budget j,
    over the videos that have further frames:

        (KL_i - KL_j) / (frames_j - frames_i) ≈ weights_ij · s + bias_ij
    """
    last = len(budgets) - 1
    if answers.signals.shape[2] == 1:
        return ([[-1.0]],) * last, ([0.0],) * last
    used = np.minimum(answers.num_frames[:, np.newaxis], budgets)
    weights, biases = [], []
    for i in range(last):
        rows = answers.num_frames > budgets[i]
        x = answers.signals[rows, i].astype(np.float64)
        if not len(x):  # No video has so many frames.
            weights.append([[0.0] * x.shape[1]])
            biases.append([0.0])
            continue
        y = (
            answers.divergences[rows, i, np.newaxis]
            - answers.divergences[rows, i + 1 :]
        )
        y = y / (used[rows, i + 1 :] - used[rows, i, np.newaxis])
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        deviation[deviation < 1e-9] = 1.0
        z = (x - mean) / deviation
        gram = z.T @ z + _RIDGE * np.eye(z.shape[1])
        solution = np.linalg.solve(gram, z.T @ (y - y.mean(axis=0)))  # [F, J]
        w = solution.T / deviation
        weights.append(w.tolist())
        biases.append((y.mean(axis=0) - w @ mean).tolist())
    return tuple(weights), tuple(biases)


def fit_scale(answers: Answers, stage: int) -> tuple[float, float]:
    """Scale a and offset c of a budget's logits z: σ(a z + c) is the share of hits.

    Logistic regression by Newton's method over the best predictions of all videos that
    have labels, with a weak prior at a = 1, c = 0.
    """
    z = answers.logits[answers.has_labels, stage].ravel().astype(np.float64)
    h = answers.hits[answers.has_labels, stage].ravel()
    design = np.stack([z, np.ones_like(z)])  # [2, predictions]
    prior, solution = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    for _ in range(20):
        p = 1 / (1 + np.exp(-solution @ design))
        gradient = design @ (p - h) + _PRIOR * (solution - prior)
        curvature = (design * (p * (1 - p))) @ design.T + _PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        solution = solution - step
        if np.abs(step).max() < 1e-9:
            break
    return float(solution[0]), float(solution[1])
