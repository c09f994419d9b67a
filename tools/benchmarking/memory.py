"""Whether memory stays constant while the data grows."""

import os
import tempfile

from tools.benchmarking import results, shards
from yt8m_distill import settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import builder
from yt8m_distill.training import distribution, inputs, modes, trainer

GROWTH = (1, 4, 16)


def _settings(folder: str, paths: list[str]) -> settings.RunSettings:
    # A small network, so that the memory is that of the videos.
    return settings.RunSettings.from_dict(
        {
            "mode": "baseline",
            "teacher": "HierarchicalLSTM(cells=16, block_len=20)",
            "student_k": 30,
            "batch_size": 64,
            "num_epochs": 1,
            "train_dir": os.path.join(folder, "run"),
            "train_data_pattern": ",".join(paths),
        }
    )


def measure(what: str, folder: str, factor: int) -> int:
    """Peak bytes of training or evaluating on the shards of a folder."""
    paths = sorted(
        os.path.join(folder, name)
        for name in os.listdir(folder)
        if name.endswith(".tfrecord")
    )
    # More data are the same shards under other names.
    more = os.path.join(folder, f"{what}{factor}")
    os.makedirs(more)
    longer = []
    for copy in range(factor):
        for path in paths:
            name = os.path.join(more, f"{copy:02d}{os.path.basename(path)}")
            os.link(path, name)
            longer.append(name)
    run = _settings(more, longer)
    strategy = distribution.mirrored_strategy(["CPU:0"])
    if what == "training":
        trainer.train(run, strategy)
    else:
        with strategy.scope():
            networks = builder.build_networks(
                [modes.networks(run)["student"]], run.data
            )
        judge = evaluator.Evaluator(networks, "student", strategy, run.data.num_classes)
        views = modes.views_of(run, ["student"])
        dataset = inputs.evaluation_dataset(
            strategy, inputs.open_shards(run, longer, "longer"), views, 64
        )
        judge.evaluate(dataset)
    return results.resident_bytes(peak=True)


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    growth = GROWTH[:2] if quick else GROWTH
    videos = 16 if quick else 192
    table = []
    with tempfile.TemporaryDirectory() as folder:
        shards.write(folder, videos, settings.DataSettings())
        for what in ("training", "evaluation"):
            peaks = [
                results.in_own_process(measure, what, folder, factor) / results.MEBIBYTE
                for factor in growth
            ]
            sizes = ", ".join(f"{peak:.0f}" for peak in peaks)
            table.append(
                results.Row(
                    f"peak memory of {what}, {growth[-1]} times the data over once",
                    peaks[-1] / peaks[0],
                    1.1,
                    at_most=True,
                    unit="x",
                    detail=f"{sizes} MB for {', '.join(str(f) for f in growth)} times "
                    f"{videos} videos",
                )
            )
    return table
