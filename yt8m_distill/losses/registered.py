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
NEEDS = ("labels", "teacher", "teacher_states")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and what it compares the student with.

    Attributes:
        fn: (student: Outputs, target) → [B] float32. It never reduces over the
            batch: only the training step does, which knows the global batch.
        needs: `labels`, the target is [B, C]; `teacher`, it is the teacher's
            Outputs, constants; `teacher_states`, likewise, with both networks'
            intermediate states.

    Raises:
        ValueError: if `needs` is none of these.
    """

    fn: Callable[..., tf.Tensor]
    needs: str

    def __post_init__(self):
        if self.needs not in NEEDS:
            raise ValueError(f"needs={self.needs!r} is not one of {', '.join(NEEDS)}.")
