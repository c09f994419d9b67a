"""A module outside of the package adds a network, a head, a loss, a sampler, a mode.

It is written to a folder of its own and named by --import_modules; no file of the
package knows its names.
"""

import functools
import sys
import textwrap

import numpy as np
import pytest

from tests import script_helpers
from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.losses import registered
from yt8m_distill.models import builder
from yt8m_distill.serving import predictor
from yt8m_distill.training import initial_weights, modes, trained

MODULE = """
    import keras
    import tensorflow as tf

    from yt8m_distill.data import frame_sampling, pipeline
    from yt8m_distill.losses import registered
    from yt8m_distill.models import base, heads, layers
    from yt8m_distill.training import modes, roles


    @base.MODELS.register("Outside")
    class Outside(base.VideoClassifier):
        # Batch norm over valid frames, dropout and weights of its own.

        def __init__(self, units=5, **kwargs):
            super().__init__(**kwargs)
            self.kernel = self.add_weight(
                name="kernel", shape=(self.feature_size, units),
                initializer="glorot_uniform",
            )
            self.norm = layers.BatchNorm(units, momentum=0.5)
            self.build_classifier(units)

        def encode(self, frames, num_frames, state_indices, training, noise):
            mask = tf.sequence_mask(num_frames, tf.shape(frames)[1])
            x = tf.matmul(frames, tf.convert_to_tensor(self.kernel))
            x = self.norm(x, mask, training=training)
            if training:
                x = layers.dropout(x, 0.25, noise, index=1)
            x = tf.where(mask[..., tf.newaxis], tf.tanh(x), 0.0)
            count = tf.cast(tf.maximum(num_frames, 1), tf.float32)
            return tf.reduce_sum(x, axis=1) / count[:, tf.newaxis], None


    @heads.HEADS.register("outside")
    class Scaled(heads.LogisticHead):
        def call(self, encoding):
            return 2.0 * super().call(encoding)


    @registered.LOSSES.register("cosine")
    def make_cosine(power=1):
        def cosine(student, guide):
            parts = (student.encoding, tf.stop_gradient(guide.encoding))
            one, other = (tf.math.l2_normalize(x, axis=1) for x in parts)
            return (1 - tf.reduce_sum(one * other, axis=1)) ** power

        return registered.Loss(cosine, needs="guide", compares="encoding")


    @frame_sampling.SAMPLERS.register("every")
    def every(num_frames, k, max_frames, keys, step=2):
        valid = tf.minimum((num_frames + step - 1) // step, k)
        return tf.zeros_like(num_frames)[:, None] + step * tf.range(k), valid


    @modes.MODES.register("listening")
    def listening(parts):
        # One network hears all, and teaches another one that sees a few pictures.
        hears = pipeline.ViewSpec("all", parts.run.data.max_frames, ("audio",))
        parts.views["hears"] = roles.View(hears, hears)
        sees = [spec._replace(features=("rgb",)) for spec in parts.views["sampled"]]
        parts.views["sees"] = roles.View(*sees)
        network = modes.teacher_specification(parts.run)
        how = {"objective": parts.label_objective}
        listener = parts.role("listener", network, "hears", **how)
        start = roles.Start("listener", phase="listening")
        guide = parts.role("listener", network, "hears", start=start)
        epochs = parts.run.training.num_epochs
        return [
            parts.phase("listening", (listener,), epochs),
            parts.phase("looking", (guide, parts.student((guide,), "sees")), epochs),
        ]
"""
NETWORK = "Outside(units={}, head='outside')"


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A module that nobody has imported yet, in a folder from which it can be."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "my_models.py").write_text(textwrap.dedent(MODULE))
    sys.path.insert(0, str(folder))
    yield "my_models"
    sys.path.remove(str(folder))


def make_run(outside, train_dir, data, **changes) -> settings.RunSettings:
    values = {
        "import_modules": outside,
        "teacher": NETWORK.format(6),
        "student": NETWORK.format(4),
        "student_loss": "ce + 0.5*cosine(power=2) + pred",
        "frame_sampler": "every(step=3)",
        "num_epochs": 2,
    }
    return helpers.make_run(train_dir, data, **{**values, **changes})


@pytest.fixture(scope="module")
def finished(outside, data, tmp_path_factory):
    """Mode → its finished run, trained once; killed at step 4, `resume` has it."""

    @functools.cache
    def get(mode: str) -> settings.RunSettings:
        folder = tmp_path_factory.mktemp(mode) / "run"
        # Plain steps: Adam would magnify the rounding of tiny gradients.
        plain = {"optimizer": "SGD", "base_learning_rate": 0.05}
        how = plain if mode == "parallel" else {}
        run = make_run(outside, folder, data, mode=mode, **how)
        last = modes.phases(run)[-1].name
        with helpers.killed_copy(folder, "killed", last, 4, save=True):
            helpers.train(run)
        return run

    return get


@pytest.mark.parametrize(
    ("mode", "network", "width"),
    [
        ("teacher", "auto", 12),
        ("baseline", "auto", 12),
        ("serial", "auto", 12),
        ("parallel", "auto", 12),
        ("listening", "listener", 4),
        ("listening", "student", 8),
    ],
)
def test_every_mode_trains_evaluates_predicts_and_exports_it(
    finished, data, tmp_path, mode, network, width
):
    run = finished(mode)
    given = settings.CheckpointSettings(
        train_dir=run.training.train_dir, network=network, batch_size=4, num_gpus=0
    )
    opened = trained.open_network(given)
    assert opened.network.kernel.shape[0] == width
    # The moving averages are part of what was stored.
    assert np.any(opened.network.norm.moving_mean.numpy())
    assert len(opened.network.non_trainable_weights) == 3
    shards = f"{data}/valid*.tfrecord"
    predict = predictor.Predictor(opened.runner, 3)
    found = list(predict.predict(opened.dataset(shards, 4)))
    assert sum(len(part.video_ids) for part in found) == 12
    (view,) = opened.views.values()
    assert list(modes.views_of(run, [opened.role]).values()) == [view]
    answer = helpers.served_scores(opened, run, tmp_path / "model", shards, 3)
    scores = np.concatenate([part.scores for part in found])
    np.testing.assert_allclose(answer, scores, rtol=1e-5, atol=1e-6)


def test_a_module_that_is_not_found_says_where_it_is_looked_for():
    given = ("--train_dir=run", "--train_data_pattern=x", "--import_modules=no_such")
    line = script_helpers.refuse("train", *given)
    assert "--import_modules=no_such" in line and "PYTHONPATH" in line
    assert "--verbosity" not in line


def test_only_an_error_in_own_code_says_how_to_see_where(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "if BROKEN:\n    raise ValueError('Too few.')\n"
    for broken in (True, False):
        name = f"own_{broken}".lower()
        (tmp_path / f"{name}.py").write_text(f"BROKEN = {broken}\n{code}")
        given = (
            "--train_dir=run",
            "--train_data_pattern=x",
            f"--import_modules={name}",
        )
        line = script_helpers.refuse("train", *given)
        assert ("Too few." in line) == broken
        assert (f"--verbosity=1 shows where in {name}" in line) == broken
    # The other programs take the modules of the run.
    assert "--verbosity" not in script_helpers.refuse("eval", "--train_dir=run")


def test_a_run_is_opened_where_its_loss_is_not_registered(finished, monkeypatch):
    train_dir = finished("parallel").training.train_dir
    monkeypatch.delitem(registered.LOSSES._entries, "cosine")
    given = settings.CheckpointSettings(train_dir, batch_size=4, num_gpus=0)
    assert trained.open_network(given).role == "student"


def test_an_interruption_does_not_change_the_result(finished, tmp_path):
    whole = finished("serial")
    resumed = helpers.resume(whole, "killed", tmp_path)
    runs = (whole, resumed)
    helpers.assert_identical(
        *(helpers.best_weights(run, "student", "student") for run in runs)
    )


def test_neither_replicas_nor_a_stop_change_results_or_batch_statistics(
    finished, tmp_path
):
    whole = finished("parallel")
    resumed = helpers.resume(whole, "killed", tmp_path, replicas=2)
    for role in ("teacher", "student"):
        one, two = (
            helpers.best_weights(run, "parallel", role) for run in (whole, resumed)
        )
        assert any("moving_variance" in name for name in one)
        # float32 sums in another order, over six steps.
        helpers.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_student_that_starts_as_its_teacher_has_its_batch_statistics(
    outside, data, finished
):
    run = make_run(
        outside,
        "run",
        data,
        mode="serial",
        teacher_checkpoint=finished("teacher").training.train_dir,
        student=NETWORK.format(6),
        student_loss="pred",
        student_start="teacher",
    )
    (phase,) = modes.phases(run)
    networks = builder.build_networks(phase.roles, run.data)
    initial_weights.assign(phase, networks, run)
    assert np.any(networks.teacher.norm.moving_mean.numpy())
    pairs = zip(networks.teacher.weights, networks.student.weights, strict=True)
    for theirs, own in pairs:
        np.testing.assert_array_equal(own.numpy(), theirs.numpy())


# ------------------------------------------------------------------ several teachers


@pytest.fixture(scope="module")
def teachers(outside, data, finished, tmp_path_factory) -> list[str]:
    """Three finished teachers; the last one is of another family."""
    folders = [finished("teacher").training.train_dir]
    for number, network in enumerate((NETWORK.format(6), "MeanTanh(units=6)"), 1):
        folder = tmp_path_factory.mktemp(f"teacher{number}") / "run"
        how = {"mode": "teacher", "num_epochs": 1, "validation_data_pattern": ""}
        run = make_run(outside, folder, data, teacher=network, seed=number, **how)
        helpers.train(run)
        folders.append(str(folder))
    return folders


# A mean of numbers that a cache has, and one of those that it has not.
@pytest.mark.parametrize(
    ("mean", "cached"), [("logits", True), ("probabilities", False)]
)
def test_several_teachers_guide_by_their_mean(
    outside, data, teachers, tmp_path, mean, cached
):
    given = {
        "mode": "serial",
        "teacher_checkpoint": ",".join(teachers),
        "teacher_mean": mean,
        "student_loss": "pred + 0.01*rep(teacher=3)",
        "classifier": "own",
        "teacher_cache": str(tmp_path / "cache") if cached else "",
    }
    run = make_run(outside, tmp_path / "run", data, **given)
    (phase,) = modes.phases(run)
    names = [role.name for role in phase.roles]
    assert names == ["teacher_1", "teacher_2", "teacher_3", "student"]
    assert [role.network.name for role in phase.frozen][-1] == "MeanTanh"
    entry = helpers.train(run)["student"]
    assert entry["finished"]
    if cached:
        assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"student_loss": "rep + pred"}, "rep(teacher=1)"),
        ({"student_loss": "pred + rep(teacher=4)"}, "rep(teacher=4)"),
        ({"student_loss": "pred", "classifier": "auto"}, "--classifier=own"),
        ({"student_loss": "pred", "student_start": "teacher"}, "--student_start"),
    ],
)
def test_an_output_that_several_teachers_lack_is_one_line(
    outside, data, teachers, tmp_path, changes, named
):
    given = {
        "mode": "serial",
        "teacher_checkpoint": ",".join(teachers),
        "classifier": "own",
        **changes,
    }
    with pytest.raises(ValueError) as caught:
        modes.phases(make_run(outside, tmp_path / "run", data, **given))
    assert named in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------- unlabeled


def test_unlabeled_videos_teach_by_the_guide_alone(outside, data, tmp_path):
    """With ce alone they change nothing but the order of batches."""
    videos = helpers.make_videos(9, seed=5, prefix="u")
    helpers.write_shard(tmp_path / "unlabeled.tfrecord", videos)
    given = {
        "unlabeled_data_pattern": str(tmp_path / "unlabeled.tfrecord"),
        "unlabeled_fraction": 0.25,
        "mode": "serial",
    }
    run = make_run(outside, tmp_path / "run", data, **given)
    entry = helpers.train(run)
    # 36 labeled videos, 6 of them in each batch of 8.
    assert entry["student"]["finished"]
    assert entry["student"]["step"] == 2 * 36 // 6
    assert entry["teacher"]["step"] == 2 * -(-36 // 8)
