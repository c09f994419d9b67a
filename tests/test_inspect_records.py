"""yt8m-inspect finds what is in records and suggests flags that fit."""

import collections
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tests import record_helpers, script_helpers
from yt8m_distill import inspect_records, vocabulary
from yt8m_distill.data import faults


def test_counts_widths_labels_and_flags(tmp_path):
    files = record_helpers.write_shards(tmp_path, [4, 3])  # v has 1 + v % 11 frames
    found = inspect_records.inspect(files).to_dict()
    assert found["videos"] == 7
    assert found["kind"] == "frame level"
    assert found["frames"] == {frames: 1 for frames in range(1, 8)}
    assert {name: f["width"] for name, f in found["features"].items()} == {
        "rgb": 4,
        "audio": 3,
    }
    assert {f["videos"] for f in found["features"].values()} == {7}
    assert found["labels"] == {0: 2, 1: 2, 2: 1, 3: 1, 4: 1}
    assert not any(found[key] for key in ("problems", "foreign", "bad", "convert"))
    assert found["flags"] == [
        "--feature_names=rgb,audio",
        "--feature_sizes=4,3",
        "--num_classes=5",
        "--video_id_key=id",
        "--max_frames=7",
        "--student_k=2",  # A third, since 30 are more than there are.
    ]


def write(path, *serialized: bytes) -> list[str]:
    return [record_helpers.write_shard(path, serialized)]


def frame_level(name, labels=(), id_key="id", **frames) -> bytes:
    """A record whose features have so many frames of width 4."""
    rows = {x: record_helpers.frames_of(count, 4) for x, count in frames.items()}
    return record_helpers.frame_level(name, labels, rows, id_key)


def test_float32_bytes_are_named_and_quantized_frames_are_not(tmp_path):
    # 12 floats of an own width; a ReLU's zeros, tiny and large ones among them.
    numbers = np.random.default_rng(0)
    floats = numbers.standard_normal([5, 12]).astype("<f4") * 30
    for frames, named in [
        (np.maximum(floats, 0), True),
        (floats / 1000, True),
        (numbers.integers(0, 256, [5, 48], np.uint8), False),
        (np.full([5, 48], 127, np.uint8), False),  # What stands for 0.
        (np.zeros([5, 48], np.uint8), False),
        (np.clip(127.5 + 64 * numbers.standard_normal([5, 48]), 0, 255), False),
        (np.clip(127.5 + 4 * numbers.standard_normal([5, 48]), 0, 255), False),
        (np.maximum(64 * numbers.standard_normal([5, 48]), 0).clip(0, 255), False),
    ]:
        frames = frames.view(np.uint8) if named else frames.astype(np.uint8)
        record = record_helpers.frame_level("v", [1], {"mine": frames})
        found = inspect_records.inspect(write(tmp_path / "a.tfrecord", record))
        assert found.features["mine"].width == 48
        assert any("mine" in x and "float32" in x for x in found.problems) == named


def test_the_videos_of_each_class_are_written(tmp_path):
    record_helpers.write_shards(tmp_path, [4, 3])
    path = str(tmp_path / "counts.csv")
    pattern = str(tmp_path / "*.tfrecord")
    given = inspect_records.Request(pattern, per_class_file=path, json=True)
    inspect_records.main(given)
    assert vocabulary.read_counts(path, "") == {0: 2, 1: 2, 2: 1, 3: 1, 4: 1}
    (shard, *_) = map(str, tmp_path.glob("*.tfrecord"))
    before = pathlib.Path(shard).read_bytes()
    given = dataclasses.replace(given, per_class_file=shard)
    with pytest.raises(ValueError, match="--per_class_file=.* is one of the files"):
        inspect_records.main(given)
    assert pathlib.Path(shard).read_bytes() == before


def test_odd_records_are_counted_and_invalid_ones_named(tmp_path):
    wide = record_helpers.frames_of(2, 6)
    (path,) = files = write(
        tmp_path / "odd",
        frame_level("a", [7], x=3, y=2),  # different lengths
        frame_level("a", [], x=2, y=2),  # the same id
        frame_level("b", [7, 2], x=2),  # no y
        frame_level("e", [-3], x=1, y=1),
        record_helpers.frame_level("c", [7], {"x": wide, "y": wide}),
        record_helpers.video_level("d", [1], {"mean_x": [0.5] * 4}),
        b"garbage!",
    )
    found = inspect_records.inspect(files)
    assert dict(found.problems) == {
        "have features of different length": 1,
        "repeat an id": 1,
        "have no y": 1,
    }
    assert found.labels_per_video == {0: 1, 1: 1, 2: 1}
    assert {bad.number: bad.fault for bad in found.bad} == {
        3: faults.Fault.LABEL_RANGE,
        4: faults.Fault.WIDTH,
        5: faults.Fault.NO_FRAMES,
        6: faults.Fault.NOT_AN_EXAMPLE,
    }
    text = inspect_records.report(found)
    assert f"{path}, record 3" in text
    # 4 of 7 are far more than a run skips.
    assert "--max_bad_fraction" in text.splitlines()[-2]
    assert "--bad_records=skip" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("widths", "label", "classes", "frames"),
    [
        ({"rgb": 1024, "audio": 128}, 3861, 3862, 300),
        ({"rgb": 1024, "audio": 128}, 3862, 4716, 300),
        ({"rgb": 1024}, 4716, 4800, 300),
        ({"rgb": 1024}, 4800, 4801, 2),  # more than any version has
        ({"inc3": 1024}, 0, 4800, 300),
        ({"audio_embedding": 128}, 5, 527, 10),
        ({"rgb": 1024, "audio": 64}, 5, 6, 2),  # another width
        ({"other": 1024}, 5, 6, 2),
    ],
)
def test_published_data_sets_are_recognised(tmp_path, widths, label, classes, frames):
    rows = {name: record_helpers.frames_of(2, width) for name, width in widths.items()}
    files = write(tmp_path / "a", record_helpers.frame_level("a", [label], rows))
    flags = inspect_records.inspect(files).suggestion()
    assert f"--num_classes={classes}" in flags
    assert f"--max_frames={frames}" in flags
    # 30, the default, fits into 300 and not into fewer.
    few = {2: ["--student_k=1"], 10: ["--student_k=3"], 300: []}[frames]
    assert [flag for flag in flags if "student_k" in flag] == few


def test_the_id_key_is_detected_unless_given(tmp_path):
    record = frame_level("a", [1], id_key="video_id", x=2)
    files = write(tmp_path / "a", record, frame_level("b", [1], "video_id", x=2))
    found = inspect_records.inspect(files)
    assert "--video_id_key=video_id" in found.suggestion()
    given = inspect_records.inspect(files, id_key="key")
    assert given.foreign == {faults.Fault.NO_ID: 2}


def test_reading_stops_at_max_records(tmp_path):
    files = record_helpers.write_shards(tmp_path, [4, 3])
    assert inspect_records.inspect(files, max_records=5).videos == 5


def test_bars_show_how_many_videos_have_so_many_frames():
    assert inspect_records.histogram(collections.Counter({1: 1, 2: 4})) == [
        f"  {'1':>9} {1:>8} {'#' * 10}",
        f"  {'2':>9} {4:>8} {'#' * 40}",
    ]
    wide = inspect_records.histogram(collections.Counter({1: 3, 300: 6}))
    # 300 values in bars of 25.
    assert len(wide) == 12
    assert wide[0].split() == ["1-25", "3", "#" * 20]
    assert wide[-1].split() == ["276-300", "6", "#" * 40]


@pytest.mark.parametrize("framed", [True, False])
def test_a_file_without_a_record_that_can_be_used_is_named(tmp_path, framed):
    path = tmp_path / "a"
    path.write_bytes(b"garbage!")
    if framed:
        write(path, b"garbage!", b"more")
    with pytest.raises(ValueError) as caught:
        inspect_records.inspect([str(path)])
    assert str(caught.value).startswith(str(path))
    assert "SequenceExample" in str(caught.value)


def test_bad_input_is_one_line_and_status_1(tmp_path):
    (path,) = record_helpers.write_shards(tmp_path, [3])
    content = bytearray(pathlib.Path(path).read_bytes())
    pathlib.Path(path).write_bytes(content[:-5])
    line = script_helpers.refuse("inspect_records", path)
    assert line.startswith(f"{path}, record 2 ")
    content[-10] ^= 1
    pathlib.Path(path).write_bytes(content)
    line = script_helpers.refuse("inspect_records", f"--data_pattern={path}")
    assert line.startswith(f"{path}, record 2") and "damaged" in line


@pytest.mark.real_data
def test_audioset_is_recognised(real_data):
    shard = real_data / "audioset_bal_train" / "bal_train-00014-of-00016.tfrecord"
    done = script_helpers.succeed("inspect_records", "--json", str(shard))
    found = json.loads(done.stdout)
    assert found["flags"] == [
        "--feature_names=audio_embedding",
        "--feature_sizes=128",
        "--num_classes=527",
        "--video_id_key=video_id",
        "--max_frames=10",
        "--student_k=3",
    ]
