"""Whatever happens to a byte of a checkpoint, no wrong number is ever restored."""

import os
import pathlib
import random
import shutil

import pytest

from tests import training_helpers as helpers
from yt8m_distill.training import checkpoints

pytestmark = pytest.mark.faults
PARTS = (".data-00000-of-00001", ".index")


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit of one byte."""
    at = rng.randrange(len(content))
    changed = content[at] ^ (1 << rng.randrange(8))
    return content[:at] + bytes([changed]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """As a full disk leaves it."""
    return content[: rng.randrange(len(content))]


def zeros(content: bytes, rng: random.Random) -> bytes:
    """As a power failure leaves it."""
    begin = rng.randrange(len(content))
    return content[:begin] + bytes(len(content) - begin)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A network, a folder with two states and a best network, and their numbers."""
    folder = tmp_path_factory.mktemp("damaged") / "phase"
    run = helpers.make_run(folder, "none", mode="baseline", student="MeanTanh")
    network = helpers.build_networks(run, ["student"]).student
    state = checkpoints.State(str(folder), {"student": network}, 3)
    expected = {}
    for step in (1, 2):
        helpers.fill(network.weights, step)
        state.step.assign(step)
        state.save()
        expected[step] = numbers_of(network)
    facts = {"epoch": 1, "step": 2}
    checkpoints.write_best(str(folder / "best"), "student", network, facts)
    return network, folder, expected


def numbers_of(network) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in network.weights]


def damage(path: pathlib.Path, harm, rng: random.Random) -> None:
    # Over a new file: the copy shares no bytes with the original.
    path.write_bytes(harm(path.read_bytes(), rng))


CASES = [(harm, part) for harm in (flip, cut, zeros) for part in PARTS]
ROUNDS = [0, *(pytest.param(r, marks=pytest.mark.slow) for r in range(1, 10))]


@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("harm, part", CASES)
def test_a_damaged_state_gives_way_to_the_one_before(
    harm, part, round_, subject, tmp_path, caplog
):
    network, folder, expected = subject
    for number in range(10):
        copy = shutil.copytree(folder, tmp_path / str(number))
        path = copy / checkpoints.CHECKPOINTS / f"ckpt-2{part}"
        damage(path, harm, random.Random(f"{round_} {number}"))
        helpers.fill(network.weights, 99)
        caplog.clear()
        restored = checkpoints.State(str(copy), {"student": network}, 3).restore()
        step = int(os.path.basename(restored).removeprefix("ckpt-"))
        assert numbers_of(network) == expected[step]
        if step == 1:
            assert str(path.with_suffix("").name) in caplog.text


@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("harm, part", CASES)
def test_a_damaged_best_network_is_refused_by_name(
    harm, part, round_, subject, tmp_path
):
    network, folder, expected = subject
    for number in range(10):
        copy = shutil.copytree(folder, tmp_path / str(number))
        prefix = str(copy / "best" / "network-2")
        damage(pathlib.Path(prefix + part), harm, random.Random(f"{round_} {number}"))
        helpers.fill(network.weights, 99)
        try:
            checkpoints.restore_network(prefix, "student", network)
        except ValueError as error:
            assert prefix in str(error) and "student" in str(error)
            assert "\n" not in str(error)
        else:
            assert numbers_of(network) == expected[2]
