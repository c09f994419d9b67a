"""The locked versions lie in the ranges of setup.py, and lock all that it names."""

import ast
import pathlib

import pytest
from packaging import requirements, utils, version

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Lock → the extras that are installed with it.
LOCKS = {
    "constraints.txt": ("beam", "dev", "edge", "serving", "video"),
    "constraints-addons.txt": ("addons", "test"),
}


def setup_arguments() -> dict:
    """install_requires and extras_require, from the text of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setuptools.setup"
    ]
    wanted = {"install_requires", "extras_require", "python_requires"}
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in wanted}


def read_lock(name: str) -> list[requirements.Requirement]:
    lines = (ROOT / "tools" / name).read_text(encoding="utf-8").splitlines()
    return [
        requirements.Requirement(line)
        for line in lines
        if line.strip() and not line.startswith("#")
    ]


def wanted(extras: tuple[str, ...]) -> list[requirements.Requirement]:
    """What setup.py asks for, with these extras."""
    arguments = setup_arguments()
    texts = list(arguments["install_requires"])
    for extra in extras:
        texts += arguments["extras_require"][extra]
    return [requirements.Requirement(text) for text in texts]


def outside(lock: list, asked: list) -> list[str]:
    """Requirements that a lock does not name, or names with a version outside."""
    found = []
    for requirement in asked:
        name = utils.canonicalize_name(requirement.name)
        locked = [r for r in lock if utils.canonicalize_name(r.name) == name]
        if not locked:
            found.append(f"{requirement.name} is not locked")
        for one in locked:
            (pin,) = one.specifier
            if not requirement.specifier.contains(pin.version, prereleases=True):
                found.append(f"{one} is outside of {requirement}")
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_version_lies_in_the_range_of_setup(name):
    assert outside(read_lock(name), wanted(LOCKS[name])) == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_one_exact_version_for_each_python(name):
    seen = set()
    for requirement in read_lock(name):
        (pin,) = requirement.specifier
        assert pin.operator == "==" and not pin.version.endswith("*"), requirement
        version.Version(pin.version)
        for python in ("3.10", "3.11", "3.12", "3.13"):
            environment = {"python_version": python, "python_full_version": python}
            marker = requirement.marker
            if marker is None or marker.evaluate(environment):
                key = (utils.canonicalize_name(requirement.name), python)
                assert key not in seen, key
                seen.add(key)


def test_ranges_of_setup_have_a_floor_and_a_ceiling():
    """But for what only a developer runs, whose versions the locks decide."""
    arguments = setup_arguments()
    for name in ("install_requires", "gpu", "beam"):
        texts = arguments.get(name) or arguments["extras_require"][name]
        for text in texts:
            operators = {s.operator for s in requirements.Requirement(text).specifier}
            assert operators == {">=", "<"}, text


def test_no_requirement_is_fetched_by_its_address():
    arguments = setup_arguments()
    texts = sum(arguments["extras_require"].values(), arguments["install_requires"])
    parsed = [requirements.Requirement(text) for text in texts]
    parsed += [r for name in LOCKS for r in read_lock(name)]
    assert not [str(r) for r in parsed if r.url]
