"""Every model of the package, from its first step to its export."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import flag_groups, registry, settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import base, builder
from yt8m_distill.serving import export, predictor
from yt8m_distill.training import modes, teacher_cache, trained

# Small arguments of each: of the teacher, and what the student has else.
ARGUMENTS = {
    "AttentionPooling": ({"hidden_size": 6, "num_heads": 2}, {"hidden_size": 4}),
    "DbofModel": ({"cluster_size": 7, "hidden_size": 5}, {"hidden_size": 4}),
    "FrameLevelLogisticModel": ({}, {}),
    "HierarchicalLSTM": ({"cells": 3, "block_len": 5}, {"cells": 2, "block_len": 3}),
    "LogisticModel": ({}, {"dropout": 0.2}),
    "LstmModel": ({"cells": 3, "layers": 1}, {"cells": 2}),
    "MoeModel": ({}, {"dropout": 0.2}),
    "NeXtVLAD": (
        {"clusters": 4, "groups": 2, "hidden_size": 6, "gating_reduction": 2},
        {"clusters": 2, "hidden_size": 4},
    ),
    "NetVLAD": ({"clusters": 4, "hidden_size": 6}, {"hidden_size": 4}),
    "TransformerModel": (
        {"width": 6, "layers": 1, "num_heads": 2},
        {"width": 4, "layers": 2},
    ),
}
SETS = ["AttentionPooling", "DbofModel", "NeXtVLAD", "NetVLAD"]


def network_of(name: str, student: bool = False) -> str:
    of_teacher, of_student = ARGUMENTS[name]
    arguments = {**of_teacher, **(of_student if student else {})}
    return str(registry.Specification(name, arguments))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    helpers.write_data(folder)
    return folder


def test_every_model_of_the_package_is_in_the_table():
    own = [n for n in base.MODELS if base.MODELS.get(n).__module__[:4] == "yt8m"]
    assert set(own) == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_model_trains_evaluates_predicts_and_exports(data, tmp_path, name):
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="parallel",
        num_epochs=1,
        teacher=network_of(name),
        student=network_of(name, student=True),
        student_loss="0.1*rep + pred + ce",
    )
    assert helpers.train(run)["parallel"]["finished"]
    student = helpers.best_weights(run, "parallel", "student")
    role = modes.networks(run)["student"]
    network = builder.build_network("student", role.network, run.data, role.frames)
    assert sum(v.size for v in student.values()) == base.num_weights(network.weights)

    given = settings.CheckpointSettings(
        train_dir=str(tmp_path / "run"), batch_size=5, num_gpus=0
    )
    opened = trained.open_network(given)
    shards = f"{data}/valid*.tfrecord"
    network_evaluator = evaluator.Evaluator(
        opened.networks, opened.role, opened.strategy, helpers.NUM_CLASSES, top_k=5
    )
    metrics = network_evaluator.evaluate(opened.dataset(shards, 5)).to_dict()
    # That of training, which had batches of 8.
    best = json.loads((tmp_path / "run/parallel/best/student/best.json").read_text())
    assert metrics["num_videos"] == 12
    assert metrics["gap"] == pytest.approx(best["gap"], rel=1e-5)
    predict = predictor.Predictor(opened.networks, opened.role, opened.strategy, 3)
    found = list(predict.predict(opened.dataset(shards, 5)))
    (view,) = opened.views.values()
    folder = str(tmp_path / "model")
    export.export(opened.network, run.data, view, folder, 3)
    served = tf.saved_model.load(folder).signatures["serving_default"]
    records = [r.numpy() for r in tf.data.TFRecordDataset(tf.io.gfile.glob(shards))]
    answer = served(example_bytes=tf.constant(records))["predictions"]
    scores = np.concatenate([part.scores for part in found])
    np.testing.assert_allclose(answer, scores, rtol=1e-5, atol=1e-6)


# Batch norms on frames and on videos, after one another; one on an encoding; dropout
# of its own; weights of several layers of LSTMs. The others have parts of these.
DIFFERENT = ["NeXtVLAD", "DbofModel", "TransformerModel", "HierarchicalLSTM"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_neither_replicas_nor_a_stop_change_the_result(
    data, tmp_path, monkeypatch, name
):
    # Plain steps: Adam would magnify the rounding of tiny gradients.
    how = {"optimizer": "SGD", "base_learning_rate": 0.05, "num_epochs": 1}
    how |= {"mode": "teacher", "teacher": network_of(name)}
    alone, two, stopped = (
        helpers.make_run(tmp_path / folder, data, **how) for folder in ("1", "2", "s")
    )
    helpers.train(alone)
    helpers.train(two, 2)
    with helpers.stopped(monkeypatch, "teacher", 2, save=True):
        helpers.train(stopped)
    helpers.train(stopped)
    one = helpers.best_weights(alone, "teacher", "teacher")
    helpers.assert_identical(one, helpers.best_weights(stopped, "teacher", "teacher"))
    by_two = helpers.best_weights(two, "teacher", "teacher")
    assert one.keys() == by_two.keys()
    for key, value in one.items():
        # float32 sums in another order, over five steps.
        np.testing.assert_allclose(
            value, by_two[key], rtol=1e-4, atol=1e-5, err_msg=key
        )


@pytest.mark.slow
def test_a_set_teaches_a_sequence_of_another_width(data, tmp_path):
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="serial",
        num_epochs=1,
        teacher=network_of("NeXtVLAD"),
        student=network_of("HierarchicalLSTM", student=True),
        student_loss="0.1*rep + pred + ce",
        teacher_cache=str(tmp_path / "cache"),
    )
    assert helpers.train(run)["student"]["finished"]
    student = helpers.best_weights(run, "student", "student")
    (bridge,) = [v for name, v in student.items() if "bridge" in name]
    # (c, h) of two layers of two cells meet a hidden layer of six.
    assert bridge.shape == (8, 6)


def test_a_teachers_cache_is_for_its_moving_averages(data):
    run = helpers.make_run("run", data, teacher=network_of("NeXtVLAD"))
    role = modes.networks(run)["teacher"]
    network = builder.build_networks([role], run.data).teacher
    keys = [teacher_cache.describe(network, role, run, None)]
    for variable in network.non_trainable_weights:
        variable.assign(variable + 1)
        keys.append(teacher_cache.describe(network, role, run, None))
    # Of 2 * 2 norms in the encoders of the features, one after them, one in the gates.
    assert len(keys) == 1 + 3 * 6
    assert all(keys[n] != keys[n + 1] for n in range(len(keys) - 1))


@pytest.mark.parametrize(
    "changes", [{"match": "intermediate"}, {"student_loss": "ce + rep_intermediate"}]
)
@pytest.mark.parametrize("name", [*SETS, "TransformerModel"])
def test_states_that_a_family_has_not_are_missed_before_the_first_step(
    data, tmp_path, name, changes
):
    network = network_of(name)
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="serial",
        **{"teacher": network, "student": network, **changes},
    )
    with pytest.raises(ValueError) as caught:
        helpers.train(run)
    # The line that a script prints.
    line = flag_groups._one_line(caught.value)
    assert name in line and "--match=final" in line and "tf.Tensor" not in line
    assert not (tmp_path / "run").exists()
