"""With an index, and with none, batches are those that the parser makes."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill import structures
from yt8m_distill.data import frame_access, frame_index, pipeline, wire

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = helpers.data_settings()
VIEWS = {
    "all": pipeline.ViewSpec("all", DATA.max_frames),
    "sampled": pipeline.ViewSpec("random", 3),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """23 videos; the third shard is empty."""
    files = helpers.write_shards(tmp_path_factory.mktemp("shards"), [5, 9, 0, 2, 7])
    write_indices(files)
    return files


def write_indices(files, data=DATA, index_dir="") -> None:
    for shard in files:
        path = frame_index.index_path(shard, index_dir)
        frame_index.write(frame_index.build(shard, data), path)


def read(files, data=DATA, **arguments) -> list[dict]:
    arguments = {"batch_size": 4, "training": False, **arguments}
    dataset = pipeline.build_dataset(files, data, VIEWS, **arguments)
    return list(dataset.as_numpy_iterator())


def parsed(monkeypatch, files, **arguments) -> list[dict]:
    """The batches as TensorFlow's parser has them, all frames looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(frame_access.RecordAccess, "_locate", lambda *_: None)
        return read(files, use_index="never", **arguments)


def assert_equal(some: list[dict], others: list[dict]) -> None:
    assert len(some) == len(others) > 0
    tf.nest.map_structure(np.testing.assert_array_equal, some, others)


TRAINING = {"training": True, "shuffle_buffer_size": 5, "num_readers": 3, "epoch": 2}


@pytest.mark.parametrize("use_index", ["never", "always"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch_size": 30},
        {"train_fraction": 0.5},
        {"skip_batches": 2},
        {"input_shard": (1, 2)},
        TRAINING,
        {**TRAINING, "train_fraction": 0.5},
        {**TRAINING, "skip_batches": 3},
        {**TRAINING, "num_readers": 1},
    ],
    ids=str,
)
def test_batches_are_those_of_the_parser(shards, monkeypatch, use_index, arguments):
    expected = parsed(monkeypatch, shards, **arguments)
    assert_equal(read(shards, use_index=use_index, **arguments), expected)


def test_an_index_is_used_where_there_is_one(shards, monkeypatch):
    def refuse(*_):
        raise AssertionError("a record was looked at")

    expected = read(shards, use_index="never")
    monkeypatch.setattr(frame_access.RecordAccess, "_locate", refuse)
    assert_equal(read(shards), expected)


def test_one_shard_without_index_and_none_is_used(shards, tmp_path):
    more = helpers.write_shard(tmp_path / "more.tfrecord", [helpers.video(50, 3)])
    assert frame_index.open_index([*shards, more], DATA, "auto", "") is None
    assert_equal(read([*shards, more]), read([*shards, more], use_index="never"))


def test_counting_videos_needs_no_shard(shards):
    index = frame_index.open_index(shards, DATA, "always", "")
    for fraction in (1.0, 0.5):
        expected = pipeline.count_videos(shards, fraction)
        assert pipeline.count_videos([], fraction, index) == expected
    assert pipeline.count_videos([], 1.0, index) == 23


def test_a_glob_finds_no_indices(shards):
    folder = os.path.dirname(shards[0])
    assert_equal(read(os.path.join(folder, "shard*")), read(shards))


def test_indices_may_stand_in_a_folder_of_their_own(tmp_path):
    files = helpers.write_shards(tmp_path, [4, 3])
    (tmp_path / "indices").mkdir()
    write_indices(files, index_dir=str(tmp_path / "indices"))
    arguments = {"use_index": "always", "index_dir": str(tmp_path / "indices")}
    assert_equal(read(files, **arguments), read(files, use_index="never"))


def test_one_feature_of_the_index_can_be_read(shards):
    data = helpers.data_settings(feature_names="audio", feature_sizes="3")
    expected = read(shards, data, use_index="never")
    assert_equal(read(shards, data, use_index="always"), expected)


def test_remote_shards_are_read_by_ranges(shards):
    remote = [f"ram://frame_index/{number}.tfrecord" for number in range(len(shards))]
    for source, target in zip(shards, remote, strict=True):
        tf.io.gfile.copy(source, target, overwrite=True)
        index = frame_index.read(source)
        identity = np.array(frame_index._identity(target), np.int64)
        moved = index._replace(shard=identity)
        frame_index.write(moved, frame_index.index_path(target))
    assert_equal(read(remote, use_index="always"), read(shards, use_index="never"))
    assert_equal(read(remote, use_index="never"), read(shards, use_index="never"))


def refusal(files, data=DATA) -> str:
    """Why these indices are refused."""
    with pytest.raises(ValueError, match="--use_index=always") as caught:
        frame_index.open_index(files, data, "always", "")
    message = str(caught.value)
    assert "\n" not in message
    # Under auto it is not used either.
    assert frame_index.open_index(files, data, "auto", "") is None
    return message


def one_shard(folder) -> str:
    (shard,) = helpers.write_shards(folder, [6])
    write_indices([shard])
    return shard


def test_a_missing_index_is_named(tmp_path):
    (shard,) = helpers.write_shards(tmp_path, [6])
    assert f"{shard} has no index {shard}.frame_index" in refusal([shard])


def test_a_stale_index_is_refused_by_name(tmp_path):
    shard = one_shard(tmp_path)
    os.utime(shard, ns=(1, 1))
    assert f"{shard}.frame_index is stale" in refusal([shard])


@pytest.mark.parametrize("damage", ["truncated", "no zip"])
def test_a_damaged_index_is_refused_by_name(tmp_path, damage):
    shard = one_shard(tmp_path)
    index = pathlib.Path(frame_index.index_path(shard))
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"x")
    assert f"{index} is damaged" in refusal([shard])


def test_an_index_of_other_features_or_ids_is_refused(tmp_path):
    shard = one_shard(tmp_path)
    other = helpers.data_settings(feature_names="rgb", feature_sizes="9")
    assert "not of rgb with 9 bytes" in refusal([shard], other)
    other = dataclasses.replace(DATA, video_id_key="video_id")
    assert "has the ids of --video_id_key=id" in refusal([shard], other)


def test_a_label_out_of_range_is_named(tmp_path):
    videos = [helpers.video(0, 3), helpers.video(1, 3, [2, 9])]
    shard = helpers.write_shard(tmp_path / "shard.tfrecord", videos)
    write_indices([shard])
    with pytest.raises(ValueError, match="label 9 is not in 0..4") as caught:
        read([shard], use_index="always")
    assert f"{shard}, record 1 (counted from 0), video v1" in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            helpers.frame_level(
                "v", [1], {"rgb": np.zeros([2, 5]), "audio": np.zeros([2, 3])}
            ),
            "5 bytes wide, not the 4",
        ),
        (helpers.frame_level("v", [1], {"rgb": np.zeros([2, 4])}), "audio"),
        (
            helpers.frame_level(
                None, [1], {"rgb": np.zeros([2, 4]), "audio": np.zeros([2, 3])}
            ),
            "there is no id",
        ),
        (b"no record", "record 1"),
    ],
    ids=["width", "feature", "id", "bytes"],
)
def test_a_bad_record_is_not_indexed_but_named(tmp_path, record, message):
    shard = helpers.write_shard(tmp_path / "s.tfrecord", [helpers.video(0, 3), record])
    with pytest.raises(ValueError, match=message) as caught:
        frame_index.build(shard, DATA)
    assert "record 1" in str(caught.value)


def test_a_flipped_byte_is_found_when_the_index_is_written(tmp_path):
    (shard,) = helpers.write_shards(tmp_path, [4])
    content = bytearray(pathlib.Path(shard).read_bytes())
    content[-30] ^= 1
    pathlib.Path(shard).write_bytes(content)
    with pytest.raises(ValueError, match="record 3 .* is damaged"):
        frame_index.build(shard, DATA)


def spelled_longer(record: bytes) -> bytes:
    """The same record with the first frame's length in one byte more than needed."""
    layout = wire.locate(memoryview(record))
    example = tf.train.SequenceExample.FromString(record)
    first = layout.features["rgb"].first
    size = layout.features["rgb"].size
    frame = b"\x0a" + bytes([size | 128, 0]) + record[first : first + size]
    for _ in range(2):
        frame = b"\x0a" + bytes([len(frame)]) + frame
    rest = example.feature_lists.feature_list["rgb"].feature[1:]
    chunks = [f.SerializeToString() for f in rest]
    frames = frame + b"".join(b"\x0a" + bytes([len(c)]) + c for c in chunks)
    del example.feature_lists.feature_list["rgb"]
    entry = b"\x0a\x03rgb\x12" + bytes([len(frames)]) + frames
    lists = example.feature_lists.SerializeToString()
    lists += b"\x0a" + bytes([len(entry)]) + entry
    context = example.context.SerializeToString()
    parts = (b"\x0a", context), (b"\x12", lists)
    return b"".join(tag + bytes([len(body)]) + body for tag, body in parts)


def test_frames_without_a_stride_are_read_right(tmp_path, monkeypatch):
    usual = [helpers.video(0, 5), helpers.video(1, 5), helpers.video(2, 4)]
    odd = [usual[0], spelled_longer(usual[1]), spelled_longer(usual[2])]
    assert tf.train.SequenceExample.FromString(
        odd[1]
    ) == tf.train.SequenceExample.FromString(usual[1])
    expected = read([helpers.write_shard(tmp_path / "usual", usual)])
    shard = helpers.write_shard(tmp_path / "odd", odd)
    assert_equal(parsed(monkeypatch, [shard]), expected)
    assert_equal(read([shard]), expected)
    write_indices([shard])
    assert (frame_index.read(shard).stride[:, 0] == 0).tolist() == [False, True, True]
    assert_equal(read([shard], use_index="always"), expected)


def test_frames_of_two_widths_that_cancel_out_are_noticed(tmp_path):
    record = helpers.video(0, 6)
    example = tf.train.SequenceExample.FromString(record)
    frames = example.feature_lists.feature_list["rgb"].feature
    frames[1].bytes_list.value[0] += b"x"
    frames[3].bytes_list.value[0] = frames[3].bytes_list.value[0][:-1]
    shard = helpers.write_shard(tmp_path / "s", [example.SerializeToString()])
    with pytest.raises(
        tf.errors.OpError, match=r"record 0 .*: a frame of feature rgb is 5 bytes"
    ):
        read([shard])
    with pytest.raises(
        ValueError, match=r"record 0 .*: a frame of feature rgb is 5 bytes"
    ):
        frame_index.build(shard, DATA)


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
            positions = frames.positions or [
                frames.first + t * frames.stride for t in range(frames.count)
            ]
            # Whoever reads a frame looks at the header before it, too.
            header = wire.frame_header(frames.size)
            framed = [changed[p - len(header) : p] == header for p in positions]
            if not frames.positions and not all(framed):
                break
            found[name] = [changed[p : p + frames.size] for p in positions]
        else:
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


def run_tool(*flags: str, tool: str = "index_records.py"):
    command = [sys.executable, str(ROOT / "yt8m_distill" / tool), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_writes_what_is_missing_and_names_what_is_bad(tmp_path):
    files = helpers.write_shards(tmp_path, [3, 2])
    bad = helpers.write_shard(tmp_path / "z.tfrecord", [b"no record"])
    flags = (
        f"--input_data_pattern={tmp_path}/*.tfrecord",
        "--feature_names=rgb,audio",
        "--feature_sizes=4,3",
        "--jobs=1",
    )
    done = run_tool(*flags)
    assert done.returncode == 1
    assert "2 indices written for 5 videos; 0 were up to date." in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith(f"index_records.py: {bad}")
    assert_equal(read(files, use_index="always"), read(files, use_index="never"))
    os.remove(bad)
    done = run_tool(*flags)
    assert done.returncode == 0, done.stderr
    assert "0 indices written for 0 videos; 2 were up to date." in done.stdout


@pytest.mark.parametrize("tool", ["index_records.py", "thin_records.py"])
def test_the_tools_take_data_flagfiles_and_refuse_video_level_ones(tool, tmp_path):
    flagfiles = sorted((ROOT / "flags").glob("data_*.flags"))
    flags = [f"--flagfile={path}" for path in flagfiles]
    flags += ["--noframe_features", f"--input_data_pattern={tmp_path}/*", "--jobs=1"]
    done = run_tool(*flags, tool=tool)
    assert len(flags) == 8 and done.returncode == 1
    (line,) = done.stderr.splitlines()  # Nothing of TensorFlow's around it.
    assert line.startswith(f"{tool}: --noframe_features: ")
    assert line.endswith(" needs records of frames.")


def test_weights_and_views_are_those_of_the_contract(shards):
    batch = read(shards, use_index="always", batch_size=30)[0]
    assert batch[structures.WEIGHTS].sum() == 23
    view = batch[structures.VIEWS]["sampled"]
    assert view[structures.FRAMES].dtype == np.uint8
    assert not view[structures.FRAMES][23:].any()
    assert not view[structures.NUM_FRAMES][23:].any()
