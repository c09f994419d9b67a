"""The GAP that 8 bits cost, by hand."""

import types

import numpy as np
import pytest

from yt8m_distill.serving import quantization

pytestmark = pytest.mark.once

RANGES = {"rgb": (0.0, 255.0), "audio": (0.0, 255.0)}  # Steps of 1.


def network_of(budgets=()):
    """Class 0 has the hundredth of the first frame's rgb, and is the only answer."""

    def classify(frames):
        score = frames[:, 0, :1] / 100
        return {"predictions": score, "class_indexes": np.zeros([2, 1], np.int32)}

    return types.SimpleNamespace(
        widths={"rgb": 1, "audio": 2},
        max_frames=3,
        budgets=budgets,
        choose=lambda num_frames, video_id: [1],
        classify=classify,
    )


def video(name, labels, number, size=1):
    rgb = np.float32([[0.0], [number], [0.0]])
    audio = np.zeros([5, 2], np.uint8)  # Quantized already.
    return quantization.Original(name, labels, {"rgb": rgb[:, :size], "audio": audio})


def test_gap_is_that_of_the_numbers_and_of_what_is_read_of_their_bytes():
    lacking = quantization.Original("c", [0], {"rgb": np.ones([1, 1], np.float32)})
    videos = [video("a", [0], 10.9), video("b", [1, 0], 10.2), video("d", [1], 10.4)]
    found = quantization.cost(network_of(), [*videos, lacking], RANGES)
    # In order of 10.9, 10.4, 10.2: hit, miss, hit; of four labels.
    assert found.gap_of_numbers == pytest.approx((1 + 2 / 3) / 4)
    # All are byte 10, one threshold: two hits of three.
    assert found.gap == pytest.approx(2 * (2 / 3) / 4)
    # A byte 10 is read as 10 + 255 / 512.
    assert found.difference == pytest.approx((10.9 - 10 - 255 / 512) / 100, rel=1e-4)
    assert found.videos == 3


def test_early_exit_gets_the_whole_video():
    found = quantization.cost(network_of((1, 2)), [video("a", [0], 10.9)], RANGES)
    # The first frame, 0, is read as 255 / 512.
    assert found.difference == pytest.approx(255 / 512 / 100, rel=1e-4)


def test_videos_that_do_not_fit_the_network_are_refused():
    with pytest.raises(ValueError, match="rgb is 1 wide.*a"):
        quantization.cost(network_of(), [video("a", [0], 1.0, size=0)], RANGES)
    with pytest.raises(ValueError, match="--model"):
        quantization.cost(network_of(), [video("a", [], 1.0)], RANGES)
