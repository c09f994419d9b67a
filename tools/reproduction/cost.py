"""Cost of networks and of their training in multiply-adds."""

import functools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.models import base, builder, lstm
from yt8m_distill.training import modes

# Forward and backward: backward has a product for the inputs and one for the weights.
_LEARNING = 3


def paper_frame(inputs: int = 1024, cells: int = 1024, layers: int = 2) -> int:
    """The paper's "FLOPs" of a frame in Table 4: the lower LSTM, visual feature alone.

    Every layer multiplies its input and its state by four gates, 16.777 M multiply-adds
    with 1024 inputs and 2 x 1024 cells, and has 14 operations per cell.

    Args:
        inputs: width of the visual feature.
        cells, layers: of the lower LSTM.
    """
    products = 4 * cells * (inputs + cells) + (layers - 1) * 4 * cells * (2 * cells)
    return products + 14 * cells * layers


def frames_for(billions: float) -> int:
    """The number of frames that gives a published cost of Table 4."""
    return round(1e9 * billions / paper_frame())


def paper_operations(
    run: settings.RunSettings, role: str, parts: Mapping[str, int]
) -> tuple[int | None, int | None]:
    """The operations that the paper counts for a network and a video of full length.

    Only for the first (visual) feature: the lower LSTM of a HierarchicalLSTM, or the
    expansion, assignment and aggregation of a NeXtVLAD. None for other networks.

    Args:
        run, role: name the network.
        parts: its multiply-adds.

    Returns:
        Those of the frames, and the sum with a HierarchicalLSTM's classifier, which the
        CVPR 2019 version adds.
    """
    planned = modes.networks(run)[role]
    spec, size = registry.parse(str(planned.network)), run.data.sizes[0]
    arguments = base.MODELS.arguments(spec)
    if spec.name == "HierarchicalLSTM":
        frame = paper_frame(size, arguments["cells"], arguments["layers"])
        of_frames = planned.frames * frame
        return of_frames, of_frames + parts["classifier"]
    if spec.name == "NeXtVLAD":
        clusters, groups = arguments["clusters"], arguments["groups"]
        wide = arguments["expansion"] * size
        of_frames = planned.frames * wide * (size + groups * clusters + clusters)
        return of_frames, of_frames
    return None, None


def multiply_adds(run: settings.RunSettings, role: str) -> dict[str, int]:
    """Multiply-adds of a network for a video of full length, by part."""
    planned = modes.networks(run)[role]
    return _multiply_adds(role, str(planned.network), run.data, planned.frames)


@functools.cache
def _multiply_adds(
    role: str, network: str, data: settings.DataSettings, frames: int
) -> dict[str, int]:
    spec = registry.parse(network)
    # Variables take no memory in a graph, and none is drawn.
    with tf.Graph().as_default(), lstm.to_be_read():
        built = builder.build_network(role, spec, data, frames)
    return built.multiply_adds(frames)


def _passes(parts: Mapping[str, int], budgets: Sequence[int]) -> float:
    """What a training step costs, in passes over all frames of a network.

    A student for several k reads the most frames, the fewest, and a random number.

    Args:
        parts: multiply-adds of the network.
        budgets: the values of k; fewer than two are one pass.
    """
    if len(budgets) < 2:
        return 1.0
    largest = max(budgets)
    share = (largest + min(budgets) + sum(budgets) / len(budgets)) / largest
    # The parts after the frames cost the same in every pass.
    fixed = sum(parts.get(n, 0) for n in ("hidden", "bridge", "classifier"))
    total = sum(parts.values())
    return ((total - fixed) * share + 3 * fixed) / total


def phase_cost(
    phase: modes.Phase, parts: Mapping[str, Mapping[str, int]], videos: float
) -> float:
    """Multiply-adds of a phase.

    Args:
        phase: says which of the networks learn; the others guide.
        parts: name of each of its networks → multiply-adds per video, by part.
        videos: number that its networks read, in units of the result.
    """
    budgets = {role.name: tuple(role.budgets) for role in phase.trained}
    return videos * sum(
        (_LEARNING if name in budgets else 1)
        * sum(network.values())
        * _passes(network, budgets.get(name, ()))
        for name, network in parts.items()
    )


def share_of_videos(run: settings.RunSettings, phase: modes.Phase) -> float:
    """The share of the training videos that a phase reads in an epoch."""
    labeled = 1.0 if phase.is_guided else run.training.label_fraction
    return run.training.train_fraction * labeled


def training_cost(run: settings.RunSettings) -> dict[str, float]:
    """Phase → multiply-adds per video of the whole training set, over all its epochs.

    For comparing runs on the same data; evaluations are not counted.
    """
    return {
        phase.name: phase_cost(
            phase,
            {role.name: multiply_adds(run, role.name) for role in phase.roles},
            phase.epochs * share_of_videos(run, phase),
        )
        for phase in modes.phases(run, resolved=False)
    }
