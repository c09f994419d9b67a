"""VideoClassifier: what every network of the package is.

To add an architecture: a subclass with `encode`, and
`@MODELS.register("Name")`. Its constructor arguments are its settings, so that
`--student="Name(width=3)"` reaches them without a new flag.

The constructor takes `feature_size`, `num_classes`, `max_frames`, `head`, `dropout`
and `encoding_size`, which it passes on to VideoClassifier's, by name or as
`**kwargs`. It makes the encoder's variables and ends with `build_classifier`. A
constructor without `head` cannot share its classifier; one without `encoding_size`
cannot match a guide whose encoding has another width. A constructor with
`feature_sizes` also receives the width of each feature.
"""

import abc
import math

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import registry, structures
from yt8m_distill.data import features
from yt8m_distill.models import arguments, heads, layers

MODELS = registry.Registry("model")


def num_weights(variables: list) -> int:
    """Total number of elements of the variables."""
    return sum(math.prod(variable.shape) for variable in variables)


def part_places(
    num_frames: tf.Tensor, bounds: np.ndarray
) -> tuple[np.ndarray, tf.Tensor]:
    """Where parts of videos are.

    Args:
        num_frames: [B] int32.
        bounds: [W, 2]; see VideoClassifier.parts_logits.

    Returns:
        [W, S] int32, the frames of each part, and more where it is shorter than the
        longest; and [B * W] int32, how many of them are valid.
    """
    begins, lengths = bounds[:, 0], np.diff(bounds)[:, 0]
    places = begins[:, np.newaxis] + np.arange(lengths.max())
    counts = tf.clip_by_value(num_frames[:, tf.newaxis] - begins, 0, lengths)
    return places.astype(np.int32), tf.reshape(counts, [-1])


def cut(
    frames: tf.Tensor, num_frames: tf.Tensor, bounds: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """Parts of videos as videos: [B * W, S, D], 0 after the valid frames, and [B * W].

    Args:
        frames: [B, T, D]; T is static.
        num_frames, bounds: see part_places.
    """
    places, counts = part_places(num_frames, bounds)
    places = np.minimum(places, frames.shape[1] - 1)
    parts = tf.gather(frames, places, axis=1)  # [B, W, S, D]
    parts = tf.reshape(parts, [-1, *parts.shape[2:]])
    valid = tf.sequence_mask(counts, places.shape[1])
    return tf.where(valid[..., tf.newaxis], parts, 0.0), counts


class VideoClassifier(keras.Model, abc.ABC):
    """Maps the frames of a video to class logits.

    The constructor creates all variables: a subclass makes those of its encoder and
    then calls `build_classifier`. It reads no values of them: to find the width of an
    encoding, it is called in a graph.

    Args:
        feature_size: D, the width of a frame.
        num_classes: C.
        max_frames: T, the number of frames in the view that the network reads.
        head: the classifier, `"logistic"` or `"moe(num_mixtures=2)"`, or the head of
            another network, which is then shared.
        dropout: dropout rate of the encoding before the classifier.
        encoding_size: if given, a learned linear map (the bridge) projects the
            encoding to this width, so that a narrow student can match a wide teacher.

    Attributes:
        steps: scale and offset that dequantize its frames; see features.steps.
    """

    steps: tuple = (features.SCALE, features.OFFSET)

    def __init__(
        self,
        feature_size: int,
        num_classes: int,
        max_frames: int,
        head: str | keras.layers.Layer = "logistic",
        dropout: float = 0.5,
        encoding_size: int | None = None,
    ):
        super().__init__(dtype="float32")
        self.feature_size = feature_size
        self.num_classes = num_classes
        self.max_frames = max_frames
        self.encoding_size = encoding_size
        self.dropout_rate = arguments.require_rate(dropout=dropout)
        if isinstance(head, str):
            head = heads.HEADS.create(head, num_classes=num_classes)
        self.head = head
        self.bridge = None
        self.context = None

    def build_classifier(self, encoder_size: int) -> None:
        """Builds the head and, where the widths differ, the bridge before it.

        Raises:
            ValueError: if a shared head was built for another width.
        """
        if self.encoding_size and self.encoding_size != encoder_size:
            self.bridge = self.add_weight(
                name="bridge",
                shape=(encoder_size, self.encoding_size),
                initializer="glorot_uniform",
            )
        self.encoding_size = self.encoding_size or encoder_size
        if not self.head.built:
            self.head.build((None, self.encoding_size))
            self.head.built = True  # Keras 2 leaves it to `build`.
            self.head.encoding_size = self.encoding_size
        head_size = getattr(self.head, "encoding_size", self.encoding_size)
        if head_size != self.encoding_size:
            raise ValueError(
                f"The shared head reads encodings of width {head_size}; this "
                f"network's has width {self.encoding_size}."
            )
        self.built = True

    def add_context(self, size: int) -> None:
        """Adds an input c [B, size], the encoding of another network.

        The classifier then reads e + c W of the encoding e. W starts at 0, so that the
        network starts as it is without the context.
        """
        shape = (size, self.encoding_size)
        self.context = self.add_weight(name="context", shape=shape, initializer="zeros")

    @abc.abstractmethod
    def encode(
        self,
        frames: tf.Tensor,
        num_frames: tf.Tensor,
        state_indices: tf.Tensor | None,
        training: bool,
        noise: layers.Noise | None,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Encodes each video and, on request, returns its states at some frames.

        Args:
            frames: [B, T, D] float32, normalized, 0 after the last valid frame.
            num_frames: [B] int32, 0 in a padding row. Its encoding must be finite, too:
                its loss is left out, but Inf or NaN would spread in the gradient.
            state_indices: [B, S] int32 positions in the view, or None.
            training: whether a backward pass follows.
            noise: source of randomness for layers.dropout; use an index above 0, since
                0 is the classifier's. None outside a training step.

        Returns:
            The encoding [B, E], and states [B, S, M] or None.
        """

    def encoder_kernels(self) -> list:
        """The encoder's weight matrices, for the L2 penalty.

        By default all trainable weights of rank 2 or more.
        """
        return [v for v in self._encoder_variables() if len(v.shape) > 1]

    def state_variables(self) -> list:
        """The variables that the states returned by `encode` depend on.

        Only these are trained when the objective compares nothing but states. By
        default the whole encoder.
        """
        return self._encoder_variables()

    def _encoder_variables(self) -> list:
        after = {id(self.bridge), id(self.context)}
        return [v for v in self.variables_without_head() if id(v) not in after]

    def variables_without_head(self) -> list:
        """The variables to train when the classifier belongs to another network."""
        of_head = {id(variable) for variable in self.head.trainable_variables}
        return [v for v in self.trainable_variables if id(v) not in of_head]

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        """Multiply-adds of one video with `num_frames` frames, by part of the network.

        By default each kernel of the encoder is applied once per frame.
        """
        return {
            "encoder": num_frames * num_weights(self.encoder_kernels()),
            **self.classifier_multiply_adds(),
        }

    def kernels(self, scope: str = "all") -> list:
        """Weight matrices under the L2 penalty: `all` or the `classifier`'s."""
        if scope == "classifier":
            return heads.kernels(self.head)
        between = [v for v in (self.bridge, self.context) if v is not None]
        return self.encoder_kernels() + between + heads.kernels(self.head)

    def classifier_multiply_adds(self) -> dict[str, int]:
        """Multiply-adds per video of the layers after the encoder."""
        bridge = [] if self.bridge is None else [self.bridge]
        context = {} if self.context is None else {"context": self.context}
        return {
            "bridge": num_weights(bridge),
            **{name: num_weights([kernel]) for name, kernel in context.items()},
            "classifier": num_weights(heads.kernels(self.head)),
        }

    def classify(
        self,
        encoding: tf.Tensor,
        training: bool = False,
        noise: layers.Noise | None = None,
    ) -> tf.Tensor:
        """Dropout, in training alone, and the head: [B, E] → logits [B, C]."""
        if training:
            encoding = layers.dropout(encoding, self.dropout_rate, noise)
        return self.head(encoding)

    def call(self, inputs: dict, training: bool = False) -> structures.Outputs:
        """Classifies a view.

        Args:
            inputs: a View: `frames` [B, T, D] uint8 or float32, `num_frames` [B].
                Optionally `state_indices` [B, S] int32 and `num_states` [B], the
                frames whose intermediate states are requested, and `noise`, the fields
                of a layers.Noise. After add_context, `context` [B, size].
            training: whether dropout is applied.

        Raises:
            ValueError: if the frames do not have the network's width, `encode` returns
                anything else than it should, or states are requested and it has none.
        """
        frames, num_frames = self.normalized(inputs)
        indices = inputs.get("state_indices")
        noise = layers.Noise(*inputs["noise"]) if "noise" in inputs else None
        encoded = self.encode(frames, num_frames, indices, training, noise)
        encoding, states = self._checked(encoded)
        if indices is not None and states is None:
            raise ValueError(
                f"{type(self).__name__} has no intermediate states: use --match=final "
                "and, in --student_loss, rep instead of rep_intermediate."
            )
        if states is not None:
            valid = tf.sequence_mask(inputs["num_states"], tf.shape(indices)[1])
            states = tf.where(valid[..., tf.newaxis], states, 0.0)
        context = inputs.get(structures.CONTEXT)
        return self.outputs_of(encoding, states, training, noise, context)

    def _checked(self, encoded) -> tuple[tf.Tensor, tf.Tensor | None]:
        """What `encode` returned, if it is an encoding [B, E] and states."""
        width = self.encoding_size if self.bridge is None else self.bridge.shape[0]
        if (
            isinstance(encoded, tuple)
            and len(encoded) == 2
            and tf.is_tensor(encoded[0])
        ):
            shape = encoded[0].shape
            if shape.is_compatible_with([None, width]):
                return encoded
            received = f"an encoding {shape.as_list()}"
        else:
            received = type(encoded).__name__
        raise ValueError(
            f"{type(self).__name__}.encode must return an encoding [B, {width}], the "
            f"width given to build_classifier, and states or None; received {received}."
        )

    def normalized(self, inputs: dict) -> tuple[tf.Tensor, tf.Tensor]:
        """The frames of a view and their number, as `encode` takes them.

        Raises:
            ValueError: if the frames do not have the network's width.
        """
        frames = inputs[structures.FRAMES]
        num_frames = inputs[structures.NUM_FRAMES]
        if frames.shape[-1] != self.feature_size:
            raise ValueError(
                f"The frames are {frames.shape[-1]} wide, but the network reads "
                f"{self.feature_size}."
            )
        frames = features.dequantize(frames, num_frames, *self.steps)
        return features.l2_normalize(frames), num_frames

    def parts_logits(self, inputs: dict, bounds: np.ndarray) -> tf.Tensor:
        """Logits of parts of each video, each as if it were a video: [B, W, C].

        Args:
            inputs: a View of the videos; if they have a `context`, that of each part,
                [B * W, size].
            bounds: [W, 2] int, first frame of each part and the one after its last; a
                part ends with its video, and may have no frame.
        """
        encoding = self.encode_parts(*self.normalized(inputs), bounds)
        context = inputs.get(structures.CONTEXT)
        logits = self.outputs_of(encoding, context=context).logits
        return tf.reshape(logits, [-1, len(bounds), self.num_classes])

    def encode_parts(
        self, frames: tf.Tensor, num_frames: tf.Tensor, bounds: np.ndarray
    ) -> tf.Tensor:
        """The encodings of parts of each video: [B * W, E].

        A network that can compute once what parts share does so here.

        Args:
            frames, num_frames: as of `encode`.
            bounds: [W, 2]; see `parts_logits`.
        """
        parts, counts = cut(frames, num_frames, bounds)
        return self.encode(parts, counts, None, False, None)[0]

    def outputs_of(
        self,
        encoded: tf.Tensor,
        states: tf.Tensor | None = None,
        training: bool = False,
        noise: layers.Noise | None = None,
        context: tf.Tensor | None = None,
    ) -> structures.Outputs:
        """Applies the bridge and the classifier to the results of `encode`.

        Raises:
            ValueError: if the network has a context and there is none.
        """
        if self.bridge is not None:
            encoded = layers.multiply(encoded, tf.convert_to_tensor(self.bridge))
        read = encoded
        if self.context is not None:
            if context is None:
                raise ValueError("The network needs the encoding of its context.")
            read += layers.multiply(context, tf.convert_to_tensor(self.context))
        logits = self.classify(read, training, noise)
        return structures.Outputs(logits, encoded, states)
