"""Records: what is counted, what is parsed, and how a bad one is named."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill import file_patterns
from yt8m_distill.data import faults, framing, pipeline

ALL = {"all": pipeline.ViewSpec("all", 0)}


def read(files, **changes) -> list[dict]:
    """All batches of shards, four videos each."""
    return helpers.read(files, ALL, helpers.data_settings(**changes), use_index="never")


# ---------------------------------------------------------------------- counting


def test_records_are_counted(tmp_path):
    files = helpers.write_shards(tmp_path, [3, 0, 2])
    assert [framing.count_records(path) for path in files] == [3, 0, 2]


# A flip of bit 7 leads to the end of the file by chance; whoever reads it stops there.
@pytest.mark.parametrize("bit", range(7))
def test_a_broken_length_is_reported_rather_than_the_bytes_after_it(tmp_path, bit):
    (path,) = helpers.write_shards(tmp_path, [4])
    content = bytearray(pathlib.Path(path).read_bytes())
    first = next(iter(tf.data.TFRecordDataset(path))).numpy()
    begin = len(first) + framing.FRAMING
    content[begin] ^= 1 << bit
    pathlib.Path(path).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        framing.count_records(path)
    assert str(caught.value) == (
        f"{path}, record 1 (counted from 0): damaged at byte {begin}: its length is "
        f"not known; the last {len(content) - begin} bytes of the file are lost."
    )


def test_an_error_of_another_kind_has_no_description():
    assert faults.describe_error(ValueError("something else")) is None


def test_the_first_of_several_bad_videos_is_named_in_a_later_batch_and_file(tmp_path):
    frames = helpers.features_of(0, 2)
    bad = [helpers.frame_level(f"bad{n}", [9], frames) for n in range(2)]
    files = [
        helpers.write_shard(tmp_path / "a", [helpers.video(n, 2) for n in range(6)]),
        helpers.write_shard(tmp_path / "b", [helpers.video(6, 2), *bad]),
    ]
    line = helpers.error_line(files, read, files)
    assert line.startswith(f"{files[1]}, record 1 (counted from 0), video bad0: ")
    assert "label 9 " in line


# --------------------------------------------------------------- video-level records


VIDEO_LEVEL = {
    "frame_features": False,
    "feature_names": "mean_rgb,mean_audio",
    "feature_sizes": "2,1",
}


def test_video_level_records_give_one_float_frame_in_the_order_of_the_flag(tmp_path):
    vectors = {"mean_audio": [3.5], "mean_rgb": [1.5, -2.5], "more": [9.0]}
    shard = helpers.write_shard(
        tmp_path / "v", [helpers.video_level("a", [4, 0], vectors)]
    )
    (batch,) = read([shard], **VIDEO_LEVEL)
    view = batch["views"]["all"]
    assert view["frames"].dtype == np.float32
    assert view["frames"][0].tolist() == [[1.5, -2.5, 3.5]]
    assert view["num_frames"].tolist() == [1, 0, 0, 0]
    assert batch["labels"][0].tolist() == [1, 0, 0, 0, 1]
    assert batch["video_id"].tolist() == [b"a", b"", b"", b""]


# ------------------------------------------------------------------------ real data


@pytest.mark.real_data
def test_audioset_has_as_many_records_as_published(real_data):
    files = file_patterns.expand(f"{real_data}/audioset_bal_train/*.tfrecord", "x")
    assert sum(map(framing.count_records, files)) == 22_160


@pytest.mark.real_data
def test_a_genuine_video_equals_its_arrays(real_data):
    folder = real_data / "yt8m_frame_level"
    (batch,) = read(
        [str(folder / "SjJ3.tfrecord")],
        feature_sizes="1024,128",
        num_classes=3862,
        max_frames=300,
    )
    arrays = np.load(folder / "SjJ3.npz")
    expected = np.concatenate([arrays["rgb"], arrays["audio"]], axis=1)
    assert expected.shape == (170, 1152)
    view = batch["views"]["all"]
    assert view["num_frames"][0] == 170
    np.testing.assert_array_equal(view["frames"][0, :170], expected)
    assert not view["frames"][0, 170:].any()
    assert batch["labels"][0].nonzero()[0].tolist() == [11]


@pytest.mark.real_data
def test_genuine_video_level_shards_read(real_data):
    files = file_patterns.expand(f"{real_data}/yt8m_video_level/*.tfrecord", "x")
    assert sum(map(framing.count_records, files)) == 5714
    changes = {
        **VIDEO_LEVEL,
        "feature_sizes": "1024,128",
        "num_classes": 3862,
    }
    batches = read(files[:1], **changes)
    videos = sum(int(batch["weights"].sum()) for batch in batches)
    assert videos == framing.count_records(files[0])
    assert batches[0]["views"]["all"]["frames"].shape == (4, 1, 1152)
    labels = np.concatenate([batch["labels"] for batch in batches])[:videos]
    assert (labels.sum(axis=1) >= 1).all()
