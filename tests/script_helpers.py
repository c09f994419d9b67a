"""The programs of the package in this process, as a command line starts them.

A process of its own costs five seconds for TensorFlow alone, so a test starts one only
where the process is the claim.
"""

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
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
    out, err = io.StringIO(), io.StringIO()
    words = [f"{program}.py", *map(str, arguments)]
    with (
        _own_flags(),
        _own_logging(),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            module.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def succeed(program: str, *arguments: str) -> Ended:
    """A program that must end well."""
    done = call(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def refuse(program: str, *arguments: str) -> str:
    """The one line of a program that must refuse its arguments or data."""
    return refusal(program, call(program, *arguments))


def refusal(program: str, done) -> str:
    """The one line of a program that ended with status 1 and printed nothing."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stdout == "" and "Traceback" not in done.stderr
    start = f"{program}.py: "
    lines = [x for x in done.stderr.splitlines() if x.startswith(start)]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix(start)


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """What is defined or set within is gone behind."""
    before = {name: flags.FLAGS[name].value for name in flags.FLAGS}
    present = {name for name in before if flags.FLAGS[name].present}
    parsed = flags.FLAGS.is_parsed()
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - set(before):
            delattr(flags.FLAGS, name)
        for name, value in before.items():
            flags.FLAGS[name].value = value
            flags.FLAGS[name].present = int(name in present)
        (flags.FLAGS.mark_as_parsed if parsed else flags.FLAGS.unparse_flags)()


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """The package's log as it was, and absl's handler not on a stream that is gone."""
    log = logging.getLogger("yt8m_distill")
    kept = log.handlers[:], log.level, log.propagate
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        log.handlers[:], log.level, log.propagate = kept
        root.handlers[:], root.level = handlers, level
