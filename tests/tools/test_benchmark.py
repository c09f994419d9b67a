"""tools/benchmark.py: every area runs and has its rows in the table."""

import json
import math

import pytest

from tools import benchmark
from tools.benchmarking import network, results, scale
from yt8m_distill import settings
from yt8m_distill.data import shards


@pytest.mark.parametrize(
    "area", ["network", "families", "reading", "segments", "requests", "edge"]
)
def test_an_area_gives_finite_numbers_without_bars(area):
    rows = benchmark.measure(area, quick=True)
    assert rows
    for row in rows:
        assert math.isfinite(row.value)
        assert row.value > 0
        assert row.met is None


@pytest.mark.parametrize(
    ("flags", "found"),
    [("fpu avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx2 sse", False)],
)
def test_bfloat16_is_measured_where_the_processor_has_it(tmp_path, flags, found):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert network.has_bfloat16(str(path)) is found
    assert network.has_bfloat16(str(tmp_path / "absent"))


def test_without_bfloat16_there_is_a_row_without_a_bar():
    (row,) = network._half_precision_rows({"product": 1.0, "product bf16": 2.0}, None)
    assert row.value == 0.5 and row.bar is None


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(0.5, True, True), (0.7, True, False), (0.5, False, False), (0.7, False, True)],
)
def test_a_bar_is_a_limit_in_its_direction(value, at_most, met):
    assert results.Row("x", value, bar=0.6, at_most=at_most).met is met


def test_calls_are_timed_in_turns_and_once_before():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    seconds = results.interleaved(calls, 2)
    assert seen == list("ababab")
    assert set(seconds) == {"a", "b"}


def test_tables_of_several_runs_are_kept_together(tmp_path):
    pytest.importorskip("matplotlib")
    slow = [results.Row("slow", 0.5, bar=1.0, detail="half")]
    fast = [results.Row("fast", 2.0, bar=1.0, unit="x")]
    benchmark.write({"of an older version": slow, "network": slow}, str(tmp_path))
    benchmark.write({"reading": fast}, str(tmp_path))
    text = (tmp_path / "benchmark.md").read_text("utf-8")
    assert "| slow | 0.5 | ≥ 1 | **no** | half |" in text
    assert "| fast | 2 x | ≥ 1 | yes |" in text
    stored = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    assert list(stored) == ["network", "reading", "of an older version"]
    assert "<svg" in (tmp_path / "benchmark.svg").read_text("utf-8")


def test_shards_of_the_scale_area_have_every_video_once(tmp_path):
    paths = scale.write(tmp_path, num_shards=3, num_videos=25)
    sizes = ",".join(map(str, scale.FEATURES.values()))
    data = settings.DataSettings(
        feature_names=",".join(scale.FEATURES),
        feature_sizes=sizes,
        num_classes=scale.CLASSES,
        max_frames=scale.FRAMES,
    )
    opened = shards.open_shards(list(map(str, paths)), data, settings.ReadingSettings())
    rows = opened.kept_rows(1.0)
    assert opened.table.located
    ids, _, labels, num_frames = opened.table.look_up(rows)
    assert sorted(ids) == [b"%08d" % video for video in range(25)]
    assert len(labels) == 25 * scale.LABELS
    assert set(num_frames) == {scale.FRAMES}


def test_the_cost_of_an_epochs_end_excludes_the_time_between_lines(tmp_path):
    measured = scale._Scale(tmp_path / "scale", [], videos=64, batch=16)  # 4 steps
    folder = tmp_path / "scale" / "run" / "teacher"
    folder.mkdir(parents=True)
    times = {1: 10.0, 2: 11.0, 3: 12.0, 4: 13.0, 5: 21.0, 6: 22.0}
    lines = [{"kind": "training", "step": s, "time": t} for s, t in times.items()]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert measured._lost("run", "teacher") == pytest.approx(7.0)
