"""Samplers: hand-written cases, and what must hold for every length and key."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.data import faults, frame_sampling

MAX_FRAMES = 12
DRAWING = ("random", "uniform_jitter", "mixed")


def call(sampler, num_frames, k, max_frames=MAX_FRAMES, keys=None):
    """The sampler's answer as numpy arrays; key i is i where none are given."""
    keys = range(len(num_frames)) if keys is None else keys
    given = tf.constant(num_frames, tf.int32), k, max_frames
    indices, valid = frame_sampling.pick(sampler, *given, tf.constant(keys, tf.int64))
    return indices.numpy(), valid.numpy()


def pick(sampler, num_frames, k, max_frames=MAX_FRAMES, keys=None):
    """For each video, the list of its chosen frames."""
    indices, valid = call(sampler, num_frames, k, max_frames, keys)
    return [row[:n].tolist() for row, n in zip(indices, valid, strict=True)]


# k = 4 of at most 12 frames; n = 0, 1, k - 1, k, k + 1, a length between, the maximum.
LENGTHS = [0, 1, 3, 4, 5, 10, 12]
SHORT = [[], [0], [0, 1, 2], [0, 1, 2, 3]]  # What most give for n <= k.
EXPECTED = {
    # floor(i * n / 4): 0, 1.25, 2.5, 3.75; 0, 2.5, 5, 7.5; 0, 3, 6, 9.
    "uniform": [*SHORT, [0, 1, 2, 3], [0, 2, 5, 7], [0, 3, 6, 9]],
    # floor((2i + 1) * n / 8): .6, 1.9, 3.1, 4.4; 1.25, 3.75, 6.25, 8.75; 1.5, 4.5, ...
    "uniform_center": [*SHORT, [0, 1, 3, 4], [1, 3, 6, 8], [1, 4, 7, 10]],
    # Positions 0, 3, 6, 9 of the padded video, where it has a frame.
    "uniform_stride": [[], [0], [0], [0, 3], [0, 3], [0, 3, 6, 9], [0, 3, 6, 9]],
    "first": [*SHORT, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]],
    "middle": [*SHORT, [0, 1, 2, 3], [3, 4, 5, 6], [4, 5, 6, 7]],
    "last": [*SHORT, [1, 2, 3, 4], [6, 7, 8, 9], [8, 9, 10, 11]],
    # Positions 8 to 11 of the padded video.
    "last_padded": [[], [], [], [], [], [8, 9], [8, 9, 10, 11]],
    # 2 at the start, 1 in the middle, 1 at the end.
    "first_middle_last": [*SHORT, [0, 1, 2, 4], [0, 1, 4, 9], [0, 1, 5, 11]],
    # In the order 2, 4, 0, 3; 5, 1, 8, 3; 6, 1, 10, 3: see the test of `nested`.
    "nested": [*SHORT, [0, 2, 3, 4], [1, 3, 5, 8], [1, 3, 6, 10]],
    "all": [list(range(n)) for n in LENGTHS],
}


@pytest.mark.parametrize("sampler", EXPECTED)
def test_the_frames_of_each_length_are_those_written_down(sampler):
    assert pick(sampler, LENGTHS, 4) == EXPECTED[sampler]


def test_every_sampler_has_its_cases():
    assert set(frame_sampling.SAMPLERS) == {*EXPECTED, *DRAWING}


@pytest.mark.parametrize("sampler", frame_sampling.SAMPLERS)
@pytest.mark.parametrize("k", [1, 2, 4, 7, MAX_FRAMES])
def test_frames_are_distinct_sorted_and_in_the_video(sampler, k):
    lengths = list(range(MAX_FRAMES + 1))
    indices, valid = call(sampler, lengths, k)
    width = MAX_FRAMES if sampler == "all" else k
    assert indices.shape == (len(lengths), width)
    assert indices.dtype == valid.dtype == np.int32
    for row, num_valid, n in zip(indices, valid, lengths, strict=True):
        chosen = row[:num_valid].tolist()
        assert chosen == sorted(set(chosen))
        assert all(0 <= t < n for t in chosen)
        assert not row[num_valid:].any()
        if sampler not in ("uniform_stride", "last_padded", "mixed"):
            assert num_valid == min(n, width)  # Nothing that fits is left out.


def test_uniform_is_exact_integer_arithmetic_for_every_length():
    lengths = list(range(31, 301))
    expected = [[i * n // 30 for i in range(30)] for n in lengths]
    assert pick("uniform", lengths, 30, 300) == expected


@pytest.mark.parametrize("k", [7, 30])
def test_uniform_stride_has_the_ceiling_of_n_over_stride(k):
    lengths = list(range(301))
    stride = 300 // k
    _, valid = call("uniform_stride", lengths, k, 300)
    assert valid.tolist() == [min(int(np.ceil(n / stride)), k) for n in lengths]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 30])
def test_first_middle_last_gives_extras_to_the_first_then_the_middle(k):
    lengths = range(k + 1, 41)
    first, middle, last = ((k + more) // 3 for more in (2, 1, 0))
    rows = pick("first_middle_last", lengths, k, 40)
    for n, chosen in zip(lengths, rows, strict=True):
        start = (n - middle) // 2
        runs = range(first), range(start, start + middle), range(n - last, n)
        assert chosen == [t for run in runs for t in run]
        assert chosen == sorted(set(chosen))  # They do not overlap.


def ordered(num_frames, k):
    """`nested` in its own order, for one video."""
    return pick("nested(in_time=False)", [num_frames], k, 60)[0]


def distance(n, chosen):
    """Sum over the frames of the distance to the nearest chosen one."""
    return np.abs(np.arange(n)[:, np.newaxis] - chosen).min(axis=1).sum()


@pytest.mark.parametrize("n", [1, 2, 9, 10, 37, 60])
def test_every_prefix_of_nested_is_spread_over_the_video(n):
    whole = ordered(n, 30)
    assert sorted(whole) == sorted(set(whole))
    for k in (1, 2, 5, 12, 30):
        chosen = whole[:k]
        assert ordered(n, k) == chosen
        assert pick("nested", [n], k, 60) == [sorted(chosen)]
        if k > n:
            continue
        # Greedy: no other last frame is nearer to all frames.
        others = (distance(n, [*chosen[:-1], t]) for t in range(n))
        assert distance(n, chosen) == min(others)
        # Each alone, uniform_center is about the best; two are a third farther.
        (best,) = pick("uniform_center", [n], k, 60)
        assert distance(n, chosen) <= 1.34 * distance(n, best)


def test_nested_refuses_more_frames_than_its_table_can_have():
    with pytest.raises(ValueError, match="--max_frames=1001"):
        call("nested", [5], 2, 1001)


@pytest.mark.parametrize("sampler", DRAWING)
def test_a_drawn_choice_changes_with_the_key(sampler):
    rows = pick(sampler, [300] * 50, 30, 300)
    assert len({tuple(row) for row in rows}) == 50


@pytest.mark.parametrize("sampler", DRAWING)
def test_a_drawn_choice_depends_on_neither_batch_nor_position(sampler):
    lengths, keys = [200, 300, 31, 45, 300], [5, 2**61 + 3, 7, 7, 11]
    together = pick(sampler, lengths, 30, 300, keys)
    alone = [
        pick(sampler, [n], 30, 300, [key])[0]
        for n, key in zip(lengths, keys, strict=True)
    ]
    turned = pick(sampler, lengths[::-1], 30, 300, keys[::-1])[::-1]
    assert together == alone == turned


def test_random_draws_pairs_of_frames_independently():
    n, k, videos = 10, 2, 4500
    indices, _ = call("random", [n] * videos, k, n, keys=range(videos))
    pairs = np.bincount(indices[:, 0] * n + indices[:, 1], minlength=n * n)
    counts = pairs.reshape(n, n)[np.triu_indices(n, 1)]
    # 45 pairs, 100 of each expected: chi-squared with 44 degrees of freedom has
    # mean 44 and standard deviation 9.4.
    assert ((counts - 100) ** 2 / 100).sum() < 44 + 5 * 9.4


def test_uniform_jitter_takes_one_frame_of_each_part_and_each_at_some_time():
    n, k, videos = 23, 5, 400
    indices, _ = call("uniform_jitter", [n] * videos, k, n, keys=range(videos))
    edges = [i * n // k for i in range(k + 1)]
    for part in range(k):
        seen = set(indices[:, part].tolist())
        assert seen == set(range(edges[part], edges[part + 1]))


@pytest.mark.parametrize("sampler", ["uniform_center", "random"])
def test_each_video_may_have_a_number_of_frames_of_its_own(sampler):
    num_frames, each_k = tf.constant([9, 3, 20, 9, 0]), tf.constant([4, 4, 1, 2, 3])
    keys = tf.range(5, dtype=tf.int64) * 7919
    indices, valid = frame_sampling.pick_each(
        sampler, num_frames, each_k, 4, MAX_FRAMES, keys
    )
    for row, k in enumerate(each_k.numpy()):
        alone = (x[row : row + 1] for x in (num_frames, keys))
        found, count = frame_sampling.pick(sampler, next(alone), k, MAX_FRAMES, *alone)
        assert valid[row] == count[0]
        np.testing.assert_array_equal(indices[row, :k], found[0])
        assert not indices[row, k:].numpy().any()


# --------------------------------------------------------------- samplers of users


@pytest.fixture
def register(monkeypatch):
    """Adds a sampler named `mine` for one test."""
    return lambda sampler: monkeypatch.setitem(
        frame_sampling.SAMPLERS._entries, "mine", sampler
    )


def first_two(num_frames, k, max_frames, keys):
    """A sampler as a user may write it: int64, and nonzero after `valid`."""
    del max_frames, keys
    valid = tf.cast(tf.minimum(num_frames, k), tf.int64)
    return tf.zeros_like(valid)[:, tf.newaxis] + tf.range(k, dtype=tf.int64), valid


def checked(num_frames, k=2):
    """The result of `pick` with the sampler `mine`, in a graph of any batch size."""
    rows = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[rows])
    def call(num_frames):
        keys = tf.cast(num_frames, tf.int64)
        return frame_sampling.pick("mine", num_frames, k, MAX_FRAMES, keys)

    return [part.numpy() for part in call(tf.constant(num_frames, tf.int32))]


def test_positions_become_int32_and_0_after_valid(register):
    register(first_two)
    indices, valid = checked([0, 1, 2, 9])
    # The sampler gives 0, 1 for every video.
    assert indices.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]
    assert valid.tolist() == [0, 1, 2, 2]
    assert indices.dtype == valid.dtype == np.int32


@pytest.mark.parametrize(
    "indices, valid, reason",
    [
        # The second video has 3 frames: 0, 1 and 2.
        ([[0, 1], [0, 3]], [2, 2], "frame 3 of a video of 3 frames is not in [0, 3)."),
        ([[0, 1], [-1, 1]], [2, 2], "frame -1 of a video of 3 frames is not in [0, 3)"),
        # 2**32 would be 0 in int32.
        (
            [[0, 1], [2**32, 1]],
            [2, 2],
            "frame 4294967296 of a video of 3 frames is not",
        ),
        (
            [[0, 1], [0, 1]],
            [2, -1],
            "valid -1 of a video of 3 frames is not in [0, 2].",
        ),
        ([[0, 1], [0, 1]], [2, 3], "valid 3 of a video of 3 frames is not in [0, 2]."),
        # The first video has 2 frames; the last row is padding.
        ([[0, 1]] * 3, [2, 2, 1], "valid 1 of a video of 0 frames is not in [0, 0]."),
    ],
)
def test_positions_outside_of_a_video_are_refused(register, indices, valid, reason):
    register(lambda *_: (tf.constant(indices), tf.constant(valid)))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        checked([2, 3, 0][: len(valid)])
    line = faults.describe_error(caught.value)
    assert line.startswith(f"Sampler mine: {reason}")


@pytest.mark.parametrize(
    "give, reason",
    [
        (lambda rows: rows, "returns one tensor, not a pair of tensors, indices"),
        (lambda rows: None, "returns NoneType, not a pair of tensors, "),
        (lambda rows: (rows, rows, rows), "returns tuple, not a pair of tensors, "),
        (lambda rows: (rows, None), "returns tuple, not a pair of tensors, "),
        # k = 2 frames were requested, for any number of videos.
        (lambda rows: (tf.zeros([5, 3], tf.int32), rows), "indices are [5, 3], not "),
        (lambda rows: (rows, rows), "indices are [None], not [None, 2]."),
        (
            lambda rows: (tf.stack([rows, rows], axis=1), rows[:, tf.newaxis]),
            "valid are [None, 1], not [None].",
        ),
        (
            lambda rows: (tf.zeros([tf.size(rows), 2]), rows),
            "indices are float32, not int32.",
        ),
    ],
)
def test_anything_but_two_tensors_of_integers_is_refused(register, give, reason):
    register(lambda num_frames, *_: give(num_frames))
    with pytest.raises(ValueError) as caught:
        checked([2, 3])
    line = str(caught.value).strip().splitlines()[-1]  # Behind AutoGraph's stack.
    assert f"Sampler mine{':' if ' are ' in reason else ''} {reason}" in line


def every(num_frames, k, max_frames, keys, step=2):
    """Frames 0, step, 2 * step, ..."""
    del max_frames, keys
    valid = tf.minimum(-(-num_frames // step), k)
    return tf.zeros_like(valid)[:, tf.newaxis] + tf.range(k) * step, valid


def test_a_sampler_takes_the_arguments_of_its_specification(register):
    register(every)
    lengths, keys = tf.constant([9, 4]), tf.zeros(2, tf.int64)
    for text, expected in (
        ("mine", [[0, 2, 4], [0, 2, 0]]),
        ("mine()", [[0, 2, 4], [0, 2, 0]]),
        ("mine(step=3)", [[0, 3, 6], [0, 3, 0]]),
    ):
        indices, _ = frame_sampling.pick(text, lengths, 3, MAX_FRAMES, keys)
        assert indices.numpy().tolist() == expected
        assert not frame_sampling.changes_between_epochs(text, 3, MAX_FRAMES)


def test_an_argument_of_the_wrong_type_names_the_sampler(register):
    register(every)
    lengths, keys = tf.constant([9, 4]), tf.zeros(2, tf.int64)
    with pytest.raises(ValueError, match=r"^Sampler mine\(step='x'\): "):
        frame_sampling.pick("mine(step='x')", lengths, 3, MAX_FRAMES, keys)
