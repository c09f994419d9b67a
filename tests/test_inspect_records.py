"""yt8m-inspect finds what is in records and suggests flags that fit."""

import collections
import gzip
import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from tests import record_helpers
from tests import training_helpers as helpers
from yt8m_distill import flag_groups, inspect_records, settings
from yt8m_distill.data import pipeline
from yt8m_distill.models import frame_average
from yt8m_distill.training import modes

ROOT = pathlib.Path(__file__).resolve().parents[1]


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


def test_compressed_shards_are_inspected_as_others(tmp_path):
    files = record_helpers.write_shards(tmp_path, [4, 3])
    expected = inspect_records.inspect(files).to_dict()
    packed = pathlib.Path(files[1])
    packed.write_bytes(gzip.compress(packed.read_bytes()))
    assert inspect_records.inspect(files).to_dict() == expected


def test_odd_records_are_counted(tmp_path):
    wide = record_helpers.frames_of(2, 6)
    files = write(
        tmp_path / "odd",
        frame_level("a", [7], x=3, y=2),  # different lengths
        frame_level("a", [], x=2, y=2),  # the same id
        frame_level("b", [7, 2], x=2),  # no y
        frame_level(None, [-3], x=1, y=1),  # no id, a negative label
        record_helpers.frame_level("c", [7], {"x": wide, "y": wide}),
        record_helpers.video_level("d", [1], {"x": [0.5] * 4}),
    )
    found = inspect_records.inspect(files)
    assert found.all_problems() == {
        "has no y": 2,
        "has features of different length": 1,
        "repeats an id": 1,
        "has no id": 1,
        "has a negative label": 1,
        "has x of another width than the first": 1,
        "has y of another width than the first": 1,
        "is video level, unlike the first": 1,
        "has no x": 1,
    }
    assert found.labels_a_video == {0: 1, 1: 4, 2: 1}
    text = inspect_records.report(found)
    assert "odd: 2 x a video has no y" in text
    assert text.splitlines()[-1] == (
        "flags: --feature_names=x,y --feature_sizes=4,4 --num_classes=8 "
        "--video_id_key=id --max_frames=2 --student_k=1"
    )


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


def test_the_id_key_is_found_or_taken_as_given(tmp_path):
    record = frame_level("a", [1], id_key="video_id", x=2)
    files = write(tmp_path / "a", record, frame_level("b", [1], "video_id", x=2))
    assert inspect_records.inspect(files).id_key == "video_id"
    given = inspect_records.inspect(files, id_key="key")
    assert given.all_problems() == {"has no id": 2}


def run_of(suggested: list[str]) -> settings.RunSettings:
    """The settings of train.py with these flags and no others that matter."""
    values = flags.FlagValues()
    flag_groups.define(flag_groups.RUN_GROUPS, values)
    values(["train.py", "--train_dir=run", "--train_data_pattern=x", *suggested])
    return flag_groups.read_run(values)


def test_the_flags_train_on_the_data(tmp_path):
    files = record_helpers.write_shards(tmp_path, [4, 3])
    run = run_of(inspect_records.inspect(files).suggestion())
    views = {"all": pipeline.ViewSpec("all", 0)}
    dataset = record_helpers.build_dataset(files, views, run.data, batch_size=7)
    (batch,) = dataset
    assert batch["views"]["all"]["num_frames"].numpy().tolist() == list(range(1, 8))


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


def test_bytes_that_are_no_example_are_named(tmp_path):
    (path,) = files = write(tmp_path / "a", frame_level("a", x=1), b"garbage!")
    with pytest.raises(ValueError) as caught:
        inspect_records.inspect(files)
    assert str(caught.value) == (
        f"{path}, record 1 (counted from 0): this is neither a SequenceExample nor an "
        "Example."
    )


def test_video_level_records_are_recognised(tmp_path):
    shard = record_helpers.write_shard(
        tmp_path / "v.tfrecord",
        [record_helpers.video_level("a", [1], {"mean_rgb": [0.5] * 6})],
    )
    found = inspect_records.inspect([shard])
    assert found.kind == "video level"
    assert "--feature_sizes=6" in found.suggestion()
    run = run_of(found.suggestion())
    assert not run.data.frame_features
    (phase,) = modes.phases(run)
    (role,) = phase.roles
    network = helpers.build_network(role.name, run)
    assert isinstance(network, frame_average.FrameLevelLogisticModel)


def refuse(*arguments: str) -> str:
    """The one line of the program that must refuse its arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "yt8m_distill.inspect_records", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_bad_input_is_one_line_and_status_1(tmp_path):
    (path,) = record_helpers.write_shards(tmp_path, [3])
    content = bytearray(pathlib.Path(path).read_bytes())
    pathlib.Path(path).write_bytes(content[:-5])
    assert refuse(path).startswith(
        f"inspect_records.py: {path} ends inside record 2 (counted from 0)"
    )
    content[-10] ^= 1
    pathlib.Path(path).write_bytes(content)
    assert refuse(f"--data_pattern={path}").startswith(
        f"inspect_records.py: {path}, record 2 (counted from 0): damaged"
    )


@pytest.mark.real_data
def test_audioset_is_recognised(real_data):
    shard = real_data / "audioset_bal_train" / "bal_train-00014-of-00016.tfrecord"
    done = subprocess.run(
        [sys.executable, "-m", "yt8m_distill.inspect_records", "--json", str(shard)],
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
        "--student_k=3",
    ]
