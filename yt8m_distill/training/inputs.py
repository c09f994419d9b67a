"""Opens shards and makes distributed datasets of them."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Data(NamedTuple):
    """The opened shards of a run.

    Attributes:
        training: the videos of the training steps.
        validation: those of the validation, or None.
        unlabeled: further ones for phases with a guide, or None.
    """

    training: shards.Shards
    validation: shards.Shards | None = None
    unlabeled: shards.Shards | None = None


def open_data(run: settings.RunSettings) -> Data:
    """Opens all shards of a run.

    Raises:
        ValueError: as training_shards, if no video is left to train on, or none with
            its labels, or if one of the other patterns has no videos.
    """
    training, others = training_shards(run), []
    rows = "rated segments" if run.data.segment_labels else "videos"
    for flag in ("validation_data_pattern", "unlabeled_data_pattern"):
        pattern = getattr(run.training, flag)
        others.append(open_shards(run, pattern, flag) if pattern else None)
        if pattern and others[-1].is_empty:
            raise ValueError(f"--{flag}={pattern} has no {rows}.")
    share, labeled = run.training.train_fraction, run.training.label_fraction
    num_videos = training.num_videos(share)
    if num_videos == 0:
        pattern = f"--train_data_pattern={run.training.train_data_pattern}"
        if training.num_videos():
            raise ValueError(f"--train_fraction={share} leaves no video of {pattern}.")
        raise ValueError(f"{pattern} has no videos.")
    if training.num_videos(share, labeled) == 0:
        raise ValueError(
            f"--label_fraction={labeled} leaves the labels of none of the {num_videos} "
            "training videos."
        )
    return Data(training, *others)


def evaluation_dataset(
    strategy,
    opened: shards.Shards,
    views: dict,
    batch_size: int,
    train_fraction: float = 1.0,
    num_batches: int = -1,
):
    """A distributed dataset for evaluation: every video once, in order.

    It ends after `num_batches`; -1 for all. See pipeline.build_dataset for the others.
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
        ).take(num_batches),
    )
