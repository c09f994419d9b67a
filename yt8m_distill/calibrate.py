"""Calibrates early exit of a student that was trained for several numbers of frames.

    python yt8m_distill/calibrate.py --train_dir=run \\
        --calibration_data_pattern='validate*.tfrecord'

One pass with all numbers of frames writes <train_dir>/early_exit.json for this
checkpoint. Then, with --mean_frames=8 or --max_regret=0.05, eval.py, inference.py and
export_model.py stop reading a video once the student is sure enough.
"""

import dataclasses
import os

from yt8m_distill import flag_groups, settings

# Accepted because the scripts share flagfiles.
_IGNORED = ("confidence", "max_regret", "mean_frames", "student_k", "top_k")


def main(
    checkpoint: settings.CheckpointSettings,
    given: settings.CalibrationSettings,
    reading: settings.ReadingSettings,
    stated: dict,
) -> None:
    """Settings → network → early_exit.json."""
    flag_groups.load_tensorflow()  # Only once the flags are right.
    import tqdm

    from yt8m_distill.evaluation import exit_calibration
    from yt8m_distill.models import early_exit
    from yt8m_distill.training import manifest
    from yt8m_distill.training import trained as trained_networks

    defaults = {n: getattr(settings.CheckpointSettings, n) for n in _IGNORED}
    checkpoint = dataclasses.replace(checkpoint, **defaults)
    trained = trained_networks.open_network(checkpoint, stated=stated)
    trained.read_nested()
    try:  # The run's --import_modules may have added it.
        early_exit.RULES.get(given.exit_rule)
    except ValueError as error:
        raise ValueError(f"--exit_rule={given.exit_rule}: {error}") from error
    shards = trained.open_shards(
        given.calibration_data_pattern, reading, "calibration_data_pattern"
    )
    answers, budgets = [], trained.budgets
    parts = exit_calibration.collect(
        trained.runner,
        budgets,
        given.exit_rule,
        trained.dataset(shards, checkpoint.batch_size),
    )
    total = shards.num_known_videos
    with tqdm.tqdm(total=total, unit="video", disable=None) as bar:
        for part in parts:
            answers.append(part)
            bar.update(len(part.num_frames))
    result = exit_calibration.calibrate(
        answers, budgets, given.exit_rule, trained.checkpoint_name
    )
    path = os.path.join(checkpoint.train_dir, trained_networks.EXIT_FILE)
    manifest.write_json(path, dataclasses.asdict(result))
    low, high = result.mean_frames[0], result.mean_frames[-1]
    videos = settings.counted(result.num_videos, "video")
    print(
        f"{videos} | {given.exit_rule} | --mean_frames from "
        f"{low:.2f} to {high:.2f} | {path}"
    )


run = flag_groups.script(
    main,
    (
        settings.CheckpointSettings,
        settings.CalibrationSettings,
        settings.ReadingSettings,
    ),
    of_a_run=True,
    unlisted=_IGNORED,
)


if __name__ == "__main__":
    run()
