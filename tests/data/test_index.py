"""A missing or outdated index is built, and holds what its shard does.

That its batches are those of the parser is in test_faults.py.
"""

import dataclasses
import os
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from tests import script_helpers
from yt8m_distill.data import faults, framing, index, pipeline

DATA = helpers.data_settings()
VIEWS = {
    "all": pipeline.ViewSpec("all", DATA.max_frames),
    "sampled": pipeline.ViewSpec("random", 3),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """23 videos; the third shard is empty."""
    return helpers.write_shards(tmp_path_factory.mktemp("shards"), [5, 9, 0, 2, 7])


def read(files, data=DATA, **arguments) -> list[dict]:
    return helpers.read(files, VIEWS, data, **arguments)


def test_an_index_is_built_next_to_its_shard_and_used_again(tmp_path, monkeypatch):
    (shard,) = helpers.write_shards(tmp_path, [4])
    (built,) = index.load_or_build([shard], DATA)
    assert os.path.exists(f"{shard}.frame_index")

    def refuse(*_):
        raise AssertionError("the shard was read")

    monkeypatch.setattr(index, "build", refuse)
    (kept,) = index.load_or_build([shard], DATA)
    assert len(kept.numbers) == 4
    tf.nest.map_structure(np.testing.assert_array_equal, kept, built)


def test_an_index_goes_to_the_cache_folder_where_the_shard_cannot_be_written(
    tmp_path, monkeypatch
):
    (shard,) = helpers.write_shards(tmp_path, [4])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Root may write everywhere.
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != str(tmp_path) and real(path, mode)
    )
    index.load_or_build([shard], DATA)
    found = [path.name for path in (tmp_path / "cache").rglob("*.frame_index")]
    assert found == ["shard0.tfrecord.frame_index"]
    assert not os.path.exists(f"{shard}.frame_index")
    monkeypatch.setattr(index, "build", None)
    assert len(index.load_or_build([shard], DATA)[0].numbers) == 4


def test_an_index_stays_in_memory_if_it_cannot_be_written(tmp_path, monkeypatch):
    (shard,) = helpers.write_shards(tmp_path, [4])
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(index.load_or_build([shard], DATA)[0].numbers) == 4
    assert not list(tmp_path.rglob("*.frame_index"))


def test_two_at_once_build_each_index_once(tmp_path, monkeypatch):
    files = helpers.write_shards(tmp_path, [3, 2, 4])
    built, real = [], index.build
    monkeypatch.setattr(index, "build", lambda s, *a: built.append(s) or real(s, *a))
    # filelock knows one lock per object: two threads are as two processes.
    threads = [
        threading.Thread(target=index.load_or_build, args=(files, DATA))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built) == files


def test_the_program_builds_what_is_missing_and_counts_what_is_up_to_date(
    shards, tmp_path
):
    flags = [f"--index_dir={tmp_path}", "--feature_sizes=4,3"]
    script_helpers.succeed(
        "index_records", f"--input_data_pattern={','.join(shards[:2])}", *flags
    )
    pattern = f"--input_data_pattern={','.join(shards)}"
    done = script_helpers.succeed("index_records", pattern, *flags)
    assert "3 indices built, 2 up to date: 23 videos" in done.stdout


def test_a_glob_finds_no_indices(shards):
    folder = os.path.dirname(shards[0])
    read(shards)
    helpers.assert_same_batches(read(os.path.join(folder, "shard*")), read(shards))


def test_indices_may_be_in_a_folder_of_their_own(tmp_path):
    files = helpers.write_shards(tmp_path, [4, 3])
    folder = str(tmp_path / "indices")
    assert len(index.load_or_build(files, DATA, folder)) == 2
    assert len([n for n in os.listdir(folder) if n.endswith("frame_index")]) == 2
    other = tmp_path / "other"
    other.mkdir()
    (twin,) = helpers.write_shards(other, [1])
    with pytest.raises(ValueError, match="--index_dir=") as caught:
        read([files[0], twin], index_dir=folder)
    assert twin in str(caught.value)


CONTENTS = {"empty": b"", "no zip": b"not an index at all"}


@pytest.mark.parametrize("change", ["stale", "truncated", "other features", *CONTENTS])
def test_an_outdated_index_is_rebuilt(tmp_path, change):
    (shard,) = helpers.write_shards(tmp_path, [6])
    path = pathlib.Path(f"{shard}.frame_index")
    index.load_or_build([shard], DATA)
    data, content = DATA, path.read_bytes()
    if change == "stale":
        os.utime(shard, ns=(1, 1))
    elif change == "other features":
        data = helpers.data_settings(feature_names="audio", feature_sizes="3")
    else:
        path.write_bytes(CONTENTS.get(change, content[: len(content) // 2]))
    with pytest.raises(index.Unusable, match=str(path)) as caught:
        index.read(str(path), shard, data)
    assert "pickle" not in str(caught.value)  # As NumPy's own advice.
    index.load_or_build([shard], data)
    kept, built = index.read(str(path), shard, data), index.build(shard, data)
    tf.nest.map_structure(np.testing.assert_array_equal, kept, built)


def test_no_damaged_byte_of_an_index_ends_in_another_error(tmp_path):
    (shard,) = helpers.write_shards(tmp_path, [6])
    path = pathlib.Path(f"{shard}.frame_index")
    (built,) = index.load_or_build([shard], DATA)
    content, unusable = path.read_bytes(), 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            kept = index.read(str(path), shard, DATA)
        except index.Unusable:
            unusable += 1
        else:  # Zip has bytes that say nothing about the arrays.
            tf.nest.map_structure(np.testing.assert_array_equal, kept, built)
    assert unusable > len(content) / 7 / 2


def test_classes_and_frames_make_no_other_index(tmp_path):
    (shard,) = helpers.write_shards(tmp_path, [6])
    index.load_or_build([shard], DATA)
    other = dataclasses.replace(DATA, num_classes=99, max_frames=2)
    index.read(f"{shard}.frame_index", shard, other)


def test_invalid_records_are_in_the_index(tmp_path):
    odd = helpers.frame_level("odd", [1], {"rgb": np.zeros([2, 4])})
    shard = helpers.write_shard(tmp_path / "s", [helpers.video(0, 3), odd, b"none"])
    index.load_or_build([shard], DATA)
    found = index.read(f"{shard}.frame_index", shard, DATA).bad_records(shard)
    assert [(b.number, b.fault) for b in found] == [
        (1, faults.Fault.NO_FRAMES),
        (2, faults.Fault.NOT_AN_EXAMPLE),
    ]
    assert found[0].offset == len(helpers.video(0, 3)) + framing.FRAMING
    assert found[0].video_id == b"odd"


def test_no_index_is_left_beside_a_file_without_videos(tmp_path):
    (tmp_path / "notes.txt").write_text("no shard")
    (tmp_path / "empty").touch()
    paths = [str(tmp_path / name) for name in ("notes.txt", "empty")]
    found = index.load_or_build(paths, helpers.data_settings())
    assert [len(one.numbers) for one in found] == [0, 0]
    assert sorted(os.listdir(tmp_path)) == ["empty", "notes.txt"]
    # yt8m-index makes them all the same, and refuses to call that done.
    for path, named in zip(paths, ("TFRecord", "no records"), strict=True):
        flag = f"--input_data_pattern={path}"
        line = script_helpers.refuse("index_records", flag, "--feature_sizes=4,3")
        assert line.startswith("--input_data_pattern") and path in line
        assert named in line
    assert len(os.listdir(tmp_path)) == 4


def test_an_unusual_encoding_is_read_right(tmp_path):
    usual = [helpers.video(0, 5), helpers.video(1, 5), helpers.video(2, 4)]
    odd = [usual[0], *(record + helpers.context_again(record) for record in usual[1:])]
    expected = read([helpers.write_shard(tmp_path / "usual", usual)])
    shard = helpers.write_shard(tmp_path / "odd", odd)
    helpers.assert_same_batches(read([shard], use_index="never"), expected)
    assert not index.build(shard, DATA).located
    helpers.assert_same_batches(read([shard], use_index="always"), expected)


def test_the_size_of_an_index_in_memory_is_below_200_bytes_per_video(tmp_path):
    """At YouTube-8M's two features, ids of four bytes and three labels."""
    count = 500
    videos = [
        helpers.frame_level(
            f"{n:04d}",
            [1, 2, 3],
            {name: np.zeros([2, size]) for name, size in helpers.SIZES.items()},
        )
        for n in range(count)
    ]
    shard = helpers.write_shard(tmp_path / "s", videos)
    table = helpers.open_shards([shard]).table
    arrays = [v for v in vars(table).values() if isinstance(v, np.ndarray | bytes)]
    size = sum(v.nbytes if isinstance(v, np.ndarray) else len(v) for v in arrays)
    assert size / count < 120
    # On disk: of the numbers most are predictable.
    assert os.path.getsize(f"{shard}.frame_index") / count < 60
