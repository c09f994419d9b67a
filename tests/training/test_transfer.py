"""--start_from: a network begins with another run's weights."""

import pytest

from tests import training_helpers as helpers
from yt8m_distill.training import transfer

pytestmark = pytest.mark.once

STOP = {"max_steps": 1, "base_learning_rate": 0.0, "regularization_penalty": 0}
STOP["validation_data_pattern"] = ""


def start(run, tmp_path, caplog, **changes):
    """The student's weights after a step that moves nothing, and the log."""
    values = {"mode": "baseline", "train_dir": str(tmp_path / "run"), **STOP}
    run = helpers.change(run, **{**values, **changes})
    with caplog.at_level("INFO", logger=transfer.__name__):
        helpers.train(run)
    prefix = helpers.best(run.training.train_dir, "baseline", "student")
    return helpers.of(helpers.read_variables(prefix), "student/"), caplog.text


def trained(run, phase: str, role: str) -> tuple[str, dict]:
    prefix = helpers.best(run.training.train_dir, phase, role)
    return prefix, helpers.of(helpers.read_variables(prefix), f"{role}/")


@pytest.mark.parametrize("as_prefix", [False, True])
def test_a_network_starts_with_all_weights_of_the_same_role(
    serial_run, tmp_path, caplog, as_prefix
):
    prefix, expected = trained(serial_run, "student", "student")
    given = prefix if as_prefix else serial_run.training.train_dir
    found, text = start(serial_run, tmp_path, caplog, start_from=given)
    helpers.assert_identical(found, expected)
    # 12 x 6 numbers of the encoder, 6 x 10 and 10 of the classifier.
    assert prefix in text and "142" in text


def test_a_network_starts_from_the_only_one_there_is(serial_run, tmp_path, caplog):
    prefix, expected = trained(serial_run, "teacher", "teacher")
    found, _ = start(serial_run, tmp_path, caplog, start_from=prefix)
    helpers.assert_identical(found, expected)


def test_with_other_classes_the_encoder_is_kept(serial_run, tmp_path, caplog):
    given = serial_run.training.train_dir
    _, expected = trained(serial_run, "student", "student")
    found, text = start(serial_run, tmp_path, caplog, start_from=given, num_classes=11)
    encoder = "kernel/" + helpers.SUFFIX
    helpers.assert_identical({"x": found[encoder]}, {"x": expected[encoder]})
    heads = [v.shape for k, v in found.items() if k.startswith("head/")]
    assert sorted(heads) == [(6, 11), (11,)]
    assert "72 parameters" in text and "11" in text and "10" in text


def test_a_run_continues_without_the_run_it_started_from(
    serial_run, tmp_path, monkeypatch
):
    source = helpers.copy_without(serial_run, tmp_path / "source", "student")
    run = helpers.change(
        serial_run,
        mode="teacher",
        train_dir=str(tmp_path / "run"),
        start_from=source.training.train_dir,
    )
    with helpers.stopped(monkeypatch, "teacher", 4):
        helpers.train(run)
    (tmp_path / "source").rename(tmp_path / "gone")
    assert helpers.train(run)["teacher"]["finished"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"start_from": "nowhere"}, "--start_from=nowhere"),
        ({"student": "MeanTanh(units=5)"}, "(12, 6)"),
        ({"feature_names": "rgb", "feature_sizes": "8"}, "--feature_names=rgb,audio"),
    ],
)
def test_an_incompatible_source_is_refused_before_anything_is_written(
    serial_run, tmp_path, changes, said
):
    values = {"mode": "baseline", "start_from": serial_run.training.train_dir}
    train_dir = str(tmp_path / "run")
    run = helpers.change(serial_run, train_dir=train_dir, **{**values, **changes})
    assert said in helpers.refusal(run)
