"""TeacherStudent: the networks of a run, each on its own view of the video."""

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.models import base, layers


def _copy(source, target, rule: str, advice: str) -> None:
    """Assigns the weights of one layer to another; ValueError unless they fit.

    A context, of one of two networks, is left as it is.
    """
    theirs, own = (
        [v for v in layer.weights if v is not getattr(layer, "context", None)]
        for layer in (source, target)
    )
    shapes = [[tuple(v.shape) for v in variables] for variables in (own, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{rule} of the same shape; the weights are {shapes[0]}, those of its "
            f"guide {shapes[1]}. {advice}"
        )
    for variable, value in zip(own, theirs, strict=True):
        variable.assign(value)


class TeacherStudent(keras.Model):
    """Networks by name: those that guide, and those that learn from them.

    A teacher reads every frame, a student k of them; a baseline is a student without a
    teacher, and there may be several teachers.

    Args:
        networks: role → VideoClassifier.
        views: role → name of the view that its network reads.
        contexts: role → role whose encoding its network reads, too.
    """

    def __init__(
        self,
        networks: dict[str, base.VideoClassifier],
        views: dict[str, str],
        contexts: dict[str, str] | None = None,
    ):
        super().__init__(dtype="float32")
        self.views: dict[str, str] = {}
        self.contexts = dict(contexts or {})
        for role, network in networks.items():
            self.add(role, network, views[role])
        self.built = True

    def add(self, role: str, network: base.VideoClassifier, view: str) -> None:
        """Adds the network of one more role, which reads this view."""
        if hasattr(self, role):
            raise ValueError(f"A role cannot be called {role}.")
        # An attribute each: Keras 3 (3.15) hides layers in a dict from
        # tf.train.Checkpoint.
        setattr(self, role, network)
        self.views[role] = view

    def network(self, role: str) -> base.VideoClassifier:
        """The network of a role."""
        return getattr(self, role)

    def copy_classifier(
        self, source: str, target: str, reason: str = "--classifier=copied"
    ) -> None:
        """Sets a role's classifier to another's present values.

        Args:
            source, target: the roles.
            reason: the flag that asks for it, for the error.

        Raises:
            ValueError: if the two classifiers differ in shape.
        """
        other = ", or --classifier=own" if reason.startswith("--classifier") else ""
        _copy(
            self.network(source).head,
            self.network(target).head,
            f"{reason} needs two classifiers",
            f"Give both networks the same head{other}.",
        )

    def copy_network(self, source: str, target: str) -> None:
        """Sets all of a role's weights to another's present values.

        Blocks may differ in length: no weight belongs to a place in a block.

        Raises:
            ValueError: if the two networks differ in kind or shape.
        """
        theirs, own = self.network(source), self.network(target)
        if type(theirs) is not type(own):
            raise ValueError(
                "--student_start=teacher needs two networks of the same kind; the "
                f"{target} is a {type(own).__name__}, the {source} a "
                f"{type(theirs).__name__}."
            )
        _copy(
            theirs,
            own,
            "--student_start=teacher needs two networks",
            "Give both the same cells, layers and head, or --student_start=new.",
        )

    def forward(
        self,
        role: str,
        views: dict[str, structures.View],
        training: bool = False,
        states_of: str | None = None,
        noise: layers.Noise | None = None,
        view: str | None = None,
        context: structures.Outputs | None = None,
    ) -> structures.Outputs:
        """One role's network on its view.

        Args:
            views: of the batch.
            states_of: a view at whose frames the intermediate states (the paper's I)
                are wanted too, in its order.
            noise: what is random draws from it, see layers.Noise.
            view: name of another view than the role's own.
            context: outputs of the role that is its context; None to compute them.
        """
        inputs = self._with_context(
            role, views[view or self.views[role]], views, context
        )
        if states_of is not None:
            sampled = views[states_of]
            positions = sampled[structures.FRAME_INDICES]
            if self.views[role] == states_of:
                own = tf.range(tf.shape(positions)[1])
                positions = tf.broadcast_to(own, tf.shape(positions))
            inputs["state_indices"] = positions
            inputs["num_states"] = sampled[structures.NUM_FRAMES]
        if noise is not None:
            inputs["noise"] = noise
        return self.network(role)(inputs, training=training)

    def parts_logits(
        self, role: str, views: dict[str, structures.View], bounds: np.ndarray
    ) -> tf.Tensor:
        """Logits of parts of each video, see VideoClassifier: [B, W, C].

        Args:
            views: of the batch, with all frames.
            bounds: [W, 2], of the parts.
        """
        inputs = self._with_context(role, views[structures.ALL], views)
        if structures.CONTEXT in inputs:
            context = tf.repeat(inputs[structures.CONTEXT], len(bounds), axis=0)
            inputs[structures.CONTEXT] = context
        return self.network(role).parts_logits(inputs, bounds)

    def _with_context(self, role: str, view, views, context=None) -> structures.View:
        """A view, and the context's encoding if the role has one."""
        source = self.contexts.get(role)
        if source is None:
            return dict(view)
        found = context or self.forward(source, views)
        return {**view, structures.CONTEXT: tf.stop_gradient(found.encoding)}

    def call(self, inputs: dict, training: bool = False) -> dict:
        """Batch → Outputs of every role, as of any Keras model."""
        views = inputs[structures.VIEWS]
        return {role: self.forward(role, views, training) for role in self.views}
