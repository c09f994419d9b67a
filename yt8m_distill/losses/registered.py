"""The registry of losses.

To add one, decorate a factory that returns a `Loss` with `@LOSSES.register("name")`;
its arguments can be used in an objective, as in `"0.1*name(power=3)"`.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from yt8m_distill import registry

LOSSES = registry.Registry("loss")

# Possible targets of a loss.
NEEDS = (
    *("labels", "weighted_labels", "video_labels"),
    *("guide", "guide_states", "self"),
)

# Outputs of the student that a loss may compare.
COMPARES = ("logits", "encoding", "states")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss, its target and the student's output that it depends on.

    Attributes:
        fn: (student: Outputs, target) → [B] float32, not reduced over the batch: only
            the training step knows the global batch.
        needs: the target. `labels`: [B, C]. `weighted_labels`: a pair, labels [B, C]
            and their weights [B] or [B, C]. `video_labels`: a pair, the labels [B, C]
            of the video of each segment, and the weights [B, C] of the segment's own
            labels. `guide`: the guide's Outputs, as constants. `guide_states`: the
            same, with intermediate states in both networks' Outputs. `self`: the
            student's own Outputs on the most frames of --student_k, without dropout,
            as constants.
        compares: the student's output: `logits`; `encoding`, so that no layer after the
            encoding gets gradients; or `states`, so that only the layers before the
            states do. An objective without `logits` does not train the classifier and
            is followed by fine-tuning; with `encoding` or `states` the student's
            encoding gets the width of the teacher's. Empty: `states` if needs is
            `guide_states`, otherwise `logits`.

    Raises:
        ValueError: for an unknown value, or `states` without `guide_states`.
    """

    fn: Callable[..., tf.Tensor]
    needs: str
    compares: str = ""

    @property
    def is_of_labels(self) -> bool:
        """Whether it ignores videos without labels."""
        return self.needs in ("labels", "weighted_labels", "video_labels")

    def __post_init__(self):
        if self.needs not in NEEDS:
            raise ValueError(f"needs={self.needs!r} is not one of {', '.join(NEEDS)}.")
        with_states = self.needs == "guide_states"
        if not self.compares:
            default = "states" if with_states else "logits"
            object.__setattr__(self, "compares", default)
        if self.compares not in COMPARES:
            raise ValueError(
                f"compares={self.compares!r} is not one of {', '.join(COMPARES)}."
            )
        if self.compares == "states" and not with_states:
            raise ValueError(
                "compares='states' goes with needs='guide_states'; received "
                f"needs={self.needs!r}."
            )
