"""Opens shards and makes distributed datasets of them."""

from collections.abc import Sequence

from yt8m_distill import settings
from yt8m_distill.data import pipeline, shards
from yt8m_distill.training import distribution


def open_shards(
    run: settings.RunSettings, patterns: str | Sequence[str], flag: str
) -> shards.Shards:
    """Opened shards that are read as the run reads its own."""
    return shards.open_shards(patterns, run.data, run.reading, flag)


def training_shards(run: settings.RunSettings) -> shards.Shards:
    """The opened shards of a run's training data.

    Raises:
        ValueError: as shards.open_shards, or if no video has a label.
    """
    flag = "train_data_pattern"
    found = open_shards(run, run.training.train_data_pattern, flag)
    found.check_labels(flag)
    return found


def evaluation_dataset(
    strategy,
    opened: shards.Shards,
    views: dict,
    batch_size: int,
    train_fraction: float = 1.0,
):
    """A distributed dataset for evaluation: every video once, in order.

    Args:
        strategy: the devices.
        opened, views, batch_size, train_fraction: as in pipeline.build_dataset.
    """
    return distribution.distribute(
        strategy,
        lambda shard: pipeline.build_dataset(
            opened,
            views,
            batch_size=batch_size,
            training=False,
            train_fraction=train_fraction,
            input_shard=shard,
        ),
    )
