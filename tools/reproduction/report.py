"""The report: the paper's tables and figures with the numbers of a grid's runs.

Every number of ours comes from the manifests, metrics and measurements in output_dir.
What is missing shows as "–".
"""

import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from tools.reproduction import (
    archive,
    compare,
    cost,
    document,
    figures,
    measures,
    plan,
    published,
    runs,
)
from yt8m_distill.training import modes

MISSING = "–"
TEACHER, STUDENT = "teacher", "student"


def _role(k: int | None) -> str:
    """The network whose scores a cell of k frames shows."""
    return TEACHER if k is None else STUDENT


class Results:
    """The scores of a grid.

    Args:
        grid: what is reported.
        output_dir: where its runs are.
        test_data_pattern: take eval.py's numbers on these shards; empty: the best
            epoch's on the validation shards.
        known: runs and measurements that stand in where output_dir has none.
    """

    def __init__(
        self,
        grid: plan.Grid,
        output_dir: str,
        test_data_pattern: str = "",
        known: archive.Archive | None = None,
    ):
        self.grid = grid
        self.output_dir = pathlib.Path(output_dir)
        self.test_data_pattern = test_data_pattern
        self.known = known or archive.Archive()
        self._runs: dict[plan.Cell, runs.Run] = {}

    def run(self, cell: plan.Cell) -> runs.Run:
        """A cell's run, which need not exist."""
        if cell not in self._runs:
            found = runs.Run(plan.train_dir(str(self.output_dir), cell))
            if not found.finished:
                found = self.known.runs.get(cell.name, found)
            self._runs[cell] = found
        return self._runs[cell]

    def times(self) -> dict[str, dict]:
        """Cell's name → what measures.time_network found."""
        path = self.output_dir / measures.TIMING
        times = json.loads(path.read_text()) if path.is_file() else {}
        return {**self.known.times, **times}

    def points(self) -> dict | None:
        """What measures.embed found."""
        path = self.output_dir / figures.EMBEDDING / figures.POINTS
        return json.loads(path.read_text()) if path.is_file() else self.known.points

    def changed(self) -> dict[str, tuple[float, float]]:
        """Cells whose run here gave another GAP than the one that was known.

        A known teacher is trained again if a student that is missing needs it; the
        other students are those of the one before.

        Returns:
            Cell's name → GAP of the known run and of the one here, best epochs on the
            validation shards.
        """
        found = {}
        for cell in self.grid.cells():
            known, role = self.known.runs.get(cell.name), _role(cell.k)
            if known is None or self.run(cell) is known:
                continue
            before, now = (r.validation(role)["gap"] for r in (known, self.run(cell)))
            if not math.isclose(before, now, rel_tol=1e-6):
                found[cell.name] = (before, now)
        return found

    def to_archive(self) -> archive.Archive:
        """All that is finished or was known."""
        found = {cell.name: self.run(cell) for cell in self.grid.cells()}
        finished = {name: run for name, run in found.items() if run.finished}
        return archive.Archive(
            {**self.known.runs, **finished}, self.times(), self.points()
        )

    def runs(self, method: str, k: int | None) -> list[runs.Run]:
        """The runs of a method under all seeds."""
        return [self.run(plan.Cell(method, k, seed)) for seed in self.grid.seeds]

    def scores(
        self, method: str, k: int | None, metric: str, role: str = ""
    ) -> list[float]:
        """A metric, `gap` or `map`, of the finished runs of a method.

        Args:
            role: of another network than the cell's; its validation scores.
        """
        return list(self.by_seed(method, k, metric, role).values())

    def by_seed(
        self, method: str, k: int | None, metric: str, role: str = ""
    ) -> dict[int, float]:
        """Seed → score, of those that are finished; see `scores`."""
        of_cell = _role(k)
        found = {
            seed: run.evaluation(of_cell, self.test_data_pattern)
            if self.test_data_pattern and not role
            else run.validation(role or of_cell)
            for seed, run in zip(self.grid.seeds, self.runs(method, k), strict=True)
        }
        return {seed: numbers[metric] for seed, numbers in found.items() if numbers}

    def mean(self, method: str, k: int | None, metric: str = "gap") -> float | None:
        """The mean over seeds, or None."""
        return compare.mean(self.scores(method, k, metric))

    def network(self, method: str, k: int | None) -> dict | None:
        """What the manifests say of a method's network, or None."""
        role = _role(k)
        found = (run.network(role) for run in self.runs(method, k))
        return next((network for network in found if network), None)


def spread_text(values: Sequence[float]) -> str:
    """`0.803 ± 0.002`: mean and sample standard deviation; one value has none."""
    if not values:
        return MISSING
    text = f"{statistics.fmean(values):.3f}"
    if len(values) == 1:
        return text
    return f"{text} ± {compare.deviation(values):.3f}"


def number_text(value: float | None, form: str = ".3f") -> str:
    """A number, or the mark of a missing one."""
    return MISSING if value is None else format(value, form)


def count_text(value: float | None) -> str:
    """`5.65 G`, `29.5 M`, `812`: three digits and a unit prefix."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _published(method: str, k: int | None, metric: str) -> float | None:
    score = published.score(method, k)
    return getattr(score, metric) if score else None


def _score_text(results: Results, method: str, k: int | None, metric: str) -> str:
    """Mean and spread of ours; how many seeds, where some are missing."""
    scores = results.scores(method, k, metric)
    all_there = not scores or len(scores) == len(results.grid.seeds)
    return spread_text(scores) + ("" if all_there else f" (n={len(scores)})")


def _pair_text(results: Results, method: str, k: int | None) -> str:
    """`GAP / mAP` of ours."""
    gap, mean_ap = (_score_text(results, method, k, m) for m in ("gap", "map"))
    return f"{gap} / {mean_ap}"


def _published_pair(method: str, k: int | None) -> str:
    gap = number_text(_published(method, k, "gap"))
    return f"{gap} / {number_text(_published(method, k, 'map'))}"


def _methods(results: Results, table: str, *kinds: str) -> list[str]:
    """The methods of a table's rows, in its order, each once."""
    names = dict.fromkeys(method for method, _ in results.grid.rows(table))
    kind = {name: m.kind for name, m in published.METHODS.items()}
    return [name for name in names if not kinds or kind.get(name) in kinds]


def _beside(k: int, ours: str, theirs: str) -> list[str]:
    """The cells of one k: ours, and the paper's where it has this k."""
    return [ours, theirs] if k in published.FRAMES else [ours]


def _frames_header(frames: Sequence[int]) -> list[str]:
    columns = (_beside(k, f"k={k}", document.PAPER) for k in frames)
    return ["model", *itertools.chain.from_iterable(columns)]


# ------------------------------------------------------------------------ Table 1


def table_1(results: Results) -> list[document.Block]:
    """Table 1, and what it is to show: shares of the gap, order, GAP against k."""
    frames = results.grid.frames
    blocks: list[document.Block] = [
        document.Heading(2, "Table 1: k frames, and all of them")
    ]
    for metric, name in (("gap", "GAP"), ("map", "mAP")):
        blocks += [document.Heading(3, name), _table_of_scores(results, metric)]
    last = "baseline_last"
    if last in _methods(results, "1") and set(frames) & set(published.FRAMES):
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
        *_plots(results),
    ]
    return blocks


def _table_of_scores(results: Results, metric: str) -> document.Table:
    frames = results.grid.frames
    rows = []
    teacher = published.TEACHER
    if (teacher, None) in results.grid.rows("1"):
        # The teacher sees all frames: the same number whatever k is.
        ours = _score_text(results, teacher, None, metric)
        theirs = number_text(_published(teacher, None, metric))
        cells = (_beside(k, ours, theirs) for k in frames)
        rows.append([published.label(teacher), *itertools.chain.from_iterable(cells)])
    for method in _methods(results, "1", "baseline", "student"):
        row = [published.label(method)]
        for k in frames:
            ours = _score_text(results, method, k, metric)
            row += _beside(k, ours, number_text(_published(method, k, metric)))
        rows.append(row)
    return document.Table(_frames_header(frames), rows)


def _share_of(
    results: Results, method: str, k: int, seeds: Sequence[int] | None = None
) -> float | None:
    """Of the means over the seeds that student, Uniform-k and teacher all have.

    Args:
        seeds: of these alone; None: of all.
    """
    rows = ((method, k), (published.UNIFORM, k), (published.TEACHER, None))
    return _share(*(results.by_seed(*row, "gap") for row in rows), seeds=seeds)


def _share(
    student: Mapping[int, float],
    uniform: Mapping[int, float],
    teacher: Mapping[int, float],
    seeds: Sequence[int] | None = None,
) -> float | None:
    """Of the means over the seeds that all three have, among `seeds` if given."""
    common = set(student) & set(uniform) & set(teacher)
    seeds = common if seeds is None else common.intersection(seeds)
    found = (student, uniform, teacher)
    return compare.gap_share(*(compare.mean([f[s] for s in seeds]) for f in found))


def _published_share(method: str, k: int) -> float | None:
    return compare.gap_share(
        _published(method, k, "gap"),
        _published(published.UNIFORM, k, "gap"),
        published.SKYLINE.gap,
    )


def _table_of_shares(results: Results) -> document.Table:
    frames = results.grid.frames
    rows = []
    for method in _methods(results, "1", "student"):
        row = [published.label(method)]
        for k in frames:
            ours = number_text(_share_of(results, method, k), ".2f")
            row += _beside(k, ours, number_text(_published_share(method, k), ".2f"))
        rows.append(row)
    return document.Table(_frames_header(frames), rows)


def _order_of_methods(results: Results) -> list[document.Block]:
    """Whether the methods come in the order of the paper, by GAP at each k."""
    methods = _methods(results, "1", "baseline", "student")
    rows, contrary = [], []
    for k in results.grid.frames:
        ours = {m: results.by_seed(m, k, "gap") for m in methods}
        theirs = {m: published.gap_for_order(m, k) for m in methods}
        theirs = {m: gap for m, gap in theirs.items() if gap is not None}
        found = compare.order(ours, theirs)
        agreeing = sum(pair.as_published for pair in found.pairs)
        compared = [m for m in methods if ours[m] and m in theirs]
        rows.append(
            [
                f"k={k}",
                str(len(compared)),
                number_text(found.correlation, ".2f"),
                str(len(found.pairs)),
                str(agreeing),
            ]
        )
        contrary += [
            [
                f"k={k}",
                f"{published.label(pair.better)} > {published.label(pair.worse)}",
                ", ".join(
                    _score_text(results, m, k, "gap") for m in (pair.better, pair.worse)
                ),
                f"{theirs[pair.better]:.3f}, {theirs[pair.worse]:.3f}",
            ]
            for pair in found.pairs
            if not pair.as_published
        ]
    header = ["", "methods", "rank correlation", "clear pairs", "as in the paper"]
    blocks: list[document.Block] = [
        document.Heading(3, "The order of the methods, by GAP"),
        document.Text(
            "Rank correlation is Spearman's, with the published order, of the means "
            "over the seeds that all methods have. A pair of methods is clear if their "
            "mean difference over the seeds that both have is above its sample "
            "standard deviation; with one such seed, if it is above "
            f"{compare.OF_ONE_SEED}. Pairs published as equal are left out. At a k "
            "that the paper has not, its order is that of the means over all its k."
        ),
        document.Table(header, rows),
    ]
    if contrary:
        blocks += [
            document.Text("Clear pairs whose order is not the paper's:"),
            document.Table(["", "pair", "GAP", document.PAPER], contrary),
        ]
    return blocks


def _series(results: Results, method: str, costs: bool) -> figures.Series:
    """GAP at each k, against k or multiply-adds; only what has run."""
    points = []
    for k in results.grid.frames:
        gaps = results.scores(method, k, "gap")
        network = results.network(method, k)
        if gaps and network:
            x = sum(network["multiply_adds"].values()) if costs else k
            points.append((x, statistics.fmean(gaps), compare.deviation(gaps)))
    return figures.Series(method, *zip(*points, strict=True) if points else ((),) * 3)


def _plots(results: Results) -> list[document.Block]:
    methods = _methods(results, "1", "baseline", "student")
    skyline = results.mean(published.TEACHER, None)
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
    return [
        document.Figure(
            "gap_against_frames",
            "GAP against the frames that the student sees; below, the students, "
            "Uniform-k and the teacher alone.",
            figures.gap_against_frames(against_k, skyline, theirs),
        ),
        document.Figure(
            "gap_against_cost",
            "GAP against multiply-adds of a video of full length; below, the students, "
            "Uniform-k and the teacher alone.",
            figures.gap_against_cost(against_cost, point),
        ),
    ]


# ------------------------------------------------------------------- Tables 2 and 3


def table_2(results: Results) -> list[document.Block]:
    """Table 2: intermediate against final encodings."""
    k = results.grid.largest
    header = ["model", "intermediate", document.PAPER, "final", document.PAPER]
    rows = []
    for method in published.TABLE_2:
        row = [published.label(method)]
        for name in (method + published.INTERMEDIATE, method):
            row += [_pair_text(results, name, k), _published_pair(name, k)]
        rows.append(row)
    return [
        document.Heading(2, f"Table 2: intermediate and final matching, k={k}"),
        document.Text("GAP / mAP."),
        document.Table(header, rows),
    ]


def _percent_method(name: str, percent: int) -> str:
    return f"{name}_{percent}_percent"


def table_3(results: Results) -> list[document.Block]:
    """Table 3: a share of the training data, for teacher and student alike."""
    k = results.grid.largest
    columns = [c for p in published.PERCENTS for c in (f"{p} %", document.PAPER)]
    rows = []
    for name in published.TABLE_3:
        row = [name.capitalize()]
        for percent in published.PERCENTS:
            method = _percent_method(name, percent)
            row += [_pair_text(results, method, k), _published_pair(method, k)]
        rows.append(row)
    shares = ["share of the gap closed"]
    for percent in published.PERCENTS:
        serial, uniform = (_percent_method(n, percent) for n in published.TABLE_3)
        share = _share(
            results.by_seed(serial, k, "gap", STUDENT),
            results.by_seed(uniform, k, "gap", STUDENT),
            results.by_seed(serial, k, "gap", TEACHER),
        )
        shares += [number_text(share, ".2f"), MISSING]
    return [
        document.Heading(2, f"Table 3: less training data, k={k}"),
        document.Text(
            "GAP / mAP. The share is that of the mean GAPs on the validation shards, "
            "with the teacher that was trained on as much data."
        ),
        document.Table(["model", *columns], [*rows, shares]),
    ]


# ------------------------------------------------------------------------ Table 4


def table_4(results: Results) -> list[document.Block]:
    """Table 4: what the networks cost, by formula and by the clock."""
    rows = [(published.TEACHER, None)]
    rows += [(published.MAIN_STUDENT, k) for k in results.grid.frames]
    return [
        document.Heading(2, "Table 4: cost"),
        document.Text(
            "Parameters and multiply-adds of a video of full length. The paper's "
            "FLOPs count the lower LSTM alone, on the visual feature (here: the first "
            "one); `its frames` is the number of frames that gives the published "
            "figure. The other columns count all products."
        ),
        _cost_table(results, rows),
        document.Heading(3, "Time"),
        document.Text(
            "One network at a time: model, a batch in memory, median of "
            f"{measures.ROUNDS}; end to end, from the TFRecord shards, which stand in "
            "the system's cache by then, to the metrics, over at most "
            f"{measures.TIMED_BATCHES} batches, measured once. The paper's hours are "
            "those of the validate set on K80s, end to end."
        ),
        *_timing_conditions(results, rows),
        _time_table(results, rows),
    ]


def _model_name(k: int | None) -> str:
    if k is None:
        return published.label(published.TEACHER)
    return f"k={k}"


def _paper_account(results: Results, method: str, k: int | None) -> float | None:
    """The cost of our network as the paper counts it, in 1e9."""
    network = results.network(method, k)
    begun = [run for run in results.runs(method, k) if run.begun]
    if not network or not begun:
        return None
    size = cost.lstm_size(begun[0].settings, _role(k))
    return cost.paper_account(*size).billions(network["frames"]) if size else None


def _cost_table(results: Results, rows: Sequence[tuple]) -> document.Table:
    header = ["model", "frames", "GAP", "parameters", "lower", "upper", "classifier"]
    header += ["total", "of the teacher's", "by the paper's account", document.PAPER]
    header += ["its frames"]
    teacher = results.network(published.TEACHER, None)
    total = sum(teacher["multiply_adds"].values()) if teacher else None
    lines = []
    for method, k in rows:
        network = results.network(method, k) or {}
        parts = network.get("multiply_adds", {})
        whole = sum(parts.values()) if parts else None
        rest = {n: v for n, v in parts.items() if n not in ("lower", "upper")}
        account = _paper_account(results, method, k)
        theirs = published.TABLE_4.get(k)
        lines.append(
            [
                _model_name(k),
                str(network.get("frames", MISSING)),
                _score_text(results, method, k, "gap"),
                count_text(network.get("parameters")),
                count_text(parts.get("lower")),
                count_text(parts.get("upper")),
                count_text(sum(rest.values()) if rest else None),
                count_text(whole),
                number_text(whole / total if whole and total else None, ".1%"),
                count_text(account * 1e9 if account else None),
                f"{theirs.billions:.3f} G" if theirs else MISSING,
                str(cost.frames_behind(theirs.billions)) if theirs else MISSING,
            ]
        )
    return document.Table(header, lines)


def _rates(results: Results, method: str, k: int | None) -> dict:
    """What measures.time_network found of a network, or nothing."""
    return results.times().get(plan.Cell(method, k, results.grid.seeds[0]).name, {})


def _timing_conditions(results: Results, rows: Sequence[tuple]) -> list[document.Block]:
    """Under what the times were measured, as far as they say so."""
    found = [r for r in (_rates(results, *row) for row in rows) if "machine" in r]
    conditions = {
        f"{rates['machine']}, batches of {rates['batch_size']}, "
        + (
            "by an index, with which a student reads none of the frames that it does "
            "not see"
            if rates["uses_index"]
            else "whole records, without an index"
        ): None
        for rates in found
    }
    return [document.Text(f"Measured on: {'; '.join(conditions)}.")] if found else []


def _time_table(results: Results, rows: Sequence[tuple]) -> document.Table:
    header = ["model", "model: ms a video", "videos/s", "end to end: ms a video"]
    header += ["videos/s", "of the teacher's", f"{document.PAPER}, hours"]
    header += [f"{document.PAPER}, of the teacher's"]
    teacher = _rates(results, published.TEACHER, None)
    lines = []
    for method, k in rows:
        rates = _rates(results, method, k)
        model = rates.get("model_videos_per_second")
        whole = rates.get("videos_per_second")
        theirs = published.TABLE_4.get(k)
        # Two machines have nothing in common that could be divided.
        share = None
        if teacher and whole and teacher.get("machine") == rates.get("machine"):
            share = teacher["videos_per_second"] / whole
        hours = published.TABLE_4[None].hours
        lines.append(
            [
                _model_name(k),
                number_text(1000 / model if model else None, ".3g"),
                number_text(model, ".0f"),
                number_text(1000 / whole if whole else None, ".3g"),
                number_text(whole, ".0f"),
                number_text(share, ".0%"),
                f"{theirs.hours:.2f} h" if theirs else MISSING,
                f"{theirs.hours / hours:.0%}" if theirs else MISSING,
            ]
        )
    return document.Table(header, lines)


# ----------------------------------------------------------------------- ablation


def ablation(results: Results) -> list[document.Block]:
    """What each part of the best preset is worth."""
    k = results.grid.middle
    cells = results.grid.rows(plan.ABLATION)
    # Shares can be compared only if they are of the same seeds.
    finished = [set(results.by_seed(*cell, "gap")) for cell in cells]
    seeds = sorted(set.intersection(*filter(None, finished))) if any(finished) else []
    rows = []
    for (method, frames), of_cell in zip(cells, finished, strict=True):
        gap, mean_ap = (
            [scores[seed] for seed in seeds if seed in scores]
            for scores in (results.by_seed(method, frames, m) for m in ("gap", "map"))
        )
        share = None
        if frames is not None and of_cell:
            share = _share_of(results, method, frames, seeds)
        row = [published.label(method), spread_text(gap), spread_text(mean_ap)]
        rows.append([*row, number_text(share, ".2f")])
    return [
        document.Heading(2, f"Ablation of the best preset, k={k}"),
        document.Text(
            "What `--preset=best` owes to its parts, and what more epochs give to "
            "others. The share is that of the gap between Uniform-k and the teacher, "
            "of the mean GAPs. All rows are means over the seeds that each of them "
            f"has: {', '.join(map(str, seeds)) or 'none'}."
        ),
        document.Table(["model", "GAP", "mAP", "share of the gap closed"], rows),
    ]


# ------------------------------------------------------------------------ figures


def _mean_curve(results: Results, method: str, k: int | None, role: str):
    """Mean validation GAP after each epoch that all runs with an epoch have."""
    curves = [[e["gap"] for e in r.epochs(role)] for r in results.runs(method, k)]
    curves = [curve for curve in curves if curve]
    return [statistics.fmean(gaps) for gaps in zip(*curves, strict=False)]


def figure_2(results: Results) -> list[document.Block]:
    """Figure 2: GAP by epoch, serial and parallel, teacher and student."""
    k = results.grid.largest
    skyline = _mean_curve(results, published.TEACHER, None, TEACHER)
    panels = {}
    for method in published.TABLE_2:
        training = published.METHODS[method].training
        loss = published.label(method).removeprefix(f"{training} ")
        lines = panels.setdefault(loss, {"Serial teacher": skyline})
        for role in (TEACHER, STUDENT):
            # A serial student's teacher is the skyline.
            if training == "Parallel" or role == STUDENT:
                lines[f"{training} {role}"] = _mean_curve(results, method, k, role)
    heading = document.Heading(2, f"Figure 2: GAP by epoch, k={k}")
    if not any(curve for lines in panels.values() for curve in lines.values()):
        return [heading, document.Text(MISSING)]
    return [
        heading,
        document.Figure(
            "figure2",
            "Validation GAP after each epoch, mean over seeds. A serial student begins "
            "when its teacher has ended: its epoch 1 comes after the teacher's last. "
            "With the loss rep alone, the epochs of fine-tuning stand at the end.",
            figures.gap_by_epoch(panels),
        ),
    ]


def figure_3(results: Results) -> list[document.Block]:
    """Figure 3: encodings of teacher and student in one plane."""
    heading = document.Heading(2, "Figure 3: encodings of teacher and student")
    content = results.points()
    if content is None:
        return [heading, document.Text(MISSING)]
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

# In this order. plan.LATER has none of its own.
_SECTIONS = {
    "1": table_1,
    "2": table_2,
    "3": table_3,
    "4": table_4,
    "figure2": figure_2,
    "figure3": figure_3,
    plan.ABLATION: ablation,
}


def _state(run: runs.Run) -> str:
    """`finished`, `3 of 6 epochs`, `not begun`."""
    if not run.begun:
        return "not begun"
    if run.finished:
        return "finished"
    phases = modes.phases(run.settings)
    done = sum(run.epochs_done(phase) for phase in phases)
    return f"{done} of {sum(phase.epochs for phase in phases)} epochs"


def _all_runs(results: Results) -> list[document.Block]:
    header = ["run", "state", "best epoch", "validation GAP", "mAP", "test GAP", "mAP"]
    rows = []
    for cell in results.grid.cells():
        run = results.run(cell)
        role = _role(cell.k)
        best = run.validation(role) or {}
        test = run.evaluation(role, results.test_data_pattern) or {}
        row = [cell.name, _state(run), str(best.get("epoch", MISSING))]
        for numbers in (best, test):
            row += [number_text(numbers.get(metric)) for metric in ("gap", "map")]
        rows.append(row)
    blocks: list[document.Block] = [
        document.Heading(2, "All runs"),
        document.Table(header, rows),
    ]
    changed = [
        [name, number_text(before, ".6f"), number_text(now, ".6f")]
        for name, (before, now) in results.changed().items()
    ]
    if changed:
        blocks += [
            document.Text(
                "Trained anew with another result than the known run; what was known "
                "of its students is that of the one before:"
            ),
            document.Table(["run", "validation GAP, known", "now"], changed),
        ]
    return blocks


def _names(pattern: str) -> str:
    return archive.file_names(pattern).replace(",", ", ")


def _introduction(results: Results) -> list[document.Block]:
    """Where the numbers come from."""
    test_data_pattern = results.test_data_pattern
    cells = results.grid.cells()
    begun = [results.run(cell) for cell in cells if results.run(cell).begun]
    finished = sum(run.finished for run in begun)
    seeds = ", ".join(map(str, results.grid.seeds))
    source = (
        f"of the test shards {_names(test_data_pattern)}, at the best epoch by "
        "validation GAP"
        if test_data_pattern
        else "of the best epoch by GAP on the validation shards"
    )
    text = (
        f"{finished} of {len(cells)} runs are finished; seeds {seeds}. Scores are "
        f"those {source}, as mean ± sample standard deviation over seeds. The columns "
        "`paper`, at the k that the paper has, are the published ones, on YouTube-8M. "
        "– marks what is missing."
    )
    blocks = [
        document.Heading(1, "Efficient video classification using fewer frames"),
        document.Text(text),
    ]
    if not begun:
        return blocks
    first = begun[0]
    training, networks = first.settings.training, first.settings.networks
    versions = [
        " ".join(f"{name} {v}" for name, v in run.manifest["versions"].items())
        for run in begun
    ]
    machines = [
        ", ".join(f"{v} {name}" for name, v in run.manifest["machine"].items())
        for run in begun
    ]
    facts = {
        "training shards": _names(training.train_data_pattern),
        "validation shards": _names(training.validation_data_pattern),
        "training videos": str(max(r.manifest["data"]["videos"] for r in begun)),
        "teacher": networks.teacher,
        "epochs, batch": f"{training.num_epochs}, {training.batch_size}",
        "versions": "; ".join(dict.fromkeys(versions)),
        "machines": "; ".join(dict.fromkeys(machines)),
    }
    rows = [[name, value] for name, value in facts.items()]
    return [*blocks, document.Table(["", "all runs"], rows)]


def summary(results: Results) -> document.Table:
    """Teacher, Uniform-k and the students in one small table: GAP / mAP, and shares.

    The share is that of the gap in GAP between Uniform-k and the teacher.
    """
    grid, teacher = results.grid, published.TEACHER
    skyline = _pair_text(results, teacher, None)
    rows = [[published.label(teacher), *[skyline] * len(grid.frames)]]
    for method in _methods(results, "1", "baseline", "student"):
        cells = []
        for k in grid.frames:
            text = _pair_text(results, method, k)
            share = _share_of(results, method, k)
            if published.METHODS[method].kind == "student" and share is not None:
                text += f" ({share:.0%})"
            cells.append(text)
        rows.append([published.label(method), *cells])
    header = ["GAP / mAP (share of the gap closed)", *[f"k={k}" for k in grid.frames]]
    return document.Table(header, rows)


def missing_in_summary(results: Results) -> list[str]:
    """The runs of Table 1 that have no score yet."""
    return [
        plan.Cell(method, k, seed).name
        for method, k in results.grid.rows("1")
        for seed in results.grid.seeds
        if seed not in results.by_seed(method, k, "gap")
    ]


def make_report(results: Results) -> list[document.Block]:
    """The blocks of the report."""
    sections = (
        make(results)
        for table, make in _SECTIONS.items()
        if table in results.grid.tables
    )
    return [
        *_introduction(results),
        *(block for section in sections for block in section),
        *_all_runs(results),
    ]
