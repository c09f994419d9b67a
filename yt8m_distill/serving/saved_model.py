"""A network as a SavedModel: from serialized records to its top classes."""

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.data import features, pipeline, records
from yt8m_distill.models import base
from yt8m_distill.serving import parity

FILE = "saved_model.pb"
EXTRA = "assets.extra"  # Files that TensorFlow leaves alone.


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

    `steps()` gives the scale and offset that dequantize frames.

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
        steps = features.steps(data)
        self.steps = tf.function(
            lambda: [tf.constant(step, tf.float32) for step in steps],
            input_signature=[],
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


def write(
    network: base.VideoClassifier,
    data: settings.DataSettings,
    view: pipeline.ViewSpec,
    top_k: int,
    folder: str,
) -> None:
    """Writes the SavedModel of these, see ServingModel, into a new folder."""
    model = ServingModel(network, data, view, top_k)
    signatures = {
        "serving_default": model.serve_records.get_concrete_function(),
        "frames": model.serve_frames.get_concrete_function(),
    }
    tf.saved_model.save(model, folder, signatures=signatures)


def run(folder: str) -> parity.Run:
    """The signature `frames` of a SavedModel, for frames as they are stored."""
    # Written by this process just now.
    model = tf.saved_model.load(folder)  # noqa: TID251
    signature = model.signatures["frames"]

    def answer(frames, num_frames):
        dequantized = features.dequantize(frames, num_frames, *model.steps())
        found = signature(frames=dequantized, num_frames=num_frames)
        return found["class_indexes"].numpy(), found["predictions"].numpy()

    return answer
