"""Stopping on request: SIGTERM and Ctrl-C end the step, save, and say how to go on."""

import signal
import threading


class Interrupted(Exception):
    """A run was asked to stop and has saved its state.

    Attributes:
        signal_number: of the signal; a script exits with 128 plus it.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


class Watch:
    """Notes SIGTERM and SIGINT while it is active; a second one acts at once.

    Handlers can only be set in the main thread; elsewhere this does nothing.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: int | None = None
        self._before: dict = {}

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            for number in self._SIGNALS:
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
