"""Optimizers by name, the learning rate over time, and summed gradients."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.training import optimizers

BATCH = 100
STANDARD = ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "SGD(momentum=0.9)"]
ADDONS = [f"tfa.{name}" for name in optimizers._ADDONS]
needs_addons = pytest.mark.skipif(
    optimizers.tfa is None, reason="needs the extra [addons] (TF 2.15.1)"
)


def test_the_help_names_every_optimizer():
    field = settings.OptimizationSettings.__dataclass_fields__["optimizer"]
    named = set(re.findall(r"[A-Z]\w+", field.metadata["help"]))
    standard = {n for n in optimizers.OPTIMIZERS if not n.startswith("tfa_")}
    assert standard | set(optimizers._ADDONS) <= named


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # In steps of ten batches.
        (
            {"learning_rate_decay": 0.8, "learning_rate_decay_examples": 1000},
            {0: 0.5, 9: 0.5, 10: 0.4, 19: 0.4, 20: 0.32, 30: 0.256},
        ),
        # The paper's: 4,000,000 examples are 40,000 batches of 100.
        ({}, {0: 0.5, 39_999: 0.5, 40_000: 0.5 * 0.95, 80_000: 0.5 * 0.95**2}),
        # To zero at the last step, 40.
        (
            {"learning_rate_schedule": "cosine"},
            {0: 0.5, 10: (1 + math.cos(math.pi / 4)) / 4, 20: 0.25, 40: 0, 50: 0},
        ),
        # Of 400 examples the first batch of 100 has a quarter: no step is lost at 0.
        ({"warmup_examples": 400}, {0: 0.125, 1: 0.25, 2: 0.375, 3: 0.5, 4: 0.5}),
    ],
    ids=["exponential", "default", "cosine", "warm-up"],
)
def test_the_rate_at_a_step_is_that_of_its_schedule(changes, expected):
    given = settings.OptimizationSettings(base_learning_rate=0.5, **changes)
    rate_at = optimizers.LearningRate(given, BATCH, total_steps=40)
    found = {step: float(rate_at(tf.constant(step, tf.int64))) for step in expected}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


def build(text: str, rate: float = 0.1):
    given = settings.OptimizationSettings(optimizer=text, base_learning_rate=rate)
    return optimizers.build_optimizer(given, optimizers.LearningRate(given, 1, 1))


@pytest.mark.parametrize(
    "text", [*STANDARD, *(pytest.param(t, marks=needs_addons) for t in ADDONS)]
)
def test_every_optimizer_walks_downhill(text):
    optimizer = build(text)
    variable = tf.Variable([3.0, -2.0])
    optimizers.build_variables(optimizer, [variable])
    for _ in range(3):
        # Of the function x^2.
        optimizers.apply_summed(optimizer, [2 * variable.read_value()], [variable])
    assert abs(variable.numpy()[0]) < 3 and abs(variable.numpy()[1]) < 2
    assert int(optimizer.iterations.numpy()) == 3


def test_arguments_reach_the_optimizer():
    optimizer = build("SGD(momentum=0.5)", rate=1.0)
    variable = tf.Variable(0.0)
    optimizers.build_variables(optimizer, [variable])
    for _ in range(2):
        optimizers.apply_summed(optimizer, [tf.constant(1.0)], [variable])
    # Steps of 1, and 1 + 0.5 * 1.
    assert float(variable.numpy()) == pytest.approx(-2.5)


def test_the_rate_follows_the_schedule_step_by_step():
    given = settings.OptimizationSettings(
        optimizer="SGD", base_learning_rate=1.0, warmup_examples=4
    )
    optimizer = optimizers.build_optimizer(given, optimizers.LearningRate(given, 1, 9))
    variable = tf.Variable(0.0)
    optimizers.build_variables(optimizer, [variable])
    seen = []
    for _ in range(5):
        before = float(variable.numpy())
        optimizers.apply_summed(optimizer, [tf.constant(1.0)], [variable])
        seen.append(before - float(variable.numpy()))
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("text", ["SGD", pytest.param("tfa.LAMB", marks=needs_addons)])
def test_summed_gradients_are_not_summed_again(text):
    def moved(replicas: int) -> np.ndarray:
        strategy = helpers.cpus(replicas)
        with strategy.scope():
            variable = tf.Variable([1.0, 2.0])
            optimizer = build(text)
            optimizers.build_variables(optimizer, [variable])

        @tf.function
        def step():
            gradient = tf.constant([1.0, -3.0])
            strategy.run(
                lambda: optimizers.apply_summed(optimizer, [gradient], [variable])
            )

        step()
        return variable.numpy()

    one, two = moved(1), moved(2)
    np.testing.assert_array_equal(one, two)
    if text == "SGD":
        np.testing.assert_allclose(one, [0.9, 2.3], rtol=1e-6)


@pytest.mark.parametrize(
    "text, part",
    [
        ("Adamm", "Unknown optimizer 'Adamm'. Known: Adagrad, Adam"),
        ("Adam(learning=1)", "learning"),
        ("Adam(learning_rate=1)", "learning_rate"),
        ("Adam(", "must be a name or a call"),
        pytest.param("tfa.Lamb", "tfa_LAMB", marks=needs_addons),
    ],
)
def test_a_wrong_optimizer_is_one_line_that_names_the_flag(text, part):
    with pytest.raises(ValueError) as error:
        build(text)
    message = str(error.value)
    assert message.startswith(f"--optimizer={text}") and part in message
    assert "\n" not in message


@pytest.mark.skipif(optimizers.tfa is not None, reason="TensorFlow Addons is here")
def test_an_optimizer_of_the_addons_names_the_extra_to_install():
    with pytest.raises(ValueError, match=r"--optimizer=tfa.LAMB: .*\[addons\]"):
        build("tfa.LAMB")


@pytest.mark.parametrize(
    "text",
    [
        "Adam(epsilon=-1)",
        "Adam(epsilon=0)",
        "Adam(beta_1=2)",
        "Adam(beta_2=1)",
        "SGD(momentum=-0.1)",
        "RMSprop(rho=1e999)",
        "AdamW(weight_decay=-1)",
    ],
)
def test_a_number_under_which_no_optimizer_works_is_refused(text):
    with pytest.raises(ValueError) as error:
        optimizers.build_optimizer(settings.OptimizationSettings(optimizer=text), 0.1)
    assert f"--optimizer={text}" in str(error.value)
