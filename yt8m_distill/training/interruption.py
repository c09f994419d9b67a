"""Handles SIGTERM and Ctrl-C: finish the step, save, and print how to continue."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A script was asked to stop, and its work so far is saved.

    Like KeyboardInterrupt it is no Exception, so that no handler of exceptions catches
    it; AutoGraph, for example, would replace it by another one.

    Attributes:
        signal_number: of the signal; a script exits with 128 + signal_number.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def name_of(signal_number: int) -> str:
    """15 → `SIGTERM`."""
    return signal.Signals(signal_number).name


@contextlib.contextmanager
def _handled(handler: Callable) -> Iterator[None]:
    """Sets the handler of SIGTERM and SIGINT.

    Handlers can only be set in the main thread; elsewhere this does nothing.
    """
    old_handlers = {}
    if threading.current_thread() is threading.main_thread():
        old_handlers = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old_handler in old_handlers.items():
            signal.signal(number, old_handler)


@contextlib.contextmanager
def raised(how_to_go_on: str) -> Iterator[None]:
    """Makes SIGTERM and SIGINT raise Interrupted; a second signal ends the process.

    The message ends with `how_to_go_on`.

    The exception lets unfinished files be removed. Native code, such as that of an
    import, may put another in its place, so any error after a signal is Interrupted.
    """
    stops: list[Interrupted] = []

    def stop(number, frame) -> None:
        del frame
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        message = f"stopped by {name_of(number)}. {how_to_go_on}"
        stops.append(Interrupted(number, message))
        raise stops[0]

    with _handled(stop):
        try:
            yield
        except Exception as error:
            if stops:
                raise stops[0] from error
            raise


def restore_handlers() -> None:
    """Puts Python's handlers back in place of those of native code.

    TensorFlow's coordination service takes SIGTERM for itself (2.21), and ignores it.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.getsignal(number))


class Watch(contextlib.ExitStack):
    """Records SIGTERM and SIGINT while active; a second signal takes effect at once."""

    received: int | None = None

    def __enter__(self) -> "Watch":
        self.enter_context(_handled(self._record))
        return self

    def _record(self, number, frame) -> None:
        del frame
        self.received = number
        self.close()  # Restores the old handlers.
