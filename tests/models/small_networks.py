"""The networks in numpy, and small ones of each kind to compare with.

One video at a time in float64, written from the equations in the docstrings, with loops
where those have sums, without padding or batches: slow, and plain enough to be
believed.
"""

import math

import numpy as np
import tensorflow as tf

from yt8m_distill import registry, settings
from yt8m_distill.models import builder, layers

SIZES, C, T = (16, 8), 4, 7
DATA = settings.DataSettings(
    feature_names="rgb,audio", feature_sizes="16,8", num_classes=C
)
# None, one, some and all of the frames; below, at and above the end of a block of 3.
LENGTHS = (3, 0, 7, 1, 5)
# A network and its arguments; where they are given for the first feature, the second
# one has half of them, rounded up.
CASES = {
    "attention": ("AttentionPooling", dict(hidden_size=12, num_heads=3)),
    "nextvlad": (
        "NeXtVLAD",
        dict(clusters=6, groups=4, expansion=2, hidden_size=8, gating_reduction=4),
    ),
    "nextvlad_one_group": (
        "NeXtVLAD",
        dict(clusters=5, groups=1, expansion=3, hidden_size=8, gating_reduction=1),
    ),
    "netvlad": ("NetVLAD", dict(clusters=5, hidden_size=8)),
    "netvlad_light": (
        "NetVLAD",
        dict(clusters=4, hidden_size=8, centers=False, gating=False),
    ),
    "dbof_max": ("DbofModel", dict(cluster_size=9, hidden_size=8)),
    "dbof_average": (
        "DbofModel",
        dict(cluster_size=9, hidden_size=8, pooling_method="average"),
    ),
    "dbof_bias": (
        "DbofModel",
        dict(cluster_size=9, hidden_size=8, add_batch_norm=False),
    ),
    "transformer": ("TransformerModel", dict(width=8, layers=2, num_heads=2)),
    "mean": ("LogisticModel", {}),
    "mean_moe": ("MoeModel", {}),
    "hierarchical": ("HierarchicalLSTM", dict(cells=3, layers=2, block_len=3)),
    "hierarchical_keras": (
        "HierarchicalLSTM",
        dict(cells=3, layers=2, block_len=3, implementation="keras"),
    ),
    "hierarchical_blocks": (
        "HierarchicalLSTM",
        dict(cells=2, layers=3, num_blocks=4),  # of ceil(7 / 4) frames
    ),
    "lstm": ("LstmModel", dict(cells=3, layers=2)),
    "lstm_keras": ("LstmModel", dict(cells=3, layers=1, implementation="keras")),
}
# Those with `start`, `add_frame` and `finish`.
SETS = [n for n in CASES if n.startswith(("attention", "nextvlad", "netvlad", "dbof"))]
LSTMS = [n for n in CASES if n.startswith(("hierarchical", "lstm"))]
WITH_BATCH_NORM = [n for n in SETS if n not in ("attention", "dbof_bias")]


def make_network(name: str, seed: int = 0, **changes):
    """A small network of a case, all of whose variables are random."""
    entry, arguments = CASES[name]
    spec = registry.Specification(entry, {**arguments, **changes})
    network = builder.build_network("teacher", spec, DATA, T)
    randomize(network, seed)
    return network


def randomize(network, seed: int) -> None:
    """Random weights that keep numbers near 1, averages as after three batches."""
    random = np.random.default_rng(seed)
    for variable in network.weights:
        if "batches" in variable.name:
            variable.assign(3.0)
            continue
        rows = variable.shape[0] if len(variable.shape) > 1 else 4
        value = random.normal(0, rows**-0.5, variable.shape)
        if "moving_variance" in variable.name:
            value = 0.2 + np.square(value)
        elif "gamma" in variable.name:
            value += 1
        variable.assign(value)


def batch_norms(layer) -> list:
    """The BatchNorm layers of a network: all that has weights which are not trained."""
    found = [part for part in layer._flatten_layers() if hasattr(part, "moving_mean")]
    assert 3 * len(found) == len(layer.non_trainable_weights)
    return found


def make_view(seed: int = 0, lengths=LENGTHS, steps: int = T) -> dict:
    """uint8 frames, nonzero after the last valid frame of a video."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (len(lengths), steps, sum(SIZES)), dtype=np.uint8)
    return {"frames": tf.constant(frames), "num_frames": tf.constant(lengths)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def unit(x):
    """x scaled to length 1; 0 stays 0."""
    length = np.linalg.norm(x)
    return x / length if length > 0 else x


def make_noise(rows: int, first_row: int = 0) -> layers.Noise:
    """Of a step whose global batch has so many rows."""
    return layers.Noise(
        tf.constant([3, 7]), tf.constant(first_row), tf.constant(rows, tf.int32)
    )


def rows_of(view: dict, rows) -> dict:
    return {key: tf.gather(value, rows) for key, value in view.items()}


def assert_close(found, expected, tolerance=1e-5):
    """Equal up to `tolerance` times the largest expected number.

    By default that of float32 against float64.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 0.01, "nothing was compared"
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def relu6(x):
    return np.clip(x, 0, 6)


def linear(layer, x):
    y = x @ np.float64(layer.kernel)
    return y if layer.bias is None else y + np.float64(layer.bias)


def layer_norm(layer, x):
    gamma, beta = (np.float64(v) for v in (layer.gamma, layer.beta))
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def normalize(frames):
    """Stored uint8 frames [n, D] → dequantized, of length 1, float64."""
    frames = frames.astype(np.float64) * 4 / 255 + 4 / 512 - 2
    return frames / np.linalg.norm(frames, axis=1, keepdims=True)


def videos(view) -> list:
    """The valid frames of each video, [n, D], as a network should see them."""
    frames, lengths = view["frames"].numpy(), view["num_frames"].numpy()
    return [normalize(f[:n]) for f, n in zip(frames, lengths, strict=True)]


def lstm(x, kernel, recurrent_kernel, bias):
    """One layer over one row, by the equations in lstm.py: x [T, D] → c, h [T, H]."""
    size = len(recurrent_kernel)
    part = {gate: slice(n * size, (n + 1) * size) for n, gate in enumerate("ifgo")}
    c, h = np.zeros(size), np.zeros(size)
    all_c, all_h = [], []
    for x_t in x:
        z = {
            gate: x_t @ kernel[:, s] + h @ recurrent_kernel[:, s] + bias[s]
            for gate, s in part.items()
        }
        i, f, o = sigmoid(z["i"]), sigmoid(z["f"]), sigmoid(z["o"])
        c = f * c + i * np.tanh(z["g"])
        h = o * np.tanh(c)
        all_c.append(c)
        all_h.append(h)
    shape = (len(x), size)
    return np.reshape(all_c, shape), np.reshape(all_h, shape)


def lstm_states(x, stack):
    """[c1, h1, c2, h2, ...] of a StackedLSTM at all steps: [T, D] → [T, 2 * L * H]."""
    found = []
    for cell in (layer.cell for layer in stack.stack):
        weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
        c, x = lstm(x, *(np.float64(v) for v in weights))
        found += [c, x]
    return np.concatenate(found, axis=1)


def final_state(x, stack):
    """The states at the last step; zeros for an empty row."""
    states = lstm_states(x, stack)
    return states[-1] if len(states) else np.zeros(states.shape[1])


class NumpyNetwork:
    """Encodings of a network, by its weights.

    Args:
        network: of CASES.
        name: of the case.
    """

    def __init__(self, network, name: str):
        self.network = network
        self.arguments = CASES[name][1]
        self._encode = getattr(self, name.split("_")[0])
        self._seen: dict[int, list] = {}

    def encode(self, view):
        """A View → the encodings."""
        return np.array([self._encode(frames) for frames in videos(view)])

    def seen(self, layer):
        """All rows that a BatchNorm has read, of videos with frames, [rows, W]."""
        return np.concatenate(self._seen[id(layer)])

    def norm(self, layer, x, valid=True):
        """Batch norm by the moving averages; `valid` unless the video has no frame."""
        if valid:
            self._seen.setdefault(id(layer), []).append(np.atleast_2d(x))
        names = ("moving_mean", "moving_variance", "gamma", "beta")
        mean, variance, gamma, beta = (np.float64(getattr(layer, n)) for n in names)
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def parts(self, frames):
        """The features of the frames, each with 1 for all clusters or 2 for half."""
        return zip(np.split(frames, np.cumsum(SIZES)[:-1], axis=1), (1, 2), strict=True)

    def mean(self, frames):
        return frames.mean(axis=0) if len(frames) else np.zeros(frames.shape[1])

    def attention(self, frames):
        net, heads = self.network, self.arguments["num_heads"]
        h = np.maximum(layer_norm(net.first_norm, linear(net.first, frames)), 0)
        h = np.maximum(layer_norm(net.second_norm, linear(net.second, h)), 0)
        scores = h @ np.float64(net.scores.kernel)
        size = h.shape[1] // heads
        pooled = np.zeros(h.shape[1])
        if len(h):
            for j in range(heads):
                part = slice(j * size, (j + 1) * size)
                pooled[part] = softmax(scores[:, j]) @ h[:, part]
        e = linear(net.last, np.concatenate([pooled, self.mean(h)]))
        return np.maximum(layer_norm(net.last_norm, e), 0)

    def nextvlad(self, frames):
        net, descriptors = self.network, []
        for number, (part, share) in enumerate(self.parts(frames)):
            layer = net.pooling.encoders[number]
            clusters = math.ceil(self.arguments["clusters"] / share)
            groups = math.ceil(self.arguments["groups"] / share)
            wide = linear(layer.expand, part)
            assert wide.shape[1] == self.arguments["expansion"] * SIZES[number]
            attention = sigmoid(linear(layer.attend, wide))
            assigned = self.norm(layer.assign_norm, linear(layer.assign, wide))
            centers = np.float64(layer.centers)
            v = np.zeros((clusters, wide.shape[1] // groups))
            for t in range(len(wide)):
                for g in range(groups):
                    a = softmax(assigned[t].reshape(groups, clusters)[g])
                    x = wide[t].reshape(groups, -1)[g]
                    for k in range(clusters):
                        v[k] += attention[t, g] * a[k] * (x - centers[k])
            v = np.concatenate([unit(row) for row in v])
            descriptors.append(self.norm(layer.norm, v, len(frames) > 0))
        assert net.hidden.bias is None and net.gating.expand.bias is None
        h = linear(net.hidden, np.concatenate(descriptors))
        h = self.norm(net.norm, h, len(frames) > 0)
        inside = linear(net.gating.squeeze, h)
        assert len(inside) == len(h) // self.arguments["gating_reduction"]
        inside = np.maximum(self.norm(net.gating.norm, inside, len(frames) > 0), 0)
        return h * sigmoid(linear(net.gating.expand, inside))

    def netvlad(self, frames):
        net, descriptors = self.network, []
        for number, (part, share) in enumerate(self.parts(frames)):
            layer = net.pooling.encoders[number]
            clusters = math.ceil(self.arguments["clusters"] / share)
            x = self.norm(layer.input_norm, part)
            assigned = self.norm(layer.assign_norm, linear(layer.assign, x))
            centers = np.zeros((clusters, x.shape[1]))
            if self.arguments.get("centers", True):
                centers = np.float64(layer.centers)
            v = np.zeros_like(centers)
            for t in range(len(x)):
                a = softmax(assigned[t])
                for k in range(clusters):
                    v[k] += a[k] * (x[t] - centers[k])
            descriptors.append(unit(np.concatenate([unit(row) for row in v])))
        h = linear(net.hidden, np.concatenate(descriptors))
        if not self.arguments.get("gating", True):
            return h
        gates = self.norm(net.gating.norm, linear(net.gating.gates, h), len(frames) > 0)
        return h * sigmoid(gates)

    def dbof(self, frames):
        net, valid = self.network, len(frames) > 0
        normed = self.arguments.get("add_batch_norm", True)
        x = self.norm(net.input_norm, frames) if normed else frames
        x = linear(net.cluster, x)
        x = relu6(self.norm(net.cluster_norm, x) if normed else x)
        average = self.arguments.get("pooling_method") == "average"
        pooled = np.zeros(x.shape[1])
        if valid:
            pooled = x.mean(axis=0) if average else x.max(axis=0)
        x = linear(net.hidden, pooled)
        return relu6(self.norm(net.hidden_norm, x, valid) if normed else x)

    def transformer(self, frames):
        net, width = self.network, self.arguments["width"]
        # Relative time from 0 to 100, wavelengths from 1 to 10,000 times 2 pi.
        time = 100 * np.arange(len(frames)) / max(len(frames), 1)
        rates = 10000.0 ** (-2 * np.arange(width // 2) / width)
        angles = np.outer(time, rates)
        x = layer_norm(net.enter_norm, linear(net.enter, frames))
        x = x + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        z = np.concatenate([np.float64(net.token)[np.newaxis], x])
        for number in range(self.arguments["layers"]):
            block = net.blocks[number]
            inside = linear(block.project, layer_norm(block.attention_norm, z))
            queries, keys, values = np.split(inside, 3, axis=1)
            size = width // self.arguments["num_heads"]
            found = np.zeros_like(z)
            for start in range(0, width, size):
                q, k, v = (m[:, start : start + size] for m in (queries, keys, values))
                for t in range(len(z)):
                    share = softmax(k @ q[t] / math.sqrt(size))
                    found[t, start : start + size] = share @ v
            z = z + linear(block.merge, found)
            inside = linear(block.widen, layer_norm(block.norm, z))
            normal = (1 + np.vectorize(math.erf)(inside / math.sqrt(2))) / 2
            z = z + linear(block.narrow, inside * normal)  # gelu(x) = x P(X < x)
        return layer_norm(net.norm, z[0])

    def lstm_states(self, frames):
        """The states at all frames, each block of the hierarchical one from zeros."""
        if hasattr(self.network, "lstm"):
            return lstm_states(frames, self.network.lstm)
        size = self.network.block_len
        blocks = [frames[start : start + size] for start in range(0, T, size)]
        return np.concatenate([lstm_states(b, self.network.lower) for b in blocks])

    def lstm(self, frames):
        size = self.arguments["cells"]
        return final_state(frames, self.network.lstm)[-size:]  # h of the top layer

    def hierarchical(self, frames):
        net = self.network
        states = self.lstm_states(frames)
        ends = [*range(net.block_len - 1, len(frames), net.block_len)]
        if len(frames) % net.block_len:
            ends.append(len(frames) - 1)
        return final_state(states[ends], net.upper)
