"""lstm.py: the equations, its two implementations, and what padding may not do."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small
from yt8m_distill.models import lstm

# float32 against float64 over at most seven steps of numbers around 1: some dozens
# of roundings of 6e-8.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
# Gradients add up products of such numbers over all rows and steps.
GRADIENTS_CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# Name of the implementation, training; `padded` is `hoisted` with padded kernels, as
# those of 1024 cells are; `unrolled` has no loop.
PATHS = [
    *[("hoisted", False), ("hoisted", True), ("padded", False), ("padded", True)],
    *[("unrolled", False), ("keras", True)],
]

LENGTHS = [7, 1, 0, 4, 6]


@contextlib.contextmanager
def way(name: str):
    """Within it the module goes this way; gives the implementation."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        if name == "padded":
            patch.setattr(lstm, "_ALIASING", 1)
            patch.setattr(lstm, "FEW_FRAMES", 0)
        if name == "unrolled":
            stack.enter_context(lstm.unrolled())
        yield "keras" if name == "keras" else "hoisted"


@pytest.fixture(params=PATHS, ids=str)
def path(request):
    """Implementation and `training` of each way through the module."""
    name, training = request.param
    with way(name) as implementation:
        yield implementation, training


@pytest.mark.parametrize(
    "width, columns",
    [(4096, 16), (1024, 16), (3072, 16), (4112, 0), (1152, 0), (12, 0)],
)
def test_only_rows_a_multiple_of_4_kilobytes_apart_are_padded(width, columns):
    assert lstm.padding(width) == columns


@pytest.mark.parametrize("limit, padded", [(7 * 3, True), (7 * 3 + 1, False)])
def test_few_frames_are_not_worth_the_padding(monkeypatch, limit, padded):
    monkeypatch.setattr(lstm, "_ALIASING", 4)
    monkeypatch.setattr(lstm, "FEW_FRAMES", limit)
    random = np.random.default_rng(0)
    shapes = ((7, 3, 2), (2, 12), (3, 12), (12,))
    values = [tf.constant(random.normal(size=s), tf.float32) for s in shapes]
    used = []
    original = lstm._run_padded
    monkeypatch.setattr(
        lstm, "_run_padded", lambda *a, **k: used.append(1) or original(*a, **k)
    )
    found = lstm.lstm(*values)
    assert bool(used) is padded
    expected = lstm.lstm(*values, training=True)
    np.testing.assert_allclose(found.h, expected.h, **CLOSE)


def make_stack(implementation="hoisted", layers=2, seed=0):
    stack = lstm.StackedLSTM(cells=3, layers=layers, implementation=implementation)
    stack.build((None, None, 4))
    small.randomize(stack, seed)
    return stack


def make_input(seed=0, lengths=LENGTHS, steps=7):
    """[T, N, 4] with garbage instead of zeros after a row's length."""
    x = np.random.default_rng(seed).normal(size=(steps, len(lengths), 4))
    return tf.constant(x, tf.float32), tf.constant(lengths, tf.int32)


@pytest.mark.parametrize("layers", [1, 3])
def test_final_states_are_those_of_each_rows_last_valid_step(path, layers):
    implementation, training = path
    stack = make_stack(implementation, layers)
    x, lengths = make_input()
    found = stack(x, lengths, training=training)[0]
    assert found.dtype == tf.float32
    assert found.shape == (len(LENGTHS), 2 * layers * 3) == (5, stack.state_size)
    for row, length in enumerate(LENGTHS):
        expected = small.final_state(x[:length, row].numpy(), stack)
        np.testing.assert_allclose(found[row], expected, **CLOSE)


def test_a_row_of_length_0_gives_zeros_and_no_gradient(path):
    implementation, training = path
    stack = make_stack(implementation)
    x, lengths = make_input(lengths=[0, 0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        states = stack(x, lengths, training=training)[0]
    np.testing.assert_array_equal(states, np.zeros((2, 12)))
    gradients = tape.gradient(states, [x, *stack.trainable_variables])
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def gradients_of(stack, x, lengths, training, seed):
    """Of a random combination of the final states: outputs, then gradients."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        states = stack(x, lengths, training=training)[0]
        direction = np.random.default_rng(seed).normal(size=states.shape)
        loss = tf.reduce_sum(states * tf.constant(direction, tf.float32))
    return states, tape.gradient(loss, [x, *stack.trainable_variables])


@pytest.mark.parametrize("seed", range(2))
def test_all_implementations_agree_in_outputs_and_gradients(seed):
    results = []
    x, lengths = make_input(seed)
    for name, training in PATHS:
        with way(name) as implementation:
            stack = make_stack(implementation, seed=seed)
            results.append(gradients_of(stack, x, lengths, training, seed))
    states, gradients = results[0]
    assert all(np.abs(gradient).max() > 0.01 for gradient in gradients)
    for other_states, others in results[1:]:
        np.testing.assert_allclose(other_states, states, **CLOSE)
        for gradient, other in zip(gradients, others, strict=True):
            np.testing.assert_allclose(other, gradient, **GRADIENTS_CLOSE)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_the_slopes_of_the_equations(training):
    random = np.random.default_rng(0)
    values = [random.normal(size=s) for s in ((5, 1, 2), (2, 12), (3, 12), (12,))]
    # Directions of c and of h at all five steps, so every path of the gradient counts.
    directions = random.normal(size=(2, 5, 3))

    def loss(x, *weights):
        return np.sum(directions * np.stack(small.lstm(x[:, 0], *weights)))

    tensors = [tf.constant(value, tf.float32) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = tf.stack([s[:, 0] for s in lstm.lstm(*tensors, training=training)])
        total = tf.reduce_sum(found * tf.constant(directions, tf.float32))
    gradients = tape.gradient(total, tensors)

    step = 1e-5  # central differences in float64: their own error is about 1e-10
    for value, gradient in zip(values, gradients, strict=True):
        for index in np.ndindex(value.shape):
            middle = value[index]
            value[index] = middle + step
            above = loss(*values)
            value[index] = middle - step
            below = loss(*values)
            value[index] = middle
            slope = (above - below) / (2 * step)
            assert gradient[index].numpy() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_data_after_a_rows_length_is_not_read(path):
    implementation, training = path
    stack = make_stack(implementation)
    x, lengths = make_input()
    behind = np.arange(7)[:, np.newaxis] >= np.array(LENGTHS)
    other = np.where(behind[..., np.newaxis], 1e3, x)
    states, gradients = gradients_of(stack, x, lengths, training, seed=1)
    others, _ = gradients_of(stack, tf.constant(other), lengths, training, seed=1)
    np.testing.assert_array_equal(others, states)
    np.testing.assert_array_equal(gradients[0].numpy()[behind], 0.0)


def test_a_row_does_not_depend_on_padding_or_other_rows(path):
    implementation, training = path
    stack = make_stack(implementation)
    x, lengths = make_input()
    together = stack(x, lengths, training=training)[0]
    for row, length in enumerate(LENGTHS):
        steps = max(length, 1)
        alone = stack(
            x[:steps, row : row + 1], lengths[row : row + 1], training=training
        )[0]
        # Products of another shape may add in another order: a rounding apart.
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-6)


# Without a loop the number of steps is known.
@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in PATHS if p[0] != "unrolled"], indirect=True
)
def test_a_graph_of_unknown_shape_gives_the_same_states(path):
    implementation, training = path
    stack = make_stack(implementation, layers=1)

    def run(x, lengths):
        with tf.GradientTape() as tape:
            states = stack(x, lengths, training=training)[0]
            loss = tf.reduce_sum(states)
        return states, tape.gradient(loss, stack.trainable_variables)

    shapes = ([None, None, 4], tf.float32), ([None], tf.int32)
    specs = [tf.TensorSpec(*shape) for shape in shapes]
    graph = tf.function(run, input_signature=specs, autograph=False)
    for lengths, steps in ((LENGTHS, 7), ([2, 3], 3), ([1], 1)):
        x, lengths = make_input(lengths=lengths, steps=steps)
        states, gradients = graph(x, lengths)
        expected, expected_gradients = run(x, lengths)
        np.testing.assert_allclose(states, expected, **CLOSE)
        for found, eager in zip(gradients, expected_gradients, strict=True):
            if eager is None:  # A single step does not read the recurrent kernel.
                assert steps == 1
                eager = np.zeros(found.shape)
            np.testing.assert_allclose(found, eager, **GRADIENTS_CLOSE)


def test_the_forget_gate_starts_open():
    stack = lstm.StackedLSTM(cells=2, layers=1)
    stack.build((None, None, 4))
    expected = [0, 0, 1, 1, 0, 0, 0, 0]  # i, f, g, o
    np.testing.assert_array_equal(stack.stack[0].cell.bias.numpy(), expected)


def test_auto_takes_keras_only_where_a_gpu_is_visible(monkeypatch):
    stack = lstm.StackedLSTM(cells=2, layers=1)
    for devices in ([], ["GPU:0"]):
        monkeypatch.setattr(
            tf.config, "list_logical_devices", lambda kind, found=devices: found
        )
        assert stack.uses_keras == bool(devices)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_policy_stays_close_to_float32(use_policy, path, policy):
    implementation, training = path
    x, lengths = make_input()
    exact = make_stack(implementation)(x, lengths, training=training)[0]
    use_policy(policy)
    stack = make_stack(implementation)
    assert {v.dtype for v in stack.trainable_variables} <= {"float32", tf.float32}
    states, gradients = gradients_of(stack, x, lengths, training, seed=0)
    assert states.dtype == tf.float32
    assert all(gradient.dtype == tf.float32 for gradient in gradients)
    error = np.abs(states - exact).max()
    # The weights are rounded by a factor of 2^-9 (bfloat16) or 2^-12 (float16); some
    # seven steps of two layers multiply that by a few tens at most.
    unit = {"mixed_bfloat16": 2**-9, "mixed_float16": 2**-12}[policy]
    assert 0 < error < 40 * unit
