"""Data and trained runs that several tests look at, and none changes."""

import pytest

from tests import training_helpers as helpers


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """36 training videos in two shards, 12 for validation."""
    folder = tmp_path_factory.mktemp("data")
    helpers.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def serial_run(data, tmp_path_factory):
    """A finished serial run, all three losses, a teacher and a student."""
    run = helpers.make_run(
        tmp_path_factory.mktemp("serial") / "run",
        data,
        mode="serial",
        student_loss="ce + 0.5*rep + 0.5*pred",
    )
    helpers.train(run)
    return run


@pytest.fixture(scope="session")
def parallel_run(data, tmp_path_factory):
    """A finished parallel run with a shared classifier."""
    run = helpers.make_run(
        tmp_path_factory.mktemp("parallel") / "run",
        data,
        mode="parallel",
        match="both",
    )
    helpers.train(run)
    return run


@pytest.fixture(scope="session")
def representation_run(serial_run, tmp_path_factory):
    """Serial, L_REP alone, then fine-tuning; the teacher is that of `serial_run`."""
    train_dir = tmp_path_factory.mktemp("representation") / "run"
    run = helpers.copy_without(serial_run, train_dir, "student")
    run = helpers.change(run, student_loss="rep", finetune_epochs=1)
    helpers.train(run)
    return run
