"""LstmModel: the starter code's flat LSTM, an ablation of the hierarchical one."""

import tensorflow as tf

from yt8m_distill.models import arguments, base, lstm


@base.MODELS.register("LstmModel")
class LstmModel(base.VideoClassifier):
    """One stack of LSTM layers over all frames of the video.

    The encoding is the top layer's h at the last valid frame, [B, cells]; the head is
    a mixture of experts. Both are as in the starter code.

    Args:
        feature_size, num_classes, max_frames, head, dropout, encoding_size: as in
            VideoClassifier.
        cells: cells of each layer.
        layers: number of layers.
        implementation: of the LSTM; `auto`, `hoisted` or `keras`.

    Raises:
        ValueError: if cells or layers is not a positive integer.
    """

    def __init__(
        self,
        feature_size: int,
        num_classes: int,
        max_frames: int,
        cells: int = 1024,
        layers: int = 2,
        head: str = "moe",
        dropout: float = 0.0,
        encoding_size: int | None = None,
        implementation: str = "auto",
    ):
        super().__init__(
            feature_size, num_classes, max_frames, head, dropout, encoding_size
        )
        arguments.require_counts(cells=cells, layers=layers)
        self.cells = cells
        self.lstm = lstm.StackedLSTM(cells, layers, implementation)
        self.lstm.build((None, None, feature_size))
        self.build_classifier(cells)

    @classmethod
    def encoder_size(cls, feature_size: int, arguments: dict) -> int:
        return arguments["cells"]

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        return {
            "lower": num_frames * base.num_weights(self.lstm.kernels()),
            **self.classifier_multiply_adds(),
        }

    def encode(self, frames, num_frames, state_indices, training, noise):
        x = tf.transpose(frames, [1, 0, 2])  # [T, B, D]
        if state_indices is None:
            states = self.lstm(x, num_frames, training=training)
            return states[:, -self.cells :], None
        sequences = self.lstm.sequences(x, training)
        final = self.lstm.final_states(sequences, num_frames)
        rows = tf.broadcast_to(
            tf.range(tf.shape(frames)[0])[:, tf.newaxis], tf.shape(state_indices)
        )
        states = tf.concat(
            [lstm.at_step(s, state_indices, rows) for pair in sequences for s in pair],
            axis=-1,
        )
        return final[:, -self.cells :], states
