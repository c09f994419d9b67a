"""A signal stops a script cleanly, with a line on how to continue."""

import ctypes
import os
import signal

import pytest

from yt8m_distill.training import interruption

pytestmark = pytest.mark.once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_an_exception_that_says_how_to_continue(number):
    before = signal.getsignal(number)
    with pytest.raises(interruption.Interrupted) as stop:
        with interruption.raised("Do it again."):
            os.kill(os.getpid(), number)
            signal.pause()
    assert str(stop.value) == f"stopped by {number.name}. Do it again."
    assert stop.value.signal_number == number
    assert signal.getsignal(number) is before


def test_handlers_of_errors_do_not_swallow_it():
    with pytest.raises(interruption.Interrupted), interruption.raised(""):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an error")


def test_an_error_that_native_code_makes_of_it_is_the_stop():
    """pybind11 says of any exception in an import that initialization failed."""
    with pytest.raises(interruption.Interrupted, match="SIGINT. Again."):
        with interruption.raised("Again."):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except interruption.Interrupted as stop:
                raise ImportError("initialization failed") from stop
    with pytest.raises(ImportError), interruption.raised(""):
        raise ImportError("initialization failed")


def test_a_handler_that_native_code_has_replaced_is_put_back():
    """As TensorFlow does in a job of several processes, whose start may take hours."""
    ignore = ctypes.c_void_p(1)  # SIG_IGN, of which Python does not learn.
    with pytest.raises(interruption.Interrupted), interruption.raised(""):
        ctypes.CDLL(None).signal(signal.SIGTERM, ignore)
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.restore_handlers()
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_has_its_ordinary_effect():
    with interruption.raised(""):
        with pytest.raises(interruption.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_watch_notes_the_first_and_lets_the_second_act():
    with interruption.raised("Again."):
        with interruption.Watch() as watch:
            os.kill(os.getpid(), signal.SIGTERM)
            assert watch.received == signal.SIGTERM
            with pytest.raises(interruption.Interrupted, match="SIGINT. Again."):
                os.kill(os.getpid(), signal.SIGINT)
