"""Real records: AudioSet is learnt, and a genuine YouTube-8M video classified."""

import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.serving import export, predictor, served
from yt8m_distill.training import trained

pytestmark = pytest.mark.real_data

NUM_CLASSES, TOP_K = 527, 20


def audioset_shards(real_data, *numbers: int) -> list[str]:
    folder = real_data / "audioset_bal_train"
    return [str(folder / f"bal_train-{n:05d}-of-00016.tfrecord") for n in numbers]


def read_labels(files: list[str]) -> np.ndarray:
    """[N, 527] 0 or 1, by protocol buffers alone."""
    rows = []
    for record in tf.data.TFRecordDataset(files):
        example = tf.train.SequenceExample.FromString(record.numpy())
        row = np.zeros(NUM_CLASSES)
        row[list(example.context.feature["labels"].int64_list.value)] = 1
        rows.append(row)
    return np.array(rows)


def gap_of_the_prior(train: np.ndarray, validate: np.ndarray) -> float:
    """GAP@20 of saying for every clip what is most frequent in training.

    All clips tie at each class, so a class's predictions count together, with the
    precision reached at their end.
    """
    top = np.argsort(-train.sum(axis=0), kind="stable")[:TOP_K]
    hits = validate[:, top].sum(axis=0)
    ranks = len(validate) * np.arange(1, TOP_K + 1)
    return float((hits * hits.cumsum() / ranks).sum() / validate.sum())


def test_an_epoch_on_audioset_beats_the_class_prior(real_data, tmp_path):
    training = audioset_shards(real_data, 0, 1, 2)
    validation = audioset_shards(real_data, 15)
    prior = gap_of_the_prior(read_labels(training), read_labels(validation))
    run = settings.RunSettings.from_dict(
        {
            "feature_names": "audio_embedding",
            "feature_sizes": "128",
            "num_classes": NUM_CLASSES,
            "max_frames": 10,
            "video_id_key": "video_id",
            "student_k": 3,
            "teacher": "HierarchicalLSTM(cells=32, block_len=5, dropout=0.0, "
            "head='logistic(bias_init=-5)')",
            "student_loss": "ce + 0.01*rep + 0.1*pred",
            "mode": "serial",
            "train_dir": str(tmp_path / "run"),
            "train_data_pattern": ",".join(training),
            "validation_data_pattern": validation[0],
            "batch_size": 64,
            "num_epochs": 1,
            "base_learning_rate": 0.01,
            "steps_per_loop": 10,
        }
    )
    phases = helpers.train(run)
    best = {
        role: phases[role]["results"][role]["best"] for role in ("teacher", "student")
    }
    assert 0.02 < prior < 0.2
    # One epoch is far from the end: .209 and .204 were seen at a prior of .080.
    assert best["teacher"]["gap"] > 1.7 * prior
    assert best["student"]["gap"] > 1.7 * prior
    assert best["student"]["num_videos"] == len(read_labels(validation))


def test_a_genuine_youtube8m_video_is_learnt_and_classified(real_data, tmp_path):
    shard = str(real_data / "yt8m_frame_level" / "SjJ3.tfrecord")
    run = settings.RunSettings.from_dict(
        {
            "mode": "baseline",
            "student": "HierarchicalLSTM(cells=8, block_len=5, dropout=0.0)",
            "student_k": 30,
            "train_dir": str(tmp_path / "run"),
            "train_data_pattern": shard,
            "batch_size": 1,
            "num_epochs": 1,
            "max_steps": 1,
            "base_learning_rate": 100.0,  # Of a gradient that is clipped to length 1.
            "optimizer": "SGD",
        }
    )
    helpers.train(run)
    given = settings.CheckpointSettings(train_dir=run.training.train_dir, batch_size=2)
    opened = trained.open_network(given, strategy=helpers.cpus(1))
    network_predictor = predictor.Predictor(opened.runner, TOP_K)
    (found,) = network_predictor.predict(
        opened.dataset(
            opened.open_shards(shard, settings.ReadingSettings(), "shard"),
            given.batch_size,
        )
    )
    assert found.video_ids.tolist() == [b"SjJ3"]
    # Its one label; a step of SGD on it alone puts that above all other classes.
    assert found.classes[0, 0] == 11
    assert found.scores.shape == (1, TOP_K)
    folder = str(tmp_path / "model")
    (view,) = opened.views.values()
    export.export(served.Served(opened.network, run.data, view, TOP_K), folder)
    record = next(iter(tf.data.TFRecordDataset(shard)))
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    answer = signature(example_bytes=record[tf.newaxis])
    assert answer["video_id"].numpy().tolist() == [b"SjJ3"]
    assert answer["class_indexes"].numpy()[0, 0] == 11
    # float32 products of one row and of two; six digits reach a CSV.
    np.testing.assert_allclose(
        answer["predictions"].numpy()[0, 0], found.scores[0, 0], rtol=2e-6
    )
