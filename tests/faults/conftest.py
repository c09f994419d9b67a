"""Data and runs that the fault tests share."""

import pathlib
from typing import NamedTuple

import pytest

from tests import training_helpers
from tests.faults import processes


class Run(NamedTuple):
    """A finished run, and its data and end (see training_helpers.end_of)."""

    data: pathlib.Path
    train_dir: pathlib.Path
    end: dict


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    """Frame-level shards, and video-level ones in the folder video_level."""
    return processes.make_data(tmp_path_factory.mktemp("faults") / "data")


def _train(data, train_dir, *more: str) -> Run:
    flags = processes.training_flags(data, train_dir, *more)
    processes.call("train", *flags).assert_succeeded()
    return Run(data, train_dir, training_helpers.end_of(train_dir))


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory) -> Run:
    """An undisturbed run of a teacher; <train_dir>.stopped has its two checkpoints."""
    train_dir = tmp_path_factory.mktemp("whole") / "run"
    with training_helpers.killed_copy(train_dir, "stopped", "teacher", 6):
        return _train(data, train_dir, "--mode=teacher")


@pytest.fixture(scope="session")
def video_level_run(data, tmp_path_factory) -> Run:
    """A baseline on video-level records, which hold floats."""
    train_dir = tmp_path_factory.mktemp("video_level") / "run"
    return _train(data / "video_level", train_dir, *processes.VIDEO_LEVEL_FLAGS)
