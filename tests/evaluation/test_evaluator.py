"""The evaluator's metrics are those of the data set, however it is cut."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import structures
from yt8m_distill.evaluation import average_precision, evaluator, top_predictions
from yt8m_distill.models import replicas as replicas_module
from yt8m_distill.serving import predictions, predictor

TOP_K = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Settings, and 21 videos, of which the last has no label and counts nowhere."""
    folder = tmp_path_factory.mktemp("data")
    videos = helpers.make_videos(21, seed=5)
    videos[-1] = (videos[-1][0], [], videos[-1][2])
    helpers.write_shard(folder / "train-0.tfrecord", videos)
    return helpers.make_run(
        "unused",
        folder,
        mode="parallel",
        top_k=TOP_K,
    )


def make_networks(run, strategy):
    with strategy.scope():
        networks = helpers.build_networks(run, ["teacher", "student"])
    random = np.random.default_rng(3)
    for variable in networks.weights:
        variable.assign(random.normal(0, 1, variable.shape))
    return networks


def dataset_of(run, strategy, batch_size: int):
    names = ["teacher", "student"]
    return helpers.evaluation_dataset(run, strategy, names, batch_size)


def make_evaluator(run, strategy, role: str = "student") -> evaluator.Evaluator:
    networks = make_networks(run, strategy)
    runner = replicas_module.Runner(networks, role, strategy)
    return evaluator.Evaluator(runner, helpers.NUM_CLASSES, TOP_K)


def evaluate(run, replicas: int, batch_size: int, role: str = "student"):
    strategy = helpers.cpus(replicas)
    network_evaluator = make_evaluator(run, strategy, role)
    return network_evaluator.evaluate(dataset_of(run, strategy, batch_size))


@pytest.fixture(scope="module")
def whole(run):
    """Metrics of the student with all 21 videos in one batch."""
    return evaluate(run, 1, 21).metrics


@pytest.mark.slow
@pytest.mark.parametrize("replicas, batch_size", [(1, 4), (2, 24)])
def test_metrics_depend_neither_on_batches_nor_on_replicas(
    run, whole, replicas, batch_size
):
    found = evaluate(run, replicas, batch_size).metrics
    assert found.num_videos == 20
    # The ranking decides all but the loss, so a score's last bit does not show.
    assert found._replace(loss=0) == whole._replace(loss=0)
    # float32 losses of products that are summed in another order.
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_metrics_are_those_computed_from_all_logits(run, whole, role):
    found = whole if role == "student" else evaluate(run, 1, 21, role).metrics
    strategy = tf.distribute.get_strategy()
    networks = make_networks(run, strategy)
    (batch,) = dataset_of(run, strategy, 21)
    logits = networks.forward(role, batch[structures.VIEWS]).logits.numpy()
    labels = batch[structures.LABELS].numpy()
    has_labels = labels.any(axis=1)
    assert has_labels.sum() == 20
    top = top_predictions.top_predictions(
        tf.sigmoid(logits), tf.constant(labels), tf.constant(has_labels), TOP_K
    )
    pool = average_precision.MetricsAccumulator(helpers.NUM_CLASSES)
    columns = {n: v.numpy() for n, v in top._asdict().items() if v is not None}
    pool.update(top._replace(**columns, loss=np.zeros(21)))
    assert found._replace(loss=0) == pool.result()
    entropy = np.logaddexp(0, logits) - labels * logits
    entropy = entropy.sum(axis=1)[has_labels]
    assert found.loss == pytest.approx(entropy.mean(), rel=1e-5)


def test_of_videos_without_labels_alone_all_metrics_are_0(run):
    strategy = helpers.cpus(1)
    network_evaluator = make_evaluator(run, strategy)
    (batch,) = dataset_of(run, strategy, 24)
    batch[structures.LABELS] *= 0.0
    found = network_evaluator.evaluate([batch])
    assert set(found.metrics) == {0} and found.num_unlabeled == 21


def test_the_numbers_are_plain_and_named(run, whole):
    found = evaluator.Evaluation(whole, 12.3456).to_dict()
    assert found["videos_per_second"] == 12.35
    assert set(found) == {
        *whole._fields,
        *("videos_per_second", "num_skipped", "num_repeated_ids"),
    }
    assert {type(v) for v in found.values()} <= {int, float}


def test_a_score_that_is_no_number_is_an_error_that_names_the_video(run):
    strategy = helpers.cpus(1)
    network_evaluator = make_evaluator(run, strategy)
    kernel = network_evaluator.runner.networks.student.head.kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="v000"):
        network_evaluator.evaluate(dataset_of(run, strategy, 7))


@pytest.mark.slow
@pytest.mark.parametrize(
    "replicas, batch_size, top_k",
    [(1, 4, TOP_K), (2, 24, 20)],  # 20 are more than the classes.
)
def test_one_pass_gives_the_metrics_and_the_csv_of_the_predictor(
    run, tmp_path, replicas, batch_size, top_k
):
    strategy = helpers.cpus(replicas)
    networks = make_networks(run, strategy)
    runner = replicas_module.Runner(networks, "student", strategy)
    dataset = dataset_of(run, strategy, batch_size)
    network_evaluator = evaluator.Evaluator(runner, helpers.NUM_CLASSES, top_k)
    with predictions.PredictionWriter(tmp_path / "evaluator.csv") as writer:
        found = network_evaluator.evaluate(dataset, writer=writer).metrics
    assert found == network_evaluator.evaluate(dataset).metrics
    with predictions.PredictionWriter(tmp_path / "predictor.csv") as writer:
        for batch in predictor.Predictor(runner, top_k).predict(dataset):
            writer.write(batch.video_ids, batch.classes, batch.scores)
    written = (tmp_path / "evaluator.csv").read_bytes()
    assert written == (tmp_path / "predictor.csv").read_bytes()
    assert written.count(b"\n") == 1 + 21  # Without padding rows.


def test_a_process_without_all_ids_writes_no_csv(run, tmp_path, monkeypatch):
    strategy = helpers.cpus(1)
    network_evaluator = make_evaluator(run, strategy)
    # So it is where other processes have some of the rows.
    monkeypatch.setattr(network_evaluator, "_video_ids", lambda *_: None)
    with pytest.raises(ValueError, match="several processes evaluate here"):
        with predictions.PredictionWriter(tmp_path / "out.csv") as writer:
            network_evaluator.evaluate(dataset_of(run, strategy, 7), writer=writer)
    assert os.listdir(tmp_path) == []


def test_products_have_the_policys_precision_in_every_replica(run, whole, use_policy):
    use_policy("mixed_bfloat16")
    found = evaluate(run, 2, 22).metrics
    # bfloat16 has 8 bits, float32 24; some roundings to 2^-9 follow each other.
    assert 2**-18 < abs(found.loss / whole.loss - 1) < 2**-4
