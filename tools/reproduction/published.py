"""The paper's numbers, the only figures of a report that are typed by hand.

Methods are named after their flagfiles. Scores are GAP and mAP on YouTube-8M's validate
set; k is the number of frames that the student reads.
"""

import statistics
from typing import NamedTuple

FRAMES = (6, 10, 15, 20, 30)
# k of Tables 2 and 3; a grid without it uses its largest k instead.
LARGEST_K = 30


class Score(NamedTuple):
    """GAP and mAP, both in [0, 1]; mAP is None if it was not published."""

    gap: float
    map: float | None


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        label: name in the report.
        kind: `teacher`, `baseline` or `student`.
        training: `Serial`, `Parallel`, or empty.
    """

    label: str
    kind: str
    training: str = ""


class Cost(NamedTuple):
    """A row of Table 4.

    Attributes:
        hours: of evaluating the validate set on K80s.
        billions: the "FLOPs": multiply-adds of the lower LSTM alone, in 1e9.
    """

    hours: float
    billions: float


def _scores(text: str) -> tuple[Score, ...]:
    """`".715/.266 .722"` → scores; the mAP after the slash is optional."""
    pairs = [word.partition("/") for word in text.split()]
    return tuple(Score(float(a), float(b) if b else None) for a, _, b in pairs)


def _row(text: str) -> dict[int, Score]:
    return dict(zip(FRAMES, _scores(text), strict=True))


# Prefix of the names of networks' flagfiles: network_yt8m_NetVLAD.
NETWORK = "network_"
TEACHER = "teacher_skyline"
UNIFORM = "baseline_uniform"
# The student of Table 4 and Figure 3: the paper's best one.
MAIN_STUDENT = "serial_rep_pred_ce"
BEST_PRESET = "preset_best"

# Rows of the small table, below the teacher's.
IN_SHORT = (UNIFORM, "parallel_rep_pred_ce", MAIN_STUDENT, BEST_PRESET)

METHODS = {
    TEACHER: Method("Teacher-Skyline", "teacher"),
    UNIFORM: Method("Uniform-k", "baseline"),
    "baseline_random": Method("Random-k", "baseline"),
    "baseline_first": Method("First-k", "baseline"),
    "baseline_middle": Method("Middle-k", "baseline"),
    "baseline_last": Method("Last-k", "baseline"),
    "baseline_first_middle_last": Method("First-Middle-Last-k", "baseline"),
    "parallel_rep": Method("Parallel rep", "student", "Parallel"),
    "parallel_rep_ce": Method("Parallel rep, ce", "student", "Parallel"),
    "parallel_rep_pred_ce": Method("Parallel rep, pred, ce", "student", "Parallel"),
    "serial_rep": Method("Serial rep", "student", "Serial"),
    "serial_rep_ce": Method("Serial rep, ce", "student", "Serial"),
    "serial_rep_pred_ce": Method("Serial rep, pred, ce", "student", "Serial"),
    "serial_pred": Method("Serial pred", "student", "Serial"),
    "serial_pred_ce": Method("Serial pred, ce", "student", "Serial"),
    BEST_PRESET: Method("best preset", "student"),
}

SKYLINE = Score(0.811, 0.414)

TABLE_1 = {
    "baseline_uniform": _row(".715/.266 .759/.324 .777/.350 .785/.363 .795/.378"),
    "baseline_random": _row(".679/.246 .681/.254 .717/.268 .763/.329 .774/.339"),
    "baseline_first": _row(".478/.133 .539/.163 .595/.199 .632/.223 .676/.258"),
    "baseline_middle": _row(".577/.178 .600/.198 .620/.214 .638/.229 .665/.250"),
    "baseline_last": _row(".255/.062 .267/.067 .282/.077 .294/.083 .317/.094"),
    "baseline_first_middle_last": _row(
        ".640/.215 .671/.242 .680/.249 .698/.268 .721/.287"
    ),
    "parallel_rep": _row(".724/.280 .762/.331 .785/.365 .794/.380 .803/.392"),
    "parallel_rep_ce": _row(".726/.285 .766/.334 .785/.362 .795/.381 .804/.396"),
    "parallel_rep_pred_ce": _row(".729/.292 .770/.337 .789/.371 .796/.388 .806/.404"),
    "serial_rep": _row(".727/.288 .768/.339 .786/.365 .795/.381 .802/.394"),
    "serial_rep_ce": _row(".728/.291 .769/.341 .786/.368 .794/.383 .803/.399"),
    "serial_rep_pred_ce": _row(".731/.297 .771/.349 .789/.375 .798/.390 .806/.405"),
}

# From the paper's CVPR 2019 version, GAP only; run only if --methods names them.
CVPR_2019 = {
    "serial_pred": _row(".722 .766 .784 .793 .798"),
    "serial_pred_ce": _row(".724 .763 .785 .795 .799"),
}

# The CVPR 2019 version's Tables 5 and 6: family → method → k → score.
BY_FAMILY = {
    family: {
        TEACHER: dict(zip([None], _scores(teacher), strict=True)),
        UNIFORM: dict(zip(ks, _scores(uniform), strict=True)),
        MAIN_STUDENT: dict(zip(ks, _scores(student), strict=True)),
    }
    for family, ks, teacher, uniform, student in (
        (
            "NetVLAD",
            (10, 30),
            ".823/.462",
            ".773/.364 .803/.421",
            ".784/.383 .812/.436",
        ),
        ("NeXtVLAD", (30,), ".831/.464", ".812/.424", ".818/.439"),
    )
}

# Intermediate matching; the column "final" is that of Table 1 at k = 30. The paper's
# rows "rep + pred" have Table 1's numbers of rep, pred, ce.
INTERMEDIATE = "_intermediate"
TABLE_2 = dict(
    zip(
        (
            "parallel_rep",
            "parallel_rep_ce",
            "parallel_rep_pred_ce",
            "serial_rep",
            "serial_rep_ce",
            "serial_rep_pred_ce",
        ),
        _scores(".803/.393 .803/.396 .804/.400 .804/.395 .803/.397 .806/.405"),
        strict=True,
    )
)

# Percentages of the training data, for both teacher and student.
PERCENTS = (10, 25, 50)
TABLE_3 = {
    "serial": dict(
        zip(PERCENTS, _scores(".774/.345 .788/.369 .796/.373"), strict=True)
    ),
    "uniform": dict(
        zip(PERCENTS, _scores(".718/.220 .756/.301 .776/.349"), strict=True)
    ),
}

# None is the teacher. One formula gives all four numbers, if the rows k = 10 and k = 20
# have 9 and 15 frames.
TABLE_4 = {
    None: Cost(13.00, 5.042),
    10: Cost(7.61, 0.151),
    20: Cost(8.20, 0.252),
    30: Cost(9.11, 0.504),
}

# The CVPR 2019 version's operations per video, in 1e9: family → k → number. Those of
# the paper's own network, in its Table 3, are TABLE_4's and the classifier's.
OPERATIONS = {
    "": {None: 5.058, 10: 0.167, 20: 0.268, 30: 0.520},
    "NeXtVLAD": {None: 1.337, 30: 0.134},
}


# Flagfile → description; these have no published numbers.
ABLATIONS = {
    "ablation_no_teacher": "labels alone, the best preset's frames",
    "ablation_no_teacher_long": "labels alone, the best preset's frames, 30 epochs",
    "ablation_labels_from_teacher": "best preset, but labels in the teacher's place",
    "ablation_uniform_long": "Uniform-k, 30 epochs",
    "ablation_long": "best preset, but 30 epochs",
    "ablation_fixed_frames": "best preset, but frames that do not change",
    "ablation_uniform_frames": "best preset, but tested on the frames of Uniform-k",
    "ablation_new_weights": "best preset, but new weights to start with",
    "ablation_with_ce": "best preset, but ce + pred",
    "ablation_with_rep": "best preset, but pred + 0.01*rep",
    "ablation_paper_loss": "best preset, but the paper's ce + rep + pred",
}


# Lines of one student for several k.
BUDGETS = {"fixed_k": "a fixed k", "early_exit": "early exit"}


def family(method: str) -> str:
    """`NetVLAD` for `network_yt8m_NetVLAD/serial_rep`; empty for the paper's LSTM."""
    network = method.partition("/")[0]
    return network.rpartition("_")[2] if network.startswith(NETWORK) else ""


def operations(method: str, k: int | None) -> float | None:
    """The published cost of a method's network at k frames, in 1e9, or None."""
    return OPERATIONS.get(family(method), {}).get(k)


def score(method: str, k: int | None) -> Score | None:
    """The published score of a method at k frames, or None."""
    if family(method):
        rows = BY_FAMILY.get(family(method), {})
        return rows.get(method.partition("/")[2], {}).get(k)
    if method == TEACHER:
        return SKYLINE
    if method.endswith(INTERMEDIATE):
        entry = TABLE_2.get(method.removesuffix(INTERMEDIATE))
        return entry if k == LARGEST_K else None
    name, _, rest = method.partition("_")
    if rest.endswith("_percent"):
        entry = TABLE_3[name].get(int(rest.removesuffix("_percent")))
        return entry if k == LARGEST_K else None
    return {**TABLE_1, **CVPR_2019}.get(method, {}).get(k)


def gap_for_order(method: str, k: int) -> float | None:
    """The GAP that defines the paper's order of the methods at k frames, or None.

    The published GAP at this k, or else the mean over all published k.
    """
    row = {**TABLE_1, **CVPR_2019}.get(method)
    if row is None:
        return None
    return row[k].gap if k in row else statistics.fmean(s.gap for s in row.values())


def label(method: str) -> str:
    """The name of a method in the report."""
    if method in METHODS:
        return METHODS[method].label
    if family(method):
        name = method.partition("/")[2]
        return f"{family(method)}, {label(name)}" if name else family(method)
    for others in (ABLATIONS, BUDGETS):
        if method in others:
            return others[method]
    if method.endswith(INTERMEDIATE):
        return f"{label(method.removesuffix(INTERMEDIATE))}, intermediate"
    name, percent, _ = method.split("_")
    return f"{name.capitalize()}, {percent} % of the data"
