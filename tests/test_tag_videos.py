"""From mp4s with labels to yt8m-tag: the tags are those of the records."""

import json
import pathlib
import shlex
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers, script_helpers, training_helpers
from tests import video_helpers as helpers
from yt8m_distill.data import pipeline
from yt8m_distill.models import early_exit
from yt8m_distill.serving import export, exported, served

helpers.import_av()
pytestmark = pytest.mark.slow  # A network is trained and exported.

K, SECONDS = 3, 8
BUDGETS = (1, 3, 6)  # Of early exit.


@pytest.fixture(scope="module")
def made(tmp_path_factory, image_network) -> pathlib.Path:
    """A folder with clips, their records, and a student of them in `model`."""
    folder = tmp_path_factory.mktemp("tags")
    (folder / "clips").mkdir()
    random = np.random.default_rng(0)
    lines = ["file,labels"]
    for number in range(6):
        times = np.cumsum(random.uniform(0.02, 2 * SECONDS / 40, 40)).tolist()
        path = folder / "clips" / f"v{number}.mp4"
        helpers.write_clip(path, times=times, gop=15, audio_streams=number % 3)
        lines.append(f"v{number},{['cat', 'cat;dog', 'bird'][number % 3]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    pca = folder / "pca"
    pca.mkdir()
    np.save(pca / "mean.npy", random.normal(0, 0.1, 6))
    np.save(pca / "eigenvals.npy", random.uniform(0.01, 0.1, 4))
    np.save(pca / "eigenvecs.npy", random.normal(0, 1, [6, 4]))
    done = script_helpers.succeed(
        "extract_videos",
        f"--videos={folder}/clips/*.mp4",
        f"--labels={folder}/labels.csv",
        f"--output={folder}/mine.tfrecord",
        f"--image_network={image_network}",
        f"--audio_network={helpers.write_sound_network(folder / 'bands')}",
        *(f"--pca={pca}", "--feature_range=-3:9"),
    )
    script_helpers.succeed(
        "train",
        *("--mode=baseline", f"--student_k={K}", "--student=FrameLevelLogisticModel"),
        *shlex.split(done.stdout.splitlines()[-1].removeprefix("Flags for train.py: ")),
        *(f"--train_dir={folder}/run", "--batch_size=2", "--num_epochs=1"),
    )
    script_helpers.succeed(
        "export_model",
        *(f"--train_dir={folder}/run", f"--export_dir={folder}/model"),
        f"--extraction_manifest={folder}/mine.tfrecord.json",
    )
    shutil.rmtree(pca)  # The export holds it.
    return folder


def tag(folder, *arguments: str) -> list[dict]:
    done = script_helpers.succeed(
        "tag_videos", f"--model={folder}/model", "--json", *arguments
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def tagged_and_expected(folder) -> list[tuple[dict, dict]]:
    """Each video as tagged, and what the network says of its record: the same."""
    records = [r.numpy() for r in tf.data.TFRecordDataset(f"{folder}/mine.tfrecord")]
    serve = tf.saved_model.load(f"{folder}/model").signatures["serving_default"]
    found = serve(example_bytes=tf.constant(records))
    expected = [{k: v[row].numpy() for k, v in found.items()} for row in range(6)]
    tagged = tag(folder, f"--videos={folder}/clips/*.mp4")
    pairs = list(zip(tagged, expected, strict=True))
    for video, answer in pairs:
        scores = [entry["score"] for entry in video["tags"]]
        np.testing.assert_allclose(scores, answer["predictions"], atol=1e-5)
        classes = [entry["class"] for entry in video["tags"]]
        assert classes == answer["class_indexes"].tolist()
    return pairs


def test_one_file_that_cannot_be_read_is_counted_in_the_singular(made):
    given = f"--model={made}/model", f"--videos={made}/labels.csv"
    done = script_helpers.call("tag_videos", *given)
    assert done.returncode == 1 and "1 of 1 video " in done.stderr


def test_the_scores_are_those_of_the_records(made):
    names = {0: "bird", 1: "cat", 2: "dog"}
    for video, _ in tagged_and_expected(made):
        assert all(tag["name"] == names[tag["class"]] for tag in video["tags"])
        frames, n = video["frames"], video["frames"]["of"]
        assert frames["used"] == [i * n // K for i in range(K)]
        assert K <= frames["decoded"] < frames["in_file"] == 40
        assert video["seconds"].keys() == {"decode", "features", "network"}


def test_fewer_frames_may_be_requested(made):
    (found,) = tag(made, f"{made}/clips/v0.mp4", "--student_k=2", "--classes=1")
    assert len(found["frames"]["used"]) == 2 and len(found["tags"]) == 1
    given = (f"--model={made}/model", f"{made}/clips/v0.mp4", "--student_k=4")
    assert "--student_k=4" in script_helpers.refuse("tag_videos", *given)


@pytest.fixture(scope="module")
def stopping(made, tmp_path_factory) -> pathlib.Path:
    """The folder's clips and records, with a network that stops early in `model`."""
    folder = tmp_path_factory.mktemp("stopping")
    (folder / "clips").symlink_to(made / "clips")
    (folder / "mine.tfrecord").symlink_to(made / "mine.tfrecord")
    run = training_helpers.make_run(
        "unused",
        "unused",
        feature_sizes="4,64",
        feature_ranges="-3:9,-2:2",
        num_classes=3,
        missing_feature="zeros",
        teacher="MeanTanh(units=6, dropout=0.0)",
    )
    network = training_helpers.build_network("teacher", run)
    records = [r.numpy() for r in tf.data.TFRecordDataset(f"{made}/mine.tfrecord")]
    view = pipeline.ViewSpec(early_exit.SAMPLER, BUDGETS[-1])
    _, frames = record_helpers.read_view(tf.constant(records), run.data, view)
    # A threshold among the videos' best scores on their first frame.
    first, _ = early_exit.read_on(network, frames, 0, 1, None)
    best = np.sort(tf.sigmoid(first).numpy().max(axis=1))
    plain = [[[-1.0]]] * 2, [[0.0]] * 2, [1.0] * 3, [0.0] * 3
    policy = early_exit.Policy(BUDGETS, "max_probability", *plain)
    threshold = (best[2] + best[3]) / 2
    stops = early_exit.EarlyExit(network, policy, threshold, run.data.max_frames)
    export.export(served.Served(stops, run.data, view, 3), f"{folder}/model")
    extra = "model/assets.extra"
    shutil.copy(made / extra / exported.FEATURES, folder / extra)
    shutil.copytree(made / extra / "pca", folder / extra / "pca")
    return folder


def test_only_the_frames_that_early_exit_asks_for_are_decoded(stopping):
    decoded = {}
    for video, expected in tagged_and_expected(stopping):
        used = len(video["frames"]["used"])
        assert used == expected["num_frames_used"] and used in BUDGETS
        decoded.setdefault(used, []).append(video["frames"]["decoded"])
    # The one frame of the first budget, and at most the 14 that it needs.
    assert len(decoded) > 1 and max(decoded[1]) <= 15 < min(decoded[BUDGETS[-1]])
    given = (f"--model={stopping}/model", f"{stopping}/clips/v0.mp4", "--student_k=2")
    assert "--student_k=2" in script_helpers.refuse("tag_videos", *given)


def test_names_are_printed_and_a_broken_file_is_a_line(made, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"x")
    done = script_helpers.call(
        "tag_videos", f"--model={made}/model", f"{made}/clips/v0.mp4", str(broken)
    )
    assert done.returncode == 1
    assert str(broken) in done.stderr and "v0.mp4" not in done.stderr
    assert "cat 0." in done.stdout and "of 40 in the file" in done.stdout


def test_another_image_network_is_refused_and_a_moved_one_accepted(made, tmp_path):
    other = helpers.write_network(tmp_path / "other", seed=1)
    given = (f"--model={made}/model", f"{made}/clips/v0.mp4")
    line = script_helpers.refuse("tag_videos", *given, f"--image_network={other}")
    assert f"--image_network={other}" in line and "SHA-256" in line
    text = exported.read_features(f"{made}/model")["settings"]["image_network"]
    folder = text.split("'")[1]
    moved = shutil.copytree(folder, tmp_path / "moved")
    again = tag(made, given[1], f"--image_network={text.replace(folder, str(moved))}")
    assert again[0]["tags"] == tag(made, given[1])[0]["tags"]
    brighter = text.replace(folder, str(moved)).replace("mean=0.5", "mean=0.4")
    line = script_helpers.refuse("tag_videos", *given, f"--image_network={brighter}")
    assert brighter in line and folder in line


def test_the_other_programs_print_the_stored_names(made):
    done = script_helpers.succeed(
        "classify_records", f"--model={made}/model", f"--records={made}/mine.tfrecord"
    )
    assert "cat 0." in done.stdout
    script_helpers.succeed(
        "inference",
        *(f"--train_dir={made}/run", f"--input_data_pattern={made}/mine.tfrecord"),
        f"--output_file={made}/out.csv",
    )
    assert ",bird," in (made / "out.csv.names.csv").read_text()


def test_a_manifest_of_other_features_is_refused(made, tmp_path):
    manifest = json.loads((made / "mine.tfrecord.json").read_text())
    manifest["extraction"]["features"] = {"rgb": 5}
    wrong, broken, other = (tmp_path / f"{name}.json" for name in "abc")
    wrong.write_text(json.dumps(manifest))
    broken.write_text("{}")
    manifest["extraction"]["features"] = {"rgb": 4, "audio": 64}
    manifest["extraction"]["settings"]["audio_range"] = "-4:8"
    other.write_text(json.dumps(manifest))
    for path in (wrong, broken, other, tmp_path / "none.json"):
        line = script_helpers.refuse(
            "export_model",
            *(f"--train_dir={made}/run", f"--export_dir={tmp_path}/model"),
            f"--extraction_manifest={path}",
        )
        assert f"--extraction_manifest={path}" in line
