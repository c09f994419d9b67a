"""A run from its first check to the end of its last phase."""

import contextlib
import logging
import os

import tensorflow as tf

from yt8m_distill import files, settings
from yt8m_distill.data import faults, records
from yt8m_distill.training import (
    checkpoints,
    distribution,
    inputs,
    manifest,
    modes,
    phase_runner,
    rehearsal,
    run_files,
)

_LOG = logging.getLogger(__name__)


def train(run: settings.RunSettings, strategy: tf.distribute.Strategy) -> dict:
    """Runs all phases of a mode; the phases' entries of the manifest come back.

    Raises:
        ValueError: for settings that do not fit the data or an earlier run.
        FloatingPointError: if a loss or gradient is no longer a number.
        distribution.WorkerLost: if another process of the job is gone.
    """
    with distribution.watching(strategy), contextlib.ExitStack() as until_the_end:
        return _train(run, strategy, until_the_end)


def _train(run, strategy, until_the_end: contextlib.ExitStack) -> dict:
    distribution.check_batch_size(run.training.batch_size, strategy)
    plan = modes.phases(run)
    train_dir = run.training.train_dir
    # Before anything is written or removed: a refused command leaves the run as it
    # was.
    for phase in plan if not run.training.start_new_model else ():
        folder = os.path.join(train_dir, phase.name)
        if _has_weights(folder):
            manifest.check_same_settings(folder, manifest.phase_settings(phase, run))
    chief = distribution.is_chief(strategy)
    records.expand_patterns(run.training.train_data_pattern, "train_data_pattern")
    pattern = run.training.validation_data_pattern
    if pattern:
        records.expand_patterns(pattern, "validation_data_pattern")
    rehearsal.rehearse(plan, run)
    shards, validation = inputs.training_shards(run), None
    if pattern:
        validation = inputs.open_shards(run, pattern, "validation_data_pattern")
    skipped = shards.skipped()
    num_videos = shards.num_videos(run.training.train_fraction)
    if num_videos == 0:
        raise ValueError(
            f"--train_data_pattern={run.training.train_data_pattern} has no videos."
        )
    if run.training.start_new_model:
        run_files.list_run(train_dir)  # Refused in every process, or in none.
    shared = {"names of the training shards": [row[0] for row in shards.fingerprint()]}
    shared |= {"number of training videos": num_videos}
    distribution.check_agreement(strategy, shared | _same_everywhere(run))
    if chief:
        what = f"--train_dir={train_dir}"
        with files.one_line_errors(what):
            tf.io.gfile.makedirs(train_dir)
        until_the_end.enter_context(files.held(train_dir, what))
        if run.training.start_new_model:
            run_files.remove_run(train_dir)
        path = os.path.join(train_dir, manifest.MODEL_FLAGS)
        manifest.write_json(path, run.to_dict())
    # Nobody looks into the folder before the chief is done with it.
    distribution.check_agreement(strategy, {})
    record = manifest.Manifest(train_dir, run, chief)
    finished = [
        phase.name for phase in plan if record.phase(phase.name).get("finished")
    ]
    distribution.check_agreement(strategy, {"finished phases": finished})
    record.content["data"] = {"files": len(shards.paths), "videos": num_videos}
    if skipped:
        record.content["data"] |= skipped.to_dict()
        _report_skipped(skipped)
    record.content["replicas"] = strategy.num_replicas_in_sync
    record.write()
    for phase in plan:
        phase_runner.PhaseRunner(phase, run, strategy, record, shards, validation).run()
    if skipped:
        _report_skipped(skipped)
    return record.content["phases"]


def _report_skipped(skipped: faults.Skipped) -> None:
    """A line for each reason, before the training and at its end."""
    for line in skipped.lines():
        _LOG.warning("Training data: %s", line)


def _has_weights(folder: str) -> bool:
    """Whether a phase has come to a checkpoint: before, it can begin otherwise."""
    pattern = os.path.join(folder, checkpoints.CHECKPOINTS, "*.index")
    best = os.path.join(folder, checkpoints.BEST)
    return bool(tf.io.gfile.glob(pattern)) or tf.io.gfile.isdir(best)


def _same_everywhere(run: settings.RunSettings) -> dict:
    """The settings that all processes of a job must share, by flag.

    Folders may be mounted elsewhere on another machine, and devices differ.
    """
    own = {"train_dir", "train_data_pattern", "validation_data_pattern", "index_dir"}
    own |= {"teacher_checkpoint", "teacher_cache", "num_gpus", "cluster_timeout_secs"}
    return {f"--{k}": v for k, v in run.to_dict().items() if k not in own}
