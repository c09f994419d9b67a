"""Real processes through TF_CONFIG; tools/torturing/machines.py tries more."""

import pathlib
import signal

import pytest

from tools.torturing import machines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("machines")
    machines.write_data(folder)
    return folder


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(folder):
    """And validate every video once; the chief alone leaves files."""
    row = machines.equality(folder, [2])
    assert (row.tried, row.survived) == (1, 1), row.remark


@pytest.mark.slow
def test_the_loss_of_a_process_ends_the_other_one_with_a_line(folder):
    row = machines.losses(folder, [(2, 1, signal.SIGKILL)])
    assert (row.tried, row.survived) == (1, 1), row.remark
