"""Errors that would surface late in a run are raised before its first step."""

import re

import keras
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.models import base


@base.MODELS.register("LateDense")
class LateDense(helpers.MeanTanh):
    """Creates a layer's variables when called, after the optimizer has its list."""

    def __init__(self, feature_size, num_classes, max_frames, units=6, **others):
        super().__init__(feature_size, num_classes, max_frames, units, **others)
        self.late = keras.layers.Dense(units)

    def encode(self, *arguments):
        encoding, states = super().encode(*arguments)
        return self.late(encoding), states


@base.MODELS.register("PlainVariable")
class PlainVariable(base.MODELS.get("MeanTanh")):
    """Scales its encoding by a variable that Keras 3 knows nothing of."""

    def __init__(self, feature_size, num_classes, max_frames, units=6, **others):
        super().__init__(feature_size, num_classes, max_frames, units, **others)
        self.scale = tf.Variable(tf.ones([units]), name="my_scale")

    def encode(self, *arguments):
        encoding, states = super().encode(*arguments)
        return encoding * self.scale, states


FRAMES = "FrameLevelLogisticModel"
NOT_PARSED = [
    ({"student_loss": "ce + rpe"}, r"--student_loss=ce \+ rpe: Unknown loss 'rpe'"),
    ({"student": "Nosuch"}, "--student=Nosuch: Unknown model 'Nosuch'"),
]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {
                "mode": "serial",
                "teacher": "HierarchicalLSTM(cells=4, block_len=5)",
                "student": "HierarchicalLSTM(cells=3, block_len=3)",
                "match": "intermediate",
            },
            "--student_loss: .*intermediate state .*12.*16",
        ),
        (
            # Both encodings are the mean of the frames.
            {
                **{"mode": "serial", "student_loss": "rep"},
                **{"teacher": FRAMES, "student": FRAMES},
            },
            "--student_loss=rep has nothing to train in the student",
        ),
        # Settings that the mode does not use.
        *(
            ({"mode": mode, **changes}, named)
            for mode in ("teacher", "baseline")
            for changes, named in NOT_PARSED
        ),
        ({"label_fraction": 1e-5}, "--label_fraction=1e-05"),
        ({"teacher": "LateDense"}, "--teacher: LateDense .*kernel"),
        pytest.param(
            {"teacher": "PlainVariable"},
            "--teacher: .*my_scale.* PlainVariable",
            marks=pytest.mark.skipif(
                keras.__version__ < "3", reason="Keras 2 trains it."
            ),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_would_fail_later_is_refused_before_anything_is_written(
    data, tmp_path, changes, named
):
    run = helpers.make_run(tmp_path / "run", data, **changes)
    assert re.search(named, helpers.refusal(run))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(
            ({"mode": mode, "unlabeled_fraction": share}, f"{share} .*--batch_size=8")
            # In serial mode the student's phase is the second one.
            for mode, share in (("serial", 0.95), ("baseline", 0.95), ("serial", 0.05))
        ),
        ({"mode": "baseline"}, "data_pattern.*--mode=baseline"),
        ({"mode": "teacher"}, "data_pattern.*--mode=teacher"),
    ],
)
def test_unlabeled_videos_that_no_batch_can_use_are_refused(
    data, tmp_path, changes, named
):
    """0.95 of 8 rows are all, 0.05 none; without a guide nothing teaches on them."""
    pattern = {"unlabeled_data_pattern": f"{data}/train-*.tfrecord"}
    run = helpers.make_run(tmp_path / "run", data, **pattern, **changes)
    assert re.search(f"--unlabeled_.*{named}", helpers.refusal(run))
