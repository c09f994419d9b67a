"""Work over a data set, cut into items that may be done anywhere, and more than once.

An item is done by one call, writes under a temporary name of its own and renames the
whole file into place. What it writes depends on the item alone. So it does not matter
how often an item is tried, on which machine, or whether two tries overlap.

Everything here is plain Python, without Beam. A work is sent to other machines: its
fields are settings and file names, and what is heavy is opened there, once a process.
"""

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Sequence

import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import faults, index, pipeline, records
from yt8m_distill.data import shards as shards_module
from yt8m_distill.models import builder
from yt8m_distill.serving import parts, predictions, predictor, skips, thinning
from yt8m_distill.training import (
    checkpoints,
    distribution,
    inputs,
    manifest,
    modes,
    teacher_cache,
)
from yt8m_distill.training import trained as trained_networks

PLAN = "beam.json"

# TensorFlow spreads one item over the processor; items of other threads wait.
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def _naming(files: Sequence[str]) -> Iterator[None]:
    """Within it, an error of TensorFlow's about a shard names that shard."""
    try:
        yield
    except tf.errors.OpError as error:
        text = faults.describe_error(error, files) or str(error)
        raise ValueError(" ".join(text.split())) from error


@dataclasses.dataclass(frozen=True)
class Inference:
    """Predicts the parts of a data set, as `inference.py --num_shards` does.

    An item is the number of a part. With num_shards=1 each file is a part.

    Args:
        checkpoint: which network.
        inference: the input and the CSV.
        reading: how the input is read.
        files: all input files, sorted.
    """

    checkpoint: settings.CheckpointSettings
    inference: settings.InferenceSettings
    reading: settings.ReadingSettings
    files: tuple[str, ...]

    @property
    def num_parts(self) -> int:
        """Number of CSVs."""
        wanted = self.inference.num_shards
        return wanted if wanted > 1 else len(self.files)

    def items(self) -> list[int]:
        """The parts' numbers."""
        return list(range(self.num_parts))

    def path(self, item: int) -> str:
        """The CSV of a part."""
        return parts.part_path(self.inference.output_file, item, self.num_parts)

    def do(self, item: int) -> int:
        """Writes a part's CSV; its number of videos comes back.

        What `--bad_records=skip` leaves out is listed beside it. `--max_bad_fraction`
        holds for each part.

        Raises:
            ValueError: as inference.py.
        """
        files = parts.files_of_part(self.files, item, self.num_parts)
        videos = 0
        output = predictions.PredictionWriter(self.path(item))
        with _ONE_AT_A_TIME, _naming(files), output as writer:
            if not files:
                return 0
            trained, predict = _open_predictor(self.checkpoint)
            shards = trained.open_shards(files, self.reading, "input_data_pattern")
            for found in predict(trained.dataset(shards, self.checkpoint.batch_size)):
                writer.write(found.video_ids, found.classes, found.scores)
                videos += len(found.video_ids)
        skips.write_list(self.path(item), shards.skipped())
        return videos


@functools.lru_cache(maxsize=1)
def _open_predictor(checkpoint: settings.CheckpointSettings):
    trained = trained_networks.open_network(checkpoint)
    made = predictor.Predictor(
        trained.networks, trained.role, trained.strategy, checkpoint.top_k
    )
    return trained, made.predict


@dataclasses.dataclass(frozen=True)
class Indexing:
    """Builds the index of every shard that has none, or a stale one.

    An item is a shard.
    """

    files: tuple[str, ...]
    index_dir: str
    data: settings.DataSettings

    def items(self) -> list[str]:
        """The shards."""
        return list(self.files)

    def do(self, item: str) -> int:
        """Writes a shard's index; its number of videos comes back.

        Raises:
            ValueError: if the shard is damaged.
            OSError: if the file system refuses.
        """
        (found,) = index.load_or_build([item], self.data, self.index_dir, required=True)
        return len(found.numbers)


@dataclasses.dataclass(frozen=True)
class Thinning:
    """Writes every shard with the sampled frames alone; see yt8m-thin.

    An item is a shard.
    """

    files: tuple[str, ...]
    output_dir: str
    data: settings.DataSettings
    view: pipeline.ViewSpec

    def items(self) -> list[str]:
        """The shards."""
        return list(self.files)

    def do(self, item: str) -> int:
        """Writes a thin shard, unless it is there; its number of videos comes back.

        Raises:
            ValueError: for a bad record, or another shard in its place.
        """
        count = records.count_records([item])
        with _ONE_AT_A_TIME:
            thinning.thin_shard(item, count, self.output_dir, self.data, self.view)
        return count


@dataclasses.dataclass(frozen=True)
class TeacherCaching:
    """Asks the frozen teacher once for every training video of a serial run.

    An item is a part of the cache: its number and its file. The cache is a folder that
    all machines share; train.py finds it complete.

    Args:
        run: settings of the run that will use the cache.
        files: the training shards that have videos, sorted.
    """

    run: settings.RunSettings
    files: tuple[str, ...]

    def items(self) -> list[tuple[int, str]]:
        """Part and file."""
        return list(enumerate(self.files))

    def do(self, item: tuple[int, str]) -> int:
        """Writes a part, unless it is there; its number of new videos comes back.

        Raises:
            ValueError: if the teacher or the data do not allow it.
        """
        part, file = item
        with _ONE_AT_A_TIME, _naming([file]):
            cache, asked, views = open_cache(self.run)
            if cache.has_part(part):
                return 0
            run = self.run
            dataset = inputs.evaluation_dataset(
                asked.strategy,
                _open_one(run, file),
                views,
                run.training.batch_size,
                run.training.train_fraction,
            )
            ids, arrays = asked.collect(dataset)
            cache.write_part(part, ids, arrays)
        return len(ids)


def _open_one(run: settings.RunSettings, path: str) -> shards_module.Shards:
    """One training shard; how many of its records may be bad is asked of all."""
    reading = dataclasses.replace(run.reading, max_bad_fraction=1.0)
    return shards_module.open_shards([path], run.data, reading, "train_data_pattern")


def plan_cache(run: settings.RunSettings) -> tuple[TeacherCaching, dict]:
    """The work of filling a cache, and the data set that it then covers.

    Without files, the cache covers the data already. The plan is noted in the cache,
    so that a stopped work goes on with the parts that are missing.

    Raises:
        ValueError: if the run has no cache or no teacher, the cache holds parts of
            another plan, or more records are bad than may be skipped.
    """
    if not run.distillation.teacher_cache:
        raise ValueError("--teacher_cache is empty: name the folder of the cache.")
    files = records.expand_patterns(
        run.training.train_data_pattern, "train_data_pattern"
    )
    fraction = run.training.train_fraction
    data = teacher_cache.data_key(files, fraction)
    cache, *_ = open_cache(run)
    if cache.covers(data):
        return TeacherCaching(run, ()), data
    inputs.training_shards(run)  # Raises if too many records are invalid.
    filled = [path for path in files if _open_one(run, path).num_videos(fraction)]
    path = os.path.join(cache.folder, PLAN)
    plan = {"data": data, "files": filled}
    known = manifest.read_json(path) if os.path.exists(path) else None
    if known != plan:
        if cache.has_part(0) or known is not None:
            raise ValueError(
                f"--teacher_cache: {cache.folder} holds parts of other data, or of a "
                "run of train.py. Remove that folder, or let train.py complete it."
            )
        os.makedirs(cache.folder, exist_ok=True)
        manifest.write_json(path, plan)
    return TeacherCaching(run, tuple(filled)), data


def finish_cache(run: settings.RunSettings, data: dict) -> int:
    """Checks all parts and notes that they cover the data; the videos come back.

    Raises:
        ValueError: if an id is in two parts, or a part is damaged.
    """
    opened, *_ = open_cache(run)
    # Anew, with all the parts that stand there now.
    cache = teacher_cache.TeacherCache(run.distillation.teacher_cache, opened.key)
    if not cache.covers(data):
        cache.note_covered(data)
    return len(cache)


def open_cache(
    run: settings.RunSettings,
) -> tuple[teacher_cache.TeacherCache, teacher_cache.Builder, dict]:
    """The cache of a serial run's teacher, what fills it, and the views that it needs.

    Opened once in a process.

    Raises:
        ValueError: if there is no trained teacher.
    """
    with _ONE_AT_A_TIME:
        return _open_cache(run)


@functools.lru_cache(maxsize=1)
def _open_cache(run: settings.RunSettings):
    phase = next((p for p in modes.phases(run) if p.frozen), None)
    if phase is None:
        raise ValueError(
            f"--teacher_cache goes with --mode=serial; received --mode="
            f"{run.distillation.mode}."
        )
    if len(phase.frozen) > 1:
        raise ValueError(
            f"--teacher_checkpoint={run.distillation.teacher_checkpoint}: name one "
            "teacher at a time here."
        )
    (role,) = phase.frozen
    if phase.states_of:
        teacher_cache.check_same_frames(
            phase.views[phase.states_of], run.data.max_frames
        )
    start = role.start
    prefix = start.prefix
    if not prefix:
        found = checkpoints.read_best(run.training.train_dir, start.phase, start.role)
        if found is None:
            raise ValueError(
                f"--train_dir={run.training.train_dir} has no trained {start.role} "
                "yet: train it first, or name a --teacher_checkpoint."
            )
        prefix = found.prefix
    distribution.prepare_runtime(run.networks.dtype_policy)
    strategy = distribution.build_strategy(run.training.num_gpus)
    distribution.check_batch_size(run.training.batch_size, strategy)
    with strategy.scope():
        networks = builder.build_networks([role], run.data, to_be_read=True)
    checkpoints.restore_network(prefix, start.role, networks.network(role.name))
    views = phase.view_specs({role.view, phase.states_of})
    key = teacher_cache.describe(
        networks.network(role.name), role, run, views.get(phase.states_of)
    )
    cache = teacher_cache.TeacherCache(run.distillation.teacher_cache, key)
    names = (role.name, phase.states_of)
    return cache, teacher_cache.Builder(cache, networks, strategy, *names), views
