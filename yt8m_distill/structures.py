"""Batch and Outputs: the contract between the layers of the package.

A `Batch` is a nested dict (what tf.data and tf.distribute carry best):

| key        | shape, dtype       | meaning                                      |
|------------|--------------------|----------------------------------------------|
| `video_id` | [B] string         | empty for a padding row                      |
| `labels`   | [B, C] float32     | multi-hot, 0 or 1; between them with `--mix` |
| `weights`  | [B] float32        | 1 for a video, 0 for a padding row           |
| `label_weights` | [B] float32   | 1 where the video has labels, otherwise 0: it |
|            | (or [B, C])        | counts in no loss and no metric of labels    |
| `segment_starts` | [B] int32    | with --segment_labels: first frame of the    |
|            |                    | row's segment; 0 for a padding row           |
| `video_labels` | [B, C] float32 | with --segment_labels: the row's video's     |
| `views`    | name -> View       | `all`, `sampled`                             |
| `guides`   | role -> arrays     | with a teacher cache: see teacher_cache      |

Every batch has the same B: the last one is padded with rows of weight 0, so
that nothing is dropped, nothing is traced twice, and every replica gets the
same number of rows.

A `View` is a dict too:

| key             | shape, dtype               | meaning                           |
|-----------------|----------------------------|-----------------------------------|
| `frames`        | [B, T, D] uint8 or float32 | quantised or dequantised features |
| `num_frames`    | [B] int32                  | valid frames, at the front        |
| `frame_indices` | [B, T] int32               | position of each in the video     |
| `context`       | [B, E] float32             | of a network that has a context   |

Frames after `num_frames` are 0 and carry no meaning; neither do their indices.
"""

from typing import Any, NamedTuple

Batch = dict[str, Any]
View = dict[str, Any]

VIDEO_ID = "video_id"
LABELS = "labels"
WEIGHTS = "weights"
LABEL_WEIGHTS = "label_weights"
SEGMENT_STARTS = "segment_starts"
VIDEO_LABELS = "video_labels"
VIEWS = "views"
GUIDES = "guides"

CONTEXT = "context"
FRAMES = "frames"
NUM_FRAMES = "num_frames"
FRAME_INDICES = "frame_indices"

# Names of the views.
ALL = "all"
SAMPLED = "sampled"


class Outputs(NamedTuple):
    """What a VideoClassifier returns for a batch.

    Attributes:
        logits: [B, C] float32, unbounded; sigmoid(logits) is the probability of
            each class. A mixture of experts gives the exact log-odds of its
            mixture, so that every loss can start from logits.
        encoding: [B, E] float32, before dropout (the paper's E_T or E_S).
        states: [B, S, 4 * cells] float32 or None: the lower LSTM's
            [c1, h1, c2, h2] at the requested frames (the paper's I).
        exits: [B, 2] int32 or None: with early exit, the budget at which each video
            stopped, and the frames read of it (fewer if it has no more).
    """

    logits: Any
    encoding: Any
    states: Any = None
    exits: Any = None


def readable_id(video_id: bytes) -> str:
    """A video's id for a message of one line, whatever its bytes are."""
    text = video_id.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
