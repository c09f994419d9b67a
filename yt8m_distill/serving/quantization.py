"""What 8 bits cost a network: its GAP on numbers, and on their 8 bits."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from yt8m_distill.data import records
from yt8m_distill.evaluation import average_precision
from yt8m_distill.serving import exported

Ranges = Mapping[str, tuple[float, float]]


class Original(NamedTuple):
    """A video before it is quantized.

    Attributes:
        video_id: its id.
        labels: its classes.
        frames: feature → [T, size], floats; or uint8, quantized already.
    """

    video_id: str
    labels: Sequence[int]
    frames: Mapping[str, np.ndarray]


class Cost(NamedTuple):
    """How a network's answers differ.

    Attributes:
        videos: how many were classified.
        gap: GAP on the 8 bits.
        gap_of_numbers: on the numbers.
        difference: largest difference between the sorted scores.
    """

    videos: int
    gap: float
    gap_of_numbers: float
    difference: float


def cost(
    network: exported.ExportedNetwork, videos: Iterable[Original], ranges: Ranges
) -> Cost:
    """Classifies each video twice.

    Args:
        network: what classifies.
        videos: those that lack a feature, or of which it reads no frame, are left out.
        ranges: low and high of each feature.

    Raises:
        ValueError: for features that the network does not read, or without a label.
    """
    lists = []
    positives, difference = 0, 0.0
    for video in videos:
        if network.widths.keys() - video.frames.keys():
            continue
        frames = np.stack([*_both(network, video, ranges)])  # [2, T, D]
        chosen: Sequence[int] = range(min(frames.shape[1], network.max_frames))
        if not network.budgets:
            chosen = network.choose(frames.shape[1], video.video_id)
        if not chosen:
            continue
        answer = network.classify(frames[:, chosen])
        scores = answer["predictions"]
        lists.append((scores, np.isin(answer["class_indexes"], list(video.labels))))
        positives += len({*video.labels})
        difference = max(difference, float(np.ptp(scores, axis=0).max()))
    if not positives:
        raise ValueError("--model: no video has a label and all features it reads.")
    scores, hits = map(np.stack, zip(*lists, strict=True))  # [N, 2, top_k]
    of_numbers, of_bytes = (
        average_precision.average_precision(scores[:, n], hits[:, n], positives)
        for n in range(2)
    )
    return Cost(len(lists), of_bytes, of_numbers, difference)


def check_widths(network: exported.ExportedNetwork, video: Original) -> None:
    """Raises ValueError for a feature of another width than the network reads."""
    for name, width in network.widths.items():
        if name in video.frames and video.frames[name].shape[1] != width:
            raise ValueError(
                f"--model: its {name} is {width} wide, that of {video.video_id} "
                f"{video.frames[name].shape[1]}."
            )


def _both(network: exported.ExportedNetwork, video: Original, ranges: Ranges):
    """The features side by side, [T, D] float32, before and after quantization."""
    before, after = [], []
    check_widths(network, video)
    for name in network.widths:
        numbers, low_high = video.frames[name], ranges[name]
        stored = numbers
        if numbers.dtype != np.uint8:
            stored = records.quantize(numbers, *low_high)
        read = records.dequantize(stored, *low_high)
        before.append(read if stored is numbers else numbers.astype(np.float32))
        after.append(read)
    length = min(map(len, after))
    for parts in (before, after):
        yield np.concatenate([part[:length] for part in parts], axis=1)
