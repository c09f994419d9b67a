"""What `wire` finds in the bytes of a record is what a parser finds."""

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill.data import wire


def mutations(record: bytes, count: int):
    """The record with bytes changed, cut out, doubled or cut off."""
    random = np.random.default_rng(0)
    for _ in range(count):
        changed = bytearray(record)
        for _ in range(random.integers(1, 4)):
            if not changed:
                break
            at = int(random.integers(len(changed)))
            kind = random.integers(4)
            if kind == 0:
                changed[at] = random.integers(256)
            elif kind == 1:
                del changed[at : at + int(random.integers(1, 9))]
            elif kind == 2:
                changed[at:at] = changed[at : at + int(random.integers(1, 9))]
            else:
                del changed[max(at, 1) :]
        yield bytes(changed)


def test_what_is_located_in_a_damaged_record_is_what_the_parser_finds():
    """Whatever `locate` says must be right; it may always say that it does not know."""
    record = helpers.video(3, 6, [1, 4])
    compared = 0
    for changed in mutations(record, 4000):
        layout = wire.locate(memoryview(changed))
        if layout is None:
            continue
        found = {}
        for name, frames in layout.features.items():
            positions = [frames.first + t * frames.stride for t in range(frames.count)]
            found[name] = [changed[p : p + frames.size] for p in positions]
        example = tf.train.SequenceExample.FromString(changed)  # It is one.
        assert layout.context == example.context
        assert found == {
            name: [f.bytes_list.value[0] for f in frames.feature]
            for name, frames in example.feature_lists.feature_list.items()
        }
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("size", [0, 1, 3, 100, 124, 128, 1024, 20000])
def test_the_header_is_that_of_the_serializer(size):
    feature = tf.train.FeatureList(feature=[helpers.bytes_feature(b"x" * size)])
    assert feature.SerializeToString() == wire.frame_header(size) + b"x" * size
