"""Exports a trained network, for a server or a small machine.

    python yt8m_distill/export_model.py --train_dir=run --export_dir=run/export
    python yt8m_distill/export_model.py --train_dir=run --format=litert_int8 \\
        --eval_data_pattern='validate*.tfrecord'

The exported model is compared with the network, and kept only if their scores agree. No
GPU is used. --batch_size and --num_gpus of the other scripts are accepted and ignored,
so that all can share a flagfile; --help does not list them. --video_id_key is the key
of the ids in the records that the SavedModel will receive.
"""

import logging
import os
import sys

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups, settings

# By name: in a script `__name__` is `__main__`, and only the package's lines are shown.
_LOG = logging.getLogger("yt8m_distill.export_model")

# Accepted because the scripts share flagfiles.
_IGNORED = ("batch_size", "num_gpus")
_BATCH_SIZE = 64  # Of the videos that are compared.


def main() -> None:
    """Flags → network → exported model."""
    # A model that is traced with visible GPUs contains cuDNN kernels, not for CPUs.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    checkpoint = flag_groups.read(settings.CheckpointSettings)
    given = flag_groups.read(settings.ExportSettings)
    reading = flag_groups.read(settings.ReadingSettings)
    stated = flag_groups.read_stated()
    if checkpoint.early_exit and given.format != "saved_model":
        raise ValueError(
            f"--format={given.format} has no early exit; {checkpoint.early_exit} needs "
            "--format=saved_model."
        )
    flag_groups.load_tensorflow()  # Only once the flags are right.
    import tensorflow as tf

    from yt8m_distill.serving import export, extras, parity, served
    from yt8m_distill.training import trained as trained_networks

    # For plain variables; a SavedModel needs no mirrored ones.
    strategy = tf.distribute.get_strategy()
    trained = trained_networks.open_network(
        checkpoint, strategy=strategy, stated=stated
    )
    (view,) = trained.views.values()
    data, pattern = trained.run.data, given.eval_data_pattern
    top_k = min(checkpoint.top_k, data.num_classes)
    # Early exit chooses among them by itself.
    budgets = () if checkpoint.early_exit else trained.budgets
    network = served.Served(trained.network, data, view, top_k, budgets)
    videos = None
    if pattern:
        if checkpoint.early_exit:  # What its signature `frames` takes.
            (name,) = trained.views
            trained.views = {name: view._replace(sampler="all", k=data.max_frames)}
        shards = trained.open_shards(pattern, reading, "eval_data_pattern")
        videos = map(parity.of_batch, trained.dataset(shards, _BATCH_SIZE))
    suffix = "" if given.format == "saved_model" else f"-{given.format}"
    folder = given.export_dir or os.path.join(
        checkpoint.train_dir, "export", f"{trained.role}{suffix}"
    )
    names = trained.class_names(given.vocabulary)
    extra_files = extras.make(data, names, given.extraction_manifest)
    result = export.export_as(given.format, network, folder, videos, extra_files)
    _LOG.info(
        "On %d %s its scores differ by up to %.2g from the network's.",
        result.videos,
        f"videos of {pattern}" if pattern else "videos of noise",
        result.difference,
    )
    if result.gap is not None:
        _LOG.info(
            "Its GAP is %.5f, the network's %.5f.", result.gap, result.gap_of_network
        )
    _LOG.info("The %s of %s is in %s.", trained.role, trained.found.prefix, folder)


def run() -> None:
    """Console entry point."""
    groups = (
        settings.CheckpointSettings,
        settings.ExportSettings,
        settings.ReadingSettings,
    )
    flag_groups.run_script(
        main,
        groups,
        after_a_stop="No model was written; the same command exports again.",
        stated=flag_groups.RUN_GROUPS,
        unlisted=_IGNORED,
    )


if __name__ == "__main__":
    run()
