"""Every network against numpy; and what holds of all: sets, padding, batches, noise."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small_networks as small
from tests.models.small_networks import assert_close, make_network, make_view
from yt8m_distill import registry
from yt8m_distill.models import base, layers, lstm, teacher_student

# One case of each network; the others differ in their equations alone.
KINDS = ["attention", "dbof_max", "mean", "netvlad", "nextvlad", "transformer"]
KINDS += ["hierarchical", "lstm"]
# And where another code pools the frames.
POOLINGS = [*KINDS, "dbof_average", "hierarchical_keras", "lstm_keras"]
LENGTHS = small.LENGTHS


# ------------------------------------------------------------------- the equations


@pytest.mark.parametrize("name", small.CASES)
def test_the_encoding_is_that_of_the_equations(name):
    network, view = make_network(name), make_view()
    outputs = network(view)
    assert outputs.encoding.shape == (len(LENGTHS), network.encoding_size)
    assert_close(outputs.encoding, small.NumpyNetwork(network, name).encode(view))
    assert_close(outputs.logits, network.head(outputs.encoding))
    assert outputs.states is None


@pytest.mark.parametrize("name", small.WITH_BATCH_NORM)
def test_batch_norm_in_training_is_over_valid_frames_and_videos(name):
    """With momentum 0 the moving averages are the last batch's statistics.

    So the numpy network, which goes by the averages, must give the encodings of
    training, and what its batch norms have seen must have those statistics. None of it
    has seen padding, or a video without frames.
    """
    network, view = make_network(name, dropout=0.0), make_view()
    norms = small.batch_norms(network)
    for norm in norms:
        norm.momentum = 0.0
    found = network(view, training=True).encoding.numpy()
    numpy_network = small.NumpyNetwork(network, name)
    expected = numpy_network.encode(view)
    for norm in norms:
        rows = numpy_network.seen(norm)
        assert len(rows) in (sum(LENGTHS), np.count_nonzero(LENGTHS))
        np.testing.assert_allclose(norm.moving_mean, rows.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(
            norm.moving_variance, rows.var(axis=0), rtol=1e-4, atol=1e-5
        )
    # Division by the spread of four videos enlarges the rounding.
    valid = np.array(LENGTHS) > 0
    assert_close(found[valid], expected[valid], 1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", small.LSTMS)
def test_states_at_given_frames_are_those_of_the_equations(name, training):
    network, view = make_network(name, dropout=0.0), make_view()
    # Up to four valid frames of each video, in order; the tail is invalid: 0.
    random = np.random.default_rng(1)
    counts = np.minimum(LENGTHS, 4)
    indices = np.zeros((len(LENGTHS), 4), int)
    for row, (n, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        indices[row, :count] = np.sort(random.choice(n, count, replace=False))
    asked = {"state_indices": tf.constant(indices, tf.int32), "num_states": counts}
    outputs = network(view | asked, training=training)
    numpy_network = small.NumpyNetwork(network, name)
    assert_close(outputs.encoding, numpy_network.encode(view))
    for row, frames in enumerate(small.videos(view)):
        found, count = outputs.states[row].numpy(), counts[row]
        np.testing.assert_array_equal(found[count:], 0.0)
        if count:
            states = numpy_network.lstm_states(frames)
            assert_close(found[:count], states[indices[row, :count]])


def gradients_of(network, view):
    """Of a loss over the videos with frames."""
    with tf.GradientTape() as tape:
        logits = network(view, training=True).logits
        valid = tf.cast(view["num_frames"] > 0, tf.float32)[:, tf.newaxis]
        loss = tf.reduce_sum(valid * tf.square(logits))
    return tape.gradient(loss, network.trainable_variables)


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_rows_do_not_change_training(name):
    results = []
    more = {"block_dropout": 0.0} if name == "transformer" else {}
    for lengths in ((3, 7, 5), (3, 7, 5, 0, 0)):
        network = make_network(name, dropout=0.0, **more)
        view = make_view(lengths=lengths)
        encoding = network(view, training=True).encoding[:3]
        gradients = gradients_of(network, view)
        averages = [v.numpy() for v in network.non_trainable_weights]
        results.append((encoding, gradients, averages))
    one, other = results
    assert_close(other[0], one[0])
    scale = max(np.abs(g).max() for g in one[1])
    for found, expected in zip(other[1] + other[2], one[1] + one[2], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("lengths", [(0, 1, 0), (0, 0)])
@pytest.mark.parametrize("name", POOLINGS)
def test_videos_without_frames_have_finite_gradients(name, lengths):
    network = make_network(name)
    with tf.GradientTape() as tape:
        logits = network(make_view(lengths=lengths), training=True).logits
        loss = tf.reduce_sum(tf.square(logits))
    for gradient in tape.gradient(loss, network.trainable_variables):
        assert np.isfinite(gradient).all()


def test_every_trainable_weight_of_every_network_learns():
    for name in small.CASES:
        network = make_network(name)
        variables = network.trainable_variables
        gradients = gradients_of(network, make_view())
        for variable, gradient in zip(variables, gradients, strict=True):
            assert np.any(gradient), (name, variable.name)


@pytest.mark.parametrize("name", ["hierarchical", "lstm"])
def test_both_implementations_of_the_lstm_have_the_same_gradients(name):
    one, other = (
        gradients_of(make_network(name, implementation=i, dropout=0.0), make_view())
        for i in ("hoisted", "keras")
    )
    scale = max(np.abs(g).max() for g in one)
    for found, expected in zip(other, one, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


# ------------------------------------------------------- padding, batches and noise


@pytest.mark.parametrize("name", POOLINGS)
def test_frames_after_the_last_valid_one_are_not_read(name):
    network = make_network(name)
    view = make_view()
    view["noise"] = small.make_noise(len(LENGTHS))
    behind = np.arange(small.T) >= np.array(LENGTHS)[:, np.newaxis]
    other = tf.where(behind[..., np.newaxis], np.uint8(255), view["frames"])
    for training in (False, True):
        one, two = (
            network(view | {"frames": frames}, training=training)
            for frames in (view["frames"], other)
        )
        np.testing.assert_array_equal(one.encoding, two.encoding)
        np.testing.assert_array_equal(one.logits, two.logits)


@pytest.mark.parametrize("name", POOLINGS)
def test_neither_the_batch_nor_the_width_of_the_view_changes_a_video(name):
    network = make_network(name)
    view = make_view()
    together = network(view).encoding
    rows = [2, 3]
    assert_close(network(small.rows_of(view, rows)).encoding, together.numpy()[rows])
    wider = tf.pad(view["frames"], [[0, 0], [0, 4], [0, 0]], constant_values=9)
    assert_close(network(view | {"frames": wider}).encoding, together)
    short = small.rows_of(view, [0, 3])
    short["frames"] = short["frames"][:, :3]
    assert_close(network(short).encoding, together.numpy()[[0, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "hierarchical_keras"])
def test_a_graph_of_unknown_sizes_gives_the_same_and_a_call_makes_no_weights(name):
    network = make_network(name)
    weights = [id(v) for v in network.weights]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, sum(small.SIZES)], tf.uint8),
            tf.TensorSpec([None], tf.int32),
        ],
        autograph=False,
    )
    def run(frames, num_frames):
        return network({"frames": frames, "num_frames": num_frames}).logits

    for lengths, steps in ((LENGTHS, small.T), ([2], 4), ([0], 1)):
        view = make_view(lengths=lengths, steps=steps)
        assert_close(run(**view), network(view).logits)
    network(view, training=True)
    assert [id(v) for v in network.weights] == weights


@pytest.mark.parametrize("name", KINDS)
def test_a_row_keeps_its_dropout_where_the_batch_is_divided(name, monkeypatch):
    original = layers.BatchNorm.call
    # Statistics of half of a batch would differ from those of the whole batch.
    monkeypatch.setattr(
        layers.BatchNorm,
        "call",
        lambda self, x, mask=None, training=False: original(
            self, x, mask, training=False
        ),
    )
    network = make_network(name, dropout=0.4)
    view = make_view(lengths=(3, 7, 1, 5))

    def outputs(rows, first_row):
        part = small.rows_of(view, rows) | {"noise": small.make_noise(4, first_row)}
        return network(part, training=True).logits

    whole = outputs([0, 1, 2, 3], 0)
    halves = tf.concat([outputs([0, 1], 0), outputs([2, 3], 2)], axis=0)
    assert_close(halves, whole)
    assert np.abs(whole - network(view).logits).max() > 0.01, "nothing was dropped"
    assert np.abs(whole[2:] - outputs([2, 3], 0)).max() > 0.01, "rows drop the same"


@pytest.mark.parametrize("name", KINDS)
def test_every_dropout_has_its_own_noise(name, monkeypatch):
    original, places = layers.Noise.uniform, []

    def uniform(self, like, index=0):
        places.append(index)
        return original(self, like, index)

    monkeypatch.setattr(layers.Noise, "uniform", uniform)
    view = make_view() | {"noise": small.make_noise(len(LENGTHS))}
    make_network(name, dropout=0.4)(view, training=True)
    # The transformer has two dropouts in each of two blocks, and the classifier one.
    assert len(places) == (5 if name == "transformer" else 1)
    assert len(set(places)) == len(places)


# ------------------------------------------------------------------ frames as a set


@pytest.mark.parametrize("name", POOLINGS)
def test_sets_alone_do_not_read_the_order_of_frames(name):
    network = make_network(name)
    view = make_view(lengths=(7, 7))
    encoding = network(view).encoding
    other = network(view | {"frames": view["frames"][:, ::-1]}).encoding
    if name in (*small.SETS, "mean"):
        assert_close(other, encoding)
    else:
        assert np.abs(other - encoding).max() > 1e-2


@pytest.mark.parametrize("name", small.SETS)
def test_frame_by_frame_encoding_equals_that_of_the_set(name):
    network = make_network(name)
    frames = make_view(lengths=(4, 4, 4), steps=4)["frames"]
    state = network.start(3)
    states = [state]
    for t in range(4):
        state = network.add_frame(state, frames[:, t])
        states.append(state)
    for n in (0, 1, 4):
        whole = network({"frames": frames, "num_frames": tf.fill([3], n)})
        found = network.outputs_of(network.finish(states[n]))
        # Sums of four float32 numbers, in another order.
        assert_close(found.encoding, whole.encoding, 2e-6)
        np.testing.assert_allclose(found.logits, whole.logits, rtol=1e-5, atol=1e-5)
    # The joined states of two halves and an empty set equal the state of all frames.
    half = network.add_frame(network.start(3), frames[:, 2])
    half = network.add_frame(half, frames[:, 3])
    for one, other in ((states[2], half), (half, states[2])):
        joined = network.finish(network.join(one, other))
        assert_close(joined, network.finish(state), 2e-6)
    joined = network.join(network.start(3), network.join(state, network.start(3)))
    np.testing.assert_array_equal(network.finish(joined), network.finish(state))


@pytest.mark.parametrize("name", POOLINGS)
def test_a_part_of_a_video_is_scored_as_a_video_of_its_own(name):
    """Also where frames are read once for all parts; some are after the end."""
    network = make_network(name)
    scale, offset = network.steps
    network.steps = (scale * 0.5, offset + 0.1)  # Of records with a range of their own.
    lengths = (7, 3, 1)
    view = make_view(lengths=lengths, steps=9)
    bounds = np.array([[0, 4], [1, 6], [1, 6], [5, 9], [2, 3]])
    network.add_context(2)
    network.context.assign(tf.ones_like(network.context))
    contexts = np.random.default_rng(0).normal(size=[3, 5, 2]).astype(np.float32)
    view["context"] = tf.reshape(contexts, [-1, 2])
    found = network.parts_logits(view, bounds)
    assert found.shape == (3, 5, network.num_classes)
    with lstm.unrolled():
        assert_close(network.parts_logits(view, bounds), found, 5e-6)
    for part, (begin, end) in enumerate(bounds):
        counts = np.clip(np.array(lengths) - begin, 0, end - begin)
        cut = {
            "frames": view["frames"][:, begin:end],
            "num_frames": tf.constant(counts, tf.int32),
            "context": tf.constant(contexts[:, part]),
        }
        # Sums of a few float32 numbers, in another order.
        assert_close(found[:, part], network(cut).logits, 5e-6)


# ------------------------------------------------------------- copies and precision


@pytest.mark.parametrize("name", ["dbof_max", "netvlad", "nextvlad"])
def test_a_copied_network_has_the_moving_averages_of_its_source(name):
    a, b = (make_network(name, seed) for seed in range(2))
    view = make_view()
    pair = teacher_student.TeacherStudent({"a": a, "b": b}, {"a": "all", "b": "all"})
    pair.copy_network("a", "b")
    np.testing.assert_array_equal(b(view).logits, a(view).logits)
    for one, other in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize(
    "name, policy",
    [
        *((name, "mixed_bfloat16") for name in KINDS),
        *((name, "mixed_float16") for name in ("nextvlad", "transformer")),
    ],
)
def test_a_mixed_policy_stays_close_to_float32(name, policy, use_policy):
    view = make_view()
    exact = make_network(name)(view)
    use_policy(policy)
    network = make_network(name)
    found = network(view)
    assert {t.dtype for t in found[:2]} == {tf.float32}
    assert all(tf.as_dtype(v.dtype) == tf.float32 for v in network.weights)
    unit = 2**-11 if policy == "mixed_float16" else 2**-8
    error = np.abs(found.encoding - exact.encoding).max()
    # A few products in a row, each rounded by a unit of numbers of about 1.
    assert error < 20 * unit * np.abs(exact.encoding).max()
    assert np.abs(found.logits - exact.logits).max() > 0
    for gradient in gradients_of(network, view):
        assert gradient.dtype == tf.float32 and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("training", "policy"),
    [(True, "float32"), (False, "float32"), (False, "mixed_bfloat16")],
)
@pytest.mark.parametrize("name", KINDS)
def test_a_graph_for_any_number_of_videos_gives_the_same_logits(
    name, training, policy, use_policy
):
    """An export does not know the size of a request, nor a worker that of its batch."""
    use_policy(policy)
    network, view = make_network(name), make_view()
    shapes = {k: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for k, v in view.items()}

    def logits_of(view):
        more = {"noise": small.make_noise(len(LENGTHS))} if training else {}
        return network(view | more, training=training).logits

    found = tf.function(logits_of, input_signature=[shapes])(view)
    # Sums of float32 in another order; a product rounded elsewhere would be 4e-3 off.
    assert_close(found, logits_of(view), 5e-6)


# --------------------------------------------------------------------------- counts


@dataclasses.dataclass
class Count:
    """Numbers of a network, by its equations."""

    weights: int = 0
    batch_norm: int = 0
    per_frame: int = 0
    per_block: int = 0
    per_video: int = 0

    def linear(self, inputs, outputs, times="per_video", bias=True):
        """A product with a matrix, once per frame, per block or per video."""
        self.weights += inputs * outputs + outputs * bias
        setattr(self, times, getattr(self, times) + inputs * outputs)

    def norm(self, *widths):
        """A scale and an offset per column."""
        self.batch_norm += 2 * sum(widths)

    def multiply_adds(self, num_frames, num_blocks=0):
        of_blocks = num_blocks * self.per_block
        return num_frames * self.per_frame + of_blocks + self.per_video


def count_nextvlad(
    sizes, classes, clusters, groups, expansion, hidden_size, gating_reduction, **_
) -> Count:
    count, width = Count(), 0
    for size, share in zip(sizes, (1, 2), strict=True):
        k, g = math.ceil(clusters / share), math.ceil(groups / share)
        wide = expansion * size
        count.linear(size, wide, "per_frame")  # W_e
        count.linear(wide, g, "per_frame")  # W_g
        count.linear(wide, g * k, "per_frame", bias=False)  # W_a
        count.norm(g * k, k * wide // g)
        count.weights += k * wide // g  # the centers, shared by the groups
        count.per_frame += g * k * (wide // g)  # sum of a x over the groups
        width += k * wide // g
    inside = hidden_size // gating_reduction
    count.linear(width, hidden_size, bias=False)
    count.linear(hidden_size, inside, bias=False)
    count.linear(inside, hidden_size, bias=False)
    count.norm(hidden_size, inside)
    count.linear(hidden_size, classes)
    return count


def count_netvlad(sizes, classes, clusters, hidden_size, **_) -> Count:
    count, width = Count(), 0
    for size, share in zip(sizes, (1, 2), strict=True):
        k = math.ceil(clusters / share)
        count.linear(size, k, "per_frame", bias=False)
        count.norm(size, k)
        count.weights += k * size
        count.per_frame += k * size
        width += k * size
    count.linear(width, hidden_size)
    count.linear(hidden_size, hidden_size, bias=False)
    count.norm(hidden_size)
    # Two experts and three gates, of which one is the dummy's.
    count.linear(hidden_size, 2 * classes)
    count.linear(hidden_size, 3 * classes, bias=False)
    return count


def count_hierarchical_lstm(sizes, classes, cells, layers, **_) -> Count:
    count, states = Count(), 2 * layers * cells
    for inputs, times in ((sum(sizes), "per_frame"), (states, "per_block")):
        for _ in range(layers):
            count.linear(inputs + cells, 4 * cells, times)
            inputs = cells
    count.linear(states, classes)
    return count


COUNTS = {
    "NeXtVLAD": count_nextvlad,
    "NetVLAD": count_netvlad,
    "HierarchicalLSTM": count_hierarchical_lstm,
}


@pytest.mark.parametrize(
    "name",
    [
        "nextvlad",
        "nextvlad_one_group",
        "netvlad",
        "hierarchical",
        "hierarchical_blocks",
    ],
)
def test_a_network_has_the_numbers_of_its_equations(name):
    network, (entry, arguments) = make_network(name), small.CASES[name]
    count = COUNTS[entry](small.SIZES, small.C, **arguments)
    trainable = base.num_weights(network.trainable_variables)
    assert trainable == count.weights + count.batch_norm
    # Two moving averages per column, and the number of batches.
    averages = count.batch_norm + len(small.batch_norms(network))
    assert base.num_weights(network.non_trainable_weights) == averages
    for frames in (1, 4, 7):
        blocks = math.ceil(frames / getattr(network, "block_len", small.T))
        parts = network.multiply_adds(frames)
        assert sum(parts.values()) == count.multiply_adds(frames, blocks)
        assert next(iter(parts.values())) == frames * count.per_frame


def test_numbers_of_the_published_sizes():
    """The equations at 1024 + 128 and 3,862 classes, with the default arguments."""

    def count(name):
        arguments = base.MODELS.arguments(registry.parse(name))
        return COUNTS[name]((1024, 128), 3862, **arguments)

    def millions(name, *lengths):
        return [round(count(name).multiply_adds(k) / 1e6) for k in lengths]

    nextvlad = count("NeXtVLAD")
    assert nextvlad.weights == 88_808_482
    assert nextvlad.weights + nextvlad.batch_norm == 88_889_378
    assert millions("NeXtVLAD", 300, 30, 10) == [1461, 222, 130]
    assert millions("NetVLAD", 300, 30) == [473, 323]
    # The two LSTMs on one feature, without a classifier: the paper's 46.15 M.
    lstm = count_hierarchical_lstm((1024,), classes=0, cells=1024, layers=2)
    assert lstm.weights == 46_153_728


def test_multiply_adds_of_the_others_by_hand():
    def parts(name, **changes):
        return make_network(name, **changes).multiply_adds(5)

    none = {"bridge": 0}
    # The starter's models end in a mixture: 2 experts and 3 gates per class.
    # 24 → 12 → 12 → 3 scores, and 12 products by the shares; 24 → 12.
    per_frame = 24 * 12 + 12 * 12 + 12 * 3 + 12
    expected = {"frames": 5 * per_frame, "hidden": 24 * 12, "classifier": 12 * 4}
    assert parts("attention") == expected | none
    expected = {"frames": 5 * 24 * 9, "hidden": 9 * 8, "classifier": 8 * 4 * 5}
    assert parts("dbof_bias") == expected | none
    # Five frames and the token: 8 → 24, 8 → 8, 8 → 32, 32 → 8 in the first block, and
    # 6 * 6 products of width 8 for the scores, as many for the values. In the second
    # one keys and values of all six, and the rest for the token alone.
    first, second = (
        6 * (8 * 24 + 8 * 8 + 2 * 8 * 32),
        6 * 8 * 16 + 2 * 8 * 8 + 2 * 8 * 32,
    )
    expected = {
        "frames": 5 * 24 * 8 + first + second,
        "attention": 2 * 6 * 6 * 8 + 2 * 6 * 8,
        "classifier": 8 * 4,
    }
    assert parts("transformer") == expected | none
    assert parts("mean_moe") == {"classifier": 24 * 4 * 5} | none
    # A step costs a layer 4H(D + H).
    expected = {"lower": 5 * (12 * (24 + 3) + 12 * (3 + 3)), "classifier": 3 * 4 * 5}
    assert parts("lstm") == expected | none


@pytest.mark.parametrize("name", KINDS)
def test_the_penalty_is_on_all_matrices_also_on_a_bridge_to_another_width(name):
    network = make_network(name)
    # The penalty is on matrices alone, never on a bias or a batch norm.
    kernels = network.kernels()
    assert {len(kernel.shape) for kernel in kernels} == {2}
    matrices = [v for v in network.trainable_variables if len(v.shape) > 1]
    assert {id(v) for v in kernels} == {id(v) for v in matrices}
    bridged = make_network(name, encoding_size=5)
    assert bridged(make_view()).encoding.shape == (len(LENGTHS), 5)
    assert len(bridged.kernels()) == len(kernels) + 1


# ------------------------------------------------------------------------ bad input

COUNTED = {
    "attention": ["hidden_size", "num_heads"],
    "nextvlad": ["clusters", "groups", "expansion", "hidden_size", "gating_reduction"],
    "netvlad": ["clusters", "hidden_size"],
    "dbof_max": ["cluster_size", "hidden_size"],
    "transformer": ["width", "layers", "num_heads"],
    "hierarchical": ["cells", "layers", "block_len"],
    "hierarchical_blocks": ["num_blocks"],
    "lstm": ["cells", "layers"],
}


def refuse(name, **changes) -> str:
    """The error line, after the flag and its value."""
    with pytest.raises(ValueError) as caught:
        make_network(name, **changes)
    flag, message = str(caught.value).split("): ", maxsplit=1)
    assert flag.startswith(f"--teacher={small.CASES[name][0]}(")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_must_be_a_positive_integer(name):
    for argument in COUNTED[name]:
        for value in (0, -2, 2.5, 4.0, True, "4"):
            assert f"{argument}={value!r}" in refuse(name, **{argument: value})


@pytest.mark.parametrize("name", KINDS)
def test_a_dropout_rate_is_below_1(name):
    for value in (1, -0.1, 1.5, float("nan")):
        assert f"dropout={value}" in refuse(name, dropout=value)
        if name == "transformer":
            assert f"block_dropout={value}" in refuse(name, block_dropout=value)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("attention", {"num_heads": 5}, ["num_heads", "5", "hidden_size", "12"]),
        ("transformer", {"num_heads": 3}, ["num_heads", "3", "width", "8"]),
        ("transformer", {"width": 9, "num_heads": 3}, ["width", "9"]),
        # Five groups do not divide 2 * 16; half of them, three, not 5 * 8.
        ("nextvlad", {"groups": 5}, ["groups", "5", "32"]),
        ("nextvlad", {"groups": 5, "expansion": 5}, ["groups=5", "3", "40"]),
        ("nextvlad", {"gating_reduction": 3}, ["gating_reduction", "3", "8"]),
        ("dbof_max", {"pooling_method": "sum"}, ["pooling_method", "'sum'", "average"]),
        ("hierarchical", {"num_blocks": 2}, ["block_len=3", "num_blocks=2"]),
        ("lstm", {"implementation": "fast"}, ["'fast'", "auto", "hoisted", "keras"]),
    ],
)
def test_an_invalid_setting_is_named_with_its_value(name, changes, named):
    message = refuse(name, **changes)
    for part in named:
        assert part in message
