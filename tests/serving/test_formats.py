"""Every network in every format: what is written gives the network's scores."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from tests import test_every_model as every_model
from tests import training_helpers as helpers
from yt8m_distill import registry, settings
from yt8m_distill.data import pipeline
from yt8m_distill.models import builder, lstm, lstm_model
from yt8m_distill.serving import converted, export, parity, saved_model, served

pytestmark = pytest.mark.once

TOP_K, K = 5, 3
VIEW = pipeline.ViewSpec("uniform", K)
PACKAGES = {
    "saved_model": [],
    "litert": ["ai_edge_litert"],
    "litert_int8": ["ai_edge_litert"],
    "onnx": ["tf2onnx", "onnxruntime"],
}
# What a phone's interpreter has without a delegate of TensorFlow's operations.
BUILT_IN = set(
    "ADD BATCH_MATMUL CAST CONCATENATION COS DIV EQUAL EXP FULLY_CONNECTED GATHER_ND "
    "GELU GREATER L2_NORMALIZATION LESS LOG LOGISTIC MAXIMUM MEAN MINIMUM MUL "
    "NEG PACK PAD REDUCE_MAX RELU RELU6 RESHAPE RSQRT SELECT_V2 SIN SOFTMAX SPLIT_V "
    "SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TOPK_V2 TRANSPOSE UNPACK".split()
)


def require(name: str) -> None:
    for package in PACKAGES[name]:
        pytest.importorskip(package, reason=f"{package} is of the extra edge")


@pytest.fixture(scope="module")
def data() -> settings.DataSettings:
    # So many classes that each network has a matrix of 1024 numbers or more: the
    # converter leaves smaller ones in float32.
    return dataclasses.replace(helpers.make_run("x", "y").data, num_classes=300)


# Two blocks of three frames; what a second layer adds is more of the same.
SMALLER = {
    "HierarchicalLSTM": {"layers": 1, "block_len": 2},
    "TransformerModel": {"layers": 1},
}


def small(model: str) -> str:
    arguments = every_model.ARGUMENTS[model] | SMALLER.get(model, {})
    return str(registry.Specification(model, arguments))


def served_by(network, data, view=VIEW) -> served.Served:
    return served.Served(network, data, view, TOP_K)


def make_network(text: str, data, seed: int = 3, frames: int = K):
    network = builder.build_network("student", registry.parse(text), data, frames)
    random = np.random.default_rng(seed)
    for variable in network.weights:
        values = random.normal(0, 0.5, variable.shape)
        variable.assign(np.abs(values) if "variance" in variable.name else values)
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name"),
    [
        *itertools.product(every_model.ARGUMENTS, ["litert", "onnx"]),
        # The same graph with matrices of 8 bits: of steps, of frames, of products of
        # frames, of mixtures.
        *itertools.product(
            ["HierarchicalLSTM", "NeXtVLAD", "TransformerModel", "MoeModel"],
            ["litert_int8"],
        ),
        # test_every_model.py has the SavedModels of the others.
        ("LogisticModel", "saved_model"),
    ],
)
def test_every_network_is_written_and_agrees(model, name, data, tmp_path):
    require(name)
    network = make_network(small(model), data)
    given = served_by(network, data)
    folder = tmp_path / "model"
    result = export.export(given, str(folder), name)
    videos = parity.generated(given)
    assert result.videos == K  # of 1, 2 and 3 frames
    # Within the bound, and of 8 bits where it should be.
    assert (result.difference > 1e-5) == (name == "litert_int8")
    # By hand, from what the description says: class by class, and in order.
    chosen = export.FORMATS[name]
    text = (folder / chosen.extra / served.DESCRIPTION).read_text("utf-8")
    described = json.loads(text)
    assert (folder / described["file"]).exists()
    assert (described["k"], described["num_classes"]) == (K, 300)
    classes, predictions = chosen.run(str(folder))(*videos[:2])
    view = {"frames": videos.frames, "num_frames": videos.num_frames}
    scores = tf.sigmoid(network(view).logits).numpy()
    own = np.take_along_axis(scores, classes, 1)
    np.testing.assert_allclose(predictions, own, atol=chosen.bound, rtol=0)
    assert (np.diff(predictions, axis=1) <= 0).all()
    if name.startswith("litert"):
        assert operations(folder) <= BUILT_IN


def operations(folder) -> set[str]:
    from ai_edge_litert import interpreter

    opened = interpreter.Interpreter(
        str(folder / converted.LITERT),
        experimental_op_resolver_type=(
            interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    return {operation["op_name"] for operation in opened._get_ops_details()}


def test_every_format_is_a_flags_value_and_has_its_packages_here():
    assert tuple(export.FORMATS) == settings.EXPORT_FORMATS == tuple(PACKAGES)


@pytest.mark.parametrize("text", [helpers.LSTM_STUDENT, "LstmModel(cells=3)"])
def test_steps_without_a_loop_give_the_bits_of_the_loop(text, data):
    network = make_network(text, data, frames=7)
    given = served_by(network, data, pipeline.ViewSpec("uniform", 7))
    videos = parity.generated(given)
    view = {"frames": videos.frames, "num_frames": np.int32([7, 5, 4, 3, 2, 1, 0])}
    with lstm.unrolled():
        unrolled = network(view).logits
    np.testing.assert_array_equal(unrolled, network(view).logits)


class Wrong(lstm_model.LstmModel):
    """Its graph in an export is not what it is otherwise."""

    error = 2e-5

    def encode(self, *arguments):
        encoding, states = super().encode(*arguments)
        return encoding + self.error * lstm.is_unrolled(), states


def test_a_model_that_differs_is_refused_and_the_old_one_kept(data, tmp_path):
    require("litert")
    network = Wrong(12, 300, max_frames=K, cells=4, layers=1)
    given = served_by(network, data)
    folder = str(tmp_path / "model")
    network.error = 0.0
    export.export(given, folder, "litert")
    before = helpers.snapshot(tmp_path)
    for error in (1e-2, float("nan")):
        network.error = error
        with pytest.raises(ValueError, match="--format=litert.* 1e-05"):
            export.export(given, folder, "litert")
        assert helpers.snapshot(tmp_path) == before


class Odd(Wrong):
    """Needs what no small machine has."""

    def encode(self, *arguments):
        encoding, states = super().encode(*arguments)
        return encoding + tf.math.betainc(0.5, 0.5, tf.sigmoid(encoding)), states


@pytest.mark.parametrize("name", ["litert", "onnx"])
def test_a_network_that_cannot_be_converted_is_named_with_the_operation(
    name, data, tmp_path
):
    require(name)
    network = Odd(12, 300, max_frames=K, cells=4, layers=1)
    with pytest.raises(ValueError, match=f"--format={name}: Odd .*Betainc") as caught:
        export.export(served_by(network, data), str(tmp_path / "model"), name)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_video_has_more_frames_than_the_caller_gives(data):
    given = served_by(make_network("FrameLevelLogisticModel", data), data)
    frames = np.random.default_rng(0).integers(0, 256, [1, K, 12], np.uint8)
    for function, values in (
        (converted.fixed_function(given, batch_size=1), frames),
        (saved_model.ServingModel(given).functions["frames"], np.float32(frames)),
    ):
        whole, more = (
            function(tf.constant(values), tf.constant([n]))["predictions"]
            for n in (K, K + 4)
        )
        np.testing.assert_array_equal(whole, more)


def test_video_level_vectors_are_read_as_float32(data, tmp_path):
    require("onnx")
    vectors = dataclasses.replace(data, frame_features=False)
    network = make_network("MoeModel", vectors, frames=1)
    given = served_by(network, vectors, pipeline.ViewSpec("all", data.max_frames))
    videos = parity.generated(given)
    assert videos.frames.shape == (1, 1, 12) and videos.frames.dtype == np.float32
    folder = str(tmp_path / "model")
    export.export(given, folder, "onnx")
    described = json.loads((tmp_path / "model" / served.DESCRIPTION).read_text())
    assert (described["k"], described["frames_dtype"]) == (1, "float32")


def test_an_export_is_not_checked_on_no_video(data):
    network = served.Served(make_network("LogisticModel", data), data, VIEW, 2)
    with pytest.raises(ValueError, match="--eval_data_pattern"):
        parity.compare(network, None, iter(()))


def test_gap_of_both_is_by_their_own_lists(data):
    """Two classes, two videos; the model swaps one video's classes."""
    two = dataclasses.replace(data, num_classes=2)
    network = make_network("LogisticModel", two)
    frames = np.full([2, K, 12], 9, np.uint8)
    labels = np.array([[1, 0], [1, 0]])
    scores = tf.sigmoid(
        network({"frames": frames, "num_frames": np.full([2], K, np.int32)}).logits
    ).numpy()
    best = int(scores[0].argmax())
    labels = np.eye(2)[[best, best]]

    def run(frames, num_frames):
        classes = np.array([[best, 1 - best], [1 - best, best]], np.int32)
        return classes, np.sort(scores)[:, ::-1]

    videos = parity.Videos(frames, np.full([2], K, np.int32), labels)
    result = parity.compare(served.Served(network, two, VIEW, 2), run, [videos])
    assert result.gap_of_network == 1.0
    # Of two equal best scores one hits, of the two others one: (1/2 + 2/4) / 2.
    assert result.gap == pytest.approx(0.5)
    assert result.difference == pytest.approx(abs(scores[0, 0] - scores[0, 1]))
