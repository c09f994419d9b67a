"""Bad records: each is named in one line, or left out and counted, by every reader."""

import gzip
import itertools
import os
import pathlib
import zlib

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from tools import fuzz_records
from yt8m_distill.data import frame_index, pipeline, records, validation

DATA = helpers.data_settings()
VIEWS = {
    "all": pipeline.ViewSpec("all", DATA.max_frames),
    "sampled": pipeline.ViewSpec("random", 3),
}
SKIP = {"bad_records": "skip", "max_bad_fraction": 1.0}
TRAINING = {"training": True, "shuffle_buffer_size": 5, "num_readers": 3, "epoch": 2}


def read(files, data=DATA, **arguments) -> list[dict]:
    arguments = {"batch_size": 4, "training": False, **arguments}
    dataset = pipeline.build_dataset(files, data, VIEWS, **arguments)
    return list(dataset.as_numpy_iterator())


def ids_of(batches) -> list[bytes]:
    return [i for batch in batches for i in batch["video_id"] if i]


def assert_equal(some: list[dict], others: list[dict]) -> None:
    assert len(some) == len(others) > 0
    tf.nest.map_structure(np.testing.assert_array_equal, some, others)


def frames(rgb=(4, 4), audio=(3, 3)) -> dict:
    """Frames of these widths."""
    made = {"rgb": rgb, "audio": audio}
    return {
        name: [helpers.bytes_feature(bytes(width)) for width in widths]
        for name, widths in made.items()
        if widths is not None
    }


# What is wrong → a record, the reason and the rule that its line has to name.
BAD = {
    "wrong width": (
        helpers.frame_level("bad", [1], frames(rgb=(4, 5))),
        "wrong width",
        "video bad: a frame of feature rgb is 5 bytes wide, not the 4",
    ),
    "widths that cancel out": (
        helpers.frame_level("bad", [1], frames(rgb=(4, 5, 3))),
        "wrong width",
        "video bad: a frame of feature rgb is 5 bytes wide, not the 4",
    ),
    "missing feature": (
        helpers.frame_level("bad", [1], frames(audio=None)),
        "no frames",
        "video bad: feature audio has no frames",
    ),
    "zero frames": (
        helpers.frame_level("bad", [1], frames(rgb=())),
        "no frames",
        "video bad: feature rgb has no frames",
    ),
    "label": (
        helpers.frame_level("bad", [1, 9], frames()),
        "label out of range",
        "video bad: label 9 is not in 0..4",
    ),
    "label of an id that is no text": (
        helpers.frame_level(
            None, [9], frames(), context={"id": helpers.bytes_feature(b"b\xffd")}
        ),
        "label out of range",
        "video b\ufffdd: label 9 is not in 0..4",
    ),
    "no id": (helpers.frame_level(None, [1], frames()), "no id", "there is no id"),
    "labels of another type": (
        helpers.frame_level(
            "bad", [], frames(), context={"labels": helpers.bytes_feature(b"cat")}
        ),
        "feature of another type",
        "labels is not of type int64",
    ),
    "video-level": (
        helpers.video_level("bad", [1], {"rgb": [0.5] * 4}),
        "no frames",
        "Is --feature_names right, and is this frame-level data?",
    ),
    "empty": (b"", "no frames", "feature rgb has no frames"),
    "no example": (b"garbage!", "not an example", "this is not an example"),
    # The next two ended TensorFlow's process (found by fuzzing).
    "frame without end": (
        helpers.endless_frame(),
        "not an example",
        "this is not an example",
    ),
    "id without end": (
        helpers.endless_id(),
        "not an example",
        "this is not an example",
    ),
}


@pytest.fixture(params=sorted(BAD))
def case(request, tmp_path):
    """A shard of which record 1 is bad, the good ones of it, reason and rule."""
    record, reason, rule = BAD[request.param]
    good = [helpers.video(1, 3), helpers.video(2, 12), helpers.video(3, 1)]
    shard = helpers.write_shard(tmp_path / "s.tfrecord", [good[0], record, *good[1:]])
    return shard, good, reason, rule


def compressed(shard: str, by=gzip.compress) -> str:
    """The same shard, compressed, which the sequential reader reads."""
    path = pathlib.Path(shard).with_suffix(".packed")
    path.write_bytes(by(pathlib.Path(shard).read_bytes()))
    return str(path)


def line_about(files, **how) -> str:
    """What a script says of files that it stops at."""
    with pytest.raises((tf.errors.OpError, ValueError)) as caught:
        read(files, **how)
    found = records.describe_error(caught.value, files) or str(caught.value)
    assert "\n" not in found
    return found


def test_all_readers_stop_with_the_same_line(case):
    shard, _, _, rule = case
    packed = compressed(shard)
    line = line_about([shard])
    assert line.startswith(f"{shard}, record 1 (counted from 0)")
    assert rule in line
    assert line_about([packed]).replace(packed, shard) == line
    (bad,) = validation.check_shard(shard, DATA).bad
    assert bad.message == line


def test_the_index_says_the_same_line(case):
    shard, _, reason, _ = case
    expected = line_about([shard])
    if reason != "label out of range":  # Of which the index knows no rule.
        with pytest.raises(ValueError) as caught:
            frame_index.build(shard, DATA)
        assert str(caught.value) == expected
        return
    index = frame_index.build(shard, DATA)
    frame_index.write(index, frame_index.index_path(shard))
    assert line_about([shard], use_index="always") == expected


def test_skip_reads_the_others_and_counts_by_reason(case):
    shard, good, reason, rule = case
    skipped = pipeline.find_skipped([shard], DATA, max_bad_fraction=1)
    assert skipped.num_videos == 3
    (line,) = skipped.lines()
    assert line.startswith(f"1 skipped, {reason}; the first: {shard}, record 1")
    assert rule in line
    assert skipped.to_dict()["reasons"][reason]["count"] == 1
    expected = read([helpers.write_shard(pathlib.Path(shard).parent / "good", good)])
    assert_equal(read([shard], **SKIP), expected)
    assert_equal(read([compressed(shard)], **SKIP), expected)


# ------------------------------------------------------------------ damaged files


def damaged(tmp_path, how: str) -> tuple[str, str, list[str]]:
    """A shard, what its line has to say, and the videos that can still be read."""
    videos = [helpers.video(n, 3) for n in range(5)]
    path = tmp_path / "s.tfrecord"
    content = bytearray(pathlib.Path(helpers.write_shard(path, videos)).read_bytes())
    begin = 2 * (len(videos[0]) + records.FRAMING)  # Of record 2; all are as long.
    rest = len(content) - begin
    names = [f"v{n}" for n in range(5)]
    if how == "flipped byte":
        content[begin + 40] ^= 1
        names.remove("v2")
        line = f"record 2 (counted from 0) is damaged at byte {begin}: its checksum"
    elif how == "flipped length":
        content[begin] ^= 1
        names = names[:2]
        line = (
            f"record 2 (counted from 0) is damaged at byte {begin}: its length is not "
            f"known; the last {rest} bytes of the file are lost."
        )
    elif how == "truncated":
        del content[-7:]
        names = names[:4]
        line = "record 4 (counted from 0) is damaged at byte "
    elif how == "not a TFRecord file":
        content = bytearray(b"VideoId,LabelConfidencePairs\n" * 9)
        names = []
        line = "record 0 (counted from 0) is damaged at byte 0: this is not a TFRecord"
    else:
        # A checksum that fits: as long as no machine has memory.
        length = (2**50).to_bytes(8, "little")
        crc = records.masked_crc32c(length).to_bytes(4, "little")
        content[begin : begin + 12] = length + crc
        names = names[:2]
        line = (
            f"record 2 (counted from 0) is damaged at byte {begin}: the file is trunc"
        )
    path.write_bytes(content)
    return str(path), f"{path}: {line}", names


DAMAGE = [
    *("flipped byte", "flipped length", "truncated", "not a TFRecord file"),
    "huge length",
]


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_of_a_file_is_one_place_with_its_byte(tmp_path, how):
    shard, line, names = damaged(tmp_path, how)
    assert line_about([shard]).startswith(line)
    (bad,) = validation.check_shard(shard, DATA).bad
    assert bad.message.startswith(line)
    assert [i.decode() for i in ids_of(read([shard], **SKIP))] == names
    with pytest.raises(ValueError) as caught:
        frame_index.build(shard, DATA)
    assert str(caught.value) == bad.message


@pytest.mark.parametrize("unreadable", [1, 3])
def test_what_lies_behind_damaged_framing_counts_in_videos(tmp_path, unreadable):
    """Against --max_bad_fraction, by its bytes; it is one place in the counts."""
    video = helpers.video(0, 3)
    size = len(video) + records.FRAMING
    shard = helpers.write_shard(tmp_path / "s.tfrecord", [video] * 7)
    content = bytearray(pathlib.Path(shard).read_bytes())
    content[(7 - unreadable) * size] ^= 1  # In a length.
    pathlib.Path(shard).write_bytes(content)
    fraction = unreadable / 7
    skipped = pipeline.find_skipped([shard], DATA, max_bad_fraction=fraction)
    assert (skipped.num_videos, len(skipped.bad)) == (7 - unreadable, 1)
    assert skipped.num_lost == unreadable
    about = "" if unreadable == 1 else "About "
    with pytest.raises(ValueError, match=f"^{about}{unreadable} of 7 records are bad"):
        pipeline.find_skipped([shard], DATA, max_bad_fraction=fraction - 0.01)
    # Beside a shard of which nothing can be read, and without any good record.
    rubbish = tmp_path / "rubbish.tfrecord"
    rubbish.write_bytes(bytes(4 * size))
    both = pipeline.find_skipped([shard, str(rubbish)], DATA, max_bad_fraction=1)
    assert both.num_lost == unreadable + 4
    alone = pipeline.find_skipped([str(rubbish)], DATA, max_bad_fraction=1)
    assert (alone.num_videos, alone.num_lost) == (0, 1)


@pytest.mark.parametrize("video_level", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 8, 11, 12, 13, 30])
@pytest.mark.parametrize("before", [0, 2])
def test_a_shard_that_ends_in_a_record_is_named(tmp_path, before, cut, video_level):
    """Also where it ends in a length: TensorFlow takes that for the end."""
    video = helpers.video(0, 3)
    data = DATA
    if video_level:
        video = helpers.video_level("v0", [1], {"mean": [0.5, 1]})
        data = helpers.data_settings(
            frame_features=False, feature_names="mean", feature_sizes="2"
        )
    path = tmp_path / "s.tfrecord"
    content = pathlib.Path(helpers.write_shard(path, [video] * 3)).read_bytes()
    begin = before * (len(video) + records.FRAMING)
    path.write_bytes(content[: begin + cut])
    bad = validation.check_shard(str(path), data).bad
    assert len(bad) == (cut > 0)
    assert len(ids_of(read([str(path)], data, **SKIP))) == before
    if cut:
        line = line_about([str(path)], data=data)
        assert line == bad[0].message
        where = f"{path}: record {before} (counted from 0) is damaged at byte {begin}: "
        assert line.startswith(where)
    else:
        assert len(ids_of(read([str(path)], data))) == before


@pytest.mark.parametrize("by", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
@pytest.mark.parametrize("arguments", [{}, TRAINING], ids=["evaluation", "training"])
def test_compressed_shards_give_the_same_batches(tmp_path, by, arguments):
    files = helpers.write_shards(tmp_path, [5, 3])
    packed = [compressed(path, by) for path in files]
    assert records.count_records(packed) == 8
    assert_equal(read(packed, **arguments), read(files, **arguments))
    assert_equal(read([files[0], packed[1]], **arguments), read(files, **arguments))
    with pytest.raises(ValueError, match="is compressed .* Unpack it to index it"):
        frame_index.build(packed[0], DATA)


def test_a_truncated_compressed_shard_is_read_up_to_there(tmp_path):
    videos = [helpers.video(n, 11) for n in range(250)]
    path = pathlib.Path(compressed(helpers.write_shard(tmp_path / "s", videos)))
    path.write_bytes(path.read_bytes()[:-200])
    line = line_about([str(path)])
    assert line.startswith(f"{path}: record ")
    assert line.count("'") % 2 == 0
    (bad,) = validation.check_shard(str(path), DATA).bad
    assert 0 < bad.number < 250
    found = ids_of(read([str(path)], **SKIP))
    assert found == [f"v{n}".encode() for n in range(bad.number)]


def packed_end(how: str, content: bytes, size: int) -> tuple[bytes, int, str]:
    """A packed shard of three equal records that TensorFlow reads without a word, how
    many of them it reads, and what is wrong."""
    if how == "a length":
        return gzip.compress(content[: 2 * size + 5]), 2, "it is truncated"
    if how == "trailer":
        return gzip.compress(content)[:-3], 3, "it is truncated"
    if how == "zlib's trailer":
        return zlib.compress(content)[:-3], 3, "it is truncated"
    if how == "two streams":
        what = "it goes on behind the end of its zlib stream"
        return zlib.compress(content[:size]) + zlib.compress(content[size:]), 1, what
    # So that what there is of the stream ends in a length.
    packed = gzip.compress(content, 0)
    return packed[: packed.index(content[:size]) + size + 7], 1, "it is truncated"


@pytest.mark.parametrize(
    "how", ["a length", "stream", "trailer", "zlib's trailer", "two streams"]
)
def test_the_end_of_a_packed_shard_is_not_lost_without_a_word(tmp_path, how):
    video = helpers.video(0, 3)
    size = len(video) + records.FRAMING
    path = tmp_path / "s.tfrecord"
    content = pathlib.Path(helpers.write_shard(path, [video] * 3)).read_bytes()
    packed, good, what = packed_end(how, content, size)
    path.write_bytes(packed)
    line = line_about([str(path)])
    assert line == (
        f"{path}: record {good} (counted from 0) is damaged at byte {good * size}, and "
        f"nothing behind it is read: {what}."
    )
    with pytest.raises(ValueError) as caught:
        records.count_records([str(path)])
    assert str(caught.value) == line
    (bad,) = validation.check_shard(str(path), DATA).bad
    assert (bad.message, bad.number) == (line, good)
    assert bad.reason == "rest of the shard unreadable"
    assert len(ids_of(read([str(path)], **SKIP))) == good


@pytest.mark.parametrize("cut", [1, 11])
@pytest.mark.parametrize("arguments", [{}, TRAINING], ids=["evaluation", "training"])
def test_a_remote_shard_that_ends_in_a_length_is_named(tmp_path, cut, arguments):
    """It is read without an index, beside a local and a packed one."""
    files = helpers.write_shards(tmp_path, [4, 3, 5])
    content = pathlib.Path(files[0]).read_bytes()
    whole, short = (f"ram://{tmp_path.name}/{name}" for name in ("whole", "short"))
    first = records.header_length(content[: records.HEADER]) + records.FRAMING
    for path, end in ((whole, len(content)), (short, first + cut)):
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(content[:end])
    others = [files[1], compressed(files[2])]
    assert_equal(read([whole, *others], **arguments), read(files, **arguments))
    line = line_about([short, *others], **arguments)
    assert line == (
        f"{short}: record 1 (counted from 0) is damaged at byte {first}, and nothing "
        "behind it is read: it is truncated."
    )
    (bad,) = validation.check_shard(short, DATA).bad
    assert (bad.message, bad.number) == (line, 1)
    assert len(ids_of(read([short, *others], **SKIP))) == 1 + 3 + 5


def test_gzip_streams_one_after_another_are_one_shard(tmp_path):
    videos = [helpers.video(n, 5) for n in range(40)]
    path = tmp_path / "s.tfrecord"
    content = pathlib.Path(helpers.write_shard(path, videos)).read_bytes()
    cuts = [0, 7, len(content) // 3, len(content)]
    pieces = [content[a:b] for a, b in itertools.pairwise(cuts)]
    path.write_bytes(b"".join(map(gzip.compress, pieces)))
    assert records.packed_end(str(path)) == (40, len(content), "")
    assert ids_of(read([str(path)])) == [f"v{n}".encode() for n in range(40)]


# -------------------------------------------------------------- what is all the same


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[list[str], list[str]]:
    """Shards with a bad label here and there, and the same without those records."""
    folder = tmp_path_factory.mktemp("mixed")
    bad, good = [], []
    for shard, count in enumerate([7, 9, 0, 6]):
        videos = [helpers.video(10 * shard + n, 1 + n, [n % 5]) for n in range(count)]
        good.append(helpers.write_shard(folder / f"good{shard}.tfrecord", videos))
        for at in (2, 5) if count else ():
            videos.insert(at, BAD["label"][0])
        bad.append(helpers.write_shard(folder / f"bad{shard}.tfrecord", videos))
    for path in bad:
        index = frame_index.build(path, DATA)
        frame_index.write(index, frame_index.index_path(path, str(folder / "..")))
    return bad, good


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"skip_batches": 2},
        {"input_shard": (1, 2)},
        TRAINING,
        {**TRAINING, "train_fraction": 0.5},
        {**TRAINING, "skip_batches": 3},
    ],
    ids=str,
)
def test_skipping_gives_the_batches_of_shards_without_the_bad(mixed, arguments):
    bad, good = mixed
    expected = read(good, **arguments)
    index_dir = str(pathlib.Path(bad[0]).parent / "..")
    assert_equal(read(bad, use_index="never", **SKIP, **arguments), expected)
    by_index = {"use_index": "always", "index_dir": index_dir}
    assert_equal(read(bad, **by_index, **SKIP, **arguments), expected)
    packed = [compressed(path) for path in bad]
    assert_equal(read(packed, **SKIP, **arguments), expected)
    fraction = arguments.get("train_fraction", 1.0)
    videos = pipeline.count_videos(good, fraction)
    assert pipeline.count_videos(bad, fraction, data=DATA, **SKIP) == videos
    assert pipeline.count_videos(bad, fraction, data=DATA, **by_index, **SKIP) == videos


def test_more_bad_records_than_allowed_stop_with_the_first(mixed):
    bad, _ = mixed
    with pytest.raises(ValueError) as caught:
        read(bad, bad_records="skip", max_bad_fraction=0.2)
    # 3 shards have 2 bad records each, beside 22 good ones.
    assert str(caught.value).startswith(
        "6 of 28 records are bad, more than --max_bad_fraction=0.2 allows. The first: "
        f"{bad[0]}, record 2 (counted from 0), video bad: label 9 "
    )
    read(bad, bad_records="skip", max_bad_fraction=6 / 28)


def test_a_shard_that_changes_is_checked_anew(tmp_path):
    shard = helpers.write_shard(tmp_path / "s", [helpers.video(0, 3)])
    assert not validation.check_shard(shard, DATA).bad
    helpers.write_shard(tmp_path / "s", [BAD["label"][0]])
    os.utime(shard, ns=(1, 1))
    assert len(validation.check_shard(shard, DATA).bad) == 1


def test_what_is_allowed_is_not_bad(tmp_path):
    """One frame, more than max_frames, unequal lengths, no labels, odd ids, extras."""
    more = {**frames(), "more": [helpers.bytes_feature(b"xyz")]}
    odd = {"id": helpers.bytes_feature(b"\xff\x00\n")}
    videos = [
        helpers.video(0, 1),
        helpers.video(1, 40),
        helpers.frame_level("unequal", [1], frames(rgb=(4,) * 5)),
        helpers.frame_level("unlabelled", [], frames()),
        helpers.frame_level("extra", [1], more),
        helpers.frame_level(None, [1], frames(), context=odd),
        helpers.video(0, 1),
    ]
    shard = helpers.write_shard(tmp_path / "s", videos)
    assert not validation.check_shard(shard, DATA).bad
    expected = read([shard])
    names = [b"v0", b"v1", b"unequal", b"unlabelled", b"extra", b"\xff\x00\n", b"v0"]
    assert ids_of(expected) == names
    assert_equal(read([shard], **SKIP), expected)
    assert_equal(read([compressed(shard)]), expected)


# ------------------------------------------------------------------- video-level


def test_video_level_records_are_skipped_too(tmp_path):
    data = helpers.data_settings(
        frame_features=False, feature_names="mean", feature_sizes="2"
    )
    good = [helpers.video_level(f"v{n}", [n % 5], {"mean": [n, 1]}) for n in range(6)]
    bad = [
        helpers.video_level("wide", [1], {"mean": [1, 2, 3]}),
        helpers.video(1, 3),
        b"\xff\xfe, not even text",
        helpers.endless_id(),
    ]
    shard = helpers.write_shard(tmp_path / "bad", [good[0], *bad, *good[1:]])
    clean = helpers.write_shard(tmp_path / "good", good)
    assert_equal(read([shard], data, **SKIP), read([clean], data))
    found = validation.check_shard(shard, data).bad
    assert [b.number for b in found] == [1, 2, 3, 4]
    assert "mean has 3 numbers, not the 2" in found[0].message
    assert "is this video-level data?" in found[1].message
    assert [b.reason for b in found[2:]] == ["not an example"] * 2


# ---------------------------------------------------------------------- findings


def test_a_key_that_comes_twice_is_left_to_the_parser(tmp_path):
    """Found by fuzzing: protobuf takes the last one, TensorFlow's parser the type of
    the first; located and parsed batches said different things of one record."""
    example = tf.train.SequenceExample.FromString(
        helpers.frame_level("a", [1], frames())
    )
    twice = tf.train.Features(feature={"labels": helpers.bytes_feature(b"cat")})
    body = twice.SerializeToString() + example.context.SerializeToString()
    lists = example.feature_lists.SerializeToString()
    record = b"\x0a" + bytes([len(body)]) + body + b"\x12" + bytes([len(lists)]) + lists
    shard = helpers.write_shard(tmp_path / "s", [record])
    located = len(ids_of(read([shard], **SKIP)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.frame_access.RecordAccess, "_locate", lambda *_: None)
        parsed = len(ids_of(read([shard], **SKIP)))
    assert located == parsed == 1 - len(validation.check_shard(shard, DATA).bad)


@pytest.mark.parametrize("damage", [False, True])
def test_mutated_records_end_in_a_right_batch_or_a_line(tmp_path, damage):
    """Some hundred of what tools/fuzz_records.py does at length."""
    originals = fuzz_records.make_records(40)
    mutated = list(fuzz_records.mutations(originals, 300, seed=7))
    random = np.random.default_rng(7) if damage else None
    outcomes = fuzz_records.fuzz_shard(mutated, str(tmp_path), random)
    assert damage or sum(outcomes.values()) == 300
    assert damage or (outcomes["read"] > 20 and len(outcomes) > 5), outcomes


def test_a_value_before_its_key_is_left_to_the_parser(tmp_path):
    """Found by fuzzing: protobuf takes it, TensorFlow's parser does not."""
    good = helpers.frame_level("a", [1], frames())
    entry = tf.train.Features(feature={"id": helpers.bytes_feature(b"a")})
    entry = entry.SerializeToString()  # Two bytes of the entry, five of the key.
    turned = entry[:2] + entry[6:] + entry[2:6]
    assert good.count(entry) == 1
    record = good.replace(entry, turned)
    assert tf.train.SequenceExample.FromString(record).context.feature["id"]
    shard = helpers.write_shard(tmp_path / "s", [record])
    (bad,) = validation.check_shard(shard, DATA).bad
    assert line_about([shard]) == bad.message
    assert bad.reason == "not an example"
