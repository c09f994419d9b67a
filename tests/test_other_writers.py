"""What yt8m-inspect prints about records of other writers trains as it is."""

import shlex

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from tests import record_helpers, script_helpers
from tests import training_helpers as helpers
from yt8m_distill import file_patterns, flag_groups, inspect_records, settings
from yt8m_distill.data import pipeline, records

NUM_VIDEOS = 6
SIZES = record_helpers.SIZES  # rgb 4, audio 3
NUM_CLASSES = 5
VECTORS = {"mean_rgb": 6, "mean_audio": 2}


def frames(video: int) -> dict[str, np.ndarray]:
    """rgb and audio of a video: 2 to 7 frames of uint8."""
    random = np.random.default_rng(video)
    return {
        n: random.integers(0, 256, [2 + video, w], np.uint8) for n, w in SIZES.items()
    }


def labels(video: int) -> list[int]:
    return sorted({video % NUM_CLASSES, NUM_CLASSES - 1})


def text(value: str) -> tf.train.Feature:
    return record_helpers.bytes_feature(value.encode())


ints, floats = record_helpers.int64_feature, record_helpers.float_feature


def floats_of(rows: np.ndarray) -> list[tf.train.Feature]:
    """One Feature per frame, as MediaPipe writes them; the middle of each step."""
    return [floats(row) for row in records.dequantize(rows)]


def example(video: int, context=(), lists=None) -> bytes:
    """A record as this package writes it, but for some features.

    Args:
        video: its number.
        context: key → Feature, in addition; None: without.
        lists: of all features, in the place of the native ones.
    """
    native = {
        name: [record_helpers.bytes_feature(row.tobytes()) for row in rows]
        for name, rows in frames(video).items()
    }
    features = {"id": text(f"v{video}"), "labels": ints(labels(video)), **dict(context)}
    return tf.train.SequenceExample(
        context=tf.train.Features(feature={k: v for k, v in features.items() if v}),
        feature_lists=tf.train.FeatureLists(
            feature_list={
                key: tf.train.FeatureList(feature=steps)
                for key, steps in (native if lists is None else lists).items()
            }
        ),
    ).SerializeToString()


def multi_hot(video: int) -> list[int]:
    return [int(label in labels(video)) for label in range(NUM_CLASSES)]


def mediapipe(video: int, context=()) -> bytes:
    lists = {
        f"{name.upper()}/feature/floats": floats_of(rows)
        for name, rows in frames(video).items()
    }
    seconds = [ints([1_000_000 * t]) for t in range(2 + video)]
    lists |= {f"{name.upper()}/feature/timestamp": seconds for name in SIZES}
    lists["image/encoded"] = [text("x" * (video + t)) for t in range(1, 4)]
    return example(video, {"clip/data_path": text(f"v{video}"), **dict(context)}, lists)


def in_one(video: int, feature) -> dict[str, list[tf.train.Feature]]:
    """All frames of each feature in one Feature, made by a function of [T, size]."""
    return {name: [feature(rows)] for name, rows in frames(video).items()}


def vectors(video: int) -> dict:
    """Features of a video-level record."""
    random = np.random.default_rng(video)
    return {n: floats(random.uniform(-2, 2, w)) for n, w in VECTORS.items()}


def without_audio(video: int, make) -> bytes:
    """The record without its second feature, for every other video."""
    record = tf.train.SequenceExample.FromString(make(video))
    lists = record.feature_lists.feature_list
    for key in [key for key in lists if "audio" in key.lower()]:
        if video % 2:
            del lists[key]
    return record.SerializeToString()


def native(video: int) -> bytes:
    return example(video)


# Kind → how video v is written, and what the program has to print for it.
KINDS = {
    "native": (native, ()),
    "float frames": (lambda v: mediapipe(v, {"id": None}), ("yt8m-convert",)),
    "float frames without an id": (
        lambda v: mediapipe(v, {"id": None, "clip/data_path": None}),
        ("yt8m-convert",),
    ),
    "integer frames": (
        lambda v: example(v, (), {n: map(ints, r) for n, r in frames(v).items()}),
        ("yt8m-convert",),
    ),
    "all frames in one list of floats": (
        lambda v: example(
            v, (), in_one(v, lambda rows: floats(records.dequantize(rows).ravel()))
        ),
        ("yt8m-convert",),
    ),
    "all frames in one byte string": (
        lambda v: example(
            v, (), in_one(v, lambda r: record_helpers.bytes_feature(r.tobytes()))
        ),
        ("yt8m-convert",),
    ),
    "all byte strings in one Feature": (
        lambda v: example(
            v,
            (),
            in_one(
                v, lambda r: record_helpers.bytes_feature(*(x.tobytes() for x in r))
            ),
        ),
        ("yt8m-convert",),
    ),
    "all frames in the context": (
        lambda v: example(
            v,
            {n: floats(records.dequantize(r).ravel()) for n, r in frames(v).items()},
            {},
        ),
        ("yt8m-convert",),
    ),
    "integer ids": (lambda v: example(v, {"id": ints([v])}), ("yt8m-convert",)),
    "float labels": (
        lambda v: example(v, {"labels": floats(labels(v))}),
        ("yt8m-convert",),
    ),
    "0/1 integers": (
        lambda v: example(v, {"labels": ints(multi_hot(v))}),
        ("yt8m-convert", f"--num_classes={NUM_CLASSES}"),
    ),
    "0/1 floats": (
        lambda v: example(v, {"labels": floats(multi_hot(v))}),
        ("yt8m-convert", f"--num_classes={NUM_CLASSES}"),
    ),
    "segments": (
        lambda v: example(
            v,
            {
                "segment_start_times": ints([0, 5]),
                "segment_end_times": ints([5, 10]),
                "segment_labels": ints([1, 900]),
                "segment_scores": floats([1.0, 0.0]),
            },
        ),
        ("--segment_labels", f"--num_classes={NUM_CLASSES}"),
    ),
    "missing audio": (
        lambda v: without_audio(v, native),
        ("--missing_feature=zeros",),
    ),
    "missing audio of floats": (
        lambda v: without_audio(v, mediapipe),
        ("yt8m-convert", "--missing_feature=zeros"),
    ),
    "labels under another key": (
        lambda v: example(
            v,
            {
                "labels": None,
                "clip/label/index": ints(labels(v)),
                "clip/label/string": text("dog"),
            },
        ),
        ("--labels_key=clip/label/index",),
    ),
    "ids under another key": (
        lambda v: example(v, {"id": None, "clip/media_id": text(f"v{v}")}),
        ("--video_id_key=clip/media_id",),
    ),
    "vectors": (lambda v: example(v, vectors(v), {}), ("--noframe_features",)),
    "vectors of other labels and ids": (
        lambda v: example(
            v, vectors(v) | {"labels": floats(multi_hot(v)), "id": ints([v])}, {}
        ),
        ("yt8m-convert", "--noframe_features"),
    ),
}
NEEDS_NO_CONVERSION = {
    kind for kind, (_, s) in KINDS.items() if "yt8m-convert" not in s
}


def run_of(suggested: list[str]) -> settings.RunSettings:
    """The settings of train.py with these flags and no others that matter."""
    values = flags.FlagValues()
    flag_groups.define(flag_groups.RUN_GROUPS, values)
    values(["train.py", "--train_dir=run", "--train_data_pattern=x", *suggested])
    return flag_groups.read_run(values)


def prepare(pattern: str) -> tuple[str, settings.RunSettings, str]:
    """Does what yt8m-inspect says: the pattern to train on, the settings, its text."""
    said = script_helpers.succeed("inspect_records", pattern).stdout
    commands = dict(line.partition(": ")[::2] for line in said.splitlines())
    if "convert" in commands:
        program, *arguments = shlex.split(commands["convert"])
        assert program == "yt8m-convert"
        script_helpers.succeed("convert_records", *arguments)
        pattern = "native/*"
    return pattern, run_of(shlex.split(commands["flags"])), said


def write(folder, make, count: int = NUM_VIDEOS) -> str:
    """Writes the first videos as a shard and returns its pattern."""
    shard = folder / "data" / "train 0.tfrecord"
    shard.parent.mkdir()
    record_helpers.write_shard(shard, [make(video) for video in range(count)])
    return str(shard.parent / "*")


def read(pattern: str, run: settings.RunSettings) -> dict:
    """All videos in one batch."""
    files = file_patterns.expand(pattern, "data_pattern")
    views = {"all": pipeline.ViewSpec("all", 0)}
    (batch,) = record_helpers.read(files, views, run.data, batch_size=NUM_VIDEOS)
    return batch


def check_videos(batch: dict, kind: str) -> None:
    """The batch holds the videos of this module, to the bit."""
    assert batch["weights"].tolist() == [1] * NUM_VIDEOS
    for row in range(NUM_VIDEOS):
        np.testing.assert_array_equal(batch["labels"][row], multi_hot(row))
        named = "train 0.tfrecord:" if "without an id" in kind else "v"
        named = "" if "ids" in kind.split() and "under" not in kind else named
        assert batch["video_id"][row].decode() == f"{named}{row}"
        view = batch["views"]["all"]
        if "vectors" in kind:
            sent = vectors(row).values()
            expected = np.concatenate([f.float_list.value for f in sent])
            np.testing.assert_array_equal(view["frames"][row, 0], np.float32(expected))
            continue
        expected = np.concatenate(list(frames(row).values()), axis=1)
        if "missing" in kind and row % 2:
            expected[:, SIZES["rgb"] :] = 127
        assert view["num_frames"][row] == 2 + row
        np.testing.assert_array_equal(view["frames"][row, : 2 + row], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_commands_read_the_videos(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make, printed = KINDS[kind]
    pattern, run, said = prepare(write(tmp_path, make))
    assert all(part in said for part in printed)
    assert ("yt8m-convert" in said) == (kind not in NEEDS_NO_CONVERSION)
    check_videos(read(pattern, run), kind)


@pytest.mark.parametrize("make", [mediapipe, native], ids=["floats", "bytes"])
def test_bare_examples_are_converted(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for video in range(NUM_VIDEOS):
        (tmp_path / "clips" / f"{video}.pb").write_bytes(make(video))
    pattern, run, _ = prepare("clips/*.pb")
    check_videos(read(pattern, run), "bare")


def test_published_widths_give_the_frames_in_one_feature(tmp_path, monkeypatch):
    """Where all videos have as many frames, nothing else does."""
    monkeypatch.chdir(tmp_path)
    one = record_helpers.bytes_feature(bytes(10 * 128))
    pattern = write(tmp_path, lambda v: example(v, (), {"audio_embedding": [one]}))
    pattern, run, _ = prepare(pattern)
    assert run.data.sizes == (128,)
    assert (
        read(pattern, run)["views"]["all"]["num_frames"].tolist() == [10] * NUM_VIDEOS
    )


@pytest.mark.parametrize("kind", ["float frames", "vectors of other labels and ids"])
def test_the_printed_flags_train(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    pattern, run, _ = prepare(write(tmp_path, KINDS[kind][0]))
    network = {"teacher": "MeanTanh"} if run.data.frame_features else {}
    run = helpers.change(
        run,
        mode="teacher",
        train_dir="run",
        train_data_pattern=pattern,
        batch_size=NUM_VIDEOS,
        num_epochs=1,
        **network,
    )
    helpers.train(run)
    (last,) = helpers.read_lines("run/teacher/metrics.jsonl")[-1:]
    assert last["step"] == 1


@pytest.mark.parametrize(
    ("lists", "named"),
    [
        ({"image/encoded": [text("a" * n) for n in range(1, 9)]}, "image/encoded"),
        ({"audio": [text("float" * 100 + "32" * 6)] * 3}, "512"),
        ({"rgb": [ints([256, 0])] * 3}, "0..255"),
    ],
    ids=["images", "float32 in bytes", "large integers"],
)
def test_a_feature_that_holds_no_frames_is_named(tmp_path, lists, named):
    pattern = write(tmp_path, lambda video: example(video, (), lists))
    files = file_patterns.expand(pattern, "data_pattern")
    with pytest.raises(ValueError) as caught:
        inspect_records.inspect(files)
    assert files[0] in str(caught.value) and named in str(caught.value)
    assert next(iter(lists)) in str(caught.value)


def test_videos_without_labels_are_named(tmp_path):
    """Labels of segments are not those of the video."""
    context = {"labels": None, "segment_labels": ints([1, 900])}
    pattern = write(tmp_path, lambda video: example(video, context))
    done = script_helpers.succeed("inspect_records", pattern)
    assert "--unlabeled_data_pattern" in done.stdout


@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (mediapipe, {"RGB/feature/floats": [floats([np.nan] * 4)]}),
        (native, {"rgb": [text("seven..")]}),
    ],
    ids=["floats", "bytes"],
)
def test_few_invalid_records_are_skipped(tmp_path, monkeypatch, make, broken):
    """One of 101 is less than --max_bad_fraction=0.01 forgives."""
    monkeypatch.chdir(tmp_path)
    bad = example(0, (), broken)
    pattern = write(tmp_path, lambda v: bad if v == 50 else make(v % NUM_VIDEOS), 101)
    pattern, run, said = prepare(pattern)
    assert "record 50" in said and "--bad_records=skip" in said
    files = file_patterns.expand(pattern, "data_pattern")
    opened = record_helpers.open_shards(
        files, run.data, bad_records=run.reading.bad_records
    )
    assert opened.num_videos() == 100


def test_classes_and_features_are_counted(tmp_path):
    # Videos 0 and 1 have 2 and 3 frames; one frame is 0 and one the byte nearest to 0.
    rows = {
        0: np.uint8([[0] * 4, [9] * 4]),
        1: np.uint8([[127] * 4, [9] * 4, [1, 2, 3, 4]]),
    }
    pattern = write(
        tmp_path,
        lambda v: record_helpers.frame_level(f"v{v}", [[0, 6], [6]][v], {"x": rows[v]}),
        2,
    )
    names = tmp_path / "names.csv"
    names.write_text("index,name\n0,Dog\n1,Cat\n6,Bird\n")
    found = inspect_records.inspect(file_patterns.expand(pattern, "data_pattern"))
    numbers = found.to_dict()
    assert numbers["labels"] == {0: 1, 6: 2}
    assert numbers["labels_per_video"] == {1: 1, 2: 1}
    feature = numbers["features"]["x"]
    assert feature["dtype"] == "uint8"
    assert feature["frames"] == [2, 2.5, 3]
    # (0 + 9 + 127 + 9) * 4 + 10 of 5 * 4 numbers.
    assert feature["values"] == [0, 590 / 20, 127]
    assert feature["zero_frames"] == 2 / 5
    words = ("inspect_records", pattern, f"--vocabulary={names}")
    said = script_helpers.succeed(*words).stdout
    (seen,) = (x for x in said.splitlines() if "classes seen" in x)
    assert seen.index("6 Bird (2)") < seen.index("0 Dog (1)")
    assert said.splitlines()[-1].endswith(f" --vocabulary={names}")
    # 1 to 5 of the 7 classes that the labels need, and of the 9 that have a name.
    assert "5 of 7" in inspect_records.report(found)
    names.write_text(names.read_text() + "8,Fish\n")
    said = script_helpers.succeed(*words).stdout
    assert "7 of 9" in said and "1 Cat" in said and "--num_classes=9" in said
