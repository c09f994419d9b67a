"""Where a run computes: devices, replicas, and each replica's rows."""

import json
import os

import keras
import tensorflow as tf


def build_strategy(
    num_gpus: int = -1, several_machines: bool = False
) -> tf.distribute.Strategy:
    """MirroredStrategy over this machine's GPUs, or over its CPU without any.

    Args:
        num_gpus: how many GPUs; -1: all; 0: the CPU.
        several_machines: with TF_CONFIG in the environment, be one process of a
            MultiWorkerMirroredStrategy.

    Raises:
        ValueError: if there are fewer GPUs than asked for, or TF_CONFIG is not
            JSON.
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
    if cluster and several_machines:
        try:
            json.loads(cluster)
        except ValueError as error:
            raise ValueError(f"TF_CONFIG is not JSON: {cluster}") from error
        return tf.distribute.MultiWorkerMirroredStrategy()
    devices = [f"GPU:{i}" for i in range(len(gpus))] or ["CPU:0"]
    return mirrored_strategy(devices)


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
