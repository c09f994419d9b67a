"""What a GPU would do with these networks: arithmetic, nothing measured.

Rates are the vendors' data sheet figures, dense; `UTILISATION` of the product rate is
what large LSTM products reach in practice at best.
"""

import dataclasses

from tools.benchmarking import results
from yt8m_distill import settings
from yt8m_distill.models import builder

UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of one accelerator and of what feeds it.

    Attributes:
        name: of the accelerator.
        products: bfloat16 floating point operations a second, dense.
        memory: bytes a second of its memory.
        link: bytes a second from the host.
    """

    name: str
    products: float
    memory: float
    link: float


MACHINES = (
    Machine("H100 SXM", 989e12, 3.35e12, 64e9),
    Machine("H200 SXM", 989e12, 4.8e12, 64e9),
)


def rows(quick: bool) -> list[results.Row]:
    """Videos a second that the products allow, and the bytes that they then eat."""
    del quick
    run = settings.RunSettings.from_dict(
        {
            "train_dir": "unused",
            "train_data_pattern": "unused",
            "mode": "parallel",
            "student_k": 30,
        }
    )
    table = []
    for role, k in (("teacher", 300), ("student", 30), ("student", 10)):
        mine = settings.RunSettings.from_dict(
            {**run.to_dict(), "student_k": min(k, 30)}
        )
        network = builder.build_networks(mine, [role]).network(role)
        operations = 2 * sum(network.multiply_adds(k).values())
        whole = run.data.max_frames * run.data.feature_size
        own = k * run.data.feature_size
        for machine in MACHINES:
            videos = UTILISATION * machine.products / operations
            table.append(
                results.Row(
                    f"{role} on {k} frames, forward, {machine.name}, bfloat16",
                    videos,
                    unit="videos/s",
                    detail=f"{operations / 1e9:.1f} GFLOP a video; eats "
                    f"{videos * own / 1e9:.1f} GB/s of its own frames, "
                    f"{videos * whole / 1e9:.1f} GB/s of whole records; its link "
                    f"carries {machine.link / 1e9:.0f} GB/s; training: a third",
                )
            )
    return table
