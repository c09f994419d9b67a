"""Every model of the package, from its first step to its export."""

import functools

import numpy as np
import pytest

from tests import training_helpers as helpers
from yt8m_distill import flag_groups, registry, settings
from yt8m_distill.evaluation import evaluator
from yt8m_distill.models import base, builder
from yt8m_distill.serving import predictor
from yt8m_distill.training import (
    checkpoints,
    manifest,
    modes,
    teacher_cache,
    trained,
)

# Small arguments of each.
ARGUMENTS = {
    "AttentionPooling": {"hidden_size": 6, "num_heads": 2},
    "DbofModel": {"cluster_size": 7, "hidden_size": 5},
    "FrameLevelLogisticModel": {},
    "HierarchicalLSTM": {"cells": 3, "block_len": 5},
    "LogisticModel": {"dropout": 0.2},
    "LstmModel": {"cells": 3, "layers": 1},
    "MoeModel": {"dropout": 0.2},
    "NeXtVLAD": {"clusters": 4, "groups": 2, "hidden_size": 6, "gating_reduction": 2},
    "NetVLAD": {"clusters": 4, "hidden_size": 6},
    "TransformerModel": {"width": 6, "layers": 2, "num_heads": 2},
}
SETS = ["AttentionPooling", "DbofModel", "NeXtVLAD", "NetVLAD"]


def network_of(name: str) -> str:
    return str(registry.Specification(name, ARGUMENTS[name]))


def test_every_model_of_the_package_is_in_the_table():
    own = [n for n in base.MODELS if base.MODELS.get(n).__module__[:4] == "yt8m"]
    assert set(own) == set(ARGUMENTS)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Name of a model → a run of it, trained once; killed at step 2, `resume` has it.

    Plain steps: Adam would magnify the rounding of tiny gradients.
    """

    @functools.cache
    def get(name: str):
        run = helpers.make_run(
            tmp_path_factory.mktemp(name) / "run",
            data,
            num_epochs=1,
            teacher=network_of(name),
            optimizer="SGD",
            base_learning_rate=0.05,
        )
        with helpers.killed_copy(
            run.training.train_dir, "killed", "teacher", 2, save=True
        ):
            helpers.train(run)
        return run

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_model_trains_evaluates_predicts_and_exports(data, tmp_path, name, finished):
    run = finished(name)
    weights = helpers.best_weights(run, "teacher", "teacher")
    role = modes.networks(run)["teacher"]
    network = builder.build_network("teacher", role.network, run.data, role.frames)
    assert sum(v.size for v in weights.values()) == base.num_weights(network.weights)

    given = settings.CheckpointSettings(
        train_dir=run.training.train_dir, batch_size=5, num_gpus=0
    )
    opened = trained.open_network(given)
    shards = f"{data}/valid*.tfrecord"
    network_evaluator = evaluator.Evaluator(opened.runner, helpers.NUM_CLASSES, 5)
    metrics = network_evaluator.evaluate(opened.dataset(shards, 5)).to_dict()
    # That of training, which had batches of 8.
    best = checkpoints.best_folder(run.training.train_dir, "teacher", "teacher")
    noted = manifest.read_json(f"{best}/best.json")
    assert metrics["num_videos"] == 12
    assert metrics["gap"] == pytest.approx(noted["gap"], rel=1e-5)
    predict = predictor.Predictor(opened.runner, 3)
    found = list(predict.predict(opened.dataset(shards, 5)))
    answer = helpers.served_scores(opened, run, tmp_path / "model", shards, 3)
    scores = np.concatenate([part.scores for part in found])
    np.testing.assert_allclose(answer, scores, rtol=1e-5, atol=1e-6)


# Batch norms on frames and on videos, after one another; dropout of its own; weights of
# several layers of LSTMs. The others have parts of these.
DIFFERENT = ["NeXtVLAD", "TransformerModel", "HierarchicalLSTM"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_neither_replicas_nor_a_stop_change_the_result(tmp_path, name, finished):
    whole = finished(name)
    resumed = helpers.resume(whole, "killed", tmp_path, replicas=2)
    one, other = (
        helpers.best_weights(run, "teacher", "teacher") for run in (whole, resumed)
    )
    # float32 sums in another order, over three steps.
    helpers.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_set_teaches_a_sequence_of_another_width(data, tmp_path, finished):
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="serial",
        num_epochs=1,
        teacher=network_of("NeXtVLAD"),
        teacher_checkpoint=finished("NeXtVLAD").training.train_dir,
        student="HierarchicalLSTM(cells=2, block_len=3)",
        student_loss="0.1*rep + pred + ce",
        teacher_cache=str(tmp_path / "cache"),
    )
    assert helpers.train(run)["student"]["finished"]
    student = helpers.best_weights(run, "student", "student")
    (bridge,) = [v for name, v in student.items() if "bridge" in name]
    # (c, h) of two layers of two cells meet a hidden layer of six.
    assert bridge.shape == (8, 6)


def test_another_value_of_any_variable_gets_another_folder_in_the_cache(data, tmp_path):
    """The teacher's moving averages, too."""
    run = helpers.make_run("run", data, teacher=network_of("NeXtVLAD"))
    role, network = (
        modes.networks(run)["teacher"],
        helpers.build_network("teacher", run),
    )

    def folder() -> str:
        key = teacher_cache.describe(network, role, run, None)
        return teacher_cache.TeacherCache(str(tmp_path), key).folder

    folders = {folder(), folder()}
    for variable in network.weights:
        variable.assign(variable + 1)
        folders.add(folder())
    assert len(folders) == 1 + len(network.weights)
    # Of 2 * 2 norms in the encoders of the features, one after them, one in the gates.
    assert len(network.non_trainable_weights) == 3 * 6


@pytest.mark.parametrize("name", [*SETS, "TransformerModel"])
def test_states_that_a_family_has_not_are_missed_before_the_first_step(
    data, tmp_path, name
):
    run = helpers.make_run(
        tmp_path / "run",
        data,
        mode="serial",
        teacher=network_of(name),
        student=network_of(name),
        student_loss="ce + rep_intermediate",
    )
    with pytest.raises(ValueError) as caught:
        helpers.train(run)
    # The line that a script prints.
    line = flag_groups._one_line(caught.value)
    assert name in line and "--match=final" in line and "tf.Tensor" not in line
    assert not (tmp_path / "run").exists()
