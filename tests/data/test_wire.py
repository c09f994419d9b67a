"""`wire` locates the same contents in a record as the protobuf parser."""

import numpy as np
import tensorflow as tf

from tests import mutated_records
from tests import record_helpers as helpers
from yt8m_distill.data import wire


def test_a_layout_of_a_damaged_record_agrees_with_the_parser():
    """`locate` may return None for any record, but never a wrong layout."""
    record = helpers.video(3, 6, [1, 4])
    compared = 0
    for changed in mutated_records.mutations([record], 4000, seed=0):
        layout = wire.locate(memoryview(changed))
        if layout is None:
            continue
        located = {}
        for name, frames in layout.features.items():
            offsets = [frames.first + t * frames.stride for t in range(frames.count)]
            located[name] = [changed[o : o + frames.size] for o in offsets]
        example = tf.train.SequenceExample.FromString(changed)  # Must not raise.
        assert layout.context == example.context
        assert located == {
            name: [f.bytes_list.value[0] for f in frames.feature]
            for name, frames in example.feature_lists.feature_list.items()
        }
        compared += 1
    assert compared > 100


def test_the_floats_of_a_damaged_record_are_those_of_the_parser():
    vectors = {"mean": [0.5, -1.0, 2.0], "empty": [], "other": [3.0]}
    record = helpers.video_level("a", [1, 4], vectors)
    compared = 0
    for changed in mutated_records.mutations([record], 4000, seed=0):
        layout = wire.locate(memoryview(changed))
        if layout is None:
            continue
        features = tf.train.Example.FromString(changed).features.feature
        for name in (*vectors, "id", "labels", "missing"):
            found = layout.floats(changed, name)
            located = found.rows(changed).view("<f4").ravel().tolist()
            values = features[name].float_list.value if name in features else []
            np.testing.assert_array_equal(located, list(values))  # Also NaN.
            compared += bool(located)
    assert compared > 100
