"""Many shards under a small limit of open files, and shards that change."""

import os
import pathlib
import resource

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill.data import faults, framing, lookups, pipeline
from yt8m_distill.data import shards as shards_module

VIEWS = {"sampled": pipeline.ViewSpec("uniform", 3)}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped(folder: pathlib.Path) -> int:
    """Memory maps of files in a folder."""
    return pathlib.Path("/proc/self/maps").read_text().count(f"{folder}/")


@pytest.fixture
def few_files():
    """A limit that leaves room for 60 more than are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 60, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.parametrize("use_index", ["never", "always"])
def test_more_shards_than_files_may_be_open_are_one_with_the_same_records(
    tmp_path, few_files, use_index
):
    (tmp_path / "many").mkdir()
    count = 150
    many = helpers.write_shards(tmp_path / "many", [1] * count)
    one = helpers.write_shards(tmp_path, [count])
    how = {"use_index": use_index, "batch_size": 50}
    expected = helpers.read(one, VIEWS, **how)
    assert len(expected) == count // 50
    helpers.assert_same_batches(helpers.read(many, VIEWS, **how), expected)
    training = helpers.read(many, VIEWS, training=True, shuffle_buffer_size=64, **how)
    ids = [video for batch in training for video in batch["video_id"]]
    assert len(set(ids)) == count


@pytest.fixture
def few_open(monkeypatch):
    """Fewer shards stay open than the tests below have."""
    monkeypatch.setattr(shards_module, "MAX_OPEN", 4)


@pytest.mark.slow
def test_epochs_leave_no_open_files(tmp_path, few_open):
    files = helpers.write_shards(tmp_path, [2] * 12)
    opened = helpers.open_shards(files)
    seen = []
    for epoch in range(10):
        how = {"training": True, "shuffle_buffer_size": 8, "batch_size": 4}
        dataset = pipeline.build_dataset(opened, VIEWS, epoch=epoch, **how)
        assert sum(1 for _ in dataset) == len(files) // 2
        seen.append((open_files(), mapped(tmp_path)))
    # Other tests of the process may close files meanwhile.
    assert all(after <= before for after, before in zip(seen[9], seen[1], strict=True))
    assert mapped(tmp_path) <= shards_module.MAX_OPEN


@pytest.mark.slow
@pytest.mark.parametrize("change", ["cut", "grown", "rewritten", "gone"])
@pytest.mark.parametrize("during", [False, True])
def test_a_shard_that_changes_is_named(tmp_path, few_open, change, during):
    files = helpers.write_shards(tmp_path, [3] * 16)
    opened = helpers.open_shards(files)
    how = {"batch_size": 3, "training": False}
    batches = iter(pipeline.build_dataset(opened, VIEWS, **how))
    next(batches)
    path = pathlib.Path(files[-1])
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        changed = {"cut": content[:-9], "grown": content * 2, "rewritten": content}
        path.write_bytes(changed[change])
        os.utime(path, ns=(1, 1))
    if during:
        line = helpers.error_line(files, list, batches)
    else:
        line = helpers.error_line(files, pipeline.build_dataset, opened, VIEWS, **how)
    assert line.startswith(str(path))


def test_the_fingerprint_distinguishes_shards(tmp_path):
    files = helpers.write_shards(tmp_path, [2, 3])
    first = helpers.open_shards(files).fingerprint()
    assert [name for name, *_ in first] == ["shard0.tfrecord", "shard1.tfrecord"]
    os.utime(files[1], ns=(1, 1))
    second = helpers.open_shards(files).fingerprint()
    assert first[0] == second[0] and first[1] != second[1]


def test_frequencies_of_classes_are_the_same_with_and_without_index(tmp_path):
    files = helpers.write_shards(tmp_path, [9, 8])
    batches = helpers.read(files, VIEWS)
    counts = sum(batch["labels"].sum(axis=0) for batch in batches)
    for use_index in ("auto", "never"):
        opened = helpers.open_shards(files, use_index=use_index)
        np.testing.assert_allclose(opened.class_frequencies(), (counts + 0.5) / 18)
        half = helpers.read(files, VIEWS, label_fraction=0.5)
        kept = sum(batch["labels"].sum(axis=0) for batch in half)
        assert 0 < kept.sum() < counts.sum()  # One label per video.
        found = opened.class_frequencies(1.0, 0.5)
        np.testing.assert_allclose(found, (kept + 0.5) / (kept.sum() + 1))
        few = helpers.read(files, VIEWS, train_fraction=0.5)
        kept = sum(batch["labels"].sum(axis=0) for batch in few)
        assert 0 < kept.sum() < counts.sum()
        found = opened.class_frequencies(0.5)
        np.testing.assert_allclose(found, (kept + 0.5) / (kept.sum() + 1))


@pytest.mark.parametrize("lengths", [[3, 0, 5], [0, 0], [], [1, 2, 1 << 23]])
def test_the_bytes_of_records_are_those_of_their_strings(lengths):
    """In rows of one length, or joined where those would take twice the memory."""
    random = np.random.default_rng(0)
    records = [random.bytes(length) for length in lengths]
    parts = lookups._contents(tf.constant(records, tf.string))
    content, *places = (part.numpy() for part in parts)
    assert len(content) <= 2 * sum(lengths) + (1 << 22)
    places = zip(*places, strict=True)
    found = [content[begin : begin + size].tobytes() for size, begin in places]
    assert found == records


def test_packed_shards_are_not_read_to_learn_that_they_are_not_empty(
    tmp_path, monkeypatch
):
    """Nor are remote ones; training alone needs the number of its videos."""
    files = [
        helpers.compressed(path) for path in helpers.write_shards(tmp_path, [2, 3])
    ]
    read, original = [], faults.walk

    def counted(path):
        for record in original(path):
            read.append(record.number)
            yield record

    monkeypatch.setattr(faults, "walk", counted)
    monkeypatch.setattr(framing, "count_records", None)
    opened = helpers.open_shards(files)
    assert not opened.is_empty and opened.num_known_videos is None
    assert len(read) <= 1
    monkeypatch.undo()
    assert opened.num_videos() == 5
