"""TeacherStudent: the networks of a run, each on its own view of the video."""

import keras
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import base


def _copy(source, target, rule: str, advice: str) -> None:
    """Assigns the variables of one layer to another; ValueError unless they fit."""
    theirs, mine = source.trainable_variables, target.trainable_variables
    shapes = [[tuple(v.shape) for v in variables] for variables in (mine, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{rule} of the same shape; the student's variables are {shapes[0]}, the "
            f"teacher's {shapes[1]}. {advice}"
        )
    for variable, value in zip(mine, theirs, strict=True):
        variable.assign(value)


class TeacherStudent(keras.Model):
    """The teacher, which reads every frame, and the student, which reads k.

    Either may be absent: a baseline is a student without a teacher.

    Args:
        networks: role (`teacher`, `student`) → VideoClassifier.
        views: role → name of the view that its network reads.
    """

    def __init__(
        self,
        networks: dict[str, base.VideoClassifier],
        views: dict[str, str],
    ):
        super().__init__(dtype="float32")
        self.teacher = networks.get("teacher")
        self.student = networks.get("student")
        self.views = dict(views)
        self.built = True

    def network(self, role: str) -> base.VideoClassifier:
        """The network of a role."""
        return getattr(self, role)

    def copy_classifier(self, reason: str = "--classifier=copied") -> None:
        """Sets the student's classifier to the teacher's present values.

        Args:
            reason: the flag that asks for it, for the error.

        Raises:
            ValueError: if the two classifiers differ in shape.
        """
        other = ", or --classifier=own" if reason.startswith("--classifier") else ""
        _copy(
            self.teacher.head,
            self.student.head,
            f"{reason} needs two classifiers",
            f"Give both networks the same head{other}.",
        )

    def copy_network(self) -> None:
        """Sets all of the student's weights to the teacher's present values.

        Blocks may differ in length: no weight belongs to a place in a block.

        Raises:
            ValueError: if the two networks differ in kind or shape.
        """
        if type(self.teacher) is not type(self.student):
            raise ValueError(
                "--student_start=teacher needs two networks of the same kind; the "
                f"student is a {type(self.student).__name__}, the teacher a "
                f"{type(self.teacher).__name__}."
            )
        _copy(
            self.teacher,
            self.student,
            "--student_start=teacher needs two networks",
            "Give both the same cells, layers and head, or --student_start=new.",
        )

    def forward(
        self,
        role: str,
        views: dict[str, structures.View],
        training: bool = False,
        with_states: bool = False,
        dropout_noise: tf.Tensor | None = None,
    ) -> structures.Outputs:
        """One role's network on its view.

        Args:
            role: `teacher` or `student`.
            views: of the batch; `sampled` is needed too for states.
            training: with dropout or without.
            with_states: also the intermediate states (the paper's I) at the frames
                of the view `sampled`, in the order in which the student sees them.
            dropout_noise: [B, E] uniform numbers in [0, 1) that decide the dropout.
        """
        view = views[self.views[role]]
        inputs = {key: view[key] for key in (structures.FRAMES, structures.NUM_FRAMES)}
        if with_states:
            sampled = views[structures.SAMPLED]
            positions = sampled[structures.FRAME_INDICES]
            if self.views[role] == structures.SAMPLED:
                own = tf.range(tf.shape(positions)[1])
                positions = tf.broadcast_to(own, tf.shape(positions))
            inputs["state_indices"] = positions
            inputs["num_states"] = sampled[structures.NUM_FRAMES]
        if dropout_noise is not None:
            inputs["dropout_noise"] = dropout_noise
        return self.network(role)(inputs, training=training)

    def call(self, inputs: dict, training: bool = False) -> dict:
        """Batch → Outputs of every role."""
        roles = [role for role in self.views if self.network(role) is not None]
        return {
            role: self.forward(role, inputs[structures.VIEWS], training)
            for role in roles
        }
