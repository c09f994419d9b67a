"""One training step of the paper-size networks on the CPU: time and memory.

    python tools/paper_size_step.py --mode=parallel --batch_size=8

Random frames and labels of YouTube-8M's shape; nothing is read or written. The
step is the one of train.py: forward, losses, gradients, clipping, Adam.
"""

import argparse
import os
import resource
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

# Run as a file, the package is one folder up.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.models import builder
from yt8m_distill.training import distribution, modes, optimizers, steps


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--mode", choices=settings.MODES, default="parallel", help="which networks")
    add("--batch_size", type=int, default=8, help="videos a step")
    add("--steps", type=int, default=1, help="steps to take")
    add("--cells", type=int, default=1024, help="cells of each LSTM layer")
    add("--max_frames", type=int, default=300, help="frames of every video")
    add("--student_k", type=int, default=30, help="frames that the student sees")
    add("--feature_sizes", default="1024,128", help="width of rgb and audio")
    add("--num_classes", type=int, default=3862, help="classes")
    add(
        "--dtype_policy",
        choices=settings.DTYPE_POLICIES[:2],
        default="float32",
        help="precision of the matrix products",
    )
    return parser.parse_args()


def make_settings(given: argparse.Namespace) -> settings.RunSettings:
    """A run of that size; its paths are never looked at."""
    return settings.RunSettings.from_dict(
        {
            "mode": given.mode,
            "teacher": f"HierarchicalLSTM(cells={given.cells}, block_len=20)",
            "student_k": given.student_k,
            "max_frames": given.max_frames,
            "feature_sizes": given.feature_sizes,
            "num_classes": given.num_classes,
            "batch_size": given.batch_size,
            "dtype_policy": given.dtype_policy,
            "train_dir": "unused",
            "train_data_pattern": "unused",
        }
    )


def random_batch(run: settings.RunSettings, seed: int = 0) -> structures.Batch:
    """A Batch of full-length videos with three labels each."""
    random = np.random.default_rng(seed)
    size, total = run.training.batch_size, run.data.max_frames
    frames = random.integers(0, 256, (size, total, run.data.feature_size), np.uint8)
    labels = np.zeros([size, run.data.num_classes], np.float32)
    for row in labels:
        row[random.choice(len(row), 3, replace=False)] = 1
    k = run.sampling.student_k
    picked = {
        structures.ALL: np.arange(total),
        structures.SAMPLED: np.arange(k) * total // k,
    }
    views = {
        name: {
            structures.FRAMES: tf.constant(frames[:, positions]),
            structures.NUM_FRAMES: tf.fill([size], len(positions)),
            structures.FRAME_INDICES: tf.constant(
                np.tile(positions, (size, 1)), tf.int32
            ),
        }
        for name, positions in picked.items()
    }
    return {
        structures.VIDEO_ID: tf.fill([size], "random"),
        structures.LABELS: tf.constant(labels),
        structures.WEIGHTS: tf.ones([size]),
        structures.VIEWS: views,
    }


def build_step(run: settings.RunSettings, phase: modes.Phase):
    """The networks of a phase and the training step on them."""
    names = [role.name for role in phase.roles]
    networks = builder.build_networks(run, names, phase.share_classifier)
    rate = optimizers.LearningRate(run.optimization, run.training.batch_size, 1)
    learners = []
    for role in phase.trained:
        network = networks.network(role.name)
        variables = steps.trained_variables(network, role)
        optimizer = optimizers.build_optimizer(run.optimization, rate)
        optimizers.build_variables(optimizer, variables)
        scope = run.optimization.regularization_scope
        kernels = steps.trained_kernels(network, role, scope, phase.share_classifier)
        learners.append(steps.Learner(role, optimizer, variables, kernels))
    step = steps.TrainStep(
        networks,
        phase,
        learners,
        run.optimization,
        run.training.batch_size,
        run.training.seed,
    )
    return networks, step


def peak_gibibytes() -> float:
    """The most memory this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    """Flags → networks → steps → numbers."""
    given = parse_arguments()
    run = make_settings(given)
    distribution.prepare_runtime(given.dtype_policy)
    strategy = distribution.mirrored_strategy(["CPU:0"])
    # In serial mode the teacher is trained first; the student's phase is the last.
    phase = modes.phases(run)[-1]
    with strategy.scope():
        networks, step = build_step(run, phase)
    for role in phase.roles:
        network = networks.network(role.name)
        size = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
        print(f"{role.name}: {size:,} parameters, {network.max_frames} frames")
    total = sum(int(np.prod(v.shape)) for v in networks.trainable_variables)
    print(f"together: {total:,} parameters", flush=True)
    batch = random_batch(run)

    @tf.function
    def one_step(number):
        def in_replica():
            gradients, metrics, finite = step.compute(batch, number)
            step.apply(gradients)
            return metrics, finite

        metrics, finite = strategy.run(in_replica)
        return metrics, finite

    for number in range(given.steps):
        began = time.perf_counter()
        metrics, finite = one_step(tf.constant(number, tf.int64))
        values = dict(zip(step.metric_names, metrics.numpy().tolist(), strict=True))
        seconds = time.perf_counter() - began
        traced = ", tracing included" if number == 0 else ""
        print(f"step {number}: {seconds:.2f} s{traced}; finite: {bool(finite)}")
        for name, value in values.items():
            if name.endswith(("loss", "norm")):
                print(f"  {name} = {value:.6g}")
    print(f"peak memory: {peak_gibibytes():.2f} GiB")


if __name__ == "__main__":
    main()
