"""Table 4 of the report: the cost of the networks, counted and measured."""

from collections.abc import Sequence

from tools.reproduction import (
    cost,
    document,
    measures,
    plan,
    published,
    scores,
    texts,
)


def make(results: scores.Results) -> list[document.Block]:
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
        *timing_conditions(results, rows),
        _time_table(results, rows),
    ]


def _model_name(k: int | None) -> str:
    if k is None:
        return published.label(published.TEACHER)
    return f"k={k}"


def paper_operations(
    results: scores.Results, method: str, k: int | None
) -> tuple[int | None, int | None]:
    """The cost of our network as the paper counts it: per frames, and in total."""
    begun = [run for run in results.runs(method, k) if run.begun]
    parts = begun and cost.paper_operations(begun[0].settings, plan.role_of(k))
    return (parts["frames"], sum(parts.values())) if parts else (None, None)


def _cost_table(results: scores.Results, rows: Sequence[tuple]) -> document.Table:
    header = ["model", "frames", "GAP", "parameters", "lower", "upper", "classifier"]
    header += ["total", "of the teacher's", "by the paper's account", document.PAPER]
    header += ["its frames", "with the classifier", f"{document.PAPER}, 2019"]
    teacher = results.network(published.TEACHER, None)
    total = sum(teacher["multiply_adds"].values()) if teacher else None
    lines = []
    for method, k in rows:
        network = results.network(method, k) or {}
        parts = network.get("multiply_adds", {})
        whole = sum(parts.values()) if parts else None
        rest = {n: v for n, v in parts.items() if n not in ("lower", "upper")}
        of_frames, with_classifier = paper_operations(results, method, k)
        theirs = published.TABLE_4.get(k)
        lines.append(
            [
                _model_name(k),
                str(network.get("frames", texts.MISSING)),
                texts.score_text(results, method, k, "gap"),
                texts.count_text(network.get("parameters")),
                texts.count_text(parts.get("lower")),
                texts.count_text(parts.get("upper")),
                texts.count_text(sum(rest.values()) if rest else None),
                texts.count_text(whole),
                texts.number_text(whole / total if whole and total else None, ".1%"),
                texts.count_text(of_frames),
                f"{theirs.billions:.3f} G" if theirs else texts.MISSING,
                str(cost.frames_for(theirs.billions)) if theirs else texts.MISSING,
                texts.count_text(with_classifier),
                texts.number_text(published.operations(method, k), ".3f") + " G"
                if theirs
                else texts.MISSING,
            ]
        )
    return document.Table(header, lines)


def rates(results: scores.Results, method: str, k: int | None) -> dict:
    """The result of measures.time_network for a network, or an empty dictionary."""
    return results.times().get(plan.Cell(method, k, results.grid.seeds[0]).name, {})


def timing_conditions(
    results: scores.Results, rows: Sequence[tuple]
) -> list[document.Block]:
    """The conditions of the measurements, if they were recorded."""
    measured = [r for r in (rates(results, *row) for row in rows) if "machine" in r]
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
    text = f"Measured on: {'; '.join(conditions)}."
    return [document.Text(text)] if measured else []


def _time_table(results: scores.Results, rows: Sequence[tuple]) -> document.Table:
    header = ["model", "model: ms per video", "videos/s", "end to end: ms per video"]
    header += ["videos/s", "of the teacher's", f"{document.PAPER}, hours"]
    header += [f"{document.PAPER}, of the teacher's"]
    teacher = rates(results, published.TEACHER, None)
    lines = []
    for method, k in rows:
        timed = rates(results, method, k)
        model = timed.get("model_videos_per_second")
        whole = timed.get("videos_per_second")
        theirs = published.TABLE_4.get(k)
        # Rates of different machines are not comparable.
        share = None
        if teacher and whole and teacher.get("machine") == timed.get("machine"):
            share = teacher["videos_per_second"] / whole
        hours = published.TABLE_4[None].hours
        lines.append(
            [
                _model_name(k),
                texts.number_text(1000 / model if model else None, ".3g"),
                texts.number_text(model, ".0f"),
                texts.number_text(1000 / whole if whole else None, ".3g"),
                texts.number_text(whole, ".0f"),
                texts.number_text(share, ".0%"),
                f"{theirs.hours:.2f} h" if theirs else texts.MISSING,
                f"{theirs.hours / hours:.0%}" if theirs else texts.MISSING,
            ]
        )
    return document.Table(header, lines)
