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
    return [
        document.Heading(2, "Table 4: cost"),
        document.Text(
            "Parameters and multiply-adds of a video of full length. The paper's "
            "FLOPs count the lower LSTM alone, on the visual feature (here: the first "
            "one); `its frames` is the number of frames that gives the published "
            "figure; the CVPR 2019 version adds the classifier. The other columns "
            "count all products. `frames` are those whose features must be computed."
        ),
        _cost_table(results, rows),
        document.Heading(3, "Time"),
        document.Text(
            "One network at a time: model, a batch in memory, median of "
            f"{measures.ROUNDS}; end to end, from the TFRecord shards, which are in "
            "the system's cache by then, to the metrics, over at most "
            f"{measures.TIMED_BATCHES} batches, measured once. The paper's hours are "
            "those of the validate set on K80s, end to end."
        ),
        *_timing_conditions(results, rows),
        _time_table(results, rows),
    ]


def _model_name(k: int | None) -> str:
    return published.label(published.TEACHER) if k is None else f"k={k}"


def _cost_table(results: scores.Results, rows) -> document.Table:
    header = ["model", "frames", "GAP", "parameters", "lower", "upper", "classifier"]
    header += ["total", "of the teacher's", "by the paper's account", document.PAPER]
    header += ["its frames", "with the classifier", f"{document.PAPER}, 2019"]
    teacher = results.multiply_adds(published.TEACHER, None)
    lines = []
    for method, k in rows:
        network, total = results.network(method, k), results.multiply_adds(method, k)
        parts = network.get("multiply_adds", {})
        rest = [n for part, n in parts.items() if part not in ("lower", "upper")]
        of_frames, with_classifier = _paper_operations(results, method, k)
        theirs = published.LOWER_LSTM.get(k)
        lines.append(
            [
                _model_name(k),
                document.number(network.get("frames"), "d"),
                results.text(method, k, "gap"),
                document.count(network.get("parameters")),
                document.count(parts.get("lower")),
                document.count(parts.get("upper")),
                document.count(sum(rest) if rest else None),
                document.count(total),
                document.number(total / teacher if total and teacher else None, ".1%"),
                document.count(of_frames),
                document.number(theirs, unit=" G"),
                document.number(cost.frames_for(theirs) if theirs else None, "d"),
                document.count(with_classifier),
                document.number(published.operations(method, k), unit=" G"),
            ]
        )
    return document.Table(header, lines)


def _time_table(results: scores.Results, rows) -> document.Table:
    header = ["model", "model: ms per video", "videos/s", "end to end: ms per video"]
    header += ["videos/s", "of the teacher's", f"{document.PAPER}, hours"]
    header += [f"{document.PAPER}, of the teacher's"]
    teacher = _rates(results, published.TEACHER, None)
    lines = []
    for method, k in rows:
        timed, hours = _rates(results, method, k), published.HOURS.get(k)
        model = timed.get("model_videos_per_second")
        whole = timed.get("videos_per_second")
        # Rates of different machines are not comparable.
        share = None
        if teacher and whole and teacher.get("machine") == timed.get("machine"):
            share = teacher["videos_per_second"] / whole
        lines.append(
            [
                _model_name(k),
                document.number(1000 / model if model else None, ".3g"),
                document.number(model, ".0f"),
                document.number(1000 / whole if whole else None, ".3g"),
                document.number(whole, ".0f"),
                document.number(share, ".0%"),
                document.number(hours, ".2f", " h"),
                document.number(
                    hours / published.HOURS[None] if hours else None, ".0%"
                ),
            ]
        )
    return document.Table(header, lines)


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
    lines = pd.DataFrame([_line(results, method, k) for method, k in rows])
    # Columns of times or published numbers are omitted if they would be empty.
    if not is_published:
        lines = lines.loc[:, ~lines.columns.str.match(f"{document.PAPER}|by the paper")]
    if (lines["ms per video"] == document.MISSING).all():
        lines = lines.drop(columns="ms per video")
    # The two columns of published scores have the same name.
    header = [document.PAPER if name.startswith("paper ") else name for name in lines]
    return [
        document.Heading(2, title),
        document.Text(text),
        *_timing_conditions(results, rows),
        document.Table(header, lines.values.tolist()),
    ]


def _line(results: scores.Results, method: str, k: int | None) -> dict[str, str]:
    """Column → cell."""
    network = results.network(method, k)
    speed = _rates(results, method, k).get("model_videos_per_second")
    return {
        "model": published.label(method) + ("" if k is None else f", k={k}"),
        "frames": document.number(network.get("frames"), "d"),
        "GAP": results.text(method, k, "gap"),
        f"{document.PAPER} GAP": scores.published_text(method, k, "gap"),
        "mAP": results.text(method, k, "map"),
        f"{document.PAPER} mAP": scores.published_text(method, k, "map"),
        "weights": document.count(network.get("parameters")),
        "multiply-adds": document.count(results.multiply_adds(method, k)),
        "by the paper's account": document.count(
            _paper_operations(results, method, k)[1]
        ),
        document.PAPER: document.number(published.operations(method, k), unit=" G"),
        "ms per video": document.number(1000 / speed if speed else None, ".3g"),
    }


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
