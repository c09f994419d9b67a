"""tools/benchmarking/evaluation.py measures what it reports, at small sizes."""

import math
import mmap

import numpy as np
import pytest

from tools import benchmark
from tools.benchmarking import evaluation, results
from yt8m_distill import structures


@pytest.mark.slow
def test_quick_rows_are_finite_positive_and_without_bars():
    found = benchmark.measure("evaluation", quick=True)
    assert [row.unit for row in found] == ["", "", "s", "MB", "s"]
    for row in found:
        assert math.isfinite(row.value) and row.value > 0, row
        assert row.bar is None and row.met is None
        assert row.detail
    assert len({row.name for row in found}) == len(found)


def test_a_repeated_batch_has_other_scores_and_the_same_best_classes():
    made = evaluation.make_batches(batch_size=3, num_classes=30)
    count = 2 * len(made)
    batches = list(evaluation.repeated(made, count))
    networks = evaluation.GivenLogits()
    logits = [
        networks.forward("student", batch[structures.VIEWS]).logits.numpy()
        for batch in batches
    ]
    assert len(logits) == count
    for first, again in zip(logits, logits[len(made) :], strict=False):
        assert not np.isin(again, first).any()
        np.testing.assert_array_equal(first.argmax(axis=1), again.argmax(axis=1))
    for batch in made:
        labels = batch[structures.LABELS].numpy()
        assert set(np.unique(labels)) == {0, 1}
        np.testing.assert_array_equal(labels.sum(axis=1), evaluation.LABELS_PER_VIDEO)


def test_allocated_memory_shows_in_the_peak():
    before = results.resident_bytes(peak=False)
    size = 200 * results.MEBIBYTE
    # Not by malloc, which may give pages of the process that were free before.
    with mmap.mmap(-1, size) as block:
        for start in range(0, size, mmap.PAGESIZE):
            block[start] = 1
        peak = results.resident_bytes(peak=True)
    # The kernel's counters lag a little.
    assert peak - before >= 0.9 * size
