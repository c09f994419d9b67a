"""Checkpoints: nothing is left out, and a damaged one does no harm."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.models import builder
from yt8m_distill.training import checkpoints, modes, optimizers, steps

MODELS = [
    "MeanTanh(units=3)",
    "FrameLevelLogisticModel(head='moe(num_mixtures=2)')",
    "LstmModel(cells=3)",
    "HierarchicalLSTM(cells=3, block_len=5)",
    "HierarchicalLSTM(cells=2, layers=3, num_blocks=4, implementation='keras')",
]
OPTIMIZERS = ["Adam", "SGD(momentum=0.9)", "AdamW", "RMSprop", "Adagrad"]
if optimizers.tfa is not None:
    OPTIMIZERS += ["tfa.LAMB", "tfa.RectifiedAdam"]


def build(text: str, role: str = "student", **changes):
    """A network of a role, alone."""
    run = helpers.make_run("run", "data", mode="baseline", student=text, **changes)
    return builder.build_network(role, run)


def fill(variables, seed: int) -> None:
    random = np.random.default_rng(seed)
    for variable in variables:
        if "float" in str(variable.dtype):
            variable.assign(random.normal(size=variable.shape))


def values(variables) -> list:
    return [v.numpy() for v in variables]


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("text", MODELS)
def test_the_best_network_keeps_every_variable(tmp_path, text):
    network = build(text)
    fill(network.weights, seed=1)
    expected = values(network.weights)
    info = {"step": 4, "gap": 0.5}
    checkpoints.write_best(str(tmp_path), "student", network, info)
    # Another object, as in another process, with other numbers in it.
    other = build(text)
    fill(other.weights, seed=2)
    prefix = str(tmp_path / "network-4")
    checkpoints.restore_network(prefix, "student", other)
    assert_equal(values(other.weights), expected)


def test_the_best_network_keeps_the_bridge(tmp_path):
    text = "HierarchicalLSTM(cells=3, block_len=5, encoding_size=7)"
    network = build(text)
    assert network.bridge.shape == (12, 7)
    fill(network.weights, seed=1)
    expected = network.bridge.numpy()
    checkpoints.write_best(str(tmp_path), "student", network, {"step": 1})
    fill(network.weights, seed=2)
    checkpoints.restore_network(str(tmp_path / "network-1"), "student", network)
    np.testing.assert_array_equal(network.bridge.numpy(), expected)


def make_state(folder, optimizer: str, max_to_keep: int = 3):
    """The state of a network and its optimizer, and all their variables."""
    run = helpers.make_run("run", "data", optimizer=optimizer, mode="parallel")
    (phase,) = modes.phases(run)
    networks = builder.build_networks(run, ["teacher", "student"], True)
    rate = optimizers.LearningRate(run.optimization, 8, 10)
    objects, variables = {}, []
    for role in phase.roles:
        network = networks.network(role.name)
        optimizer = optimizers.build_optimizer(run.optimization, rate)
        trained = steps.trained_variables(network, role)
        optimizers.build_variables(optimizer, trained)
        objects |= {role.name: network, f"{role.name}_optimizer": optimizer}
        slots = optimizer.variables
        slots = slots() if callable(slots) else slots  # A method in Keras 2's.
        variables += [*network.weights, *slots]
    state = checkpoints.State(str(folder), objects, max_to_keep)
    return state, variables


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_keeps_every_variable_of_networks_and_optimizers(tmp_path, optimizer):
    state, variables = make_state(tmp_path, optimizer)
    fill(variables, seed=1)
    expected = values(variables)
    state.step.assign(12)
    state.epoch.assign(2)
    state.batch.assign(3)
    state.write_notes({"student": {"best": {"gap": 0.25}}})
    state.save()
    other, variables = make_state(tmp_path, optimizer)
    fill(variables, seed=2)
    assert other.restore().endswith("ckpt-12")
    assert_equal(values(variables), expected)
    counters = (other.step, other.epoch, other.batch)
    assert [int(c.numpy()) for c in counters] == [12, 2, 3]
    assert other.read_notes() == {"student": {"best": {"gap": 0.25}}}


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    state, _ = make_state(tmp_path, "SGD")
    assert state.restore() is None
    assert state.read_notes() == {}


def saved_at(folder, *numbers: int):
    """A folder with a checkpoint at each of these steps; weights hold the step."""
    state, variables = make_state(folder, "SGD")
    for number in numbers:
        state.step.assign(number)
        for variable in variables:
            if "float" in str(variable.dtype):
                variable.assign(np.full(variable.shape, number, np.float32))
        state.save()


def damage(path: str) -> None:
    """Cuts a file in half, as a full disk or a killed process leaves it."""
    os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, part):
    saved_at(tmp_path, 1, 2, 3)
    damage(f"{tmp_path}/checkpoints/ckpt-3.{part}")
    state, variables = make_state(tmp_path, "SGD")
    assert state.restore().endswith("ckpt-2")
    assert int(state.step.numpy()) == 2
    weights = [v.numpy() for v in variables if "float" in str(v.dtype)]
    assert all((w == 2).all() for w in weights if w.size > 1)
    assert "ckpt-3 is passed over" in caplog.text


def test_a_checkpoint_that_is_gone_is_passed_over(tmp_path):
    saved_at(tmp_path, 1, 2)
    for name in os.listdir(tmp_path / "checkpoints"):
        if name.startswith("ckpt-2"):
            os.remove(tmp_path / "checkpoints" / name)
    state, _ = make_state(tmp_path, "SGD")
    assert state.restore().endswith("ckpt-1")


def test_only_damaged_checkpoints_are_an_error_and_no_new_start(tmp_path):
    saved_at(tmp_path, 1, 2)
    for number in (1, 2):
        damage(f"{tmp_path}/checkpoints/ckpt-{number}.data-00000-of-00001")
    state, _ = make_state(tmp_path, "SGD")
    with pytest.raises(ValueError, match="None of the checkpoints in .* can be read"):
        state.restore()


def test_old_checkpoints_are_removed(tmp_path):
    saved_at(tmp_path, 1, 2, 3, 4, 5)
    found = {n.split(".")[0] for n in os.listdir(tmp_path / "checkpoints")}
    assert found == {"checkpoint", "ckpt-3", "ckpt-4", "ckpt-5"}


def test_a_new_best_replaces_the_old_one(tmp_path):
    network = build("MeanTanh()")
    folder = checkpoints.best_folder(str(tmp_path), "baseline", "student")
    for step in (9, 10):
        info = {"step": step, "gap": step / 10}
        checkpoints.write_best(folder, "student", network, info)
    assert sorted(os.listdir(folder)) == [
        "best.json",
        "network-10.data-00000-of-00001",
        "network-10.index",
    ]
    found = checkpoints.read_best(str(tmp_path), "baseline", "student")
    assert found == (os.path.join(folder, "network-10"), 10, "baseline")
    # A name that begins like the new one is another one: 10 does not spare 100.
    checkpoints.write_best(folder, "student", network, {"step": 100})
    checkpoints.write_best(folder, "student", network, {"step": 10})
    assert not tf.io.gfile.glob(f"{folder}/network-100*")


def test_a_network_with_hidden_variables_is_not_saved_in_silence(tmp_path):
    network = build("MeanTanh()")

    class Hiding(tf.Module):
        """Has the variables, but not as attributes that can be followed."""

        def __init__(self):
            super().__init__()
            self.head = network.head

        trainable_variables = network.trainable_variables

    with pytest.raises(RuntimeError, match="2 of the 3 variables of the student"):
        checkpoints.write_best(str(tmp_path), "student", Hiding(), {"step": 1})
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize(
    "text", ["MeanTanh(units=5)", "HierarchicalLSTM(cells=3, block_len=5)"]
)
def test_another_network_is_refused_in_one_line(tmp_path, text):
    network = build("MeanTanh(units=4)")
    checkpoints.write_best(str(tmp_path), "student", network, {"step": 1})
    prefix = str(tmp_path / "network-1")
    with pytest.raises(ValueError) as error:
        checkpoints.restore_network(prefix, "student", build(text))
    assert str(error.value).startswith(
        f"The checkpoint {prefix} does not hold this student: "
    )
    assert "\n" not in str(error.value)


def test_a_damaged_best_network_is_refused_in_one_line(tmp_path):
    network = build("MeanTanh(units=4)")
    checkpoints.write_best(str(tmp_path), "student", network, {"step": 1})
    damage(f"{tmp_path}/network-1.data-00000-of-00001")
    with pytest.raises(ValueError) as error:
        checkpoints.restore_network(str(tmp_path / "network-1"), "student", network)
    assert "\n" not in str(error.value)


def test_find_takes_the_last_phase_that_has_one(tmp_path):
    run = helpers.make_run(tmp_path, "data", mode="serial", student_loss="rep")
    train_dir = str(tmp_path)
    network = build("MeanTanh()")
    assert checkpoints.find(train_dir, run, "student") is None

    def write(phase, step):
        folder = checkpoints.best_folder(train_dir, phase, "student")
        checkpoints.write_best(folder, "student", network, {"step": step})
        return checkpoints.find(train_dir, run, "student")

    assert write("student", 3)[1:] == (3, "student")
    found = write("finetune", 2)
    assert found[1:] == (2, "finetune")
    by_prefix = checkpoints.find(train_dir, run, "student", found.prefix)
    assert by_prefix.prefix == found.prefix
    assert checkpoints.find(train_dir, run, "student", "latest") is None
    saved_at(tmp_path / "student", 7)
    latest = checkpoints.find(train_dir, run, "student", "latest")
    assert latest[1:] == (7, "student") and latest.prefix.endswith("ckpt-7")


def test_a_prefix_without_a_checkpoint_is_named(tmp_path):
    run = helpers.make_run(tmp_path, "data", mode="teacher")
    with pytest.raises(ValueError, match="--checkpoint=nowhere/x: nowhere/x.index"):
        checkpoints.find(str(tmp_path), run, "teacher", "nowhere/x")


def test_a_network_is_read_from_a_whole_state_too(tmp_path):
    saved_at(tmp_path, 5)
    run = helpers.make_run("run", "data", mode="parallel")
    networks = builder.build_networks(run, ["student"])
    prefix = f"{tmp_path}/checkpoints/ckpt-5"
    checkpoints.restore_network(prefix, "student", networks.student)
    assert all((v.numpy() == 5).all() for v in networks.student.weights)
