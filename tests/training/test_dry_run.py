"""Errors that would surface late in a run are raised before its first step."""

import keras
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.models import base


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {
                "student": "HierarchicalLSTM(cells=3, block_len=3)",
                "match": "intermediate",
            },
            "The student's intermediate state has width 12, the teacher's 16.",
        ),
        (
            # Both encodings are the mean of the frames.
            {
                "teacher": "FrameLevelLogisticModel",
                "student": "FrameLevelLogisticModel",
                "student_loss": "rep",
            },
            "--student_loss=rep has nothing to train in the student",
        ),
    ],
)
@pytest.mark.once
def test_a_student_that_cannot_learn_is_refused_before_the_teacher_trains(
    data, tmp_path, changes, message
):
    changes = {"teacher": "HierarchicalLSTM(cells=4, block_len=5)", **changes}
    run = helpers.make_run(tmp_path / "run", data, mode="serial", **changes)
    with pytest.raises(ValueError) as caught:
        helpers.train(run)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["teacher", "baseline"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_loss": "ce + rpe"}, "--student_loss=ce + rpe: Unknown loss 'rpe'."),
        ({"student": "Nosuch"}, "--student=Nosuch: Unknown model 'Nosuch'."),
    ],
)
@pytest.mark.once
def test_settings_that_the_mode_does_not_use_are_parsed(
    data, tmp_path, mode, changes, message
):
    run = helpers.make_run(tmp_path / "run", data, mode=mode, **changes)
    with pytest.raises(ValueError) as caught:
        helpers.train(run)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


@base.MODELS.register("LateDense")
class LateDense(helpers.MeanTanh):
    """Creates a layer's variables when called, after the optimizer has its list."""

    def __init__(self, feature_size, num_classes, max_frames, units=6, **others):
        super().__init__(feature_size, num_classes, max_frames, units, **others)
        self.late = keras.layers.Dense(units)

    def encode(self, frames, num_frames, state_indices, training, noise):
        encoding, states = super().encode(
            frames, num_frames, state_indices, training, noise
        )
        return self.late(encoding), states


def test_a_layer_that_would_not_be_trained_is_refused(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, teacher="LateDense(units=6)")
    with pytest.raises(ValueError, match="--teacher: LateDense .*kernel"):
        helpers.train(run)
    assert not (tmp_path / "run").exists()


@base.MODELS.register("PlainVariable")
class PlainVariable(base.MODELS.get("MeanTanh")):
    """Scales its encoding by a variable that Keras 3 knows nothing of."""

    def __init__(self, feature_size, num_classes, max_frames, units=6, **others):
        super().__init__(feature_size, num_classes, max_frames, units, **others)
        self.scale = tf.Variable(tf.ones([units]), name="my_scale")

    def encode(self, frames, num_frames, state_indices, training, noise):
        encoding, states = super().encode(
            frames, num_frames, state_indices, training, noise
        )
        return encoding * self.scale, states


@pytest.mark.skipif(keras.__version__ < "3", reason="Keras 2 trains it.")
def test_a_variable_that_keras_does_not_train_is_refused(data, tmp_path):
    run = helpers.make_run(tmp_path / "run", data, teacher="PlainVariable")
    with pytest.raises(ValueError, match="--teacher: .*my_scale.* PlainVariable"):
        helpers.train(run)
    assert not (tmp_path / "run").exists()
