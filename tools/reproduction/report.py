"""The report: the paper's tables and figures with the results of a grid's runs.

All our numbers come from the manifests, metrics and measurements in output_dir. Missing
numbers are shown as "–".
"""

import functools

import numpy as np
import pandas as pd

from tools.reproduction import (
    archive,
    document,
    figures,
    plan,
    published,
    runs,
    scores,
    table_1,
    table_4,
    table_budgets,
    table_families,
    texts,
)

# ------------------------------------------------------------------- Tables 2 and 3


def table_2(results: scores.Results) -> list[document.Block]:
    """Table 2: intermediate and final matching."""
    k = results.grid.largest
    header = ["model", "intermediate", document.PAPER, "final", document.PAPER]
    rows = []
    for method in published.TABLE_2:
        row = [published.label(method)]
        for name in (method + published.INTERMEDIATE, method):
            row += [texts.pair_text(results, name, k), texts.published_pair(name, k)]
        rows.append(row)
    return [
        document.Heading(2, f"Table 2: intermediate and final matching, k={k}"),
        document.Text("GAP / mAP."),
        document.Table(header, rows, [row[0] for row in rows]),
    ]


def _percent_method(name: str, percent: int) -> str:
    return f"{name}_{percent}_percent"


def table_3(results: scores.Results) -> list[document.Block]:
    """Table 3: a share of the training data, for teacher and student alike."""
    k = results.grid.largest
    columns = [c for p in published.PERCENTS for c in (f"{p} %", document.PAPER)]
    rows = []
    for name in published.TABLE_3:
        row = [name.capitalize()]
        for percent in published.PERCENTS:
            method = _percent_method(name, percent)
            row += [
                texts.pair_text(results, method, k),
                texts.published_pair(method, k),
            ]
        rows.append(row)
    shares = ["share of the gap closed"]
    for percent in published.PERCENTS:
        serial, uniform = (_percent_method(n, percent) for n in published.TABLE_3)
        share = scores.gap_share(
            results.by_seed(serial, k, "gap", "student"),
            results.by_seed(uniform, k, "gap", "student"),
            results.by_seed(serial, k, "gap", "teacher"),
        )
        shares += [texts.number_text(share, ".2f"), texts.MISSING]
    return [
        document.Heading(2, f"Table 3: less training data, k={k}"),
        document.Text(
            "GAP / mAP. The share is that of the mean GAPs on the validation shards, "
            "with the teacher that was trained on as much data."
        ),
        document.Table(["model", *columns], [*rows, shares], [r[0] for r in rows]),
    ]


# ----------------------------------------------------------------------- ablation


def ablation(results: scores.Results) -> list[document.Block]:
    """The contribution of each part of the best preset."""
    k = results.grid.middle
    cells = results.grid.rows(plan.ABLATION)
    # Shares are comparable only over the same seeds.
    finished = [set(results.by_seed(*cell, "gap").index) for cell in cells]
    seeds = sorted(set.intersection(*filter(None, finished))) if any(finished) else []
    rows = []
    for (method, frames), cell_seeds in zip(cells, finished, strict=True):
        gap, mean_ap = (
            of_seed[of_seed.index.isin(seeds)]
            for of_seed in (results.by_seed(method, frames, m) for m in ("gap", "map"))
        )
        share = None
        if frames is not None and cell_seeds:
            share = results.share(method, frames, seeds)
        ours = map(texts.spread_text, (gap, mean_ap))
        row = [published.label(method), *ours, texts.number_text(share, ".2f")]
        rows.append(row)
    return [
        document.Heading(2, f"Ablation of the best preset, k={k}"),
        document.Text(
            "What `--preset=best` owes to its parts, and what more epochs give to "
            "others. The share is that of the gap between Uniform-k and the teacher, "
            "of the mean GAPs. All rows are means over the seeds that each of them "
            f"has: {', '.join(map(str, seeds)) or 'none'}."
        ),
        document.Table(
            ["model", "GAP", "mAP", "share of the gap closed"],
            rows,
            [row[0] for row in rows if row[0] != published.label(published.TEACHER)],
        ),
    ]


# ------------------------------------------------------------------------ figures


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
        training = published.METHODS[method].training
        loss = published.label(method).removeprefix(f"{training} ")
        lines = panels.setdefault(loss, {"Serial teacher": skyline})
        for role in ("teacher", "student"):
            # A serial student's teacher is the skyline.
            if training == "Parallel" or role == "student":
                lines[f"{training} {role}"] = _mean_curve(results, method, k, role)
    heading = document.Heading(2, f"Figure 2: GAP by epoch, k={k}")
    if not any(curve for lines in panels.values() for curve in lines.values()):
        return [heading, document.Text(texts.MISSING)]
    caption = (
        "Validation GAP after each epoch, mean over seeds. A serial student begins "
        "when its teacher has ended: its epoch 1 comes after the teacher's last. With "
        "the loss rep alone, the epochs of fine-tuning are at the end."
    )
    svg = figures.gap_by_epoch(panels)
    return [heading, document.Figure("figure2", caption, svg)]


def figure_3(results: scores.Results) -> list[document.Block]:
    """Figure 3: encodings of teacher and student in one plane."""
    heading = document.Heading(2, "Figure 3: encodings of teacher and student")
    content = results.points()
    if content is None:
        return [heading, document.Text(texts.MISSING)]
    caption = (
        f"t-SNE of E_T and E_S ({content['student']}, k={content['k']}) of validation "
        "videos with exactly one of the five most frequent classes, both in one "
        "embedding: dark shades are the teacher's, light ones the student's. "
        f"`tensorboard --logdir={figures.EMBEDDING}`, in the folder of the runs, shows "
        "the encodings themselves."
    )
    points = np.asarray(content["points"])
    svg = figures.embedding(points, content["classes"])
    return [heading, document.Figure("figure3", caption, svg)]


# ---------------------------------------------------------------- the whole report

# In order of the report. plan.LATER has no section of its own.
_SECTIONS = {
    "1": table_1.make,
    "2": table_2,
    "3": table_3,
    "4": table_4.make,
    "figure2": figure_2,
    "figure3": figure_3,
    plan.ABLATION: ablation,
    plan.BUDGETS: table_budgets.make,
    **{t: functools.partial(table_families.make, table=t) for t in plan.BY_NETWORK},
}
_PLOTS = {
    "1": table_1.plots,
    plan.BUDGETS: table_budgets.plots,
    plan.FAMILIES: table_families.plots,
}


def _state(run: runs.Run) -> str:
    """`finished`, `3 of 6 epochs`, `not begun`."""
    if not run.begun:
        return "not begun"
    if run.finished:
        return "finished"
    done = sum(run.epochs_done(phase) for phase in run.planned)
    return f"{done} of {sum(phase.epochs for phase in run.planned)} epochs"


def _all_runs(results: scores.Results) -> list[document.Block]:
    header = ["run", "state", "best epoch", "validation GAP", "mAP", "test GAP", "mAP"]
    rows = []
    for cell in results.grid.cells():
        run = results.run(cell)
        role = plan.role_of(cell.k)
        best = run.validation(role) or {}
        test = run.evaluation(role, results.test_data_pattern) or {}
        row = [cell.name, _state(run), str(best.get("epoch", texts.MISSING))]
        for numbers in (best, test):
            row += [texts.number_text(numbers.get(metric)) for metric in ("gap", "map")]
        rows.append(row)
    return [document.Heading(2, "All runs"), document.Table(header, rows)]


def _names(pattern: str) -> str:
    return archive.file_names(pattern).replace(",", ", ")


def _introduction(
    results: scores.Results, tables: list[document.Table]
) -> list[document.Block]:
    """The source of the numbers; explains only what the tables contain."""
    cells = results.grid.cells()
    finished = sum(results.run(cell).finished for cell in cells)
    seeds = ", ".join(map(str, results.grid.seeds))
    source = (
        f"of the test shards {_names(results.test_data_pattern)}, at the best epoch by "
        "validation GAP"
        if results.test_data_pattern
        else "of the best epoch by GAP on the validation shards"
    )
    text = f"{finished} of {len(cells)} runs are finished; seeds {seeds}. Scores are "
    text += f"those {source}"
    if len(results.grid.seeds) > 1:
        text += ", as mean ± sample standard deviation over seeds"
    text += "; the best of each column is bold."
    if any(name.startswith(document.PAPER) for t in tables for name in t.header):
        text += " The columns `paper` are the published numbers, on YouTube-8M."
    if any(texts.MISSING in cell for t in tables for row in t.rows for cell in row):
        text += f" {texts.MISSING} marks what is missing."
    title = "Efficient video classification using fewer frames"
    return [document.Heading(1, title), document.Text(text)]


def _conditions(results: scores.Results) -> list[document.Block]:
    """The conditions that all runs share."""
    runs_of_cells = [results.run(cell) for cell in results.grid.cells()]
    begun = [run for run in runs_of_cells if run.begun]
    if not begun:
        return []
    run_settings = [run.settings for run in begun]
    training = run_settings[0].training
    budgets = (
        f"{r.training.num_epochs}, {r.training.batch_size}" for r in run_settings
    )
    versions, machines = (
        dict.fromkeys(form(run.manifest[name]) for run in begun if name in run.manifest)
        for name, form in (
            ("versions", lambda d: " ".join(f"{n} {v}" for n, v in d.items())),
            ("machine", lambda d: ", ".join(f"{v} {n}" for n, v in d.items())),
        )
    )
    facts = {
        "training shards": _names(training.train_data_pattern),
        "validation shards": _names(training.validation_data_pattern),
        "training videos": str(max(r.manifest["data"]["videos"] for r in begun)),
        "teacher": "; ".join(dict.fromkeys(r.networks.teacher for r in run_settings)),
        "epochs, batch": "; ".join(dict.fromkeys(budgets)),
        "versions": "; ".join(versions),
        "machines": "; ".join(machines),
    }
    rows = [[name, value] for name, value in facts.items()]
    return [document.Heading(2, "Conditions"), document.Table(["", "all runs"], rows)]


def summary(results: scores.Results) -> document.Table:
    """Teacher, Uniform-k and the best students in a small table: GAP / mAP, and shares.

    The share is that of the gap in GAP between Uniform-k and the teacher.
    """
    grid, teacher = results.grid, published.TEACHER
    skyline = texts.pair_text(results, teacher, None)
    rows = [[published.label(teacher), *[skyline] * len(grid.frames)]]
    methods = results.methods("1", "baseline", "student")
    for method in (m for m in methods if m in published.IN_SHORT):
        cells = []
        for k in grid.frames:
            text = texts.pair_text(results, method, k)
            share = results.share(method, k)
            if published.METHODS[method].kind == "student" and share is not None:
                text += f" ({share:.0%})"
            cells.append(text)
        rows.append([published.label(method), *cells])
    header = ["GAP / mAP (share of the gap closed)", *[f"k={k}" for k in grid.frames]]
    return document.Table(header, rows, [row[0] for row in rows[1:]])


def missing_in_summary(results: scores.Results) -> list[str]:
    """The runs of Table 1 that have no score yet."""
    return [
        plan.Cell(method, k, seed).name
        for method, k in results.grid.rows("1")
        for seed in results.grid.seeds
        if seed not in results.by_seed(method, k, "gap").index
    ]


def make_report(results: scores.Results) -> list[document.Block]:
    """The blocks of the report; figures of GAP against frames and cost come first."""
    sections = [t for t in _SECTIONS if t in results.grid.tables]
    blocks: list[document.Block] = [b for t in sections for b in _SECTIONS[t](results)]
    blocks += [*_all_runs(results), *_conditions(results)]
    plots = [
        plot for table in sections if table in _PLOTS for plot in _PLOTS[table](results)
    ]
    tables = [block for block in blocks if isinstance(block, document.Table)]
    return [*_introduction(results, tables), *plots, *blocks]
