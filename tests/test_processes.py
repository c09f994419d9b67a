import signal

import pytest

from yt8m_distill import processes


@pytest.mark.slow
def test_ctrl_c_does_not_reach_the_processes_of_a_program():
    """The terminal sends it to all of them, and each would print a traceback."""
    task = (signal.SIG_BLOCK, ())
    found = list(processes.call_all(signal.pthread_sigmask, [task], 1))
    assert found == [(task, {signal.SIGINT})]
    assert signal.pthread_sigmask(*task) == set()
