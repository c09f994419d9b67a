"""Devices, processes and replicas of a run, and how batches are split over them.

A job on several machines runs one process per machine, all with the same flags and each
with its own task in TF_CONFIG. Every process opens the same shards and reads its rows
of each global batch, gradients are summed over all processes, and only the chief
writes. Values that must be equal everywhere are compared at the start
(`check_agreement`). If a process is lost, the others stop (`watching`), since the sum
cannot be computed.
"""

import contextlib
import faulthandler
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from yt8m_distill.training import interruption

_LOG = logging.getLogger(__name__)

_TASK = re.compile(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)")
_MAX_LISTED = 5  # Values listed in a message.


class WorkerLost(ConnectionError):
    """Another process of the job has ended or does not answer in time."""


def build_strategy(
    num_gpus: int = -1, several_machines: bool = False, timeout_secs: float = 600.0
) -> tf.distribute.Strategy:
    """MirroredStrategy over this machine's GPUs, or over its CPU if it has none.

    Args:
        num_gpus: number of GPUs; -1 for all, 0 for the CPU.
        several_machines: if TF_CONFIG is set, join a MultiWorkerMirroredStrategy; this
            waits for all processes.
        timeout_secs: how long to wait for another process, at the start and in a
            step. After a timeout at the start the process exits with code 1 and one
            line.

    Raises:
        ValueError: if there are too few GPUs, or TF_CONFIG does not describe a cluster
            that contains this process.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if num_gpus > len(gpus):
        raise ValueError(
            f"--num_gpus={num_gpus}, but TensorFlow finds {len(gpus)} GPUs here."
        )
    if num_gpus >= 0:
        tf.config.set_visible_devices(gpus[:num_gpus], "GPU")
        gpus = gpus[:num_gpus]
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    cluster = os.environ.get("TF_CONFIG")
    if cluster and several_machines and read_cluster(cluster):
        return _join_cluster(cluster, timeout_secs)
    devices = [f"GPU:{i}" for i in range(len(gpus))] or ["CPU:0"]
    return mirrored_strategy(devices)


def _join_cluster(text: str, timeout_secs: float) -> tf.distribute.Strategy:
    """Joins a job of several processes; waits for all of them."""
    cluster, task_type, index = read_cluster(text)
    count = sum(map(len, cluster.values()))
    _LOG.info(
        "%s %d (%s) waits for all %d processes of the job. Without them it ends after "
        "--cluster_timeout_secs=%g with exit code 1.",
        task_type.capitalize(),
        index,
        cluster[task_type][index],
        count,
        timeout_secs,
    )
    options = tf.distribute.experimental.CommunicationOptions(
        timeout_seconds=timeout_secs
    )
    with _ended_after(timeout_secs):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=options
        )
        interruption.restore_handlers()
        with watching(strategy):
            check_agreement(strategy, {"number of processes": count})
    return strategy


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Exits the process with code 1 if the block takes longer.

    TensorFlow (2.15 and 2.21) waits for the other processes in native code while it
    holds the GIL, so no Python thread, signal handler or exception can run;
    faulthandler's watchdog is native. Its traceback is discarded.
    """
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def read_cluster(text: str) -> tuple[dict[str, list[str]], str, int] | None:
    """Parses TF_CONFIG: addresses by task type, and the type and index of this process.

    None for an empty cluster, which job systems set on a single machine.

    Raises:
        ValueError: one line that begins with TF_CONFIG, if the text is not JSON, has
            other task types than one `chief` and `worker`, or lacks this process.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG is not JSON: {text}") from error
    rule = (
        'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": '
        '{"type": "worker", "index": 0}}'
    )
    if isinstance(config, dict) and config.get("cluster", {}) == {}:
        return None
    try:
        cluster = {str(k): list(map(str, v)) for k, v in config["cluster"].items()}
        if any(isinstance(v, str) for v in config["cluster"].values()):
            raise ValueError  # A string is not a list of addresses.
        task_type, index = str(config["task"]["type"]), int(config["task"]["index"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{rule}; received {text}") from error
    unknown = sorted(set(cluster) - {"chief", "worker"})
    if unknown:
        raise ValueError(
            "TF_CONFIG: only the task types worker and chief are supported; received "
            f"{', '.join(unknown)}."
        )
    if len(cluster.get("chief", [])) > 1:
        raise ValueError(f"TF_CONFIG names {len(cluster['chief'])} chiefs, not one.")
    if not 0 <= index < len(cluster.get(task_type, [])):
        raise ValueError(
            f"TF_CONFIG: the task is {task_type} {index}, but the cluster has "
            f"{len(cluster.get(task_type, []))} of that type, counted from 0."
        )
    addresses = sum(cluster.values(), [])
    duplicates = sorted({a for a in addresses if addresses.count(a) > 1})
    if duplicates:
        raise ValueError(f"TF_CONFIG names {', '.join(duplicates)} more than once.")
    return cluster, task_type, index


def mirrored_strategy(devices: list[str]) -> tf.distribute.MirroredStrategy:
    """MirroredStrategy over these devices, such as ["CPU:0", "CPU:1"].

    Several CPU devices reduce to one of them: TensorFlow's collective operations mixed
    up messages on CPUs when a step had two learners (seen in 2.21).
    """
    on_cpu = all("CPU" in device.upper() for device in devices)
    operations = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=operations)


def num_processes(strategy: tf.distribute.Strategy) -> int:
    """Number of processes of the job."""
    resolver = strategy.cluster_resolver
    if resolver is None:
        return 1
    tasks = resolver.cluster_spec().as_dict()
    return max(sum(len(tasks.get(name, ())) for name in ("chief", "worker")), 1)


def check_agreement(strategy: tf.distribute.Strategy, values: dict[str, Any]) -> None:
    """Waits for all processes and checks that their values are equal.

    Args:
        values: name → value that JSON can represent; the same names in all processes.

    Raises:
        ValueError: in every process, naming the values that differ.
    """
    if num_processes(strategy) == 1:
        return
    # The 0 keeps the list from being empty: a call without values only synchronizes.
    digests = [0, *(_digest(value) for value in values.values())]
    rows = _gathered(strategy, digests)[:, 1:]
    different = [
        name
        for name, column in zip(values, rows.T, strict=True)
        if len(set(column)) > 1
    ]
    if different:
        shown = [f"{name} (here {values[name]!r})" for name in different[:_MAX_LISTED]]
        raise ValueError(
            f"The processes of this job differ in {', '.join(shown)}. Start all with "
            "the same flags, data and --train_dir."
        )


def _digest(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, default=str)
    # 7 bytes fit a signed int64.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _gathered(strategy: tf.distribute.Strategy, numbers: list[int]):
    """Gathers int64s from every replica of every process: [replicas, N]."""
    rows = _gather_function(strategy)(tf.constant([numbers], tf.int64))
    return strategy.experimental_local_results(rows)[0].numpy()


@functools.lru_cache(maxsize=1)
def _gather_function(strategy: tf.distribute.Strategy):
    """One graph for all calls; strategy.gather retraces each call (TensorFlow 2.21)."""

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int64)])
    def gather(row):
        def replica_gather(row):
            row = tf.identity(row)  # On the replica's device, as all_gather needs.
            return tf.distribute.get_replica_context().all_gather(row, axis=0)

        return strategy.run(replica_gather, args=(row,))

    return gather


def largest(strategy: tf.distribute.Strategy, number: int) -> int:
    """The maximum of `number` over all processes; waits for all of them."""
    if num_processes(strategy) == 1:
        return number
    return int(_gathered(strategy, [number]).max())


@contextlib.contextmanager
def watching(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns the loss of another process into one line that names it.

    TensorFlow detects a killed or unreachable process by its connections and heartbeats
    within about ten seconds, and aborts the collective operation.

    Raises:
        WorkerLost: if the communication between the processes fails.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if num_processes(strategy) == 1 or "ollective" not in str(error):
            raise
        lost = _lost_process(strategy, str(error))
        if isinstance(error, tf.errors.DeadlineExceededError):
            lost = f"{lost} does not answer within --cluster_timeout_secs"
        else:
            lost = f"{lost} has ended or cannot be reached"
        raise WorkerLost(
            f"{lost[0].upper()}{lost[1:]}, so all {num_processes(strategy)} processes "
            "stop; its log gives the reason. Start them again, in any number: training "
            "continues from the last checkpoint."
        ) from error


def _lost_process(strategy: tf.distribute.Strategy, text: str) -> str:
    """The process that a TensorFlow error names, with its address."""
    resolver = strategy.cluster_resolver
    own = (resolver.task_type, int(resolver.task_id))
    cluster = resolver.cluster_spec().as_dict()
    for task_type, number in _TASK.findall(text):
        index = int(number)
        if (task_type, index) != own and index < len(cluster.get(task_type, ())):
            return f"{task_type} {index} ({cluster[task_type][index]})"
    return "another process"


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError unless every replica gets the same number of videos."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ValueError(
            f"--batch_size={batch_size} is not divisible by the {replicas} replicas."
        )


def distribute(strategy: tf.distribute.Strategy, make_dataset):
    """A dataset whose elements are global batches, split over the replicas.

    Args:
        make_dataset: (input_shard: (index, count)) → dataset of this process' rows of
            every global batch. Every process reads the same records and parses only
            its own rows, so the global batches do not depend on the number of
            processes.

    Returns:
        The distributed dataset, or on one CPU the dataset itself. Replica r gets the
        r-th slice of each batch.
    """

    def split(batch, parts: int) -> tf.data.Dataset:
        def cut(x):
            shape = tf.concat([[parts, x.shape[0] // parts], tf.shape(x)[1:]], 0)
            cut_shape = [parts, x.shape[0] // parts, *x.shape[1:]]
            return tf.ensure_shape(tf.reshape(x, shape), cut_shape)

        return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(cut, batch))

    def from_context(context: tf.distribute.InputContext) -> tf.data.Dataset:
        processes = context.num_input_pipelines
        dataset = make_dataset((context.input_pipeline_id, processes))
        local = context.num_replicas_in_sync // processes
        if local > 1:
            dataset = dataset.flat_map(lambda batch: split(batch, local))
            dataset = dataset.prefetch(local)
        return dataset

    alone = strategy.num_replicas_in_sync == 1
    if alone and not tf.config.list_logical_devices("GPU"):
        # Nothing to split or copy. Distributed iterators would cost time: deleting one
        # waits for its autotuning thread, whose sleep doubles (TensorFlow 2.21).
        return make_dataset((0, 1))
    return strategy.distribute_datasets_from_function(from_context)


def prepare_runtime(dtype_policy: str, deterministic: bool = False) -> None:
    """Sets the precision of matrix products and, optionally, deterministic kernels."""
    keras.mixed_precision.set_global_policy(dtype_policy)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
