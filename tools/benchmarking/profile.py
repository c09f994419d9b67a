"""Where the time of a step and of an evaluation goes, part by part."""

import argparse

import tensorflow as tf

from tools import paper_size_step
from tools.benchmarking import results
from yt8m_distill import structures
from yt8m_distill.data import features
from yt8m_distill.evaluation import top_predictions
from yt8m_distill.models import hierarchical_lstm
from yt8m_distill.training import distribution, modes

K = 30


def _settings(quick: bool, mode: str):
    given = argparse.Namespace(
        mode=mode,
        cells=8 if quick else 1024,
        student_k=K,
        max_frames=300,
        feature_sizes="1024,128",
        num_classes=50 if quick else 3862,
        batch_size=4 if quick else 32,
        dtype_policy="float32",
    )
    return paper_size_step.make_settings(given)


def _calls(network, view, labels, prefix: str) -> dict:
    """The parts of a forward pass, each on the output of the one before."""
    frames, num_frames = view[structures.FRAMES], view[structures.NUM_FRAMES]
    block_len, batch = network.block_len, frames.shape[0]
    blocks = -(-frames.shape[1] // block_len)

    @tf.function
    def prepare():
        ready = features.l2_normalize(features.dequantize(frames, num_frames))
        return hierarchical_lstm.to_blocks(ready, block_len)

    lengths = tf.fill([batch * blocks], block_len)
    cut = prepare()
    lower = tf.function(lambda: network.lower(cut, lengths))
    encoded = tf.reshape(lower(), [batch, blocks, -1])
    upper_in = tf.transpose(encoded, [1, 0, 2])
    upper = tf.function(lambda: network.upper(upper_in, tf.fill([batch], blocks)))
    encoding = upper()
    classify = tf.function(lambda: tf.sigmoid(network.classify(encoding)))
    scores = classify()
    best = tf.function(
        lambda: (
            top_predictions.top_predictions(scores, labels, tf.ones([batch]), 20).scores
        )
    )
    parts = {
        "dequantise, normalise, cut into blocks": prepare,
        "lower LSTM": lower,
        "upper LSTM": upper,
        "classifier": classify,
        "top 20 and hits": best,
    }
    return {
        f"{prefix}: {name}": lambda part=part: tf.reshape(part(), [-1])[0].numpy()
        for name, part in parts.items()
    }


def _step(run, mode_phase):
    """A whole training step, and the part of it that applies the gradients."""
    strategy = distribution.mirrored_strategy(["CPU:0"])
    with strategy.scope():
        networks, step = paper_size_step.build_step(run, mode_phase)
    batch = paper_size_step.random_batch(run)
    number = tf.constant(0, tf.int64)

    @tf.function
    def whole():
        def in_replica():
            gradients, metrics, _ = step.compute(batch, number)
            step.apply(gradients)
            return metrics

        return strategy.run(in_replica)

    @tf.function
    def compute():
        return strategy.run(lambda: step.compute(batch, number)[1])

    return networks, batch, whole, compute


def rows(quick: bool) -> list[results.Row]:
    """The table's rows, milliseconds a video and shares; no bars."""
    calls, batches = {}, {}
    for role, mode in (("teacher", "teacher"), ("student", "baseline")):
        run = _settings(quick, mode)
        networks, batch, whole, compute = _step(run, modes.phases(run)[-1])
        network = networks.network(role)
        view = batch[structures.VIEWS][networks.views[role]]
        calls |= _calls(network, view, batch[structures.LABELS], role)
        for name, part in (
            ("step without applying the gradients", compute),
            ("whole training step", whole),
        ):
            calls[f"{role}: {name}"] = lambda part=part: part()[0].numpy()
        batches[role] = run.training.batch_size
    seconds = results.interleaved(calls, 1 if quick else 3)
    table = []
    for name, value in seconds.items():
        role = name.split(":")[0]
        share = value / seconds[f"{role}: whole training step"]
        table.append(
            results.Row(
                name,
                1e3 * value / batches[role],
                unit="ms a video",
                detail=f"{100 * share:.1f} % of a training step",
            )
        )
    return table
