"""The package keeps its layers, and stays free of what it must not hold.

All of it is read from the syntax trees: nothing is imported, so a module that
breaks a rule is found even where it cannot be loaded.
"""

import ast
import pathlib

import pytest

PACKAGE = "yt8m_distill"
ROOT = pathlib.Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------- the rule table

# Lowest first. A layer is a set of parts: a part is a module or a folder directly
# below the package. A part may import itself and every part of a lower layer, not
# its neighbours in the same layer.
LAYERS = (
    {"structures", "registry", "allocator", "files"},
    {"settings"},
    {"data"},
    {"losses"},
    {"models"},
    {"training", "evaluation", "serving"},
    {"beam"},
    {"flag_groups"},
    {"train", "eval", "inference", "export_model"}
    | {"index_records", "thin_records", "inspect_records", "merge_predictions"}
    | {"classify_records"},
)

# (importing part, imported module or folder) that the layers alone would forbid.
ALSO_ALLOWED = {
    ("training", "evaluation"),  # every epoch ends with an evaluation
    ("evaluation", "training.checkpoints"),
    ("serving", "training.checkpoints"),
}

SCRIPTS = LAYERS[-1]
KNOWS_FLAGS = {"flag_groups"} | SCRIPTS
KNOWS_MODES = {"settings", "training.modes"}

MODES = {"teacher", "baseline", "serial", "parallel"}
# "teacher" is a role and a network too, so it needs a `mode` beside it to count.
ONLY_MODES = MODES - {"teacher"}

UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec"}

# -------------------------------------------------------------------------------


def name_of(path: pathlib.Path) -> str:
    """`yt8m_distill/data/records.py` → `data.records`; the package itself is ""."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}


def part_of(module: str) -> str:
    """`data.records` → `data`."""
    return module.split(".")[0]


def imported_names(source: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted names that `source` imports, also inside functions.

    `from a import b` gives `a.b`: whether b is a module is not known here.
    """
    names = set()
    here = [PACKAGE, *filter(None, module.split("."))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - (1 if is_package else 0)
                start = here[: len(here) - up] if up else here
                base = ".".join([*start, *filter(None, [base])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def imported_modules(
    source: str, module: str, known: set[str], is_package: bool = False
) -> set[str]:
    """Modules of this package that `source` imports, by their names in `known`."""
    modules = set()
    for name in imported_names(source, module, is_package):
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            continue
        inside = name.removeprefix(PACKAGE).lstrip(".")
        while inside and inside not in known:
            inside = inside.rpartition(".")[0]
        modules.add(inside)
    return modules - {""}


def is_allowed(module: str, target: str) -> bool:
    """Whether the rule table lets `module` import `target`."""
    part, other = part_of(module), part_of(target)
    heights = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    if part == other or heights[other] < heights[part]:
        return True
    return any(
        part == importer and (target == allowed or target.startswith(allowed + "."))
        for importer, allowed in ALSO_ALLOWED
    )


def forbidden_imports(
    source: str, module: str, known: set[str], is_package: bool = False
) -> list[str]:
    """`"models.lstm imports training.steps"`, one for each breach of the layers."""
    return [
        f"{module} imports {target}"
        for target in sorted(imported_modules(source, module, known, is_package))
        if not is_allowed(module, target)
    ]


def imports_absl_flags(source: str, module: str) -> bool:
    return any(
        name == "absl.flags" or name.startswith("absl.flags.")
        for name in imported_names(source, module)
    )


def unsafe_constructs(source: str, module: str) -> list[str]:
    """Asserts, object deserialisers and calls that run text."""
    found = [
        f"{module}: import of {name}"
        for name in sorted(imported_names(source, module))
        if name.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(ast.parse(source)):
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            found.append(f"{where}: assert")
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(f"{where}: {node.func.id}()")
            found.extend(
                f"{where}: allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and getattr(keyword.value, "value", True) is not False
            )
    return found


def strings_in(nodes: list[ast.AST]) -> set[str]:
    """String constants among `nodes`, and in tuples, lists and sets of them."""
    strings = set()
    for node in nodes:
        inside = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []
        for leaf in [node, *inside]:
            if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                strings.add(leaf.value)
    return strings


def names_a_mode(nodes: list[ast.AST]) -> bool:
    """Whether one of `nodes` is `mode`, `x.mode` or `some_mode`."""
    names = [getattr(node, "id", getattr(node, "attr", "")) for node in nodes]
    return any(name == "mode" or name.endswith("_mode") for name in names)


def mode_comparisons(source: str, module: str) -> list[str]:
    """Places that ask which mode it is: `mode == "serial"`, `match mode`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            strings = strings_in(sides)
        elif isinstance(node, ast.Match):
            sides = [node.subject]
            leaves = [leaf for case in node.cases for leaf in ast.walk(case.pattern)]
            strings = strings_in(
                [leaf.value for leaf in leaves if isinstance(leaf, ast.MatchValue)]
            )
        else:
            continue
        if strings & ONLY_MODES or (strings & MODES and names_a_mode(sides)):
            found.append(f"{module}:{node.lineno}: {ast.unparse(node)[:60]}")
    return found


def without_docstring(source: str, module: str) -> list[str]:
    """The module itself, and its public functions and classes."""
    tree = ast.parse(source)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [
        node
        for node in tree.body
        if isinstance(node, definitions) and not node.name.startswith("_")
    ]
    found = [] if ast.get_docstring(tree) else [f"{module}: module"]
    return found + [
        f"{module}:{node.lineno}: {node.name}"
        for node in public
        if not ast.get_docstring(node)
    ]


def is_package(module: str) -> bool:
    return (ROOT / PACKAGE / module.replace(".", "/")).is_dir()


def sources() -> list:
    return [pytest.param(m, s, id=m or PACKAGE) for m, s in SOURCES.items()]


def test_every_part_of_the_package_has_a_layer():
    parts = {part_of(module) for module in SOURCES} - {""}
    assert parts <= set().union(*LAYERS), "give the new part a place in LAYERS"


@pytest.mark.parametrize("module, source", sources())
def test_imports_point_to_lower_layers_only(module, source):
    if module:
        breaches = forbidden_imports(source, module, set(SOURCES), is_package(module))
        assert not breaches
    else:
        assert not imported_modules(source, module, set(SOURCES), is_package=True)


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: imported_modules(source, module, set(SOURCES), is_package(module))
        - {module}
        for module, source in SOURCES.items()
    }
    while leaves := [module for module, targets in graph.items() if not targets]:
        for leaf in leaves:
            del graph[leaf]
        for targets in graph.values():
            targets.difference_update(leaves)
    assert not graph, f"a circle, or what imports one: {sorted(graph)}"


@pytest.mark.parametrize("module, source", sources())
def test_only_flag_groups_and_scripts_know_of_flags(module, source):
    assert module in KNOWS_FLAGS or not imports_absl_flags(source, module)


@pytest.mark.parametrize("module, source", sources())
def test_no_assert_no_pickle_and_nothing_that_runs_text(module, source):
    assert not unsafe_constructs(source, module)


@pytest.mark.parametrize("module, source", sources())
def test_only_the_table_of_modes_asks_which_mode_it_is(module, source):
    assert module in KNOWS_MODES or not mode_comparisons(source, module)


@pytest.mark.parametrize("module, source", sources())
def test_all_that_is_public_has_a_docstring(module, source):
    assert not without_docstring(source, module)


# The rules themselves can fail: each finds the breaches that it is there for.

KNOWN = {"settings", "structures", "data", "data.records", "models", "models.lstm"} | {
    *("training", "training.steps", "training.checkpoints"),
    *("evaluation", "evaluation.evaluator", "serving", "serving.export"),
    *("flag_groups", "train", "eval"),
}


@pytest.mark.parametrize(
    "module, source, target",
    [
        ("data.records", "from yt8m_distill.models import lstm", "models.lstm"),
        ("data.records", "from yt8m_distill.models.lstm import LSTM", "models.lstm"),
        ("data.records", "import yt8m_distill.models.lstm as lstm", "models.lstm"),
        ("data.records", "from ..models import lstm", "models.lstm"),
        ("data.records", "from .. import models", "models"),
        ("models.lstm", "def f():\n  from yt8m_distill import training", "training"),
        ("structures", "from yt8m_distill import settings", "settings"),
        ("evaluation.evaluator", "from yt8m_distill import serving", "serving"),
        (
            "evaluation.evaluator",
            "from yt8m_distill.training import steps",
            "training.steps",
        ),
        ("training.steps", "from yt8m_distill import flag_groups", "flag_groups"),
        ("train", "from yt8m_distill import eval", "eval"),
    ],
)
def test_an_import_of_a_higher_layer_is_found(module, source, target):
    assert forbidden_imports(source, module, KNOWN) == [f"{module} imports {target}"]


@pytest.mark.parametrize(
    "module, source",
    [
        ("data.records", "from yt8m_distill import settings"),
        ("models.lstm", "from ..data import records"),
        ("models.lstm", "from yt8m_distill import __version__"),
        ("models.lstm", "import tensorflow as tf, models, training"),
        ("training.steps", "from yt8m_distill.evaluation import evaluator"),
        ("evaluation.evaluator", "from yt8m_distill.training import checkpoints"),
        ("serving.export", "from yt8m_distill.training.checkpoints import restore"),
        ("train", "from yt8m_distill import flag_groups, settings"),
    ],
)
def test_an_import_of_a_lower_layer_is_allowed(module, source):
    assert forbidden_imports(source, module, KNOWN) == []


def test_a_relative_import_of_a_package_starts_at_itself():
    source = "from . import records\nfrom .. import models"
    known = set(KNOWN)
    assert imported_modules(source, "data", known, is_package=True) == {
        "data.records",
        "models",
    }


@pytest.mark.parametrize(
    "source", ["from absl import app, flags", "import absl.flags as f"]
)
def test_an_import_of_absl_flags_is_found(source):
    assert imports_absl_flags(source, "data.records")
    assert not imports_absl_flags("from absl import app, logging", "data.records")


@pytest.mark.parametrize(
    "source",
    [
        "assert x",
        "import pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "def f():\n  exec(text)",
        "np.load(file, allow_pickle=True)",
    ],
)
def test_an_unsafe_construct_is_found(source):
    assert len(unsafe_constructs(source, "x")) == 1


def test_safe_constructs_of_similar_names_are_left_alone():
    source = """
from yt8m_distill import eval
eval.run()
tf.debugging.assert_equal(a, b)
ast.literal_eval(text)
np.load(file, allow_pickle=False)
"""
    assert unsafe_constructs(source, "x") == []


@pytest.mark.parametrize(
    "source",
    [
        'if mode == "teacher": pass',
        'if settings.mode != "serial": pass',
        'x = run.mode in ("serial", "parallel")',
        'x = name == "parallel"',
        'match settings.mode:\n  case "teacher": pass',
    ],
)
def test_a_question_for_the_mode_is_found(source):
    assert len(mode_comparisons(source, "x")) == 1


def test_questions_for_a_role_or_a_file_mode_are_left_alone():
    source = 'network == "teacher"\nmode == "rb"\nmode in MODES\nrole != "student"'
    assert mode_comparisons(source, "x") == []


def test_a_missing_docstring_is_found():
    source = 'def f(): pass\nclass C:\n  def g(self): pass\ndef _h(): pass\n"""no"""'
    assert without_docstring(source, "x") == ["x: module", "x:1: f", "x:2: C"]
