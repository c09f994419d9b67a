"""One student for several numbers of frames: --student_k=2,4,6."""

import numpy as np
import pytest
import tensorflow as tf

from tests import script_helpers
from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.data import frame_sampling
from yt8m_distill.training import modes, trained

pytestmark = pytest.mark.once

BUDGETS = (2, 4, 6)
NETWORK = "MeanTanh(units=6)"


def make_run(train_dir, data, **changes) -> settings.RunSettings:
    values = {
        "mode": "serial",
        "teacher": NETWORK,
        "student": NETWORK,
        "student_loss": "pred + 0.5*self_pred",
        "student_k": "2,4,6",
        "train_frame_sampler": "random",
        "num_epochs": 2,
        # Plain steps: Adam would magnify the rounding of tiny gradients.
        "optimizer": "SGD",
        "base_learning_rate": 0.05,
    }
    return helpers.make_run(train_dir, data, **{**values, **changes})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    made = make_run(tmp_path_factory.mktemp("budgets") / "run", data)
    train_dir = made.training.train_dir
    with helpers.killed_copy(train_dir, "killed", "student", 4, save=True):
        helpers.train(made)
    return made


@pytest.mark.parametrize("of", ["random", "uniform"])
def test_mixed_gives_each_video_one_of_the_numbers_as_the_other_sampler_does(of):
    num_frames = tf.constant([20, 7, 3] * 100)
    keys = tf.range(300, dtype=tf.int64) * 7919
    spec = f"mixed(numbers={BUDGETS}, of='{of}')"
    indices, valid = frame_sampling.pick(spec, num_frames, 6, 20, keys)
    # A video of 3 frames has 3 of the 4 and 6 that were drawn.
    drawn = [set(valid.numpy()[start::3]) for start in range(3)]
    assert drawn == [{2, 4, 6}, {2, 4, 6}, {2, 3}]
    shares = [np.mean(valid.numpy()[::3] == k) for k in BUDGETS]
    assert min(shares) > 0.2  # of 100 videos, a third each
    for k in BUDGETS:
        expected, _ = frame_sampling.pick(of, num_frames, k, 20, keys)
        rows = (valid.numpy() == k) & (num_frames.numpy() >= 6)
        np.testing.assert_array_equal(indices.numpy()[rows, :k], expected.numpy()[rows])


def test_random_frames_of_a_smaller_budget_are_among_those_of_a_larger_one():
    keys, num_frames = tf.range(20, dtype=tf.int64), tf.fill([20], 30)
    small, large = (
        frame_sampling.pick("random", num_frames, k, 30, keys)[0].numpy()
        for k in (3, 9)
    )
    for few, many in zip(small, large, strict=True):
        assert set(few) <= set(many)


def test_each_budget_is_validated_and_their_mean_decides(run):
    folder = f"{run.training.train_dir}/student"
    lines = helpers.read_lines(f"{folder}/metrics.jsonl")
    found = [line for line in lines if line["kind"] == "validation"]
    assert len(found) == 2
    for line in found:
        for name in ("gap", "map"):
            parts = [line[f"{name}_k{k}"] for k in BUDGETS]
            assert line[name] == pytest.approx(np.mean(parts))
    assert any(line["gap_k2"] != line["gap_k6"] for line in found)


def test_the_loss_is_the_mean_over_most_frames_fewest_and_drawn_ones(data):
    """Each of the three by itself is the first step of a student of one number."""
    drawn = f"mixed(numbers={BUDGETS}, of='random')"
    cases = {
        "several": {},
        "most": {"student_k": 6},
        "fewest": {"student_k": 2},
        "drawn": {"student_k": 6, "train_frame_sampler": drawn},
    }
    loss = {}
    for name, changes in cases.items():
        changes |= {"mode": "baseline", "student": "MeanTanh(dropout=0.0)"}
        made = make_run("unused", data, **changes)
        _, metrics = helpers.first_gradients(helpers.build_phase(made))
        loss[name] = metrics["student/label_loss"]
    mean = np.mean([loss["most"], loss["fewest"], loss["drawn"]])
    assert loss["several"] == pytest.approx(mean, rel=1e-5)
    assert len({round(value, 4) for value in loss.values()}) == 4


@pytest.mark.parametrize("k", [1, 3, 5, 6])
def test_it_reads_any_number_of_frames_up_to_the_largest(run, k):
    given = settings.CheckpointSettings(
        train_dir=run.training.train_dir, batch_size=4, num_gpus=0, student_k=k
    )
    opened = trained.open_network(given)
    assert opened.budgets == (BUDGETS if k == 6 else ())
    (batch, *_) = opened.dataset(run.training.validation_data_pattern, 4)
    view = batch["views"]["sampled"]
    assert view["frames"].shape[1] == k
    assert np.isfinite(opened.network(view).logits).all()


def test_its_export_reads_the_number_of_frames_of_the_request(run, tmp_path):
    folder = f"{tmp_path}/model"
    train_dir = run.training.train_dir
    script_helpers.succeed(
        "export_model", f"--train_dir={train_dir}", f"--export_dir={folder}"
    )
    loaded = tf.saved_model.load(folder)
    pattern = run.training.validation_data_pattern
    records = [r.numpy() for r in tf.data.TFRecordDataset(tf.io.gfile.glob(pattern))]
    found = loaded.signatures["any_k"](
        example_bytes=tf.constant(records), student_k=tf.fill([len(records)], 3)
    )
    given = settings.CheckpointSettings(train_dir=train_dir, num_gpus=0, student_k=3)
    opened = trained.open_network(given)
    (batch,) = opened.dataset(pattern, len(records))
    scores = tf.sigmoid(opened.network(batch["views"]["sampled"]).logits)
    best = tf.math.top_k(scores, found["predictions"].shape[1])[0]
    np.testing.assert_allclose(found["predictions"], best, rtol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2])
def test_neither_a_stop_nor_replicas_change_the_result(run, tmp_path, replicas):
    resumed = helpers.resume(run, "killed", tmp_path, replicas)
    one, other = (helpers.best_weights(r, "student", "student") for r in (run, resumed))
    if replicas == 1:
        helpers.assert_identical(one, other)
    # float32 sums in another order, over six steps.
    helpers.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_order_and_spaces_of_budgets_do_not_matter():
    one, other = (settings.SamplingSettings(student_k=k) for k in ("6,2,4", "2, 4,6"))
    assert one.budgets == other.budgets == BUDGETS
    assert one.largest_k == 6
    assert settings.SamplingSettings(student_k=5).budgets == (5,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"student_k": "2,x"}, "--student_k=2,x"),
        ({"student_k": "0"}, "--student_k=0"),
        ({"student_k": ""}, "--student_k="),
        ({"student_k": "3,3"}, "--student_k=3,3"),
        ({"student_k": "2,400"}, "--student_k=400"),
        ({"best_budget": 3}, "--best_budget=3"),
    ],
)
def test_bad_budgets_are_refused(data, changes, named):
    with pytest.raises(ValueError, match=named):
        make_run("unused", data, **changes)


def test_its_own_predictions_need_several_numbers(data):
    run = make_run("unused", data, student_k=6)
    with pytest.raises(ValueError, match=r"self_pred .*--student_k=6"):
        modes.phases(run, resolved=False)


def test_intermediate_states_need_a_single_number(data):
    lstm = {"teacher": helpers.LSTM_TEACHER, "student": helpers.LSTM_STUDENT}
    run = make_run(
        "unused", data, **lstm, student_loss="rep_intermediate", student_k="2,6"
    )
    with pytest.raises(ValueError, match="--student_k=2,6"):
        modes.phases(run, resolved=False)
