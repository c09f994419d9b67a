"""tools/inspect_records.py finds what is in records and suggests flags that fit."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import record_helpers
from tools import inspect_records

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_counts_widths_labels_and_flags(tmp_path):
    files = record_helpers.write_shards(tmp_path, [4, 3])  # v has 1 + v % 11 frames
    found = inspect_records.inspect(files).to_dict()
    assert found["videos"] == 7
    assert found["kind"] == "frame level"
    assert found["frames"] == {frames: 1 for frames in range(1, 8)}
    frames = sum(range(1, 8))
    assert found["features"] == {"rgb": {4: frames}, "audio": {3: frames}}
    assert found["label_range"] == [0, 4]
    assert found["problems"] == {}
    assert found["flags"] == [
        "--feature_names=rgb,audio",
        "--feature_sizes=4,3",
        "--num_classes=3862",  # rgb and audio, labels below: YouTube-8M 2018
        "--video_id_key=id",
        "--max_frames=7",
    ]


def test_odd_records_are_counted(tmp_path):
    rows = record_helpers.frames_of(3, 4)
    shard = record_helpers.write_shard(
        tmp_path / "odd.tfrecord",
        [
            record_helpers.frame_level("a", [7], {"x": rows, "y": rows[:2]}),
            record_helpers.frame_level("a", [], {"x": rows[:2], "y": rows[:2]}),
        ],
    )
    found = inspect_records.inspect([shard])
    assert found.problems == {"has features of different length": 1, "repeats an id": 1}
    assert found.labels_a_video == {0: 1, 1: 1}
    assert found.num_classes() == 8


def test_video_level_records_are_recognised(tmp_path):
    shard = record_helpers.write_shard(
        tmp_path / "v.tfrecord",
        [record_helpers.video_level("a", [1], {"mean_rgb": [0.5] * 6})],
    )
    found = inspect_records.inspect([shard])
    assert found.kind == "video level"
    assert "--noframe_features" in found.suggestion()
    assert "--feature_sizes=6" in found.suggestion()


def test_a_truncated_file_is_one_line_and_status_1(tmp_path):
    (path,) = record_helpers.write_shards(tmp_path, [3])
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[:-5])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/inspect_records.py"), path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"inspect_records.py: {path} ends inside record 2")


@pytest.mark.real_data
def test_audioset_is_recognised(real_data):
    shard = real_data / "audioset_bal_train" / "bal_train-00014-of-00016.tfrecord"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/inspect_records.py"), "--json", str(shard)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout)
    assert found["flags"] == [
        "--feature_names=audio_embedding",
        "--feature_sizes=128",
        "--num_classes=527",
        "--video_id_key=video_id",
        "--max_frames=10",
    ]
