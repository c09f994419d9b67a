"""The table of losses.

To add one: a factory with `@LOSSES.register("name")` that returns a `Loss`; its
arguments can then be written in the objective, as in `"0.1*name(power=3)"`.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from yt8m_distill import registry

LOSSES = registry.Registry("loss")

# What a loss may compare the student with.
NEEDS = ("labels", "weighted_labels", "guide", "weighted_guide", "guide_states")

# What of the student a loss may look at.
COMPARES = ("logits", "encoding", "states")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and what it compares the student with.

    Attributes:
        fn: (student: Outputs, target) → [B] float32. It never reduces over the
            batch: only the training step does, which knows the global batch.
        needs: `labels`, the target is [B, C]; `weighted_labels`, it is a pair, labels
            [B, C] and their weights [B] or [B, C]; `guide`, it is the guide's
            Outputs, constants; `weighted_guide`, a pair of them and of the weights of
            the videos [B], 0 for padding rows; `guide_states`, the guide's Outputs,
            with both networks' intermediate states.
        compares: what of the student it looks at: `logits`; `encoding`, where nothing
            behind the encoding is reached; or `states`, where only what the states
            depend on is. An objective without `logits` leaves the classifier alone
            and is followed by fine-tuning; with `encoding` or `states` the student's
            encoding becomes as wide as the teacher's. Empty: `states` if it needs
            them, otherwise `logits`.

    Raises:
        ValueError: if one is none of these, or `states` are compared and not needed.
    """

    fn: Callable[..., tf.Tensor]
    needs: str
    compares: str = ""

    @property
    def is_of_labels(self) -> bool:
        """Whether videos without labels have no part in it."""
        return self.needs in ("labels", "weighted_labels")

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
