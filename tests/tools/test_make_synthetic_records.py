"""tools/make_synthetic_records.py: the same videos, and statistics like the real."""

import numpy as np
import tensorflow as tf

from tests import script_helpers
from tools import make_synthetic_records as synthetic
from yt8m_distill.data import records, segments


def recipe(**changes) -> synthetic.Recipe:
    values = {
        "seed": 3,
        "num_classes": 40,
        "max_frames": 60,
        "feature_sizes": "64,16",
        "videos_per_shard": 10,
        "num_train": 20,
        "num_validate": 5,
        "num_test": 0,
    }
    return synthetic.Recipe(**{**values, **changes})


def videos(count: int, made: synthetic.Recipe) -> list:
    world = synthetic.make_world(made)
    return [synthetic.make_video(world, made, "train", n) for n in range(count)]


def test_a_video_depends_on_seed_split_and_number_alone():
    first = videos(3, recipe())
    again = videos(3, recipe(videos_per_shard=1, num_train=500))
    for one, other in zip(first, again, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
        for frames, same in zip(one[2], other[2], strict=True):
            np.testing.assert_array_equal(frames, same)
    other_seed = videos(1, recipe(seed=4))[0]
    assert not np.array_equal(other_seed[2][0][:10], first[0][2][0][:10])


def records_of(folder, split: str) -> list[bytes]:
    files = sorted(str(path) for path in folder.glob(f"{split}*.tfrecord"))
    return [record.numpy() for record in tf.data.TFRecordDataset(files)]


def test_the_records_hold_the_video(tmp_path):
    made = recipe(video_level=True, max_frames=8)
    video_id, labels, frames, _ = videos(1, made)[0]
    (tmp_path / "video_level").mkdir()
    synthetic.write_shard(made, str(tmp_path), "train", 0, 1)
    (record,) = records_of(tmp_path, "train")
    example = tf.train.SequenceExample.FromString(record)
    assert example.context.feature["id"].bytes_list.value[:] == [video_id]
    assert example.context.feature["labels"].int64_list.value[:] == labels.tolist()
    for name, rows in zip(["rgb", "audio"], frames, strict=True):
        stored = example.feature_lists.feature_list[name].feature
        assert [f.bytes_list.value[0] for f in stored] == [r.tobytes() for r in rows]
    (record,) = records_of(tmp_path / "video_level", "train")
    feature = tf.train.Example.FromString(record).features.feature
    assert feature["id"].bytes_list.value[:] == [video_id]
    assert feature["labels"].int64_list.value[:] == labels.tolist()
    mean = records.dequantize(frames[0]).mean(axis=0)
    np.testing.assert_array_equal(feature["mean_rgb"].float_list.value[:], mean)


def test_rated_segments_are_those_that_the_shots_show(tmp_path):
    made = recipe(rated_segments=5)
    synthetic.write_shard(made, str(tmp_path), "validate", 0, 5)
    plain = [synthetic.make_video(synthetic.make_world(made), recipe(), "validate", 0)]
    count, present = 0, 0
    for number, record in enumerate(records_of(tmp_path, "validate")):
        example = tf.train.SequenceExample.FromString(record)
        ratings, problem = segments.read(example.context)
        assert not problem
        labels = set(example.context.feature["labels"].int64_list.value)
        starts = [rating.start for rating in ratings]
        assert starts == sorted(set(starts)) and len(starts) <= 5
        rgb = example.feature_lists.feature_list["rgb"].feature
        if not number:  # Ratings change nothing else.
            assert rgb[3].bytes_list.value[0] == plain[0][2][0][3].tobytes()
        for start, label, score in ratings:
            assert start % 5 == 0 and start + 5 <= len(rgb) and label in labels
            count, present = count + 1, present + score
    assert count > 15 and 0.3 < present / count < 0.7
    # By hand: class 7 is shown in frames 4 to 9, so in most of segment 5, and in one
    # frame of segment 0, which is not rated.
    shown = np.array([-1] * 4 + [7] * 6 + [9] * 5 + [7])
    random = np.random.default_rng(0)
    found = synthetic.draw_ratings(random, made, np.array([7]), shown)
    assert found == [(5, 7, 1), (10, 7, 0)]


def test_one_frame_of_each_part_shows_the_labels_of_a_video_as_its_id_says():
    made = recipe(easy_fraction=0.6, hard_frames=4, signal=3.0)
    world = synthetic.make_world(made)
    needed = []
    for number in range(60):
        video_id, labels, _, _ = synthetic.make_video(world, made, "train", number)
        needed.append(int(video_id.decode().rpartition("_k")[2]))
        # The same draws, for what the frames show.
        random = np.random.default_rng([made.seed, 0, number])
        assert synthetic.draw_labels(random, world).tolist() == labels.tolist()
        size = synthetic.draw_num_frames(random, made.max_frames)
        content, parts = synthetic.draw_easy_or_hard(random, world, made, labels, size)
        assert parts == needed[-1]
        frames = [size * (2 * part + 1) // (2 * parts) for part in range(parts)]
        assert len(np.unique(content[frames], axis=0)) == parts
        assert len(np.unique(content, axis=0)) == parts
        # How much of each label they show: the noise is .5 / 8 in each direction.
        prototypes = world.prototypes[labels].T
        shown = np.linalg.lstsq(prototypes, content[frames].T, rcond=None)[0]
        np.testing.assert_allclose(np.sort(shown)[:, -1], 3, atol=0.5)
        np.testing.assert_allclose(np.sort(shown)[:, :-1], 0, atol=0.5)
    assert set(needed) == {1, 4}
    # Three standard errors of a share over 60 videos.
    assert abs(needed.count(1) / 60 - 0.6) < 3 * np.sqrt(0.24 / 60)


def test_all_frames_of_a_video_differ():
    for _, _, (rgb, _), _ in videos(5, recipe()):
        assert len(np.unique(rgb, axis=0)) == len(rgb)


def test_bytes_and_frame_counts_are_those_of_youtube_8m():
    made = videos(200, recipe(max_frames=60))
    lengths = np.array([len(frames[0]) for _, _, frames, _ in made])
    # 29 % at the maximum: three standard errors of a share over 200 videos.
    assert abs((lengths == 60).mean() - 0.29) < 3 * np.sqrt(0.29 * 0.71 / 200)
    # The mean of YouTube-8M is 230 of 300.
    assert abs(lengths.mean() / 60 - 0.766) < 0.05
    values = np.concatenate([frames[0].ravel() for _, _, frames, _ in made])
    assert abs(values.mean() - 127) < 3  # real: 127
    assert abs(values.std() - 64) < 4  # real: 64


def test_neighboring_frames_are_as_similar_as_real_ones():
    correlations = []
    for _, _, (rgb, _), _ in videos(30, recipe(max_frames=300)):
        x = rgb.astype(np.float64) - rgb.mean(axis=0)
        correlations.append((x[1:] * x[:-1]).mean() / (x * x).mean())
    assert abs(np.mean(correlations) - 0.48) < 0.1  # real: .48 in one video


def test_classes_are_zipf_like_and_labels_repeat_in_company():
    labels = [video_labels for _, video_labels, *_ in videos(300, recipe())]
    counts = np.bincount(np.concatenate(labels), minlength=40)
    assert counts[:8].sum() > counts[20:].sum()
    assert 1.5 < np.mean([len(found) for found in labels]) < 4


def make(folder, *flags) -> script_helpers.Ended:
    """The program, run to its end in this process."""
    return script_helpers.in_place(
        synthetic.run,
        "make_synthetic_records",
        f"--output_dir={folder}",
        "--num_train=7",
        "--num_validate=2",
        "--num_test=2",
        "--num_classes=5",
        "--max_frames=8",
        "--feature_sizes=8,4",
        "--seed=5",
        *flags,
    )


def test_the_program_writes_reuses_and_refuses(tmp_path, monkeypatch):
    script_helpers.without_processes(monkeypatch)
    folder = tmp_path / "data"
    first = make(folder, "--videos_per_shard=4", "--video_level")
    assert first.returncode == 0, first.stderr
    names = {path.name for path in folder.glob("*.tfrecord")}
    assert names == {
        "train0000.tfrecord",
        "train0001.tfrecord",
        "validate0000.tfrecord",
        "test0000.tfrecord",
    }
    assert {path.name for path in (folder / "video_level").glob("*")} == names
    # The same bytes as in this process, in shards of another length.
    made = recipe(
        num_classes=5, max_frames=8, feature_sizes="8,4", seed=5, videos_per_shard=7
    )
    (tmp_path / "one").mkdir()
    synthetic.write_shard(made, str(tmp_path / "one"), "train", 0, 7)
    assert records_of(tmp_path / "one", "train") == records_of(folder, "train")
    again = make(folder, "--videos_per_shard=4", "--video_level")
    assert "holds this data set already" in again.stdout
    refused = make(folder, "--videos_per_shard=4", "--video_level", "--seed=1")
    assert refused.returncode == 1 and refused.stdout == ""
    for named in ("make_synthetic_records.py: ", f"--output_dir={folder}", "seed"):
        assert named in refused.stderr


def test_shards_of_the_user_are_not_deleted(tmp_path, monkeypatch):
    script_helpers.without_processes(monkeypatch)
    own = tmp_path / "train0000.tfrecord"
    own.write_bytes(b"my videos")
    for flags in ((), ("--overwrite",)):
        refused = make(tmp_path, *flags)
        assert refused.returncode == 1 and own.name in refused.stderr
        assert own.read_bytes() == b"my videos"
    # What a killed run left is replaced, and nothing else.
    (tmp_path / synthetic.UNFINISHED).touch()
    other = tmp_path / "mine.tfrecord"
    other.write_bytes(b"my videos")
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(records_of(tmp_path, "train")) == 7
    assert other.read_bytes() == b"my videos"
    assert not (tmp_path / synthetic.UNFINISHED).exists()
