"""Tables by network: Tables 5 and 6 of the CVPR 2019 version, and network families."""

from tools.reproduction import (
    document,
    figures,
    plan,
    published,
    scores,
    table_4,
    texts,
)


def make(results: scores.Results, table: str) -> list[document.Block]:
    """A table of plan.BY_NETWORK: scores and costs, one row per network and k."""
    rows, title = results.grid.rows(table), "Network families"
    text = (
        "Frames are those whose features must be computed; multiply-adds count all "
        "products, both for a video of full length. The time is that of the network "
        "alone, with a batch in memory."
    )
    is_published = table != plan.FAMILIES
    if is_published:
        number, family = table.rpartition("_")[2], plan.BY_NETWORK[table]
        title = f"CVPR 2019, Table {number}: {family}"
        methods = {method.rpartition("/")[2]: None for method, _ in rows}
        rows = [(m, k) for m, k in results.grid.rows("1") if m in methods] + rows
        text += (
            " The paper's account leaves out audio, and of NeXtVLAD the hidden layer "
            "and the classifier, too. Rows without a network are Table 1's."
        )
    lines = [_line(results, method, k) for method, k in rows]
    # Columns of times or published numbers are omitted if they would be empty.
    header = [
        name
        for name in lines[0]
        if (is_published or not name.startswith((document.PAPER, "by the paper")))
        and (name != "ms per video" or any(x[name] != texts.MISSING for x in lines))
    ]
    table_rows = [[line[name] for name in header] for line in lines]
    # The two columns of published scores have the same name.
    header = [document.PAPER if n.startswith("paper ") else n for n in header]
    return [
        document.Heading(2, title),
        document.Text(text),
        *table_4.timing_conditions(results, rows),
        document.Table(header, table_rows),
    ]


def _line(results: scores.Results, method: str, k: int | None) -> dict[str, str]:
    """Column → cell."""
    network = results.network(method, k) or {}
    parts = network.get("multiply_adds")
    _, counted = table_4.paper_operations(results, method, k)
    theirs = published.operations(method, k)
    speed = table_4.rates(results, method, k).get("model_videos_per_second")
    at_k = "" if k is None else f", k={k}"
    line = {
        "model": published.label(method) + at_k,
        "frames": str(network.get("frames", texts.MISSING)),
    }
    for metric, name in (("gap", "GAP"), ("map", "mAP")):
        paper = texts.published_score(method, k, metric)
        line[name] = texts.score_text(results, method, k, metric)
        line[f"{document.PAPER} {name}"] = texts.number_text(paper)
    return line | {
        "weights": texts.count_text(network.get("parameters")),
        "multiply-adds": texts.count_text(sum(parts.values()) if parts else None),
        "by the paper's account": texts.count_text(counted),
        document.PAPER: texts.number_text(theirs, ".3f") + " G" * (theirs is not None),
        "ms per video": texts.number_text(1000 / speed if speed else None, ".3g"),
    }


def plots(results: scores.Results) -> list[document.Figure]:
    """The figure of all families."""
    against_frames, against_cost = [], []
    for network in results.grid.networks_of(plan.FAMILIES):
        points = []
        for method, k in results.grid.rows(plan.FAMILIES):
            gaps, entry = results.by_seed(method, k, "gap"), results.network(method, k)
            if method.startswith(f"{network}/") and entry and not gaps.empty:
                total = sum(entry["multiply_adds"].values())
                spread = gaps.std() if len(gaps) > 1 else 0.0
                points.append((entry["frames"], total, gaps.mean(), spread))
        if points:
            frames, costs, *heights = zip(*sorted(points), strict=True)
            against_frames.append(figures.Series(network, frames, *heights))
            against_cost.append(figures.Series(network, costs, *heights))
    if not against_frames:
        return []
    caption = "GAP of each network on k frames and on all, from labels alone."
    svg = figures.gap_by_network(against_frames, against_cost)
    return [document.Figure("gap_by_network", caption, svg)]
