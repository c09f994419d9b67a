"""Training where the labels of some videos do not count."""

import numpy as np
import pytest

from tests import training_helpers as helpers
from yt8m_distill.data import records
from yt8m_distill.training import manifest, modes

FRACTION = 0.4


def write(folder, videos) -> None:
    folder.mkdir()
    helpers.write_shard(folder / "train-0.tfrecord", videos[:18])
    helpers.write_shard(folder / "train-1.tfrecord", videos[18:])


@pytest.mark.slow
def test_labels_without_weight_do_not_change_the_result(tmp_path, caplog):
    """Neither the teacher, nor the student, nor how its classifier starts."""
    videos = helpers.make_videos(36, seed=1, prefix="t")
    keeps = records.keeps_labels([name for name, *_ in videos], FRACTION).numpy()
    assert 8 < keeps.sum() < 24
    others = [
        (name, labels if kept else [(labels[0] + 1) % 10], frames)
        for (name, labels, frames), kept in zip(videos, keeps, strict=True)
    ]
    found = []
    for number, content in enumerate((videos, others)):
        folder = tmp_path / str(number)
        write(folder, content)
        run = helpers.make_run(
            folder / "run",
            folder,
            mode="serial",
            student_loss="ce + pred",
            classifier="own",
            label_fraction=FRACTION,
            teacher_cache=str(tmp_path / "cache"),
            num_epochs=1,
            validation_data_pattern="",
        )
        entry = helpers.train(run)
        # A phase without a guide sees the labeled videos alone.
        assert entry["teacher"]["step"] == -(-keeps.sum() // 8)
        assert entry["student"]["step"] == -(-36 // 8)
        data = manifest.read_json(f"{folder}/run/manifest.json")["data"]
        assert (data["videos"], data["videos_with_labels"]) == (36, keeps.sum())
        found.append(
            {
                phase: helpers.read_variables(helpers.latest(folder / "run", phase))
                for phase in ("teacher", "student")
            }
        )
    for phase in ("teacher", "student"):
        helpers.assert_identical(found[0][phase], found[1][phase])
    # The second student found all 36 videos in the cache: it has the same teacher.
    assert entry["student"]["teacher_cache"]["computed"] == 0
    # All labels are another matter.
    alone = {"mode": "teacher", "teacher_cache": "", "label_fraction": 1.0}
    full = helpers.change(run, train_dir=str(tmp_path / "full"), **alone)
    helpers.train(full)
    other = helpers.read_variables(helpers.latest(tmp_path / "full", "teacher"))
    assert any(not np.array_equal(other[k], v) for k, v in found[1]["teacher"].items())
    # A teacher that has seen them all is no teacher of this run.
    teacher = str(tmp_path / "full")
    for fraction, warns in ((FRACTION, True), (1.0, False)):
        caplog.clear()
        how = {"teacher_checkpoint": teacher, "label_fraction": fraction}
        modes.phases(helpers.change(full, mode="serial", **how))
        assert ("--label_fraction" in caplog.text and teacher in caplog.text) == warns
