"""Specifications are parsed and never executed; names are looked up."""

import os

import pytest

from yt8m_distill import registry


def make_registry() -> registry.Registry:
    models = registry.Registry("model")

    @models.register("Wide")
    def wide(cells: int = 4, *, head: str = "logistic", width: int = 0):
        return ("wide", cells, head, width)

    @models.register("Deep")
    class Deep:
        def __init__(self, layers: int = 2, width: int = 0) -> None:
            self.layers = layers
            self.width = width

    return models


@pytest.mark.parametrize(
    "text, name, arguments",
    [
        ("uniform", "uniform", {}),
        ("  uniform\n", "uniform", {}),
        ("Wide()", "Wide", {}),
        ("Wide(cells=512)", "Wide", {"cells": 512}),
        ('W(a=1, b="x", c=-0.5)', "W", {"a": 1, "b": "x", "c": -0.5}),
        (
            "W(a=None, b=True, c=[1, 2], d=(3,), e={'k': 1e-3})",
            "W",
            {"a": None, "b": True, "c": [1, 2], "d": (3,), "e": {"k": 1e-3}},
        ),
    ],
)
def test_a_specification_is_a_name_with_literal_arguments(text, name, arguments):
    assert registry.parse(text) == registry.Specification(name, arguments)


@pytest.mark.parametrize(
    "text", ["uniform", "W(a=1)", "W(a='x', b=[1, None], c={'k': -1.5}, d=(True,))"]
)
def test_printing_and_parsing_a_specification_round_trips(text):
    assert str(registry.parse(text)) == text
    assert registry.parse(str(registry.parse(text))) == registry.parse(text)


def test_defaults_fill_only_missing_arguments():
    spec = registry.parse("W(cells=1)")
    filled = spec.with_defaults(cells=2, block_len=5)
    assert filled.arguments == {"cells": 1, "block_len": 5}
    assert spec.arguments == {"cells": 1}, "the original is unchanged"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('ran')",
        "W(a=__import__('os').mkdir('ran'))",
        "W(a=open('/etc/passwd').read())",
        "os.system",
        "os.system(a=1)",
        "W(a=1).b",
        "W(a=1)(b=2)",
        "(lambda: W)()",
        "[W for W in (1,)]",
        "W(a=[x for x in (1,)])",
        "W(a=b)",
        "W(a=2**9)",
        "W(a=f'{b}')",
        "W(**{'a': 1})",
        "W(*[1])",
        "W(1)",
        "W(a=1, a=2)",
        "W(a:=1)",
        "W; W",
        "W = 1",
        "W(a={[]: 1})",
        "W(",
        "'W'",
        "1",
        "True",
        "",
        "a\0b",
        "W(a=" + "(" * 5000 + "1" + ")" * 5000 + ")",
        "W(a=" + "-" * 50000 + "1)",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_other_text_is_refused_in_one_line_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (registry.parse, make_registry().create):
        with pytest.raises(ValueError) as caught:
            read(text)
        message = str(caught.value)
        assert repr(text) in message and "\n" not in message
    assert os.listdir(tmp_path) == []


def test_a_registered_callable_is_returned_unchanged():
    models = registry.Registry("model")

    def entry():
        return 1

    assert models.register("Entry")(entry) is entry
    assert models.get("Entry") is entry
    assert list(models) == ["Entry"]


def test_an_unknown_name_lists_the_known_ones():
    expected = "Unknown model 'Narrow'. Known: Deep, Wide."
    for ask in (registry.Registry.get, registry.Registry.create):
        with pytest.raises(ValueError) as caught:
            ask(make_registry(), "Narrow")
        assert str(caught.value) == expected


def test_a_name_is_registered_once():
    models = make_registry()
    with pytest.raises(ValueError, match="model 'Wide' is registered twice"):
        models.register("Wide")(lambda: None)
    assert models.create("Wide")[0] == "wide", "the first one stays"


def test_create_passes_the_arguments_of_the_text_and_of_the_caller():
    models = make_registry()
    assert models.create('Wide(cells=8, head="moe")', width=3) == ("wide", 8, "moe", 3)
    deep = models.create(registry.Specification("Deep", {"layers": 5}), width=7)
    assert (deep.layers, deep.width) == (5, 7)


def test_an_unknown_argument_is_named_with_the_known_ones():
    with pytest.raises(ValueError) as caught:
        make_registry().create("Wide(cell=8)", width=3)
    # `width` comes from the caller, so it is not offered.
    assert str(caught.value) == (
        "model Wide(cell=8) does not take cell; it takes: cells, head."
    )


def test_an_argument_that_the_caller_sets_cannot_be_given_in_the_text():
    with pytest.raises(ValueError, match=r"model Deep\(width=1\): width follows from"):
        make_registry().create("Deep(width=1)", width=3)


def test_accepts_reports_the_parameters_of_an_entry():
    models = make_registry()
    assert models.accepts("Wide", "head")
    assert models.accepts("Deep", "layers")
    assert not models.accepts("Deep", "head")
    assert not models.accepts("Deep", "self")


def test_keywords_of_a_constructor_include_those_of_the_base_class():
    models = make_registry()

    class Base:
        def __init__(self, size, width: int = 0, head: str = "logistic") -> None:
            self.given = (size, width, head)

    class Between(Base):
        pass

    @models.register("Thin")
    class Thin(Between):
        def __init__(self, cells=2, width: int = 1, **others) -> None:
            super().__init__(width=width, **others)

    assert models.accepts("Thin", "head") and models.accepts("Thin", "cells")
    assert not models.accepts("Thin", "others")
    # Thin's own default of width wins.
    expected = {"cells": 3, "width": 1, "head": "logistic"}
    assert models.arguments("Thin(cells=3)") == expected
    assert models.create('Thin(head="moe")', size=5).given == (5, 1, "moe")
    with pytest.raises(ValueError) as caught:
        models.create("Thin(layers=2)", size=5)
    assert str(caught.value) == (
        "model Thin(layers=2) does not take layers; it takes: cells, width, head."
    )


def test_a_function_with_var_keywords_receives_any_argument():
    models = make_registry()
    models.register("Any")(lambda **others: others)
    assert models.create("Any(a=1)", b=2) == {"a": 1, "b": 2}
    # Whether it uses the argument is unknown.
    assert not models.accepts("Any", "a")


def test_a_missing_argument_is_named():
    models = make_registry()
    models.register("Needy")(lambda size, cells, *, width: None)
    for ask in (models.check, lambda spec, given: models.create(spec, size=1)):
        with pytest.raises(ValueError) as caught:
            ask(registry.parse("Needy(width=3)"), ["size"])
        assert str(caught.value) == "model Needy(width=3) lacks cells."
