"""Exports a trained network, for a server or a small machine.

    python yt8m_distill/export_model.py --train_dir=run --export_dir=run/export
    python yt8m_distill/export_model.py --train_dir=run --format=litert_int8 \\
        --eval_data_pattern='validate*.tfrecord'

With --segments it is exported with what scores the segments of whole videos.

The exported model is compared with the network, and kept only if their scores agree. No
GPU is used. --batch_size and --num_gpus of the other scripts are accepted and ignored,
so that all can share a flagfile; --help does not list them. --video_id_key is the key
of the ids in the records that the SavedModel will receive.
"""

import dataclasses
import logging
import os

from yt8m_distill import flag_groups, settings

# By name: in a script `__name__` is `__main__`, and only the package's lines are shown.
_LOG = logging.getLogger("yt8m_distill.export_model")

# Accepted because the scripts share flagfiles.
_IGNORED = ("batch_size", "num_gpus")
_BATCH_SIZE = 64  # Of the videos that are compared.


def main(
    checkpoint: settings.CheckpointSettings,
    given: settings.ExportSettings,
    reading: settings.ReadingSettings,
    stated: dict,
) -> None:
    """Settings → network → exported model."""
    # A model that is traced with visible GPUs contains cuDNN kernels, not for CPUs.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if checkpoint.early_exit and given.format != "saved_model":
        raise ValueError(
            f"--format={given.format} has no early exit; {checkpoint.early_exit} needs "
            "--format=saved_model."
        )
    flag_groups.load_tensorflow()  # Only once the flags are right.
    import tensorflow as tf

    from yt8m_distill.data import pipeline
    from yt8m_distill.serving import export, exported, parity, segments, served
    from yt8m_distill.training import trained as trained_networks

    # For plain variables; a SavedModel needs no mirrored ones.
    strategy = tf.distribute.get_strategy()
    trained = trained_networks.open_network(
        checkpoint,
        strategy=strategy,
        stated=stated,
        segment_context=given.segment_context if given.segments else None,
    )
    # Of the records of a request only the frames are read.
    data = dataclasses.replace(trained.run.data, segment_labels=False)
    pattern = given.eval_data_pattern
    network, view = trained.network, trained.view
    if given.segments:
        views = trained.views.values()
        grid = segments.make_grid(given, trained.role, views, data.max_frames)
        network = segments.SegmentNetwork(trained.networks, trained.role, grid)
        view = pipeline.ViewSpec("all", data.max_frames)
    # Early exit and segments have no signature for another number of frames.
    alone = checkpoint.early_exit or given.segments
    budgets = () if alone else trained.budgets
    to_export = served.Served(network, data, view, checkpoint.top_k, budgets)
    videos = None
    if pattern:
        if checkpoint.early_exit:  # What its signature `frames` takes.
            every = view._replace(sampler="all", k=data.max_frames)
            trained.views = {trained.view_name: every}
        shards = trained.open_shards(
            pattern, reading, "eval_data_pattern", given.segments
        )
        videos = map(parity.of_batch, trained.dataset(shards, _BATCH_SIZE))
        if given.segments:  # The labels are those of whole videos.
            videos = (found._replace(labels=None) for found in videos)
    suffix = "" if given.format == "saved_model" else f"-{given.format}"
    folder = given.export_dir or os.path.join(
        checkpoint.train_dir, "export", f"{trained.role}{suffix}"
    )
    names = trained.class_names(given.vocabulary)
    more = exported.extra_files(data, names, given.extraction_manifest)
    result = export.export(to_export, folder, given.format, videos, more)
    _LOG.info(
        "On %s of %s its scores differ by up to %.2g from the network's.",
        settings.counted(result.videos, "video"),
        pattern or "noise",
        result.difference,
    )
    if result.gap is not None:
        _LOG.info(
            "Its GAP is %.5f, the network's %.5f.", result.gap, result.gap_of_network
        )
    _LOG.info("The %s of %s is in %s.", trained.role, trained.found.prefix, folder)


run = flag_groups.script(
    main,
    (settings.CheckpointSettings, settings.ExportSettings, settings.ReadingSettings),
    of_a_run=True,
    unlisted=_IGNORED,
)


if __name__ == "__main__":
    run()
