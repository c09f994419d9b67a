"""Jobs over a data set, split into idempotent items.

One call processes an item and writes its file atomically, under a temporary name of its
own. The file depends on the item alone, so an item may be retried, run on any machine,
or run twice at the same time.

This module does not import Beam. A job is sent to other machines, so its fields are
only settings and file names; each process opens networks and data once.
"""

import dataclasses
import functools
import os
import threading

from yt8m_distill import file_patterns, settings
from yt8m_distill.data import faults, framing, index, pipeline
from yt8m_distill.data import shards as shards_module
from yt8m_distill.models import builder
from yt8m_distill.serving import parts, predictions, predictor, skips, thinning
from yt8m_distill.training import (
    distribution,
    initial_weights,
    inputs,
    manifest,
    modes,
    teacher_cache,
)
from yt8m_distill.training import trained as trained_networks
from yt8m_distill.video import extraction

PLAN = "beam.json"

# TensorFlow uses all cores for one item, so the items of other threads wait.
_ONE_AT_A_TIME = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Inference:
    """Predicts a data set in parts, as `inference.py --num_shards` does.

    An item is the index of a part of the files, which are sorted. With num_shards=1
    each file is a part.
    """

    checkpoint: settings.CheckpointSettings
    inference: settings.InferenceSettings
    reading: settings.ReadingSettings
    files: tuple[str, ...]

    @property
    def num_parts(self) -> int:
        """Number of CSVs."""
        num_shards = self.inference.num_shards
        return num_shards if num_shards > 1 else len(self.files)

    def items(self) -> list[int]:
        """The indices of the parts."""
        return list(range(self.num_parts))

    def path(self, item: int) -> str:
        """The CSV of a part."""
        return parts.part_path(self.inference.output_file, item, self.num_parts)

    def do(self, item: int) -> int:
        """Writes the CSV of a part and returns its number of videos.

        The records that `--bad_records=skip` skips are listed in a file next to it.
        `--max_bad_fraction` applies to each part.

        Raises:
            ValueError: as inference.py.
        """
        files = parts.files_of_part(self.files, item, self.num_parts)
        videos = 0
        output = predictions.PredictionWriter(self.path(item))
        with _ONE_AT_A_TIME, faults.named(files), output as writer:
            if not files:
                return 0
            trained, predict = _open_predictor(self.checkpoint)
            shards = trained.open_shards(
                files, self.reading, "input_data_pattern", may_be_empty=True
            )
            for batch in predict(trained.dataset(shards, self.checkpoint.batch_size)):
                writer.write(*batch)
                videos += len(batch.video_ids)
        skips.write_list(self.path(item), shards.skipped())
        return videos


@functools.lru_cache(maxsize=1)
def _open_predictor(checkpoint: settings.CheckpointSettings):
    trained = trained_networks.open_network(checkpoint)
    return trained, predictor.Predictor(trained.runner, checkpoint.top_k).predict


@dataclasses.dataclass(frozen=True)
class Indexing:
    """Builds the index of every shard whose index is missing or stale.

    An item is a shard.
    """

    files: tuple[str, ...]
    index_dir: str
    data: settings.DataSettings

    def items(self) -> list[str]:
        """The shards."""
        return list(self.files)

    def do(self, item: str) -> int:
        """Writes the index of a shard and returns its number of videos.

        Raises:
            ValueError: if the shard is damaged.
            OSError: if the index cannot be written.
        """
        (built,) = index.load_or_build([item], self.data, self.index_dir, required=True)
        return len(built.numbers)


@dataclasses.dataclass(frozen=True)
class Thinning:
    """Writes shards that contain only the sampled frames; see yt8m-thin.

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
        """Writes a thin shard, unless it exists, and returns its number of videos.

        Raises:
            ValueError: for a bad record, or if another shard has the output's name.
        """
        count = framing.count_records(item)
        with _ONE_AT_A_TIME:
            thinning.thin_shard(item, count, self.output_dir, self.data, self.view)
        return count


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Makes the part of every video that has none; yt8m-extract joins them.

    An item is a video. One that cannot be read counts as 0; yt8m-extract says why.
    """

    given: settings.ExtractionSettings
    features: settings.FeatureSettings

    def items(self) -> list[str]:
        """The videos."""
        return list(_open_extraction(self.given, self.features).videos)

    def do(self, item: str) -> int:
        """Makes a video's part and returns the number of videos, 1 or 0."""
        job = _open_extraction(self.given, self.features)
        return int(not job.make_part(item))


@functools.lru_cache(maxsize=1)
def _open_extraction(given, features):
    job = extraction.plan(given, features)
    os.makedirs(job.folder, exist_ok=True)
    return job


@dataclasses.dataclass(frozen=True)
class TeacherCaching:
    """Fills the teacher cache of a serial run.

    An item is a part of the cache: its index and its training shard. The cache is a
    folder that all machines share; train.py then finds it complete. The files are the
    training shards that contain videos, sorted.
    """

    run: settings.RunSettings
    files: tuple[str, ...]

    def items(self) -> list[tuple[int, str]]:
        """Index and shard of each part."""
        return list(enumerate(self.files))

    def do(self, item: tuple[int, str]) -> int:
        """Writes a part, unless it exists, and returns its number of new videos.

        Raises:
            ValueError: as `open_cache` and `teacher_cache.Builder.collect`.
        """
        part, file = item
        with _ONE_AT_A_TIME, faults.named([file]):
            cache_builder, run = open_cache(self.run), self.run
            if cache_builder.cache.has_part(part):
                return 0
            opened = _open_one(run, file)
            dataset = cache_builder.dataset(opened, run.training.train_fraction)
            ids, arrays = cache_builder.collect(dataset)
            cache_builder.cache.write_part(part, ids, arrays)
        return len(ids)


def _open_one(run: settings.RunSettings, path: str) -> shards_module.Shards:
    """Opens one training shard; --max_bad_fraction applies to all shards together."""
    reading = run.reading
    if reading.bad_records == "skip":
        reading = dataclasses.replace(reading, max_bad_fraction=1.0)
    opened = shards_module.open_shards([path], run.data, reading, "train_data_pattern")
    return opened.videos  # One entry per video, even if rows are its segments.


def plan_cache(run: settings.RunSettings) -> tuple[TeacherCaching, dict]:
    """The job that fills a cache, and the key of the data set that it covers then.

    The job has no files if the cache covers the data already. The plan is saved in the
    cache, so that a stopped job continues with the missing parts.

    Raises:
        ValueError: if the run has no cache or no teacher, the cache holds parts of
            another plan, or too many records are bad.
    """
    if not run.distillation.teacher_cache:
        raise ValueError("--teacher_cache is empty: name the folder of the cache.")
    files = file_patterns.expand(run.training.train_data_pattern, "train_data_pattern")
    fraction = run.training.train_fraction
    data = teacher_cache.data_key(files, map(index.identity, files), fraction)
    cache = open_cache(run).cache
    if cache.covers(data):
        return TeacherCaching(run, ()), data
    inputs.training_shards(run)  # Raises if too many records are invalid.
    with_videos = [path for path in files if _open_one(run, path).num_videos(fraction)]
    path = os.path.join(cache.folder, PLAN)
    plan = {"data": data, "files": with_videos}
    saved_plan = manifest.read_json(path) if os.path.exists(path) else None
    if saved_plan != plan:
        if cache.has_part(0) or saved_plan is not None:
            raise ValueError(
                f"--teacher_cache: {cache.folder} holds parts of other data, or of a "
                "run of train.py. Remove that folder, or let train.py complete it."
            )
        os.makedirs(cache.folder, exist_ok=True)
        manifest.write_json(path, plan)
    return TeacherCaching(run, tuple(with_videos)), data


def finish_cache(run: settings.RunSettings, data: dict) -> int:
    """Checks all parts, marks the data as covered and returns the number of videos.

    Raises:
        ValueError: if an id is in two parts, or a part is damaged.
    """
    key = open_cache(run).cache.key
    # Opened again, to read the parts that were written since.
    cache = teacher_cache.TeacherCache(run.distillation.teacher_cache, key)
    if not cache.covers(data):
        cache.note_covered(data)
    return len(cache)


def open_cache(run: settings.RunSettings) -> teacher_cache.Builder:
    """The builder of a serial run's cache, opened once per process.

    Raises:
        ValueError: if the run has no trained teacher, or more than one.
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
    alone = dataclasses.replace(phase, roles=phase.frozen)
    distribution.prepare_runtime(run.networks.dtype_policy)
    strategy = distribution.build_strategy(run.training.num_gpus)
    distribution.check_batch_size(run.training.batch_size, strategy)
    with strategy.scope():
        networks = builder.build_networks(alone.roles, run.data, to_be_read=True)
    initial_weights.assign(alone, networks, run)
    return teacher_cache.Builder(phase, *alone.roles, run, networks, strategy)
