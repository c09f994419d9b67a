"""Devices, replicas, and each replica's rows."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.training import distribution


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


def test_without_a_gpu_the_cpu_computes(no_cluster):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU is here")
    for num_gpus in (-1, 0):
        strategy = distribution.build_strategy(num_gpus)
        assert strategy.num_replicas_in_sync == 1
        (device,) = strategy.extended.worker_devices
        assert "CPU:0" in device


def test_gpus_that_are_not_there_are_refused(no_cluster):
    have = len(tf.config.list_physical_devices("GPU"))
    with pytest.raises(ValueError) as error:
        distribution.build_strategy(have + 1)
    assert str(error.value) == (
        f"--num_gpus={have + 1}, but TensorFlow sees {have} GPUs here."
    )


def test_a_cluster_that_is_no_json_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "worker:0")
    with pytest.raises(ValueError, match="TF_CONFIG is not JSON: worker:0"):
        distribution.build_strategy(0, several_machines=True)


class FakeStrategy:
    """A strategy whose place in a cluster is given."""

    def __init__(self, workers: list[str], kind: str, index: int):
        names = {"worker": workers}
        if kind == "chief" or "chief" in workers:
            names = {"chief": ["a:1"], "worker": [w for w in workers if w != "chief"]}

        class Resolver:
            task_type, task_id = kind, index

            def cluster_spec(self):
                return tf.train.ClusterSpec(names)

        self.cluster_resolver = Resolver()


@pytest.mark.parametrize(
    "workers, kind, index, chief, number",
    [
        (["a:1", "b:1"], "worker", 0, True, 0),
        (["a:1", "b:1"], "worker", 1, False, 1),
        (["chief", "b:1"], "chief", 0, True, 0),
        (["chief", "b:1"], "worker", 0, False, 1),
    ],
)
def test_one_process_is_the_chief(workers, kind, index, chief, number):
    strategy = FakeStrategy(workers, kind, index)
    assert distribution.is_chief(strategy) is chief
    assert distribution.worker_number(strategy) == number


def test_a_process_alone_is_the_chief():
    for strategy in (helpers.cpus(2), tf.distribute.get_strategy()):
        assert distribution.is_chief(strategy)
        assert distribution.worker_number(strategy) == 0


def test_every_replica_needs_the_same_number_of_videos():
    distribution.check_batch_size(6, helpers.cpus(2))
    with pytest.raises(ValueError) as error:
        distribution.check_batch_size(5, helpers.cpus(2))
    assert str(error.value) == "--batch_size=5 is not divisible by the 2 replicas."


def batches_of_rows(shard):
    """Two batches of four rows: 0..3 and 4..7, nested as a Batch is."""
    assert shard == (0, 1)
    rows = tf.data.Dataset.range(8).map(
        lambda n: {"id": n, "views": {"all": tf.fill([3, 2], n)}}
    )
    return rows.batch(4, drop_remainder=True)


@pytest.mark.parametrize("replicas", [1, 2])
def test_replica_r_sees_the_rth_slice_of_every_batch(replicas):
    strategy = helpers.cpus(replicas)
    size = 4 // replicas
    found = list(distribution.distribute(strategy, batches_of_rows))
    assert len(found) == 2
    for number, batch in enumerate(found):
        ids = strategy.experimental_local_results(batch["id"])
        frames = strategy.experimental_local_results(batch["views"]["all"])
        for replica in range(replicas):
            first = 4 * number + size * replica
            expected = np.arange(first, first + size)
            np.testing.assert_array_equal(ids[replica].numpy(), expected)
            assert frames[replica].shape == (size, 3, 2)
            np.testing.assert_array_equal(frames[replica].numpy()[:, 2, 1], expected)


def test_a_sum_over_replicas_is_a_sum():
    strategy = helpers.cpus(2)

    @tf.function
    def total():
        def mine():
            context = tf.distribute.get_replica_context()
            number = tf.cast(context.replica_id_in_sync_group + 1, tf.float32)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, number)

        return strategy.run(mine)

    found = strategy.experimental_local_results(total())
    assert [float(x) for x in found] == [3.0, 3.0]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_policy_is_that_of_the_process(policy, use_policy):
    use_policy("float32")
    distribution.prepare_runtime(policy)
    assert keras.mixed_precision.global_policy().name == policy


def test_a_cluster_is_one_of_many_processes(monkeypatch):
    cluster = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker"}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    made = []
    monkeypatch.setattr(
        tf.distribute, "MultiWorkerMirroredStrategy", lambda: made.append(1) or "many"
    )
    assert distribution.build_strategy(0, several_machines=True) == "many" and made
