"""SetClassifier: networks that treat the frames of a video as a set."""

import abc
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import base, layers

# Sums over the frames read so far: their number [B, 1], then those of the network.
State = tuple[tf.Tensor, ...]


class SetClassifier(base.VideoClassifier):
    """A network whose encoding is a function, `finish`, of sums over the frames.

    The order of the frames does not matter, and a video can be read incrementally, at
    the cost of the new frame alone:

        state = network.start(batch_size)
        state = network.add_frame(state, frames[:, 0])
        logits = network.outputs_of(network.finish(state)).logits

    A subclass defines `read` and `finish`, and `join` if a state is not a plain sum.
    """

    @abc.abstractmethod
    def read(
        self,
        frames: tf.Tensor,
        mask: tf.Tensor,
        training: bool = False,
        noise: layers.Noise | None = None,
    ) -> State:
        """The sums over some frames of each video, without the number of frames.

        Args:
            frames: [B, T, D] float32, normalized.
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
        """The encoding [B, E] of the frames in the state."""

    def join(self, one: State, other: State) -> State:
        """The state of the union of two disjoint sets of frames."""
        return tuple(a + b for a, b in zip(one, other, strict=True))

    def encode(self, frames, num_frames, state_indices, training, noise):
        state = self._read(frames, num_frames, training, noise)
        return self.finish(state, training, noise), None

    def _read(self, frames, num_frames, training=False, noise=None) -> State:
        """`read`, with the number of frames before the sums."""
        mask = tf.sequence_mask(num_frames, tf.shape(frames)[1])
        count = tf.cast(num_frames, tf.float32)[:, tf.newaxis]
        return count, *self.read(frames, mask, training, noise)

    def start(self, batch_size: int) -> State:
        """The state before the first frame."""
        # Of a padding frame: ONNX has no reshapes of no frames.
        frames = tf.zeros([batch_size, 1, self.feature_size])
        sums = self.read(frames, tf.zeros([batch_size, 1], tf.bool))
        return (tf.zeros([batch_size, 1]), *sums)

    def add_frame(self, state: State, frame: tf.Tensor) -> State:
        """The state after one more frame of each video.

        Args:
            state: returned by `start` or `add_frame`.
            frame: [B, D] uint8 or float32, as in a view.
        """
        ones = tf.ones([tf.shape(frame)[0]], tf.int32)
        return self.add_frames(state, frame[:, tf.newaxis], ones)

    def add_frames(
        self, state: State | None, frames: tf.Tensor, num_frames: tf.Tensor
    ) -> State:
        """The state after several more frames of each video.

        Args:
            state: returned by `start`, `add_frame` or `add_frames`; None: no frame yet.
            frames: [B, T, D] uint8 or float32, as in a view.
            num_frames: [B] int32, how many of them are valid.
        """
        view = {structures.FRAMES: frames, structures.NUM_FRAMES: num_frames}
        added = self._read(*self.normalized(view))
        return added if state is None else self.join(state, added)

    def encode_parts(self, frames, num_frames, bounds):
        """As VideoClassifier's; frames that parts share are read once.

        The edges of all parts cut a video into pieces. Each piece is read once, and the
        states of its pieces are joined for each part.
        """
        edges = np.unique(bounds)
        states = self._read_pieces(frames, num_frames, edges)
        first, last = np.searchsorted(edges, bounds).T
        nothing = len(edges) - 1  # The piece behind the last.
        joined = None
        for step in range(int((last - first).max())):
            chosen = np.where(first + step < last, first + step, nothing)
            chosen_states = (tf.gather(state, chosen, axis=1) for state in states)
            part = tuple(  # [B * W, ...]
                tf.reshape(x, [-1, *x.shape[2:]]) for x in chosen_states
            )
            joined = part if joined is None else self.join(joined, part)
        return self.finish(joined)

    def _read_pieces(self, frames, num_frames, edges: np.ndarray) -> State:
        """States of the P pieces between edges, and of no frames: [B, P + 1, ...]."""
        begins, lengths = edges[:-1], np.diff(edges)
        order, found = [], []
        for length in np.unique(lengths):  # Those of one length at once: no padding.
            here = np.flatnonzero(lengths == length)
            bounds = begins[here, np.newaxis] + [0, length]
            state = self._read(*base.cut(frames, num_frames, bounds))
            # [B, pieces of this length, ...]
            found.append([tf.reshape(x, [-1, len(here), *x.shape[1:]]) for x in state])
            order.append(here)
        empty = self.start(tf.shape(frames)[0])
        found.append([x[:, tf.newaxis] for x in empty])
        order.append([len(begins)])
        places = np.argsort(np.concatenate(order))
        joint = (tf.concat(states, axis=1) for states in zip(*found, strict=True))
        return tuple(tf.gather(state, places, axis=1) for state in joint)


def mean(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """total [B, W] / count [B, 1]; 0 where there is no frame."""
    return total / tf.maximum(count, 1.0)


def has_frames(state: State) -> tf.Tensor:
    """[B] bool, False for padding rows; for statistics over the batch."""
    return state[0][:, 0] > 0


class FeatureEncoders(layers.Numbered, keras.layers.Layer):
    """One encoder per feature; their descriptors are concatenated.

    Args:
        sizes: width of each feature.
        make: (width, share) → a layer with `read`, `finish`, `size` and
            `multiply_adds`. It divides its number of clusters by the share, which is 1
            for the first feature and 2 for the others.

    Attributes:
        size: total width of the descriptors.
    """

    def __init__(
        self, sizes: Sequence[int], make: Callable[[int, int], keras.layers.Layer]
    ):
        super().__init__(dtype="float32")
        self.sizes = tuple(sizes)
        encoders = [make(size, 1 if n == 0 else 2) for n, size in enumerate(self.sizes)]
        self.add_numbered("feature", encoders)
        self.size = sum(encoder.size for encoder in encoders)
        self.built = True

    @property
    def encoders(self) -> list:
        """The encoders in the order of the features."""
        return self.numbered("feature")

    def multiply_adds(self) -> int:
        """Multiply-adds per frame."""
        return sum(encoder.multiply_adds() for encoder in self.encoders)

    def read(self, frames: tf.Tensor, mask: tf.Tensor, training: bool) -> State:
        """The sums of all encoders, in the order of the features."""
        parts = zip(self.encoders, tf.split(frames, self.sizes, axis=-1), strict=True)
        return tuple(
            total for encoder, x in parts for total in encoder.read(x, mask, training)
        )

    def finish(self, sums: State, rows: tf.Tensor, training: bool) -> tf.Tensor:
        """[B, size], from two sums per encoder; `rows` [B] is False for padding."""
        pairs = zip(self.encoders, sums[::2], sums[1::2], strict=True)
        return tf.concat([e.finish(v, a, rows, training) for e, v, a in pairs], axis=1)
