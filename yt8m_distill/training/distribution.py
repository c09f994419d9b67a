"""Where a run computes: devices, processes, replicas, and each replica's rows.

A job on several machines is one process a machine, each started with the same flags
and with its place in TF_CONFIG. They have nothing in common but the steps: every
process opens the same shards and takes its own rows of each global batch, gradients
are summed over all, and the chief alone writes. What must be the same everywhere is
compared at the start (`check_agreement`); a process that is lost ends the others
(`watching`), for the sum over all can no longer be made.
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

_LOG = logging.getLogger(__name__)

_TASK = re.compile(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)")
_NAMED = 5  # Values that a message names at most.


class WorkerLost(ConnectionError):
    """Another process of the job is gone, or does not answer in time."""


def build_strategy(
    num_gpus: int = -1, several_machines: bool = False, timeout_secs: float = 600.0
) -> tf.distribute.Strategy:
    """MirroredStrategy over this machine's GPUs, or over its CPU without any.

    Args:
        num_gpus: how many GPUs; -1: all; 0: the CPU.
        several_machines: with TF_CONFIG in the environment, be one process of a
            MultiWorkerMirroredStrategy; returns once all of them are there.
        timeout_secs: how long to wait for another process, at the start and in a
            step. Without the others at the start the process ends, with one line and
            exit code 1.

    Raises:
        ValueError: if there are fewer GPUs than asked for, or TF_CONFIG does not
            describe a cluster with a place for this process.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if num_gpus > len(gpus):
        raise ValueError(
            f"--num_gpus={num_gpus}, but TensorFlow sees {len(gpus)} GPUs here."
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
    """One process of many, once all of them have met."""
    cluster, kind, index = read_cluster(text)
    count = sum(map(len, cluster.values()))
    _LOG.info(
        "%s %d (%s) waits for all %d processes of the job. Without them it ends after "
        "--cluster_timeout_secs=%g with exit code 1.",
        kind.capitalize(),
        index,
        cluster[kind][index],
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
        with watching(strategy):
            check_agreement(strategy, {"number of processes": count})
    return strategy


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Ends the process with exit code 1 if the block takes longer.

    TensorFlow (2.15 and 2.21) waits for the other processes in native code and holds
    the interpreter's lock there, so no thread, signal handler or exception of Python
    gets a turn; faulthandler's watchdog is native too. Its traceback would tell nobody
    anything.
    """
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def read_cluster(text: str) -> tuple[dict[str, list[str]], str, int] | None:
    """The addresses of a TF_CONFIG by kind of process, and this process' place.

    None for an empty cluster, which job systems send where there is one machine.

    Raises:
        ValueError: if it is no JSON, has other kinds than one `chief` and `worker`,
            or no place for this process. One line that begins with TF_CONFIG.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG is not JSON: {text}") from error
    rule = (
        'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": '
        '{"type": "worker", "index": 0}}'
    )
    if isinstance(found, dict) and found.get("cluster", {}) == {}:
        return None
    try:
        cluster = {str(k): list(map(str, v)) for k, v in found["cluster"].items()}
        if any(isinstance(v, str) for v in found["cluster"].values()):
            raise ValueError  # Its letters are no addresses.
        kind, index = str(found["task"]["type"]), int(found["task"]["index"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{rule}; received {text}") from error
    strange = sorted(set(cluster) - {"chief", "worker"})
    if strange:
        raise ValueError(
            f"TF_CONFIG: all processes train, as worker or as the one chief; received "
            f"{', '.join(strange)}."
        )
    if len(cluster.get("chief", [])) > 1:
        raise ValueError(f"TF_CONFIG names {len(cluster['chief'])} chiefs, not one.")
    if not 0 <= index < len(cluster.get(kind, [])):
        raise ValueError(
            f"TF_CONFIG: the task is {kind} {index}, and the cluster has "
            f"{len(cluster.get(kind, []))} of that kind, counted from 0."
        )
    addresses = sum(cluster.values(), [])
    twice = sorted({a for a in addresses if addresses.count(a) > 1})
    if twice:
        raise ValueError(f"TF_CONFIG names {', '.join(twice)} more than once.")
    return cluster, kind, index


def mirrored_strategy(devices: list[str]) -> tf.distribute.MirroredStrategy:
    """MirroredStrategy over these devices, such as ["CPU:0", "CPU:1"].

    Several CPU devices sum on one of them: TensorFlow's collective operations mixed
    up their messages there when a step had two learners (seen in 2.21).
    """
    on_cpu = all("CPU" in device.upper() for device in devices)
    operations = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=operations)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files of the run."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().as_dict()
    )


def num_processes(strategy: tf.distribute.Strategy) -> int:
    """Processes of the job."""
    resolver = strategy.cluster_resolver
    if resolver is None:
        return 1
    tasks = resolver.cluster_spec().as_dict()
    return max(sum(len(tasks.get(name, ())) for name in ("chief", "worker")), 1)


def worker_number(strategy: tf.distribute.Strategy) -> int:
    """0 in the chief and in a job of one process; 1, 2, ... in the other ones."""
    if is_chief(strategy):
        return 0
    resolver = strategy.cluster_resolver
    return max(int(resolver.task_id), 1)


def check_agreement(strategy: tf.distribute.Strategy, values: dict[str, Any]) -> None:
    """Waits for all processes and compares what each of them has.

    Args:
        strategy: the devices.
        values: name → anything JSON knows; the names are the same everywhere.

    Raises:
        ValueError: in every process, if some value is not the same in all; the message
            names it.
    """
    if num_processes(strategy) == 1:
        return
    # Never empty: without values the processes only wait for each other.
    digests = [0, *(_digest(value) for value in values.values())]
    rows = _gathered(strategy, digests)[:, 1:]
    different = [
        name
        for name, column in zip(values, rows.T, strict=True)
        if len(set(column)) > 1
    ]
    if different:
        shown = [f"{name} (here {values[name]!r})" for name in different[:_NAMED]]
        raise ValueError(
            "The processes of this job differ in what must be the same: "
            f"{', '.join(shown)}. Start all with the same flags, data and --train_dir."
        )


def _digest(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, default=str)
    # 7 bytes: an int64 has a sign.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _gathered(strategy: tf.distribute.Strategy, numbers: list[int]):
    """These int64s of every replica of every process: [replicas, N]."""
    rows = _gather_function(strategy)(tf.constant([numbers], tf.int64))
    return strategy.experimental_local_results(rows)[0].numpy()


@functools.lru_cache(maxsize=1)
def _gather_function(strategy: tf.distribute.Strategy):
    """One graph for all calls: strategy.gather traces one a call (TensorFlow 2.21)."""

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int64)])
    def gather(row):
        def mine(row):
            row = tf.identity(row)  # On the replica's device, by which it is gathered.
            return tf.distribute.get_replica_context().all_gather(row, axis=0)

        return strategy.run(mine, args=(row,))

    return gather


def largest(strategy: tf.distribute.Strategy, number: int) -> int:
    """The largest of the numbers that the processes have; waits for all of them."""
    if num_processes(strategy) == 1:
        return number
    return int(_gathered(strategy, [number]).max())


@contextlib.contextmanager
def watching(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Within it, the loss of another process is one line that names it.

    TensorFlow notices a process that was killed or cut off by its connections and by
    heartbeats, within some ten seconds, and aborts the sum in which this one waits.

    Raises:
        WorkerLost: for an error of the communication between the processes.
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
            lost = f"{lost} is gone or cannot be reached"
        raise WorkerLost(
            f"{lost[0].upper()}{lost[1:]}, so this one of the "
            f"{num_processes(strategy)} processes stops too. Its own log says why. "
            "Start all again, with as many as you like: training goes on from the "
            "last checkpoint."
        ) from error


def _lost_process(strategy: tf.distribute.Strategy, text: str) -> str:
    """The process that an error of TensorFlow's speaks of, with its address."""
    resolver = strategy.cluster_resolver
    own = (resolver.task_type, int(resolver.task_id))
    cluster = resolver.cluster_spec().as_dict()
    for kind, number in _TASK.findall(text):
        index = int(number)
        if (kind, index) != own and index < len(cluster.get(kind, ())):
            return f"{kind} {index} ({cluster[kind][index]})"
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
        strategy: the strategy in use.
        make_dataset: (input_shard: (index, count)) → dataset of the rows that
            this process has of every global batch. Every process reads the same
            records and parses only its own, so that the global batches are the
            same whatever the number of processes.

    Returns:
        The distributed dataset, or on one CPU the dataset itself. Replica r sees the
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
        # Nothing is to be divided or carried anywhere. The iterators that would do it
        # cost time: their end waits for a tuning thread of their own to wake up,
        # which sleeps twice as long each time (TensorFlow 2.21).
        return make_dataset((0, 1))
    return strategy.distribute_datasets_from_function(from_context)


def prepare_runtime(dtype_policy: str, deterministic: bool = False) -> None:
    """Sets the precision of products and, if wanted, deterministic kernels."""
    keras.mixed_precision.set_global_policy(dtype_policy)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
