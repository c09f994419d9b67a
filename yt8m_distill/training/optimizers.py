"""Optimizers by name, learning rate schedules, and applying summed gradients."""

import keras
import tensorflow as tf

from yt8m_distill import registry, settings

OPTIMIZERS = registry.Registry("optimizer")

for _name in ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Nadam", "Lion"):
    if hasattr(keras.optimizers, _name):
        OPTIMIZERS.register(_name)(getattr(keras.optimizers, _name))

_ADDONS = ("LAMB", "LazyAdam", "NovoGrad", "RectifiedAdam", "AdaBelief")
try:  # The extra [addons]; TensorFlow Addons does not import beyond TF 2.15.
    import tensorflow_addons as tfa
except ImportError:
    tfa = None
else:  # `tfa.LAMB(...)` is parsed as `tfa_LAMB(...)`.
    for _name in _ADDONS:
        OPTIMIZERS.register(f"tfa_{_name}")(getattr(tfa.optimizers, _name))


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate at a step: warm-up, then decay.

    Args:
        batch_size: videos per step, over all replicas.
        total_steps: steps of the phase, for the cosine schedule.
    """

    def __init__(
        self,
        optimization: settings.OptimizationSettings,
        batch_size: int,
        total_steps: int,
    ):
        self.optimization = optimization
        self.batch_size = batch_size
        self.total_steps = total_steps

    def __call__(self, step) -> tf.Tensor:
        """Step (from 0) → rate, float32 scalar."""
        config = self.optimization
        examples = tf.cast(step, tf.float32) * self.batch_size
        if config.learning_rate_schedule == "cosine":
            progress = tf.cast(step, tf.float32) / max(self.total_steps, 1)
            factor = 0.5 * (1 + tf.cos(3.141592653589793 * tf.minimum(progress, 1.0)))
        else:
            decays = tf.floor(examples / config.learning_rate_decay_examples)
            factor = tf.pow(config.learning_rate_decay, decays)
        if config.warmup_examples:
            warmup = (examples + self.batch_size) / config.warmup_examples
            factor *= tf.minimum(warmup, 1.0)
        return config.base_learning_rate * factor


# Decay rates of running averages; at 1 the average would never change.
_DECAYS = ("beta_1", "beta_2", "momentum", "rho")


def _check_numbers(arguments: dict) -> None:
    """Raises a ValueError for a number that is invalid for every optimizer."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not 0 <= value <= 1e30 or name == "epsilon" and value == 0:
            raise ValueError(f"{name}={value} is not a positive number.")
        if name in _DECAYS and value >= 1:
            raise ValueError(f"{name}={value} is not below 1.")


def build_optimizer(
    optimization: settings.OptimizationSettings, learning_rate: LearningRate
):
    """The optimizer that `--optimizer` names; the training step clips gradients.

    Raises:
        ValueError: for an unknown name or argument, or a TensorFlow Addons optimizer
            without the extra [addons].
    """
    text = optimization.optimizer
    try:
        spec = registry.parse(text.replace("tfa.", "tfa_", 1))
        if spec.name.startswith("tfa_") and tfa is None:
            raise ValueError(
                "it needs TensorFlow Addons: pip install 'yt8m_distill[addons]' "
                "(TF 2.15.1, Python 3.10 or 3.11)."
            )
        _check_numbers(spec.arguments)
        return OPTIMIZERS.get(spec.name)(learning_rate=learning_rate, **spec.arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--optimizer={text}: {error}") from error


def build_variables(optimizer, variables: list) -> None:
    """Creates the optimizer's slots now, so that a checkpoint can restore them."""
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    else:  # Keras' legacy class, the base of TensorFlow Addons' optimizers.
        optimizer._create_all_weights(variables)


def apply_summed(optimizer, gradients: list, variables: list) -> None:
    """Applies gradients that are already summed over the replicas.

    Keras optimizers clip before they sum, so the training step sums and clips instead,
    and the optimizer must not sum again. Keras 2.15 has an argument for that; Keras 3
    has none (seen in 3.15), so its hook is replaced by the identity.
    """
    pairs = list(zip(gradients, variables, strict=True))
    if hasattr(optimizer, "_all_reduce_sum_gradients"):
        optimizer._all_reduce_sum_gradients = list
        optimizer.apply_gradients(pairs)
    else:
        optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)
