"""Rows are rated segments: each once, the right frames, labels and weights."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill.data import faults, judging, pipeline, segments

DATA = helpers.data_settings(max_frames=30, segment_labels=True)
MINED = dataclasses.replace(DATA, segment_negatives=0.5)
ALL = pipeline.ViewSpec("all", 30)
VIEWS = {"all": ALL, "sampled": ALL.in_segments(2)}  # 5 frames, and 2 to each side.
# Video → frames, labels and ratings; unsorted, two classes in one segment, repeats.
VIDEOS = {
    0: (30, [1, 2], [(20, 1, 0), (0, 1, 1), (10, 3, 1), (10, 1, 0)]),
    1: (12, [4], []),
    2: (18, [], [(14, 0, 1), (14, 0, 1), (5, 0, 0)]),
    3: (7, [0], [(6, 4, 0), (1, 2, 1), (1, 2, 0)]),  # Present, where ratings differ.
}
ROWS = [(0, 0), (0, 10), (0, 20), (2, 5), (2, 14), (3, 1), (3, 6)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """The videos in two shards, and one that is packed."""
    folder = tmp_path_factory.mktemp("segments")
    made = [helpers.rated_video(v, *video) for v, video in VIDEOS.items()]
    return [
        helpers.write_shard(folder / "a.tfrecord", made[:2]),
        helpers.write_shard(folder / "b.tfrecord", made[2:]),
    ]


def read(files, data=DATA, views=VIEWS, **arguments) -> list[dict]:
    return helpers.read(files, views, data, **arguments)


def rows_of(batches) -> list[dict]:
    """Row by row, without padding."""
    return [row for row in helpers.rows_of(batches) if row["weights"]]


def names_of(batches) -> list[tuple]:
    return [
        (int(row["video_id"][1:]), int(row["segment_starts"]))
        for row in rows_of(batches)
    ]


NEVER, ALWAYS = HOW = [{"use_index": "never"}, {"use_index": "always"}]


@pytest.fixture(scope="module")
def found(shards) -> list[dict]:
    """What is read of them, through their index."""
    return read(shards, **ALWAYS)


def test_each_rated_segment_is_one_row_with_its_frames_and_labels(shards, found):
    helpers.assert_same_batches(read(shards, **NEVER), found)
    assert names_of(found) == ROWS
    for row in rows_of(found):
        video, start = int(row["video_id"][1:]), int(row["segment_starts"])
        num_frames, _, ratings = VIDEOS[video]
        begin, end = max(start - 2, 0), min(start + 7, num_frames)
        view = row["views"]["sampled"]
        assert view["frames"].shape[0] == 9
        assert view["num_frames"] == end - begin
        indices = [*range(begin, end), *[0] * (9 - end + begin)]
        assert view["frame_indices"].tolist() == indices
        # Frame t carries t; the first byte is the video's own.
        times = view["frames"][: end - begin, 1]
        assert times.tolist() == list(range(begin, end))
        assert (view["frames"][: end - begin, 0] == video).all()
        whole = row["views"]["all"]
        assert whole["num_frames"] == num_frames
        rated = {c for s, c, _ in ratings if s == start}
        present = {c for s, c, score in ratings if s == start and score}
        assert set(np.flatnonzero(row["labels"])) == present
        assert set(np.flatnonzero(row["label_weights"])) == rated
        assert np.flatnonzero(row["video_labels"]).tolist() == VIDEOS[video][1]
        assert set(row["label_weights"]) <= {0.0, 1.0}


@pytest.mark.slow
def test_indexed_and_parsed_rows_of_training_are_the_same(shards):
    drawn = pipeline.ViewSpec("random", 4).in_segments(3)
    given = {"views": {**VIEWS, "drawn": drawn}, "data": MINED}
    given |= {"training": True, "epoch": 1}
    given |= {"shuffle_buffer_size": 5, "train_fraction": 0.8, "batch_size": 2}
    given |= {"skip_batches": 1}
    expected = read(shards, **NEVER, **given)
    helpers.assert_same_batches(read(shards, **ALWAYS, **given), expected)
    names = names_of(expected)
    assert 0 < len(set(names)) == len(names) < len(ROWS)
    assert set(names) <= set(ROWS)


@pytest.mark.slow
def test_the_rows_of_all_processes_are_each_segment_once(shards):
    """Also where one has an index and the other parses."""
    parts = [
        read(shards, batch_size=4, input_shard=(part, 2), **how)
        for part, how in enumerate(HOW)
    ]
    assert sorted(names_of(parts[0]) + names_of(parts[1])) == ROWS


@pytest.mark.slow
def test_a_compressed_shard_gives_the_same_rows_and_count(shards, found):
    files = [helpers.compressed(shard) for shard in shards]
    helpers.assert_same_batches(read(files), found)
    for paths in (shards, files):
        opened = helpers.open_shards(paths, DATA, bad_records="skip")
        assert opened.num_videos() == len(ROWS)
        assert opened.videos.num_videos() == len(VIDEOS)
        assert opened.skipped().num_videos == len(VIDEOS)


def test_negatives_are_mined_in_training_among_classes_in_neither_list(shards, found):
    batches = read(shards, MINED, training=True)
    for row in rows_of(batches):
        video, start = int(row["video_id"][1:]), int(row["segment_starts"])
        _, labels, ratings = VIDEOS[video]
        rated = {c for s, c, _ in ratings if s == start}
        expected = [
            1.0 if c in rated else 0.0 if c in labels else 0.5 for c in range(5)
        ]
        assert row["label_weights"].tolist() == expected
    # Padding rows have no negatives, and an evaluation looks at ratings alone.
    last = batches[-1]
    assert 0 in last["weights"]
    assert not last["label_weights"][last["weights"] == 0].any()
    helpers.assert_same_batches(read(shards, MINED), found)


def test_videos_with_ratings_are_read_as_before_and_share_the_index(
    shards, found, tmp_path
):
    plain = helpers.data_settings(max_frames=30)
    bare = [helpers.video(v, n, c) for v, (n, c, _) in VIDEOS.items()]
    expected = read(
        [helpers.write_shard(tmp_path / "bare", bare)], plain, views={"all": ALL}
    )
    assert found  # The index is made.
    before = pathlib.Path(f"{shards[0]}.frame_index").stat().st_mtime_ns
    batches = read(shards, plain, views={"all": ALL})
    helpers.assert_same_batches(batches, expected)
    assert "segment_starts" not in batches[0]
    assert pathlib.Path(f"{shards[0]}.frame_index").stat().st_mtime_ns == before


def test_a_sampler_picks_among_the_frames_of_the_segment_and_its_context(shards):
    view = pipeline.ViewSpec("first", 3).in_segments(1)
    for row in rows_of(read(shards, views={"sampled": view})):
        begin = max(int(row["segment_starts"]) - 1, 0)
        found = row["views"]["sampled"]
        valid = int(found["num_frames"])
        expected = list(range(begin, begin + valid))
        assert found["frame_indices"][:valid].tolist() == expected
    # More than there are is all of them.
    assert pipeline.ViewSpec("uniform", 30).in_segments(3).k == segments.width(3) == 11


# ------------------------------------------------------------------------- faults

BAD = {
    "start": ({"ratings": [(12, 1, 1)]}, "starts at 12"),
    "start behind --max_frames": (
        {"num_frames": 35, "ratings": [(30, 1, 1)]},
        "starts at 30",
    ),
    "negative start": ({"ratings": [(-1, 1, 1)]}, "starts at -1"),
    "label": ({"ratings": [(0, 9, 1)]}, "segment_labels has 9"),
    "score": ({"ratings": [(0, 1, 0.5)]}, "segment_scores is 0.5"),
    "lengths": (
        {"ratings": [(0, 1, 1)], "segment_labels": helpers.int64_feature([1, 2])},
        "have 1, 2 and 1",
    ),
    "kind": (
        {"ratings": [(0, 1, 1)], "segment_scores": helpers.int64_feature([1])},
        "segment_scores",
    ),
}


def bad_video(name: str) -> bytes:
    return helpers.rated_video(
        **{"number": 1, "num_frames": 12, "labels": [1]} | BAD[name][0]
    )


@pytest.mark.parametrize("name", BAD)
def test_invalid_ratings_are_named_in_the_graph_and_outside(tmp_path, name):
    record, rule = bad_video(name), BAD[name][1]
    with pytest.raises(faults.Invalid) as caught:
        judging.judge(faults.Record(record), DATA)
    assert caught.value.fault is faults.Fault.SEGMENTS and rule in str(caught.value)
    shard = helpers.write_shard(tmp_path / "s", [record])
    opened = helpers.open_shards([shard], DATA, use_index="never")
    source = pipeline._open_source(opened, VIEWS, 0, pipeline.Altered())
    zeros = tf.zeros([1], tf.int64)
    given = zeros, zeros, tf.constant([record]), zeros
    line = helpers.error_line([shard], source.make_batch, *given)
    assert line.startswith(f"{shard}, record 0 ") and rule in line


@pytest.mark.slow
def test_invalid_ratings_are_left_out_by_both_readers_of_segments_alone(tmp_path):
    good = helpers.rated_video(0, 12, [1], [(3, 1, 1)])
    bad = [bad_video(name) for name in BAD]
    shard = helpers.write_shard(tmp_path / "s.tfrecord", [*bad, good])
    skip = {"bad_records": "skip", "max_bad_fraction": 1.0}
    for path in (shard, helpers.compressed(shard)):
        assert names_of(read([path], **skip)) == [(0, 3)]
        found = helpers.open_shards([path], DATA, **skip).skipped().bad
        assert [one.fault for one in found] == [faults.Fault.SEGMENTS] * len(BAD)
    # Whole videos are read as if there were no ratings.
    plain = helpers.data_settings(max_frames=30)
    (batch,) = read([shard], plain, {"all": ALL}, batch_size=8)
    assert batch["weights"].sum() == len(BAD) + 1


@pytest.mark.slow
def test_records_that_only_a_parser_knows_give_the_same_rows(tmp_path):
    """An unusual encoding (a field twice) is read through the index by parsing."""
    usual = helpers.rated_video(0, 12, [1], [(3, 1, 1), (8, 2, 0)])
    unusual = usual + helpers.context_again(usual)
    one, other = (
        helpers.write_shard(tmp_path / name, [record])
        for name, record in (("one", usual), ("other", unusual))
    )
    opened = helpers.open_shards([other], DATA)
    assert not opened.table.located
    helpers.assert_same_batches(read([other]), read([one]))
