"""Runs all phases of a training, from the first checks to the last epoch."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shlex

import tensorflow as tf

from yt8m_distill import file_patterns, files, settings, vocabulary
from yt8m_distill.data import faults, judging
from yt8m_distill.training import (
    checkpoints,
    distribution,
    dry_run,
    inputs,
    manifest,
    modes,
    phase_runner,
)

_LOG = logging.getLogger(__name__)


def train(run: settings.RunSettings, strategy: tf.distribute.Strategy) -> dict:
    """Runs all phases of a mode; returns the phases' entries of the manifest.

    Raises:
        ValueError: for settings that do not match the data or an earlier run.
        FloatingPointError: if a loss or gradient is NaN or Inf.
        distribution.WorkerLost: if another process of the job is lost.
    """
    with distribution.watching(strategy), contextlib.ExitStack() as until_the_end:
        return _train(run, strategy, until_the_end)


def _train(run, strategy, until_the_end: contextlib.ExitStack) -> dict:
    plan = modes.phases(run)
    # First all checks: a rejected command must not change the run.
    names = _check(plan, run, strategy)
    data = inputs.open_data(run)
    described, skipped = _describe(data, run), data.training.skipped()
    distribution.check_agreement(strategy, _same_everywhere(run, data))
    chief = strategy.extended.should_checkpoint
    if chief:
        _begin_folder(run, names, until_the_end)
    # The other processes wait until the chief has prepared the folder.
    distribution.check_agreement(strategy, {})
    record = manifest.Manifest(run.training.train_dir, run, chief)
    finished = [
        phase.name for phase in plan if phase_runner.is_finished(phase, run, record)
    ]
    distribution.check_agreement(strategy, {"finished phases": finished})
    record.content |= {
        "data": described | skipped.to_dict(),
        "replicas": strategy.num_replicas_in_sync,
        "plan": [{"phase": phase.name, "roles": phase.describe()} for phase in plan],
    }
    record.write()
    _report_skipped(skipped)
    _LOG.info(
        "%s; %s in %s, %d per step; %s.",
        " and then ".join(f"phase {phase.name}" for phase in plan).capitalize(),
        settings.counted(
            described["videos"],
            "rated segment" if run.data.segment_labels else "video",
        ),
        settings.counted(described["files"], "shard"),
        run.training.batch_size,
        _devices(strategy),
    )
    for phase in plan:
        phase_runner.PhaseRunner(phase, run, strategy, record, data).run()
    _report_skipped(skipped)
    if chief:
        _say_what_next(plan, run, record)
    return record.content["phases"]


def _check(plan, run: settings.RunSettings, strategy) -> dict[int, str]:
    """Checks what can be checked before the shards are opened.

    Returns:
        Class index → name, from `--vocabulary`; may be empty.
    """
    distribution.check_batch_size(run.training.batch_size, strategy)
    if run.training.start_new_model:
        _has_run(run.training.train_dir)  # Raises in every process or in none.
    else:
        _check_continues(plan, run)
    if run.distillation.teacher_cache and distribution.num_processes(strategy) > 1:
        _check_cached(plan, run)
    paths = file_patterns.expand(run.training.train_data_pattern, "train_data_pattern")
    for flag in ("validation_data_pattern", "unlabeled_data_pattern"):
        if getattr(run.training, flag):
            file_patterns.expand(getattr(run.training, flag), flag)
    names = vocabulary.read(run.training.vocabulary, run.data.num_classes)
    _look_at_one_record(paths[0], run)
    dry_run.build_phases(plan, run)
    return names


def _begin_folder(
    run: settings.RunSettings, names: dict[int, str], until_the_end
) -> None:
    """Locks the train_dir, and writes the settings and names of classes there."""
    train_dir = run.training.train_dir
    if run.training.start_new_model and _has_run(train_dir):
        _move_aside(train_dir)
    what = f"--train_dir={train_dir}"
    with files.one_line_errors(what):
        tf.io.gfile.makedirs(train_dir)
    until_the_end.enter_context(files.held(train_dir, what))
    path = os.path.join(train_dir, manifest.MODEL_FLAGS)
    manifest.write_json(path, run.to_dict())
    if names:
        path = os.path.join(train_dir, manifest.VOCABULARY)
        files.write_text(path, vocabulary.to_text(names))


def _describe(data: inputs.Data, run: settings.RunSettings) -> dict[str, int | str]:
    """Numbers of shards and videos, and digests that identify the data set."""
    shards, digests = data.training, {}
    others = {"unlabeled_": data.unlabeled, "validation_": data.validation}
    for prefix, opened in {"": shards, **others}.items():
        if opened:
            rows = opened.fingerprint()
            digests[f"{prefix}shards"] = _digest(rows)
            digests[f"{prefix}names_and_sizes"] = _digest([row[:2] for row in rows])
    share, labeled = run.training.train_fraction, run.training.label_fraction
    videos = shards.num_videos(share)
    found = {"files": len(shards.paths), "videos": videos, **digests}
    if labeled < 1:
        found["videos_with_labels"] = shards.num_videos(share, labeled)
    return found


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _devices(strategy: tf.distribute.Strategy) -> str:
    """`2 replicas on GPU`."""
    kinds = {
        tf.DeviceSpec.from_string(device).device_type
        for device in strategy.extended.worker_devices
    }
    count = settings.counted(strategy.num_replicas_in_sync, "replica")
    return f"{count} on {' and '.join(sorted(kinds))}"


def _say_what_next(plan, run: settings.RunSettings, record) -> None:
    """Logs the best epoch and checkpoint of each network, and the next command."""
    train_dir = run.training.train_dir
    for phase in plan:
        results = record.phase(phase.name).get("results", {})
        for name, entry in results.items():
            best = entry["best"]
            known = "gap" in best  # Else without validation data.
            gap = f" (GAP {best['gap']:.3f})" if known else ""
            found = checkpoints.read_best(train_dir, phase.name, name)
            _LOG.info(
                "Phase %s: the %s %s is that of epoch %d%s, in %s",
                phase.name,
                "best" if known else "last",
                name,
                best["epoch"],
                gap,
                found.prefix if found else train_dir,
            )
    pattern = run.training.validation_data_pattern or "FILES"
    _LOG.info(
        "Next: yt8m-eval --train_dir=%s --eval_data_pattern=%s --run_once%s",
        shlex.quote(train_dir),
        shlex.quote(pattern),
        " --segment_labels" if run.data.segment_labels else "",
    )


def _look_at_one_record(path: str, run: settings.RunSettings) -> None:
    """Checks the data flags against one record, before anything is built.

    Raises:
        ValueError: if the first record of a shard does not match the flags.
    """
    if run.reading.bad_records != faults.STOP:
        return
    first = next(judging.read(path, run.data), None)
    if isinstance(first, judging.Video):
        problem = judging.judge_ranges(first.record, run.data)
        if problem:
            raise ValueError(f"{path}: {problem}")
    elif first and not first.is_damage:
        raise ValueError(
            f"{first.message} yt8m-inspect --data_pattern={shlex.quote(path)} prints "
            "the flags for it."
        )


def _check_continues(plan, run: settings.RunSettings) -> None:
    """Compares the settings with those of the phases that were started.

    Raises:
        ValueError: if they differ, a phase would continue although a later phase
            already uses its network, or a phase is of another mode.
    """
    longer = None
    for phase in plan:
        folder = os.path.join(run.training.train_dir, phase.name)
        if not checkpoints.has_weights(folder):
            continue
        ends_later = manifest.check_same_settings(folder, phase.settings)
        if longer:
            raise ValueError(
                f"--num_epochs or --max_steps: phase {longer.name} would go on, but "
                f"{folder} has begun with its network. Put them back "
                "(--student_epochs can be raised), or take another --train_dir."
            )
        if ends_later:
            longer = phase
    train_dir, names = run.training.train_dir, [phase.name for phase in plan]
    for name in manifest.read_phases(train_dir):
        folder = os.path.join(train_dir, name)
        if name not in names and checkpoints.has_weights(folder):
            raise ValueError(
                f"--train_dir={train_dir} has the phase {name}, which --mode="
                f"{run.distillation.mode} has not: no program would find its network "
                "again. Use another --train_dir, or --start_new_model."
            )


def _check_cached(plan, run: settings.RunSettings) -> None:
    """Raises ValueError if a cache needs a network that this job has yet to train.

    Several processes cannot fill a cache, and none can have it filled before.
    """
    record = manifest.Manifest(run.training.train_dir, run, writes=False)
    is_new, unfinished = run.training.start_new_model, set()
    for phase in plan:
        if unfinished & {role.name for role in phase.frozen}:
            raise ValueError(
                f"--teacher_cache={run.distillation.teacher_cache}: several processes "
                "cannot fill it after they have trained the teacher. Train that first, "
                "fill the cache with one process (the same command), or leave the flag "
                "out."
            )
        if is_new or not phase_runner.is_finished(phase, run, record):
            unfinished |= {role.name for role in phase.trained}


def _has_run(train_dir: str) -> bool:
    """Whether --start_new_model finds a run in a folder; False if it is empty.

    Raises:
        ValueError: if it contains other files, which are not moved.
    """
    names = set(files.names_in(train_dir)) - {files.LOCK}
    if names and manifest.MODEL_FLAGS not in names:
        raise ValueError(
            f"--start_new_model: --train_dir={train_dir} has files, but no "
            f"{manifest.MODEL_FLAGS}: no run of train.py. Nothing was moved."
        )
    return bool(names)


def _move_aside(train_dir: str) -> None:
    """Renames the folder of a run to the first <folder>.old-<number> that is free."""
    # A symbolic link stays, and its target is moved.
    folder = train_dir if files.is_remote(train_dir) else os.path.realpath(train_dir)
    folder = folder.rstrip("/")
    number = next(
        n for n in itertools.count(1) if not tf.io.gfile.exists(f"{folder}.old-{n}")
    )
    what = f"--start_new_model: --train_dir={train_dir}"
    with files.held(folder, what), files.one_line_errors(f"{folder}.old-{number}"):
        tf.io.gfile.rename(folder, f"{folder}.old-{number}")
    _LOG.info("--start_new_model: the earlier run is now %s.old-%d.", folder, number)
    if not files.is_remote(folder):
        os.makedirs(folder)  # What a link points to.


def _report_skipped(skipped: faults.Skipped) -> None:
    """Logs a line per reason, before the training and at its end."""
    for line in skipped.lines():
        _LOG.warning("Training data: %s", line)


def _same_everywhere(run: settings.RunSettings, data: inputs.Data) -> dict:
    """What all processes of a job must share: settings by flag, shards, videos.

    Paths and devices may differ between machines, the files' names may not.
    """
    own = {"train_dir", "index_dir", "vocabulary", "num_gpus", "cluster_timeout_secs"}
    own |= {"teacher_checkpoint", "teacher_cache", "start_from"}
    shared = {
        f"--{name}": value
        for name, value in run.to_dict().items()
        if name not in own and not name.endswith("data_pattern")
    }
    for name, shards in data._asdict().items():
        rows = [] if shards is None else shards.fingerprint()
        shared[f"names of the {name} shards"] = [row[0] for row in rows]
    shared["number of training videos"] = data.training.num_videos()
    return shared
