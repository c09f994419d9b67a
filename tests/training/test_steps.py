"""The training step, against a plain one and over one or two replicas."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import settings, structures
from yt8m_distill.data import pipeline
from yt8m_distill.models import builder, layers
from yt8m_distill.training import inputs, modes, steps

RATE, CLIP, PENALTY = 0.3, 0.7, 4e6
LOSS = "ce + 0.8*rep + 0.6*pred"
# 36 videos in batches of 8: the last has 4, so that the second of two replicas
# gets only padding rows there.
STEPS = 5
CASES = {
    "teacher": {"mode": "teacher"},
    "serial": {"mode": "serial", "teacher_checkpoint": "unused", "match": "both"},
    "parallel, shared classifier": {"mode": "parallel", "match": "both"},
    "parallel, own": {"mode": "parallel", "classifier": "own"},
}


def make_run(data, **changes) -> settings.RunSettings:
    values = {
        "student_loss": LOSS,
        "optimizer": "SGD",
        "base_learning_rate": RATE,
        "clip_gradient_norm": CLIP,
        "regularization_penalty": PENALTY,
    }
    return helpers.make_run("unused", data, **{**values, **changes})


def randomize(networks) -> None:
    helpers.fill(networks.weights, 3, 0.5)


@functools.cache
def weights_after_an_epoch(run, replicas: int):
    """All weights after an epoch, and each step's metrics."""
    runner = helpers.build_phase(run, replicas, randomize)
    iterator = iter(runner._dataset(0, 0))
    assert runner.batches == STEPS
    names, metrics = runner.step.metric_names, []
    for _ in range(STEPS):
        values, bad, taken = runner.loop.run(iterator, tf.constant(1))
        assert (int(bad), int(taken)) == (-1, 1)
        metrics.append(dict(zip(names, values.numpy(), strict=True)))
    return [v.numpy() for v in runner.networks.weights], metrics


# The kinds of a guide; replicas without videos in the last batch.
@pytest.mark.parametrize(
    ("name", "replicas"), [("serial", 4), ("parallel, shared classifier", 2)]
)
def test_replicas_take_the_steps_of_one(data, name, replicas):
    run = make_run(data, **CASES[name])
    one, metrics = weights_after_an_epoch(run, 1)
    many, metrics_of_many = weights_after_an_epoch(run, replicas)
    # float32 sums in another order: a few units in the last place, STEPS times.
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    for role in [k for k in metrics[0] if k.endswith("gradient_norm")]:
        assert all(m[role] > CLIP for m in metrics), "the clipping was not active"
    for a, b in zip(metrics, metrics_of_many, strict=True):
        exact = [k for k in a if not k.endswith("GAP")]  # which is a mean of batches
        np.testing.assert_allclose(
            [a[k] for k in exact], [b[k] for k in exact], rtol=2e-5, atol=1e-6
        )


def test_two_replicas_take_adams_steps_of_one(data):
    how = {"optimizer": "Adam", "base_learning_rate": 0.01}
    run = make_run(data, mode="teacher", **how)
    one, _ = weights_after_an_epoch(run, 1)
    two, _ = weights_after_an_epoch(run, 2)
    # Adam divides by the gradient's size, so a number whose gradient is nearly 0
    # feels rounding most; a whole step is 0.01.
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


class Oracle:
    """The same training with nothing but a tape, one role after the other."""

    def __init__(self, run: settings.RunSettings):
        (self.phase,) = modes.phases(run, resolved=False)
        self.run = run
        self.networks = builder.build_networks(self.phase.roles, run.data)
        randomize(self.networks)

    def batches(self) -> list[dict]:
        """The first epoch's batches without their padding rows."""
        training = self.run.training
        dataset = pipeline.build_dataset(
            inputs.training_shards(self.run),
            modes.views_of(self.run, ["teacher", "student"]),
            batch_size=training.batch_size,
            training=True,
            seed=training.seed,
            shuffle_buffer_size=training.shuffle_buffer_size,
        )
        found = []
        for batch in dataset:
            count = int(tf.reduce_sum(batch["weights"]))
            found.append(tf.nest.map_structure(lambda x, n=count: x[:n], batch))
        return found

    def losses(self, role, outputs, labels) -> list:
        """[B] losses written out, for LOSS or the labels alone."""
        mine = outputs[role.name]
        p = tf.sigmoid(mine.logits)
        log = tf.math.log
        terms = [-tf.reduce_sum(labels * log(p) + (1 - labels) * log(1 - p), 1)]
        if role.guides:
            guide = outputs[role.guides[0]]
            terms.append(0.8 * tf.reduce_sum((mine.encoding - guide.encoding) ** 2, 1))
            if self.run.distillation.match == "both":
                difference = tf.reduce_sum((mine.states - guide.states) ** 2, [1, 2])
                terms.append(0.8 * difference)
            t = tf.sigmoid(guide.logits)
            kl = t * log(t / p) + (1 - t) * log((1 - t) / (1 - p))
            terms.append(0.6 * tf.reduce_sum(kl, 1))
        return terms

    def step(self, batch, number: int) -> None:
        """One step of plain SGD with the gradient's norm cut to CLIP."""
        outputs, updates, penalized = {}, [], []
        for index, role in enumerate(self.phase.roles):
            network = self.networks.network(role.name)
            # The noise of the whole batch of 8, whose first rows are the videos.
            noise = layers.Noise(
                tf.constant([index, number]), tf.constant(0), tf.constant(8)
            )
            with tf.GradientTape() as tape:
                mine = self.networks.forward(
                    role.name,
                    batch["views"],
                    training=not role.frozen,
                    states_of=self.phase.states_of,
                    noise=noise,
                )
                outputs[role.name] = mine
                if role.frozen:
                    continue
                # The guide was computed outside this tape: it is a constant.
                terms = self.losses(role, outputs, batch["labels"])
                loss = sum(tf.reduce_mean(term) for term in terms)
                for kernel in network.kernels():
                    # Each has its penalty once, whoever shares it.
                    if any(kernel is other for other in penalized):
                        continue
                    penalized.append(kernel)
                    square = tf.reduce_sum(tf.convert_to_tensor(kernel) ** 2)
                    loss += PENALTY * 1e-8 * square / 2
            variables = network.trainable_variables
            gradients = tape.gradient(loss, variables)
            norm = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradients))
            factor = RATE * min(1.0, CLIP / norm)
            updates += [
                (v, factor * g) for v, g in zip(variables, gradients, strict=True)
            ]
            # It guides others without its own dropout.
            outputs[role.name] = mine._replace(logits=network.head(mine.encoding))
        for variable, update in updates:
            variable.assign_sub(update)


@pytest.mark.parametrize("name", CASES)
def test_the_step_is_the_plain_one(data, name):
    run = make_run(data, **CASES[name])
    found, _ = weights_after_an_epoch(run, 1)
    oracle = Oracle(run)
    for number, batch in enumerate(oracle.batches()):
        oracle.step(batch, number)
    # float32; log(1 - p) of the plain cross-entropy loses some digits.
    for a, b in zip(found, oracle.networks.weights, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


def gradients_of_the_first_batch(run, replicas: int = 1):
    """See helpers.first_gradients."""
    return helpers.first_gradients(helpers.build_phase(run, replicas, randomize))


def test_padding_rows_do_not_change_the_result(tmp_path):
    helpers.write_shard(tmp_path / "train-0.tfrecord", helpers.make_videos(5, seed=1))
    run = make_run(
        tmp_path,
        **CASES["parallel, shared classifier"],
        teacher="MeanTanh(dropout=0.0)",
        clip_gradient_norm=0,
        shuffle_buffer_size=0,
    )
    alone, metrics = gradients_of_the_first_batch(helpers.change(run, batch_size=5))
    filled, metrics_filled = gradients_of_the_first_batch(run)
    assert alone.keys() == {"teacher", "student"}
    # The same numbers summed, with zeros between them.
    for role, gradients in alone.items():
        for a, b in zip(gradients, filled[role], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name, value in metrics.items():
        assert metrics_filled[name] == pytest.approx(value, rel=1e-5), name


def test_self_pred_compares_each_view_with_the_widest_as_a_constant(data):
    run = make_run(
        data,
        mode="parallel",
        student="MeanTanh(dropout=0.0)",
        classifier="own",
        student_loss="self_pred",
        student_k="2,4,6",
        train_frame_sampler="random",
        clip_gradient_norm=0,
        regularization_penalty=0,
    )
    found, metrics = gradients_of_the_first_batch(run)
    runner = helpers.build_phase(run, 1, randomize)
    views, *_ = (batch["views"] for batch in runner._dataset(0, 0))
    student = runner.networks.network("student")
    t = tf.sigmoid(student(views["sampled"]).logits).numpy()  # Numbers: no gradient.
    names, losses, log = ("sampled", "sampled_2", "sampled_mixed"), [], tf.math.log
    with tf.GradientTape() as tape:
        for name in names:
            p = tf.sigmoid(student(views[name]).logits)
            kl = t * log(t / p) + (1 - t) * log((1 - t) / (1 - p))
            losses.append(tf.reduce_mean(tf.reduce_sum(kl, 1)))
        loss = sum(losses) / 3
    expected = tape.gradient(loss, student.trainable_variables)
    assert losses[0] == 0 and losses[1] > 0.05
    assert metrics["student/self_pred_loss"] == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(found["student"], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_norm_in_the_log_is_the_one_before_clipping(data):
    run = make_run(data, clip_gradient_norm=0)
    free, metrics = gradients_of_the_first_batch(run)
    norm = np.sqrt(sum(np.sum(g**2) for g in free["teacher"]))
    assert metrics["teacher/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    cut, _ = gradients_of_the_first_batch(
        helpers.change(run, clip_gradient_norm=float(norm / 4))
    )
    for a, b in zip(free["teacher"], cut["teacher"], strict=True):
        np.testing.assert_allclose(a / 4, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scope", ["all", "classifier"])
def test_the_penalty_is_half_the_squared_norm_in_units_of_1e_8(data, scope):
    run = make_run(data, regularization_scope=scope)
    runner = helpers.build_phase(run, 1, randomize)
    head, rest = runner.networks.teacher.head, runner.networks.teacher.kernel
    kernels = [head.kernel] + ([rest] if scope == "all" else [])
    square = sum(np.sum(k.numpy() ** 2) for k in kernels)
    _, metrics = gradients_of_the_first_batch(run)
    assert metrics["teacher/reg_loss"] == pytest.approx(
        PENALTY * 1e-8 * square / 2, rel=1e-5
    )
    assert metrics["teacher/loss"] == pytest.approx(
        metrics["teacher/ce_loss"] + metrics["teacher/reg_loss"], rel=1e-6
    )


def test_batch_gap_is_the_exact_one_of_the_batch():
    random = np.random.default_rng(0)
    scores = np.sort(random.random((6, 4), np.float32), axis=1)[:, ::-1].copy()
    hits = random.random((6, 4)) < 0.5
    num_labels = hits.sum(axis=1) + [0, 1, 0, 2, 0, 0]  # Some are outside the top.
    order = np.argsort(-scores.ravel())
    expected, seen = 0.0, 0
    for rank, hit in enumerate(hits.ravel()[order], start=1):
        seen += hit
        expected += hit * seen / rank
    found = steps.batch_gap(scores, hits, tf.constant(num_labels))
    # float32 against float64.
    assert float(found) == pytest.approx(expected / num_labels.sum(), rel=1e-5)


def test_batch_gap_without_labels_is_zero():
    scores = tf.ones([2, 3])
    assert float(steps.batch_gap(scores, scores < 0, tf.zeros([2], tf.int32))) == 0


def test_the_logged_gap_of_one_replica_is_that_of_evaluation(data):
    run = make_run(data, **CASES["teacher"], regularization_penalty=0, top_k=10)
    run = helpers.change(run, teacher="MeanTanh(dropout=0.0)")
    _, metrics = gradients_of_the_first_batch(run)
    oracle = Oracle(run)
    batch = oracle.batches()[0]
    logits = oracle.networks.forward("teacher", batch[structures.VIEWS]).logits
    scores = tf.sigmoid(logits).numpy()
    order = np.argsort(-scores.ravel())
    hit = batch["labels"].numpy().ravel()[order]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    assert metrics["teacher/GAP"] == pytest.approx(
        (precision * hit).sum() / hit.sum(), rel=1e-5
    )
    best = batch["labels"].numpy()[np.arange(8), scores.argmax(axis=1)]
    assert metrics["teacher/Hit@1"] == pytest.approx(best.mean(), rel=1e-6)


def test_products_have_the_policys_precision_in_every_replica(data, use_policy):
    run = make_run(data)
    _, exact = gradients_of_the_first_batch(run, replicas=2)
    use_policy("mixed_bfloat16")
    _, mixed = gradients_of_the_first_batch(run, replicas=2)
    error = abs(mixed["teacher/ce_loss"] / exact["teacher/ce_loss"] - 1)
    # bfloat16 has 8 bits, float32 24: two roundings to 2^-9 show, and are all.
    assert 2**-20 < error < 2**-6
