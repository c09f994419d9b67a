"""The report: the paper's tables and figures with the results of a grid's runs.

All our numbers come from manifests, metrics and measurements. Missing numbers are "–".
"""

import functools

from tools.reproduction import (
    document,
    plan,
    runs,
    scores,
    tables,
    tables_of_costs,
)

# In order of the report. plan.LATER has no section of its own.
_SECTIONS = {
    "1": tables.table_1,
    "2": tables.table_2,
    "3": tables.table_3,
    "4": tables_of_costs.table_4,
    "figure2": tables.figure_2,
    "figure3": tables.figure_3,
    plan.ABLATION: tables.ablation,
    plan.BUDGETS: tables_of_costs.budgets,
    **{
        table: functools.partial(tables_of_costs.by_network, table=table)
        for table in plan.BY_NETWORK
    },
}
_PLOTS = {
    "1": tables.plots_of_table_1,
    plan.BUDGETS: tables_of_costs.plots_of_budgets,
    plan.FAMILIES: tables_of_costs.plots_of_families,
}


def _state(run: runs.Run) -> str:
    """`finished`, `3 of 6 epochs`, `not begun`."""
    if not run.begun:
        return "not begun"
    if run.finished:
        return "finished"
    planned = run.planned
    done = sum(run.epochs_done(phase.name) for phase in planned)
    return f"{done} of {sum(phase.epochs for phase in planned)} epochs"


def _all_runs(results: scores.Results) -> list[document.Block]:
    header = ["run", "state", "best epoch", "validation GAP", "mAP", "test GAP", "mAP"]
    rows = []
    for cell in results.grid.cells():
        run = results.archive.run(cell)
        best, test = run.validation(cell.role), run.evaluations.get(cell.role, {})
        row = [cell.name, _state(run), document.number(best.get("epoch"), "d")]
        for numbers in (best, test):
            row += [document.number(numbers.get(metric)) for metric in tables.BOTH]
        rows.append(row)
    return [document.Heading(2, "All runs"), document.Table(header, rows)]


def _names(pattern: str) -> str:
    return runs.file_names(pattern).replace(",", ", ")


def _introduction(
    results: scores.Results, shown: list[document.Table]
) -> list[document.Block]:
    """The source of the numbers; explains only what the tables contain."""
    cells = results.grid.cells()
    finished = sum(results.archive.run(cell).finished for cell in cells)
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
    if any(name.startswith(document.PAPER) for t in shown for name in t.header):
        text += " The columns `paper` are the published numbers, on YouTube-8M."
    if any(document.MISSING in cell for t in shown for row in t.rows for cell in row):
        text += f" {document.MISSING} marks what is missing."
    title = "Efficient video classification using fewer frames"
    return [document.Heading(1, title), document.Text(text)]


def _conditions(results: scores.Results) -> list[document.Block]:
    """The conditions that all runs share."""
    runs_of_cells = [results.archive.run(cell) for cell in results.grid.cells()]
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


def missing_in_summary(results: scores.Results) -> list[str]:
    """The runs of Table 1 that have no score yet."""
    return [
        plan.Cell(method, k, seed).name
        for method, k in results.grid.rows("1")
        for seed in results.grid.seeds
        if seed not in results.by_seed(method, k).index
    ]


def make_report(results: scores.Results) -> list[document.Block]:
    """The blocks of the report; figures of GAP against frames and cost come first."""
    sections = [t for t in _SECTIONS if t in results.grid.tables]
    blocks: list[document.Block] = [b for t in sections for b in _SECTIONS[t](results)]
    blocks += [*_all_runs(results), *_conditions(results)]
    plots = [
        plot for table in sections if table in _PLOTS for plot in _PLOTS[table](results)
    ]
    shown = [block for block in blocks if isinstance(block, document.Table)]
    return [*_introduction(results, shown), *plots, *blocks]
