"""What TensorFlow Serving gets: warm-up, batching, and the requests of the page."""

import base64
import io
import json
import pathlib
import re
import sys
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.data import pipeline
from yt8m_distill.models import builder
from yt8m_distill.serving import export, served, tf_serving

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOP_K = 3


def api(module: str):
    name = f"tensorflow_serving.{module}"
    return pytest.importorskip(name, reason="needs the extra serving")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A student for k = 2 and 3, with loops."""
    run = helpers.make_run("unused", "data")
    spec = builder.parse("student", "LstmModel(cells=3, layers=1)")
    network = builder.build_network("student", spec, run.data, 3)
    path = tmp_path_factory.mktemp("models") / "1"
    view = pipeline.ViewSpec("uniform", 3)
    given = served.Served(network, run.data, view, TOP_K, (2, 3))
    export.export(given, str(path))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return tf.saved_model.load(str(folder))


@pytest.fixture(scope="module")
def records() -> list[bytes]:
    return [helpers.make_example(*video) for video in helpers.make_videos(3, seed=4)]


def predict(model, request) -> dict[str, np.ndarray]:
    """What the server does with a PredictRequest."""
    signature = model.signatures[request.model_spec.signature_name]
    specs = signature.structured_input_signature[1]
    assert set(request.inputs) == set(specs)
    inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
    assert all(inputs[k].dtype == spec.dtype for k, spec in specs.items())
    return {k: v.numpy() for k, v in signature(**inputs).items()}


def test_warm_up_takes_every_way_so_that_nothing_is_traced_afterwards(
    folder, model, records
):
    logs = api("apis.prediction_log_pb2")
    path = str(folder / "assets.extra" / tf_serving.WARMUP)
    seen = []
    for record in tf.data.TFRecordDataset(path):
        request = logs.PredictionLog.FromString(record.numpy()).predict_log.request
        answer = predict(model, request)
        assert not any(answer.get("error", []))
        first = next(iter(request.inputs.values()))
        rows = first.tensor_shape.dim[0].size
        seen.append((request.model_spec.signature_name, rows))
    # One video, and the fewest of 3 frames each that are 256 frames.
    expected = {(n, rows) for n in model.signatures for rows in (1, 256 // 3 + 1)}
    assert set(seen) == expected
    assert seen.count(("any_k", 1)) == 1 + len((2, 3))

    def functions() -> set[str]:
        from tensorflow.python.eager import context

        return set(context.context().list_function_names())

    before = functions()
    for rows in (1, 2, 100):
        batch = tf.constant((records * rows)[:rows])
        model.signatures["serving_default"](example_bytes=batch)
        for k in (1, 2, 3):
            numbers = tf.fill([rows], k)
            model.signatures["any_k"](example_bytes=batch, student_k=numbers)
            frames = {"frames": tf.zeros([rows, k, 12]), "num_frames": numbers}
            model.signatures["frames"](**frames)
    assert functions() == before


def test_the_servers_loader_finds_the_weights(folder, model, records):
    """It runs the graph's own operation that restores, as TensorFlow 1 does."""
    expected = model.signatures["serving_default"](example_bytes=tf.constant(records))
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = loaded.signature_def["serving_default"]
        outputs = {name: info.name for name, info in signature.outputs.items()}
        inputs = {signature.inputs["example_bytes"].name: records}
        found = session.run(outputs, inputs)
    assert set(found) == set(expected)
    for name in ("video_id", "class_indexes", "error"):
        np.testing.assert_array_equal(found[name], expected[name])
    # Two runtimes: products may be summed in another order.
    np.testing.assert_allclose(found["predictions"], expected["predictions"], rtol=1e-5)


def test_the_batching_file_has_fields_of_the_servers_message(folder):
    """BatchingParameters, whose definition no package has."""
    text = (folder / "assets.extra" / tf_serving.BATCHING).read_text("utf-8")
    wrapped = re.findall(r"^(\w+) \{ value: \d+ \}$", text, re.MULTILINE)
    assert set(wrapped) == {
        *("max_batch_size", "batch_timeout_micros", "max_enqueued_batches")
    }
    plain = re.findall(r"^(\w+): (\w+)$", text, re.MULTILINE)
    assert plain == [("pad_variable_length_inputs", "true")]


def test_without_the_package_the_log_says_what_is_missing(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with caplog.at_level("INFO"):
        tf_serving.write(None, [], str(tmp_path))
    assert "[serving]" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == [tf_serving.BATCHING]


@pytest.fixture
def examples() -> list[str]:
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    section = page.split("## TensorFlow Serving")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_pages_rest_request_fits_the_signature(
    model, records, examples, monkeypatch, capsys
):
    def answer(url, body):
        assert url.endswith(":predict")
        request = json.loads(body)
        signature = model.signatures[request["signature_name"]]
        values = [
            base64.b64decode(x["b64"]) for x in request["inputs"].pop("example_bytes")
        ]
        assert not request["inputs"]
        found = signature(example_bytes=tf.constant(values))
        outputs = {k: v.numpy().tolist() for k, v in found.items()}
        text = json.dumps({"outputs": outputs}, default=bytes.decode)
        return io.StringIO(text)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    exec(compile(examples[0], "serving.md", "exec"), {"records": [*records, b"x"]})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["v000", "v001", "v002"]
    assert "not an example" in lines[3]


def test_the_pages_grpc_request_fits_the_signature(
    model, records, examples, monkeypatch
):
    grpc_api = api("apis.prediction_service_pb2_grpc")
    predict_pb2 = api("apis.predict_pb2")

    class Stub:
        def __init__(self, channel):
            pass

        def Predict(self, request, timeout):
            answer = predict_pb2.PredictResponse()
            for name, value in predict(model, request).items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return answer

    monkeypatch.setattr(grpc_api, "PredictionServiceStub", Stub)
    names = {"records": records}
    exec(compile(examples[1], "serving.md", "exec"), names)
    assert names["scores"].shape == (3, TOP_K) and (names["scores"] > 0).all()
