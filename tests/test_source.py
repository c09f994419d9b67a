"""What no linter holds: the table of modes alone asks for the mode; no pickles."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "yt8m_distill").rglob("*.py"))
KNOWS_MODES = {"yt8m_distill/settings.py", "yt8m_distill/training/modes.py"}
DANGEROUS = {"allow_pickle": True, "safe_mode": False}


def mode_comparisons(source: str) -> list[str]:
    """Comparisons with the name of a mode; `teacher` is a role's name, too."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare | ast.Match)
        for leaf in ast.walk(node if isinstance(node, ast.Compare) else node.cases[0])
        if isinstance(leaf, ast.Constant)
        and leaf.value in ("baseline", "serial", "parallel")
    ]


def dangerous_keywords(source: str) -> list[str]:
    """`allow_pickle=` and `safe_mode=`, unless their constant is the safe one."""
    return [
        keyword.arg
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in DANGEROUS
        and getattr(keyword.value, "value", None) is not (not DANGEROUS[keyword.arg])
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_only_the_table_of_modes_asks_for_the_mode_and_nothing_unpickles(path):
    source = path.read_text(encoding="utf-8")
    if path.relative_to(ROOT).as_posix() not in KNOWS_MODES:
        assert not mode_comparisons(source)
    assert not dangerous_keywords(source)


@pytest.mark.parametrize(
    "source",
    ['run.mode == "serial"', 'x in ("baseline",)', 'match m:\n  case "parallel": pass'],
)
def test_a_comparison_of_the_mode_is_detected(source):
    assert mode_comparisons(source)
    assert not mode_comparisons('role == "teacher" and open(mode="rb")')


def test_a_dangerous_keyword_is_detected():
    assert dangerous_keywords("np.load(p, allow_pickle=flag)")
    assert not dangerous_keywords("np.load(p, allow_pickle=False)")
