"""Classifies records with an exported model, as a server would.

    python tools/classify_records.py --model=run/export/student --records=a.tfrecord

Needs TensorFlow and the SavedModel, nothing of this package.
"""

import csv
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Folder of the SavedModel.", required=True)
flags.DEFINE_string("records", None, "A TFRecord shard.", required=True)
flags.DEFINE_integer("count", 1, "How many of its records.", lower_bound=1)
flags.DEFINE_integer("classes", 5, "How many classes of each.", lower_bound=1)
flags.DEFINE_string(
    "label_names", "", "CSV with a class number and its name in the first two columns."
)


def read_names(path: str) -> dict[int, str]:
    """Class number → name; empty without a path."""
    if not path:
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) > 1 and row[0].isdigit()]
    return {int(row[0]): row[1] for row in rows}


def main(argv: list[str]) -> None:
    """Prints the best classes of the first records."""
    del argv
    names = read_names(FLAGS.label_names)
    serve = tf.saved_model.load(FLAGS.model).signatures["serving_default"]
    records = list(tf.data.TFRecordDataset(FLAGS.records).take(FLAGS.count))
    if not records:
        sys.exit(f"classify_records.py: --records={FLAGS.records} has no records.")
    answer = serve(example_bytes=tf.stack(records))
    columns = ("video_id", "class_indexes", "predictions")
    for video_id, classes, scores in zip(
        *(answer[name].numpy() for name in columns), strict=True
    ):
        best = [
            f"{names.get(int(c), int(c))} {s:.3f}"
            for c, s in zip(classes[: FLAGS.classes], scores, strict=False)
        ]
        print(f"{video_id.decode(errors='replace')}: {', '.join(best)}")


if __name__ == "__main__":
    app.run(main)
