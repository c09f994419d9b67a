"""Frame samplers: the frames of each video that a view contains.

A sampler processes a whole batch:

    sampler(num_frames [B], k, max_frames, keys [B]) -> indices [B, k], valid [B]

`keys` is a hash of each video, combined with seed and epoch in training; only `random`
and `uniform_jitter` use it. Both results are int32. The first `valid` indices of a
video are positions below `num_frames`; the others have no meaning: `pick` makes them 0.

To add a sampler, register a function of this form with `@SAMPLERS.register("name")`.
Further arguments come from the flag, as in `--frame_sampler="name(step=3)"`. `pick`
calls the sampler and checks its results.
"""

import functools
import inspect

import numpy as np
import tensorflow as tf

from yt8m_distill import registry
from yt8m_distill.data import records

SAMPLERS = registry.Registry("sampler")

# An odd number with irregular bits, whose multiples differ in many bits.
_ODD = 0x9E3779B97F4A7C1

_MAX_NESTED = 1000


def parse(text: str) -> registry.Specification:
    """The specification of a sampler, `name` or `name(step=3)`.

    Raises:
        ValueError: for an unknown sampler, or an argument that it does not take.
    """
    spec = registry.parse(text)
    parameters = list(inspect.signature(SAMPLERS.get(spec.name)).parameters)
    SAMPLERS.check(spec, parameters[:4])
    return spec


def changes_between_epochs(sampler: str, k: int, max_frames: int) -> bool:
    """Whether a sampler depends on the keys of the videos, found by calling it twice.

    Raises:
        ValueError: as `pick`.
    """
    num_frames = tf.range(1, max_frames + 1)
    first, again = (
        pick(sampler, num_frames, k, max_frames, tf.range(start, start + max_frames))[0]
        for start in (tf.constant(1, tf.int64), tf.constant(1 << 40, tf.int64))
    )
    return bool(tf.reduce_any(first != again))


def pick(
    sampler: str, num_frames: tf.Tensor, k: int, max_frames: int, keys: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The results of a sampler, checked, so that later code can rely on them.

    Args:
        num_frames: [B] int32, 0 for a padding row.
        max_frames: T.
        keys: [B] int64.

    Returns:
        indices [B, K] int32, 0 after the valid ones, and valid [B] int32; K is T for
        `all`, otherwise k.

    Raises:
        ValueError: for an unknown sampler or argument, or if the results are not two
            integer tensors of these shapes.
        tf.errors.InvalidArgumentError: (when the graph runs) for a frame that a video
            does not have, or too many; see faults.describe_error.
    """
    spec = parse(sampler)
    draw = SAMPLERS.get(spec.name)
    if draw.__module__ != __name__ and not tf.executing_eagerly():
        # Samplers of users may have `if` and `for` over tensors.
        draw = tf.function(draw)
    try:
        results = draw(num_frames, k, max_frames, keys, **spec.arguments)
    except TypeError as error:
        raise ValueError(f"Sampler {spec}: {error}") from error
    width = max_frames if spec.name == "all" else k
    indices, valid = _as_tensors(sampler, results, num_frames.shape[0], width)
    limits = tf.minimum(tf.cast(num_frames, valid.dtype), width)
    bad_count = (valid < 0) | (valid > limits)
    inside = tf.sequence_mask(valid, width)
    indices = tf.where(inside, indices, 0)
    ends = tf.cast(num_frames, indices.dtype)[:, tf.newaxis]
    bad_frame = inside & ((indices < 0) | (indices >= ends))
    end = [" of a video of ", num_frames, " frames is not in [0, "]
    checks = [
        _refuse(bad_count, [f"Sampler {sampler}: valid ", valid, *end, limits, "]."]),
        _refuse(
            bad_frame, [f"Sampler {sampler}: frame ", indices, *end, num_frames, ")."]
        ),
    ]
    with tf.control_dependencies(checks):
        indices, valid = tf.identity(indices), tf.identity(valid)
    return tf.cast(indices, tf.int32), tf.cast(valid, tf.int32)


def pick_each(
    sampler: str,
    num_frames: tf.Tensor,
    each_k: tf.Tensor,
    k: int,
    max_frames: int,
    keys: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """As `pick`, with another number of frames for each video.

    Args:
        each_k: [B] int32 in 1..k.
        k: width of the indices.
    """

    def draw(number):
        found, count = pick(sampler, num_frames, number, max_frames, keys)
        return tf.pad(found, [[0, 0], [0, k - number]]), count

    draws = [functools.partial(draw, number) for number in range(1, k + 1)]
    # Samplers take k as a Python number; most batches have only one.
    numbers, _ = tf.unique(each_k)

    def body(place, indices, valid):
        found, count = tf.switch_case(numbers[place] - 1, draws)
        here = each_k == numbers[place]
        indices = tf.where(here[:, tf.newaxis], found, indices)
        return place + 1, indices, tf.where(here, count, valid)

    nothing = tf.zeros_like(num_frames)
    start = 0, tf.tile(nothing[:, tf.newaxis], [1, k]), nothing
    _, indices, valid = tf.while_loop(
        lambda place, *_: place < tf.size(numbers), body, start
    )
    return indices, valid


def _refuse(broken: tf.Tensor, what: list) -> tf.Operation:
    """Fails in the graph if `broken` is true anywhere; the error is about the first.

    Args:
        broken: [B] or [B, K] bool.
        what: parts of the message: strings, and [B] or [B, K] tensors of which the
            invalid value is shown.
    """
    # As in records, no tf.cond, which would cost more than the work itself.
    at = tf.where(broken)[:1]  # [1, rank], or [0, rank] if all are valid
    parts = [
        part
        if isinstance(part, str)
        else tf.strings.as_string(tf.gather_nd(part, at[:, : part.shape.rank]))
        for part in what
    ]
    message = records.marked_in_graph(parts)
    return tf.debugging.Assert(~tf.reduce_any(broken), [message])


def _as_tensors(sampler: str, results, rows: int | None, width: int) -> list[tf.Tensor]:
    """Indices [rows, width] and valid [rows]: int32, or int64 for other integers."""
    try:
        indices, valid = results
        parts = [tf.convert_to_tensor(part) for part in (indices, valid)]
    except (TypeError, ValueError) as error:
        name = "one tensor" if tf.is_tensor(results) else type(results).__name__
        raise ValueError(
            f"Sampler {sampler} returns {name}, not a pair of tensors, "
            "indices [B, k] and valid [B]."
        ) from error
    checked = []
    names, shapes = ("indices", "valid"), ([rows, width], [rows])
    for what, part, shape in zip(names, parts, shapes, strict=True):
        if not part.dtype.is_integer:
            raise ValueError(
                f"Sampler {sampler}: {what} are {part.dtype.name}, not int32."
            )
        if not part.shape.is_compatible_with(shape):
            raise ValueError(
                f"Sampler {sampler}: {what} are {part.shape.as_list()}, not {shape}."
            )
        wide = tf.int32 if part.dtype == tf.int32 else tf.int64
        checked.append(tf.ensure_shape(tf.cast(part, wide), shape))
    return checked


def _positions(k: int) -> tf.Tensor:
    return tf.range(k, dtype=tf.int32)[tf.newaxis]  # [1, k]


def _spread(num_frames, k, indices):
    """The indices [B, k], or all frames of a video that has at most k."""
    few = num_frames[:, tf.newaxis] <= k
    return tf.where(few, _positions(k), indices), tf.minimum(num_frames, k)


def _from_start(num_frames, k, start):
    """k consecutive frames from `start` [B], or all of a shorter video."""
    return start[:, tf.newaxis] + _positions(k), tf.minimum(num_frames, k)


@SAMPLERS.register("all")
def all_frames(num_frames, k, max_frames, keys):
    """All frames; k is ignored."""
    return _from_start(num_frames, max_frames, tf.zeros_like(num_frames))


@SAMPLERS.register("uniform")
def uniform(num_frames, k, max_frames, keys):
    """Frames floor(i * n / k), i = 0..k-1; all n if n <= k."""
    indices = _positions(k) * num_frames[:, tf.newaxis] // k
    return _spread(num_frames, k, indices)


@SAMPLERS.register("uniform_center")
def uniform_center(num_frames, k, max_frames, keys):
    """The middle of each of k equal parts: frames floor((2i + 1) * n / 2k)."""
    indices = (2 * _positions(k) + 1) * num_frames[:, tf.newaxis] // (2 * k)
    return _spread(num_frames, k, indices)


@SAMPLERS.register("uniform_stride")
def uniform_stride(num_frames, k, max_frames, keys):
    """Every (max_frames / k)-th position of the padded video (the authors' code)."""
    stride = max(max_frames // k, 1)
    valid = tf.minimum(-(-num_frames // stride), k)
    return tf.zeros_like(num_frames)[:, tf.newaxis] + _positions(k) * stride, valid


@SAMPLERS.register("first")
def first(num_frames, k, max_frames, keys):
    """The first k frames."""
    return _from_start(num_frames, k, tf.zeros_like(num_frames))


@SAMPLERS.register("middle")
def middle(num_frames, k, max_frames, keys):
    """The k frames around the middle."""
    return _from_start(num_frames, k, tf.maximum(num_frames - k, 0) // 2)


@SAMPLERS.register("last")
def last(num_frames, k, max_frames, keys):
    """The last k valid frames."""
    return _from_start(num_frames, k, tf.maximum(num_frames - k, 0))


@SAMPLERS.register("last_padded")
def last_padded(num_frames, k, max_frames, keys):
    """The last k positions of the padded video, which few videos reach."""
    start = tf.zeros_like(num_frames) + max(max_frames - k, 0)
    valid = tf.clip_by_value(num_frames - start, 0, k)
    return start[:, tf.newaxis] + _positions(k), valid


@SAMPLERS.register("first_middle_last")
def first_middle_last(num_frames, k, max_frames, keys):
    """k split over start, middle and end; a remainder goes to start, then middle."""
    sizes = [k // 3 + (k % 3 > part) for part in range(3)]
    n = num_frames[:, tf.newaxis]
    # Sizes differ by at most 1, so the three do not overlap if n > k.
    parts = [
        _positions(sizes[0]) + tf.zeros_like(n),
        (n - sizes[1]) // 2 + _positions(sizes[1]),
        n - sizes[2] + _positions(sizes[2]),
    ]
    return _spread(num_frames, k, tf.concat(parts, axis=1))


@SAMPLERS.register("uniform_jitter")
def uniform_jitter(num_frames, k, max_frames, keys):
    """One frame from each of k equal parts of the video, drawn by its key.

    For `--train_frame_sampler`: other frames in every epoch, evenly spread over the
    video.
    """
    n = num_frames[:, tf.newaxis]
    starts = _positions(k) * n // k
    lengths = tf.maximum((_positions(k) + 1) * n // k - starts, 1)
    parts = tf.cast(_positions(k), tf.int64) * _ODD
    drawn = _mix(_mix(keys)[:, tf.newaxis] + parts) & (2**31 - 1)
    jitter = tf.cast(drawn % tf.cast(lengths, tf.int64), tf.int32)
    return _spread(num_frames, k, starts + jitter)


@SAMPLERS.register("random")
def random(num_frames, k, max_frames, keys):
    """k frames without replacement, in time order, drawn by the video's key."""
    times = tf.range(max_frames, dtype=tf.int64)[tf.newaxis]
    scores = _mix(_mix(keys[:, tf.newaxis]) + times * _ODD)
    scores = tf.bitwise.right_shift(scores & (2**62 - 1), 10)
    inside = tf.sequence_mask(num_frames, max_frames)
    scores = tf.where(inside, scores, -1)
    _, chosen = tf.math.top_k(scores, k)  # [B, k], the valid ones first
    valid = tf.minimum(num_frames, k)
    late = tf.sequence_mask(valid, k)
    chosen = tf.sort(tf.where(late, chosen, max_frames), axis=1)
    return chosen, valid


@SAMPLERS.register("nested")
def nested(num_frames, k, max_frames, keys, in_time=True):
    """The first k of an order of which every prefix is spread evenly over the video.

    So the frames of a smaller k are among those of a larger one. The order is greedy:
    the next frame minimizes the sum over all frames of the distance to the nearest
    selected one; of equal frames the one farthest from those selected, then the one
    nearest to the middle.

    Args:
        in_time: whether the k frames are in time order, or in the order of selection.

    Raises:
        ValueError: if max_frames is above 1000, since time and memory of the table of
            orders grow with its cube and square.
    """
    if max_frames > _MAX_NESTED:
        raise ValueError(
            f"--max_frames={max_frames} is more than the {_MAX_NESTED} of the sampler "
            "nested."
        )
    orders = tf.constant(_nested_orders(k, max_frames))  # [max_frames + 1, k]
    valid = tf.minimum(num_frames, k)
    chosen = tf.gather(orders, num_frames)
    if in_time:
        is_valid = tf.sequence_mask(valid, k)
        chosen = tf.sort(tf.where(is_valid, chosen, max_frames), axis=1)
    return chosen, valid


@functools.lru_cache(maxsize=32)
def _nested_orders(k: int, max_frames: int) -> np.ndarray:
    """[max_frames + 1, k] int32: the order of `nested` for each number of frames."""
    orders = np.zeros([max_frames + 1, k], np.int32)
    for length in range(1, max_frames + 1):
        times = np.arange(length)
        distances = np.abs(times[:, np.newaxis] - times)  # [candidates, frames]
        nearest = np.full(length, length)
        for rank in range(min(k, length)):
            before = orders[length, :rank]
            totals = np.minimum(distances, nearest).sum(axis=1)
            totals[before] = np.iinfo(totals.dtype).max
            best = np.flatnonzero(totals == totals.min())
            crowding = (1 / distances[best][:, before]).sum(axis=1)
            best = best[crowding <= crowding.min() + 1e-9]
            chosen = best[np.abs(2 * best - length).argmin()]
            orders[length, rank] = chosen
            nearest = np.minimum(nearest, distances[chosen])
    return orders


@SAMPLERS.register("mixed")
def mixed(num_frames, k, max_frames, keys, numbers=(), of="random"):
    """Another sampler, with a number of frames drawn for each video by its key.

    For training one student for all these numbers.

    Args:
        numbers: the numbers of frames, each at most k; empty for 1 to k.
        of: specification of the other sampler.
    """
    spec = parse(of)
    numbers = numbers or range(1, k + 1)
    choice = (_mix(keys + _ODD) & (2**31 - 1)) % len(numbers)
    indices, valid = tf.zeros([tf.shape(keys)[0], k], tf.int32), num_frames * 0
    for place, number in enumerate(numbers):
        found, count = SAMPLERS.get(spec.name)(
            num_frames, number, max_frames, keys, **spec.arguments
        )
        here = choice == place
        found = tf.pad(tf.cast(found, tf.int32), [[0, 0], [0, k - number]])
        indices = tf.where(here[:, tf.newaxis], found, indices)
        valid = tf.where(here, tf.cast(count, tf.int32), valid)
    return indices, valid


def _mix(x: tf.Tensor) -> tf.Tensor:
    """A hash of int64 numbers (xor-shift and multiply)."""
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        x = (x ^ tf.bitwise.right_shift(x, tf.cast(shift, tf.int64))) * factor
    return x ^ tf.bitwise.right_shift(x, tf.cast(31, tf.int64))
