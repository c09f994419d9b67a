"""Two videos as one: against plain numpy, for all views and both ways of reading."""

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers as helpers
from yt8m_distill.data import mixing, pipeline

VIEWS = {
    "all": pipeline.ViewSpec("all", 12),
    "sampled": pipeline.ViewSpec("uniform", 4),
    "random": pipeline.ViewSpec("random", 3),
}
TRAINING = {"training": True, "shuffle_buffer_size": 9, "batch_size": 8}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """23 videos of 1 to 11 frames, every third without labels; random bytes."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shards")
    videos = []
    for number in range(23):
        length = 1 + number % 11
        frames = {
            name: random.integers(0, 256, (length, size), dtype=np.uint8)
            for name, size in helpers.SIZES.items()
        }
        labels = [number % 5] if number % 3 else []
        videos.append(helpers.frame_level(f"v{number}", labels, frames))
    return [
        helpers.write_shard(folder / "a", videos[:9]),
        helpers.write_shard(folder / "b", videos[9:]),
    ]


@pytest.fixture(scope="module")
def originals(shards) -> dict:
    """Id → frames [T, D] and labels [C], as they are."""
    (batch,) = helpers.read(shards, VIEWS, batch_size=23)
    view = batch["views"]["all"]
    return {
        video_id: (frames[:count], labels)
        for video_id, frames, count, labels in zip(
            batch["video_id"],
            view["frames"],
            view["num_frames"],
            batch["labels"],
            strict=True,
        )
    }


def joined(kind: str, s: int, a: np.ndarray, b: np.ndarray):
    """The altered video of the share s / 256, and the share of a's labels."""
    if kind == "cut":
        end, begin = s * len(a) // 256, s * len(b) // 256
        frames = np.concatenate([a[:end], b[begin:]])
        return frames, end / len(frames)
    frames = [
        (s * int(x) + (256 - s) * int(y) + 128) // 256
        for t in range(len(a))
        for x, y in zip(a[t], b[t * len(b) // len(a)], strict=True)
    ]
    return np.array(frames, np.uint8).reshape(a.shape), s / 256


def expected_partners(groups) -> list[int]:
    """Round each group; group 0 are padding rows."""
    found = list(range(len(groups)))
    for group in set(groups) - {0}:
        rows = [row for row, other in enumerate(groups) if other == group]
        for row, following in zip(rows, rows[1:] + rows[:1], strict=True):
            found[row] = following
    return found


@pytest.mark.parametrize("seed", range(6))
def test_partners_go_round_each_group(seed):
    random = np.random.default_rng(seed)
    groups = random.integers(0, 3, random.integers(1, 12))
    found = mixing.partners(tf.constant(groups, tf.int32)).numpy().tolist()
    assert found == expected_partners(groups.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", mixing.KINDS)
def test_all_views_of_a_row_are_of_one_altered_video(shards, originals, kind):
    shares = []
    for epoch in range(2):
        how = {**TRAINING, "epoch": epoch, "mix": kind, "label_fraction": 0.6}
        plain = helpers.read(shards, VIEWS, **{**how, "mix": "none"})
        batches = helpers.read(shards, VIEWS, **how)
        for batch, before in zip(batches, plain, strict=True):
            ids = batch["video_id"]
            np.testing.assert_array_equal(ids, before["video_id"])
            for name in ("weights", "label_weights"):
                np.testing.assert_array_equal(batch[name], before[name])
            groups = (before["weights"] + before["label_weights"]).astype(int).tolist()
            for row, other in enumerate(expected_partners(groups)):
                if not groups[row]:
                    assert not ids[row] and not batch["labels"][row].any()
                    assert not any(
                        v["frames"][row].any() for v in batch["views"].values()
                    )
                    continue
                whole = batch["views"]["all"]
                frames = whole["frames"][row, : whole["num_frames"][row]]
                a, b = originals[ids[row]][0], originals[ids[other]][0]
                fitting = []
                for s in range(256):
                    altered, share = joined(kind, s, a, b)
                    if np.array_equal(altered, frames):
                        fitting.append((s, share))
                assert fitting
                labels = before["labels"][[row, other]]
                assert any(
                    np.allclose(
                        batch["labels"][row], y * labels[0] + (1 - y) * labels[1]
                    )
                    for _, y in fitting
                )
                if row != other:
                    shares.append(np.mean([s for s, _ in fitting]) / 256)
                for view in batch["views"].values():
                    count = view["num_frames"][row]
                    assert count == min(len(frames), view["frames"].shape[1])
                    chosen = view["frame_indices"][row, :count]
                    assert len(set(chosen.tolist())) == count
                    np.testing.assert_array_equal(
                        view["frames"][row, :count], frames[chosen]
                    )
                    assert not view["frames"][row, count:].any()
    # Uniform in [0, 1): 40 of them are as far off once in a million.
    assert len(shares) > 40 and abs(np.mean(shares) - 0.5) < 5 * np.sqrt(1 / 12 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", mixing.KINDS)
def test_batches_are_the_same_however_they_are_read(shards, kind):
    how = {**TRAINING, "mix": kind, "batch_size": 6}
    whole = helpers.read(shards, VIEWS, **how)
    parsed = helpers.read(shards, VIEWS, **how, use_index="never")
    helpers.assert_same_batches(parsed, whole)
    later = helpers.read(shards, VIEWS, **how, skip_batches=2)
    helpers.assert_same_batches(later, whole[2:])
    parts = [helpers.read(shards, VIEWS, **how, input_shard=(i, 3)) for i in range(3)]
    helpers.assert_same_batches(helpers.joined(parts), whole)
    # An evaluation sees the videos as they are.
    still = {**how, "training": False}
    plain = helpers.read(shards, VIEWS, **{**still, "mix": "none"})
    helpers.assert_same_batches(helpers.read(shards, VIEWS, **still), plain)


def test_video_level_vectors_are_mixed_too(tmp_path):
    data = helpers.data_settings(
        frame_features=False, feature_names="x", feature_sizes="2"
    )
    vectors = {f"v{n}": [float(n), 1.0] for n in range(4)}
    records = [
        helpers.video_level(k, [n], {"x": v})
        for n, (k, v) in enumerate(vectors.items())
    ]
    shard = helpers.write_shard(tmp_path / "a", records)
    how = {"training": True, "batch_size": 4, "mix": "mixup"}
    (batch,) = helpers.read([shard], {"all": VIEWS["all"]}, data, **how)
    expected = batch["labels"][:, :4] @ np.array(list(vectors.values()))
    np.testing.assert_allclose(
        batch["views"]["all"]["frames"][:, 0], expected, rtol=1e-6
    )
    assert (batch["labels"].max(axis=1) < 1).any()
