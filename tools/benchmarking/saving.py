"""The cost of checkpoints that are checked and flushed to disk."""

import os
import tempfile

import tensorflow as tf

from tools.benchmarking import results
from yt8m_distill.training import checkpoints

# The paper's network and its optimizer's two moments (Table 4: 29.5 M parameters).
_PARAMETERS, _COPIES = 29_500_000, 3


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick` measures small sizes and takes seconds."""
    count = 10_000 if quick else _PARAMETERS
    rounds = 1 if quick else 5
    generator = tf.random.Generator.from_seed(0)
    with tf.device("CPU"), tempfile.TemporaryDirectory() as folder:
        variables = [tf.Variable(generator.normal([count])) for _ in range(_COPIES)]
        content = {"variables": tf.train.Checkpoint(values=variables)}
        state = checkpoints.State(os.path.join(folder, "ours"), content, max_to_keep=2)
        plain = tf.train.Checkpoint(**content)
        manager = tf.train.CheckpointManager(plain, os.path.join(folder, "tf"), 2)

        def save():
            state.step.assign_add(1)
            state.save()

        times = results.interleaved({"ours": save, "tf": manager.save}, rounds)
        restored = results.interleaved(
            {
                "ours": state.restore,
                "tf": lambda: plain.restore(manager.latest_checkpoint),
            },
            rounds,
        )
    megabytes = 4 * count * _COPIES / 1e6
    return [
        results.Row(
            f"{what} a training state, over TensorFlow's own",
            found["ours"] / found["tf"],
            unit="x",
            detail=f"{found['ours']:.2f} s and {found['tf']:.2f} s for "
            f"{megabytes:.0f} MB; {ours}",
        )
        for what, found, ours in (
            ("saving", times, "every number checked, fsync"),
            ("restoring", restored, "the newest readable one"),
        )
    ]
