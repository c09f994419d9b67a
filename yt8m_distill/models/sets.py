"""SetClassifier: networks that read the frames of a video as a set."""

import abc
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from yt8m_distill.data import features
from yt8m_distill.models import base, layers

# Sums over the frames read so far: first their number [B, 1], then the network's own.
State = tuple[tf.Tensor, ...]


class SetClassifier(base.VideoClassifier):
    """A network whose encoding is `finish` of sums over the frames, in any order.

    So a video can be read frame by frame, and each further frame costs no more than
    itself:

        state = network.start(batch_size)
        state = network.add_frame(state, frames[:, 0])
        logits = network.outputs_of(network.finish(state)).logits

    A subclass has `read` and `finish`, and `join` if something is not just added up.
    """

    @abc.abstractmethod
    def read(
        self,
        frames: tf.Tensor,
        mask: tf.Tensor,
        training: bool = False,
        noise: layers.Noise | None = None,
    ) -> State:
        """The sums over some frames of each video, without their number.

        Args:
            frames: [B, T, D] float32, normalized; T may be 0.
            mask: [B, T] bool, False for padding.
            training, noise: as in `encode`.
        """

    @abc.abstractmethod
    def finish(
        self,
        state: State,
        training: bool = False,
        noise: layers.Noise | None = None,
    ) -> tf.Tensor:
        """[B, E], what `encode` gives for the frames in the state."""

    def join(self, one: State, other: State) -> State:
        """The state of the frames of two states."""
        return tuple(a + b for a, b in zip(one, other, strict=True))

    def encode(self, frames, num_frames, state_indices, training, noise):
        mask = tf.sequence_mask(num_frames, tf.shape(frames)[1])
        sums = self.read(frames, mask, training, noise)
        count = tf.cast(num_frames, tf.float32)[:, tf.newaxis]
        return self.finish((count, *sums), training, noise), None

    def start(self, batch_size: int) -> State:
        """The state before the first frame."""
        frames = tf.zeros([batch_size, 0, self.feature_size])
        sums = self.read(frames, tf.zeros([batch_size, 0], tf.bool))
        return (tf.zeros([batch_size, 1]), *sums)

    def add_frame(self, state: State, frame: tf.Tensor) -> State:
        """The state with one frame more of each video.

        Args:
            state: of `start` or `add_frame`.
            frame: [B, D] uint8 or float32, as in a view.
        """
        ones = tf.ones([tf.shape(frame)[0]], tf.int32)
        frames = features.dequantize(frame[:, tf.newaxis], ones)
        frames = features.l2_normalize(frames)
        mask = tf.ones(tf.shape(frames)[:2], tf.bool)
        count = tf.ones([tf.shape(frame)[0], 1])
        return self.join(state, (count, *self.read(frames, mask)))


def mean(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """total [B, W] / count [B, 1]; 0 where there is no frame."""
    return total / tf.maximum(count, 1.0)


def has_frames(state: State) -> tf.Tensor:
    """[B] bool: rows that are a video, for statistics over the batch."""
    return state[0][:, 0] > 0


class FeatureEncoders(layers.Numbered, keras.layers.Layer):
    """An encoder for each feature, their descriptors side by side.

    Args:
        sizes: width of each feature.
        make: (width, share) → a layer with `read`, `finish`, `size` and
            `multiply_adds`; the share is 1 for the first feature and 2, half of the
            clusters, for the others.
    """

    def __init__(
        self, sizes: Sequence[int], make: Callable[[int, int], keras.layers.Layer]
    ):
        super().__init__(dtype="float32")
        self.sizes = tuple(sizes)
        made = [make(size, 1 if n == 0 else 2) for n, size in enumerate(self.sizes)]
        self.add_numbered("feature", made)
        self.built = True

    @property
    def encoders(self) -> list:
        """The encoders in the order of the features."""
        return self.numbered("feature")

    @property
    def size(self) -> int:
        """Width of all descriptors together."""
        return sum(encoder.size for encoder in self.encoders)

    def multiply_adds(self) -> int:
        """Of one frame."""
        return sum(encoder.multiply_adds() for encoder in self.encoders)

    def read(self, frames: tf.Tensor, mask: tf.Tensor, training: bool) -> State:
        """The sums of all encoders, those of the first feature first."""
        parts = zip(self.encoders, tf.split(frames, self.sizes, axis=-1), strict=True)
        return tuple(
            total for encoder, x in parts for total in encoder.read(x, mask, training)
        )

    def finish(self, sums: State, rows: tf.Tensor, training: bool) -> tf.Tensor:
        """[B, size], from two sums of each encoder; `rows` [B] are videos."""
        pairs = zip(self.encoders, sums[::2], sums[1::2], strict=True)
        return tf.concat([e.finish(v, a, rows, training) for e, v, a in pairs], axis=1)
