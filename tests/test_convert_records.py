"""Records of other writers become the native records of the same videos."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers, script_helpers
from yt8m_distill import convert_records
from yt8m_distill.data import faults, layouts, records
from yt8m_distill.serving import exported

FEATURES = "rgb=RGB/feature/floats,audio=audio"
LAYOUT = layouts.Layout(convert_records.parse_features(FEATURES))
FRAMES = np.linspace(-2.5, 2.5, 12, dtype=np.float32).reshape(3, 4)
AUDIO = np.arange(6, dtype=np.uint8).reshape(3, 2)


def feature(values) -> tf.train.Feature:
    """A Feature of the type that fits the values."""
    values = list(values)
    if values and isinstance(values[0], bytes):
        return record_helpers.bytes_feature(*values)
    if values and isinstance(values[0], float | np.floating):
        return record_helpers.float_feature(values)
    return record_helpers.int64_feature(values)


def foreign(video_id=(b"v1",), labels=(3, 5), rgb=FRAMES, **context) -> bytes:
    """A SequenceExample as MediaPipe writes it: floats, one Feature per frame."""
    example = tf.train.SequenceExample()
    context |= {"id": video_id, "labels": labels}
    for key, values in context.items():
        example.context.feature[key].CopyFrom(feature(values))
    lists = example.feature_lists.feature_list
    lists["RGB/feature/floats"].feature.extend(feature(row) for row in rgb)
    lists["audio"].feature.extend(feature([row.tobytes()]) for row in AUDIO)
    return example.SerializeToString()


def convert(serialized: bytes, layout=LAYOUT) -> tf.train.SequenceExample:
    record = faults.Record(serialized, "folder/f")
    content, *_ = convert_records.convert_record(record, layout)
    return tf.train.SequenceExample.FromString(content)


def context_of(example, key: str) -> list:
    value = example.context.feature[key]
    return list(getattr(value, value.WhichOneof("kind")).value)


def test_float_frames_are_quantized_and_bytes_are_kept():
    native = convert(foreign())
    np.testing.assert_array_equal(record_helpers.frames_in(native, "audio"), AUDIO)
    # The two values beyond each end of [-2, 2] are clipped; the others are off by half
    # a step of 4 / 255 at most, and by the float32 of the formula.
    restored = records.dequantize(record_helpers.frames_in(native, "rgb"))
    np.testing.assert_allclose(restored, np.clip(FRAMES, -2, 2), atol=2 / 255 + 1e-4)


def test_floats_are_quantized_over_a_range_that_the_record_says():
    layout = LAYOUT._replace(ranges=((-2.5, 2.5), (0.0, 255.0)))
    record = faults.Record(foreign())
    content, video, changed = convert_records.convert_record(record, layout)
    native = tf.train.SequenceExample.FromString(content)
    assert context_of(native, "rgb_range") == [-2.5, 2.5]
    restored = records.dequantize(record_helpers.frames_in(native, "rgb"), -2.5, 2.5)
    np.testing.assert_allclose(restored, FRAMES, atol=5 / 255 * 0.51)
    np.testing.assert_array_equal(record_helpers.frames_in(native, "audio"), AUDIO)
    assert video.video_id and changed["audio"] == records.Rounding()
    assert changed["rgb"][:2] == (12, 0)
    errors = np.abs(restored - FRAMES)
    assert changed["rgb"].largest == pytest.approx(errors.max(), rel=1e-5)
    assert changed["rgb"].squares == pytest.approx((errors**2).sum(), rel=1e-4)


def test_clipped_numbers_are_counted():
    *_, changed = convert_records.convert_record(faults.Record(foreign()), LAYOUT)
    twice = changed["rgb"].join(changed["rgb"])
    # ±2.5 become the middles of the outermost bins, half a bin from ±2.
    assert twice[:2] == (24, 2 * (np.abs(FRAMES) > 2).sum())
    assert twice.largest == pytest.approx(0.5 + 2 / 256, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((3, 5), [3, 5]),
        ((3.0, 5.0), [3, 5]),
        ((0, 1), [0, 1]),
        ((0, 1, 0, 1), [1, 3]),
        ((0.0, 0.0, 1.0), [2]),
        ((), []),
    ],
)
def test_labels_become_indices(labels, expected):
    assert context_of(convert(foreign(labels=labels)), "labels") == expected


def test_a_missing_feature_is_refused_or_left_out():
    example = tf.train.SequenceExample.FromString(foreign())
    del example.feature_lists.feature_list["audio"]
    with pytest.raises(ValueError, match="audio"):
        convert(example.SerializeToString())
    zeros = LAYOUT._replace(missing_feature="zeros")
    native = convert(example.SerializeToString(), zeros)
    assert list(native.feature_lists.feature_list) == ["rgb"]
    del example.feature_lists.feature_list["RGB/feature/floats"]
    with pytest.raises(ValueError, match="RGB/feature/floats"):
        convert(example.SerializeToString(), zeros)


def test_an_id_under_another_key_replaces_the_one_under_id():
    native = convert(foreign(url=(b"u1",)), LAYOUT._replace(video_id_key="url"))
    assert context_of(native, "id") == [b"u1"]


def test_other_context_is_kept():
    native = convert(foreign(segment_start_times=(0, 5), segment_scores=(1.0, 0.0)))
    assert context_of(native, "segment_start_times") == [0, 5]
    assert context_of(native, "segment_scores") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        (foreign(labels=(0.5,)), "0.5"),
        (foreign(labels=(float("inf"),)), "inf"),
        (foreign(labels=(float("nan"),)), "nan"),
        (foreign(labels=(b"dog",)), "labels"),
        (foreign(labels=(-1, 3)), "-1"),
        (foreign(rgb=[FRAMES[0], FRAMES[1][:2]]), "[2, 4]"),
        (foreign(rgb=[np.float32([1, np.nan, 0, 0])]), "RGB/feature/floats"),
        (b"\x00", "Example"),
    ],
    ids=[
        "half a label",
        "infinite label",
        "NaN label",
        "text label",
        "negative label",
        "ragged",
        "no number",
        "no example",
    ],
)
def test_a_record_that_cannot_be_converted_is_named(tmp_path, record, named):
    shard, folder = str(tmp_path / "in.tfrecord"), str(tmp_path / "native")
    with tf.io.TFRecordWriter(shard) as writer:
        for serialized in (foreign(), record):
            writer.write(serialized)
    with pytest.raises(ValueError) as caught:
        convert_records.convert([shard], folder, LAYOUT)
    assert f"{shard}, record 1" in str(caught.value) and named in str(caught.value)
    assert not (tmp_path / "native").exists()
    done = convert_records.convert([shard], folder, LAYOUT, skip=True)
    assert done.videos == 1 and len(done.skipped) == 1 and "record 1" in done.skipped[0]


def test_a_shard_of_other_flags_or_input_is_not_kept_silently(tmp_path):
    shard, folder = str(tmp_path / "in.tfrecord"), str(tmp_path / "native")
    record_helpers.write_shard(tmp_path / "in.tfrecord", [foreign(), foreign()])

    def convert(**changes) -> convert_records.Converted:
        layout = LAYOUT._replace(**changes)
        return convert_records.convert([shard], folder, layout)

    first = convert(labels_key="elsewhere")
    assert (first.videos, first.existing, len(first.unlabeled)) == (2, 0, 2)
    again = convert(labels_key="elsewhere")
    assert (again.videos, again.existing) == (0, 1)
    for changes in ({}, {"labels_key": "elsewhere", "ranges": ((-1.0, 1.0),) * 2}):
        with pytest.raises(ValueError, match="in.tfrecord.*--overwrite"):
            convert(**changes)
    done = convert_records.convert([shard], folder, LAYOUT, overwrite=True)
    assert done.videos == 2 and not done.unlabeled
    # A shard that has grown since is converted again.
    record_helpers.write_shard(tmp_path / "in.tfrecord", [foreign()] * 3)
    assert convert().videos == 3


def test_a_shard_without_records_stays_one(tmp_path):
    shard, folder = tmp_path / "in.tfrecord", tmp_path / "native"
    shard.touch()
    done = convert_records.convert([str(shard)], str(folder), LAYOUT)
    assert done == convert_records.Converted()
    assert (folder / "in.tfrecord").read_bytes() == b""


def test_input_without_records_and_flags_of_other_input_are_refused(tmp_path):
    shard, folder = tmp_path / "in.tfrecord", tmp_path / "native"
    shard.touch()
    given = ("convert_records", f"--output_dir={folder}")
    line = script_helpers.refuse(*given, f"--input_data_pattern={shard}")
    assert line.startswith("--input_data_pattern") and str(shard) in line
    numbers = tmp_path / "v.npy"
    np.save(numbers, np.ones([2, 4], np.float32))
    for path, flag in ((shard, "--labels=x.csv"), (numbers, "--bad_records=skip")):
        line = script_helpers.refuse(*given, f"--input_data_pattern={path}", flag)
        assert line.startswith(flag)
    (tmp_path / "model.json").write_text('{"format": "onnx"}')
    for model, named in ((tmp_path / "none", "none"), (tmp_path, "--format=onnx")):
        flags = (f"--model={model}", "--features=rgb")
        line = script_helpers.refuse(*given, f"--input_data_pattern={numbers}", *flags)
        assert line.startswith(f"--model={model}") and named in line
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["records", "arrays"])
@pytest.mark.parametrize(
    ("widths", "named"),
    [({"rgb": 4, "speech": 2}, "speech"), ({"rgb": 5}, "rgb is 5 wide")],
)
def test_a_network_of_other_features_is_refused_before_writing(
    tmp_path, monkeypatch, kind, widths, named
):
    path = tmp_path / {"records": "in.tfrecord", "arrays": "v.npy"}[kind]
    if kind == "records":
        record_helpers.write_shard(path, [foreign()])
    else:
        np.save(path, FRAMES)
    opened = types.SimpleNamespace(widths=widths)
    monkeypatch.setattr(exported, "ExportedNetwork", lambda folder: opened)
    line = script_helpers.refuse(
        "convert_records",
        f"--input_data_pattern={path}",
        f"--output_dir={tmp_path}/native",
        f"--features=rgb{'=RGB/feature/floats' * (kind == 'records')}",
        "--model=m",
    )
    assert line.startswith("--model") and named in line
    assert not (tmp_path / "native").exists()


def test_a_file_that_is_no_record_at_all_is_named(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("class,name\n0,dog\n")
    with pytest.raises(ValueError) as caught:
        convert_records.convert([str(path)], str(tmp_path / "native"), LAYOUT)
    assert str(caught.value).startswith(str(path)) and "TFRecord" in str(caught.value)


@pytest.mark.parametrize("text", ["", "=a", "rgb=", "rgb=a:0", "rgb=a:b", "a,a"])
def test_a_malformed_list_of_features_is_refused(text):
    with pytest.raises(ValueError, match="--features="):
        convert_records.parse_features(text)
