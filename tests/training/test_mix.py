"""Teaching on altered videos."""

import pytest

from tests import training_helpers as helpers
from yt8m_distill.training import manifest

NETWORK = "MeanTanh(dropout=0.0)"


@pytest.mark.parametrize("mix", ["cut", "mixup"])
def test_teacher_and_student_see_the_same_altered_video(
    data, monkeypatch, tmp_path, mix
):
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
        mix=mix,
    )
    with helpers.stopped(monkeypatch, "student", 7, save=True):
        helpers.train(run)
    helpers.train(run)
    lines = helpers.read_lines(tmp_path / "run" / "student" / "metrics.jsonl")
    losses = [line["student/loss"] for line in lines if line["kind"] == "training"]
    # KL of equal distributions; float32 sums of 10 terms.
    assert len(losses) > 4 and max(map(abs, losses)) < 1e-5
    # The teacher learned from altered videos, and other ones than without --mix.
    plain = helpers.change(
        run, mode="teacher", mix="none", train_dir=str(tmp_path / "p")
    )
    helpers.train(plain)
    first, other = (
        manifest.read_phases(str(tmp_path / name))["teacher"]["results"]["teacher"]
        for name in ("run", "p")
    )
    assert first["epochs"][0]["loss"] != other["epochs"][0]["loss"]


def test_a_resumed_run_ends_like_one_without_a_stop(data, monkeypatch, tmp_path):
    found = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        run = helpers.make_run(
            folder, data, mode="parallel", mix="cut", student_k="2,6"
        )
        if stops:
            with helpers.stopped(monkeypatch, "parallel", 7, save=True):
                helpers.train(run)
        helpers.train(run)
        found.append(helpers.read_variables(helpers.latest(folder, "parallel")))
    helpers.assert_identical(*found)


@pytest.mark.once
def test_what_does_not_go_together_is_refused(data, tmp_path):
    for changes, flag in (
        ({"mode": "serial", "teacher_cache": "cache"}, "--teacher_cache"),
        ({"frame_features": False}, "--noframe_features"),
    ):
        with pytest.raises(ValueError) as caught:
            helpers.make_run(tmp_path / "run", data, mix="cut", **changes)
        assert "--mix=cut" in str(caught.value) and flag in str(caught.value)
