"""Registries of named callables, and specifications that call them.

A specification such as `"HierarchicalLSTM(block_len=5)"` is a name, or a call whose
arguments are Python literals. It is parsed, never evaluated, so flags cannot run code.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Callable)


@dataclasses.dataclass(frozen=True)
class Specification:
    """A parsed specification: a registered name and its keyword arguments."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        inside = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
        return f"{self.name}({inside})"

    def with_defaults(self, **defaults: Any) -> "Specification":
        """The specification with `defaults` for arguments that it does not have."""
        missing = {k: v for k, v in defaults.items() if k not in self.arguments}
        return Specification(self.name, {**self.arguments, **missing})


def parse(text: str) -> Specification:
    """Parses `"name"` or `"name(key=literal, ...)"`.

    Raises:
        ValueError: if `text` is anything else; the message repeats it.
    """
    rule = f"{text!r} must be a name or a call such as 'Name(key=1)'"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{rule}.") from error
    if isinstance(node, ast.Name):
        return Specification(node.id, {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{rule}.")
    if node.args:
        raise ValueError(f"{rule}: arguments must be named.")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError(f"{rule}: each argument must be named, and named once.")
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError) as error:
            raise ValueError(f"{rule}: {keyword.arg} is not a literal.") from error
    return Specification(node.func.id, arguments)


def import_modules(package: str) -> None:
    """Imports every module of a package, so that all its entries are registered.

    This is why a new file with a `register` decorator needs no edit elsewhere.
    """
    folders = importlib.import_module(package).__path__
    for module in pkgutil.iter_modules(folders, prefix=f"{package}."):
        importlib.import_module(module.name)


def import_user_modules(names: str) -> None:
    """Imports the modules of `--import_modules`, so that their entries are registered.

    Modules in the working directory are found, wherever the script is.

    Raises:
        ValueError: naming the flag and the module, if it cannot be imported.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"--import_modules={name} cannot be imported: {error}. Modules in the "
                "working directory and on PYTHONPATH are found."
            ) from error


def _parameters(entry: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a callable, and whether it accepts any others.

    `**kwargs` of a constructor are taken to be passed on to the next base class.
    """
    callables = [entry]
    if inspect.isclass(entry):
        classes = [c for c in entry.__mro__ if c is not object]
        callables = [vars(c)["__init__"] for c in classes if "__init__" in vars(c)]
    named: dict[str, inspect.Parameter] = {}
    for function in callables:
        parameters = list(inspect.signature(function).parameters.values())
        own = parameters[1:] if inspect.isclass(entry) else parameters
        for p in own:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                named.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return named, False
    return named, bool(callables)


class Registry(Generic[T]):
    """A table of named callables of one kind ("sampler", "model", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a callable under `name`, which must be new."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice.")
            self._entries[name] = entry
            return entry

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def get(self, name: str) -> T:
        """The callable of that name.

        Raises:
            ValueError: listing the known names, if there is none.
        """
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise ValueError(f"Unknown {self.kind} {name!r}. Known: {known}.")
        return self._entries[name]

    def accepts(self, name: str, argument: str) -> bool:
        """Whether the callable of that name has a parameter called `argument`."""
        return argument in _parameters(self.get(name))[0]

    def arguments(self, spec: str | Specification) -> dict[str, Any]:
        """The arguments of a specification, with the defaults of its callable."""
        spec = parse(spec) if isinstance(spec, str) else spec
        parameters, _ = _parameters(self.get(spec.name))
        defaults = {
            p.name: p.default for p in parameters.values() if p.default is not p.empty
        }
        return {**defaults, **spec.arguments}

    def check(self, spec: Specification, given: Iterable[str]) -> None:
        """Checks that `create` can call a specification.

        Args:
            spec: the specification.
            given: names of the arguments that the caller adds.

        Raises:
            ValueError: for an unknown name, an argument that is unknown, that the
                caller adds, or that is missing.
        """
        given = set(given)
        parameters, takes_others = _parameters(self.get(spec.name))
        unknown = [key for key in spec.arguments if key not in parameters]
        if unknown and not takes_others:
            known = ", ".join(key for key in parameters if key not in given)
            raise ValueError(
                f"{self.kind} {spec} does not take {', '.join(unknown)}; "
                f"it takes: {known or 'none'}."
            )
        clash = sorted(set(spec.arguments) & given)
        if clash:
            raise ValueError(
                f"{self.kind} {spec}: {', '.join(clash)} follows from other "
                "settings and cannot be given here."
            )
        missing = [
            p.name
            for p in parameters.values()
            if p.default is p.empty and p.name not in {*spec.arguments, *given}
        ]
        if missing:
            raise ValueError(f"{self.kind} {spec} lacks {', '.join(missing)}.")

    def create(self, spec: str | Specification, **extra: Any) -> Any:
        """Calls the entry that `spec` names with its arguments and `extra`.

        Raises:
            ValueError: as `check`, or if the callable raises a TypeError.
        """
        spec = parse(spec) if isinstance(spec, str) else spec
        self.check(spec, extra)
        entry = self.get(spec.name)
        try:
            return entry(**spec.arguments, **extra)
        except TypeError as error:
            raise ValueError(f"{self.kind} {spec}: {error}") from error
