"""The moving average of the weights: its numbers, and where it is used."""

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.training import trained

DECAY = 0.3  # Below (1 + t) / (10 + t) from t = 3 on: both rules are at work.
STEPS = 5
# With batch norm, whose statistics no optimizer owns.
NETWORKS = {
    "teacher": "MeanTanh(units=3, head='moe')",
    "student": "DbofModel(cluster_size=4, hidden_size=3)",
}


def decay_at(step: int) -> float:
    return min(DECAY, (1 + step) / (10 + step))


def closed_form(weights: list[np.ndarray]) -> np.ndarray:
    """The average of the first weights and those after each step."""
    decays = [decay_at(t) for t in range(len(weights) - 1)]
    shares = [np.prod(decays)]
    shares += [(1 - d) * np.prod(decays[t + 1 :]) for t, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1)
    return sum(
        share * w.astype(np.float64) for share, w in zip(shares, weights, strict=True)
    )


def test_every_variable_is_averaged_by_the_closed_form(data):
    replicas = 2
    run = helpers.make_run("unused", data, mode="parallel", **NETWORKS, ema_decay=DECAY)
    runner = helpers.build_phase(run, replicas)
    runner.average.start()
    pairs = [
        (a, v)
        for role in ("teacher", "student")
        for a, v in zip(
            runner.kept.network(role).weights,
            runner.networks.network(role).weights,
            strict=True,
        )
    ]
    heads = [runner.kept.network(role).head for role in ("teacher", "student")]
    assert heads[0] is heads[1]  # Shared, as in training.
    assert len(runner.average._pairs) == len(pairs) - len(heads[0].weights)
    history = [[v.numpy() for _, v in pairs]]
    iterator = iter(runner._dataset(0, 0))
    for _ in range(STEPS):
        runner.loop.run(iterator, tf.constant(1))
        history.append([v.numpy() for _, v in pairs])
    for (average, _), weights in zip(pairs, zip(*history, strict=True), strict=True):
        np.testing.assert_allclose(
            average.numpy(), closed_form(weights), rtol=2e-6, atol=1e-6
        )
        # Keras 3 wraps what TensorFlow mirrors.
        mirrored = average if hasattr(average, "values") else average.value
        copies = runner.strategy.experimental_local_results(mirrored)
        assert len(copies) == replicas
        for copy in copies:
            np.testing.assert_array_equal(np.asarray(copy), average.numpy())
    assert any(not np.array_equal(a.numpy(), v.numpy()) for a, v in pairs)


@pytest.fixture(scope="module")
def averaged_run(data, tmp_path_factory):
    run = helpers.make_run(
        tmp_path_factory.mktemp("averaged") / "run",
        data,
        mode="serial",
        **NETWORKS,
        student_loss="ce + pred",
        ema_decay=0.9,
        num_epochs=1,
        student_epochs=2,
    )
    train_dir = run.training.train_dir
    with helpers.killed_copy(train_dir, "killed", "student", 7, save=True):
        helpers.train(run)
    return run


def test_the_average_is_validated_kept_and_read(averaged_run):
    folder = averaged_run.training.train_dir
    latest = helpers.read_variables(helpers.latest(folder, "student"))
    average, raw = (helpers.of(latest, f"student{x}/") for x in ("", "_in_training"))
    assert average.keys() == raw.keys()
    assert any(not np.array_equal(average[name], raw[name]) for name in raw)
    prefix = helpers.best(folder, "student", "student")
    then = f"{folder}/student/checkpoints/ckpt-{prefix.rsplit('-', 1)[1]}"
    kept, then = map(helpers.read_variables, (prefix, then))
    helpers.assert_identical(kept, {k: v for k, v in then.items() if k in kept})
    given = settings.CheckpointSettings(train_dir=folder, top_k=5, num_gpus=0)
    found = trained.open_network(given, strategy=helpers.cpus(1))
    pattern = averaged_run.training.validation_data_pattern
    judge = evaluator.Evaluator(found.runner, helpers.NUM_CLASSES, 5)
    result = judge.evaluate(found.dataset(pattern, 8))
    phases = helpers.manifest.read_phases(folder)
    noted = phases["student"]["results"]["student"]["best"]
    assert result.metrics.gap == pytest.approx(noted["gap"], abs=1e-6)


def test_a_resumed_run_ends_like_one_without_a_stop(averaged_run, tmp_path):
    run = helpers.resume(averaged_run, "killed", tmp_path)
    helpers.assert_ends_alike(averaged_run, run, "student")
    # Without the average it is another run.
    with pytest.raises(ValueError, match="--ema_decay"):
        helpers.train(helpers.change(run, ema_decay=0.0, student_epochs=3))
