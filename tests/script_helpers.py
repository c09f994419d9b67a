"""The programs of the package in this process, as a command line starts them.

A process of its own costs five seconds for TensorFlow alone, so a test starts one only
where the process is the claim.
"""

import concurrent.futures
import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

from absl import flags


class Ended(NamedTuple):
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


def call(program: str, *arguments: str) -> Ended:
    """Runs yt8m_distill/<program>.py with these arguments; `--help` is not for it."""
    module = importlib.import_module(f"yt8m_distill.{program}")
    return in_place(module.run, program, *arguments)


def in_place(run: Callable[[], None], program: str, *arguments: str) -> Ended:
    """Calls what a program calls when it starts, with flags and streams of its own."""
    out, err = io.StringIO(), io.StringIO()
    words = [f"{program}.py", *map(str, arguments)]
    code = 0
    with (
        _own_flags(),
        _own_logging(),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):  # As the interpreter does.
                print(end.code, file=err)
    return Ended(code, out.getvalue(), err.getvalue())


def succeed(program: str, *arguments: str) -> Ended:
    """A program that must end well."""
    done = call(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def refuse(program: str, *arguments: str) -> str:
    """The error line of a program that must reject its arguments or data."""
    return refusal(program, call(program, *arguments))


def refusal(program: str, done) -> str:
    """The error line of a program with exit status 1 and no output."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stdout == "" and "Traceback" not in done.stderr
    start = f"{program}.py: "
    lines = [x for x in done.stderr.splitlines() if x.startswith(start)]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix(start)


class _Threads(concurrent.futures.ThreadPoolExecutor):
    """Takes the arguments of a ProcessPoolExecutor."""

    def __init__(self, jobs, context, initializer=None):
        super().__init__(jobs)


def without_processes(monkeypatch) -> None:
    """Makes the programs' pool of processes one of threads."""
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", _Threads)


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """Inside, only absl's own flags are defined; afterwards all are restored."""
    known = flags.FLAGS
    owners = {name: known.find_module_defining_flag(name, "") for name in known}
    absls = {name for name, owner in owners.items() if owner.startswith("absl")}
    others = {name: known[name] for name in known if name not in absls}
    values = {name: (known[name].value, known[name].present) for name in absls}
    parsed = known.is_parsed()

    def clear():
        for name in set(known) - absls:
            delattr(known, name)

    clear()
    try:
        yield
    finally:
        clear()
        for name, flag in others.items():
            known[name] = flag
        for name, (value, present) in values.items():
            known[name].value, known[name].present = value, present
        (known.mark_as_parsed if parsed else known.unparse_flags)()


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Restores the package's log level, and absl's handler to an open stream."""
    log = logging.getLogger("yt8m_distill")
    kept = log.handlers[:], log.level, log.propagate
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        log.handlers[:], log.level, log.propagate = kept
        root.handlers[:], root.level = handlers, level
