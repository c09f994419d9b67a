"""How fast the paper's network is against the same network in PyTorch.

Runs where torch is importable; it is no dependency of the project. Both have the same
weights, and their logits are compared before anything is timed.
"""

import importlib.util
import os

import numpy as np

from tools.benchmarking import network, results
from yt8m_distill.data import features
from yt8m_distill.models import hierarchical_lstm

# What may be lost against PyTorch, in both directions of the network.
BAR = 1.15
# Largest difference of logits: sums of a thousand float32 products in another order.
TOLERANCE = 1e-4


def _twin(ours: hierarchical_lstm.HierarchicalLSTM):
    """The network in PyTorch: frames [B, T, D] uint8 → logits [B, C]."""
    import torch

    def stack(stacked, size: int):
        made = torch.nn.LSTM(size, stacked.cells, stacked.num_layers, batch_first=True)
        for number, layer in enumerate(stacked.stack):
            cell = layer.cell  # Both order the gates i, f, g, o.
            kernels = {"ih": cell.kernel, "hh": cell.recurrent_kernel}
            with torch.no_grad():
                for name, kernel in kernels.items():
                    values = torch.from_numpy(np.array(kernel).T.copy())
                    getattr(made, f"weight_{name}_l{number}").copy_(values)
                bias = torch.from_numpy(np.array(cell.bias))
                getattr(made, f"bias_ih_l{number}").copy_(bias)
                getattr(made, f"bias_hh_l{number}").zero_()
        return made

    def states(lstm, x):
        _, (h, c) = lstm(x)
        return torch.stack([c, h], dim=2).permute(1, 0, 2, 3).flatten(1)  # c1, h1, ...

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lower = stack(ours.lower, ours.feature_size)
            self.upper = stack(ours.upper, ours.lower.state_size)
            self.head = torch.nn.Linear(ours.encoding_size, ours.num_classes)
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(np.array(ours.head.kernel).T))
                self.head.bias.copy_(torch.from_numpy(np.array(ours.head.bias)))

        def forward(self, frames):
            x = frames.float() * features.SCALE + features.OFFSET
            x = torch.nn.functional.normalize(x, dim=-1)
            blocks = x.reshape(-1, ours.block_len, x.shape[-1])
            encoded = states(self.lower, blocks)
            return self.head(
                states(self.upper, encoded.reshape(len(x), -1, encoded.shape[-1]))
            )

    return Twin()


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; none where torch is not importable."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    size = (8, 5, 20, 16, 10, 2) if quick else (1024, 20, 300, 1152, 3862, 32)
    case = network.TeacherCase(size, dropout=0.0)
    theirs = _twin(case.network)
    videos = torch.from_numpy(case.inputs["frames"].numpy())
    labels = torch.from_numpy(case.labels.numpy())

    def forward():
        with torch.no_grad():
            return theirs(videos)

    def step():
        theirs.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            theirs(videos), labels, reduction="sum"
        )
        loss.backward()
        return loss.item()

    difference = np.abs(forward().numpy() - case.forward().numpy()).max()
    if difference > TOLERANCE:
        raise RuntimeError(f"The logits of both differ by {difference}.")
    calls = {
        **{f"our {what}": call for what, call in case.calls().items()},
        "their forward": lambda: forward()[0, 0].item(),
        "their step": step,
    }
    seconds = results.interleaved(calls, 1 if quick else 5)
    return [
        results.Row(
            f"HierarchicalLSTM, {what}: time over PyTorch's nn.LSTM",
            seconds[f"our {what}"] / seconds[f"their {what}"],
            BAR,
            at_most=True,
            unit="x",
            detail=f"{seconds[f'our {what}']:.3f} s and "
            f"{seconds[f'their {what}']:.3f} s for {size[-1]} videos; torch "
            f"{torch.__version__}; logits differ by at most {difference:.0e}",
        )
        for what in ("forward", "step")
    ]
