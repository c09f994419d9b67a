"""yt8m-extract: records of video files, whatever is among them, and after a stop."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests import script_helpers
from tests import video_helpers as helpers
from yt8m_distill import registry, settings
from yt8m_distill.data import faults, judging, records
from yt8m_distill.serving import thinning
from yt8m_distill.video import decoding, extraction, networks

helpers.import_av()


@pytest.fixture
def videos(tmp_path) -> pathlib.Path:
    """Four videos of 1 to 4 seconds, and two files that are not videos."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(1, 5):
        times = np.linspace(0, number, 20).tolist()
        helpers.write_clip(folder / f"v{number}.mp4", 20, times=times)
    (folder / "broken.mp4").write_bytes(b"nothing")
    (folder / "empty.mp4").write_bytes(b"")
    lines = ["file,labels", "v1.mp4,cat;dog", "v2,dog", "v4.mp4,bird", "gone.mp4,cat"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return folder


def arguments(videos, image_network, *more: str) -> list[str]:
    folder = videos.parent
    return [
        f"--videos={videos}/*.mp4",
        f"--labels={folder}/labels.csv",
        f"--output={folder}/mine.tfrecord",
        f"--image_network={image_network}",
        *more,
    ]


def read(path) -> list[tf.train.SequenceExample]:
    dataset = tf.data.TFRecordDataset(str(path))
    return [tf.train.SequenceExample.FromString(r.numpy()) for r in dataset]


def frames_in(example) -> np.ndarray:
    steps = example.feature_lists.feature_list["rgb"].feature
    return np.stack([np.frombuffer(s.bytes_list.value[0], np.uint8) for s in steps])


def test_records_contain_the_networks_output_for_each_second(videos, image_network):
    done = script_helpers.succeed("extract_videos", *arguments(videos, image_network))
    output = videos.parent / "mine.tfrecord"
    opened = networks.open_network(image_network, "image_network")
    for number, example in enumerate(read(output), 1):
        context = example.context.feature
        assert context["id"].bytes_list.value[0].decode() == f"v{number}"
        with decoding.Clip(str(videos / f"v{number}.mp4")) as clip:
            shown = [np.searchsorted(clip.seconds, s + 1e-6) - 1 for s in range(9)]
            images = clip.images(shown[: number + 1], opened.size)
        expected = records.quantize(opened.vectors(images))
        np.testing.assert_array_equal(frames_in(example), expected)
    # bird, cat, dog are 0, 1, 2.
    labels = [[*e.context.feature["labels"].int64_list.value] for e in read(output)]
    assert labels == [[1, 2], [2], [], [0]]
    assert "v3.mp4" in done.stderr  # It has no labels.
    manifest = json.loads((videos.parent / "mine.tfrecord.json").read_text())
    assert manifest["videos"] == 4 and manifest["num_classes"] == 3
    assert manifest["frames"] == 2 + 3 + 4 + 5
    made_by = manifest["extraction"]
    assert made_by["settings"]["image_network"] == image_network
    assert made_by["sha256"] == {"image_network": opened.hash()}
    names = (videos.parent / "mine.tfrecord.vocabulary.csv").read_text()
    assert names.split() == ["index,display_name", "0,bird", "1,cat", "2,dog"]
    # The files that cannot be read: a line each.
    skipped = (videos.parent / "mine.tfrecord.skipped.txt").read_text().splitlines()
    assert [pathlib.Path(line.split(":")[0]).name for line in skipped] == [
        "broken.mp4",
        "empty.mp4",
    ]
    assert all(line in done.stderr for line in skipped)
    flags = done.stdout.splitlines()[-1]
    assert "--feature_sizes=6" in flags and "--num_classes=3" in flags
    assert "mine.tfrecord.vocabulary.csv" in flags
    # The range fits if few numbers are at its ends.
    numbers = np.concatenate([frames_in(e) for e in read(output)])
    ends = records.dequantize(np.array([numbers.min(), numbers.max()])).tolist()
    shares = [(numbers == byte).mean() for byte in (0, 255)]
    np.testing.assert_allclose(manifest["numbers"]["rgb"], [*ends, *shares])
    assert f"{shares[0]:.1%} at its low end" in done.stdout


def test_without_labels_there_are_no_flags_of_training(videos, image_network):
    """Training would refuse the records, whatever the number of classes."""
    given = arguments(videos, image_network)
    unlabeled = [flag for flag in given if not flag.startswith("--labels")]
    for _ in range(2):  # The second time they are there already.
        done = script_helpers.succeed("extract_videos", *unlabeled)
        assert "--num_classes" not in done.stdout and "--labels" in done.stdout
    done = script_helpers.succeed("extract_videos", *given, "--overwrite")
    assert "--num_classes=3" in done.stdout


def test_an_interrupted_run_continues_and_writes_the_same(
    videos, image_network, monkeypatch
):
    given = arguments(videos, image_network, "--jobs=1")
    script_helpers.succeed("extract_videos", *given)
    output = videos.parent / "mine.tfrecord"
    whole = output.read_bytes()
    before = sorted(os.listdir(videos.parent))
    made, make = [], extraction.make_record

    def make_record(path, *others):
        made.append(path)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(path, *others)

    monkeypatch.setattr(extraction, "make_record", make_record)
    os.remove(output)
    with pytest.raises(KeyboardInterrupt):
        script_helpers.call("extract_videos", *given)
    assert not output.exists()
    parts = os.listdir(f"{output}.parts")
    assert 1 <= len(parts) < 4
    stopped = len(made)
    script_helpers.succeed("extract_videos", *given)
    assert output.read_bytes() == whole
    # The two broken files are tried again; of the others those without a part are.
    assert len(made) - stopped == 2 + 4 - len(parts)
    assert sorted(os.listdir(videos.parent)) == before
    script_helpers.succeed("extract_videos", *given)  # Nothing is to be done.
    assert len(made) - stopped == 6 - len(parts)
    line = script_helpers.refuse("extract_videos", *given, "--fps=2")
    assert f"--output={output}" in line and "--overwrite" in line
    assert output.read_bytes() == whole
    script_helpers.succeed("extract_videos", *given, "--fps=2", "--overwrite")
    assert [len(frames_in(e)) for e in read(output)] == [3, 5, 7, 9]


def test_other_labels_and_more_videos_leave_the_features(
    videos, image_network, monkeypatch
):
    given = arguments(videos, image_network)
    script_helpers.succeed("extract_videos", *given)
    helpers.write_clip(videos / "v5.mp4", 30)
    labels = videos.parent / "labels.csv"
    labels.write_text(labels.read_text() + "\nv5.mp4,ape\nv3.mp4,dog")
    script_helpers.refuse("extract_videos", *given)
    made, make = [], extraction.make_record
    monkeypatch.setattr(
        extraction, "make_record", lambda path, *a: made.append(path) or make(path, *a)
    )
    script_helpers.succeed("extract_videos", *given, "--overwrite")
    names = [pathlib.Path(path).stem for path in made]
    assert sorted(names) == ["broken", "empty", "v5"]
    anew, mine = (videos.parent / f"{name}.tfrecord" for name in ("anew", "mine"))
    script_helpers.succeed("extract_videos", *given, f"--output={anew}")
    whole = anew.read_bytes()
    assert mine.read_bytes() == whole
    # What is damaged can be replaced, too.
    mine.write_bytes(whole[: len(whole) // 2])
    script_helpers.succeed("extract_videos", *given, "--overwrite", "--fps=2")
    script_helpers.succeed("extract_videos", *given, "--overwrite")
    assert mine.read_bytes() == whole


def test_the_manifest_is_true_in_any_working_directory(
    videos, image_network, monkeypatch
):
    folder = registry.parse(image_network).arguments["folder"]
    monkeypatch.chdir(pathlib.Path(folder).parent)
    relative = image_network.replace(folder, pathlib.Path(folder).name)
    script_helpers.succeed("extract_videos", *arguments(videos, relative))
    monkeypatch.chdir("/")
    # An output of other settings is refused: these are the same.
    script_helpers.succeed("extract_videos", *arguments(videos, image_network))
    manifest = json.loads((videos.parent / "mine.tfrecord.json").read_text())
    stated = manifest["extraction"]["settings"]["image_network"]
    opened = networks.open_network(stated, "image_network")
    assert manifest["extraction"]["sha256"] == {"image_network": opened.hash()}


def test_some_frames_are_those_of_thin_shards(videos, image_network, tmp_path):
    script_helpers.succeed("extract_videos", *arguments(videos, image_network))
    few = arguments(
        videos, image_network, "--frames=2", f"--output={tmp_path}/few.tfrecord"
    )
    script_helpers.succeed("extract_videos", *few)
    every, some = read(tmp_path / "mine.tfrecord"), read(tmp_path / "few.tfrecord")
    for whole, thin in zip(every, some, strict=True):
        chosen = [0, len(frames_in(whole)) // 2]  # floor(i * n / 2)
        record = faults.Record(whole.SerializeToString())
        data = settings.DataSettings(feature_names="rgb", feature_sizes="6")
        video = judging.judge(record, data)
        expected = thinning.thin_record(video, chosen, ["rgb"])
        assert thin.SerializeToString(deterministic=True) == expected


@pytest.mark.real_data
def test_a_real_clip_becomes_a_record(real_data, tmp_path, image_network):
    script_helpers.succeed(
        "extract_videos",
        f"--videos={real_data}/clips/*.mp4",
        f"--output={tmp_path}/real.tfrecord",
        f"--image_network={image_network}",
    )
    (example,) = read(tmp_path / "real.tfrecord")
    assert frames_in(example).shape == (13, 6)  # 12.98 seconds to the last frame


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--image_network=", "--image_network is empty"),
        ("--labels=nowhere.csv", "--labels=nowhere.csv"),
        ("--pca=nowhere", "--pca=nowhere"),
        ("--frame_sampler=most", "--frame_sampler=most"),
        ("--videos=nowhere*.mp4", "--videos=nowhere*.mp4"),
        ("--output=nowhere/x.tfrecord", "--output=nowhere/x.tfrecord"),
    ],
)
def test_an_invalid_flag_is_one_line(videos, image_network, change, named):
    given = arguments(videos, image_network, "--frames=2", change)
    assert named in script_helpers.refuse("extract_videos", *given)


def test_a_video_is_not_replaced_by_its_records(videos, image_network):
    video = videos / "v1.mp4"
    given = arguments(videos, image_network, f"--output={video}", "--overwrite")
    before = video.read_bytes()
    assert "is one of the files" in script_helpers.refuse("extract_videos", *given)
    assert video.read_bytes() == before


def test_nothing_but_broken_files_is_an_error(videos, image_network, tmp_path):
    pattern = f"--videos={videos}/[be]*.mp4"
    given = arguments(videos, image_network, pattern, "--labels=")
    done = script_helpers.call("extract_videos", *given)
    assert done.returncode == 1 and "[be]*.mp4" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".parts")]


def test_same_names_in_two_folders_keep_their_paths_as_ids():
    found = extraction.ids_of(["a/x.mp4", "b/x.mp4", "b/y.mp4"])
    assert found == {"a/x.mp4": "a/x.mp4", "b/x.mp4": "b/x.mp4", "b/y.mp4": "y"}
