"""One student for several numbers of frames: a fixed k, and early exit."""

from typing import NamedTuple

import pandas as pd

from tools.reproduction import document, figures, plan, published, scores, texts


class _Point(NamedTuple):
    """The evaluations of all seeds that were asked for the same.

    Attributes:
        line: of the figure, one of published.BUDGETS.
        frames: asked for.
        gap, map, read: by seed; the last is the mean number of frames that were read.
    """

    line: str
    frames: float
    gap: pd.Series
    map: pd.Series
    read: pd.Series


def _points(results: scores.Results) -> list[_Point]:
    """All that was evaluated on the test shards."""
    cell = (published.BEST_PRESET, results.grid.every_k)
    started = [run for run in results.runs(*cell) if run.begun]
    if not started or not results.test_data_pattern:
        return []
    points = []
    for asked in plan.asked(started[0].settings):
        gap, mean_ap = (
            results.by_seed(*cell, metric, asked=asked) for metric in ("gap", "map")
        )
        if gap.empty:
            continue
        line, frames = "fixed_k", float(asked.partition("=")[2] or results.grid.largest)
        read = pd.Series(frames, index=gap.index)
        if asked.startswith(plan.MEAN_FRAMES):
            line = "early_exit"
            read = results.by_seed(*cell, "mean_frames", asked=asked)
        points.append(_Point(line, frames, gap, mean_ap, read))
    return sorted(points, key=lambda point: point.frames)


def make(results: scores.Results) -> list[document.Block]:
    """GAP / mAP of the student, by the number of frames that it was asked for."""
    rows: dict[str, dict[str, str]] = {}
    for point in _points(results):
        row = rows.setdefault(f"{point.frames:g}", {})
        row[point.line] = " / ".join(map(texts.spread_text, (point.gap, point.map)))
        if point.line == "early_exit":
            ends = (f"{point.read.min():.2f}", f"{point.read.max():.2f}")
            row["read"] = " to ".join(dict.fromkeys(ends))
    columns = {"fixed_k": "`--student_k`", "early_exit": "`--mean_frames`"}
    columns["read"] = "frames really read"
    table = [
        [frames, *(row.get(name, texts.MISSING) for name in columns)]
        for frames, row in rows.items()
    ]
    heading = f"One student for k={results.grid.every_k}, and early exit"
    text = (
        "GAP / mAP of one student for all of these k, at a fixed k, and with early "
        "exit for that many frames per video on average, which is calibrated on the "
        "validation shards."
    )
    return [
        document.Heading(2, heading),
        document.Text(text),
        document.Table(["frames", *columns.values()], table),
    ]


def plots(results: scores.Results) -> list[document.Figure]:
    """The figure of GAP against the frames that are really read."""
    points = _points(results)
    if not points:
        return []
    series = []
    for line in published.BUDGETS:
        of_line = [point for point in points if point.line == line]
        x, y = ([getattr(p, name).mean() for p in of_line] for name in ("read", "gap"))
        spread = [p.gap.std() if len(p.gap) > 1 else 0.0 for p in of_line]
        series.append(figures.Series(line, tuple(x), tuple(y), tuple(spread)))
    skyline = results.by_seed(published.TEACHER, None, "gap")
    caption = (
        "GAP of one student against the frames that it really reads per video: at a "
        "fixed k, and where each video stops once the student is sure enough."
    )
    skyline = None if skyline.empty else skyline.mean()
    svg = figures.gap_against_mean_frames(series, skyline)
    return [document.Figure("gap_against_mean_frames", caption, svg)]
