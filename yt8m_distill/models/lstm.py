"""Stacked LSTM layers that compute few and large matrix products.

One layer, gate by gate, with x_t [N, D] and h_0 = c_0 = 0:

    i_t = sigmoid(x_t W_i + h_{t-1} U_i + b_i)
    f_t = sigmoid(x_t W_f + h_{t-1} U_f + b_f)
    g_t = tanh   (x_t W_g + h_{t-1} U_g + b_g)
    o_t = sigmoid(x_t W_o + h_{t-1} U_o + b_o)
    c_t = f_t * c_{t-1} + i_t * g_t
    h_t = o_t * tanh(c_t)

The kernels hold the gates in Keras' order, W = [W_i, W_f, W_g, W_o].

Two implementations compute the same numbers from the same variables:

*   `hoisted` projects all steps at once: x W + b is one product, and only h U remains
    in the loop. The gradient collects dz_t of all steps first, so dW, dU and dx are one
    product each, not one per step. Rows of results are never a multiple of 4 KB apart
    (see `padding`).
*   `keras` is `keras.layers.LSTM`, which runs the cuDNN kernel on a GPU.

`auto` is `keras` if a GPU is visible, otherwise `hoisted`.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from yt8m_distill.models import arguments, layers

IMPLEMENTATIONS = ("auto", "hoisted", "keras")

# Rows of a matrix at distances of a multiple of so many numbers compete for the same
# lines of a processor's cache; one more cache line per row avoids that.
_ALIASING, _CACHE_LINE = 1024, 16
# For fewer frames, copying the kernels costs more than it gains.
FEW_FRAMES = 256


class Sequences(NamedTuple):
    """Cell states and outputs at all steps, time first.

    Attributes:
        c: [T, N, H] float32.
        h: [T, N, H] float32. After a row's length both are without meaning.
    """

    c: tf.Tensor
    h: tf.Tensor


class Shared(NamedTuple):
    """Inputs of an LSTM many of which are the same, each projected once.

    Attributes:
        projected: [F, 4H] float32, or padded: x W + b of F inputs.
        places: [T, N] int32, which of them each step reads.
    """

    projected: tf.Tensor
    places: tf.Tensor


def padding(width: int) -> int:
    """Number of zero columns to add to a matrix of this width before a product.

    A product with 4096 columns, the four gates of 1024 cells, has half the speed of one
    with 4112 (Eigen in TensorFlow 2.21, AMD and Intel processors).
    """
    return _CACHE_LINE if width % _ALIASING == 0 else 0


def _pad_columns(matrix: tf.Tensor) -> tf.Tensor:
    """[..., W] → [..., W + padding(W)]."""
    columns = padding(matrix.shape[-1])
    before = [[0, 0]] * (len(matrix.shape) - 1)
    return tf.pad(matrix, [*before, [0, columns]]) if columns else matrix


def _split_gates(z: tf.Tensor, size: int) -> list[tf.Tensor]:
    """[N, 4H] or more → four times [N, H]."""
    rest = z.shape[-1] - 4 * size
    return tf.split(z, [size] * 4 + [rest] * (rest > 0), axis=1)[:4]


def _step(z: tf.Tensor, c: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """One step from pre-activations z [N, 4H] or more: (i, f, g, o, c_t, h_t)."""
    z_i, z_f, z_g, z_o = _split_gates(z, c.shape[1])
    i, f, o = tf.sigmoid(z_i), tf.sigmoid(z_f), tf.sigmoid(z_o)
    g = tf.tanh(z_g)
    c = f * c + i * g
    return i, f, g, o, c, o * tf.tanh(c)


def _forward(projected: tf.Tensor | Shared, kernel: tf.Tensor, keep_gates: bool):
    """Runs the recurrence over x W + b.

    Args:
        projected: [T, N, 4H] float32, or padded; or Shared.
        kernel: U, [H, 4H], as wide as `projected`.
        keep_gates: whether to return the activated gates, for a backward pass.

    Returns:
        Sequences, and the gates [i, f, g, o] as [T, N, 4H] or None.
    """
    if isinstance(projected, Shared):
        known, sizes = projected.places.shape, tf.shape(projected.places)
    else:
        known, sizes = projected.shape[:2], tf.shape(projected)[:2]
    size = kernel.shape[0]
    kernel = tf.cast(kernel, layers.product_dtype())
    zeros = tf.zeros([sizes[1], size])
    if is_unrolled() and not keep_gates:
        return _forward_unrolled(projected, kernel, zeros), None

    def array() -> tf.TensorArray:
        return tf.TensorArray(tf.float32, size=sizes[0], element_shape=None)

    def advance(t, z, c, arrays):
        i, f, g, o, c, h = _step(z, c)
        values = (c, h) + ((tf.concat([i, f, g, o], axis=1),) if keep_gates else ())
        written = tuple(a.write(t, v) for a, v in zip(arrays, values, strict=True))
        return t + 1, c, h, written

    def body(t, c, h, arrays):
        z = _input_at(projected, t) + layers.multiply(h, kernel)
        return advance(t, z, c, arrays)

    arrays = (array(), array()) + ((array(),) if keep_gates else ())
    # h U of the first step is 0.
    first = advance(0, _input_at(projected, 0), zeros, arrays)
    *_, arrays = tf.while_loop(lambda t, *_: t < sizes[0], body, first)
    c, h, *gates = (a.stack() for a in arrays)
    c = tf.ensure_shape(c, [*known, size])
    h = tf.ensure_shape(h, c.shape)
    return Sequences(c, h), gates[0] if keep_gates else None


def _input_at(projected: tf.Tensor | Shared, t) -> tf.Tensor:
    """x W + b of step t, [N, 4H]."""
    if isinstance(projected, Shared):
        return tf.gather(projected.projected, projected.places[t])
    return projected[t]


def _forward_unrolled(projected, kernel, zeros: tf.Tensor) -> Sequences:
    """The recurrence without a loop, from zeros [N, H]; T is static."""
    if isinstance(projected, Shared):
        steps = tf.unstack(projected.places)
        inputs = [tf.gather(projected.projected, places) for places in steps]
    else:
        inputs = tf.unstack(projected)
    c, h = zeros, None
    all_c, all_h = [], []
    for z in inputs:
        *_, c, h = _step(z if h is None else z + layers.multiply(h, kernel), c)
        all_c.append(c)
        all_h.append(h)
    return Sequences(tf.stack(all_c), tf.stack(all_h))


def _backward(gates, sequences: Sequences, kernel, d_sequences: Sequences):
    """dz of all steps, [T, N, 4H] and padded, from the gradients of all c and h."""
    steps = tf.shape(gates)[0]
    rows = tf.shape(gates)[1]
    size = kernel.shape[0]
    extra = padding(4 * size)
    # Transposed once, not in every step of the loop.
    transposed = tf.transpose(_pad_columns(tf.cast(kernel, layers.product_dtype())))
    transposed = _pad_columns(transposed)  # [4H, H], both padded
    array = tf.TensorArray(tf.float32, size=steps, element_shape=None)
    zeros = tf.zeros([rows, size])

    def of_step(t, c_before, dc, dh):
        """dz of step t, and dc of the step before."""
        i, f, g, o = tf.split(gates[t], 4, axis=1)
        tanh_c = tf.tanh(sequences.c[t])
        dh += d_sequences.h[t]
        dc += d_sequences.c[t] + dh * o * (1 - tanh_c * tanh_c)
        dz = [
            dc * g * i * (1 - i),
            dc * c_before * f * (1 - f),
            dc * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
            *([tf.zeros([rows, extra])] if extra else []),
        ]
        return tf.concat(dz, axis=1), dc * f

    def body(t, dc, dh, array):
        dz, dc = of_step(t, sequences.c[t - 1], dc, dh)
        dh = layers.multiply(dz, transposed)[:, :size]
        return t - 1, dc, dh, array.write(t, dz)

    _, dc, dh, array = tf.while_loop(
        lambda t, *_: t > 0, body, (steps - 1, zeros, zeros, array)
    )
    return array.write(0, of_step(0, zeros, dc, dh)[0]).stack()


def _project(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x W + b for all steps in one product: [T, N, D] → [T, N, width of W]."""
    shape = tf.shape(x)
    flat = layers.multiply(tf.reshape(x, [-1, x.shape[-1]]), kernel) + bias
    return tf.reshape(flat, [shape[0], shape[1], kernel.shape[1]])


def _run_padded(x, kernel, recurrent_kernel, bias, keep_gates: bool):
    """`_forward` on the projection, with both kernels padded."""
    kernel, recurrent_kernel, bias = (
        _pad_columns(weight) for weight in (kernel, recurrent_kernel, bias)
    )
    return _forward(_project(x, kernel, bias), recurrent_kernel, keep_gates)


@tf.custom_gradient
def _lstm_with_gradient(x, kernel, recurrent_kernel, bias):
    """`lstm` whose backward pass computes each weight gradient in one product."""
    sequences, gates = _run_padded(x, kernel, recurrent_kernel, bias, keep_gates=True)
    inputs, width = kernel.shape

    def gradient(d_c, d_h):
        dz = _backward(gates, sequences, recurrent_kernel, Sequences(d_c, d_h))
        padded = width + padding(width)
        flat = tf.reshape(dz, [-1, padded])
        transposed = _pad_columns(tf.transpose(_pad_columns(kernel)))
        d_x = tf.reshape(layers.multiply(flat, transposed)[:, :inputs], tf.shape(x))
        d_kernel = layers.multiply(tf.reshape(x, [-1, inputs]), flat, transpose_a=True)
        d_recurrent = layers.multiply(
            tf.reshape(sequences.h[:-1], [-1, recurrent_kernel.shape[0]]),
            tf.reshape(dz[1:], [-1, padded]),
            transpose_a=True,
        )
        d_bias = tf.reduce_sum(flat, axis=0)
        return d_x, d_kernel[:, :width], d_recurrent[:, :width], d_bias[:width]

    return (sequences.c, sequences.h), gradient


def lstm(
    x: tf.Tensor | Shared,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
    training: bool = False,
) -> Sequences:
    """One LSTM layer from zero states, by the equations above.

    Args:
        x: [T, N, D] float32, time first; or Shared.
        kernel: W, [D, 4H]; not used of Shared.
        recurrent_kernel: U, [H, 4H].
        bias: b, [4H].
        training: keep what the fast backward pass needs. Gradients are correct
            without it, but slower.

    Returns:
        Sequences, c and h [T, N, H].
    """
    weights = [tf.convert_to_tensor(w) for w in (kernel, recurrent_kernel, bias)]
    if isinstance(x, Shared):
        if x.projected.shape[1] > weights[1].shape[1]:
            weights[1] = _pad_columns(weights[1])
        return _forward(x, weights[1], keep_gates=False)[0]
    if training:
        return Sequences(*_lstm_with_gradient(x, *weights))

    def plain():
        projected = _project(x, weights[0], weights[2])
        return _forward(projected, weights[1], keep_gates=False)[0]

    if is_unrolled() or not padding(weights[0].shape[1]):
        return plain()
    frames = tf.shape(x)[0] * tf.shape(x)[1]
    sequences = tf.cond(
        frames < FEW_FRAMES,
        plain,
        lambda: _run_padded(x, *weights, keep_gates=False)[0],
    )
    shape = [x.shape[0], x.shape[1], weights[1].shape[0]]
    return Sequences(*(tf.ensure_shape(states, shape) for states in sequences))


def states_at(sequences: list[Sequences], steps, rows) -> tf.Tensor:
    """[c1, h1, c2, h2, ...] of all layers at int32 steps [...] of rows [...]: [..., S].

    S is 2 * layers * cells.
    """
    places = tf.stack([steps, rows], axis=-1)
    return tf.concat(
        [tf.gather_nd(states, places) for pair in sequences for states in pair], axis=-1
    )


_TO_BE_READ = contextvars.ContextVar("to_be_read", default=False)


@contextlib.contextmanager
def to_be_read() -> Iterator[None]:
    """Layers created inside will get their weights from a checkpoint.

    They skip the orthogonal initialization of the recurrent weights, which takes
    seconds at the paper's size.
    """
    token = _TO_BE_READ.set(True)
    try:
        yield
    finally:
        _TO_BE_READ.reset(token)


_UNROLLED = contextvars.ContextVar("unrolled", default=False)


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Networks that are called inside unroll their loops over the steps.

    For a static and small number of frames T, where the loop costs more than its
    products, and for runtimes without such loops. The results are equal. Not for
    training.
    """
    token = _UNROLLED.set(True)
    try:
        yield
    finally:
        _UNROLLED.reset(token)


def is_unrolled() -> bool:
    """Whether the caller is inside `unrolled`."""
    return _UNROLLED.get()


class StackedLSTM(layers.Numbered, keras.layers.Layer):
    """A stack of LSTM layers; returns the final states of all layers.

    Args:
        cells: H, the cells of each layer.
        layers: number of layers.
        implementation: `auto`, `hoisted` or `keras`; see the module.
    """

    def __init__(self, cells: int, layers: int, implementation: str = "auto"):
        super().__init__(dtype="float32")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation={implementation!r} is not one of "
                f"{', '.join(IMPLEMENTATIONS)}."
            )
        arguments.require_counts(cells=cells, layers=layers)
        self.cells = cells
        self.num_layers = layers
        self.implementation = implementation
        policy = keras.mixed_precision.global_policy()
        recurrent = "zeros" if _TO_BE_READ.get() else "orthogonal"
        made = [
            keras.layers.LSTM(
                cells,
                recurrent_initializer=recurrent,
                return_sequences=True,
                return_state=True,
                dtype=policy,
            )
            for _ in range(layers)
        ]
        self.add_numbered("layer", made)

    @property
    def stack(self) -> list:
        """The layers from the lowest to the top."""
        return self.numbered("layer")

    @property
    def state_size(self) -> int:
        """Width of the concatenated final states, 2 * layers * cells."""
        return 2 * self.num_layers * self.cells

    def build(self, input_shape) -> None:
        """Creates the variables for inputs [N, T, D]."""
        size = input_shape[-1]
        for layer in self.stack:
            layer.build((None, None, size))
            size = self.cells
        self.built = True

    @property
    def uses_keras(self) -> bool:
        """Whether `keras.layers.LSTM` is used."""
        if is_unrolled():
            return False
        if self.implementation == "auto":
            return bool(tf.config.list_logical_devices("GPU"))
        return self.implementation == "keras"

    def kernels(self) -> list:
        """The weight matrices under the L2 penalty, without biases."""
        return [
            kernel
            for layer in self.stack
            for kernel in (layer.cell.kernel, layer.cell.recurrent_kernel)
        ]

    def share(
        self, frames: tf.Tensor, num_frames: tf.Tensor, places: tf.Tensor
    ) -> Shared:
        """Parts of videos as its inputs; each valid frame is projected once.

        Args:
            frames: [B, T, D] float32.
            num_frames: [B] int32.
            places: [W, S] int, the frames of the parts; those that a video does not
                have are any frame of it.

        Returns:
            Inputs of S steps and B * W rows.
        """
        cell = self.stack[0].cell
        weights = [tf.convert_to_tensor(w) for w in (cell.kernel, cell.bias)]
        batch, length = tf.unstack(tf.shape(frames)[:2])
        if is_unrolled():  # No shape may depend on the videos.
            counts = tf.fill([batch], length)
            flat = tf.reshape(frames, [-1, frames.shape[-1]])
        else:
            counts = tf.clip_by_value(num_frames, 1, length)
            flat = tf.boolean_mask(frames, tf.sequence_mask(counts, length))
            weights = [_pad_columns(weight) for weight in weights]
        projected = layers.multiply(flat, weights[0]) + weights[1]
        places = tf.minimum(places[..., tf.newaxis], counts - 1)  # [W, S, B]
        places += tf.cumsum(counts, exclusive=True)
        places = tf.reshape(tf.transpose(places, [1, 2, 0]), [places.shape[1], -1])
        return Shared(projected, places)

    def sequences(
        self, x: tf.Tensor | Shared, training: bool = False
    ) -> list[Sequences]:
        """States of every layer at all steps.

        Args:
            x: [T, N, D] float32, time first; or Shared.
            training: whether a backward pass follows.
        """
        sequences = []
        for layer in self.stack:
            cell = layer.cell
            weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
            sequences.append(lstm(x, *weights, training=training))
            x = sequences[-1].h
        return sequences

    def call(
        self,
        x: tf.Tensor | Shared,
        lengths: tf.Tensor,
        training: bool = False,
        at=None,
    ):
        """Final states of [T, N, D] inputs whose rows have `lengths` valid steps.

        Args:
            x: [T, N, D] float32, time first; or Shared, which no implementation of
                Keras reads, for inference.
            lengths: [N] int32.
            training: whether a backward pass follows.
            at: None, or int32 steps [...] and rows [...] whose states are wanted, too.

        Returns:
            [N, 2 * layers * cells] float32: [c1, h1, c2, h2] for two layers, and zeros
            for a row of length 0. And the states [..., 2 * layers * cells] or None.
        """
        if at is not None or isinstance(x, Shared) or not self.uses_keras:
            sequences = self.sequences(x, training)
            last, rows = tf.maximum(lengths - 1, 0), tf.range(tf.shape(lengths)[0])
            final = states_at(sequences, last, rows)
            final = tf.where(lengths[:, tf.newaxis] > 0, final, 0.0)
            return final, None if at is None else states_at(sequences, *at)
        x = tf.transpose(x, [1, 0, 2])  # [N, T, D]
        # cuDNN rejects a row without a valid step, so step 1 counts as valid here; the
        # states of such rows are set to 0 below.
        mask = tf.sequence_mask(tf.maximum(lengths, 1), tf.shape(x)[1])
        states = []
        for layer in self.stack:
            x, h, c = layer(x, mask=mask, training=training)
            states += [tf.cast(c, tf.float32), tf.cast(h, tf.float32)]
        states = tf.concat(states, axis=1)
        return tf.where(lengths[:, tf.newaxis] > 0, states, 0.0), None
