"""Table 1 of the report: scores, shares of the gap, order of the methods, plots."""

import itertools
from collections.abc import Sequence

import pandas as pd

from tools.reproduction import document, figures, published, scores, texts


def make(results: scores.Results) -> list[document.Block]:
    """Table 1, the shares of the gap closed, and the order of the methods."""
    frames = results.grid.frames
    blocks: list[document.Block] = [
        document.Heading(2, "Table 1: k frames, and all of them")
    ]
    for metric, name in (("gap", "GAP"), ("map", "mAP")):
        blocks += [document.Heading(3, name), _table_of_scores(results, metric)]
    last = "baseline_last"
    if last in results.methods("1") and set(frames) & set(published.FRAMES):
        blocks.append(
            document.Text(
                f"{published.label(last)} takes the last frames of a video. The "
                "published numbers are so low that the authors probably took the last "
                "ones of the padding, as `--frame_sampler=last_padded` does."
            )
        )
    blocks += [
        document.Heading(3, "Share of the gap that a student closes"),
        document.Text(
            "(student − Uniform-k) / (teacher − Uniform-k), of the mean GAPs: 0 is "
            "the baseline, 1 the teacher."
        ),
        _table_of_shares(results),
        *_order_of_methods(results),
    ]
    return blocks


def _table_of_scores(results: scores.Results, metric: str) -> document.Table:
    frames = results.grid.frames
    rows, rivals = [], []
    teacher = published.TEACHER
    if (teacher, None) in results.grid.rows("1"):
        # The teacher reads all frames, so its score does not depend on k.
        ours = texts.score_text(results, teacher, None, metric)
        theirs = texts.number_text(texts.published_score(teacher, None, metric))
        cells = (_with_paper(k, ours, theirs) for k in frames)
        rows.append([published.label(teacher), *itertools.chain.from_iterable(cells)])
    for method in results.methods("1", "baseline", "student"):
        row = [published.label(method)]
        for k in frames:
            ours = texts.score_text(results, method, k, metric)
            theirs = texts.number_text(texts.published_score(method, k, metric))
            row += _with_paper(k, ours, theirs)
        rows.append(row)
        rivals.append(row[0])
    return document.Table(_frames_header(frames), rows, rivals)


def _table_of_shares(results: scores.Results) -> document.Table:
    frames = results.grid.frames
    rows = []
    for method in results.methods("1", "student"):
        row = [published.label(method)]
        for k in frames:
            both = results.share(method, k), _published_share(method, k)
            row += _with_paper(k, *(texts.number_text(share, ".2f") for share in both))
        rows.append(row)
    return document.Table(_frames_header(frames), rows, [row[0] for row in rows])


def _published_share(method: str, k: int) -> float | None:
    student, uniform = (
        texts.published_score(m, k, "gap") for m in (method, published.UNIFORM)
    )
    if student is None or uniform is None:
        return None
    return (student - uniform) / (published.SKYLINE.gap - uniform)


def _with_paper(k: int, ours: str, theirs: str) -> list[str]:
    """The cells of one k: ours, and the paper's where it has this k."""
    return [ours, theirs] if k in published.FRAMES else [ours]


def _frames_header(frames: Sequence[int]) -> list[str]:
    columns = (_with_paper(k, f"k={k}", document.PAPER) for k in frames)
    return ["model", *itertools.chain.from_iterable(columns)]


def _order_of_methods(results: scores.Results) -> list[document.Block]:
    """Whether the methods come in the order of the paper, by GAP at each k."""
    methods = results.methods("1", "baseline", "student")
    rows, contrary = [], []
    for k in results.grid.frames:
        ours = pd.DataFrame({m: results.by_seed(m, k, "gap") for m in methods})
        theirs = {m: published.gap_for_order(m, k) for m in methods}
        theirs = pd.Series(theirs, dtype=float).dropna()
        found = scores.order(ours, theirs)
        agreeing = sum(pair.as_published for pair in found.pairs)
        compared = [m for m in theirs.index if ours[m].notna().any()]
        rows.append(
            [
                f"k={k}",
                str(len(compared)),
                texts.number_text(found.correlation, ".2f"),
                str(len(found.pairs)),
                str(agreeing),
            ]
        )
        contrary += [
            [
                f"k={k}",
                f"{published.label(pair.better)} > {published.label(pair.worse)}",
                ", ".join(
                    texts.score_text(results, m, k, "gap")
                    for m in (pair.better, pair.worse)
                ),
                f"{theirs[pair.better]:.3f}, {theirs[pair.worse]:.3f}",
            ]
            for pair in found.pairs
            if not pair.as_published
        ]
    header = ["", "methods", "rank correlation", "clear pairs", "as in the paper"]
    unpublished = ""
    if not set(results.grid.frames) <= set(published.FRAMES):
        unpublished = " At another k the paper's order is that of its means over all k."
    blocks: list[document.Block] = [
        document.Heading(3, "The order of the methods, by GAP"),
        document.Text(
            "Rank correlation is Spearman's, with the published order, of the means "
            "over the seeds that all methods have. A pair of methods is clear if their "
            "mean difference over the seeds that both have is above its sample "
            "standard deviation; with one such seed, if it is above "
            f"{scores.OF_ONE_SEED}. Pairs published as equal are left out."
            + unpublished
        ),
        document.Table(header, rows),
    ]
    if contrary:
        blocks += [
            document.Text("Clear pairs whose order is not the paper's:"),
            document.Table(["", "pair", "GAP", document.PAPER], contrary),
        ]
    return blocks


def plots(results: scores.Results) -> list[document.Figure]:
    """The two figures of Table 1."""
    methods = results.methods("1", "baseline", "student")
    skyline = results.by_seed(published.TEACHER, None, "gap")
    skyline = None if skyline.empty else skyline.mean()
    teacher = results.network(published.TEACHER, None)
    against_k, against_cost = (
        [s for s in (_series(results, m, costs) for m in methods) if s.x]
        for costs in (False, True)
    )
    if not against_k:
        return []
    rows = {**published.TABLE_1, **published.CVPR_2019}
    theirs = []
    for method in methods:
        gaps = {k: score.gap for k, score in rows.get(method, {}).items()}
        if gaps:
            zeros = (0.0,) * len(gaps)
            theirs.append(
                figures.Series(method, tuple(gaps), tuple(gaps.values()), zeros)
            )
    point = None
    if teacher and skyline is not None:
        point = (sum(teacher["multiply_adds"].values()), skyline)
    below = "; below, the students, Uniform-k and the teacher alone."
    against = (
        (
            "gap_against_frames",
            "the frames that the student sees",
            figures.gap_against_frames(against_k, skyline, theirs),
        ),
        (
            "gap_against_cost",
            "multiply-adds per video of full length",
            figures.gap_against_cost(against_cost, point),
        ),
    )
    return [
        document.Figure(name, f"GAP against {what}{below}", svg)
        for name, what, svg in against
    ]


def _series(results: scores.Results, method: str, costs: bool) -> figures.Series:
    """GAP of the finished runs at each k, against k or multiply-adds."""
    points = []
    for k in results.grid.frames:
        gaps = results.by_seed(method, k, "gap")
        network = results.network(method, k)
        if network and not gaps.empty:
            x = sum(network["multiply_adds"].values()) if costs else k
            points.append((x, gaps.mean(), gaps.std() if len(gaps) > 1 else 0.0))
    return figures.Series(method, *zip(*points, strict=True) if points else ((),) * 3)
