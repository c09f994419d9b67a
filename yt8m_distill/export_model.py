"""Exports a trained network as a SavedModel for serving.

    python yt8m_distill/export_model.py --train_dir=run --export_dir=run/export

It reads no shards and uses no GPU. The flags of the other scripts that speak of those
(--batch_size, --bad_records, ...) are taken, for a flagfile that all share, and
ignored; --help does not list them. --video_id_key is the key of the ids in the records
that the SavedModel is to be sent.
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

# They stand in flagfiles that the scripts share.
_IGNORED = (
    *("bad_records", "batch_size", "index_dir", "max_bad_fraction"),
    *("num_gpus", "num_readers", "use_index"),
)


def main() -> None:
    """Flags → network → SavedModel."""
    # A model traced with GPUs in sight holds cuDNN kernels, which no CPU can run.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    checkpoint = flag_groups.read(settings.CheckpointSettings)
    given = flag_groups.read(settings.ExportSettings)
    stated = flag_groups.read_stated()
    flag_groups.load_tensorflow()  # Only once the flags are right.
    import tensorflow as tf

    from yt8m_distill.serving import export
    from yt8m_distill.training import trained as trained_networks

    # Plain variables: a SavedModel has no use for mirrored ones.
    strategy = tf.distribute.get_strategy()
    trained = trained_networks.open_network(
        checkpoint, strategy=strategy, stated=stated
    )
    (view,) = trained.views.values()
    folder = given.export_dir or os.path.join(
        checkpoint.train_dir, "export", trained.role
    )
    export.export(trained.network, trained.run.data, view, folder, checkpoint.top_k)
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
        after_a_stop="Nothing has its final name; the same command exports anew.",
        stated=flag_groups.RUN_GROUPS,
        unlisted=_IGNORED,
    )


if __name__ == "__main__":
    run()
