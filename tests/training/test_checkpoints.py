"""Checkpoints: nothing is left out, and a damaged one does no harm."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill.training import checkpoints, modes, optimizers, steps

MODELS = [
    "MeanTanh(units=3)",
    "FrameLevelLogisticModel(head='moe(num_mixtures=2)')",
    "LstmModel(cells=3)",
    "HierarchicalLSTM(cells=3, block_len=5, encoding_size=7)",  # With a bridge.
    "HierarchicalLSTM(cells=2, layers=3, num_blocks=4, implementation='keras')",
]
OPTIMIZERS = ["Adam", "SGD(momentum=0.9)", "AdamW", "RMSprop", "Adagrad"]
if optimizers.tfa is not None:
    OPTIMIZERS += ["tfa.LAMB", "tfa.RectifiedAdam"]


def build(text: str, role: str = "student", **changes):
    """A network of a role, alone."""
    run = helpers.make_run("run", "data", mode="baseline", student=text, **changes)
    return helpers.build_network(role, run)


def values(variables) -> list:
    return [v.numpy() for v in variables]


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("text", MODELS)
def test_the_best_network_keeps_every_variable(tmp_path, text):
    network = build(text)
    helpers.fill(network.weights, seed=1)
    expected = values(network.weights)
    info = {"step": 4, "gap": 0.5}
    checkpoints.write_best(str(tmp_path), "student", network, info)
    # Another object, as in another process, with other numbers in it.
    other = build(text)
    helpers.fill(other.weights, seed=2)
    prefix = str(tmp_path / "network-4")
    checkpoints.restore_network(prefix, "student", other)
    assert_equal(values(other.weights), expected)


def make_state(folder, optimizer: str, max_to_keep: int = 3):
    """The state of a network and its optimizer, and all their variables."""
    run = helpers.make_run("run", "data", optimizer=optimizer, mode="parallel")
    (phase,) = modes.phases(run)
    networks = helpers.build_networks(run, ["teacher", "student"], True)
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
    helpers.fill(variables, seed=1)
    expected = values(variables)
    state.step.assign(12)
    state.epoch.assign(2)
    state.batch.assign(3)
    state.write_notes({"student": {"best": {"gap": 0.25}}})
    state.unlogged = [[2, 2.0, {"student/loss": 0.1}, -1, 0.5]]
    state.save()
    other, variables = make_state(tmp_path, optimizer)
    helpers.fill(variables, seed=2)
    assert other.restore().endswith("ckpt-12")
    assert_equal(values(variables), expected)
    counters = (other.step, other.epoch, other.batch)
    assert [int(c.numpy()) for c in counters] == [12, 2, 3]
    assert other.read_notes() == {"student": {"best": {"gap": 0.25}}}
    assert other.unlogged == state.unlogged


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


def flip(path: str, position: int = -1) -> None:
    """Flips a bit of one byte; -1: of that in the middle."""
    content = bytearray(pathlib.Path(path).read_bytes())
    content[position if position >= 0 else len(content) // 2] ^= 1
    pathlib.Path(path).write_bytes(content)


def assert_restores(folder, step: int) -> None:
    """Another process finds the checkpoint of that step, with all its weights."""
    state, variables = make_state(folder, "SGD")
    assert state.restore().endswith(f"ckpt-{step}")
    assert int(state.step.numpy()) == step
    weights = [v.numpy() for v in variables if "float" in str(v.dtype)]
    assert all((w == step).all() for w in weights if w.size > 1)


@pytest.mark.parametrize(
    ("part", "harm"),
    [
        *(("data-00000-of-00001", harm) for harm in (damage, flip, os.remove)),
        *(("index", harm) for harm in (damage, flip)),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path, caplog, part, harm
):
    saved_at(tmp_path, 1, 2, 3)
    prefix = f"{tmp_path}/checkpoints/ckpt-3"
    harm(f"{prefix}.{part}")
    assert_restores(tmp_path, 2)
    assert prefix in caplog.text
    assert checkpoints.problem(prefix)
    assert checkpoints.problem(f"{tmp_path}/checkpoints/ckpt-2") is None


@pytest.mark.parametrize("content", [None, b"", b'model_checkpoint_path: "ckpt-1"\n'])
def test_the_newest_checkpoint_is_found_despite_the_file_checkpoint(tmp_path, content):
    saved_at(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "checkpoint"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert_restores(tmp_path, 2)


def test_no_file_of_a_checkpoint_is_ever_written_over(tmp_path):
    saved_at(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    before = helpers.snapshot(folder)
    state, _ = make_state(tmp_path, "SGD")
    state.restore()
    state.epoch.assign(1)  # As at the end of an epoch, after a save at its last step.
    seen = {}

    class Looking:
        def write(self, path):
            written = state.checkpoint.write(path)
            seen.update(helpers.snapshot(folder))
            return written

    checkpoints._write(Looking(), str(folder), "ckpt-2")
    assert {name: seen.get(name) for name in before} == before
    # The next process goes on from the second one, and a save keeps that one alone.
    other, _ = make_state(tmp_path, "SGD")
    assert other.restore().endswith("ckpt-2-1")
    assert int(other.epoch.numpy()) == 1
    other.step.assign(3)
    other.save()
    assert tf.train.latest_checkpoint(str(folder)) == f"{folder}/ckpt-3"


def test_of_several_checkpoints_of_a_step_the_last_is_the_newest(tmp_path, monkeypatch):
    """Two are there where a process was killed between writing and removing."""
    for epoch in range(3):
        with monkeypatch.context() as patch:
            if epoch == 2:
                patch.setattr(checkpoints.files, "remove", lambda path: None)
            state, _ = make_state(tmp_path, "SGD")
            state.epoch.assign(epoch)
            state.save()
    other, _ = make_state(tmp_path, "SGD")
    other.restore()
    assert int(other.epoch.numpy()) == 2


def test_saving_the_same_step_again_writes_nothing(tmp_path):
    saved_at(tmp_path, 1)
    state, _ = make_state(tmp_path, "SGD")
    state.step.assign(2)
    before = state.save()
    content = helpers.snapshot(tmp_path)
    assert state.save() == before and helpers.snapshot(tmp_path) == content


@pytest.mark.parametrize("stop", ["index", "last"])
def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(
    tmp_path, monkeypatch, stop
):
    saved_at(tmp_path, 1)
    state, _ = make_state(tmp_path, "SGD")
    state.restore()
    state.step.assign(2)

    def killed(*arguments, **more):
        raise helpers.Stop

    with monkeypatch.context() as patch:
        # Without the tidying up of a process that ends by itself.
        patch.setattr(checkpoints.files, "remove", lambda path: None)
        if stop == "last":
            patch.setattr(tf.io.gfile, "rmtree", killed)
        else:
            rename = tf.io.gfile.rename

            def only_data(source, target, overwrite=False):
                if target.endswith(".index"):
                    raise helpers.Stop
                rename(source, target, overwrite)

            patch.setattr(tf.io.gfile, "rename", only_data)
        with pytest.raises(helpers.Stop):
            state.save()
    assert (tmp_path / "checkpoints" / checkpoints.WRITING).exists()
    # All of it is there before the scratch folder is removed.
    again, variables = make_state(tmp_path, "SGD")
    assert again.restore().endswith("ckpt-2" if stop == "last" else "ckpt-1")
    again.step.assign(3)
    again.save()
    assert not (tmp_path / "checkpoints" / checkpoints.WRITING).exists()
    found = {n.split(".")[0] for n in os.listdir(tmp_path / "checkpoints")}
    assert found - {"ckpt-2"} == {"checkpoint", "ckpt-1", "ckpt-3"}
    assert ("ckpt-2" in found) == (stop == "last")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_not_saved(tmp_path, value):
    saved_at(tmp_path, 1)
    before = helpers.snapshot(tmp_path)
    state, variables = make_state(tmp_path, "Adam")
    state.step.assign(2)
    # The last one is the optimizer's.
    bad = np.zeros(variables[-1].shape, np.float32)
    bad.flat[-1] = value
    variables[-1].assign(bad)
    with pytest.raises(FloatingPointError) as error:
        state.save()
    message = str(error.value)
    assert message.startswith("Step 2: ") and "student_optimizer/" in message
    assert f"{tmp_path}/checkpoints/ckpt-1 is intact" in message
    assert "--base_learning_rate" in message and "\n" not in message
    assert helpers.snapshot(tmp_path) == before


def test_a_refusing_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path):
    saved_at(tmp_path, 1)
    before = helpers.snapshot(tmp_path)
    state, variables = make_state(tmp_path, "SGD")
    state.step.assign(2)
    size = os.path.getsize(f"{tmp_path}/checkpoints/ckpt-1.data-00000-of-00001")
    with helpers.full_disk(size // 2), pytest.raises(ValueError) as error:
        state.save()
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/checkpoints/ckpt-2 cannot be written: File")
    assert f"{tmp_path}/checkpoints/ckpt-1 is intact" in message
    assert helpers.snapshot(tmp_path) == before


def test_where_no_checkpoint_can_be_read_none_is_reported(tmp_path):
    state, variables = make_state(tmp_path, "SGD")
    with helpers.full_disk(100), pytest.raises(ValueError) as error:
        state.save()
    assert "intact" not in str(error.value)
    variables[0].assign(np.full(variables[0].shape, np.nan))
    with pytest.raises(FloatingPointError) as error:
        state.save()
    assert "intact" not in str(error.value)


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


@pytest.mark.parametrize(
    "text",
    [
        "MeanTanh(units=5)",
        "HierarchicalLSTM(cells=3, block_len=5)",
        # Four numbers per video as before, so that only the classifier fits.
        "HierarchicalLSTM(cells=1, block_len=5)",
    ],
)
def test_another_network_is_refused_in_one_line(tmp_path, text):
    network = build("MeanTanh(units=4)")
    checkpoints.write_best(str(tmp_path), "student", network, {"step": 1})
    prefix = str(tmp_path / "network-1")
    with pytest.raises(ValueError) as error:
        checkpoints.restore_network(prefix, "student", build(text))
    message = str(error.value)
    assert prefix in message and "student" in message and "\n" not in message


def test_a_network_with_a_value_that_is_no_number_is_refused(tmp_path):
    network = build("MeanTanh(units=4)")
    kernel = np.zeros(network.head.kernel.shape, np.float32)
    kernel[0, 3] = np.nan
    network.head.kernel.assign(kernel)
    with pytest.raises(FloatingPointError, match="Step 1: .*student/.*kernel"):
        checkpoints.write_best(str(tmp_path), "student", network, {"step": 1})
    assert not list(tmp_path.iterdir())
    # Another program may have written it.
    prefix = tf.train.Checkpoint(student=network).write(str(tmp_path / "network-1"))
    with pytest.raises(ValueError, match="network-1 has NaN .*kernel"):
        checkpoints.restore_network(prefix, "student", build("MeanTanh(units=4)"))


def proposed(folder, *steps: int):
    """A best network at the first step, and a proposed one at the second."""
    network = build("MeanTanh()")
    notes = [{"epoch": n + 1, "step": s, "gap": s / 10} for n, s in enumerate(steps)]
    checkpoints.write_best(str(folder), "student", network, notes[0])
    if len(notes) > 1:
        checkpoints.propose_best(str(folder), "student", network, notes[1])
    return notes


def networks_in(folder) -> set:
    names = {n.split(".")[0] for n in os.listdir(folder)}
    return {n for n in names if n.startswith("network")}


def test_a_proposed_network_counts_once_the_state_knows_of_it(tmp_path):
    first, second = proposed(tmp_path, 5, 10)
    assert networks_in(tmp_path) == {"network-5", "network-10"}
    # Killed before the state was saved: the first is the best, with all it had.
    copy = tmp_path.parent / f"{tmp_path.name}-copy"
    shutil.copytree(tmp_path, copy)
    assert checkpoints.settle_best(str(copy), first) == first
    assert networks_in(copy) == {"network-5"}
    # Killed after that.
    assert checkpoints.settle_best(str(tmp_path), second) == second
    assert networks_in(tmp_path) == {"network-10"}
    assert sorted(os.listdir(tmp_path))[0] == "best.json"
    assert not (tmp_path / "proposed.json").exists()


def test_a_network_proposed_before_any_state_is_dropped(tmp_path):
    note = {"epoch": 1, "step": 5}
    checkpoints.propose_best(str(tmp_path), "student", build("MeanTanh()"), note)
    assert checkpoints.settle_best(str(tmp_path), None) is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("harm", [damage, flip, os.remove])
@pytest.mark.parametrize("name", ["network-5.index", "best.json"])
def test_a_damaged_best_network_is_named_and_not_the_best(tmp_path, caplog, name, harm):
    (note,) = proposed(tmp_path, 5)
    if (name, harm) == ("best.json", flip):
        (tmp_path / name).write_text("[]")  # A flipped bit might make another number.
    else:
        harm(str(tmp_path / name))
    assert checkpoints.settle_best(str(tmp_path), note, verify=True) is None
    assert f"The best network in {tmp_path} is passed over: " in caplog.text
    assert str(tmp_path / name.removesuffix(".index")) in caplog.text


def test_find_takes_the_last_phase_that_has_one(tmp_path):
    run = helpers.make_run(tmp_path, "data", mode="serial", student_loss="rep")
    plan = helpers.plan_of(run)

    def find(*checkpoint):
        return checkpoints.find(str(tmp_path), plan, "student", *checkpoint)

    def write(phase, step):
        folder = checkpoints.best_folder(str(tmp_path), phase, "student")
        network = build("MeanTanh()")
        checkpoints.write_best(folder, "student", network, {"step": step})
        return find()

    assert find() is None
    assert write("student", 3)[1:] == (3, "student")
    found = write("finetune", 2)
    assert found[1:] == (2, "finetune")
    assert find(found.prefix)[:2] == found[:2]  # The step is in its name.
    assert find("latest") is None
    saved_at(tmp_path / "student", 7)
    latest = find("latest")
    assert latest[1:] == (7, "student") and latest.prefix.endswith("ckpt-7")


def test_a_prefix_without_a_checkpoint_is_named(tmp_path):
    run = helpers.make_run(tmp_path, "data", mode="teacher")
    with pytest.raises(ValueError, match="--checkpoint=nowhere/x: nowhere/x.index"):
        checkpoints.find(str(tmp_path), helpers.plan_of(run), "teacher", "nowhere/x")


def test_a_network_can_be_read_from_a_full_checkpoint(tmp_path):
    saved_at(tmp_path, 5)
    run = helpers.make_run("run", "data", mode="parallel")
    networks = helpers.build_networks(run, ["student"])
    prefix = f"{tmp_path}/checkpoints/ckpt-5"
    checkpoints.restore_network(prefix, "student", networks.student)
    assert all((v.numpy() == 5).all() for v in networks.student.weights)
