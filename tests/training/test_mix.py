"""Teaching on altered videos."""

import pytest

from tests import training_helpers as helpers

NETWORK = "MeanTanh(dropout=0.0)"


@pytest.mark.parametrize("mix", ["cut", "mixup"])
def test_teacher_and_student_see_the_same_altered_video(data, tmp_path, mix):
    """A student that is its teacher, and sees all frames, has nothing to learn."""
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="serial",
        teacher=NETWORK,
        student=NETWORK,
        student_k=helpers.MAX_FRAMES,
        student_start="teacher",
        student_loss="pred",
        regularization_penalty=0.0,
        num_epochs=1,
        mix=mix,
    )
    helpers.train(run)
    lines = helpers.read_lines(tmp_path / "run" / "student" / "metrics.jsonl")
    losses = [line["student/loss"] for line in lines if line["kind"] == "training"]
    # KL of equal distributions; float32 sums of 10 terms.
    assert len(losses) == 3 and max(map(abs, losses)) < 1e-5


@pytest.mark.slow
def test_a_resumed_run_ends_like_one_without_a_stop(data, monkeypatch, tmp_path):
    found = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        run = helpers.make_run(folder, data, mode="baseline", mix="cut")
        if stops:
            with helpers.stopped(monkeypatch, "baseline", 7, save=True):
                helpers.train(run)
        helpers.train(run)
        found.append(helpers.read_variables(helpers.latest(folder, "baseline")))
    helpers.assert_identical(*found)


@pytest.mark.once
def test_incompatible_settings_are_refused(data, tmp_path):
    for changes, flag in (
        ({"mode": "serial", "teacher_cache": "cache"}, "--teacher_cache"),
        ({"frame_features": False}, "--noframe_features"),
    ):
        with pytest.raises(ValueError) as caught:
            helpers.make_run(tmp_path / "run", data, mix="cut", **changes)
        assert "--mix=cut" in str(caught.value) and flag in str(caught.value)
