"""Formatting of numbers in the report."""

import pandas as pd

from tools.reproduction import published, scores

MISSING = "–"


def spread_text(values: pd.Series) -> str:
    """`0.803 ± 0.002`: mean and sample standard deviation; one value has none."""
    if values.empty:
        return MISSING
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def number_text(value: float | None, form: str = ".3f") -> str:
    """A number, or the symbol for a missing one."""
    return MISSING if value is None else format(value, form)


def count_text(value: float | None) -> str:
    """`5.65 G`, `29.5 M`, `812`: three digits and a unit prefix."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def score_text(results: scores.Results, method: str, k: int | None, metric: str) -> str:
    """Mean and spread of our runs, with the number of seeds if some are missing."""
    ours = results.by_seed(method, k, metric)
    is_complete = ours.empty or len(ours) == len(results.grid.seeds)
    return spread_text(ours) + ("" if is_complete else f" (n={len(ours)})")


def pair_text(results: scores.Results, method: str, k: int | None) -> str:
    """`GAP / mAP` of our runs."""
    gap, mean_ap = (score_text(results, method, k, m) for m in ("gap", "map"))
    return f"{gap} / {mean_ap}"


def published_score(method: str, k: int | None, metric: str) -> float | None:
    """The paper's, or None."""
    score = published.score(method, k)
    return getattr(score, metric) if score else None


def published_pair(method: str, k: int | None) -> str:
    """`GAP / mAP` of the paper."""
    gap = number_text(published_score(method, k, "gap"))
    return f"{gap} / {number_text(published_score(method, k, 'map'))}"
