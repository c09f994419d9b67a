"""The Kaggle CSV as arrays."""

import numpy as np

from yt8m_distill.serving import predictions


def read_predictions(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids [N] of bytes, classes [N, k] int32, scores [N, k] float32."""
    ids, numbers = [], []
    for row in predictions.read_rows(path):
        video_id, pairs = row.columns
        ids.append(video_id.encode("utf-8", "surrogateescape"))
        numbers.append(pairs.split())
    table = np.array(numbers, np.float64).reshape([len(ids), -1 if ids else 0])
    column = np.empty(len(ids), object)
    column[:] = ids
    return column, table[:, ::2].astype(np.int32), table[:, 1::2].astype(np.float32)
