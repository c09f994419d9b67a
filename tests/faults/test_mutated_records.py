"""Mutated records and damaged shards give a correct batch or a one-line error."""

import gzip
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from tests import mutated_records as mutated
from tests import record_helpers as helpers
from yt8m_distill.data import faults, index, parsing, pipeline

DATA = mutated.DATA
VIEWS = {
    "all": pipeline.ViewSpec("all", 12),
    "sampled": pipeline.ViewSpec("uniform", 3),
}
SKIP = {"bad_records": "skip", "max_bad_fraction": 1.0}
ORIGINALS = mutated.make_records(40)

few = hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
many = hypothesis.settings(max_examples=500, deadline=None)
seeds = hypothesis.given(strategies.integers(0, 2**31))


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def served_faults(serialized):
    return parsing.parse_request(serialized, DATA)[1]


def check_batches(found: list[dict], expected: int) -> None:
    """Checks the contract of every batch."""
    assert sum(batch["weights"].sum() for batch in found) == expected
    for batch in found:
        rows = batch["weights"] > 0
        assert all(batch["video_id"][rows])
        assert np.isin(batch["labels"], (0, 1)).all()
        for view in batch["views"].values():
            counts = view["num_frames"]
            assert (counts[rows] >= 1).all()
            assert (counts <= view["frames"].shape[1]).all()


def check_mutated(seed: int) -> None:
    """Judge, index, parser and server agree about 180 mutated records."""
    made = list(mutated.mutations(ORIGINALS, 180, seed))
    with tempfile.TemporaryDirectory() as folder:
        shard = helpers.write_shard(pathlib.Path(folder, "s.tfrecord"), made)
        opened = helpers.open_shards([shard], DATA, **SKIP)
        bad = {record.number: record for record in opened.skipped().bad}
        for record in bad.values():
            assert record.message.startswith(shard) and "\n" not in record.message
        found = helpers.read([shard], VIEWS, DATA, batch_size=50, **SKIP)
        check_batches(found, len(made) - len(bad))
        good = [record for n, record in enumerate(made) if n not in bad]
        packed = pathlib.Path(folder, "good.gz")
        plain = helpers.write_shard(pathlib.Path(folder, "good"), good)
        packed.write_bytes(gzip.compress(pathlib.Path(plain).read_bytes()))
        parsed = helpers.read([str(packed)], VIEWS, DATA, batch_size=50)
        tf.nest.map_structure(np.testing.assert_array_equal, found, parsed)
    # A server checks neither labels nor ids, of which there may be two.
    not_served = {
        faults.Fault.NO_ID,
        faults.Fault.ID_TYPE,
        faults.Fault.LABEL_RANGE,
    }
    for number, fault in enumerate(served_faults(tf.constant(made)).numpy()):
        reason = bad[number].fault if number in bad else None
        if reason not in not_served:
            assert bool(fault) == bool(reason), (number, fault, reason)


def check_damaged(seed: int) -> None:
    """The readable part of a damaged shard is read; each fault is one line."""
    made = list(mutated.mutations(ORIGINALS, 60, seed))
    with tempfile.TemporaryDirectory() as folder:
        shard = helpers.write_shard(pathlib.Path(folder, "s.tfrecord"), made)
        mutated.damage(shard, np.random.default_rng(seed))
        indexed = index.build(shard, DATA)
        for record in indexed.bad_records(shard):
            assert record.message.startswith(shard) and "\n" not in record.message
        found = helpers.read([shard], VIEWS, DATA, batch_size=50, **SKIP)
        check_batches(found, helpers.open_shards([shard], DATA, **SKIP).num_videos())


@pytest.mark.slow
@hypothesis.settings(few, max_examples=2)
@seeds
def test_mutated_records_are_read_right_or_named(seed):
    check_mutated(seed)


@pytest.mark.slow
@few
@seeds
def test_damaged_shards_are_read_as_far_as_they_go(seed):
    check_damaged(seed)


@pytest.mark.faults
@pytest.mark.slow
@many
@seeds
def test_many_mutated_records_are_read_right_or_named(seed):
    check_mutated(seed)


@pytest.mark.faults
@pytest.mark.slow
@many
@seeds
def test_many_damaged_shards_are_read_as_far_as_they_go(seed):
    check_damaged(seed)
