"""Early exit: what is read step by step, and where each video stops."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small
from yt8m_distill.data import frame_sampling
from yt8m_distill.models import early_exit

BUDGETS = (1, 3, 4, 7)


def make_view(lengths=small.LENGTHS, seed=0):
    """A view of videos, in time and in the order of early exit."""
    view = small.make_view(seed, lengths)
    order, _ = frame_sampling.pick(
        early_exit.SAMPLER,
        view["num_frames"],
        small.T,
        small.T,
        tf.zeros(len(lengths), tf.int64),
    )
    frames = tf.gather(view["frames"], order, batch_dims=1)
    return view, {**view, "frames": frames, "frame_indices": order}


def answers_of(network, view):
    """[n, B, C]: the logits at every budget."""
    logits, state = [], None
    for start, stop in zip((0, *BUDGETS), BUDGETS, strict=False):
        answer, state = early_exit.read_on(network, view, start, stop, state)
        logits.append(answer.numpy())
    return np.stack(logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", small.CASES)
def test_step_by_step_is_direct_evaluation_at_each_budget(name):
    network = small.make_network(name)
    whole, view = make_view()
    for stop, logits in zip(BUDGETS, answers_of(network, view), strict=True):
        # Its frames of this budget in time, and nothing else.
        frames = np.zeros_like(whole["frames"])[:, :stop]
        for row, n in enumerate(small.LENGTHS):
            chosen = np.sort(view["frame_indices"][row, : min(n, stop)].numpy())
            frames[row, : len(chosen)] = whole["frames"].numpy()[row, chosen]
        count = tf.minimum(small.LENGTHS, stop)
        direct = network({"frames": tf.constant(frames), "num_frames": count}).logits
        # Sums of at most seven float32 numbers, in another order.
        np.testing.assert_allclose(logits, direct, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------ exits


def make_policy(rule, seed=0):
    random = np.random.default_rng(seed)
    # 4 classes: 4 logits, the entropy and the change.
    size = 6 if rule == "expected_saving" else 1
    stages = range(len(BUDGETS) - 1)
    weights, biases = [[[-1.0]]] * len(stages), [[0.0]] * len(stages)
    if size > 1:
        weights = [random.normal(size=(len(stages) - i, size)).tolist() for i in stages]
        biases = [random.normal(size=len(stages) - i).tolist() for i in stages]
    scales, offsets = (random.uniform(0.5, 2, len(BUDGETS)).tolist() for _ in "ab")
    return early_exit.Policy(BUDGETS, rule, weights, biases, scales, offsets)


def confidences_of(logits, policy):
    """[n - 1, B] in numpy, from the definitions of the rules."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = []
    for i in range(len(BUDGETS) - 1):
        # All 4 classes are among the 20 best.
        entropy = -(-p[i] * np.log(p[i]) - (1 - p[i]) * np.log(1 - p[i])).mean(axis=1)
        change = np.full(len(entropy), -2.0)
        if i:
            change = -np.abs(p[i] - p[i - 1]).max(axis=1)
        signals = {
            "max_probability": p[i].max(axis=1),
            "entropy": entropy,
            "change": change,
        }
        if policy.rule != "expected_saving":
            found.append(signals[policy.rule])
            continue
        s = [*np.sort(logits[i], axis=1)[:, ::-1].T, entropy, change]
        gains = np.array(policy.weights[i]) @ s + np.array(policy.biases[i])[:, None]
        found.append(-gains.max(axis=0))
    return np.stack(found)


LENGTHS = (3, 7, 1, 0, 5, 7, 7, 2, 7, 6, 7, 4)


@pytest.mark.parametrize("name", ["attention", "hierarchical"])
@pytest.mark.parametrize("rule", early_exit.RULES)
def test_a_video_stops_at_the_first_budget_with_enough_confidence(name, rule):
    network = small.make_network(name)
    _, view = make_view(LENGTHS)
    logits, policy = answers_of(network, view), make_policy(rule)
    confidences = confidences_of(logits, policy)
    confidences = np.concatenate([confidences, np.full([1, len(LENGTHS)], np.inf)])
    # A video without further frames stops, too.
    confidences[np.array(LENGTHS) <= np.array(BUDGETS)[:, np.newaxis]] = np.inf
    # Halfway between two, out of reach of rounding; of these the one that has videos
    # stop at the most budgets.
    ordered = np.unique(np.round(confidences[np.isfinite(confidences)], 4))
    thresholds = (ordered[1:] + ordered[:-1]) / 2
    stages = [(confidences >= t).argmax(axis=0).tolist() for t in thresholds]
    expected, threshold = max(
        zip(stages, thresholds, strict=True), key=lambda pair: len(set(pair[0]))
    )
    outputs = early_exit.EarlyExit(network, policy, threshold, small.T)(view)
    assert len(set(expected)) > 2
    budgets = np.array(BUDGETS)[expected]
    read = np.minimum(budgets, LENGTHS)
    np.testing.assert_array_equal(outputs.exits, np.stack([budgets, read], axis=1))
    scale, offset = np.array([policy.scales, policy.offsets])[:, expected]
    expected = logits[expected, np.arange(len(LENGTHS))] * scale[:, None]
    np.testing.assert_allclose(
        outputs.logits, expected + offset[:, None], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["netvlad", "hierarchical"])
def test_exits_depend_neither_on_the_batch_nor_on_its_order(name):
    network = small.make_network(name)
    _, view = make_view(LENGTHS)
    policy = make_policy("expected_saving")
    stop = early_exit.EarlyExit(network, policy, 0.1, small.T)
    whole = stop(view)
    assert len(np.unique(whole.exits[:, 0])) > 2
    order = np.random.default_rng(1).permutation(len(LENGTHS))
    for rows in (order, *np.array_split(order, 5), [0], [2]):
        part = stop(small.rows_of(view, rows))
        np.testing.assert_array_equal(part.exits, whole.exits.numpy()[rows])
        # Matrix products of other shapes.
        expected = whole.logits.numpy()[rows]
        np.testing.assert_allclose(part.logits, expected, rtol=1e-4, atol=1e-5)


def test_a_higher_threshold_never_reads_fewer_frames_of_a_video():
    network = small.make_network("attention")
    _, view = make_view(LENGTHS)
    policy, before = make_policy("expected_saving"), np.zeros(len(LENGTHS))
    for threshold in (-np.inf, -1.0, 0.0, 0.5, 1.0, np.inf):
        stop = early_exit.EarlyExit(network, policy, threshold, small.T)
        read = stop(view).exits[:, 1].numpy()
        assert (read >= before).all()
        if threshold == -np.inf:
            np.testing.assert_array_equal(read, np.minimum(LENGTHS, BUDGETS[0]))
        before = read
    np.testing.assert_array_equal(before, LENGTHS)


def test_early_exit_is_not_for_training():
    network = early_exit.EarlyExit(
        small.make_network("mean"), make_policy("entropy"), 0.0, small.T
    )
    with pytest.raises(ValueError, match="trained"):
        network(make_view()[1], training=True)


def test_regret_and_divergence_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    answer, final = random.normal(size=(2, 3, 30))
    p, q = (1 / (1 + np.exp(-x)) for x in (final, answer))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = early_exit.divergence(tf.constant(answer), tf.constant(final))
    np.testing.assert_allclose(found, kl.sum(axis=1), rtol=1e-6)

    def dcg(gains, order):
        return sum(gains[c] / np.log2(rank + 2) for rank, c in enumerate(order[:20]))

    expected = [
        1 - dcg(p[v], np.argsort(-answer[v])) / dcg(p[v], np.argsort(-final[v]))
        for v in range(3)
    ]
    answer, final = (tf.constant(x, tf.float32) for x in (answer, final))
    np.testing.assert_allclose(early_exit.regret(answer, final), expected, rtol=1e-4)
    assert np.abs(early_exit.regret(final, final)).max() < 1e-6
