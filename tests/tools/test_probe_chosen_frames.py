"""tools/probe_chosen_frames.py: which frames are chosen, and that a scorer learns."""

import numpy as np
import pytest

from tools import probe_chosen_frames as probe

pytestmark = pytest.mark.once


def test_the_best_frame_of_each_part_is_chosen():
    random = np.random.default_rng(0)
    scores, num_frames = random.normal(size=(30, 11)), np.arange(30) % 12
    for k in (1, 2, 3, 5):
        found = probe.choose(scores, num_frames, k)
        for row, n in zip(range(30), num_frames, strict=True):
            if n <= k:
                assert found[row, :n].tolist() == list(range(n))
                continue
            parts = [range(i * n // k, (i + 1) * n // k) for i in range(k)]
            assert sorted(sum(map(list, parts), [])) == list(range(n))
            best = [max(part, key=lambda t, r=row: scores[r, t]) for part in parts]
            assert found[row].tolist() == best


def test_a_scorer_prefers_frames_near_the_teacher_in_new_videos():
    random = np.random.default_rng(0)
    # The distance is in the feature, added up to the neighbor's.
    frames = random.integers(0, 256, size=(160, 6, 2)).astype(np.uint8)
    num_frames = np.full(160, 6, np.int32)
    num_frames[::4] = 4
    distances = frames[..., 0] / 255.0
    distances[:, 1:] += 0.5 * frames[:, :-1, 1] / 255
    distances = distances.astype(np.float32)
    columns = (frames, distances, num_frames)
    scorer = probe.train_scorer(*(x[:128] for x in columns), cells=8, epochs=30)
    new = probe.features.dequantize(frames[128:], num_frames[128:])
    scores = scorer((new, num_frames[128:])).numpy()
    chosen = probe.choose(scores, num_frames[128:], 1)
    found = np.take_along_axis(distances[128:], chosen, axis=1).mean()
    # Of a frame by chance the mean is .5 + 5/6 * .25.
    valid = np.arange(6) < num_frames[128:, None]
    best = np.where(valid, distances[128:], 9).min(axis=1).mean()
    assert found < best + 0.25 * (0.7 - best)
