"""What TensorFlow Serving finds in a SavedModel's folder: warm-up and batching.

    assets.extra/tf_serving_warmup_requests     answered before the model takes requests
    assets.extra/batching_parameters.txt        for --batching_parameters_file

The first needs the package tensorflow-serving-api, the extra `serving`.
"""

import logging
import os

import numpy as np
import tensorflow as tf

from yt8m_distill import files, settings
from yt8m_distill.data import records
from yt8m_distill.models import lstm
from yt8m_distill.serving import served

_LOG = logging.getLogger(__name__)

WARMUP, BATCHING = "tf_serving_warmup_requests", "batching_parameters.txt"
# Frames of unequal number, of several requests, are padded: `num_frames` has theirs.
_BATCHING = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 100 }
pad_variable_length_inputs: true
"""


def write(given: served.Served, signatures, folder: str) -> None:
    """Writes both files; `signatures` are the names of the SavedModel's."""
    files.write_text(os.path.join(folder, BATCHING), _BATCHING)
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        _LOG.info(
            "No warm-up requests for TensorFlow Serving: pip install "
            "'yt8m-distill[serving]' has what writes them."
        )
        return
    with tf.io.TFRecordWriter(os.path.join(folder, WARMUP)) as writer:
        for name, inputs in requests(given, signatures):
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.signature_name = name
            for key, value in inputs.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


def requests(given: served.Served, signatures):
    """Pairs of a signature's name and inputs: each way through the graph is taken.

    One video, and so many that an LSTM has its loop.
    """
    k = given.num_frames
    record = _record(given.data, k)
    for rows in (1, lstm.FEW_FRAMES // k + 1):
        frames = np.zeros([rows, k, given.network.feature_size], np.float32)
        inputs = {"example_bytes": [record] * rows}
        numbers = np.full([rows], k, np.int32)
        every = {
            "serving_default": inputs,
            "frames": {"frames": frames, "num_frames": numbers},
            "any_k": {**inputs, "student_k": numbers},
        }
        for name in signatures:
            yield name, every[name]
    for budget in given.budgets:
        yield "any_k", {"example_bytes": [record], "student_k": np.int32([budget])}


def _record(data: settings.DataSettings, num_frames: int) -> bytes:
    """A record of zeros."""
    if not data.frame_features:
        example = tf.train.Example()
        for name, size in zip(data.names, data.sizes, strict=True):
            example.features.feature[name].float_list.value.extend([0.0] * size)
        return example.SerializeToString()
    example = tf.train.SequenceExample()
    for name, size, limits in zip(data.names, data.sizes, data.ranges, strict=True):
        zeros = np.zeros([num_frames, size], np.uint8)
        records.add_frames(example, name, zeros, limits)
    return example.SerializeToString()
