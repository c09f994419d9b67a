"""HierarchicalLSTM: an LSTM over the frames of a block, one over the blocks."""

import tensorflow as tf

from yt8m_distill.models import arguments, base, lstm

DEFAULT_BLOCK_LEN = 20  # The paper's teacher.


def to_blocks(frames: tf.Tensor, block_len: int) -> tf.Tensor:
    """Cuts videos into blocks of frames, time first.

    Args:
        frames: [B, T, D]; T is padded with zeros to a multiple of the block.
        block_len: L.

    Returns:
        [L, B * blocks, D]; the blocks of a video are consecutive.
    """
    size = frames.shape[-1]
    total = tf.shape(frames)[1] if frames.shape[1] is None else frames.shape[1]
    missing = -total % block_len
    frames = tf.pad(frames, [[0, 0], [0, missing], [0, 0]])
    blocks = tf.reshape(frames, [-1, block_len, size])  # [B * blocks, L, D]
    return tf.transpose(blocks, [1, 0, 2])


def block_lengths(num_frames: tf.Tensor, blocks: tf.Tensor, block_len: int):
    """Valid frames of each block: [B] int32 → [B, blocks] int32, 0 to L."""
    starts = tf.range(blocks) * block_len
    return tf.clip_by_value(num_frames[:, tf.newaxis] - starts, 0, block_len)


@base.MODELS.register("HierarchicalLSTM")
class HierarchicalLSTM(base.VideoClassifier):
    """The paper's network: a video is a sequence of blocks of frames.

    The lower LSTM encodes each block, with the same weights for all blocks; the upper
    LSTM reads the encodings of the non-empty blocks. The encoding of a block or of the
    video (E_T, E_S) is the concatenated final state [c1, h1, c2, h2]: 4096 numbers at
    the paper's size. Empty blocks are not computed, so a short video costs less.

    Args, besides those of VideoClassifier:
        cells: cells of each LSTM layer.
        layers: layers of the lower and of the upper LSTM.
        block_len: frames per block (the paper's l). Default: 20.
        num_blocks: instead of block_len, the number of blocks of a full video, each
            with ceil(max_frames / num_blocks) frames (the authors' code).
        implementation: of the LSTM; `auto`, `hoisted` or `keras`.

    Raises:
        ValueError: if both block_len and num_blocks are given, or a count is not a
            positive integer.
    """

    def __init__(
        self,
        *args,
        cells: int = 1024,
        layers: int = 2,
        block_len: int | None = None,
        num_blocks: int | None = None,
        implementation: str = "auto",
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if block_len is not None and num_blocks is not None:
            raise ValueError(
                "HierarchicalLSTM takes block_len or num_blocks, one of them; "
                f"received block_len={block_len}, num_blocks={num_blocks}."
            )
        if num_blocks is not None:
            arguments.require_counts(num_blocks=num_blocks)
            block_len = -(-self.max_frames // num_blocks)
        elif block_len is None:
            block_len = DEFAULT_BLOCK_LEN
        arguments.require_counts(block_len=block_len)
        # A block longer than the view would only be padding.
        self.block_len = min(block_len, self.max_frames)
        self.lower = lstm.StackedLSTM(cells, layers, implementation)
        self.upper = lstm.StackedLSTM(cells, layers, implementation)
        self.lower.build((None, None, self.feature_size))
        self.upper.build((None, None, self.lower.state_size))
        self.build_classifier(self.upper.state_size)

    def state_variables(self) -> list:
        return list(self.lower.trainable_variables)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        blocks = -(-num_frames // self.block_len)
        return {
            "lower": num_frames * base.num_weights(self.lower.kernels()),
            "upper": blocks * base.num_weights(self.upper.kernels()),
            **self.classifier_multiply_adds(),
        }

    def encode(self, frames, num_frames, state_indices, training, noise):
        return self._encode(frames, num_frames, self.lower, state_indices, training)

    def encode_parts(self, frames, num_frames, bounds):
        if self.lower.uses_keras:
            return super().encode_parts(frames, num_frames, bounds)
        places, counts = base.part_places(num_frames, bounds)
        projected, places = self.lower.share(frames, num_frames, places)
        places = tf.transpose(places)[..., tf.newaxis]  # [B * W, S, 1]

        def lower(x, lengths, **more):
            return self.lower(lstm.Shared(projected, x[..., 0]), lengths, **more)

        return self._encode(places, counts, lower)[0]

    def _encode(self, frames, num_frames, lower, state_indices=None, training=False):
        """`encode`, where `lower` is the LSTM over blocks of `frames` [B, T, D]."""
        batch, length = tf.shape(frames)[0], frames.shape[1]
        # A single block that the frames do not fill is as long as they are.
        block_len = min(self.block_len, length or self.block_len)
        blocks = -(-(length or tf.shape(frames)[1]) // block_len)
        x = to_blocks(frames, block_len)  # [L, B * blocks, D]
        lengths = block_lengths(num_frames, blocks, block_len)  # [B, blocks]
        flat = tf.reshape(lengths, [-1])
        width, states = self.lower.state_size, None
        if lstm.is_unrolled():  # No shape may depend on the videos.
            encoded, _ = lower(x, flat)
        else:
            # Row 0 is kept even if it is empty, so that no kernel gets zero rows.
            rows = tf.where((flat > 0) | (tf.range(tf.size(flat)) == 0))[:, 0]
            at = None
            if state_indices is not None:
                at = self._places(state_indices, rows, blocks)
            x, row_lengths = tf.gather(x, rows, axis=1), tf.gather(flat, rows)
            encoded, states = lower(x, row_lengths, training=training, at=at)
            encoded = tf.scatter_nd(
                rows[:, tf.newaxis], encoded, tf.cast([batch * blocks, width], tf.int64)
            )
        encoded = tf.reshape(encoded, [-1, blocks, width])
        used = tf.reduce_sum(tf.cast(lengths > 0, tf.int32), axis=1)
        upper = tf.transpose(encoded, [1, 0, 2])  # [blocks, B, width]
        return self.upper(upper, used, training=training)[0], states

    def _places(self, indices, rows, blocks) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps and rows of the lower LSTM at frames [B, S]: [B, S] each.

        Args:
            indices: [B, S].
            rows: the non-empty blocks among all, which are the rows of the LSTM.
            blocks: of each video.
        """
        batch = tf.shape(indices)[0]
        block = tf.range(batch)[:, tf.newaxis] * blocks + indices // self.block_len
        # Only invalid frames, whose states the caller sets to 0, are in empty blocks.
        row_of = tf.scatter_nd(
            rows[:, tf.newaxis],
            tf.range(tf.size(rows)),
            tf.cast([batch * blocks], tf.int64),
        )
        return indices % self.block_len, tf.gather(row_of, block)
