"""Average precision per class."""

import csv

import numpy as np

from yt8m_distill.evaluation import average_precision, per_class

# Ranks of the hits: class 0 first and third of three, class 1 second of two. Class 2
# has no positive, class 3 a positive without a prediction.
SCORES = np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.4]], np.float32)
CLASSES = np.array([[0, 2], [0, 1], [0, 1]], np.int32)
HITS = np.array([[True, False], [False, False], [True, True]])
POSITIVES = np.array([2.0, 1.0, 0.0, 1.0])
EXPECTED = [(1 / 1 + 2 / 3) / 2, 1 / 2, np.nan, 0.0]


def test_the_csv_has_a_row_per_class_and_its_mean_is_the_map(tmp_path):
    pool = average_precision.MetricsAccumulator(4)
    pool.update(
        average_precision.TopPredictions(
            SCORES,
            CLASSES,
            HITS,
            num_labels=np.array([1, 1, 2]),
            perr=np.zeros(3),
            class_positives=POSITIVES[np.newaxis],
            weights=np.ones(3),
            loss=np.zeros(3),
        )
    )
    metrics = pool.result()
    np.testing.assert_allclose(pool.class_precisions, EXPECTED, rtol=1e-12)
    path = tmp_path / "classes.csv"
    names = {0: "Game", 1: "a, b"}
    per_class.write(str(path), pool.class_precisions, pool.class_positives, names)
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(per_class.HEADER)
    assert [row[:3] for row in rows[1:]] == [
        ["0", "Game", "2"],
        ["1", "a, b", "1"],
        ["2", "", "0"],
        ["3", "", "1"],
    ]
    precisions = [float(row[3]) for row in rows[1:] if row[3]]
    assert rows[3][3] == "" and len(precisions) == 3
    # Six digits of each are written.
    np.testing.assert_allclose(np.mean(precisions), metrics.map, rtol=1e-5)


def test_best_and_worst_classes_have_positives():
    best, worst = per_class.best_and_worst(
        np.array(EXPECTED), POSITIVES, {0: "Game"}, count=2
    )
    assert best == "Best classes: Game 0.833 (2), 1 0.500 (1)"
    assert worst == "Worst classes: 3 0.000 (1), 1 0.500 (1)"
