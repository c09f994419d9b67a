"""The SavedModel gives the numbers of inference, by itself, and nothing else."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests import mutated_records, record_helpers
from tests import training_helpers as helpers
from yt8m_distill import files
from yt8m_distill.data import records
from yt8m_distill.models import lstm, replicas
from yt8m_distill.serving import export, predictor, saved_model, served
from yt8m_distill.training import modes

TOP_K = 4
NUM_VIDEOS = 7
SAVED_MODEL = export.FORMATS["saved_model"]


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

    @functools.cached_property
    def loaded(self):
        return tf.saved_model.load(self.folder)

    def load(self):
        return self.loaded.signatures

    @functools.cached_property
    def inferred(self) -> predictor.Predictions:
        """The predictions of inference for the videos, in batches of 4."""
        strategy = helpers.cpus(1)
        runner = replicas.Runner(self.networks, self.role, strategy)
        predict = predictor.Predictor(runner, TOP_K).predict
        found = predict(helpers.evaluation_dataset(self.run, strategy, [self.role], 4))
        columns = zip(*(batch[:3] for batch in found), strict=True)
        return predictor.Predictions(*map(np.concatenate, columns))


@functools.cache
def make_case(folder, role: str) -> Case:
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
    made = Case(run, role, networks, videos, str(folder / role))
    # The student as one that was trained for k = 2 and 6.
    budgets = (2, helpers.STUDENT_K) if role == "student" else ()
    network = networks.network(role)
    given = served.Served(network, run.data, made.view, TOP_K, budgets)
    export.export(given, made.folder)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def student(folder) -> Case:
    return make_case(folder, "student")


@pytest.fixture(scope="module", params=["student", "teacher"])
def case(request, folder) -> Case:
    return make_case(folder, request.param)


def assert_same(found: dict, inferred: predictor.Predictions) -> None:
    assert found["class_indexes"].dtype == np.int32
    assert found["predictions"].dtype == np.float32
    np.testing.assert_array_equal(found["class_indexes"], inferred.classes)
    # float32 products of other batches; six digits reach a CSV.
    np.testing.assert_allclose(found["predictions"], inferred.scores, rtol=2e-6)


def test_serialized_records_give_the_numbers_of_inference(case):
    signature = case.load()["serving_default"]
    serialized = case.serialized()
    found = signature(example_bytes=tf.constant(serialized))
    assert found.keys() == {"video_id", "class_indexes", "predictions", "error"}
    np.testing.assert_array_equal(found["video_id"], case.inferred.video_ids)
    assert found["predictions"].shape == (NUM_VIDEOS, TOP_K)
    assert_same(found, case.inferred)
    assert (np.diff(found["predictions"], axis=1) <= 0).all()
    for row in (1, 2):  # Alone, of few frames and of many.
        alone = signature(example_bytes=tf.constant(serialized[row : row + 1]))
        part = (x[row : row + 1] for x in case.inferred[:3])
        assert_same(alone, predictor.Predictions(*part))
    # The labels do not matter.
    bare = [helpers.make_example(name, [], frames) for name, _, frames in case.videos]
    assert_same(signature(example_bytes=tf.constant(bare)), case.inferred)


def test_kernels_with_padded_columns_give_the_same(student, monkeypatch):
    """As with 256 cells and more: the number of frames decides whether they are."""
    monkeypatch.setattr(lstm, "_ALIASING", 1)
    monkeypatch.setattr(lstm, "FEW_FRAMES", 20)  # Between one video and all.
    network = student.networks.network("student")
    given = served.Served(network, student.run.data, student.view, TOP_K)
    signature = saved_model.ServingModel(given).functions["serving_default"]
    assert_same(signature(tf.constant(student.serialized())), student.inferred)
    alone = signature(tf.constant(student.serialized()[1:2]))
    part = (x[1:2] for x in student.inferred[:3])
    assert_same(alone, predictor.Predictions(*part))


def test_frames_already_extracted_give_the_same(case):
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
    frames[1, counts[1] :] = 77.0  # Data after a short video is not read.
    signature = case.load()["frames"]
    found = signature(
        frames=tf.constant(frames), num_frames=tf.constant(counts, tf.int32)
    )
    assert found.keys() == {"class_indexes", "predictions"}
    assert_same(found, case.inferred)


def test_each_record_is_looked_at_with_as_many_frames_as_it_asks_for(student):
    signature = student.load()["any_k"]
    serialized = student.serialized()
    network = student.networks.network("student")

    def expected(k):
        view = student.view._replace(k=k)
        given = tf.constant(serialized), student.run.data, view
        _, made = record_helpers.read_view(*given)
        scores = tf.sigmoid(network(made).logits)
        return [x.numpy() for x in tf.math.top_k(scores, TOP_K)]

    same = [[k] * NUM_VIDEOS for k in range(1, helpers.STUDENT_K + 1)]
    for numbers in (*same, [4]):  # One number is that of all.
        found = signature(
            example_bytes=tf.constant(serialized), student_k=tf.constant(numbers)
        )
        scores, classes = expected(numbers[0])
        np.testing.assert_allclose(found["predictions"], scores, rtol=2e-6)
        np.testing.assert_array_equal(found["class_indexes"], classes)
    numbers = [1, 6, 2, 4, 4, 3, 5]
    found = signature(
        example_bytes=tf.constant(serialized), student_k=tf.constant(numbers)
    )
    scores = [expected(k)[0][row] for row, k in enumerate(numbers)]
    np.testing.assert_allclose(found["predictions"], scores, rtol=2e-6)


def test_a_number_of_frames_that_the_student_cannot_read_is_that_records_error(student):
    found = student.load()["any_k"](
        example_bytes=tf.constant([student.serialized()[0]] * 3 + [b"x"]),
        student_k=tf.constant([0, 7, 6, 7]),
    )
    errors = [error.decode() for error in found["error"].numpy()]
    assert "student_k=0 " in errors[0] and "student_k=7 " in errors[1]
    assert errors[2] == "" and "student_k" not in errors[3]
    assert found["predictions"].numpy().any(axis=1).tolist() == [0, 0, 1, 0]


def test_fewer_frames_than_k_and_more_go_through_the_signature_frames(student):
    signature = student.load()["frames"]
    network = student.networks.network("student")
    random = np.random.default_rng(0)
    # At a budget, below one, above all, and with so many videos that loops are faster.
    for rows, length in ((2, 2), (2, 3), (1, 9), (60, 6), (0, 6)):
        frames = random.normal(size=[rows, length, 12]).astype(np.float32)
        view = {"frames": frames, "num_frames": np.full([rows], length, np.int32)}
        scores = tf.math.top_k(tf.sigmoid(network(view).logits), TOP_K)[0]
        for numbers in (view["num_frames"], np.int32([length])):  # Or one for all.
            found = signature(
                frames=tf.constant(frames), num_frames=tf.constant(numbers)
            )
            np.testing.assert_allclose(found["predictions"], scores, rtol=2e-6)


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
        "a frame of feature rgb is 4 bytes wide, not 8": helpers.make_example(
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


def test_a_bad_record_has_its_reason_and_does_not_affect_the_others(student):
    signature = student.load()["serving_default"]
    good, bad = student.serialized(), bad_records(student)
    mixed, rows = [], []
    for record in good:
        rows.append(len(mixed))
        mixed += [record, *bad.values()]
    found = signature(example_bytes=tf.constant(mixed))
    assert_same({k: v.numpy()[rows] for k, v in found.items()}, student.inferred)
    assert found["video_id"].numpy()[rows].tolist() == list(student.inferred.video_ids)
    errors = found["error"].numpy()
    assert not any(errors[rows])
    wrong = np.setdiff1d(np.arange(len(mixed)), rows)
    for row, reason in zip(wrong, [*bad] * len(good), strict=True):
        assert reason.strip().encode() in errors[row]
    assert (found["class_indexes"].numpy()[wrong] == -1).all()
    assert (found["predictions"].numpy()[wrong] == 0).all()
    assert not any(found["video_id"].numpy()[wrong])
    found = signature(example_bytes=tf.constant([b"x", b"y"]))  # No good one.
    assert all(found["error"].numpy()) and found["predictions"].shape == (2, TOP_K)


def test_the_server_survives_mutated_records_of_a_request(student):
    """Of 200 mutations of a record each is answered, and the good rows stay."""
    signature = student.load()["serving_default"]
    good = student.serialized()
    mutated = list(mutated_records.mutations(good, 200, seed=3))
    found = signature(example_bytes=tf.constant([*good, *mutated]))
    assert_same({k: v.numpy()[: len(good)] for k, v in found.items()}, student.inferred)
    errors = found["error"].numpy()[len(good) :]
    scores = found["predictions"].numpy()[len(good) :]
    assert ((errors != b"") == (scores == 0).all(axis=1)).all()
    assert 20 < np.count_nonzero(errors != b"") <= 200


def test_threads_get_the_answers_of_their_own_requests(student):
    signature, good = student.load()["serving_default"], student.serialized()

    def answer(number):
        found = signature(example_bytes=tf.constant([b"x", good[number % len(good)]]))
        return [bool(e) for e in found["error"].numpy()], found["video_id"].numpy()[1]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(80)))
    for number, (errors, video_id) in enumerate(answers):
        assert errors == [True, False]
        assert video_id.decode() == student.videos[number % len(good)][0]


def test_a_program_that_runs_it_does_not_need_this_package(case):
    """All operations and objects are TensorFlow's own, and none calls Python."""
    stored = saved_model_pb2.SavedModel()
    stored.ParseFromString(pathlib.Path(case.folder, SAVED_MODEL.file).read_bytes())
    (meta,) = stored.meta_graphs
    library = meta.graph_def.library.function
    nodes = itertools.chain(meta.graph_def.node, *(f.node_def for f in library))
    operations = {n.op for n in nodes} - {f.signature.name for f in library}
    assert "TopKV2" in operations
    assert all(hasattr(tf.raw_ops, name) for name in operations)
    assert not [name for name in operations if "PyFunc" in name]
    objects = {node.user_object.identifier for node in meta.object_graph_def.nodes}
    wrappers = {"trackable_dict_wrapper", "trackable_list_wrapper"}
    assert objects <= {"", "_generic_user_object", "signature_map", *wrappers}


def export_tiny(folder, top_k: int = TOP_K) -> None:
    """Exports a quick network."""
    run = helpers.make_run("unused", "data", mode="baseline")
    (view,) = modes.views_of(run, ["student"]).values()
    network = helpers.build_network("student", run)
    export.export(served.Served(network, run.data, view, top_k), str(folder))


@pytest.fixture
def write_text(monkeypatch):
    """Exports of a given text: how a model is replaced does not depend on it."""

    def write_text(folder, text: str) -> None:
        def write(given, folder):
            tf.io.gfile.makedirs(folder)
            with open(f"{folder}/saved_model.pb", "w") as file:
                file.write(text)

        def run(folder):
            return lambda frames, num_frames: 2 * [np.zeros([len(frames), TOP_K], int)]

        written = SAVED_MODEL._replace(write=write, run=run, bound=np.inf)
        monkeypatch.setitem(export.FORMATS, "saved_model", written)
        export_tiny(folder)

    return write_text


@pytest.mark.parametrize("killed", [False, True], ids=["signal", "kill"])
@pytest.mark.parametrize("renames", [1, 2], ids=["before new", "after new"])
def test_an_interrupted_replacement_leaves_one_whole_model(
    tmp_path, monkeypatch, write_text, renames, killed
):
    """At once after a signal; after a kill at the next start."""
    model, rename, calls = tmp_path / "model", tf.io.gfile.rename, []
    write_text(model, "old")

    def stopped(*arguments, **options):
        if killed and len(calls) == renames:  # Nothing comes after that.
            raise KeyboardInterrupt
        rename(*arguments, **options)
        # Of a folder; that of a file says what it overwrites.
        calls.extend([arguments] * (not options))
        if len(calls) == renames:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tf.io.gfile, "rename", stopped)
        if killed:
            patch.setattr(files, "remove", lambda path: None)
        write_text(model, "new")
    if killed:
        assert len(os.listdir(tmp_path)) == 2
        export._finish_replacement(str(model))
    assert os.listdir(tmp_path) == ["model"]
    text = (model / "saved_model.pb").read_text()
    assert text == ("new" if killed or renames == 2 else "old")
    write_text(model, "newer")
    assert (model / "saved_model.pb").read_text() == "newer"
    assert os.listdir(tmp_path) == ["model"]


def test_a_replacement_whose_new_model_is_gone_is_undone(tmp_path, write_text):
    write_text(tmp_path / "model", "old")
    os.rename(tmp_path / "model", tmp_path / "model.old-7")
    export._finish_replacement(str(tmp_path / "model"))
    assert os.listdir(tmp_path) == ["model"]


def test_a_full_disk_leaves_the_old_saved_model_and_no_other_file(tmp_path, write_text):
    folder = tmp_path / "model"
    write_text(folder, "old")
    before = helpers.snapshot(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(export.FORMATS, "saved_model", SAVED_MODEL)
        with helpers.full_disk(10_000), pytest.raises(ValueError) as error:
            export_tiny(folder)
    assert str(error.value) == (
        f"--export_dir={tmp_path}/model cannot be written: File too large."
    )
    assert helpers.snapshot(tmp_path) == before


def test_k_is_cut_to_the_number_of_classes(tmp_path):
    folder = tmp_path / "deep" / "er" / "model"
    export_tiny(folder, 50)
    loaded = tf.saved_model.load(str(folder))
    shapes = loaded.signatures["frames"].structured_outputs
    assert shapes["predictions"].shape[1] == helpers.NUM_CLASSES


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match=f"--export_dir={folder} .*--format="):
        export_tiny(folder)
    assert os.listdir(tmp_path) == ["thesis"]
    assert os.listdir(folder) == ["chapter.tex"]


def test_inference_has_the_policys_precision_in_every_replica(student, use_policy):
    exact, strategy = student.inferred.scores, helpers.cpus(2)
    use_policy("mixed_bfloat16")
    runner = replicas.Runner(student.networks, student.role, strategy)
    predict = predictor.Predictor(runner, TOP_K)
    dataset = helpers.evaluation_dataset(student.run, strategy, [student.role], 8)
    (found,) = predict.predict(dataset)
    error = np.abs(found.scores[:, 0] / exact[:, 0] - 1).max()
    # bfloat16 has 8 bits, float32 24; some roundings to 2^-9 follow each other.
    assert 2**-16 < error < 0.3
