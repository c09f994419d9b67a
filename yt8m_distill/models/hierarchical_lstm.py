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

    Args:
        feature_size, num_classes, max_frames, head, dropout, encoding_size: as in
            VideoClassifier.
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
        feature_size: int,
        num_classes: int,
        max_frames: int,
        cells: int = 1024,
        layers: int = 2,
        block_len: int | None = None,
        num_blocks: int | None = None,
        head: str = "logistic",
        dropout: float = 0.5,
        encoding_size: int | None = None,
        implementation: str = "auto",
    ):
        super().__init__(
            feature_size, num_classes, max_frames, head, dropout, encoding_size
        )
        if block_len is not None and num_blocks is not None:
            raise ValueError(
                "HierarchicalLSTM takes block_len or num_blocks, one of them; "
                f"received block_len={block_len}, num_blocks={num_blocks}."
            )
        arguments.require_counts(cells=cells, layers=layers)
        if num_blocks is not None:
            arguments.require_counts(num_blocks=num_blocks)
            block_len = -(-max_frames // num_blocks)
        elif block_len is None:
            block_len = DEFAULT_BLOCK_LEN
        arguments.require_counts(block_len=block_len)
        # A block longer than the view would only be padding.
        self.block_len = min(block_len, max_frames)
        self.lower = lstm.StackedLSTM(cells, layers, implementation)
        self.upper = lstm.StackedLSTM(cells, layers, implementation)
        self.lower.build((None, None, feature_size))
        self.upper.build((None, None, self.lower.state_size))
        self.build_classifier(self.upper.state_size)

    @classmethod
    def encoder_size(cls, feature_size: int, arguments: dict) -> int:
        return 2 * arguments["layers"] * arguments["cells"]

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
        if lstm.is_unrolled():
            return self._encode_every_block(frames, num_frames), None
        block_len = self._block_len(frames)
        x = to_blocks(frames, block_len)  # [L, B * blocks, D]
        batch = tf.shape(frames)[0]
        blocks = -(-tf.shape(frames)[1] // block_len)
        lengths = block_lengths(num_frames, blocks, block_len)  # [B, blocks]
        flat = tf.reshape(lengths, [-1])
        # Row 0 is kept even if it is empty, so that no kernel gets zero rows.
        rows = tf.where((flat > 0) | (tf.range(tf.size(flat)) == 0))[:, 0]
        x = tf.gather(x, rows, axis=1)  # [L, R, D], R non-empty blocks
        row_lengths = tf.gather(flat, rows)
        states = None
        if state_indices is None:
            encoded = self.lower(x, row_lengths, training=training)
        else:
            sequences = self.lower.sequences(x, training)
            encoded = self.lower.final_states(sequences, row_lengths)
            states = self._states_at(sequences, state_indices, rows, blocks)
        width = self.lower.state_size
        encoded = tf.scatter_nd(
            rows[:, tf.newaxis], encoded, tf.cast([batch * blocks, width], tf.int64)
        )
        encoded = tf.reshape(encoded, [batch, blocks, width])
        used = tf.reduce_sum(tf.cast(lengths > 0, tf.int32), axis=1)
        upper = tf.transpose(encoded, [1, 0, 2])  # [blocks, B, width]
        return self.upper(upper, used, training=training), states

    def _block_len(self, frames) -> int:
        """L; that of a single block which the frames do not fill is their number."""
        return min(self.block_len, frames.shape[1] or self.block_len)

    def _encode_every_block(self, frames, num_frames) -> tf.Tensor:
        """[B, E]; computes empty blocks too, so that no shape depends on the videos."""
        block_len = self._block_len(frames)
        blocks = -(-frames.shape[1] // block_len)
        lengths = block_lengths(num_frames, blocks, block_len)  # [B, blocks]
        x = to_blocks(frames, block_len)
        encoded = self.lower(x, tf.reshape(lengths, [-1]))
        encoded = tf.reshape(encoded, [-1, blocks, self.lower.state_size])
        used = tf.reduce_sum(tf.cast(lengths > 0, tf.int32), axis=1)
        return self.upper(tf.transpose(encoded, [1, 0, 2]), used)

    def _states_at(self, sequences, indices, rows, blocks) -> tf.Tensor:
        """[c1, h1, c2, h2] of the lower LSTM at frames [B, S]: [B, S, 4 * cells]."""
        batch, count = tf.shape(indices)[0], tf.shape(indices)[1]
        flat = tf.range(batch)[:, tf.newaxis] * blocks + indices // self.block_len
        # Position of each block among the non-empty ones. Only invalid frames, whose
        # states the caller sets to 0, are in empty blocks.
        place = tf.scatter_nd(
            rows[:, tf.newaxis],
            tf.range(tf.size(rows)),
            tf.cast([batch * blocks], tf.int64),
        )
        places = tf.reshape(tf.gather(place, flat), [-1])
        steps = tf.reshape(indices % self.block_len, [-1])
        states = tf.concat(
            [lstm.at_step(s, steps, places) for pair in sequences for s in pair],
            axis=1,
        )
        return tf.reshape(states, [batch, count, self.lower.state_size])
