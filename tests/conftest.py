"""Fixtures of all tests; logging and devices are set up before TensorFlow starts."""

import collections
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Strategy tests need up to four devices. Logical devices can only be made before the
# runtime starts, so every test process gets them.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration() for _ in range(4)],
)


def pytest_addoption(parser):
    parser.addoption(
        "--fast",
        action="store_true",
        help="without faults, what is marked slow, trains a run or exports a network",
    )


def pytest_configure(config):
    if config.option.fast:
        config.option.markexpr = "not slow and not faults and not real_data"


@pytest.fixture(scope="session", autouse=True)
def neither_trained_nor_exported(request):
    """With --fast, a test or a fixture ends where networks are built to be trained, or
    one is exported: so none of them needs a mark, and what comes before is tested.
    """
    if not request.config.option.fast:
        yield
        return
    from yt8m_distill.serving import export
    from yt8m_distill.training import phase_runner

    def end(*arguments):
        pytest.skip("--fast: trains a run or exports a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase_runner.PhaseRunner, "_build", end)
        for name, form in export.FORMATS.items():
            patch.setitem(export.FORMATS, name, form._replace(write=end))
        yield


@pytest.hookimpl(trylast=True)  # Behind the choice by markers.
def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left with one when the others are done."""
    weights = collections.Counter()
    for item in items:
        long = any(item.get_closest_marker(name) for name in ("slow", "faults"))
        trains = item.path.parent.name in ("training", "serving", "beam")
        weights[item.path] += 1000 if long or trains else 1
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> pathlib.Path:
    """A folder of links to the real records; indices can be written next to them.

    Skips the test where they are absent.
    """
    default = ROOT.parent / "shared" / "data"
    folder = pathlib.Path(os.environ.get("YT8M_DISTILL_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip(
            "no real data: set YT8M_DISTILL_REAL_DATA to the folder that has "
            "audioset_bal_train and yt8m_frame_level"
        )
    linked = tmp_path_factory.mktemp("real")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".frame_index":
            link = linked / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return linked


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    """36 training videos in two shards, 12 for validation."""
    from tests import training_helpers

    folder = tmp_path_factory.mktemp("data")
    training_helpers.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def image_network(tmp_path_factory) -> str:
    """The specification of a small image network, a SavedModel of 6 outputs."""
    from tests import video_helpers

    return video_helpers.write_network(tmp_path_factory.mktemp("network") / "cnn")


@pytest.fixture
def use_policy():
    """Sets the global dtype policy; float32 again after the test."""
    yield keras.mixed_precision.set_global_policy
    keras.mixed_precision.set_global_policy("float32")
