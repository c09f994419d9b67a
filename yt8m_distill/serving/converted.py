"""A network for LiteRT and ONNX: a fixed number of frames in, its top classes out.

Inputs: `frames` [N, k, D], uint8 as in the records (float32 of video-level records),
the view's frames at the front and anything behind them, and `num_frames` [N] int32.
Outputs: class indexes [N, top_k] int32 and scores [N, top_k] float32, best first. N is
1 in LiteRT, any number in ONNX. There is no loop: an LSTM has one step after the other.
"""

import contextlib
import importlib
import logging
import os
import re

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import base, lstm
from yt8m_distill.serving import parity, served

LITERT, ONNX = "model.tflite", "model.onnx"
_OPSET = 17  # Of ONNX.
# The operations that a converter or runtime says are missing.
_LACKING = (
    r"(?:(?:TF Select|Custom) ops: |No Op registered for )([\w, ]+?)(?: with|\n|$)"
)


def fixed_function(given: served.Served, batch_size: int | None):
    """The tf.function that is converted; see the module."""
    shape = [batch_size, given.num_frames, given.network.feature_size]
    dtype = tf.uint8 if given.data.frame_features else tf.float32

    def top(frames, num_frames):
        view = served.view_of(frames, num_frames)
        with lstm.unrolled():
            logits = given.network(view, training=False).logits
        scores, classes = tf.math.top_k(tf.sigmoid(logits), given.top_k)
        return {"class_indexes": classes, "predictions": scores}

    signature = [
        tf.TensorSpec(shape, dtype, structures.FRAMES),
        tf.TensorSpec([batch_size], tf.int32, structures.NUM_FRAMES),
    ]
    return tf.function(top, input_signature=signature, autograph=False)


def write_litert(given: served.Served, folder: str, int8: bool = False) -> None:
    """Writes LITERT, of built-in operations only; with `int8`, weights of 8 bits.

    Raises:
        ValueError: if the network needs others, or the converter fails.
    """
    name = "litert_int8" if int8 else "litert"
    _load("ai_edge_litert.interpreter", name)  # Reads it afterwards.
    function = fixed_function(given, batch_size=1)
    with _converting(name, given.network, "absl"):
        concrete = function.get_concrete_function()
        # Without the object that holds the variables they become constants; TensorFlow
        # (2.21) warns of that, and leaves them out of the file otherwise.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        if int8:  # Activations stay float32.
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content = converter.convert()
    _write(folder, LITERT, content)


def run_litert(folder: str) -> parity.Run:
    """A LiteRT model, one video after the other."""
    litert = _load("ai_edge_litert.interpreter", "litert")
    interpreter = litert.Interpreter(model_content=_read(folder, LITERT))
    interpreter.allocate_tensors()
    inputs = {i["name"]: i["index"] for i in interpreter.get_input_details()}
    outputs = [output["index"] for output in interpreter.get_output_details()]

    def answer(frames, num_frames):
        found = []
        for row in range(len(frames)):
            one = slice(row, row + 1)
            interpreter.set_tensor(inputs[structures.FRAMES], frames[one])
            interpreter.set_tensor(inputs[structures.NUM_FRAMES], num_frames[one])
            interpreter.invoke()
            found.append([interpreter.get_tensor(index) for index in outputs])
        classes, scores = map(np.concatenate, zip(*found, strict=True))
        return classes, scores

    return answer


def write_onnx(given: served.Served, folder: str) -> None:
    """Writes ONNX.

    Raises:
        ValueError: if the network cannot be converted.
    """
    tf2onnx = _load("tf2onnx", "onnx")
    runtime = _load("onnxruntime", "onnx")
    function = fixed_function(given, batch_size=None)
    with _converting("onnx", given.network, "tf2onnx"):
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=_OPSET
        )
        content = model.SerializeToString()
        runtime.InferenceSession(content)  # Knows which operations it lacks.
    _write(folder, ONNX, content)


def run_onnx(folder: str) -> parity.Run:
    """An ONNX model, all videos at once."""
    runtime = _load("onnxruntime", "onnx")
    session = runtime.InferenceSession(_read(folder, ONNX))
    wanted = ["class_indexes", "predictions"]

    def answer(frames, num_frames):
        inputs = {structures.FRAMES: frames, structures.NUM_FRAMES: num_frames}
        return tuple(session.run(wanted, inputs))

    return answer


def _write(folder: str, name: str, content: bytes) -> None:
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(os.path.join(folder, name), "wb") as file:
        file.write(content)


def _read(folder: str, name: str) -> bytes:
    with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
        return file.read()


def _load(module: str, name: str):
    """A module of the extra `edge`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"--format={name}: {error}; pip install 'yt8m-distill[edge]' has it."
        ) from error


@contextlib.contextmanager
def _converting(name: str, network: base.VideoClassifier, logger: str):
    """Turns what a converter raises, which is of any type, into one line.

    Its own log, of this name, is silent below errors.
    """
    where = f"--format={name}: {type(network).__name__}"
    policy = keras.mixed_precision.global_policy().name
    if policy != "float32":
        raise ValueError(
            f"{where} has --dtype_policy={policy}, whose products are not converted; "
            "--format=saved_model has them."
        )
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        lacking = re.search(_LACKING, str(error))
        reason = " ".join(str(error).split())[:200]
        reason = f"{lacking[1]} is not built in" if lacking else reason
        raise ValueError(f"{where} cannot be converted: {reason}.") from error
    finally:
        log.setLevel(level)
