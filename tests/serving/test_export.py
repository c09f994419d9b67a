"""The SavedModel gives the numbers of inference, by itself, and nothing else."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import mutated_records, record_helpers
from tests import training_helpers as helpers
from yt8m_distill import files
from yt8m_distill.data import records
from yt8m_distill.models import lstm
from yt8m_distill.serving import export, predictor
from yt8m_distill.training import inputs, modes

TOP_K = 4
NUM_VIDEOS = 7


@dataclasses.dataclass
class Case:
    """A network, and the SavedModel made of it."""

    run: object
    role: str
    networks: object
    videos: list
    folder: str

    @property
    def view(self):
        (view,) = modes.views_of(self.run, [self.role]).values()
        return view

    def serialized(self) -> list[bytes]:
        return [helpers.make_example(*video) for video in self.videos]

    def load(self):
        return tf.saved_model.load(self.folder).signatures


@pytest.fixture(scope="module", params=["student", "teacher", "padded teacher"])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    role = request.param.split()[-1]
    videos = helpers.make_videos(NUM_VIDEOS, seed=8)
    # Fewer frames than the student sees, and more than the teacher reads.
    videos[1] = (*videos[1][:2], videos[1][2][:4])
    videos[2] = (*videos[2][:2], np.tile(videos[2][2], (2, 1)))
    helpers.write_shard(folder / "train-0.tfrecord", videos)
    run = helpers.make_run(
        "unused",
        folder,
        mode="parallel",
        teacher=helpers.LSTM_TEACHER,
        student=helpers.LSTM_STUDENT,
    )
    # Both networks of a run with one classifier: only one may be exported.
    networks = helpers.build_networks(run, ["teacher", "student"], True)
    random = np.random.default_rng(1)
    for variable in networks.weights:
        variable.assign(random.normal(0, 1, variable.shape))
    made = Case(run, role, networks, videos, str(folder / "model"))
    network = networks.network(role)
    with pytest.MonkeyPatch.context() as patch:
        if role != request.param:
            # As with 256 cells and more: the model decides by the number of frames
            # whether it pads, here between one video and all of them.
            patch.setattr(lstm, "_ALIASING", 1)
            patch.setattr(lstm, "_FEW_FRAMES", 20)
        export.export(network, run.data, made.view, made.folder, TOP_K)
    return made


@pytest.fixture(scope="module")
def inferred(case) -> predictor.Predictions:
    """What inference says of the videos, in batches of 4."""
    strategy = helpers.cpus(1)
    found = predictor.Predictor(case.networks, case.role, strategy, TOP_K).predict(
        inputs.evaluation_dataset(
            strategy,
            inputs.training_shards(case.run),
            modes.views_of(case.run, [case.role]),
            4,
        )
    )
    return predictor.Predictions(*map(np.concatenate, zip(*found, strict=True)))


def assert_same(found: dict, inferred: predictor.Predictions) -> None:
    assert found["class_indexes"].dtype == np.int32
    assert found["predictions"].dtype == np.float32
    np.testing.assert_array_equal(found["class_indexes"], inferred.classes)
    # float32 products of other batches; six digits reach a CSV.
    np.testing.assert_allclose(found["predictions"], inferred.scores, rtol=2e-6)


def test_serialized_records_give_the_numbers_of_inference(case, inferred):
    signature = case.load()["serving_default"]
    found = signature(example_bytes=tf.constant(case.serialized()))
    assert found.keys() == {"video_id", "class_indexes", "predictions", "error"}
    np.testing.assert_array_equal(found["video_id"], inferred.video_ids)
    assert found["predictions"].shape == (NUM_VIDEOS, TOP_K)
    assert_same(found, inferred)
    assert (np.diff(found["predictions"], axis=1) <= 0).all()


def test_one_record_alone_gives_the_same(case, inferred):
    signature = case.load()["serving_default"]
    for row in (1, 2):
        found = signature(example_bytes=tf.constant(case.serialized()[row : row + 1]))
        assert_same(found, predictor.Predictions(*(x[row : row + 1] for x in inferred)))


def test_frames_already_extracted_give_the_same(case, inferred):
    width = 20 if case.role == "teacher" else helpers.STUDENT_K
    frames = np.zeros([NUM_VIDEOS, width, 12], np.float32)
    counts = []
    for row, (_, _, stored) in enumerate(case.videos):
        n = min(len(stored), helpers.MAX_FRAMES)
        taken = range(n)
        if case.role == "student" and n > width:
            taken = [i * n // width for i in range(width)]
        frames[row, : len(taken)] = records.dequantize(stored[list(taken)])
        counts.append(len(taken))
    frames[1, counts[1] :] = 77.0  # What stands behind a short video is not read.
    signature = case.load()["frames"]
    found = signature(
        frames=tf.constant(frames), num_frames=tf.constant(counts, tf.int32)
    )
    assert found.keys() == {"class_indexes", "predictions"}
    assert_same(found, inferred)


def test_the_labels_of_a_record_do_not_matter(case, inferred):
    stripped = [
        helpers.make_example(video_id, [], frames)
        for video_id, _, frames in case.videos
    ]
    found = case.load()["serving_default"](example_bytes=tf.constant(stripped))
    assert_same(found, inferred)


def test_it_contains_the_one_network_alone(case):
    prefix = f"{case.folder}/variables/variables"
    stored = helpers.read_variables(prefix).values()
    network = case.networks.network(case.role)
    shapes = sorted(v.shape for v in stored if v.size)
    assert shapes == sorted(tuple(v.shape) for v in network.trainable_variables)


def bad_records(case) -> dict[str, bytes]:
    """What is wrong → a record, the first of the case's videos in that way."""
    name, labels, frames = case.videos[0]
    good = case.serialized()[0]
    return {
        "feature rgb has a frame that is not 8 bytes wide.": helpers.make_example(
            name, labels, frames, sizes=(4, 8)
        ),
        "feature rgb has no frames.": b"",
        "is not an example": b"\xff\xff\xff",
        "is not an example ": good[:-9],
        # The next two ended the process of a server (found by fuzzing).
        " is not an example": record_helpers.endless_frame(),
        " is not an example ": record_helpers.endless_id(),
        "a feature is of another type": good.replace(
            b"\x0a\x0a\x0a\x08", b"\x1a\x0a\x0a\x08"
        ),
    }


def test_a_bad_record_says_why_and_leaves_the_others_alone(case, inferred):
    signature = case.load()["serving_default"]
    good, bad = case.serialized(), bad_records(case)
    mixed, rows = [], []
    for record in good:
        rows.append(len(mixed))
        mixed += [record, *bad.values()]
    found = signature(example_bytes=tf.constant(mixed))
    assert_same({k: v.numpy()[rows] for k, v in found.items()}, inferred)
    assert found["video_id"].numpy()[rows].tolist() == list(inferred.video_ids)
    errors = found["error"].numpy()
    assert not any(errors[rows])
    wrong = np.setdiff1d(np.arange(len(mixed)), rows)
    for row, reason in zip(wrong, [*bad] * len(good), strict=True):
        assert reason.strip().encode() in errors[row]
    assert (found["class_indexes"].numpy()[wrong] == -1).all()
    assert (found["predictions"].numpy()[wrong] == 0).all()
    assert not any(found["video_id"].numpy()[wrong])


def test_the_server_survives_mutated_records_of_a_request(case, inferred):
    """Of 200 mutations of a record each is answered, and the good rows stay."""
    signature = case.load()["serving_default"]
    good = case.serialized()
    mutated = list(mutated_records.mutations(good, 200, seed=3))
    found = signature(example_bytes=tf.constant([*good, *mutated]))
    assert_same({k: v.numpy()[: len(good)] for k, v in found.items()}, inferred)
    errors = found["error"].numpy()[len(good) :]
    scores = found["predictions"].numpy()[len(good) :]
    assert ((errors != b"") == (scores == 0).all(axis=1)).all()
    assert 20 < np.count_nonzero(errors != b"") <= 200


def test_a_request_costs_little_more_than_parsing(case):
    signature, request = case.load()["serving_default"], case.serialized()[:1]
    costs = []
    for _ in range(30):
        began = time.process_time()
        signature(example_bytes=tf.constant(request))
        costs.append(time.process_time() - began)
    # About 3 ms; it was 100 ms and more when each request prepared a dataset anew. The
    # bar against `frames` is in tools/benchmark.py --areas=requests.
    assert np.median(costs) < 0.03


def test_threads_get_the_answers_of_their_own_requests(case):
    signature, good = case.load()["serving_default"], case.serialized()

    def answer(number):
        found = signature(example_bytes=tf.constant([b"x", good[number % len(good)]]))
        return [bool(e) for e in found["error"].numpy()], found["video_id"].numpy()[1]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(80)))
    for number, (errors, video_id) in enumerate(answers):
        assert errors == [True, False]
        assert video_id.decode() == case.videos[number % len(good)][0]


def test_a_request_of_nothing_but_bad_records_is_answered(case):
    found = case.load()["serving_default"](example_bytes=tf.constant([b"x", b"y"]))
    assert all(error for error in found["error"].numpy())
    assert found["predictions"].shape == (2, TOP_K)


SCRIPT = """
import json, sys
import tensorflow as tf

folder, shard = sys.argv[1:]
model = tf.saved_model.load(folder)
records = [record.numpy() for record in tf.data.TFRecordDataset(shard)]
found = model.signatures["serving_default"](example_bytes=tf.constant(records))
print(json.dumps({
    "ids": [i.decode() for i in found["video_id"].numpy()],
    "classes": found["class_indexes"].numpy().tolist(),
    "scores": found["predictions"].numpy().tolist(),
    "package": [m for m in sys.modules if m.startswith("yt8m_distill")],
}))
"""


def test_another_process_needs_nothing_of_this_package(case, inferred, tmp_path):
    if case.role == "teacher":
        pytest.skip("the student's case shows it; a process costs some seconds")
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONPATH"
    }
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    shard = case.run.training.train_data_pattern.replace("*", "0")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, case.folder, shard],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["package"] == []
    assert found["ids"] == [i.decode() for i in inferred.video_ids]
    assert found["classes"] == inferred.classes.tolist()
    np.testing.assert_allclose(found["scores"], inferred.scores, rtol=2e-6)


class Tiny:
    """The quickest network to export, twice with other weights."""

    def __init__(self, folder):
        self.run = helpers.make_run("unused", "data", mode="baseline")
        self.network = helpers.build_network("student", self.run)
        self.folder = str(folder)

    def export(self, top_k: int = TOP_K):
        (view,) = modes.views_of(self.run, ["student"]).values()
        export.export(self.network, self.run.data, view, self.folder, top_k)
        loaded = tf.saved_model.load(self.folder).signatures["frames"]
        frames = tf.ones([1, helpers.STUDENT_K, 12])
        return loaded(frames=frames, num_frames=tf.constant([3]))["predictions"]


def test_a_saved_model_is_replaced(tmp_path):
    tiny = Tiny(tmp_path / "model")
    first = tiny.export()
    tiny.network.head.bias.assign(np.full([10], -9.0, np.float32))
    second = tiny.export()
    assert (second.numpy() < 0.01).all() and (first.numpy() > 0.01).all()
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("renames", [1, 2], ids=["before new", "after new"])
def test_an_interrupted_replacement_is_completed_at_the_next_start(
    tmp_path, monkeypatch, renames
):
    tiny = Tiny(tmp_path / "model")
    tiny.export()
    tiny.network.head.bias.assign(np.full([10], -9.0, np.float32))
    rename, calls = tf.io.gfile.rename, []

    def killed(*arguments):
        rename(*arguments)
        calls.append(arguments)
        if len(calls) == renames:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tf.io.gfile, "rename", killed)
        patch.setattr(files, "remove", lambda path: None)  # As when it is killed.
        tiny.export()
    assert len(os.listdir(tmp_path)) == 2
    export._finish_replacement(tiny.folder)
    assert os.listdir(tmp_path) == ["model"]
    loaded = tf.saved_model.load(tiny.folder).signatures["frames"]
    found = loaded(
        frames=tf.ones([1, helpers.STUDENT_K, 12]), num_frames=tf.constant([3])
    )
    assert (found["predictions"].numpy() < 0.01).all()  # The new model.
    tiny.export()
    assert os.listdir(tmp_path) == ["model"]


def test_a_replacement_whose_new_model_is_gone_is_undone(tmp_path):
    tiny = Tiny(tmp_path / "model")
    tiny.export()
    os.rename(tiny.folder, f"{tiny.folder}.old-7")
    export._finish_replacement(tiny.folder)
    assert os.listdir(tmp_path) == ["model"]
    assert tf.saved_model.contains_saved_model(tiny.folder)


def test_a_full_disk_leaves_the_old_saved_model_and_nothing_else(tmp_path):
    tiny = Tiny(tmp_path / "model")
    tiny.export()
    before = helpers.snapshot(tmp_path)
    size = (tmp_path / "model" / "saved_model.pb").stat().st_size
    with helpers.full_disk(size // 2), pytest.raises(ValueError) as error:
        tiny.export()
    assert str(error.value) == (
        f"--export_dir={tmp_path}/model cannot be written: File too large."
    )
    assert helpers.snapshot(tmp_path) == before


def test_k_is_cut_to_the_number_of_classes(tmp_path):
    assert Tiny(tmp_path / "deep" / "er" / "model").export(50).shape == (1, 10)


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("x")
    with pytest.raises(ValueError) as error:
        Tiny(folder).export()
    assert str(error.value) == (
        f"--export_dir={folder} exists and is not a SavedModel."
    )
    assert os.listdir(tmp_path) == ["thesis"]
    assert os.listdir(folder) == ["chapter.tex"]


def test_inference_has_the_policys_precision_in_every_replica(case, inferred):
    if case.role == "teacher":
        pytest.skip("as the student")
    strategy = helpers.cpus(2)
    previous = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        (found,) = predictor.Predictor(
            case.networks, case.role, strategy, TOP_K
        ).predict(
            inputs.evaluation_dataset(
                strategy,
                inputs.training_shards(case.run),
                modes.views_of(case.run, [case.role]),
                8,
            )
        )
    finally:
        keras.mixed_precision.set_global_policy(previous)
    error = np.abs(found.scores[:, 0] / inferred.scores[:, 0] - 1).max()
    # bfloat16 has 8 bits, float32 24; some roundings to 2^-9 follow each other.
    assert 2**-16 < error < 0.3
