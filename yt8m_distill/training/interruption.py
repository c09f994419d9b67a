"""Stopping on request: SIGTERM and Ctrl-C end the step, save, and say how to go on."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A script was asked to stop, and what it has done so far is safe.

    As with KeyboardInterrupt, nothing that handles an Exception shall take it for one:
    AutoGraph, for example, puts another in its place.

    Attributes:
        signal_number: of the signal; a script exits with 128 plus it.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def name_of(signal_number: int) -> str:
    """15 → `SIGTERM`."""
    return signal.Signals(signal_number).name


@contextlib.contextmanager
def raised(how_to_go_on: str) -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise Interrupted; a second one ends the process.

    So what is being written is removed on the way out. Handlers can only be set in the
    main thread; elsewhere this does nothing.

    Args:
        how_to_go_on: the end of the message.
    """
    before: dict = {}

    def stop(number, frame) -> None:
        del frame
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        message = f"stopped by {name_of(number)}. {how_to_go_on}"
        raise Interrupted(number, message)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Notes SIGTERM and SIGINT while it is active; a second one acts at once.

    Handlers can only be set in the main thread; elsewhere this does nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._before: dict = {}

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        del frame
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *exception) -> None:
        self._restore()
