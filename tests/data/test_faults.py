"""Bad records: every reader names each in one line, or skips and counts it."""

import collections
import gzip
import itertools
import pathlib
import zlib

import pytest
import tensorflow as tf

from tests import mutated_records
from tests import record_helpers as helpers
from yt8m_distill.data import faults, framing, judging, pipeline, wire

DATA = helpers.data_settings()
VIEWS = {
    "all": pipeline.ViewSpec("all", DATA.max_frames),
    "sampled": pipeline.ViewSpec("random", 3),
}
SKIP = {"bad_records": "skip", "max_bad_fraction": 1.0}
TRAINING = {"training": True, "shuffle_buffer_size": 5, "num_readers": 3, "epoch": 2}
NEVER = {"use_index": "never"}


def read(files, data=DATA, **arguments) -> list[dict]:
    return helpers.read(files, VIEWS, data, **arguments)


def bad_of(shard: str, data=DATA) -> tuple:
    """The invalid records of one shard, as a run with --bad_records=skip finds them."""
    return helpers.open_shards([shard], data, **SKIP).skipped().bad


def ids_of(batches) -> list[bytes]:
    return [i for batch in batches for i in batch["video_id"] if i]


def frames(rgb=(4, 4), audio=(3, 3)) -> dict:
    """Frames of these widths."""
    made = {"rgb": rgb, "audio": audio}
    return {
        name: [helpers.bytes_feature(bytes(width)) for width in widths]
        for name, widths in made.items()
        if widths is not None
    }


def list_of_byte_strings(*counts) -> list[tf.train.Feature]:
    """Frames of feature rgb that are so many byte strings each."""
    return [helpers.bytes_feature(*[bytes(4)] * count) for count in counts]


# A context feature that is the byte string "bad", as the value of its key.
ID = b"\x12\x07\x0a\x05\x0a\x03bad"

# What is wrong → a record, the reason and the rule that its line has to name.
BAD = {
    "wrong width": (
        helpers.frame_level("bad", [1], frames(rgb=(4, 5))),
        "wrong width",
        "video bad: a frame of feature rgb is 5 bytes wide, not 4",
    ),
    "widths that cancel out": (
        helpers.frame_level("bad", [1], frames(rgb=(4, 5, 3))),
        "wrong width",
        "video bad: a frame of feature rgb is 5 bytes wide, not 4",
    ),
    # No view shows it.
    "wrong width after max_frames": (
        helpers.frame_level("bad", [1], frames(rgb=(4,) * 12 + (9,), audio=(3,) * 13)),
        "wrong width",
        "video bad: a frame of feature rgb is 9 bytes wide",
    ),
    "no byte string in a frame": (
        helpers.frame_level("bad", [1], frames() | {"rgb": list_of_byte_strings(1, 0)}),
        "not one byte string per frame",
        "video bad: a frame of feature rgb is 0 byte strings",
    ),
    "two byte strings in a frame": (
        helpers.frame_level("bad", [1], frames() | {"rgb": list_of_byte_strings(1, 2)}),
        "not one byte string per frame",
        "video bad: a frame of feature rgb is 2 byte strings",
    ),
    "frames of another type": (
        helpers.frame_level(
            "bad", [1], frames() | {"rgb": [helpers.float_feature([0.5] * 4)]}
        ),
        "frames are not byte strings",
        "yt8m-convert",
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
        "label 9 is not in 0..4",
    ),
    "no id": (helpers.frame_level(None, [1], frames()), "no id", "there is no id"),
    "labels of another type": (
        helpers.frame_level(
            "bad", [], frames(), context={"labels": helpers.bytes_feature(b"cat")}
        ),
        "labels are not integers",
        "video bad: --labels_key=labels holds bytes, not int64",
    ),
    "video-level": (
        helpers.video_level("bad", [1], {"rgb": [0.5] * 4}),
        "no frames",
        "Are --feature_names, --feature_sizes and --frame_features right?",
    ),
    "integer id": (
        helpers.frame_level(
            None, [1], frames(), context={"id": helpers.int64_feature([7])}
        ),
        "id is not text",
        "--video_id_key=id is int64, not bytes",
    ),
    "all frames in one byte string": (
        helpers.frame_level("bad", [1], frames(rgb=(12,))),
        "not one byte string per frame",
        "video bad: a frame of feature rgb is 12 bytes wide, not 4",
    ),
    "empty": (b"", "no id", "there is no id"),
    "no example": (b"garbage!", "not an example", "this is not an example"),
    # Found by fuzzing: protobuf takes it, TensorFlow's parser does not.
    "value before its key": (
        helpers.frame_level("bad", [1], frames()).replace(
            b"\x0a\x02id" + ID, ID + b"\x0a\x02id"
        ),
        "not an example",
        "this is not an example",
    ),
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


def line_about(files, **how) -> str:
    """The error line of a script about these files."""
    return helpers.error_line(files, read, files, **how)


def line_of_parser(shard: str, data=DATA) -> str:
    """The error line of the graph that parses a batch of all records of a shard.

    Called directly: preparing a dataset for each shard would take most of the time.
    """
    opened = helpers.open_shards([shard], data, **NEVER)
    source = pipeline._open_source(opened, VIEWS, 0, pipeline.Altered())
    records = list(tf.data.TFRecordDataset(shard))
    places = tf.zeros(len(records), tf.int64), tf.range(len(records))
    return helpers.error_line([shard], source.make_batch, *places, tf.stack(records))


@pytest.mark.parametrize("name", BAD)
def test_both_readers_stop_at_a_bad_record_with_a_line_that_names_it(tmp_path, name):
    record, _, rule = BAD[name]
    good = helpers.video(1, 3)
    shard = helpers.write_shard(tmp_path / "s.tfrecord", [good, record, good, good])
    line = line_about([shard])
    assert line.startswith(f"{shard}, record 1 (counted from 0)")
    assert rule in line
    (bad,) = bad_of(shard)
    assert bad.message == line
    assert line_of_parser(shard).startswith(f"{shard}, record 1 (counted from 0)")


@pytest.mark.slow
def test_the_line_of_a_dataset_is_that_of_its_parser(tmp_path):
    good = helpers.video(1, 3)
    for name in ("two byte strings in a frame", "frame without end", "label"):
        record, *_ = BAD[name]
        shard = helpers.write_shard(tmp_path / "s.tfrecord", [good, record, good, good])
        packed = helpers.compressed(shard)
        lines = [line_about([path], **NEVER) for path in (shard, packed)]
        assert lines[0] == lines[1].replace(packed, shard) == line_of_parser(shard)


def test_skip_reads_the_others_and_counts_by_reason(tmp_path):
    good = [helpers.video(1, 3), helpers.video(2, 12), helpers.video(3, 1)]
    bad = [record for record, *_ in BAD.values()]
    shard = helpers.write_shard(tmp_path / "s", [good[0], *bad, *good[1:]])
    reasons = collections.Counter(reason for _, reason, _ in BAD.values())
    for path in (shard, helpers.compressed(shard)):
        skipped = helpers.open_shards([path], **SKIP).skipped()
        assert skipped.num_videos == 3
        found = skipped.to_dict()["reasons"]
        assert {name: entry["count"] for name, entry in found.items()} == reasons
        for line in skipped.lines():
            count, _, rest = line.partition(" skipped, ")
            reason, _, first = rest.partition("; the first: ")
            assert int(count) == reasons[reason]
            number = [r for _, r, _ in BAD.values()].index(reason)
            assert first.startswith(f"{path}, record {1 + number} ")
    expected = read([helpers.write_shard(tmp_path / "good", good)])
    helpers.assert_same_batches(read([shard], **SKIP), expected)
    helpers.assert_same_batches(read([helpers.compressed(shard)], **SKIP), expected)


# ------------------------------------------------------------------ damaged files


def damaged(tmp_path, how: str) -> tuple[str, str, list[str]]:
    """A shard, the words of its error line, and the videos that remain readable."""
    videos = [helpers.video(n, 3) for n in range(5)]
    path = tmp_path / "s.tfrecord"
    content = bytearray(pathlib.Path(helpers.write_shard(path, videos)).read_bytes())
    begin = 2 * (len(videos[0]) + framing.FRAMING)  # Of record 2; all are as long.
    rest = len(content) - begin
    names = [f"v{n}" for n in range(5)]
    if how == "flipped byte":
        content[begin + 40] ^= 1
        names.remove("v2")
        line = f"record 2 (counted from 0): damaged at byte {begin}: its checksum"
    elif how == "flipped length":
        content[begin] ^= 1
        names = names[:2]
        line = (
            f"record 2 (counted from 0): damaged at byte {begin}: its length is not "
            f"known; the last {rest} bytes of the file are lost."
        )
    elif how == "not a TFRecord file":
        content = bytearray(b"VideoId,LabelConfidencePairs\n" * 9)
        names = []
        line = "record 0 (counted from 0): damaged at byte 0: this is not a TFRecord"
    else:
        # A checksum that fits: as long as no machine has memory.
        length = (2**50).to_bytes(8, "little")
        crc = framing.masked_crc32c(length).to_bytes(4, "little")
        content[begin : begin + 12] = length + crc
        names = names[:2]
        line = f"record 2 (counted from 0): damaged at byte {begin}: the file is trunc"
    path.write_bytes(content)
    return str(path), f"{path}, {line}", names


DAMAGE = ["flipped byte", "flipped length", "not a TFRecord file", "huge length"]


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_of_a_file_is_reported_once_with_its_offset(tmp_path, how):
    shard, line, names = damaged(tmp_path, how)
    good = helpers.write_shard(tmp_path / "a.tfrecord", [helpers.video(9, 3)])
    assert line_about([good, shard]).startswith(line)
    assert line_about([good, shard], **NEVER).startswith(line)
    (bad,) = bad_of(shard)
    assert bad.message.startswith(line)
    for reading in (SKIP, SKIP | NEVER):
        assert [i.decode() for i in ids_of(read([shard], **reading))] == names


def test_a_wrong_checksum_next_to_a_compressed_shard_cannot_be_skipped(tmp_path):
    """All are parsed then, and TensorFlow's reader ends there."""
    shard, line, _ = damaged(tmp_path, "flipped byte")
    good = [helpers.video(9, 3)]
    packed = helpers.compressed(helpers.write_shard(tmp_path / "a.tfrecord", good))
    found = line_about([packed, shard], **SKIP)
    assert found.startswith(line) and f"{packed} is compressed" in found
    content = pathlib.Path(shard).read_bytes()
    last = len(content) // 5 * 3  # As the last one of three it ends no reading.
    pathlib.Path(shard).write_bytes(content[:last])
    assert ids_of(read([packed, shard], **SKIP)) == [b"v9", b"v0", b"v1"]


def skipped_of(files, fraction=1.0):
    opened = helpers.open_shards(files, bad_records="skip", max_bad_fraction=fraction)
    return opened.skipped()


@pytest.mark.parametrize("unreadable", [1, 3])
def test_bytes_after_damaged_framing_count_as_videos(tmp_path, unreadable):
    """Against --max_bad_fraction, by its bytes; it is one place in the counts."""
    video = helpers.video(0, 3)
    size = len(video) + framing.FRAMING
    shard = helpers.write_shard(tmp_path / "s.tfrecord", [video] * 7)
    content = bytearray(pathlib.Path(shard).read_bytes())
    content[(7 - unreadable) * size] ^= 1  # In a length.
    pathlib.Path(shard).write_bytes(content)
    fraction = unreadable / 7
    skipped = skipped_of([shard], fraction)
    assert (skipped.num_videos, len(skipped.bad)) == (7 - unreadable, 1)
    assert skipped.num_lost == unreadable
    about = "" if unreadable == 1 else "About "
    with pytest.raises(ValueError, match=f"^{about}{unreadable} of 7 records are bad"):
        skipped_of([shard], fraction - 0.01)
    # Beside a shard of which nothing can be read, and without any good record.
    rubbish = tmp_path / "rubbish.tfrecord"
    rubbish.write_bytes(bytes(4 * size))
    both = skipped_of([shard, str(rubbish)])
    assert both.num_lost == unreadable + 4
    alone = skipped_of([str(rubbish)])
    assert (alone.num_videos, alone.num_lost) == (0, 1)


@pytest.mark.parametrize(
    ("before", "cut", "video_level"),
    [
        *((0, 1, False), (2, 0, False), (2, 11, False), (2, 12, False), (2, 30, False)),
        (2, 13, True),
    ],
)
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
    begin = before * (len(video) + framing.FRAMING)
    path.write_bytes(content[: begin + cut])
    bad = bad_of(str(path), data)
    assert len(bad) == (cut > 0)
    assert len(ids_of(read([str(path)], data, **SKIP))) == before
    if cut:
        line = line_about([str(path)], data=data)
        assert line == bad[0].message
        where = f"{path}, record {before} (counted from 0): damaged at byte {begin}: "
        assert line.startswith(where)
    else:
        assert len(ids_of(read([str(path)], data))) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "arguments"), [(gzip.compress, {}), (zlib.compress, TRAINING)]
)
def test_compressed_shards_give_the_same_batches(tmp_path, by, arguments):
    files = helpers.write_shards(tmp_path, [5, 3])
    packed = [helpers.compressed(path, by) for path in files]
    assert sum(map(framing.count_records, packed)) == 8
    expected = read(files, **arguments)
    helpers.assert_same_batches(read(packed, **arguments), expected)
    helpers.assert_same_batches(read([files[0], packed[1]], **arguments), expected)
    with pytest.raises(ValueError, match="--use_index=always: .*compressed"):
        read(packed, use_index="always")


def test_a_truncated_compressed_shard_is_read_up_to_there(tmp_path):
    videos = [helpers.video(n, 11) for n in range(250)]
    path = pathlib.Path(helpers.compressed(helpers.write_shard(tmp_path / "s", videos)))
    path.write_bytes(path.read_bytes()[:-200])
    line = line_about([str(path)])
    assert line.startswith(f"{path}, record ")
    assert line.count("'") % 2 == 0
    (bad,) = bad_of(str(path), DATA)
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
        what = "it goes on after the end of its zlib stream"
        return zlib.compress(content[:size]) + zlib.compress(content[size:]), 1, what
    # So that what there is of the stream ends in a length.
    packed = gzip.compress(content, 0)
    return packed[: packed.index(content[:size]) + size + 7], 1, "it is truncated"


@pytest.mark.parametrize(
    "how", ["a length", "stream", "trailer", "zlib's trailer", "two streams"]
)
def test_the_end_of_a_packed_shard_is_not_lost_without_a_word(tmp_path, how):
    video = helpers.video(0, 3)
    size = len(video) + framing.FRAMING
    path = tmp_path / "s.tfrecord"
    content = pathlib.Path(helpers.write_shard(path, [video] * 3)).read_bytes()
    packed, good, what = packed_end(how, content, size)
    path.write_bytes(packed)
    line = line_about([str(path)])
    assert line == (
        f"{path}, record {good} (counted from 0): damaged at byte {good * size}, and "
        f"nothing after it is read: {what}."
    )
    with pytest.raises(ValueError) as caught:
        framing.count_records(str(path))
    assert str(caught.value) == line
    skipped = skipped_of([str(path)])
    (bad,) = skipped.bad
    assert (bad.message, bad.number, skipped.num_videos) == (line, good, good)
    assert bad.fault is faults.Fault.REST_UNREADABLE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "arguments"), [(1, {}), (11, TRAINING)], ids=["evaluation", "training"]
)
def test_a_remote_shard_that_ends_in_a_length_is_named(tmp_path, cut, arguments):
    """It is read without an index, next to a local and a compressed one."""
    files = helpers.write_shards(tmp_path, [4, 3, 5])
    content = pathlib.Path(files[0]).read_bytes()
    whole, short = (f"ram://{tmp_path.name}/{name}" for name in ("whole", "short"))
    first = framing.header_length(content[: framing.HEADER]) + framing.FRAMING
    for path, end in ((whole, len(content)), (short, first + cut)):
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(content[:end])
    others = [files[1], helpers.compressed(files[2])]
    helpers.assert_same_batches(
        read([whole, *others], **arguments), read(files, **arguments)
    )
    line = line_about([short, *others], **arguments)
    assert line == (
        f"{short}, record 1 (counted from 0): damaged at byte {first}, and nothing "
        "after it is read: it is truncated."
    )
    (bad,) = bad_of(short)
    assert (bad.message, bad.number) == (line, 1)
    assert skipped_of([short, *others]).num_videos == 1 + 3 + 5


def test_gzip_streams_one_after_another_are_one_shard(tmp_path):
    videos = [helpers.video(n, 5) for n in range(40)]
    path = tmp_path / "s.tfrecord"
    content = pathlib.Path(helpers.write_shard(path, videos)).read_bytes()
    cuts = [0, 7, len(content) // 3, len(content)]
    pieces = [content[a:b] for a, b in itertools.pairwise(cuts)]
    path.write_bytes(b"".join(map(gzip.compress, pieces)))
    assert framing.packed_end(str(path)) == (40, len(content), "")
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
    return bad, good


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 30},
        {"train_fraction": 0.5, "skip_batches": 1},
        {"label_fraction": 0.5, "input_shard": (1, 2)},
        TRAINING,
        {**TRAINING, "num_readers": 1, "train_fraction": 0.5, "skip_batches": 1},
        {**TRAINING, "label_fraction": 0.5, "only_labeled": True},
    ],
    ids=str,
)
def test_all_readers_give_the_same_batches_and_count_of_the_good_records(
    mixed, arguments
):
    bad, good = mixed
    expected = read(good, **NEVER, **arguments)
    helpers.assert_same_batches(read(good, use_index="always", **arguments), expected)
    skipping = {"use_index": "always", **SKIP, **arguments}
    helpers.assert_same_batches(read(bad, **skipping), expected)
    packed = [helpers.compressed(path) for path in bad]
    helpers.assert_same_batches(read(packed, **SKIP, **arguments), expected)
    labeled = arguments["label_fraction"] if "only_labeled" in arguments else 1.0
    share = arguments.get("train_fraction", 1.0), labeled
    videos = helpers.open_shards(good, **NEVER).num_videos(*share)
    for how in ({}, NEVER):
        assert helpers.open_shards(bad, **SKIP, **how).num_videos(*share) == videos
    if not {"skip_batches", "input_shard"} & set(arguments):
        assert len(ids_of(expected)) == videos


def test_more_bad_records_than_allowed_stop_with_the_first(mixed):
    bad, _ = mixed
    with pytest.raises(ValueError) as caught:
        read(bad, bad_records="skip", max_bad_fraction=0.2)
    # 3 shards have 2 bad records each, and 22 good ones.
    assert str(caught.value).startswith(
        "6 of 28 records are bad, more than --max_bad_fraction=0.2 allows. The first: "
        f"{bad[0]}, record 2 (counted from 0), video bad: label 9 "
    )
    read(bad, bad_records="skip", max_bad_fraction=6 / 28)


def test_a_bad_record_is_one_line_whatever_its_id_is():
    bad = faults.Bad(
        "s", 0, 0, faults.Fault.NO_FRAMES, "none.", b"\xff\x00\n\xe2\x80\xa8v"
    )
    assert bad.message.isprintable()
    assert r"\xff\x00\n\u2028v" in bad.message


def test_valid_records_have_no_fault(tmp_path):
    """One frame, more than max_frames, unequal lengths, no labels, odd ids, extras."""
    more = {**frames(), "more": [helpers.bytes_feature(b"xyz")]}
    unnamed = {"": helpers.int64_feature([1, 2])}  # Was refused by the parser alone.
    odd = {"id": helpers.bytes_feature(b"\xff\x00\n")}
    videos = [
        helpers.video(0, 1),
        helpers.video(1, 40),
        helpers.frame_level("unequal", [1], frames(rgb=(4,) * 5)),
        helpers.frame_level("unlabelled", [], frames()),
        helpers.frame_level("extra", [1], more),
        helpers.frame_level("unnamed", [1], frames(), context=unnamed),
        helpers.frame_level(None, [1], frames(), context=odd),
        helpers.video(0, 1),
    ]
    shard = helpers.write_shard(tmp_path / "s", videos)
    assert not bad_of(shard)
    expected = read([shard])
    names = [b"v0", b"v1", b"unequal", b"unlabelled", b"extra", b"unnamed"]
    names += [b"\xff\x00\n", b"v0"]
    assert ids_of(expected) == names
    helpers.assert_same_batches(read([shard], **SKIP), expected)
    helpers.assert_same_batches(read([helpers.compressed(shard)]), expected)


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
        b"garbage!",
        helpers.frame_level(
            "odd", [1], {}, context={"mean": helpers.bytes_feature(b"ab")}
        ),
        helpers.video_level("nan", [1], {"mean": [0.5, float("nan")]}),
        helpers.video_level("inf", [1], {"mean": [float("-inf"), 1]}),
    ]
    shard = helpers.write_shard(tmp_path / "bad", [good[0], *bad, *good[1:]])
    clean = helpers.write_shard(tmp_path / "good", good)
    helpers.assert_same_batches(read([shard], data, **SKIP), read([clean], data))
    found = bad_of(shard, data)
    assert [b.number for b in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "mean has 3 numbers, not 2" in found[0].message
    assert "--frame_features" in found[1].message
    assert [b.fault for b in found[2:5]] == [faults.Fault.NOT_AN_EXAMPLE] * 3
    assert "mean" in found[5].message
    assert "number 1 of feature mean is nan" in found[6].message
    assert "number 0 of feature mean is -inf" in found[7].message
    # The parser stops at each of them as the index does.
    for record in bad:
        alone = helpers.write_shard(tmp_path / "alone", [good[0], record])
        for line in (line_about([alone], data=data), line_of_parser(alone, data)):
            assert line.startswith(f"{alone}, record 1 ")


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
    parsed = len(ids_of(read([helpers.compressed(shard)], **SKIP)))
    assert located == parsed == 1 - len(bad_of(shard))


def test_labels_that_only_protobuf_reads_are_judged_alike(tmp_path):
    """Found by fuzzing: after an empty list of labels TensorFlow's parser reads no
    more, protobuf does. The index held the record, and its reader refused it."""
    plain = helpers.frame_level("a", [9], frames())
    fields = mutated_records.parse_fields(plain)
    labels = fields[0][1][1][1]  # Of the context, its second entry.
    assert labels[0] == [10, b"labels"]
    labels[1][1][0][1].insert(0, [10, b""])
    record = mutated_records.join_fields(fields)
    context = tf.train.SequenceExample.FromString(record).context
    assert context.feature["labels"].int64_list.value == [9]
    shard = helpers.write_shard(tmp_path / "s", [record])
    (batch,) = read([shard], **SKIP)
    assert ids_of([batch]) == [b"a"] and not batch["labels"].any()
    helpers.assert_same_batches(read([helpers.compressed(shard)], **SKIP), [batch])


def test_a_frame_of_several_lists_is_read_alike(tmp_path):
    """Found by fuzzing: where the length of a frame includes the next one, protobuf
    takes that for more byte strings, which the index refused. TensorFlow's parser, in
    datasets and servers, ignores the length and reads the frames as they were."""
    record = bytearray(helpers.video(0, 3))
    rgb = wire.locate(memoryview(record)).features["rgb"]
    record[rgb.first - len(wire.frame_header(rgb.size)) + 1] += rgb.stride
    lists = tf.train.SequenceExample.FromString(bytes(record)).feature_lists
    assert len(lists.feature_list["rgb"].feature) == 2
    clean = helpers.write_shard(tmp_path / "clean", [helpers.video(0, 3)])
    expected = read([clean])
    shard = helpers.write_shard(tmp_path / "s", [bytes(record)])
    helpers.assert_same_batches(read([shard]), expected)
    helpers.assert_same_batches(read([helpers.compressed(shard)]), expected)
    one, other = (
        [list(map(bytes, video.frames_of(name))) for name in DATA.names]
        for path in (shard, clean)
        for video in judging.read(path, DATA)
    )
    assert one == other


# ------------------------------------------------------------------------- labels


def with_labels(feature: tf.train.Feature) -> bytes:
    return helpers.frame_level("odd", [], frames(), context={"labels": feature})


@pytest.mark.parametrize(
    ("feature", "fault"),
    [
        (helpers.int64_feature([0, 1, 0, 0, 1]), faults.Fault.LABEL_VECTOR),
        (helpers.float_feature([0, 1, 0, 0, 1]), faults.Fault.LABEL_VECTOR),
        (helpers.float_feature([3.0]), faults.Fault.LABEL_TYPE),
        (helpers.bytes_feature(b"cat"), faults.Fault.LABEL_TYPE),
        (helpers.int64_feature([5]), faults.Fault.LABEL_RANGE),
        (helpers.int64_feature([1, -1]), faults.Fault.LABEL_RANGE),
        (helpers.int64_feature([2**40]), faults.Fault.LABEL_RANGE),
    ],
)
def test_labels_that_are_no_indices_are_named(tmp_path, feature, fault):
    videos = [helpers.video(0, 2), with_labels(feature), *[helpers.video(1, 2)] * 2]
    shard = helpers.write_shard(tmp_path / "s", videos)
    for how in ({}, NEVER):
        (bad,) = helpers.open_shards([shard], **SKIP, **how).skipped().bad
        assert (bad.fault, bad.number, bad.video_id) == (fault, 1, b"odd")
    for line in (line_about([shard]), line_of_parser(shard)):
        assert line.startswith(f"{shard}, record 1 ")


@pytest.mark.parametrize("how", [{}, NEVER], ids=["index", "parsed"])
def test_training_data_without_any_label_is_refused(tmp_path, how):
    key = {"tags": helpers.int64_feature([1])}
    videos = [helpers.frame_level(f"v{n}", [], frames(), context=key) for n in range(3)]
    shard = helpers.write_shard(tmp_path / "s", videos)
    with pytest.raises(ValueError) as caught:
        helpers.open_shards([shard], **how).check_labels("train_data_pattern")
    for named in ("--train_data_pattern", shard, "--labels_key=labels"):
        assert named in str(caught.value)
    tags = helpers.data_settings(labels_key="tags")
    helpers.open_shards([shard], tags, **how).check_labels("train_data_pattern")
    (batch,) = read([shard], tags, **how)
    assert batch["labels"][:, 1].tolist() == [1, 1, 1, 0]


def test_a_small_shard_costs_no_dataset(tmp_path, monkeypatch):
    """A tf.data.TFRecordDataset takes 15 ms of CPU per shard, the walk .2 ms."""
    path = str(tmp_path / "shard.tfrecord")
    contents = [b"", b"first", b"second" * 99]
    with tf.io.TFRecordWriter(path) as writer:
        for content in contents:
            writer.write(content)
    monkeypatch.setattr(tf.data, "TFRecordDataset", None)
    assert [record.content for record in faults.walk(path)] == contents
