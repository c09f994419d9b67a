"""Roles, their views, and phases of them: all that steps, loop and actions know.

They work with any roles; only `modes` knows which there are.
"""

import dataclasses
from typing import Any, NamedTuple

from yt8m_distill import registry
from yt8m_distill.data import pipeline
from yt8m_distill.losses import objective as objectives


class Start(NamedTuple):
    """The source of a role's initial weights.

    Attributes:
        role: its name there.
        phase: of this run, whose best network is used; empty if prefix is given.
        prefix: of a checkpoint of another run.
    """

    role: str
    phase: str = ""
    prefix: str = ""


class View(NamedTuple):
    """The specifications of a view in training and in evaluation."""

    training: pipeline.ViewSpec
    evaluation: pipeline.ViewSpec


@dataclasses.dataclass(frozen=True)
class Role:
    """One network's part in a phase.

    Attributes:
        name: its name in logs, folders and checkpoints.
        network: its class and arguments.
        view: name of the view that it reads.
        frames: T, the width of that view.
        features: names of the features that the view has; empty for all.
        more_views: other views that it reads in the same training step; the loss is the
            mean over all views.
        budgets: frames → view, if it is evaluated on several; the largest has the view
            above.
        objective: what it minimizes; None if it is frozen and only guides.
        guides: the roles whose outputs its objective compares with; last its own name,
            if it learns from its main view in the others.
        start: source of its initial weights; None for new weights.
        start_from: another run, of which it copies the weights that fit; see transfer.
        copies_classifier: whether it starts with its guide's classifier.
        copies_network: whether it starts with all of its guide's weights.
        trains_classifier: False keeps the classifier unchanged (L_REP alone does not
            depend on it).
        shares_classifier_with: the role whose classifier it uses; None for its own.
        context: the role whose encoding it reads, too; None for its view alone.
    """

    name: str
    network: registry.Specification
    view: str
    frames: int
    features: tuple[str, ...] = ()
    more_views: tuple[str, ...] = ()
    budgets: dict[int, str] = dataclasses.field(default_factory=dict)
    objective: objectives.Objective | None = None
    guides: tuple[str, ...] = ()
    start: Start | None = None
    start_from: str = ""
    copies_classifier: bool = False
    copies_network: bool = False
    trains_classifier: bool = True
    shares_classifier_with: str | None = None
    context: str | None = None

    @property
    def frozen(self) -> bool:
        """Whether the network only guides."""
        return self.objective is None

    @property
    def every_view(self) -> tuple[str, ...]:
        """The views that it reads in a training step, the main one first."""
        return (self.view, *(() if self.frozen else self.more_views))

    @property
    def keeps_last(self) -> bool:
        """Whether its last epoch counts as the best.

        If only states are compared, the layers after them do not learn, so GAP does not
        measure progress.
        """
        return not self.frozen and self.objective.compares == {"states"}

    @property
    def states_of(self) -> str | None:
        """The view at whose frames it compares intermediate states, or None."""
        needs = not self.frozen and "guide_states" in self.objective.needs
        return self.view if needs else None


@dataclasses.dataclass(frozen=True)
class Phase:
    """Roles that train together, for some epochs.

    Attributes:
        name: also the name of its folder in the train_dir.
        roles: guides before the roles that they guide.
        views: name → specifications of all views that the roles read.
        epochs: passes over the training data.
        settings: name → value of the settings that it depends on.
    """

    name: str
    roles: tuple[Role, ...]
    views: dict[str, View]
    epochs: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def trained(self) -> tuple[Role, ...]:
        """The roles that learn."""
        return tuple(role for role in self.roles if not role.frozen)

    @property
    def frozen(self) -> tuple[Role, ...]:
        """The roles that only guide."""
        return tuple(role for role in self.roles if role.frozen)

    @property
    def is_guided(self) -> bool:
        """Whether any role learns from another."""
        return any(role.guides for role in self.roles)

    @property
    def states_of(self) -> str | None:
        """The view at whose frames intermediate states are compared, if any."""
        return next((r.states_of for r in self.trained if r.states_of), None)

    def view_specs(self, names, training: bool = False) -> dict[str, pipeline.ViewSpec]:
        """View specifications by name, for the pipeline."""
        return {
            name: view.training if training else view.evaluation
            for name, view in self.views.items()
            if name in names
        }

    def describe(self) -> dict:
        """The description of its networks for other programs, as JSON."""
        return {
            role.name: {
                "network": str(role.network),
                "view": role.view,
                "sampler": list(self.views[role.view].evaluation),
                "frames": role.frames,
                "trained": not role.frozen,
                "context": role.context,
            }
            for role in self.roles
        }
