"""The networks in numpy: one video at a time, from the equations in lstm.py."""

import numpy as np
import pytest

GATES = "ifgo"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Oracle:
    """float64, no padding, no batches: slow, and plain enough to be believed."""

    @staticmethod
    def randomize(layer, seed: int, scale: float = 0.5) -> None:
        """Gives every variable, biases too, random values that can be recognised."""
        random = np.random.default_rng(seed)
        for variable in layer.weights:
            variable.assign(random.normal(0, scale, variable.shape))

    @staticmethod
    def layers(stack) -> list:
        """(W, U, b) of each layer of a StackedLSTM."""
        cells = [layer.cell for layer in stack.stack]
        variables = [(c.kernel, c.recurrent_kernel, c.bias) for c in cells]
        return [tuple(v.numpy().astype(np.float64) for v in vs) for vs in variables]

    @staticmethod
    def lstm(x, kernel, recurrent_kernel, bias):
        """One layer over one row: x [T, D] → c, h [T, H]."""
        size = len(recurrent_kernel)
        part = {gate: slice(n * size, (n + 1) * size) for n, gate in enumerate(GATES)}
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

    @classmethod
    def states(cls, x, layers):
        """[c1, h1, c2, h2, ...] at all steps: x [T, D] → [T, 2 * layers * H]."""
        found = []
        for weights in layers:
            c, x = cls.lstm(x, *weights)
            found += [c, x]
        return np.concatenate(found, axis=1)

    @classmethod
    def final(cls, x, layers):
        """The states at the last step; zeros for an empty row."""
        states = cls.states(x, layers)
        return states[-1] if len(states) else np.zeros(states.shape[1])

    @staticmethod
    def normalize(frames):
        """Stored uint8 frames [n, D] → dequantised, of length 1, float64."""
        frames = frames.astype(np.float64) * 4 / 255 + 4 / 512 - 2
        return frames / np.linalg.norm(frames, axis=1, keepdims=True)

    @classmethod
    def hierarchical(cls, network, frames, block_len: int):
        """Encoding, and lower states at every frame, of normalised frames [n, D]."""
        lower, upper = cls.layers(network.lower), cls.layers(network.upper)
        blocks = [
            cls.states(frames[start : start + block_len], lower)
            for start in range(0, len(frames), block_len)
        ]
        width = network.lower.state_size
        encodings = np.reshape([block[-1] for block in blocks], (len(blocks), width))
        states = np.concatenate([np.zeros((0, width)), *blocks])
        return cls.final(encodings, upper), states


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle
