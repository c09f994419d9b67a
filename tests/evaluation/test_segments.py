"""mAP@K and GAP over rated segments, against brute force."""

import numpy as np
import pytest

from yt8m_distill.evaluation import best_per_class, segments

pytestmark = pytest.mark.once


def brute_force(scores, labels, rated, k):
    """mAP@K, GAP and the classes' APs, by the definition and with loops.

    A segment is among the first K if at most K score as high or higher. Equal scores
    are one threshold: each counts with the precision at the end of its group.
    """

    labels, rated = labels > 0, rated > 0

    def average_precision(pairs, positives):
        total = 0.0
        for score, hit in pairs:
            above = [h for s, h in pairs if s >= score]
            total += hit * sum(above) / len(above)
        return total / positives

    found = {}
    for c in range(scores.shape[1]):
        column = scores[:, c]
        first = [n for n, s in enumerate(column) if (column >= s).sum() <= k]
        pairs = [(column[n], labels[n, c]) for n in first if rated[n, c]]
        positives = labels[:, c].sum()
        if positives:
            found[c] = average_precision(pairs, positives)
    pooled = [(scores[n, c], labels[n, c]) for n, c in np.argwhere(rated)]
    return (
        np.mean(list(found.values())),
        average_precision(pooled, labels.sum()),
        found,
    )


def accumulate(scores, labels, rated, k, batch=4):
    """The accumulator on batches that end with a padding row."""
    pool = segments.SegmentAccumulator(scores.shape[1], k)
    for begin in range(0, len(scores), batch):
        rows = slice(begin, begin + batch)
        count = len(scores[rows])
        padded = [
            np.concatenate([x[rows], np.ones_like(x[:1])])
            for x in (scores, labels, rated)
        ]
        weights = np.append(np.ones(count), 0)
        pool.update(segments.RatedScores(*padded, weights, weights * 2))
    return pool, pool.result()


@pytest.mark.parametrize("k", [1, 3, 7, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_are_those_of_brute_force(seed, k):
    random = np.random.default_rng(seed)
    # Few distinct scores: ties within classes, also at the K-th place.
    scores = (random.integers(0, 12, [23, 6]) / 16).astype(np.float32)
    rated = (random.random([23, 6]) < 0.4).astype(np.float32)
    labels = rated * (random.random([23, 6]) < 0.5)
    labels[:, 4] = 0  # A class without positives.
    labels[:2, 0] = rated[:2, 0] = 1
    pool, found = accumulate(scores, labels, rated, k)
    mean, gap, of_classes = brute_force(scores, labels, rated, k)
    assert found.map == pytest.approx(mean, rel=1e-12)
    assert found.map_all_classes == pytest.approx(mean * len(of_classes) / 6)
    assert found.gap == pytest.approx(gap, rel=1e-12)
    assert np.isnan(pool.class_precisions[4])
    assert pool.class_positives.tolist() == labels.sum(axis=0).tolist()
    assert (found.num_segments, found.num_ratings) == (23, rated.sum())
    assert found.loss == 2
    # Neither batches nor the order matter.
    order = random.permutation(23)
    again = accumulate(scores[order], labels[order], rated[order], k, batch=9)[1]
    assert again == found


def test_a_case_by_hand():
    # Class 0, best first: unrated .9, positive .8, negative .7, positive .6.
    scores = np.float32([[0.9], [0.8], [0.7], [0.6]])
    labels, rated = np.float32([[0], [1], [0], [1]]), np.float32([[0], [1], [1], [1]])
    # The unrated one goes: precisions 1 and 2/3 of 2 positives.
    assert accumulate(scores, labels, rated, 4)[1].map == pytest.approx((1 + 2 / 3) / 2)
    # The first 2 are the unrated one and a positive: the other one is lost.
    assert accumulate(scores, labels, rated, 2)[1].map == pytest.approx(1 / 2)
    assert accumulate(scores, labels, rated, 1)[1].map == 0


@pytest.mark.parametrize("seed", range(3))
def test_ranking_all_segments_differs_only_where_the_list_is_cut(seed):
    """The evaluation ranks rated segments; Kaggle's list has all of a test set."""
    random = np.random.default_rng(seed)
    scores = random.random([40, 3]).astype(np.float32)
    rated = (random.random([40, 3]) < 0.5).astype(np.float32)
    rated[10:] = 0  # Three in four segments have no rating.
    rated[0] = 1
    labels = rated * (random.random([40, 3]) < 0.6)
    labels[0] = 1
    found = accumulate(scores[:10], labels[:10], rated[:10], 40)[1].map
    assert found == pytest.approx(brute_force(scores, labels, rated, 40)[0])
    # A cut can only lose positives of the longer list.
    cuts = [brute_force(scores, labels, rated, k)[0] for k in (5, 10, 20, 40)]
    assert cuts == sorted(cuts) and cuts[0] < found


def test_a_score_that_is_no_number_names_its_segment():
    one = np.ones([1, 2], np.float32)
    pool = segments.SegmentAccumulator(2, 5)
    with pytest.raises(ValueError, match="abc:15"):
        pool.update(
            segments.RatedScores(
                one * np.nan, one, one, one[0, :1], one[0], [b"abc:15"]
            )
        )
    with pytest.raises(ValueError, match="no rated segment"):
        pool.result()


@pytest.mark.parametrize("seed", range(3))
def test_the_best_per_class_are_those_of_a_stable_sort_in_bounded_memory(seed):
    random = np.random.default_rng(seed)
    scores = (random.integers(0, 50, [400, 3]) / 64).astype(np.float32)
    kept = best_per_class.BestPerClass(3, 10)
    for begin in range(0, 400, 7):
        rows = np.arange(begin, min(begin + 7, 400))
        kept.update(scores[rows], rows)
        # 1.25 times K, and at most one batch on top.
        assert len(kept.references()) <= 3 * (13 + 7)
    for c in range(3):
        order = np.argsort(-scores[:, c], kind="stable")[:10]
        best, references = kept.best(c)
        assert references.tolist() == order.tolist()
        assert best.tolist() == scores[order, c].tolist()
    held = kept.references()
    kept.rename(held, held * 2 + 1)
    assert kept.references().tolist() == (held * 2 + 1).tolist()
