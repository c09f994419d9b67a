"""LstmModel: the starter code's flat LSTM, an ablation of the hierarchical one."""

import tensorflow as tf

from yt8m_distill.models import base, lstm


@base.MODELS.register("LstmModel")
class LstmModel(base.VideoClassifier):
    """One stack of LSTM layers over all frames of the video.

    The encoding is the top layer's h at the last valid frame, [B, cells]; the head is
    a mixture of experts. Both are as in the starter code.

    Args, besides those of VideoClassifier:
        cells: cells of each layer.
        layers: number of layers.
        implementation: of the LSTM; `auto`, `hoisted` or `keras`.

    Raises:
        ValueError: if cells or layers is not a positive integer.
    """

    def __init__(
        self,
        *args,
        cells: int = 1024,
        layers: int = 2,
        head: str = "moe",
        dropout: float = 0.0,
        implementation: str = "auto",
        **kwargs,
    ):
        super().__init__(*args, head=head, dropout=dropout, **kwargs)
        self.cells = cells
        self.lstm = lstm.StackedLSTM(cells, layers, implementation)
        self.lstm.build((None, None, self.feature_size))
        self.build_classifier(cells)

    def multiply_adds(self, num_frames: int) -> dict[str, int]:
        return {
            "lower": num_frames * base.num_weights(self.lstm.kernels()),
            **self.classifier_multiply_adds(),
        }

    def encode(self, frames, num_frames, state_indices, training, noise):
        x = tf.transpose(frames, [1, 0, 2])  # [T, B, D]
        at = None
        if state_indices is not None:
            rows = tf.range(tf.shape(frames)[0])[:, tf.newaxis]
            at = state_indices, tf.broadcast_to(rows, tf.shape(state_indices))
        final, states = self.lstm(x, num_frames, training=training, at=at)
        return final[:, -self.cells :], states

    def encode_parts(self, frames, num_frames, bounds):
        if self.lstm.uses_keras:
            return super().encode_parts(frames, num_frames, bounds)
        places, counts = base.part_places(num_frames, bounds)
        shared = self.lstm.share(frames, num_frames, places)
        return self.lstm(shared, counts)[0][:, -self.cells :]
