"""Batches: every video once, the same for the same arguments, and the right frames.

Most tests read through the index; test_faults.py shows that parsed batches are the
same, bit for bit. Those with `how` are about code that each source has of its own.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.data import frame_sampling, lookups, pipeline

ALL = pipeline.ViewSpec("all", 0)
UNIFORM = pipeline.ViewSpec("uniform", 4)
RANDOM = pipeline.ViewSpec("random", 4)
WIDTH = sum(helpers.SIZES.values())
NAMES = [f"v{number}" for number in range(23)]

both = pytest.mark.parametrize(
    "how", [{"use_index": "never"}, {"use_index": "always"}], ids=["parsed", "indexed"]
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """23 videos in shards of different length; see write_shards."""
    return helpers.write_shards(tmp_path_factory.mktemp("shards"), [5, 9, 0, 2, 7])


def read(files, views=None, data=None, **arguments) -> list[dict]:
    """All batches; by default of four videos and for evaluation."""
    return helpers.read(files, views or {"all": ALL}, data, **arguments)


def train(files, views=None, **arguments) -> list[dict]:
    """The same in training."""
    defaults = {"training": True, "shuffle_buffer_size": 8, "num_readers": 3}
    return read(files, views, **{**defaults, **arguments})


def videos(batches) -> list[str]:
    """The ids in order, without padding rows."""
    rows = [
        (video_id.decode(), weight)
        for batch in batches
        for video_id, weight in zip(batch["video_id"], batch["weights"], strict=True)
    ]
    assert all((weight == 1) == (video_id != "") for video_id, weight in rows)
    return [video_id for video_id, weight in rows if weight]


# ------------------------------------------------------------------ what is in them


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_has_the_shapes_and_types_of_the_contract(shards, training):
    views = {"all": ALL, "sampled": UNIFORM}
    dataset = helpers.build_dataset(shards, views, training=training)

    def view(frames):
        return {
            "frames": tf.TensorSpec([4, frames, WIDTH], tf.uint8),
            "num_frames": tf.TensorSpec([4], tf.int32),
            "frame_indices": tf.TensorSpec([4, frames], tf.int32),
        }

    assert dataset.element_spec == {
        "video_id": tf.TensorSpec([4], tf.string),
        "labels": tf.TensorSpec([4, 5], tf.float32),
        "weights": tf.TensorSpec([4], tf.float32),
        "label_weights": tf.TensorSpec([4], tf.float32),
        "views": {"all": view(12), "sampled": view(4)},
    }
    # An iterator would wait for the thread that tunes.
    assert dataset.options().autotune.enabled is False
    assert dataset.options().deterministic is True


def test_evaluation_keeps_the_order_of_files_and_records(shards):
    pattern = shards[0].replace("shard0", "shard*")
    assert videos(read(pattern, num_readers=8)) == NAMES


def test_frames_are_those_that_were_written(shards):
    for number, row in enumerate(helpers.rows_of(read(shards))[:23]):
        n = 1 + number % 11
        parts = [*helpers.features_of(number, n).values()]
        view = row["views"]["all"]
        assert view["num_frames"] == n
        np.testing.assert_array_equal(view["frames"][:n], np.concatenate(parts, 1))
        assert not view["frames"][n:].any()
        assert view["frame_indices"].tolist() == [*range(n), *[0] * (12 - n)]


@pytest.mark.slow
@both
def test_features_are_those_of_the_flag_or_the_view_in_that_order(shards, how):
    views = {"all": ALL, "ears": ALL._replace(features=("audio",))}
    batch = read(shards, views, **how)[0]["views"]
    rgb, audio = np.split(batch["all"]["frames"], [helpers.SIZES["rgb"]], axis=2)
    np.testing.assert_array_equal(batch["ears"]["frames"], audio)
    turned = helpers.data_settings(feature_names="audio,rgb", feature_sizes="3,4")
    frames = read(shards, data=turned, **how)[0]["views"]["all"]["frames"]
    np.testing.assert_array_equal(frames, np.concatenate([audio, rgb], axis=2))
    only = helpers.data_settings(feature_names="audio", feature_sizes="3")
    frames = read(shards, data=only, **how)[0]["views"]["all"]["frames"]
    np.testing.assert_array_equal(frames, audio)
    with pytest.raises(ValueError, match="nose"):
        read(shards, {"all": ALL._replace(features=("nose",))}, **how)


# Labels as they are stored → the classes that they mean.
LABELS = [([], []), ([3, 0], [0, 3]), ([4, 1, 4, 4], [1, 4]), ([0, 1, 2, 3, 4], 5)]


@pytest.mark.slow
@both
def test_records_may_differ_in_labels_lengths_and_features(tmp_path, how):
    lengths = [(5, 3), (3, 5), (12, 12), (2, 2), (3, 3), (4, 0)]
    labels = [*(stored for stored, _ in LABELS), [1], [1]]
    records = [helpers.video(n, pair, labels[n]) for n, pair in enumerate(lengths)]
    example = tf.train.SequenceExample.FromString(records[4])
    del example.context.feature["labels"]
    records[4] = example.SerializeToString()
    shard = helpers.write_shard(tmp_path / "s.tfrecord", records)
    with pytest.raises((ValueError, tf.errors.OpError), match="audio"):
        read([shard], **how)
    # --max_frames cuts before frames are sampled.
    data = helpers.data_settings(missing_feature="zeros", max_frames=8)
    views = {"all": ALL, "sampled": UNIFORM}
    (batch,) = read([shard], views, data, batch_size=6, **how)
    classes = [*(range(c) if c == 5 else c for _, c in LABELS), [], [1]]
    assert [np.flatnonzero(row).tolist() for row in batch["labels"]] == [
        list(c) for c in classes
    ]
    assert set(batch["labels"].ravel()) == {0, 1}
    assert batch["label_weights"].tolist() == [bool(list(c)) for c in classes]
    assert batch["weights"].tolist() == [1] * 6
    view = batch["views"]["all"]
    counts = [3, 3, 8, 2, 3, 4]  # Of the shortest feature that there is.
    assert view["num_frames"].tolist() == counts
    times = np.arange(8)
    for number, count in enumerate(counts):
        # What the longer feature has more does not slip into the next video.
        rgb, audio = view["frames"][number, :, 1], view["frames"][number, :, 5]
        inside = times < count
        assert rgb.tolist() == (times * inside).tolist()
        heard = 16 + times if number < 5 else 127  # The byte nearest to 0.
        assert audio.tolist() == (heard * inside).tolist()
    assert batch["views"]["sampled"]["frame_indices"][2].tolist() == [0, 2, 4, 6]


# ---------------------------------------------------------------------------- views


def test_sampled_frames_are_the_whole_view_at_their_indices(shards):
    samplers = set(frame_sampling.SAMPLERS) - {"all"}
    views = {name: pipeline.ViewSpec(name, 4) for name in samplers}
    for row in helpers.rows_of(train(shards, {"all": ALL, **views})):
        every = row["views"]["all"]
        for name in samplers:
            some = row["views"][name]
            n = some["num_frames"]
            assert n <= every["num_frames"]
            expected = every["frames"][some["frame_indices"][:n]]
            np.testing.assert_array_equal(some["frames"][:n], expected)
            assert not some["frames"][n:].any()


def drawn(batches) -> dict:
    """Video → the frames drawn from it."""
    return {
        row["video_id"]: tuple(row["views"]["sampled"]["frame_indices"])
        for row in helpers.rows_of(batches)
        if row["weights"]
    }


def test_random_frames_in_evaluation_depend_on_the_video_alone(shards):
    views = {"sampled": RANDOM}
    first = drawn(read(shards, views))
    assert first == drawn(read(shards, views, batch_size=7, seed=5, epoch=3))
    assert first == drawn(read(shards[::-1], views, batch_size=1))
    assert first[b"v10"] != first[b"v21"]  # Both have 11 frames.


def test_random_frames_in_training_change_with_epoch_and_seed(shards):
    views = {"sampled": RANDOM}
    first = drawn(train(shards, views))
    # They do not depend on the order in which the videos come.
    assert first == drawn(train(shards, views, shuffle_buffer_size=0, batch_size=5))
    for change in ({"epoch": 1}, {"seed": 1}):
        other = drawn(train(shards, views, **change))
        assert other.keys() == first.keys()
        assert other != first


def test_a_server_reads_the_frames_of_evaluation(shards):
    serialized = tf.stack(list(tf.data.TFRecordDataset(shards)))
    data = helpers.data_settings()
    video_ids, view = helpers.read_view(serialized, data, RANDOM)
    (batch,) = read(shards, {"sampled": RANDOM}, batch_size=23)
    np.testing.assert_array_equal(video_ids, batch["video_id"])
    tf.nest.map_structure(
        np.testing.assert_array_equal, dict(view), batch["views"]["sampled"]
    )


def test_a_server_minds_neither_labels_nor_a_missing_id():
    record = helpers.frame_level(None, [999], helpers.features_of(0, 2))
    ids, view = helpers.read_view(tf.constant([record]), helpers.data_settings(), ALL)
    assert ids.numpy().tolist() == [b""]
    assert view["num_frames"].numpy().tolist() == [2]


@pytest.mark.slow
@both
def test_a_sampler_may_decide_by_tensors_and_say_anything_after_valid(
    shards, monkeypatch, how
):
    def careless(num_frames, k, max_frames, keys):
        if tf.reduce_max(num_frames) < 0:  # A graph cannot ask that without AutoGraph.
            return tf.zeros([4, k], tf.int32), tf.cast(num_frames, tf.int64)
        indices, valid = frame_sampling.SAMPLERS.get("uniform")(
            num_frames, k, max_frames, keys
        )
        inside = tf.sequence_mask(valid, k)
        return tf.where(inside, indices, 9999), tf.cast(valid, tf.int64)

    monkeypatch.setitem(frame_sampling.SAMPLERS._entries, "careless", careless)
    found = read(shards, {"sampled": pipeline.ViewSpec("careless", 4)}, **how)
    helpers.assert_same_batches(found, read(shards, {"sampled": UNIFORM}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use_index", "find"),
    [("never", lookups.judge), ("always", lookups.look_up)],
)
def test_an_epoch_does_not_trace_its_batches_again(tmp_path, use_index, find):
    shard = helpers.write_shard(tmp_path / "a", [helpers.video(i, 9) for i in range(8)])
    view = {"sampled": pipeline.ViewSpec("random", 3)}
    traced = pipeline._making(
        find,
        helpers.data_settings(),
        tuple(view.items()),
        (frame_sampling.SAMPLERS.get("random"),),
        pipeline.Altered(),
    )
    before = traced.experimental_get_tracing_count()
    first, second, third = (
        drawn(train([shard], view, epoch=epoch, batch_size=8, use_index=use_index))
        for epoch in (0, 1, 2)
    )
    assert 1 <= traced.experimental_get_tracing_count() <= before + 1
    # Its frames are those of the epoch all the same.
    assert first.keys() == second.keys() == third.keys()
    assert first != second != third


def test_a_sampler_registered_again_replaces_the_old_one(shards, monkeypatch):
    for name in ("first", "last"):
        sampler = frame_sampling.SAMPLERS.get(name)
        monkeypatch.setitem(frame_sampling.SAMPLERS._entries, "mine", sampler)
        mine, expected = (
            read(shards, {"sampled": pipeline.ViewSpec(text, 3)})
            for text in ("mine", name)
        )
        helpers.assert_same_batches(mine, expected)


def test_the_sampled_view_follows_the_settings():
    sampling = settings.SamplingSettings(
        student_k=6, frame_sampler="uniform", train_frame_sampler="random"
    )
    view = pipeline.sampled_view
    assert view(sampling, training=True) == pipeline.ViewSpec("random", 6)
    assert view(sampling, training=False) == pipeline.ViewSpec("uniform", 6)
    for name in ("frame_sampler", "train_frame_sampler"):
        wrong = settings.SamplingSettings(**{name: "nope"})
        with pytest.raises(ValueError, match=f"^--{name}=nope: .*uniform_stride"):
            view(wrong, training=True)
        wrong = settings.SamplingSettings(**{name: "uniform(step=3)"})
        with pytest.raises(ValueError, match=f"^--{name}=.*does not take step"):
            view(wrong, training=True)
    # As whoever asks for `all` by its name.
    every = settings.SamplingSettings(student_k=6, frame_sampler="all()")
    assert view(every, training=False).sampler == "all"


# ------------------------------------------------------------------- the last batch


@pytest.mark.parametrize("batch_size", [5, 23, 60])
def test_padding_rows_complete_the_last_batch_with_weight_0(shards, batch_size):
    batches = read(shards, batch_size=batch_size)
    assert len(batches) == -(-23 // batch_size)
    rows = helpers.rows_of(batches)
    assert len(rows) == len(batches) * batch_size
    assert [row["weights"] for row in rows] == [1] * 23 + [0] * (len(rows) - 23)
    for row in rows[23:]:
        assert row["video_id"] == b""
        assert not row["labels"].any()
        assert row["views"]["all"]["num_frames"] == 0
        assert not row["views"]["all"]["frames"].any()


@both
def test_no_videos_give_no_batches(tmp_path, how):
    assert read(helpers.write_shards(tmp_path, [0, 0]), **how) == []


# -------------------------------------------------------------------------- training


def test_epochs_and_seeds_differ_in_order_and_hold_every_video_once(shards):
    changes = [{}, {"epoch": 1}, {"epoch": 2}, {"seed": 1}]
    orders = [videos(train(shards, **change)) for change in changes]
    for order in orders:
        assert sorted(order) == sorted(NAMES)
    assert len({tuple(order) for order in [*orders, NAMES]}) == len(orders) + 1


def test_records_are_shuffled_within_a_shard_and_shards_without_a_buffer(
    shards, tmp_path
):
    single = helpers.write_shards(tmp_path, [1] * 9)
    alone = {"shuffle_buffer_size": 0, "num_readers": 1}
    for files, arguments in ((shards[1:2], {}), (single, alone)):
        first, second = (videos(train(files, epoch=n, **arguments)) for n in (0, 1))
        assert first != second
        assert sorted(first) == sorted(second)


@pytest.mark.parametrize("num_readers", [1, 8])
def test_every_number_of_readers_reads_every_video_once(shards, num_readers):
    assert sorted(videos(train(shards, num_readers=num_readers))) == sorted(NAMES)


def test_skipping_batches_equals_dropping_them(shards):
    views = {"sampled": RANDOM}
    whole = train(shards, views, epoch=1)
    assert len(whole) == 6
    for skip in (1, 5):
        rest = train(shards, views, epoch=1, skip_batches=skip)
        helpers.assert_same_batches(rest, whole[skip:])
    for skip in (6, 7):
        assert not train(shards, views, epoch=1, skip_batches=skip)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_parts_of_all_processes_make_the_global_batch(shards, training):
    views = {"all": ALL, "sampled": RANDOM}
    arguments = {"batch_size": 6, "training": training, "skip_batches": 1}
    whole = train(shards, views, **arguments)
    # Of 23 videos the last batch has 5: of six processes the last has none of them.
    assert len(whole) == 3 and whole[-1]["weights"].sum() == 5
    for count in (2, 6):
        parts = [
            train(shards, views, input_shard=(i, count), **arguments)
            for i in range(count)
        ]
        # All take the same number of steps, or they would wait for each other forever.
        helpers.assert_same_batches(helpers.joined(parts), whole)


def test_a_batch_that_processes_cannot_share_is_refused(shards):
    with pytest.raises(ValueError, match="^--batch_size=4 is not divisible by 3 "):
        read(shards, input_shard=(0, 3))


# ---------------------------------------------------------------------- part of them


def test_a_fraction_holds_the_same_videos_in_every_epoch_and_order(shards):
    half = {"train_fraction": 0.5}
    first = videos(train(shards, **half))
    assert 0 < len(first) < 23
    assert len(set(first)) == len(first)
    for change in ({"epoch": 1}, {"seed": 9}, {"shuffle_buffer_size": 0}):
        assert sorted(videos(train(shards, **half, **change))) == sorted(first)
    smaller = videos(train(shards, train_fraction=0.25))
    assert set(smaller) < set(first)


@pytest.mark.slow
@both
def test_a_fraction_is_about_that_share(tmp_path, how):
    total = 2000
    short = [
        helpers.video_level(f"v{n}", [n % 5], {"x": [float(n)]}) for n in range(total)
    ]
    shard = helpers.write_shard(tmp_path / "a", short)
    data = helpers.data_settings(
        frame_features=False, feature_names="x", feature_sizes="1"
    )
    opened = helpers.open_shards([shard], data, **how)
    for fraction in (0.1, 0.5, 0.9):
        # Five standard errors of a binomial count.
        slack = 5 * np.sqrt(total * fraction * (1 - fraction))
        assert abs(opened.num_videos(fraction) - fraction * total) < slack


def test_which_labels_count_depends_on_the_ids_alone(shards, tmp_path):
    half = {"label_fraction": 0.5, "only_labeled": True}
    kept = set(videos(train(shards, **half)))
    assert 0 < len(kept) < 23
    # Other frames and labels, in another order and another shard.
    other = [helpers.video(n, 1 + n % 3, [0]) for n in reversed(range(23))]
    files = [helpers.write_shard(tmp_path / "other", other)]
    for files_, more in ((files, {}), (files, {"seed": 5}), (shards, {"epoch": 1})):
        assert set(videos(train(files_, **half, **more))) == kept
    smaller = {"label_fraction": 0.25, "only_labeled": True}
    assert set(videos(train(shards, **smaller))) < kept
    # The others are there, too, unless they are to be left out.
    whole, masked = train(shards), train(shards, label_fraction=0.5)
    for row, expected in zip(
        helpers.rows_of(masked), helpers.rows_of(whole), strict=True
    ):
        counts = row["video_id"].decode() in kept
        for name in ("labels", "label_weights"):
            expected[name] = expected[name] * counts
        tf.nest.map_structure(np.testing.assert_array_equal, row, expected)


# ------------------------------------------------------------------------ unlabeled


@pytest.fixture
def unlabeled(tmp_path) -> list[str]:
    """Five videos u0 to u4; their labels must not count."""
    records = [
        helpers.video(n, 4, [0]).replace(b"v%d" % n, b"u%d" % n) for n in range(5)
    ]
    return [helpers.write_shard(tmp_path / "u.tfrecord", records)]


def mixed(shards, unlabeled, use_index="auto", **arguments) -> list[dict]:
    other = helpers.open_shards(unlabeled, use_index=use_index)
    arguments = {"batch_size": 8, "unlabeled_fraction": 0.25, **arguments}
    return train(shards, unlabeled=other, use_index=use_index, **arguments)


def test_unlabeled_videos_fill_their_share_of_every_batch(shards, unlabeled):
    batches = mixed(shards, unlabeled)
    assert len(batches) == 4 == pipeline.num_batches(23, 8, 0.25)  # 6 labeled each.
    for batch in batches:
        is_unlabeled = np.array([i.startswith(b"u") for i in batch["video_id"]])
        assert is_unlabeled.sum() == 2
        # One in each half: two replicas have the same share.
        assert is_unlabeled[:4].sum() == 1
        assert not batch["labels"][is_unlabeled].any()
        assert not batch["label_weights"][is_unlabeled].any()
        assert batch["weights"][is_unlabeled].all()
    labeled = [video for video in videos(batches) if video.startswith("v")]
    assert sorted(labeled) == sorted(NAMES)
    used = [video for video in videos(batches) if video.startswith("u")]
    assert sorted(used[:5]) == [f"u{n}" for n in range(5)]  # Each before any again.


@pytest.mark.slow
def test_unlabeled_rows_are_the_same_parsed_after_a_stop_and_in_parts(
    shards, unlabeled
):
    whole = mixed(shards, unlabeled, epoch=1)
    helpers.assert_same_batches(mixed(shards, unlabeled, "never", epoch=1), whole)
    helpers.assert_same_batches(
        mixed(shards, unlabeled, epoch=1, skip_batches=2), whole[2:]
    )
    parts = [mixed(shards, unlabeled, epoch=1, input_shard=(i, 2)) for i in range(2)]
    helpers.assert_same_batches(helpers.joined(parts), whole)
