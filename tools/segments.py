"""Compares ways of learning the segments of videos, on synthetic videos.

    python tools/segments.py --output_dir=segments_output --write_to=docs/segments.md

Makes the videos, whose shots are known (tools/make_synthetic_records.py), trains a
network on the videos and from it one network of segments per way and seed, and measures
mAP@K and GAP on the rated segments of the test videos. The last column is mAP@K where
classes that a video lacks count as rated, too: as absent. Finished runs are not
repeated. The table, mean ± sample standard deviation over the seeds, goes between
<!-- segments --> and <!-- /segments --> of a Markdown file.
"""

import argparse
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

# Run as a file, the root is one folder up.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from yt8m_distill import flag_groups, settings, structures

flag_groups.load_tensorflow()

import keras  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402

from tools.reproduction import document, plan, runner, texts  # noqa: E402
from yt8m_distill.evaluation import segments  # noqa: E402
from yt8m_distill.training import trained  # noqa: E402

# 3,750 rated segments of three of the four validation shards train.
DATA = (
    *("--num_train=2000", "--num_validate=1000", "--num_test=1000"),
    *("--num_classes=50", "--feature_sizes=128,32", "--rated_segments=5"),
)
BASE: dict[str, Any] = {
    "feature_names": "audio",
    "feature_sizes": "32",
    "num_classes": 50,
    "teacher": "AttentionPooling(hidden_size=128)",
    "batch_size": 32,
    "student_k": "11",
}
VIDEOS = "videos"
METRICS = {"map": "mAP@K", "gap": "GAP", "map_known": "mAP@K, lacking classes absent"}


class Way(NamedTuple):
    """A row of the table.

    Attributes:
        label: what it is.
        settings: of its run, in addition to BASE; None: it has no run of its own.
        of: name of the run that is measured; empty: its own.
        mean_with: name of the run of --mean_with, and its weight.
        context: of the evaluation; -1: that of training.
    """

    label: str
    settings: dict[str, Any] | None = None
    of: str = ""
    mean_with: tuple[str, float] | None = None
    context: int = -1


_TUNED = {"mode": "baseline", "segment_labels": True, "start_from": "{videos}"}
_TAUGHT = {
    "mode": "serial",
    "segment_labels": True,
    "teacher_checkpoint": "{videos}",
    "teacher_cache": "{cache}",
    "student_start": "teacher",
}
_NEGATIVES = {"segment_negatives": 0.5}
_CONTEXT = {**_TAUGHT, "student_loss": "ce", "video_context": True}
WAYS = {
    VIDEOS: Way("video labels alone, on the 11 frames", {"mode": "teacher"}),
    "whole": Way("video labels alone, on the whole video", None, VIDEOS, (VIDEOS, 1.0)),
    "tuned_0": Way(
        "fine-tuned, no frames of context",
        {**_TUNED, "segment_context": 0, "student_k": "5"},
    ),
    "tuned": Way("fine-tuned", _TUNED),
    "negatives": Way("fine-tuned, negatives 0.5", {**_TUNED, **_NEGATIVES}),
    "second_task": Way(
        "fine-tuned, second task `ce + 0.1*video_ce`",
        {**_TUNED, "label_loss": "ce + 0.1*video_ce"},
    ),
    "taught": Way(
        "teacher → student, `ce + 0.1*pred`",
        {**_TAUGHT, "student_loss": "ce + 0.1*pred"},
    ),
    "aware_alone": Way("context-aware, `ce`", _CONTEXT),
    "aware": Way("context-aware, `ce`, negatives 0.5", {**_CONTEXT, **_NEGATIVES}),
    "mean": Way("mean of fine-tuned and whole video", None, "tuned", (VIDEOS, 0.3)),
    "mean_negatives": Way(
        "mean of negatives 0.5 and whole video", None, "negatives", (VIDEOS, 0.3)
    ),
    "both": Way(
        "mean of negatives 0.5, with and without context",
        None,
        "aware",
        ("negatives", 0.5),
    ),
}


def make_experiment(
    folder: pathlib.Path, name: str, seed: int, videos: plan.Experiment | None
) -> plan.Experiment:
    """The run of a way: 8 epochs of videos, or 10 of segments after those."""
    data, train_dir = folder / "data", str(folder / f"{name}-{seed}")
    places = {"videos": videos and videos.train_dir, "cache": folder / "teacher_cache"}
    own = WAYS[name].settings
    own = {k: v.format(**places) if type(v) is str else v for k, v in own.items()}
    values = {
        **BASE,
        "seed": seed,
        "num_epochs": 10 if videos else 8,
        "train_data_pattern": f"{data}/{'validate000[0-2]' if videos else 'train*'}"
        ".tfrecord",
        "validation_data_pattern": f"{data}/validate0003.tfrecord",
        "train_dir": train_dir,
        **own,
    }
    script = str(plan.ROOT / "yt8m_distill" / "train.py")
    command = (sys.executable, script, *(f"--{k}={v}" for k, v in values.items()))
    run = settings.RunSettings.from_dict(values)
    cell = plan.Cell(name, run.sampling.student_k if videos else None, seed)
    return plan.Experiment(cell, train_dir, command, run, videos)


def make_experiments(folder: pathlib.Path, seeds: list[int]) -> list[plan.Experiment]:
    """The runs of all ways that have one, that of the videos first."""
    made = []
    for seed in seeds:
        videos = make_experiment(folder, VIDEOS, seed, None)
        names = [name for name, way in WAYS.items() if way.settings is not None]
        made += [videos]
        made += [make_experiment(folder, n, seed, videos) for n in names if n != VIDEOS]
    return made


def measure(folder: pathlib.Path, name: str, seed: int) -> dict[str, float]:
    """A way's network on the rated segments of the test videos.

    Returns:
        `map` and `gap` by the ratings, and `map_known`, where every class that is no
        label of a video is absent from its segments.
    """
    way = WAYS[name]
    given = settings.CheckpointSettings(f"{folder}/{way.of or name}-{seed}")
    found = trained.open_network(given, segment_context=way.context)
    if way.mean_with:
        other, weight = way.mean_with
        found.mean_with(given, f"{folder}/{other}-{seed}", weight)
    scores_of = tf.function(
        lambda views: tf.sigmoid(found.networks.forward(found.role, views).logits)
    )
    by_rating, known = (segments.SegmentAccumulator(BASE["num_classes"]) for _ in "12")
    shards = found.open_shards(
        f"{folder}/data/test*.tfrecord", settings.ReadingSettings(), "test"
    )
    for batch in found.dataset(shards, given.batch_size):
        scores = scores_of(batch[structures.VIEWS]).numpy()
        labels, rated, of_video, weights = (
            batch[name].numpy()
            for name in (
                structures.LABELS,
                structures.LABEL_WEIGHTS,
                structures.VIDEO_LABELS,
                structures.WEIGHTS,
            )
        )
        for pool, counted in ((by_rating, rated), (known, rated + 1 - of_video)):
            pool.update(segments.RatedScores(scores, labels, counted, weights, weights))
    metrics = by_rating.result()
    return {"map": metrics.map, "gap": metrics.gap, "map_known": known.result().map}


def table_of(lines: list[dict]) -> document.Table:
    """A row per way, over its seeds."""
    frame = pd.DataFrame(lines)
    rows = []
    for name, way in WAYS.items():
        of_way = frame[frame["way"] == name]
        numbers = [texts.spread_text(of_way[metric]) for metric in METRICS]
        rows.append([way.label, *numbers])
    return document.Table(("network", *METRICS.values()), rows)


def main() -> None:
    """Trains what is missing, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--write_to", type=pathlib.Path, help="a Markdown file")
    given = parser.parse_args()
    folder = given.output_dir.resolve()
    maker = pathlib.Path(__file__).with_name("make_synthetic_records.py")
    if not (folder / "data" / "dataset.json").exists():
        command = [sys.executable, maker, f"--output_dir={folder}/data", *DATA]
        subprocess.run(command, check=True)
    seeds = list(map(int, given.seeds.split(",")))
    work = runner.Runner(make_experiments(folder, seeds))
    if work.run() or work.received is not None:
        sys.exit("Not all runs have finished. The same command continues.")
    lines = []
    for seed in seeds:
        for name in WAYS:
            keras.backend.clear_session()
            lines.append({"way": name, "seed": seed, **measure(folder, name, seed)})
            print(lines[-1], flush=True)
    table = document.table_text(table_of(lines))
    print(table)
    if given.write_to:
        text = document.replace_section(given.write_to.read_text(), "segments", table)
        given.write_to.write_text(text)


if __name__ == "__main__":
    main()
