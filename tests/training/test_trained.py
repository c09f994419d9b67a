"""A network out of a train_dir: which frames it reads."""

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.training import trained


@pytest.fixture
def run(serial_run):
    """A finished serial run at k=6."""
    return serial_run


def open_network(run, **changes) -> trained.TrainedNetwork:
    given = settings.CheckpointSettings(
        train_dir=run.training.train_dir, batch_size=4, num_gpus=0, **changes
    )
    return trained.open_network(given)


def test_a_student_reads_fewer_frames_than_it_was_trained_on(run, tmp_path):
    shards = run.training.validation_data_pattern
    opened = open_network(run, student_k=3)
    (batch,) = opened.dataset(shards, 12)
    view = batch["views"]["sampled"]
    assert view["frames"].shape[1] == 3
    (whole,) = open_network(run).dataset(shards, 12)
    sampled, at_six = (
        part["views"]["sampled"]["frame_indices"].numpy() for part in (batch, whole)
    )
    # uniform: i * n // 3 is 2i * n // 6.
    np.testing.assert_array_equal(sampled, at_six[:, ::2])
    expected = tf.math.top_k(tf.sigmoid(opened.network(view).logits), 3)[0]
    found = helpers.served_scores(opened, run, tmp_path / "model", shards, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shards_without_videos_are_refused_by_flag_unless_a_part_may_be(run, tmp_path):
    empty = tmp_path / "empty.tfrecord"
    empty.touch()
    opened, reading = open_network(run), settings.ReadingSettings()
    with pytest.raises(ValueError, match=f"^--some_flag.*{empty}"):
        opened.open_shards([str(empty)], reading, "some_flag")
    part = opened.open_shards([str(empty)], reading, "some_flag", may_be_empty=True)
    assert part.num_videos() == 0


def test_segments_of_a_run_of_videos_are_asked_for_with_another_flag(run):
    given = settings.CheckpointSettings(train_dir=run.training.train_dir, num_gpus=0)
    with pytest.raises(ValueError, match="--segment_labels.* --segments") as error:
        trained.open_network(given, stated={"segment_labels": True})
    with pytest.raises(ValueError, match="--seed") as other:
        trained.open_network(given, stated={"seed": run.training.seed + 1})
    assert "--segments" in str(error.value) and "--segments" not in str(other.value)


def test_stating_the_student_k_of_training_changes_no_view(run):
    for network in ("student", "teacher"):
        stated, silent = (
            open_network(run, network=network, student_k=k).views
            for k in (helpers.STUDENT_K, 0)
        )
        assert stated == silent


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"student_k": 7}, "the 6 frames"), ({"network": "teacher"}, "teacher")],
)
def test_frames_that_a_network_cannot_read_are_refused(run, changes, named):
    with pytest.raises(ValueError, match="--student_k=.*" + named):
        open_network(run, **{"student_k": 3, **changes})
