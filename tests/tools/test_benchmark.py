"""tools/benchmark.py: every area runs and has its rows in the table."""

import json
import math

import numpy as np
import pytest

from tools import benchmark
from tools.benchmarking import evaluation, results, scale
from yt8m_distill import settings, structures
from yt8m_distill.data import shards


@pytest.mark.parametrize("areas", [[], ["--areas=network,nothing"]])
def test_without_known_areas_nothing_is_measured(areas, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure", None)
    monkeypatch.setattr("sys.argv", ["benchmark.py", *areas])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(area in message for area in ("--areas", *benchmark.AREAS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "area",
    ["network", "families", "reading", "segments", "requests", "edge", "evaluation"],
)
def test_an_area_gives_finite_numbers_without_bars(area):
    rows = benchmark.measure(area, quick=True)
    assert len({row.name for row in rows}) == len(rows) > 0
    for row in rows:
        assert math.isfinite(row.value)
        # Memory is measured in this process here, whose peak may be over.
        assert row.value > 0 or row.unit in ("MB", "GiB")
        assert row.met is None


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(0.5, True, True), (0.7, True, False), (0.5, False, False), (0.7, False, True)],
)
def test_a_bar_is_a_limit_in_its_direction(value, at_most, met):
    for number in (value, np.float64(value)):
        assert results.Row("x", number, bar=0.6, at_most=at_most).met is met


def test_tables_of_several_runs_are_kept_together(tmp_path):
    slow = [results.Row("slow", 0.5, bar=1.0, detail="half")]
    fast = [results.Row("fast", 2.0, bar=1.0, unit="x")]
    benchmark.write({"of an older version": slow, "network": slow}, str(tmp_path))
    benchmark.write({"reading": fast}, str(tmp_path))
    text = (tmp_path / "benchmark.md").read_text("utf-8")
    assert "| slow | 0.5 | ≥ 1 | **no** | half |" in text
    assert "| fast | 2 x | ≥ 1 | yes |" in text
    stored = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    assert list(stored) == ["network", "reading"]  # No area that is not there.


def test_shards_of_the_scale_area_have_every_video_once(tmp_path):
    paths = scale.write(tmp_path, num_shards=3, num_videos=25)
    reading = settings.ReadingSettings()
    opened = shards.open_shards(list(map(str, paths)), scale.DATA, reading)
    rows = opened.kept_rows(1.0)
    assert opened.table.located
    ids, _, labels, num_frames = opened.table.look_up(rows)
    assert sorted(ids) == [b"%08d" % video for video in range(25)]
    assert len(labels) == 25 * 3
    assert set(num_frames) == {scale.DATA.max_frames}


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
