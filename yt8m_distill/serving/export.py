"""A network as a SavedModel: from serialized records to its top classes."""

import logging
import os
import uuid

import tensorflow as tf

from yt8m_distill import files, settings, structures
from yt8m_distill.data import pipeline, records
from yt8m_distill.models import base

_LOG = logging.getLogger(__name__)

_MODEL_FILE = "saved_model.pb"


class ServingModel(tf.Module):
    """The graph that is exported.

    Signatures:
        serving_default: `example_bytes` string [N], serialized records of the
            kind it was trained on → `video_id` string [N], `class_indexes` int32
            [N, k], `predictions` float32 [N, k], best first, and `error` string [N].
            It picks the network's frames by itself; labels in the records are
            ignored. A record that cannot be read has its reason in `error`, which
            is empty otherwise, class indexes -1, predictions 0 and no id; the other
            records of the request are not touched by it.
        frames: `frames` float32 [N, T, D], dequantised, and `num_frames` int32
            [N] → `class_indexes`, `predictions`. All T frames are taken, so a
            student is given the k it is to look at.

    Args:
        network: with its variables.
        data: what the records hold.
        view: which frames the network reads.
        top_k: predictions a video, cut to the number of classes.
    """

    def __init__(
        self,
        network: base.VideoClassifier,
        data: settings.DataSettings,
        view: pipeline.ViewSpec,
        top_k: int = 20,
    ):
        super().__init__()
        self.network = network
        self._data = data
        self._view = view
        self._top_k = min(top_k, data.num_classes)
        size = data.feature_size
        self.serve_records = tf.function(
            self._serve_records,
            input_signature=[tf.TensorSpec([None], tf.string, name="example_bytes")],
        )
        self.serve_frames = tf.function(
            self._serve_frames,
            input_signature=[
                tf.TensorSpec([None, None, size], tf.float32, name="frames"),
                tf.TensorSpec([None], tf.int32, name="num_frames"),
            ],
        )

    def _top(self, view: structures.View) -> dict[str, tf.Tensor]:
        logits = self.network(view, training=False).logits
        scores, classes = tf.math.top_k(tf.sigmoid(logits), self._top_k)
        return {"class_indexes": classes, "predictions": scores}

    def _serve_records(self, example_bytes):
        faults = records.find_faults(example_bytes, self._data)
        good = faults == ""
        readable = tf.where(good, example_bytes, "")
        ids, view = pipeline.read_view(
            readable, self._data, self._view, good, is_sound=True
        )
        top = self._top(view)
        good = good[:, tf.newaxis]
        return {
            "video_id": ids,
            "class_indexes": tf.where(good, top["class_indexes"], -1),
            "predictions": tf.where(good, top["predictions"], 0.0),
            "error": faults,
        }

    def _serve_frames(self, frames, num_frames):
        view = {structures.FRAMES: frames, structures.NUM_FRAMES: num_frames}
        return self._top(view)


def export(
    network: base.VideoClassifier,
    data: settings.DataSettings,
    view: pipeline.ViewSpec,
    folder: str,
    top_k: int = 20,
) -> None:
    """Writes a SavedModel, which appears under its name only once it is whole.

    Args:
        network, data, view, top_k: see ServingModel.
        folder: of the SavedModel; must not exist, or be one.

    Raises:
        ValueError: if something else stands there, or the file system refuses; an
            older SavedModel is as it was then.
    """
    folder = folder.rstrip("/")
    what = f"--export_dir={folder}"
    with files.one_line_errors(what):
        _finish_replacement(folder)
        is_model = tf.io.gfile.exists(os.path.join(folder, _MODEL_FILE))
        if tf.io.gfile.exists(folder) and not is_model:
            raise ValueError(f"{what} exists and is not a SavedModel.")
    model = ServingModel(network, data, view, top_k)
    signatures = {
        "serving_default": model.serve_records.get_concrete_function(),
        "frames": model.serve_frames.get_concrete_function(),
    }
    name = uuid.uuid4().int
    temporary, old = f"{folder}.tmp-{name}", f"{folder}.old-{name}"
    with files.one_line_errors(what), files.removed_after_errors(temporary):
        tf.saved_model.save(model, temporary, signatures=signatures)
        if is_model:
            tf.io.gfile.rename(folder, old)
        tf.io.gfile.rename(temporary, folder)
    files.remove(old)


def _finish_replacement(folder: str) -> None:
    """Completes or undoes a replacement that a killed process left half done.

    Its old SavedModel has the number of the new one, which is whole: it was written
    before the old one was moved.
    """
    parent, name = os.path.split(folder)
    for other in files.names_in(parent or "."):
        number = other.removeprefix(f"{name}.old-")
        if number == other or not number.isdecimal():
            continue
        old, new = os.path.join(parent, other), f"{folder}.tmp-{number}"
        if not tf.io.gfile.exists(folder):
            tf.io.gfile.rename(new if tf.io.gfile.exists(new) else old, folder)
            _LOG.warning("%s is the model of an export that was interrupted.", folder)
        files.remove(new)
        files.remove(old)
