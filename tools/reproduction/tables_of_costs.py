"""Tables of what networks cost: Table 4, networks by family, and early exit."""

import pandas as pd

from tools.reproduction import (
    cost,
    document,
    figures,
    measures,
    plan,
    published,
    scores,
    tables,
)


def _paper_operations(
    results: scores.Results, method: str, k: int | None
) -> tuple[int | None, int | None]:
    """The cost of our network as the paper counts it: of the frames, and in total."""
    network = results.network(method, k)
    if not network:
        return None, None
    run = next(run for run in results.runs(method, k) if run.begun)
    role = plan.Cell(method, k, 0).role
    return cost.paper_operations(run.settings, role, network["multiply_adds"])


def _rates(results: scores.Results, method: str, k: int | None) -> dict:
    """The result of measures.time_network for a network, or an empty dictionary."""
    cell = plan.Cell(method, k, results.grid.seeds[0])
    return results.archive.times.get(cell.name, {})


# Columns of tables: header, column of _facts, and how its numbers are written.
_COST = (
    ("model", "k", ""),
    ("frames", "frames", ".0f"),
    ("GAP", "GAP", ""),
    ("parameters", "parameters", "count"),
    ("lower", "lower", "count"),
    ("upper", "upper", "count"),
    ("classifier", "rest", "count"),
    ("total", "total", "count"),
    ("of the teacher's", "share of total", ".1%"),
    ("by the paper's account", "counted frames", "count"),
    (document.PAPER, "published frames", ".3f G"),
    ("its frames", "its frames", ".0f"),
    ("with the classifier", "counted", "count"),
    (f"{document.PAPER}, 2019", "published", ".3f G"),
)
_TIME = (
    ("model", "k", ""),
    ("model: ms per video", "ms", ".3g"),
    ("videos/s", "rate", ".0f"),
    ("end to end: ms per video", "whole ms", ".3g"),
    ("videos/s", "whole rate", ".0f"),
    ("of the teacher's", "share of time", ".0%"),
    (f"{document.PAPER}, hours", "hours", ".2f h"),
    (f"{document.PAPER}, of the teacher's", "share of hours", ".0%"),
)
_NETWORK = (
    ("model", "model", ""),
    ("frames", "frames", ".0f"),
    ("GAP", "GAP", ""),
    (document.PAPER, "published GAP", ""),
    ("mAP", "mAP", ""),
    (document.PAPER, "published mAP", ""),
    ("weights", "parameters", "count"),
    ("multiply-adds", "total", "count"),
    ("by the paper's account", "counted", "count"),
    (document.PAPER, "published", ".3f G"),
    ("ms per video", "ms", ".3g"),
)
_OF_THE_PAPER = ("published GAP", "published mAP", "counted", "published")


def _facts(results: scores.Results, rows) -> pd.DataFrame:
    """All that is known of the networks of some rows (method, k).

    Scores are text, all else are numbers: parameters, multiply-adds, videos per second,
    hours. Missing ones are NaN.
    """
    teacher, facts = _rates(results, published.TEACHER, None), []
    for method, k in rows:
        network, rates = results.network(method, k), _rates(results, method, k)
        parts = network.get("multiply_adds", {})
        rest = [n for part, n in parts.items() if part not in ("lower", "upper")]
        counted_frames, counted = _paper_operations(results, method, k)
        numbers = {
            "frames": network.get("frames"),
            "parameters": network.get("parameters"),
            "lower": parts.get("lower"),
            "upper": parts.get("upper"),
            "rest": sum(rest) if rest else None,
            "total": results.multiply_adds(method, k),
            "counted frames": counted_frames,
            "counted": counted,
            "published frames": published.LOWER_LSTM.get(k),
            "published": published.operations(method, k),
            "rate": rates.get("model_videos_per_second"),
            "whole rate": rates.get("videos_per_second"),
            "hours": published.HOURS.get(k),
            "rate of teacher": teacher.get("videos_per_second"),
        }
        if rates.get("machine") != teacher.get("machine"):  # Not comparable.
            numbers["rate of teacher"] = None
        facts.append(
            {
                "k": f"k={k}" if k else published.label(method),
                "model": published.label(method) + (f", k={k}" if k else ""),
                "GAP": results.text(method, k, "gap"),
                "mAP": results.text(method, k, "map"),
                "published GAP": scores.published_text(method, k, "gap"),
                "published mAP": scores.published_text(method, k, "map"),
                **{name: float(n or "nan") for name, n in numbers.items()},
            }
        )
    facts = pd.DataFrame(facts)
    total = results.multiply_adds(published.TEACHER, None)
    facts["share of total"] = facts["total"] / float(total or "nan")
    facts["its frames"] = facts["published frames"].map(cost.frames_for, "ignore")
    facts["ms"], facts["whole ms"] = 1000 / facts["rate"], 1000 / facts["whole rate"]
    facts["share of time"] = facts["rate of teacher"] / facts["whole rate"]
    facts["share of hours"] = facts["hours"] / published.HOURS[None]
    return facts


def _table(facts: pd.DataFrame, columns) -> document.Table:
    def text(value: str | float, form: str) -> str:
        if isinstance(value, str):
            return value
        if pd.isna(value):
            return document.MISSING
        if form == "count":
            return document.count(value)
        form, space, unit = form.partition(" ")
        return document.number(value, form, space + unit)

    cells = [[text(value, form) for value in facts[name]] for _, name, form in columns]
    header = [header for header, _, _ in columns]
    return document.Table(header, list(zip(*cells, strict=True)))


def _timing_conditions(results: scores.Results, rows) -> list[document.Block]:
    """The conditions of the measurements, if they were recorded."""
    measured = [r for r in (_rates(results, *row) for row in rows) if "machine" in r]
    conditions = {
        f"{timed['machine']}, batches of {timed['batch_size']}, "
        + (
            "by an index, with which a student reads none of the frames that it does "
            "not see"
            if timed["uses_index"]
            else "whole records, without an index"
        ): None
        for timed in measured
    }
    return [document.Text(f"Measured on: {'; '.join(conditions)}.")] if measured else []


# -------------------------------------------------------------------------- Table 4


def table_4(results: scores.Results) -> list[document.Block]:
    """Table 4: the cost of the networks, by formula and measured."""
    rows = [(published.TEACHER, None)]
    rows += [(published.MAIN_STUDENT, k) for k in results.grid.frames]
    facts = _facts(results, rows)
    return [
        document.Heading(2, "Table 4: cost"),
        document.Text(
            "Parameters and multiply-adds of a video of full length. The paper's "
            "FLOPs count the lower LSTM alone, on the visual feature (here: the first "
            "one); `its frames` is the number of frames that gives the published "
            "figure; the CVPR 2019 version adds the classifier. The other columns "
            "count all products. `frames` are those whose features must be computed."
        ),
        _table(facts, _COST),
        document.Heading(3, "Time"),
        document.Text(
            "One network at a time: model, a batch in memory, median of "
            f"{measures.ROUNDS}; end to end, from the TFRecord shards, which are in "
            "the system's cache by then, to the metrics, over at most "
            f"{measures.TIMED_BATCHES} batches, measured once. The paper's hours are "
            "those of the validate set on K80s, end to end."
        ),
        *_timing_conditions(results, rows),
        _table(facts, _TIME),
    ]


# ------------------------------------------------------------------------- networks


def by_network(results: scores.Results, table: str) -> list[document.Block]:
    """A table of plan.BY_NETWORK: scores and costs, one row per network and k."""
    rows, title = results.grid.rows(table), "Network families"
    text = (
        "Frames are those whose features must be computed; multiply-adds count all "
        "products, both for a video of full length. The time is that of the network "
        "alone, with a batch in memory."
    )
    is_published = table != plan.FAMILIES
    if is_published:
        title = f"CVPR 2019, Table {table[-1]}: {plan.BY_NETWORK[table]}"
        methods = {method.rpartition("/")[2] for method, _ in rows}
        rows = [(m, k) for m, k in results.grid.rows("1") if m in methods] + rows
        text += (
            " The paper's account leaves out audio, and of NeXtVLAD the hidden layer "
            "and the classifier, too. Rows without a network are Table 1's."
        )
    facts = _facts(results, rows)
    # Columns of times or published numbers are omitted if they would be empty.
    omitted = () if is_published else _OF_THE_PAPER
    omitted += ("ms",) if facts["ms"].isna().all() else ()
    columns = [column for column in _NETWORK if column[1] not in omitted]
    return [
        document.Heading(2, title),
        document.Text(text),
        *_timing_conditions(results, rows),
        _table(facts, columns),
    ]


def plots_of_families(results: scores.Results) -> list[document.Figure]:
    """The figure of all families."""
    lines = results.lines(results.grid.rows(plan.FAMILIES))
    if lines.empty:
        return []
    lines["method"] = lines["method"].str.rpartition("/")[0]
    caption = "GAP of each network on k frames and on all, from labels alone."
    return [document.Figure("gap_by_network", caption, figures.gap_by_network(lines))]


# ----------------------------------------------- one student for several k, early exit


def _evaluations(results: scores.Results) -> pd.DataFrame:
    """All that one student was asked for on the test shards, by number of frames.

    Returns:
        `method`, one of published.BUDGETS; `frames` asked for and, in the mean over
        seeds, `read`; `scores` and `frames read` as text; `gap` and `spread`.
    """
    cell = (published.BEST_PRESET, results.grid.every_k)
    started = [run for run in results.runs(*cell) if run.begun]
    points = []
    for asked in plan.asked(started[0].settings) if started else ():
        gaps, means = (results.by_seed(*cell, m, asked=asked) for m in tables.BOTH)
        if gaps.empty or not results.test_data_pattern:
            continue
        line = "fixed_k"
        frames = float(asked.partition("=")[2] or results.grid.largest)
        read = pd.Series(frames, index=gaps.index)
        if asked.startswith(plan.MEAN_FRAMES):
            line = "early_exit"
            read = results.by_seed(*cell, "mean_frames", asked=asked)
        ends = dict.fromkeys((f"{read.min():.2f}", f"{read.max():.2f}"))
        points.append(
            {
                "method": line,
                "frames": frames,
                "read": read.mean(),
                "scores": f"{document.spread(gaps)} / {document.spread(means)}",
                "frames read": " to ".join(ends),
                **scores.mean_and_spread(gaps),
            }
        )
    return pd.DataFrame(points)


def budgets(results: scores.Results) -> list[document.Block]:
    """GAP / mAP of the student, by the number of frames that it was asked for."""
    rows: dict[float, dict[str, str]] = {}
    for point in _evaluations(results).to_dict("records"):
        row = rows.setdefault(point["frames"], {})
        row[point["method"]] = point["scores"]
        if point["method"] == "early_exit":
            row["read"] = point["frames read"]
    columns = {"fixed_k": "`--student_k`", "early_exit": "`--mean_frames`"}
    columns["read"] = "frames really read"
    table = [
        [f"{frames:g}", *(row.get(name, document.MISSING) for name in columns)]
        for frames, row in sorted(rows.items())
    ]
    return [
        document.Heading(
            2, f"One student for k={results.grid.every_k}, and early exit"
        ),
        document.Text(
            "GAP / mAP of one student for all of these k, at a fixed k, and with early "
            "exit for that many frames per video on average, which is calibrated on "
            "the validation shards."
        ),
        document.Table(["frames", *columns.values()], table),
    ]


def plots_of_budgets(results: scores.Results) -> list[document.Figure]:
    """The figure of GAP against the frames that are really read."""
    lines = _evaluations(results)
    if lines.empty:
        return []
    caption = (
        "GAP of one student against the frames that it really reads per video: at a "
        "fixed k, and where each video stops once the student is sure enough."
    )
    svg = figures.gap_against_mean_frames(lines, results.skyline())
    return [document.Figure("gap_against_mean_frames", caption, svg)]
