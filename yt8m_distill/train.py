"""Trains a teacher, a baseline, or a teacher and a student.

    python yt8m_distill/train.py --mode=serial --student_k=30 \\
        --train_data_pattern='train*.tfrecord' \\
        --validation_data_pattern='validate*.tfrecord' --train_dir=run
"""

from yt8m_distill import flag_groups, settings


def main(run_settings: settings.RunSettings) -> None:
    """Settings → all phases of the mode."""
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill.training import distribution, trainer

    policy = run_settings.networks.dtype_policy
    distribution.prepare_runtime(policy, run_settings.training.deterministic)
    strategy = distribution.build_strategy(
        run_settings.training.num_gpus,
        several_machines=True,
        timeout_secs=run_settings.training.cluster_timeout_secs,
    )
    trainer.train(run_settings, strategy)


run = flag_groups.script(
    main,
    flag_groups.RUN_GROUPS,
    after_a_stop="The same command, without --start_new_model, continues from the last "
    "checkpoint.",
    preset=True,
)


if __name__ == "__main__":
    run()
