"""The plots of the report as SVG, and the embedding of Figure 3.

Lines of a plot are a frame with a row per point: `method`, which determines label and
style, `gap`, its standard deviation `spread`, 0 if unknown, and the columns of x.
"""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tools.reproduction import published

_TEACHER_COLOR = "#222222"
_TRAINING_COLORS = {"Serial": "#c8501e", "Parallel": "#1f6fb4"}
# (color, marker, line): serial students are orange, parallel ones blue; darker for more
# terms in the loss.
_STYLES = {
    published.UNIFORM: ("#222222", "o", "--"),
    "baseline_random": ("#8a8a8a", "o", ":"),
    "baseline_first": ("#8a8a8a", "s", ":"),
    "baseline_middle": ("#8a8a8a", "D", ":"),
    "baseline_last": ("#8a8a8a", "^", ":"),
    "baseline_first_middle_last": ("#8a8a8a", "v", ":"),
    "parallel_rep": ("#8cbbe4", "o", "-"),
    "parallel_rep_ce": ("#3f88c8", "s", "-"),
    "parallel_rep_pred_ce": ("#0d4a85", "D", "-"),
    "serial_rep": ("#f3ac86", "o", "-"),
    "serial_rep_ce": ("#dd6f38", "s", "-"),
    "serial_rep_pred_ce": ("#97340a", "D", "-"),
    "serial_pred": ("#e3b23c", "^", "-"),
    "serial_pred_ce": ("#a67c14", "v", "-"),
    published.BEST_PRESET: ("#2a8c4a", "*", "-"),
}
# Markers of other series, in order.
_MARKERS = "osD^vP*X"
# Figure 3: (teacher, student), a dark and a light shade per class.
_SHADES = (
    ("#1f5f9e", "#9cc7ef"),
    ("#b04a10", "#f8b583"),
    ("#2a7d3c", "#9fdcab"),
    ("#a32035", "#f2a0ac"),
    ("#62489c", "#c6b4ea"),
)


def _new_figure(width: float, height: float):
    import matplotlib
    import matplotlib.figure

    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "yt8m_distill",  # Makes the file deterministic.
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "legend.frameon": False,
        }
    )
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _svg(figure) -> bytes:
    target = io.BytesIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(target, format="svg", metadata=no_metadata)
    return target.getvalue()


def _draw(axes, lines: pd.DataFrame, x: str, skyline: float | None = None) -> None:
    for n, (method, line) in enumerate(lines.groupby("method", sort=False)):
        line = line.sort_values(x, kind="stable")
        default = f"C{n % 10}", _MARKERS[n % len(_MARKERS)], "-"
        color, marker, linestyle = _STYLES.get(method, default)
        axes.errorbar(
            line[x],
            line["gap"],
            yerr=line["spread"] if line["spread"].any() else None,
            label=published.label(method),
            markersize=4,
            linewidth=1.2,
            capsize=2,
            color=color,
            marker=marker,
            linestyle=linestyle,
        )
    if skyline is not None:
        label = published.label(published.TEACHER)
        axes.axhline(skyline, color=_TEACHER_COLOR, linewidth=1, label=label)
    axes.set_ylabel("GAP")


def _close_up(lines: pd.DataFrame) -> pd.DataFrame:
    """Uniform-k and the students, without the other baselines, which are far below."""
    near = lines["method"].map(published.is_student)
    return lines[near | (lines["method"] == published.UNIFORM)]


def _shared_legend(figure, every_axes) -> None:
    """One legend for all axes, on the right."""
    handles = {}
    for axes in every_axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside right center")


def gap_against_frames(
    ours: pd.DataFrame, our_skyline: float | None, theirs: pd.DataFrame
) -> bytes:
    """GAP against `k`: these runs on the left, the published numbers on the right.

    Below each, a close-up of the students, Uniform-k and the teacher.
    """
    figure = _new_figure(10, 7.5)
    every_axes = figure.subplots(2, 2)
    their_skyline = published.score(published.TEACHER, None, "gap")
    sides = (ours, our_skyline, "these runs"), (theirs, their_skyline, "paper")
    for column, (lines, skyline, title) in enumerate(sides):
        above, below = every_axes[:, column]
        _draw(above, lines, "k", skyline)
        _draw(below, _close_up(lines), "k", skyline)
        above.set_title(title)
        below.set_xlabel("frames the student sees (k)")
        for axes in (above, below):
            axes.set_xticks(sorted(lines["k"].unique()))
    _shared_legend(figure, every_axes[0])
    return _svg(figure)


def gap_against_cost(lines: pd.DataFrame, teacher: tuple[float, float] | None) -> bytes:
    """GAP against `multiply_adds` on a logarithmic scale; close-up below.

    Args:
        lines: of the students and baselines.
        teacher: the skyline's multiply-adds and GAP.
    """
    figure = _new_figure(8, 7)
    every_axes = figure.subplots(2, 1)
    for axes, shown in zip(every_axes, (lines, _close_up(lines)), strict=True):
        _draw(axes, shown, "multiply_adds")
        if teacher:
            label = published.label(published.TEACHER)
            axes.plot(*teacher, "P", color=_TEACHER_COLOR, markersize=8, label=label)
        _make_logarithmic(axes)
    every_axes[1].set_xlabel("multiply-adds per video")
    _shared_legend(figure, every_axes)
    return _svg(figure)


def gap_against_mean_frames(lines: pd.DataFrame, skyline: float | None) -> bytes:
    """GAP of one student at a fixed k and with early exit, against frames `read`.

    Args:
        lines: of published.BUDGETS.
        skyline: the GAP of its teacher, or None.
    """
    figure = _new_figure(7, 4)
    axes = figure.subplots()
    _draw(axes, lines, "read", skyline)
    axes.set_xlabel("frames read per video, on average")
    _shared_legend(figure, [axes])
    return _svg(figure)


def _make_logarithmic(axes) -> None:
    import matplotlib.ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter())
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def gap_by_network(lines: pd.DataFrame) -> bytes:
    """GAP of each network against its `frames`, and against its `multiply_adds`."""
    figure = _new_figure(10, 4)
    every_axes = figure.subplots(1, 2, sharey=True)
    for axes, x, label in zip(
        every_axes,
        ("frames", "multiply_adds"),
        ("frames to compute per video", "multiply-adds per video"),
        strict=True,
    ):
        _draw(axes, lines, x)
        axes.set_xlabel(label)
    _make_logarithmic(every_axes[1])
    _shared_legend(figure, every_axes[:1])
    return _svg(figure)


def gap_by_epoch(panels: dict[str, dict[str, Sequence[float]]]) -> bytes:
    """Figure 2: GAP after each epoch.

    Args:
        panels: student loss → line (`Serial teacher`, `Parallel student`, ...) →
            GAP after epochs 1, 2, ...
    """
    figure = _new_figure(3.4 * len(panels) + 1.6, 3.4)
    every_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (loss, lines) in zip(every_axes, panels.items(), strict=True):
        for name, values in lines.items():
            training, role = name.split()
            # Wide, so that the line of a parallel teacher does not hide it.
            width = 2.8 if (training, role) == ("Serial", "teacher") else 1.2
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=_TRAINING_COLORS[training],
                linestyle="-" if role == "student" else "--",
                marker="o" if role == "student" else "s",
                markersize=4,
                linewidth=width,
                label=name,
            )
        axes.set(xlabel="epoch", title=loss)
        axes.xaxis.get_major_locator().set_params(integer=True)
    every_axes[0].set_ylabel("validation GAP")
    _shared_legend(figure, every_axes)
    return _svg(figure)


def tsne(pair: np.ndarray) -> np.ndarray:
    """t-SNE of both networks' encodings in one plane.

    Args:
        pair: [2, M, E]: the teacher's encodings and the student's.

    Returns:
        [2, M, 2].
    """
    import sklearn.decomposition
    import sklearn.manifold

    both = pair.reshape(-1, pair.shape[-1])
    size = min(50, *both.shape)
    both = sklearn.decomposition.PCA(size, random_state=0).fit_transform(both)
    plane = sklearn.manifold.TSNE(
        perplexity=min(30, (len(both) - 1) / 3), init="pca", random_state=0
    ).fit_transform(both)
    return plane.reshape(*pair.shape[:2], 2)


def embedding(points: np.ndarray, classes: Sequence[int]) -> bytes:
    """Figure 3: dark shades are the teacher's encodings, light ones the student's.

    Args:
        points: [2, M, 2], teacher first.
        classes: [M].
    """
    figure = _new_figure(7.5, 5)
    axes = figure.subplots()
    classes = np.asarray(classes)
    for label, shades in zip(dict.fromkeys(classes.tolist()), _SHADES, strict=False):
        of_class = classes == label
        # The student's points are smaller, so that both are visible where they overlap.
        for role, size, shade, plane in zip(
            ("teacher", "student"), (26, 8), shades, points, strict=True
        ):
            name = f"class {label}, {role}"
            axes.scatter(*plane[of_class].T, s=size, color=shade, label=name)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.legend(loc="outside right center")
    return _svg(figure)


def write_projector(
    folder: pathlib.Path, pair: np.ndarray, classes: np.ndarray, ids: Sequence[str]
) -> None:
    """Writes the files for viewing the encodings in TensorBoard's projector.

    Args:
        folder: TensorBoard's --logdir.
        pair: [2, M, E], teacher first.
        classes, ids: [M].
    """
    both = pair.reshape(-1, pair.shape[-1])
    np.savetxt(folder / "tensors.tsv", both, fmt="%.5g", delimiter="\t")
    rows = [
        f"{' '.join(name.split())}\t{label}\t{role}"
        for role in ("teacher", "student")
        for name, label in zip(ids, classes, strict=True)
    ]
    text = "\n".join(["video\tclass\tnetwork", *rows]) + "\n"
    (folder / "metadata.tsv").write_text(text)
    (folder / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        '  tensor_name: "encodings"\n'
        '  tensor_path: "tensors.tsv"\n'
        '  metadata_path: "metadata.tsv"\n'
        "}\n"
    )
