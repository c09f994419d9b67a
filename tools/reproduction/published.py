"""The paper's numbers, the only figures of a report that are typed by hand.

Methods are named after their flagfiles; those of another network have its family as
prefix here, `NetVLAD/serial_rep`. Scores are GAP and mAP on YouTube-8M's validate set;
k is the number of frames that the student reads, None for the teacher.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

FRAMES = (6, 10, 15, 20, 30)
# k of Tables 2 and 3; a grid without it uses its largest k instead.
LARGEST_K = 30

# Prefix of the names of networks' flagfiles: network_yt8m_NetVLAD.
NETWORK = "network_"
TEACHER = "teacher_skyline"
UNIFORM = "baseline_uniform"
# The student of Table 4 and Figure 3: the paper's best one.
MAIN_STUDENT = "serial_rep_pred_ce"
BEST_PRESET = "preset_best"

# Rows of Table 1, below the teacher's.
TABLE_1 = {
    UNIFORM: "Uniform-k",
    "baseline_random": "Random-k",
    "baseline_first": "First-k",
    "baseline_middle": "Middle-k",
    "baseline_last": "Last-k",
    "baseline_first_middle_last": "First-Middle-Last-k",
    "parallel_rep": "Parallel rep",
    "parallel_rep_ce": "Parallel rep, ce",
    "parallel_rep_pred_ce": "Parallel rep, pred, ce",
    "serial_rep": "Serial rep",
    "serial_rep_ce": "Serial rep, ce",
    "serial_rep_pred_ce": "Serial rep, pred, ce",
}
# Of the paper's CVPR 2019 version; run only if --methods or --table names them.
CVPR_2019 = {"serial_pred": "Serial pred", "serial_pred_ce": "Serial pred, ce"}
# Rows of the small table, below the teacher's.
IN_SHORT = (UNIFORM, "parallel_rep_pred_ce", MAIN_STUDENT, BEST_PRESET)
# Students with final and, under the name with this ending, intermediate matching.
TABLE_2 = [method for method in TABLE_1 if not method.startswith("baseline_")]
INTERMEDIATE = "_intermediate"
# Percentages of the training data, for both teacher and student.
TABLE_3, PERCENTS = ("serial", "uniform"), (10, 25, 50)
# These have no published numbers.
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
_LABELS = {
    TEACHER: "Teacher-Skyline",
    **TABLE_1,
    **CVPR_2019,
    BEST_PRESET: "best preset",
    **ABLATIONS,
    **BUDGETS,
}


class Score(NamedTuple):
    """GAP and mAP, both in [0, 1]; mAP is None if it was not published."""

    gap: float
    map: float | None


def _scores(
    text: str, frames: Sequence[int | None]
) -> dict[tuple[str, int | None], Score]:
    """Lines of a method and its GAP/mAP at each k; the mAP is optional."""
    scores = {}
    for method, *words in map(str.split, text.strip().splitlines()):
        for k, word in zip(frames, words, strict=True):
            gap, _, mean_ap = word.partition("/")
            scores[method, k] = Score(float(gap), float(mean_ap) if mean_ap else None)
    return scores


_SCORES = {
    **_scores(
        """
        teacher_skyline             .811/.414
        NetVLAD/teacher_skyline     .823/.462
        NeXtVLAD/teacher_skyline    .831/.464
        """,
        (None,),
    ),
    # Table 1, and the CVPR 2019 version's rows with GAP alone.
    **_scores(
        """
        baseline_uniform            .715/.266 .759/.324 .777/.350 .785/.363 .795/.378
        baseline_random             .679/.246 .681/.254 .717/.268 .763/.329 .774/.339
        baseline_first              .478/.133 .539/.163 .595/.199 .632/.223 .676/.258
        baseline_middle             .577/.178 .600/.198 .620/.214 .638/.229 .665/.250
        baseline_last               .255/.062 .267/.067 .282/.077 .294/.083 .317/.094
        baseline_first_middle_last  .640/.215 .671/.242 .680/.249 .698/.268 .721/.287
        parallel_rep                .724/.280 .762/.331 .785/.365 .794/.380 .803/.392
        parallel_rep_ce             .726/.285 .766/.334 .785/.362 .795/.381 .804/.396
        parallel_rep_pred_ce        .729/.292 .770/.337 .789/.371 .796/.388 .806/.404
        serial_rep                  .727/.288 .768/.339 .786/.365 .795/.381 .802/.394
        serial_rep_ce               .728/.291 .769/.341 .786/.368 .794/.383 .803/.399
        serial_rep_pred_ce          .731/.297 .771/.349 .789/.375 .798/.390 .806/.405
        serial_pred                 .722 .766 .784 .793 .798
        serial_pred_ce              .724 .763 .785 .795 .799
        """,
        FRAMES,
    ),
    # Tables 2 and 3. The paper's rows "rep + pred" have Table 1's numbers of rep, pred,
    # ce. Then the CVPR 2019 version's Tables 5 and 6.
    **_scores(
        """
        parallel_rep_intermediate           .803/.393
        parallel_rep_ce_intermediate        .803/.396
        parallel_rep_pred_ce_intermediate   .804/.400
        serial_rep_intermediate             .804/.395
        serial_rep_ce_intermediate          .803/.397
        serial_rep_pred_ce_intermediate     .806/.405
        serial_10_percent                   .774/.345
        serial_25_percent                   .788/.369
        serial_50_percent                   .796/.373
        uniform_10_percent                  .718/.220
        uniform_25_percent                  .756/.301
        uniform_50_percent                  .776/.349
        NetVLAD/baseline_uniform            .803/.421
        NetVLAD/serial_rep_pred_ce          .812/.436
        NeXtVLAD/baseline_uniform           .812/.424
        NeXtVLAD/serial_rep_pred_ce         .818/.439
        """,
        (LARGEST_K,),
    ),
    **_scores(
        """
        NetVLAD/baseline_uniform            .773/.364
        NetVLAD/serial_rep_pred_ce          .784/.383
        """,
        (10,),
    ),
}

# Table 4: hours of evaluating the validate set on K80s, and the "FLOPs", multiply-adds
# of the lower LSTM alone, in 1e9. One formula gives all four numbers, if the rows
# k = 10 and k = 20 have 9 and 15 frames.
HOURS = {None: 13.00, 10: 7.61, 20: 8.20, 30: 9.11}
LOWER_LSTM = {None: 5.042, 10: 0.151, 20: 0.252, 30: 0.504}
# The CVPR 2019 version's operations per video, in 1e9: family → k → number. Those of
# the paper's own network, in its Table 3, are LOWER_LSTM's and the classifier's.
OPERATIONS = {
    "": {None: 5.058, 10: 0.167, 20: 0.268, 30: 0.520},
    "NeXtVLAD": {None: 1.337, 30: 0.134},
}


def family(method: str) -> str:
    """`NetVLAD` for `network_yt8m_NetVLAD/serial_rep`; empty for the paper's LSTM."""
    network = method.partition("/")[0]
    return network.rpartition("_")[2] if network.startswith(NETWORK) else ""


def is_student(method: str) -> bool:
    """Whether a row of Table 1 has learned from a teacher."""
    return method != TEACHER and not method.startswith("baseline_")


def operations(method: str, k: int | None) -> float | None:
    """The published cost of a method's network at k frames, in 1e9, or None."""
    return OPERATIONS.get(family(method), {}).get(k)


def score(method: str, k: int | None, metric: str) -> float | None:
    """The published `gap` or `map` of a method at k frames, or None."""
    network, slash, name = method.rpartition("/")
    found = _SCORES.get((family(network) + slash + name, k))
    return getattr(found, metric) if found else None


def gaps(method: str) -> dict[int, float]:
    """The published GAPs of a row of Table 1: k → GAP."""
    return {k: _SCORES[method, k].gap for k in FRAMES if (method, k) in _SCORES}


def gap_for_order(method: str, k: int) -> float | None:
    """The GAP that defines the paper's order of the methods at k frames, or None.

    The published GAP at this k, or else the mean over all published k.
    """
    row = gaps(method)
    return row.get(k, statistics.fmean(row.values())) if row else None


def label(method: str) -> str:
    """The name of a method, or of a network, in the report."""
    network, _, name = method.rpartition("/")
    if network:
        return f"{family(network)}, {label(name)}"
    return family(method) or _LABELS[method]
