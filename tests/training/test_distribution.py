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


def test_more_gpus_than_the_machine_has_are_refused(no_cluster):
    have = len(tf.config.list_physical_devices("GPU"))
    with pytest.raises(ValueError, match=f"--num_gpus={have + 1}, .* {have} GPUs"):
        distribution.build_strategy(have + 1)


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


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_policy_is_that_of_the_process(policy, use_policy):
    use_policy("float32")
    distribution.prepare_runtime(policy)
    assert keras.mixed_precision.global_policy().name == policy


CLUSTER = {"worker": ["a:1", "b:1"]}


def tf_config(cluster, kind="worker", index=0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_the_task_of_a_cluster_is_read():
    assert distribution.read_cluster(tf_config(CLUSTER, index=1)) == (
        CLUSTER,
        "worker",
        1,
    )
    with_chief = {"chief": ["c:1"], **CLUSTER}
    task = distribution.read_cluster(tf_config(with_chief, "chief", 0))
    assert task == (with_chief, "chief", 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("worker:0", "TF_CONFIG is not JSON: worker:0"),
        (tf_config({"worker": "a:1"}), "TF_CONFIG must be like .*a:1"),
        ("[1]", "TF_CONFIG must be like"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG must be like"),
        (tf_config(CLUSTER, index=2), "worker 2, .* has 2 of"),
        (tf_config(CLUSTER, index=-1), "the task is worker -1"),
        (tf_config(CLUSTER, "chief"), "chief 0, .* has 0 of"),
        (tf_config({"ps": ["p:1"], **CLUSTER}), "received ps\\."),
        (tf_config({"chief": ["c:1", "d:1"]}, "chief"), "names 2 chiefs, not one"),
        (tf_config({"worker": ["a:1", "a:1"]}), "names a:1 more than once"),
    ],
)
def test_an_invalid_cluster_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as error:
        distribution.read_cluster(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["{}", '{"cluster": {}}', tf_config({}), '{"environment": "cloud"}']
)
def test_an_empty_cluster_is_one_machine(monkeypatch, text):
    assert distribution.read_cluster(text) is None
    monkeypatch.setenv("TF_CONFIG", text)
    strategy = distribution.build_strategy(0, several_machines=True)
    assert distribution.num_processes(strategy) == 1


def test_a_cluster_is_one_of_many_processes(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(CLUSTER))
    made = []

    def make(communication_options):
        made.append(communication_options.timeout_seconds)
        return tf.distribute.get_strategy()

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", make)
    distribution.build_strategy(0, several_machines=True, timeout_secs=7)
    assert made == [7]
    # eval.py and the other programs ignore TF_CONFIG.
    distribution.build_strategy(0)
    assert made == [7]


class SeveralProcesses:
    """The strategy of the second of three processes."""

    class cluster_resolver:
        task_type, task_id = "worker", 1

        def cluster_spec():
            return tf.train.ClusterSpec({"worker": ["a:1", "b:2", "c:3"]})


def test_values_that_differ_between_processes_are_named(monkeypatch):
    strategy = SeveralProcesses()

    def gathered(strategy, numbers):
        others = np.array([numbers, numbers, numbers])
        others[2, [2, 3]] += 1  # After the leading 0: the second and the third.
        return others

    monkeypatch.setattr(distribution, "_gathered", gathered)
    with pytest.raises(ValueError) as error:
        distribution.check_agreement(strategy, {"--a": 1, "--b": "x", "shards": [2]})
    assert "--b (here 'x'), shards (here [2])" in str(error.value)
    assert "--a" not in str(error.value)
    monkeypatch.setattr(distribution, "_gathered", lambda s, n: np.array([n, n, n]))
    distribution.check_agreement(strategy, {"--a": 1})


def test_a_single_process_agrees_with_itself():
    strategy = helpers.cpus(2)
    distribution.check_agreement(strategy, {"--a": 1})
    assert distribution.largest(strategy, 15) == 15


def test_replicas_gather_one_row_each():
    rows = distribution._gathered(helpers.cpus(2), [3, 2**55])
    np.testing.assert_array_equal(rows, [[3, 2**55]] * 2)


ABORTED = (
    "Collective ops is aborted by: Error reported from /job:worker/task:2: "
    "{{node x}} on /job:worker/replica:0/task:1/device:CPU:0"
)


@pytest.mark.parametrize(
    "error_class, text, start",
    [
        (tf.errors.UnavailableError, ABORTED, "Worker 2 (c:3) "),
        (
            tf.errors.AbortedError,
            "Collective ops is aborted by: /job:worker/replica:0/task:1: Socket closed",
            "Another process ",
        ),
        (
            tf.errors.DeadlineExceededError,
            "Collective has timed out during execution.",
            "Another process does not answer within --cluster_timeout_secs",
        ),
    ],
)
def test_a_lost_process_is_one_line_that_names_it(error_class, text, start):
    with pytest.raises(distribution.WorkerLost) as error:
        with distribution.watching(SeveralProcesses()):
            raise error_class(None, None, text)
    message = str(error.value)
    assert message.startswith(start) and "3 processes" in message
    assert "\n" not in message


def test_an_error_of_the_data_is_no_lost_process():
    for strategy, text in (
        (SeveralProcesses(), "corrupted record at 12"),
        (helpers.cpus(1), ABORTED),
    ):
        with pytest.raises(tf.errors.DataLossError):
            with distribution.watching(strategy):
                raise tf.errors.DataLossError(None, None, text)
