"""A run, its teacher, cache, export and CSV in folders of awkward names."""

import tensorflow as tf

from tests import prediction_helpers
from tests import training_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.serving import export, predictions, served
from yt8m_distill.training import trained

# All characters that globs, shells, formats and lists of paths give a meaning to, but
# those that settings refuse.
NAME = "-a ,*?{b}]#%s$~:é漢'\"&;"


def test_every_path_that_is_not_refused_works(tmp_path):
    root = tmp_path / NAME
    helpers.write_data(root / "data")
    # --teacher_checkpoint is a list, so a comma in it has another meaning.
    teacher = tmp_path / NAME.replace(",", "")
    first = helpers.make_run(teacher, root / "data", num_epochs=1)
    helpers.train(first)
    second = helpers.change(
        first,
        mode="serial",
        train_dir=str(root / "run"),
        teacher_checkpoint=first.training.train_dir,
        teacher_cache=str(root / "cache"),
        index_dir=str(root / "indices"),
        shuffle_buffer_size=0,
    )
    (tmp_path / NAME / "indices").mkdir()
    helpers.train(second)
    checkpoint = settings.CheckpointSettings(train_dir=str(root / "run"), num_gpus=0)
    opened = trained.open_network(checkpoint)
    (view,) = opened.views.values()
    given = served.Served(opened.network, second.data, view, 20)
    export.export(given, str(root / "model"))
    assert tf.saved_model.load(str(root / "model")).signatures
    path = root / f"{NAME}.csv"
    with predictions.PredictionWriter(path):
        pass
    assert len(prediction_helpers.read_predictions(path)[0]) == 0
