"""Data and trained runs that several tests look at, and none changes.

Next to a run are the copies that a kill would have left; see helpers.killed_copy.
"""

import pytest

from tests import training_helpers as helpers
from yt8m_distill.training import actions


@pytest.fixture(scope="session")
def serial_run(data, tmp_path_factory):
    """A finished serial run, all three losses, a teacher and a student."""
    run = helpers.make_run(
        tmp_path_factory.mktemp("serial") / "run",
        data,
        mode="serial",
        student_loss="ce + 0.5*rep + 0.5*pred",
    )
    train_dir = run.training.train_dir
    # An epoch has 5 steps, and two steps are done between two looks at the clock.
    with (
        helpers.killed_copy(train_dir, "teaching", "teacher", 7, save=True),
        # Without a save: back to the end of the first epoch.
        helpers.killed_copy(train_dir, "learning", "student", 7),
    ):
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
    train_dir = run.training.train_dir
    settle, save = (actions.KeepBest, "next_epoch"), (actions.Save, "next_epoch")
    with (
        helpers.killed_copy(train_dir, "together", "parallel", 7, save=True),
        # Between the best network of the first epoch, its state, and what settles it.
        helpers.killed_copy(train_dir, "unsettled", "parallel", 5, before=settle),
        helpers.killed_copy(train_dir, "unsaved", "parallel", 10, before=save),
    ):
        helpers.train(run)
    return run


@pytest.fixture(scope="session")
def representation_run(serial_run, tmp_path_factory):
    """Serial, L_REP alone, then fine-tuning; the teacher is that of `serial_run`."""
    train_dir = tmp_path_factory.mktemp("representation") / "run"
    run = helpers.copy_without(serial_run, train_dir, "student")
    run = helpers.change(run, student_loss="rep", finetune_epochs=1)
    with helpers.killed_copy(
        run.training.train_dir, "tuning", "finetune", 2, save=True
    ):
        helpers.train(run)
    return run
