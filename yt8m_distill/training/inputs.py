"""What a run's networks read: their views of the videos, and how shards are read."""

from yt8m_distill import settings, structures
from yt8m_distill.data import pipeline, validation
from yt8m_distill.models import builder
from yt8m_distill.training import distribution


def views_of(
    run: settings.RunSettings, roles: list[str], training: bool = False
) -> dict:
    """The views that the roles' networks read, name → pipeline.ViewSpec."""
    views = {
        structures.ALL: pipeline.ViewSpec("all", run.data.max_frames),
        structures.SAMPLED: pipeline.sampled_view(run.sampling, training),
    }
    return {builder.VIEWS[role]: views[builder.VIEWS[role]] for role in roles}


def reading(given: settings.TrainingSettings | settings.CheckpointSettings) -> dict:
    """The arguments of pipeline.build_dataset that say how shards are read."""
    return {
        "num_readers": given.num_readers,
        "use_index": given.use_index,
        "index_dir": given.index_dir,
        "bad_records": given.bad_records,
        "max_bad_fraction": given.max_bad_fraction,
    }


def finding(given) -> dict:
    """The arguments of pipeline.count_videos that say which records are read."""
    return {name: v for name, v in reading(given).items() if name != "num_readers"}


def find_skipped(files, data, given) -> validation.Skipped | None:
    """What `--bad_records=skip` leaves out of some shards; None under `stop`."""
    return pipeline.find_skipped(files, data, **finding(given))


def evaluation_dataset(
    strategy,
    pattern: str | list[str],
    data,
    views: dict,
    batch_size: int,
    how: dict | None = None,
):
    """A distributed dataset for evaluation: every video once, in order.

    Args:
        strategy: the devices.
        pattern, data, views, batch_size: as in pipeline.build_dataset.
        how: see `reading`.
    """
    return distribution.distribute(
        strategy,
        lambda shard: pipeline.build_dataset(
            pattern,
            data,
            views,
            batch_size=batch_size,
            training=False,
            input_shard=shard,
            **(how or {}),
        ),
    )
