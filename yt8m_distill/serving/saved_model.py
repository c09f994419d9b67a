"""A network as a SavedModel: from serialized records to its top classes."""

import functools
import os

import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.data import features, parsing, pipeline
from yt8m_distill.models import early_exit, lstm
from yt8m_distill.serving import parity, segments, served, tf_serving

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
        any_k (of a student for several k): `example_bytes` and `student_k` int32 [N],
            or [1] for all, how many frames of each record are looked at → as
            `serving_default`.
        frames: `frames` float32 [N, T, D], dequantised, and `num_frames` int32
            [N], or [1] for all → `class_indexes`, `predictions`. All T frames are
            taken, so a student is given the k it is to look at.

    Of a SegmentNetwork, class indexes and predictions are [N, W, k], and
    `segment_starts` int32 [N, W] is the first frame of each segment, or -1: the video
    does not have it, and its predictions are 0. `frames` takes whole videos.

    With early exit, `num_frames_used` int32 [N] of both says how many frames were read
    of each video, and `frames` takes all frames of a video, in the order of time.

    `steps()` gives the scale and offset that dequantize frames.

    Few and short videos go through an LSTM without a loop, see lstm.unrolled, at the
    smallest of `budgets` that holds their frames.
    """

    def __init__(self, given: served.Served):
        super().__init__()
        network = given.network
        self._answer = functools.partial(network, training=False)
        self._exits = isinstance(network, early_exit.EarlyExit)
        of_segments = isinstance(network, segments.SegmentNetwork)
        self._starts_of = network.starts_of if of_segments else None
        # All that is saved: of Keras' variables (3.15) a copy would be, which the graph
        # does not read, and TensorFlow Serving would find the graph's own ones empty.
        self.weights = [
            weight if isinstance(weight, tf.Variable) else weight.value
            for weight in network.weights
        ]
        self._data, self._view, self._top_k = given.data, given.view, given.top_k
        lengths = sorted({*given.budgets, given.num_frames})
        has_loops = any(
            isinstance(x, lstm.StackedLSTM) for x in getattr(network, "layers", ())
        )
        self._lengths = [n for n in lengths if has_loops and n < lstm.FEW_FRAMES]
        records_of = tf.TensorSpec([None], tf.string, name="example_bytes")
        each_k = tf.TensorSpec([None], tf.int32, name="student_k")
        frames = tf.TensorSpec(
            [None, None, network.feature_size], tf.float32, name="frames"
        )
        num_frames = tf.TensorSpec([None], tf.int32, name="num_frames")
        steps = features.steps(given.data.only(given.view.features))
        traced = functools.partial(tf.function, autograph=False)
        self.steps = traced(
            lambda: [tf.constant(step, tf.float32) for step in steps],
            input_signature=[],
        )
        self.functions = {
            "serving_default": traced(self._serve_records, [records_of]),
            "frames": traced(self._serve_frames, [frames, num_frames]),
        }
        if given.budgets:
            self.functions["any_k"] = traced(self._serve_any_k, [records_of, each_k])

    def _logits(self, view: structures.View) -> tf.Tensor:
        frames = view[structures.FRAMES]

        def as_usual():
            return self._answer(view).logits

        def without_loops(length):
            missing = length - tf.shape(frames)[1]
            padded = tf.pad(frames, [[0, 0], [0, missing], [0, 0]])
            padded = tf.ensure_shape(padded, [None, length, frames.shape[2]])
            with lstm.unrolled():
                return self._answer({**view, structures.FRAMES: padded}).logits

        known = frames.shape[1]
        lengths = self._lengths
        if known is not None:
            lengths = [n for n in lengths if n >= known][:1]
        if not lengths:
            return as_usual()
        rows, length = tf.unstack(tf.shape(frames)[:2])
        few = rows * length < lstm.FEW_FRAMES
        # Behind all of them for longer videos.
        place = tf.reduce_sum(tf.cast(tf.constant(lengths) < length, tf.int32))
        place = tf.where(few, place, len(lengths))
        branches = [functools.partial(without_loops, n) for n in lengths]
        return tf.switch_case(place, [*branches, as_usual])

    def _top(self, view: structures.View) -> dict[str, tf.Tensor]:
        more = {}
        if self._exits:
            outputs = self._answer(view)
            logits, more = outputs.logits, {"num_frames_used": outputs.exits[:, 1]}
        else:
            logits = self._logits(view)
        if self._starts_of:
            more = {"segment_starts": self._starts_of(view[structures.NUM_FRAMES])}
        scores, classes = tf.math.top_k(tf.sigmoid(logits), self._top_k)
        return {"class_indexes": classes, "predictions": scores, **more}

    def _serve_records(self, example_bytes, each_k=None):
        parsed, faults = parsing.parse_request(example_bytes, self._data)
        if each_k is not None:
            inside = (each_k >= 1) & (each_k <= self._view.k)
            said = ["student_k=", tf.strings.as_string(each_k), " is not in 1.."]
            said = tf.strings.join([*said, f"{self._view.k}."])
            faults = tf.where(inside | (faults != ""), faults, said)
            each_k = tf.where(inside, each_k, 1)
        good = faults == ""
        view = pipeline.view_of(parsed, self._data, self._view, each_k)
        if each_k is not None:
            longest = tf.reduce_max(view[structures.NUM_FRAMES])
            view[structures.FRAMES] = view[structures.FRAMES][:, :longest]
        top = self._top(view)
        row = tf.reshape(good, [-1, *[1] * (top["predictions"].shape.rank - 1)])
        return {
            **top,
            "video_id": tf.where(good, parsed.video_ids, ""),
            "class_indexes": tf.where(row, top["class_indexes"], -1),
            "predictions": tf.where(row, top["predictions"], 0.0),
            "error": faults,
        }

    def _serve_any_k(self, example_bytes, student_k):
        each_k = tf.broadcast_to(student_k, tf.shape(example_bytes))
        return self._serve_records(example_bytes, each_k)

    def _serve_frames(self, frames, num_frames):
        num_frames = tf.broadcast_to(num_frames, tf.shape(frames)[:1])
        return self._top(served.view_of(frames, num_frames))


def write(given: served.Served, folder: str) -> None:
    """Writes a SavedModel, see ServingModel, into a new folder."""
    model = ServingModel(given)
    tf.saved_model.save(model, folder, signatures=model.functions)
    extra = os.path.join(folder, EXTRA)
    tf.io.gfile.makedirs(extra)
    tf_serving.write(given, model.functions, extra)


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
