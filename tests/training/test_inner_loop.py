"""Many steps in one function: what mixed_float16 skips, scales and stops at."""

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers


@pytest.fixture(autouse=True)
def float16(use_policy):
    use_policy("mixed_float16")


def make_runner(data, replicas: int = 1, is_finite=None):
    """A runner; `is_finite`, if given, says of a step whether it did not overflow."""
    run = helpers.make_run("unused", data, dtype_policy="mixed_float16")
    runner = helpers.build_phase(run, replicas)
    compute = runner.step.compute
    if is_finite:
        runner.step.compute = lambda batch, step: (
            *compute(batch, step)[:2],
            is_finite(step),
        )
    return runner


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_overflow_skips_the_step_and_halves_the_scale(data, replicas):
    runner = make_runner(data, replicas)
    scale = runner.loop.loss_scale
    assert float(scale.numpy()) == 2.0**15
    scale.assign(2.0**30)  # float16 ends at 65504.
    before = [v.numpy() for v in runner.networks.weights]
    iterator = iter(runner._dataset(0, 0))
    means, bad, taken = runner.loop.run(iterator, tf.constant(1))
    assert int(bad) == -1 and float(taken) == 0 and not means.numpy().any()
    assert float(scale.numpy()) == 2.0**29
    after = [v.numpy() for v in runner.networks.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    scale.assign(2.0**10)
    runner.loop.run(iterator, tf.constant(1))
    assert float(scale.numpy()) == 2.0**10
    assert not np.array_equal(before[0], runner.networks.weights[0].numpy())
    assert int(runner.state.step.numpy()) == 2


def test_a_skipped_step_is_not_in_the_mean_that_is_logged(data):
    def every_other():
        """A runner whose steps 0, 2 and 4 overflow."""
        runner = make_runner(data, is_finite=lambda step: tf.equal(step % 2, 1))
        return runner, iter(runner._dataset(0, 0))

    runner, iterator = every_other()
    found, _, taken = runner.loop.run(iterator, tf.constant(5))
    runner.learning_rate = lambda step: 10 + step  # It counts the steps taken, from 0.
    assert float(taken) == 2 and runner._rate() == 11
    single, iterator = every_other()
    parts = [single.loop.run(iterator, tf.constant(1))[0].numpy() for _ in range(5)]
    assert parts[1].any() and not any(parts[i].any() for i in (0, 2, 4))
    expected = (parts[1] + parts[3]) / 2
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_the_scale_doubles_after_many_good_steps(data):
    runner = make_runner(data)
    runner.loop.good_steps.assign(1998)
    iterator = iter(runner._dataset(0, 0))
    runner.loop.run(iterator, tf.constant(1))
    assert float(runner.loop.loss_scale.numpy()) == 2.0**15
    runner.loop.run(iterator, tf.constant(1))
    assert float(runner.loop.loss_scale.numpy()) == 2.0**16
    assert int(runner.loop.good_steps.numpy()) == 0


def test_the_count_of_good_steps_is_part_of_the_state(data, tmp_path):
    runner = make_runner(data)
    runner.loop.good_steps.assign(7)
    prefix = runner.state.checkpoint.write(str(tmp_path / "state"))
    stored = helpers.read_variables(prefix)
    assert stored[f"good_steps/{helpers.SUFFIX}"] == 7


def test_float16_too_stops_at_a_loss_that_no_scale_saves(data):
    runner = make_runner(data)
    runner.networks.teacher.kernel.assign(np.full([12, 6], np.nan, np.float32))
    iterator = iter(runner._dataset(0, 0))
    metrics, bad, _ = runner.loop.run(iterator, tf.constant(5))
    assert int(bad) == 0
    assert np.isnan(metrics.numpy()).any()
    # It is not taken for an overflow, which is scaled away, one video a step.
    assert float(runner.loop.loss_scale.numpy()) == 2.0**14


def test_float16_stops_at_a_gradient_that_no_scale_saves(data):
    runner = make_runner(data, is_finite=lambda step: tf.constant(False))
    runner.loop.loss_scale.assign(4.0)
    iterator = iter(runner._dataset(0, 0))
    _, bad, _ = runner.loop.run(iterator, tf.constant(5))
    # 4, 2 and 1 are tried, in steps 0, 1 and 2.
    assert int(bad) == 2
