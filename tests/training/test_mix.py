"""Teaching on altered videos."""

import pytest

from tests import training_helpers as helpers

NETWORK = "MeanTanh(dropout=0.0)"


@pytest.mark.parametrize("mix", ["cut", "mixup"])
def test_teacher_and_student_see_the_same_altered_video(data, mix):
    """A student that is its teacher, and sees all frames, has nothing to learn."""
    run = helpers.make_run(
        "unused",
        data,
        mode="serial",
        teacher_checkpoint="unused",
        teacher=NETWORK,
        student=NETWORK,
        student_k=helpers.MAX_FRAMES,
        student_loss="pred",
        regularization_penalty=0.0,
        mix=mix,
    )

    def loss(copies: bool) -> float:
        def prepare(networks):
            if copies:
                networks.student.set_weights(networks.teacher.get_weights())

        runner = helpers.build_phase(run, prepare=prepare)
        return helpers.first_gradients(runner)[1]["student/loss"]

    # KL of equal distributions; float32 sums of 10 terms.
    assert abs(loss(copies=True)) < 1e-5 < loss(copies=False)


@pytest.mark.slow
def test_a_resumed_run_ends_like_one_without_a_stop(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, mode="baseline", mix="cut")
    with helpers.killed_copy(tmp_path / "run", "killed", "baseline", 7, save=True):
        helpers.train(run)
    resumed = helpers.resume(run, "killed", tmp_path)
    helpers.assert_ends_alike(run, resumed, "baseline")


@pytest.mark.once
def test_incompatible_settings_are_refused(data, tmp_path):
    for changes, flag in (
        ({"mode": "serial", "teacher_cache": "cache"}, "--teacher_cache"),
        ({"frame_features": False}, "--noframe_features"),
    ):
        with pytest.raises(ValueError) as caught:
            helpers.make_run(tmp_path / "run", data, mix="cut", **changes)
        assert "--mix=cut" in str(caught.value) and flag in str(caught.value)
