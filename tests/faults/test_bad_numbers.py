"""NaN and infinity: the run stops with a line, and none of them is saved or written."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers
from tests.faults import processes
from yt8m_distill import settings
from yt8m_distill.training import trained as trained_networks

pytestmark = pytest.mark.faults
slow = pytest.mark.slow
BAD = [np.nan, pytest.param(np.inf, marks=slow)]


def spoil(shard: pathlib.Path, number: int, value: float) -> None:
    """Puts a value into one feature of a record."""
    kept = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
    example = tf.train.Example.FromString(kept[number])
    example.features.feature["mean_rgb"].float_list.value[3] = value
    kept[number] = example.SerializeToString(deterministic=True)
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in kept:
            writer.write(record)


def flags_of(data, train_dir, *more: str) -> list[str]:
    flags = (*processes.VIDEO_LEVEL_FLAGS, *more)
    return processes.training_flags(data, train_dir, *flags)


def assert_all_saved_is_finite(train_dir: pathlib.Path) -> None:
    for index in train_dir.rglob("*.index"):
        values = training_helpers.read_variables(str(index.with_suffix(""))).values()
        assert all(np.isfinite(v).all() for v in values if v.dtype.kind == "f"), index


def assert_refused(script, run, data, folder, *more: str, words=()) -> None:
    """eval.py, inference.py or export_model.py reports it and leaves no output."""
    folder.mkdir()
    flags = processes.outputs(script, run._replace(data=data), folder / "out")
    ended = processes.call(script, *flags, *more)
    ended.assert_refused(*words)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("value", BAD)
def test_a_bad_value_stops_training_which_continues_after_its_removal(
    value, video_level_run, tmp_path
):
    data = shutil.copytree(video_level_run.data, tmp_path / "data")
    spoil(data / "train0001.tfrecord", 40, value)
    flags = flags_of(data, tmp_path / "run")
    processes.call("train", *flags).assert_refused()
    assert_all_saved_is_finite(tmp_path / "run")
    shutil.rmtree(data)
    shutil.copytree(video_level_run.data, data)
    processes.call("train", *flags).assert_succeeded()
    end = training_helpers.end_of(tmp_path / "run")
    training_helpers.assert_same_end(video_level_run.end, end)


@slow
@pytest.mark.parametrize("rate", ["1e30", "1e39"])  # float32 holds only the first.
def test_steps_that_are_too_long_stop_training(rate, video_level_run, tmp_path):
    more = ("--optimizer=SGD", f"--base_learning_rate={rate}")
    more += ("--clip_gradient_norm=0", "--steps_per_loop=1")
    flags = flags_of(video_level_run.data, tmp_path / "run", *more)
    processes.call("train", *flags).assert_refused()
    assert_all_saved_is_finite(tmp_path / "run")


@slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_with_a_bad_weight_is_not_used(value, video_level_run, tmp_path):
    given = settings.CheckpointSettings(train_dir=str(video_level_run.train_dir))
    network = trained_networks.open_network(given).network
    kernel = network.head.trainable_variables[0]
    changed = np.array(kernel.numpy())
    changed[0, 7] = value
    kernel.assign(changed)
    prefix = tf.train.Checkpoint(student=network).write(str(tmp_path / "network"))
    for script in ("inference", "eval", "export_model"):
        arguments = (script, video_level_run, video_level_run.data, tmp_path / script)
        assert_refused(*arguments, f"--checkpoint={prefix}", words=(prefix, "NaN"))


@slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_value_is_not_evaluated_or_predicted(value, video_level_run, tmp_path):
    data = shutil.copytree(video_level_run.data, tmp_path / "data")
    spoil(data / "validate0000.tfrecord", 20, value)
    for script in ("inference", "eval"):
        assert_refused(script, video_level_run, data, tmp_path / script)
