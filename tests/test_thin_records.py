"""Thin shards: reading all of their frames equals sampling the full shards."""

import dataclasses
import os
import pathlib
import shlex

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers, script_helpers, training_helpers
from yt8m_distill import settings, thin_records
from yt8m_distill.data import (
    faults,
    frame_sampling,
    framing,
    judging,
    pipeline,
    rewriting,
    segments,
)
from yt8m_distill.serving import thinning

K = 4
# Videos have 1 to 11 frames, so that the longest is truncated.
MAX_FRAMES = 10
DATA = record_helpers.data_settings(max_frames=MAX_FRAMES)
# last_padded selects no frame of a video with 6 or fewer: it has a test of its own.
SAMPLERS = sorted(set(frame_sampling.SAMPLERS) - {"all", "last_padded"})
# These two do not select every frame of a video with at most k frames.
NOT_ALL_OF_FEW = {"uniform_stride", "last_padded"}


def view(sampler="uniform", k=K) -> pipeline.ViewSpec:
    return pipeline.ViewSpec(sampler, k)


def thin(files, folder, data=DATA, of=None, overwrite=False) -> list[str]:
    """The thin shards of these files, made in this process."""
    folder.mkdir(exist_ok=True)
    for path in files:
        count = framing.count_records(path)
        thinning.thin_shard(path, count, str(folder), data, of or view(), overwrite)
    return [str(folder / os.path.basename(path)) for path in files]


def records_of(*files) -> list[bytes]:
    return [record.numpy() for record in tf.data.TFRecordDataset(list(files))]


def examples_of(*files) -> list[tf.train.SequenceExample]:
    return [tf.train.SequenceExample.FromString(r) for r in records_of(*files)]


def numbers(example, name) -> list[int]:
    return list(example.context.feature[name].int64_list.value)


def read_views(files, data, views) -> dict[str, dict]:
    """View → the arrays that evaluation reads, with all videos in one batch."""
    size = len(records_of(*files))
    (batch,) = record_helpers.read(files, views, data, batch_size=size)
    of_views = batch.pop("views")
    return {name: {**batch, **arrays} for name, arrays in of_views.items()}


def read(files, data, of) -> dict:
    """The arrays of one view, by name."""
    return read_views(files, data, {"view": of})["view"]


def whole(files, data=DATA, k=K) -> dict:
    """The arrays that --frame_sampler=all --max_frames=k reads."""
    cut = settings.DataSettings(
        data.feature_names, data.feature_sizes, data.num_classes, k, data.video_id_key
    )
    return read(files, cut, view("all", k))


def assert_same_videos(videos: dict, expected: dict) -> None:
    """Compares all arrays but frame_indices, which a thin shard has in its context."""
    for name in ("video_id", "labels", "weights", "num_frames", "frames"):
        np.testing.assert_array_equal(videos[name], expected[name], name)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> list[str]:
    """Two full shards of 22 videos."""
    return record_helpers.write_shards(tmp_path_factory.mktemp("full"), [13, 9])


@pytest.fixture(scope="module")
def sampled(full) -> dict[str, dict]:
    """Sampler → the arrays that evaluation reads with it from the full shards."""
    return read_views(full, DATA, {name: view(name) for name in SAMPLERS})


def check_thin(thinned: list[str], expected: dict, of: pipeline.ViewSpec) -> None:
    """Checks that thin shards have the frames that were sampled from full ones."""
    assert_same_videos(whole(thinned), expected)
    for row, example in enumerate(examples_of(*thinned)):
        positions = expected["frame_indices"][row, : expected["num_frames"][row]]
        assert numbers(example, "frame_indices") == positions.tolist()
        for name in record_helpers.SIZES:
            frames = example.feature_lists.feature_list[name].feature
            assert len(frames) == len(positions)
    # The flags of the full shards read the same frames from the thin ones.
    again = read(thinned, DATA, of)
    if of.sampler in NOT_ALL_OF_FEW:
        assert sum(again["num_frames"]) < expected["num_frames"].sum()
    else:
        assert_same_videos(again, expected)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reading_thin_shards_equals_sampling_full_ones(
    full, sampled, tmp_path, sampler
):
    thinned = thin(full, tmp_path / "thin", of=view(sampler))
    check_thin(thinned, sampled[sampler], view(sampler))


def test_thin_shards_of_the_last_padded_frames_equal_the_full_ones(tmp_path):
    videos = [record_helpers.video(n, n, [n % 5, 0]) for n in range(7, 12)]
    files = [record_helpers.write_shard(tmp_path / "long.tfrecord", videos)]
    of = view("last_padded")
    check_thin(thin(files, tmp_path / "thin", of=of), read(files, DATA, of), of)


@pytest.mark.parametrize("sampler", ["uniform", "random"])
def test_thinning_again_with_the_same_k_changes_nothing(full, tmp_path, sampler):
    once = thin(full, tmp_path / "once", of=view(sampler))
    twice = thin(once, tmp_path / "twice", of=view("uniform"))
    assert records_of(*twice) == records_of(*once)


def test_after_thinning_twice_positions_refer_to_the_full_video(tmp_path):
    full = record_helpers.write_shard(
        tmp_path / "a.tfrecord", [record_helpers.video(0, 11)]
    )
    # Of the 10 that max_frames leaves: floor(i * 10 / 4).
    once = thin([full], tmp_path / "once")
    (example,) = examples_of(*once)
    assert numbers(example, "frame_indices") == [0, 2, 5, 7]
    (example,) = examples_of(*thin(once, tmp_path / "twice", of=view("last", 2)))
    assert numbers(example, "frame_indices") == [5, 7]
    assert numbers(example, "num_frames") == [11]
    kept = example.feature_lists.feature_list["audio"].feature
    expected = record_helpers.frames_of(11, 3, 1)[[5, 7]]
    assert [f.bytes_list.value[0] for f in kept] == [row.tobytes() for row in expected]


def test_the_context_is_kept_and_only_the_named_features(tmp_path):
    context = {
        "id": record_helpers.bytes_feature(b"a", b"b"),  # Not --video_id_key.
        "key": record_helpers.bytes_feature(b"the id"),
        "start": record_helpers.float_feature([1.5]),
        "num_frames": record_helpers.int64_feature([77]),
    }
    frames = {
        "rgb": record_helpers.frames_of(9, 4),
        "audio": record_helpers.frames_of(6, 3, 1),  # The shortest feature counts.
        "other": record_helpers.frames_of(6, 3),
    }
    labels = [3, 1, 3]
    record = record_helpers.frame_level(None, labels, frames, context=context)
    full = record_helpers.write_shard(tmp_path / "a.tfrecord", [record])
    data = record_helpers.data_settings(video_id_key="key")
    (example,) = examples_of(*thin([full], tmp_path / "thin", data))
    assert numbers(example, "num_frames") == [6]
    # floor(i * 6 / 4)
    assert numbers(example, "frame_indices") == [0, 1, 3, 4]
    assert sorted(example.feature_lists.feature_list) == ["audio", "rgb"]
    before = tf.train.SequenceExample.FromString(record).context.feature
    after = example.context.feature
    assert set(after) == {*before, "frame_indices"}
    for name in set(before) - {"num_frames"}:
        assert after[name] == before[name]


def test_the_starter_code_reads_thin_shards(tmp_path):
    files = record_helpers.write_shards(tmp_path, [11])
    thinned = records_of(*thin(files, tmp_path / "thin"))
    for number, serialized in enumerate(thinned):
        # As in its YT8MFrameFeatureReader.
        context, lists = tf.io.parse_single_sequence_example(
            serialized,
            context_features={
                "id": tf.io.FixedLenFeature([], tf.string),
                "labels": tf.io.VarLenFeature(tf.int64),
            },
            sequence_features={
                name: tf.io.FixedLenSequenceFeature([], tf.string)
                for name in record_helpers.SIZES
            },
        )
        assert context["id"].numpy() == f"v{number}".encode()
        assert context["labels"].values.numpy().tolist() == [number % 5]
        for name, size in record_helpers.SIZES.items():
            frames = tf.reshape(tf.io.decode_raw(lists[name], tf.uint8), [-1, size])
            assert len(frames) == min(number + 1, K)


def test_a_complete_shard_is_kept_and_a_damaged_one_replaced(tmp_path):
    (full,) = record_helpers.write_shards(tmp_path, [20])
    folder = tmp_path / "thin"
    (path,) = thin([full], folder)
    content = pathlib.Path(path).read_bytes()
    again = (full, 20, str(folder), DATA, view())
    os.utime(path, (0, 0))
    assert not thinning.thin_shard(*again)
    assert os.path.getmtime(path) == 0
    assert thinning.thin_shard(*again, overwrite=True)
    assert os.path.getmtime(path) > 0
    for left in (b"", content[:100], content[:-1]):
        pathlib.Path(path).write_bytes(left)
        assert thinning.thin_shard(*again)
        assert pathlib.Path(path).read_bytes() == content
    fewer = record_helpers.write_shard(pathlib.Path(path), records_of(path)[:-1])
    assert thinning.thin_shard(*again)
    assert pathlib.Path(fewer).read_bytes() == content
    assert os.listdir(folder) == [os.path.basename(path)]


@pytest.mark.parametrize("other", ["another k", "another sampler", "the full shard"])
def test_an_existing_shard_with_other_records_is_not_replaced(tmp_path, other):
    (full,) = record_helpers.write_shards(tmp_path, [20])
    folder = tmp_path / "thin"
    if other == "the full shard":
        folder.mkdir()
        path = record_helpers.write_shard(
            folder / os.path.basename(full), records_of(full)
        )
    else:
        of = view(k=K - 1) if other == "another k" else view("first")
        (path,) = thin([full], folder, of=of)
    content = pathlib.Path(path).read_bytes()
    with pytest.raises(ValueError, match="other records") as caught:
        thin([full], folder)
    assert str(caught.value).startswith(path)
    assert pathlib.Path(path).read_bytes() == content
    thin([full], folder, overwrite=True)
    assert records_of(path) == records_of(*thin([full], tmp_path / "other"))


@pytest.mark.parametrize("program", ["thin_records", "convert_records"])
def test_a_folder_that_cannot_be_written_is_named_with_its_flag(tmp_path, program):
    (full,) = record_helpers.write_shards(tmp_path, [2])
    (tmp_path / "file").touch()
    flags = ["--student_k=1", "--feature_sizes=4,3"] * (program == "thin_records")
    given = (full, f"--output_dir={tmp_path}/file", *flags)
    line = script_helpers.refuse(program, *given)
    assert line.startswith(f"--output_dir={tmp_path}/file")


def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path):
    (full,) = record_helpers.write_shards(tmp_path, [50])
    folder = tmp_path / "thin"
    with training_helpers.full_disk(1000), pytest.raises(ValueError) as caught:
        thin([full], folder)
    assert str(folder / os.path.basename(full)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(folder) == []


def bad_video(defect: str) -> bytes:
    frames = record_helpers.features_of(0, 3)
    context = {}
    if defect == "width":
        frames["audio"] = record_helpers.frames_of(3, 5)
    if defect == "positions":
        context["num_frames"] = record_helpers.int64_feature([9])
        context["frame_indices"] = record_helpers.int64_feature([0, 4])
    return record_helpers.frame_level("bad", [1], frames, context=context)


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ("width", ["video bad", "feature audio", "5 bytes", "--feature_sizes"]),
        ("positions", ["video bad", "num_frames", "frame_indices"]),
    ],
)
def test_a_bad_record_is_one_line_and_leaves_no_file(
    tmp_path, monkeypatch, defect, words
):
    script_helpers.without_processes(monkeypatch)
    monkeypatch.setattr(thinning, "_BATCH", 2)  # The bad record is in the third batch.
    videos = [record_helpers.video(n, 3) for n in range(5)]
    full = record_helpers.write_shard(tmp_path / "a", [*videos, bad_video(defect)])
    line = script_helpers.refuse(
        "thin_records",
        f"--input_data_pattern={full}",
        f"--output_dir={tmp_path}/thin",
        "--feature_sizes=4,3",
    )
    assert line.startswith(f"{full}, record 5 (counted from 0)")
    assert not [word for word in words if word not in line]
    assert not (tmp_path / "thin").exists()


@pytest.mark.parametrize("program", ["thin_records", "convert_records"])
def test_an_error_leaves_no_new_folder_and_every_old_one(
    tmp_path, monkeypatch, program
):
    script_helpers.without_processes(monkeypatch)
    (full,) = record_helpers.write_shards(tmp_path, [2])
    flags = ["--features=none"]
    if program == "thin_records":
        flags = ["--student_k=1", "--feature_names=none", "--feature_sizes=4"]
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        script_helpers.refuse(program, full, f"--output_dir={folder}", *flags)
    assert not new.exists() and old.exists()


def test_a_video_without_sampled_frames_is_named(tmp_path):
    full = record_helpers.write_shard(
        tmp_path / "a", [record_helpers.video(0, 9), record_helpers.video(1, 6)]
    )
    with pytest.raises(ValueError) as caught:
        thin([full], tmp_path / "thin", of=view("last_padded"))
    start = f"{full}, record 1 (counted from 0), video v1: --frame_sampler=last_padded"
    assert str(caught.value).startswith(start)


def test_outputs_never_replace_inputs_or_each_other(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    files = [str(tmp_path / name / "x.tfrecord") for name in ("a", "b")]
    for source, folder in (("a", "a"), ("a", "link"), ("link", "a"), ("a", "b/../a")):
        path = str(tmp_path / source / "x.tfrecord")
        with pytest.raises(ValueError, match=r"x\.tfrecord: name another one\.$"):
            rewriting.check_places([path], str(tmp_path / folder))
    rewriting.check_places(files[:1], str(tmp_path / "b"))
    with pytest.raises(ValueError, match="have the same name"):
        rewriting.check_places(files, str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("sampler", "k", "text"),
    [
        ("all", 4, "--frame_sampler=all "),
        ("uniform", 11, "--student_k=11 is more than --max_frames=10."),
        ("nearest", 4, "--frame_sampler=nearest: Unknown sampler 'nearest'."),
    ],
)
def test_an_invalid_view_is_refused(sampler, k, text):
    sampling = settings.SamplingSettings(k, sampler)
    with pytest.raises(ValueError) as caught:
        thinning.view_to_keep(sampling, MAX_FRAMES)
    assert str(caught.value).startswith(text)


def test_the_program_continues_and_prints_the_training_flags(tmp_path, monkeypatch):
    script_helpers.without_processes(monkeypatch)
    files = record_helpers.write_shards(tmp_path, [7, 8, 0])
    folder = tmp_path / "thin"
    thin(files[:1], folder)
    done = script_helpers.succeed(
        "thin_records",
        f"--input_data_pattern={tmp_path}/*.tfrecord",
        f"--output_dir={folder}",
        f"--student_k={K}",
        f"--max_frames={MAX_FRAMES}",
        "--feature_sizes=4,3",
        "--num_classes=5",
        "--jobs=1",
    )
    targets = [str(folder / os.path.basename(path)) for path in files]
    assert_same_videos(whole(targets), read(files, DATA, view()))
    before, after = (sum(map(os.path.getsize, paths)) for paths in (files, targets))
    summary, suggested = done.stdout.splitlines()
    for named in ("15 videos", f"{before} bytes", f"{after} after", "1 of 3 shards"):
        assert named in summary
    assert suggested.endswith(
        "--mode=baseline --student_k=4 --max_frames=4 --frame_sampler=all "
        "--feature_names=rgb,audio --feature_sizes=4,3 --num_classes=5 "
        "--video_id_key=id"
    )


def test_the_training_flags_describe_the_records_whole(full, tmp_path):
    changes = {"labels_key": "tags", "missing_feature": "zeros"}
    data = dataclasses.replace(DATA, feature_ranges="0:4,-1:1", **changes)
    thin(full, tmp_path / "thin")
    report = thin_records.report(full, str(tmp_path / "thin"), data, view(), 22, 0)
    words = shlex.split(report.splitlines()[-1].partition("train.py: ")[2])
    found = dict(word.removeprefix("--").split("=") for word in words)
    expected = {**dataclasses.asdict(data), "max_frames": K}
    read_data = {k: str(v) for k, v in expected.items() if k in found}
    assert {"feature_ranges", *changes} <= found.keys()
    assert {k: v for k, v in found.items() if k in read_data} == read_data


def test_a_truncated_shard_is_refused_before_any_is_written(tmp_path):
    good, bad = record_helpers.write_shards(tmp_path, [7, 8])
    os.truncate(bad, os.path.getsize(bad) - 5)
    folder = tmp_path / "thin"
    with pytest.raises(ValueError) as caught:
        thin_records.thin_shards([good, bad], str(folder), DATA, view())
    assert str(caught.value).startswith(f"{bad}, record 7 (counted from 0)")
    pathlib.Path(bad).write_bytes(b"")
    with pytest.raises(ValueError, match=f"^--input_data_pattern.*{bad}"):
        thin_records.thin_shards([bad], str(folder), DATA, view())
    assert not folder.exists()


@pytest.mark.real_data
def test_audioset_and_youtube8m_are_thinned(real_data, tmp_path):
    audioset = settings.DataSettings("audio_embedding", "128", 527, 10, "video_id")
    shards = {
        "audioset_bal_train/bal_train-00015-of-00016.tfrecord": (audioset, 3),
        "yt8m_frame_level/SjJ3.tfrecord": (settings.DataSettings(), 30),
    }
    for name, (data, k) in shards.items():
        files = [str(real_data / name)]
        thinned = thin(files, tmp_path / "thin", data, view("random", k))
        sampled = read(files, data, view("random", k))
        assert sampled["num_frames"].max() == k
        assert_same_videos(whole(thinned, data, k), sampled)
        for before, after in zip(
            examples_of(*files), examples_of(*thinned), strict=True
        ):
            for feature, value in before.context.feature.items():
                assert after.context.feature[feature] == value


def test_a_missing_feature_stays_missing(tmp_path):
    frames = {"rgb": record_helpers.frames_of(8, 4)}
    record = record_helpers.frame_level("a", [1], frames)
    full = record_helpers.write_shard(tmp_path / "a.tfrecord", [record])
    data = record_helpers.data_settings(missing_feature="zeros", max_frames=MAX_FRAMES)
    (example,) = examples_of(*thin([full], tmp_path / "thin", data))
    assert numbers(example, "frame_indices") == [0, 2, 4, 6]
    assert list(example.feature_lists.feature_list) == ["rgb"]


def test_a_thin_record_has_no_rated_segments():
    record = record_helpers.rated_video(3, 12, [1], [(5, 1, 1)])
    data = record_helpers.data_settings()
    video = judging.judge(faults.Record(record), data)
    thin = thinning.thin_record(video, [0, 6], data.names)
    kept = tf.train.SequenceExample.FromString(thin).context.feature
    assert {"id", "labels"} <= set(kept) and not set(segments.KINDS) & set(kept)
