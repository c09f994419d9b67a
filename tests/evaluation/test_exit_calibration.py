"""Calibration of early exit: thresholds, bounds, gains and scales, on arrays."""

import dataclasses
import json

import numpy as np
import pytest

from yt8m_distill.evaluation import average_precision, exit_calibration

pytestmark = pytest.mark.once

BUDGETS = (1, 2, 4, 8)


def stages_of(confidences, num_frames, threshold):
    """Of each video the first budget at which it is sure, or has no further frames."""
    stages = []
    for row, n in zip(confidences, num_frames, strict=True):
        ends = [i for i in range(3) if row[i] >= threshold or n <= BUDGETS[i]]
        stages.append(ends[0] if ends else 3)
    return np.array(stages)


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_stopping_one_by_one(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 12, 400).clip(0, BUDGETS[-1])
    confidences = random.normal(size=(400, 3)).round(1)  # With ties.
    values = random.random((400, 4))
    exits = exit_calibration.Exits(confidences, lengths, BUDGETS)
    thresholds = np.array([-9.0, *np.unique(confidences)[::6], 9.0])
    frames = exits.means(exits.used, thresholds)
    means = exits.means(values, thresholds)
    for threshold, mean_frames, mean in zip(thresholds, frames, means, strict=True):
        stages = stages_of(confidences, lengths, threshold)
        expected = np.minimum(lengths, np.array(BUDGETS)[stages]).mean()
        assert mean_frames == pytest.approx(expected)
        assert mean == pytest.approx(values[range(400), stages].mean())
    assert (np.diff(frames) >= 0).all() and frames[0] < frames[-1]


def test_thresholds_are_evenly_spaced_in_mean_frames():
    random = np.random.default_rng(0)
    lengths = np.full(3000, 8)
    exits = exit_calibration.Exits(random.normal(size=(3000, 3)), lengths, BUDGETS)
    means = exits.means(exits.used, exits.thresholds(50))
    # A video more or less is 1/3000 to 4/3000 of a frame.
    np.testing.assert_allclose(means, np.linspace(1, 8, 50), atol=0.01)


def test_the_bound_is_that_of_its_formula():
    # ln(2 / .1) = 2.9957: .2 + .3 sqrt(2 * 2.9957 / 100) + 7 * 2.9957 / (3 * 99)
    found = exit_calibration.upper_bound(0.2, 0.3, 100, 0.9)
    assert found == pytest.approx(0.2 + 0.3 * 0.24477 + 0.07061, abs=1e-5)


# -------------------------------------------------- a data set of easy and hard videos

NUM_CLASSES = 20


def make_answers(count, seed, share_of_easy=0.75):
    """Evidence is added up frame by frame: an easy video has much in each frame.

    Each class of a video gets log-odds of (2y - 1) s per frame with noise of variance
    2 s, so that their sum and the prior are the true log-odds: one frame tells an easy
    video's labels, all 8 a hard one's.
    """
    random = np.random.default_rng(seed)
    labels = random.random((count, NUM_CLASSES)) < 0.1
    strength = np.where(random.random(count) < share_of_easy, 14.0, 1.75)
    strength = strength[:, np.newaxis, np.newaxis]
    sign = np.where(labels, 1.0, -1.0)[:, np.newaxis]
    noise = random.normal(size=(count, BUDGETS[-1], NUM_CLASSES))
    evidence = sign * strength + np.sqrt(2 * strength) * noise
    totals = np.log(0.1 / 0.9) + np.cumsum(evidence, axis=1)
    logits = totals[:, np.array(BUDGETS) - 1]  # [N, n, C]
    p = 1 / (1 + np.exp(-logits))
    final = p[:, -1:]
    divergences = (final * (logits[:, -1:] - logits)).sum(axis=2)
    divergences += (np.logaddexp(0, logits) - np.logaddexp(0, logits[:, -1:])).sum(2)
    order = np.argsort(-logits, axis=2)
    top = np.take_along_axis(logits, order, axis=2)
    entropies = (np.logaddexp(0, top) - top / (1 + np.exp(-top))).mean(axis=2)
    hits = np.take_along_axis(np.repeat(labels[:, None], 4, axis=1), order, axis=2)
    discounts = 1 / np.log(np.arange(2, NUM_CLASSES + 2))
    gains = np.take_along_axis(np.repeat(final, 4, axis=1), order, axis=2) @ discounts
    return exit_calibration.Answers(
        np.concatenate([top, -entropies[..., np.newaxis]], axis=2),
        divergences,
        1 - gains / gains[:, -1:],
        top,
        hits,
        np.full(count, BUDGETS[-1]),
        np.ones(count, bool),
    )


def calibrate(answers):
    return exit_calibration.calibrate([answers], BUDGETS, "expected_saving", "c")


@pytest.fixture(scope="module")
def answers():
    return make_answers(4000, seed=1)


@pytest.fixture(scope="module")
def calibration(answers):
    return calibrate(answers)


def stop(answers, calibration, number):
    """The stage of each video, as EarlyExit decides, and the mean number of frames."""
    policy = calibration.policy
    confidences = [
        -(answers.signals[:, i] @ np.transpose(w) + b).max(axis=1)
        for i, (w, b) in enumerate(zip(policy.weights, policy.biases, strict=True))
    ]
    is_sure = np.stack(confidences) >= calibration.thresholds[number]
    stages = np.where(is_sure.any(axis=0), is_sure.argmax(axis=0), 3)
    return stages, np.array(BUDGETS)[stages].mean()


def gap(answers, stages):
    rows = np.arange(len(stages))
    scores, hits = answers.logits[rows, stages], answers.hits[rows, stages]
    positives = answers.hits[:, 0].sum()  # All classes are in each list.
    return average_precision.average_precision(scores, hits, positives)


def test_easy_videos_stop_early_and_half_the_frames_give_the_same_gap(calibration):
    new = make_answers(4000, seed=2)
    fixed = [gap(new, np.full(4000, i)) for i in range(4)]
    stages, mean = stop(new, calibration, calibration.for_mean_frames(3.0))
    # The asked mean is met on other videos of the same kind.
    assert mean == pytest.approx(3.0, rel=0.02)
    reached = gap(new, stages)
    # Fixed k: the frames at which the curve through the budgets gets as far.
    frames_needed = np.interp(reached, fixed, BUDGETS)
    assert mean <= frames_needed / 2, (fixed, reached, frames_needed)


def test_the_mean_on_the_calibration_videos_is_as_asked(answers, calibration):
    for asked in (1.0, 1.5, 3.0, 6.0, 8.0):
        number = calibration.for_mean_frames(asked)
        _, mean = stop(answers, calibration, number)
        assert mean == pytest.approx(calibration.mean_frames[number])
        # 257 thresholds over 7 frames.
        assert mean == pytest.approx(asked, abs=7 / 256)
    assert calibration.mean_frames == sorted(calibration.mean_frames)
    assert calibration.thresholds == sorted(calibration.thresholds)


@pytest.mark.slow
def test_a_bound_asked_at_90_percent_holds_in_90_percent_of_random_splits():
    pool = make_answers(8000, seed=3)
    random = np.random.default_rng(4)
    asked, held, frames = 0.05, 0, []
    for _ in range(100):
        part = random.permutation(8000)[:1000]
        made = calibrate(exit_calibration.Answers(*(x[part] for x in pool)))
        number = made.for_max_regret(asked, 0.9)
        stages, mean_frames = stop(pool, made, number)
        held += pool.regrets[np.arange(8000), stages].mean() <= asked
        frames.append(mean_frames)
    assert held >= 90
    assert np.mean(frames) < 6  # It is of use: all frames are 8.


def test_a_stricter_bound_or_more_confidence_takes_more_frames(calibration):
    numbers = [calibration.for_max_regret(r, 0.9) for r in (0.3, 0.1, 0.03, 0.01)]
    assert numbers == sorted(numbers) and len(set(numbers)) > 2
    some, more = (calibration.for_max_regret(0.03, c) for c in (0.8, 0.999))
    assert some < more


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda c: c.for_mean_frames(0.9), "--mean_frames=0.9.* 1 to 8"),
        (lambda c: c.for_mean_frames(8.1), "--mean_frames=8.1.* 1 to 8"),
        (lambda c: c.for_max_regret(0.0001, 0.9), "--max_regret=0.0001"),
    ],
)
def test_what_is_out_of_reach_is_refused(calibration, call, named):
    with pytest.raises(ValueError, match=named):
        call(calibration)


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_videos_are_refused(answers, count):
    few = [exit_calibration.Answers(*(x[:count] for x in answers))] if count else []
    with pytest.raises(ValueError, match=f"--calibration_data_pattern: {count} "):
        exit_calibration.calibrate(few, (1, 2), "change", "x")


def test_it_is_the_same_after_it_was_written(calibration):
    text = json.dumps(dataclasses.asdict(calibration), allow_nan=False)
    again = exit_calibration.Calibration.from_dict(json.loads(text))
    assert dataclasses.asdict(again) == json.loads(text)
    assert again.for_mean_frames(3.0) == calibration.for_mean_frames(3.0)


# ------------------------------------------------------------------------ the fits


def test_gains_that_are_linear_in_the_signals_are_found(monkeypatch):
    monkeypatch.setattr(exit_calibration, "_RIDGE", 1e-6)
    random = np.random.default_rng(0)
    count, budgets = 2000, (2, 5, 6)
    signals = random.normal(3, [0.1, 1, 10], size=(count, 3, 3))
    slopes = random.normal(size=(2, 3)) / [0.1, 1, 10]
    lengths = np.where(np.arange(count) % 3, 6, 4)
    used = np.minimum(lengths[:, np.newaxis], budgets)
    # Both gains from the first budget are the first linear function, the one from the
    # second budget the second; a video of 4 frames has none there.
    first, second = (signals[:, i] @ slopes[i] + i for i in range(2))
    divergences = np.zeros((count, 3))
    divergences[:, 1] = np.where(lengths == 6, second * 1, 0)
    divergences[:, 0] = divergences[:, 1] + first * (used[:, 1] - used[:, 0])
    answers = exit_calibration.Answers(
        signals, divergences, None, None, None, lengths, None
    )
    weights, biases = exit_calibration.fit_gains(answers, budgets)
    assert [np.shape(w) for w in weights] == [(2, 3), (1, 3)]
    np.testing.assert_allclose(weights[0][0], slopes[0], rtol=1e-6)
    np.testing.assert_allclose(weights[1][0], slopes[1], rtol=1e-6)
    np.testing.assert_allclose([biases[0][0], biases[1][0]], [0, 1], atol=1e-5)


@pytest.mark.parametrize(("scale", "offset"), [(0.7, -0.5), (1.6, 1.0)])
def test_the_scale_makes_scores_probabilities(scale, offset):
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, size=(4000, 1, 20))
    p = 1 / (1 + np.exp(-(scale * logits + offset)))
    hits = random.random(p.shape) < p
    labeled = np.arange(4000) % 4 > 0
    hits[~labeled] = False  # They do not count.
    answers = exit_calibration.Answers(None, None, None, logits, hits, None, labeled)
    found = exit_calibration.fit_scale(answers, 0)
    # 60,000 predictions: standard errors of about .01.
    np.testing.assert_allclose(found, (scale, offset), atol=0.05)


def test_without_labels_scores_stay():
    nothing = np.zeros((5, 1, 20))
    answers = exit_calibration.Answers(
        None, None, None, nothing, nothing > 0, None, np.zeros(5, bool)
    )
    assert exit_calibration.fit_scale(answers, 0) == (1.0, 0.0)
