"""The paper's tables and figures of scores, and the ablation of the best preset."""

import itertools

import numpy as np
import pandas as pd

from tools.reproduction import document, figures, plan, published, scores

BOTH = ("gap", "map")

# -------------------------------------------------------------------------- Table 1


def _by_k(results: scores.Results, methods, ours, theirs) -> document.Table:
    """A row per method; at each k our number, and the paper's where it has this k.

    Args:
        results: of the grid.
        methods: of the rows.
        ours, theirs: functions (method, k) → text.
    """
    header, rows = ["model"], []
    for k in results.grid.frames:
        header += [f"k={k}", document.PAPER] if k in published.FRAMES else [f"k={k}"]
    for method in methods:
        row = [published.label(method)]
        for k in results.grid.frames:
            # The teacher reads all frames, so its score does not depend on k.
            cell = method, None if method == published.TEACHER else k
            row.append(ours(*cell))
            if k in published.FRAMES:
                row.append(theirs(*cell))
        rows.append(row)
    teacher = published.label(published.TEACHER)
    return document.Table(header, rows, [row[0] for row in rows if row[0] != teacher])


def table_1(results: scores.Results) -> list[document.Block]:
    """Table 1, the shares of the gap closed, and the order of the methods."""
    blocks: list[document.Block] = [
        document.Heading(2, "Table 1: k frames, and all of them")
    ]
    methods = results.methods("1")
    has_teacher = (published.TEACHER, None) in results.grid.rows("1")
    for metric, name in (("gap", "GAP"), ("map", "mAP")):
        table = _by_k(
            results,
            [published.TEACHER] * has_teacher + methods,
            lambda m, k, metric=metric: results.text(m, k, metric),
            lambda m, k, metric=metric: scores.published_text(m, k, metric),
        )
        blocks += [document.Heading(3, name), table]
    last = "baseline_last"
    if last in methods and set(results.grid.frames) & set(published.FRAMES):
        blocks.append(
            document.Text(
                f"{published.label(last)} takes the last frames of a video. The "
                "published numbers are so low that the authors probably took the last "
                "ones of the padding, as `--frame_sampler=last_padded` does."
            )
        )
    return [
        *blocks,
        document.Heading(3, "Share of the gap that a student closes"),
        document.Text(
            "(student − Uniform-k) / (teacher − Uniform-k), of the mean GAPs: 0 is "
            "the baseline, 1 the teacher."
        ),
        _by_k(
            results,
            filter(published.is_student, methods),
            lambda m, k: document.number(results.share(m, k), ".2f"),
            lambda m, k: document.number(_published_share(m, k), ".2f"),
        ),
        *_order_of_methods(results),
    ]


def _published_share(method: str, k: int) -> float | None:
    student, uniform, teacher = (
        published.score(*row, "gap")
        for row in ((method, k), (published.UNIFORM, k), (published.TEACHER, None))
    )
    return None if student is None else (student - uniform) / (teacher - uniform)


def _order_of_methods(results: scores.Results) -> list[document.Block]:
    """Whether the methods come in the order of the paper, by GAP at each k."""
    methods, frames = results.methods("1"), results.grid.frames
    rows, contrary = [], []
    for k in frames:
        ours = pd.DataFrame({m: results.by_seed(m, k) for m in methods})
        theirs = {m: published.gap_for_order(m, k) for m in methods}
        theirs = pd.Series(theirs, dtype=float).dropna()
        found = scores.order(ours, theirs)
        compared = ours[theirs.index].notna().any().sum()
        agreeing = sum(pair.as_published for pair in found.pairs)
        correlation = document.number(found.correlation, ".2f")
        counts = [str(n) for n in (compared, len(found.pairs), agreeing)]
        rows.append([f"k={k}", counts[0], correlation, *counts[1:]])
        for better, worse, as_published in found.pairs:
            if not as_published:
                labels = f"{published.label(better)} > {published.label(worse)}"
                gaps = (results.text(m, k, "gap") for m in (better, worse))
                paper = f"{theirs[better]:.3f}, {theirs[worse]:.3f}"
                contrary.append([f"k={k}", labels, ", ".join(gaps), paper])
    unpublished = ""
    if not set(frames) <= set(published.FRAMES):
        unpublished = " At another k the paper's order is that of its means over all k."
    header = ["", "methods", "rank correlation", "clear pairs", "as in the paper"]
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


def plots_of_table_1(results: scores.Results) -> list[document.Figure]:
    """GAP against frames and against multiply-adds."""
    lines = results.lines(row for row in results.grid.rows("1") if row[1])
    if lines.empty:
        return []
    theirs = [
        {"method": method, "k": k, "gap": gap, "spread": 0.0}
        for method in results.methods("1")
        for k, gap in published.gaps(method).items()
    ]
    skyline = results.skyline()
    cost = results.multiply_adds(published.TEACHER, None)
    point = (cost, skyline) if cost and skyline is not None else None
    below = "; below, the students, Uniform-k and the teacher alone."
    return [
        document.Figure(
            "gap_against_frames",
            f"GAP against the frames that the student sees{below}",
            figures.gap_against_frames(lines, skyline, pd.DataFrame(theirs)),
        ),
        document.Figure(
            "gap_against_cost",
            f"GAP against multiply-adds per video of full length{below}",
            figures.gap_against_cost(lines, point),
        ),
    ]


def summary(results: scores.Results) -> document.Table:
    """Teacher, Uniform-k and the best students in a small table: GAP / mAP, and shares.

    The share is that of the gap in GAP between Uniform-k and the teacher.
    """
    frames = results.grid.frames
    skyline = results.text(published.TEACHER, None, *BOTH)
    rows = [[published.label(published.TEACHER), *[skyline] * len(frames)]]
    for method in (m for m in results.methods("1") if m in published.IN_SHORT):
        row = [published.label(method)]
        for k in frames:
            share = results.share(method, k) if published.is_student(method) else None
            closed = "" if share is None else f" ({share:.0%})"
            row.append(results.text(method, k, *BOTH) + closed)
        rows.append(row)
    header = ["GAP / mAP (share of the gap closed)", *[f"k={k}" for k in frames]]
    return document.Table(header, rows, [row[0] for row in rows[1:]])


# ------------------------------------------------------- Tables 2 and 3, the ablation


def table_2(results: scores.Results) -> list[document.Block]:
    """Table 2: intermediate and final matching."""
    k = results.grid.largest
    rows = []
    for method in published.TABLE_2:
        row = [published.label(method)]
        for cell in ((method + published.INTERMEDIATE, k), (method, k)):
            row += [results.text(*cell, *BOTH), scores.published_text(*cell, *BOTH)]
        rows.append(row)
    header = ["model", "intermediate", document.PAPER, "final", document.PAPER]
    return [
        document.Heading(2, f"Table 2: intermediate and final matching, k={k}"),
        document.Text("GAP / mAP."),
        document.Table(header, rows, [row[0] for row in rows]),
    ]


def table_3(results: scores.Results) -> list[document.Block]:
    """Table 3: a share of the training data, for teacher and student alike."""
    k = results.grid.largest
    header = ["model"]
    rows = [[name.capitalize()] for name in published.TABLE_3]
    shares = ["share of the gap closed"]
    for percent in published.PERCENTS:
        header += [f"{percent} %", document.PAPER]
        methods = [f"{name}_{percent}_percent" for name in published.TABLE_3]
        for row, method in zip(rows, methods, strict=True):
            row.append(results.text(method, k, *BOTH))
            row.append(scores.published_text(method, k, *BOTH))
        serial, uniform = methods
        share = scores.gap_share(
            results.by_seed(serial, k, role="student"),
            results.by_seed(uniform, k, role="student"),
            results.by_seed(serial, k, role="teacher"),
        )
        shares += [document.number(share, ".2f"), document.MISSING]
    return [
        document.Heading(2, f"Table 3: less training data, k={k}"),
        document.Text(
            "GAP / mAP. The share is that of the mean GAPs on the validation shards, "
            "with the teacher that was trained on as much data."
        ),
        document.Table(header, [*rows, shares], [row[0] for row in rows]),
    ]


def ablation(results: scores.Results) -> list[document.Block]:
    """The contribution of each part of the best preset."""
    rows = []
    cells = results.grid.rows(plan.ABLATION)
    # Shares are comparable only over the same seeds.
    finished = [set(results.by_seed(*cell).index) for cell in cells]
    seeds = sorted(set.intersection(*([s for s in finished if s] or [set()])))
    same = scores.Results(
        results.grid, results.archive, results.test_data_pattern, seeds
    )
    for method, k in cells:
        texts = [same.text(method, k, metric) for metric in BOTH]
        share = same.share(method, k) if k is not None else None
        rows.append([published.label(method), *texts, document.number(share, ".2f")])
    teacher = published.label(published.TEACHER)
    return [
        document.Heading(2, f"Ablation of the best preset, k={results.grid.middle}"),
        document.Text(
            "What `--preset=best` owes to its parts, and what more epochs give to "
            "others. The share is that of the gap between Uniform-k and the teacher, "
            "of the mean GAPs. All rows are means over the seeds that each of them "
            f"has: {', '.join(map(str, seeds)) or 'none'}."
        ),
        document.Table(
            ["model", "GAP", "mAP", "share of the gap closed"],
            rows,
            [row[0] for row in rows if row[0] != teacher],
        ),
    ]


# ------------------------------------------------------------------ Figures 2 and 3


def _mean_curve(results: scores.Results, method: str, k: int | None, role: str):
    """Mean validation GAP after each epoch that all started runs have finished."""
    curves = [[e["gap"] for e in r.epochs(role)] for r in results.runs(method, k)]
    curves = pd.DataFrame([curve for curve in curves if curve])
    return curves.dropna(axis=1).mean().tolist()


def figure_2(results: scores.Results) -> list[document.Block]:
    """Figure 2: GAP by epoch, serial and parallel, teacher and student."""
    k = results.grid.largest
    skyline = _mean_curve(results, published.TEACHER, None, "teacher")
    panels = {}
    for method in published.TABLE_2:
        training, _, loss = published.label(method).partition(" ")
        lines = panels.setdefault(loss, {"Serial teacher": skyline})
        for role in ("teacher", "student"):
            # A serial student's teacher is the skyline.
            if training == "Parallel" or role == "student":
                lines[f"{training} {role}"] = _mean_curve(results, method, k, role)
    heading = document.Heading(2, f"Figure 2: GAP by epoch, k={k}")
    if not any(itertools.chain(*(lines.values() for lines in panels.values()))):
        return [heading, document.Text(document.MISSING)]
    caption = (
        "Validation GAP after each epoch, mean over seeds. A serial student begins "
        "when its teacher has ended: its epoch 1 comes after the teacher's last. With "
        "the loss rep alone, the epochs of fine-tuning are at the end."
    )
    return [heading, document.Figure("figure2", caption, figures.gap_by_epoch(panels))]


def figure_3(results: scores.Results) -> list[document.Block]:
    """Figure 3: encodings of teacher and student in one plane."""
    heading = document.Heading(2, "Figure 3: encodings of teacher and student")
    content = results.archive.points
    if content is None:
        return [heading, document.Text(document.MISSING)]
    caption = (
        f"t-SNE of E_T and E_S ({content['student']}, k={content['k']}) of validation "
        "videos with exactly one of the five most frequent classes, both in one "
        "embedding: dark shades are the teacher's, light ones the student's. "
        "`tensorboard --logdir=figure3`, in the folder of the runs, shows "
        "the encodings themselves."
    )
    svg = figures.embedding(np.asarray(content["points"]), content["classes"])
    return [heading, document.Figure("figure3", caption, svg)]
