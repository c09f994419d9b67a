"""MeanNetworks: trained networks that answer for segments together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import base, teacher_student


class Member(NamedTuple):
    """One network of a mean.

    Attributes:
        networks: of its run.
        role: its name there.
        weight: in [0, 1]; all weights together are 1.
        of_videos: it reads whole videos, and its answer is that of all their segments.
    """

    networks: teacher_student.TeacherStudent
    role: str
    weight: float
    of_videos: bool = False


class MeanNetworks:
    """The weighted mean of several networks' logits, in place of a TeacherStudent.

    The mean of log-odds is the geometric mean of the odds p / (1 - p): a class that one
    of the networks rules out is out.

    Args:
        members: the first one is the network of its role.
    """

    def __init__(self, members: Sequence[Member]):
        self.members = tuple(members)

    def network(self, role: str) -> base.VideoClassifier:
        """The first member's network."""
        return self.members[0].networks.network(role)

    def forward(
        self, role: str, views: dict[str, structures.View], view: str | None = None
    ) -> structures.Outputs:
        """The mean of all members, each on its own view; logits alone."""
        logits = sum(
            member.weight * member.networks.forward(member.role, views).logits
            for member in self.members
        )
        return structures.Outputs(logits, None)

    def parts_logits(
        self, role: str, views: dict[str, structures.View], bounds: np.ndarray
    ) -> tf.Tensor:
        """The mean for parts of each video, see TeacherStudent: [B, W, C]."""
        total = 0.0
        for networks, name, weight, of_videos in self.members:
            if of_videos:
                logits = networks.forward(name, views).logits[:, tf.newaxis]
            else:
                logits = networks.parts_logits(name, views, bounds)
            total += weight * logits
        return total
