"""Embeddings in files of arrays become records that say how they were quantized."""

import io
import shlex
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers, script_helpers
from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.data import arrays as array_files
from yt8m_distill.data import features, layouts, records

NUM_VIDEOS = 8


@pytest.fixture
def embeddings(tmp_path) -> dict[str, dict[str, np.ndarray]]:
    """Id → arrays, in .npz files; `rgb` is rectified, `audio` far from 0."""
    (tmp_path / "npz").mkdir()
    random, found = np.random.default_rng(0), {}
    lines = ["id,labels"]
    for number in range(NUM_VIDEOS):
        length = int(random.integers(6, 12))
        found[f"v{number}"] = arrays = {
            "clip": np.maximum(random.normal(0, 3, [length, 5]), 0).astype(np.float16),
            "sound": random.normal(40, 1, [length, 3]),
        }
        np.savez(tmp_path / "npz" / f"v{number}.npz", **arrays)
        lines.append(f"v{number},{['cat;dog', 'bird'][number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return found


def convert(folder, *more: str, call=script_helpers.succeed):
    return call(
        "convert_records",
        f"--input_data_pattern={folder}/npz/*",
        f"--labels={folder}/labels.csv",
        f"--output_dir={folder}/native",
        "--features=rgb=clip:5,audio=sound",
        *more,
    )


def flags_of(said: str) -> list[str]:
    """The flags of the command that yt8m-convert names last."""
    program, *words = shlex.split(said.splitlines()[-1].removeprefix("Next: "))
    assert program == "yt8m-inspect"
    text = script_helpers.succeed("inspect_records", *words).stdout
    return text.splitlines()[-1].removeprefix("flags: ").split()


@pytest.mark.slow
def test_two_commands_train_on_them(tmp_path, embeddings):
    said = convert(tmp_path).stdout
    assert "0.00% of the numbers" in said
    given = flags_of(said)
    assert f"--vocabulary={tmp_path}/native/vocabulary.csv" in given
    values = np.concatenate([a["clip"].astype(np.float32) for a in embeddings.values()])
    ranges = next(flag for flag in given if flag.startswith("--feature_ranges="))
    low, high = map(float, ranges.split("=")[1].split(",")[0].split(":"))
    assert low == 0 and high == pytest.approx(values.max(), rel=1e-5)
    pattern = f"--train_data_pattern={tmp_path}/native/*.tfrecord"
    run = (f"--train_dir={tmp_path}/run", "--mode=teacher", "--batch_size=4")
    run += ("--teacher=FrameLevelLogisticModel", "--num_epochs=1", pattern)
    script_helpers.succeed("train", *run, *given, "--student_k=1")
    line = script_helpers.refuse(
        "train", *run, *(f for f in given if f != ranges), "--start_new_model"
    )
    assert "--feature_ranges" in line and ranges.split("=")[1] in line
    script_helpers.succeed(
        "export_model", f"--train_dir={tmp_path}/run", "--network=teacher"
    )  # It compares the model with the network.
    model = f"{tmp_path}/run/export/teacher"
    last = convert(tmp_path, f"--model={model}").stdout.splitlines()[-1]
    assert model in last and f"{NUM_VIDEOS} videos" in last and "GAP" in last


def test_the_network_reads_the_original_values_to_half_a_step(tmp_path, embeddings):
    given = flags_of(convert(tmp_path).stdout)
    text = next(f for f in given if f.startswith("--feature_ranges="))
    data = settings.DataSettings(
        feature_names="rgb,audio",
        feature_sizes="5,3",
        num_classes=3,
        max_frames=12,
        feature_ranges=text.split("=")[1],
    )
    run = helpers.make_run(
        "x",
        "x",
        **{
            name: getattr(data, name)
            for name in ("feature_names", "feature_sizes", "num_classes", "max_frames")
        },
        feature_ranges=data.feature_ranges,
    )
    network = helpers.build_network("teacher", run)
    (shard,) = (tmp_path / "native").glob("*.tfrecord")
    steps = [(high - low) / 255 for low, high in data.ranges]
    for record in tf.data.TFRecordDataset(str(shard)):
        example = tf.train.SequenceExample.FromString(record.numpy())
        (name,) = example.context.feature["id"].bytes_list.value
        original = embeddings[name.decode()]
        frames = np.concatenate(
            [record_helpers.frames_in(example, n) for n in ("rgb", "audio")], 1
        )
        count = tf.constant([len(frames)])
        found = features.dequantize(frames[np.newaxis], count, *network.steps)[0]
        for part, key, step in zip(
            (found[:, :5], found[:, 5:]), ("clip", "sound"), steps, strict=True
        ):
            error = np.abs(part - original[key].astype(np.float32))
            # The middle of a step of 256, by YouTube-8M's formula of 255.
            assert error.max() <= step * (0.5 + 1 / 256) * (1 + 1e-3)
        # And so it classifies the numbers themselves.
        view = {"frames": frames[np.newaxis], "num_frames": count}
        floats = view | {"frames": tf.constant(found.numpy()[np.newaxis])}
        np.testing.assert_allclose(
            network(view).logits, network(floats).logits, atol=1e-6
        )


@pytest.mark.once
def test_other_files_of_arrays_give_the_same_records(tmp_path, embeddings):
    h5py = pytest.importorskip("h5py")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    only = ("--features=rgb=clip", "--feature_ranges=0:12")
    convert(tmp_path, *only)
    (shard,) = (tmp_path / "native").glob("*.tfrecord")
    expected = shard.read_bytes()
    for suffix in ("npy", "h5", "parquet"):
        (tmp_path / suffix).mkdir()
        for name, arrays in embeddings.items():
            path, array = tmp_path / suffix / f"{name}.{suffix}", arrays["clip"]
            if suffix == "npy":
                np.save(path, array)
            elif suffix == "h5":
                with h5py.File(path, "w") as file:
                    file["clip"] = array
            else:
                rows = array.astype(np.float32).tolist()
                parquet.write_table(pyarrow.table({"clip": rows}), path)
        pattern = f"--input_data_pattern={tmp_path}/{suffix}/*.{suffix}"
        convert(tmp_path, *only, pattern, f"--output_dir={tmp_path}/of_{suffix}")
        (found,) = (tmp_path / f"of_{suffix}").glob("*.tfrecord")
        assert found.read_bytes() == expected


@pytest.mark.once
def test_shards_that_are_there_are_kept_or_refused(tmp_path, embeddings):
    convert(tmp_path)
    (shard,) = (tmp_path / "native").glob("*.tfrecord")
    before = shard.stat().st_mtime_ns
    convert(tmp_path)
    assert shard.stat().st_mtime_ns == before
    line = convert(tmp_path, "--feature_ranges=0:1,39:41", call=script_helpers.refuse)
    assert str(shard) in line and "--overwrite" in line
    done = convert(tmp_path, "--feature_ranges=0:1,39:41", "--overwrite")
    outside, numbers = np.zeros(2), np.zeros(2)
    for arrays in embeddings.values():
        ranged = ((arrays["clip"], 0, 1), (arrays["sound"], 39, 41))
        outside += [np.count_nonzero((a < low) | (a > high)) for a, low, high in ranged]
        numbers += [a.size for a, *_ in ranged]
    for share in outside / numbers:
        assert f"{share:.2%} of the numbers" in done.stdout


@pytest.mark.once
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"clip": np.ones([4, 5])}, "sound"),
        ({"clip": np.ones([4, 5]), "noise": np.ones([4, 3])}, "clip, noise"),
        ({"clip": np.ones([4, 5]), "noise": np.ones([4, 3])}, "=clip"),
        ({"clip": np.ones(4), "sound": np.ones([4, 3])}, "clip"),
        ({"clip": np.ones([4, 6]), "sound": np.ones([4, 3])}, "6 wide"),
        ({"clip": np.full([4, 5], np.nan), "sound": np.ones([4, 3])}, "finite"),
        ({"clip": np.full([4, 5], 1e300), "sound": np.ones([4, 3])}, "finite"),
        ({"clip": np.ones([4, 5]), "sound": np.ones([4, 4])}, "4 wide"),
        (b"no arrays", "not an .npz"),
    ],
)
def test_a_bad_file_is_named(tmp_path, embeddings, content, named):
    path = tmp_path / "npz" / "xbad.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    line = convert(tmp_path, call=script_helpers.refuse)
    assert str(path) in line and named in line


@pytest.mark.once
def test_a_damaged_file_is_named_wherever_it_is_damaged(tmp_path):
    random = np.random.default_rng(0)
    whole, path = io.BytesIO(), tmp_path / "bad.npz"
    np.savez_compressed(whole, clip=random.integers(0, 9, [50, 5]))
    whole = whole.getvalue()
    damaged = [whole[:-1], whole[: len(whole) // 2], b"PK\x03\x04"]
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            array_files.read(str(path), [layouts.Source("rgb", "clip")])
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(damaged) / 2


@pytest.mark.once
def test_a_group_is_not_an_array(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["deep/clip"] = np.ones([4, 5])
    read = array_files.read(str(path), [layouts.Source("rgb", "deep/clip")])
    assert read["rgb"].shape == (4, 5)
    with pytest.raises(ValueError, match=f"{path}.*deep/clip"):
        array_files.read(str(path), [layouts.Source("rgb", "deep")])


@pytest.mark.once
def test_labels_of_other_files_are_refused(tmp_path, embeddings):
    (tmp_path / "labels.csv").write_text("id;labels\nv0;cat\nv1;dog\n")
    line = convert(tmp_path, call=script_helpers.refuse)
    assert "--labels" in line and "'v0;cat'" in line and "v0.npz" in line
    assert not (tmp_path / "native").exists()


@pytest.mark.once
@pytest.mark.parametrize("suffix", ["h5", "parquet"])
def test_a_reader_that_is_not_installed_is_named(tmp_path, monkeypatch, suffix):
    name = {"h5": "h5py", "parquet": "pyarrow"}[suffix]
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{path}.*pip install {name}"):
        array_files.read(str(path), [layouts.Source("rgb", "clip")])


@pytest.mark.once
@pytest.mark.parametrize("text", ["0", "1:0", "0:x", "0:1,0:1,0:1", "nan:1", "0:inf"])
def test_invalid_ranges_are_refused(text):
    with pytest.raises(ValueError) as error:
        record_helpers.data_settings(feature_ranges=text)
    assert f"--feature_ranges={text}" in str(error.value)


@pytest.mark.once
def test_quantizing_over_a_range_is_youtube_8ms_moved_and_stretched():
    values = np.linspace(-3, 3, 1001)
    np.testing.assert_array_equal(
        records.quantize(values), records.quantize(values * 4 + 1, -7, 9)
    )
    every = np.arange(256, dtype=np.uint8)
    again = records.quantize(records.dequantize(every, -7, 9), -7, 9)
    np.testing.assert_array_equal(again, every)
