"""Freed memory stays with the process, unless the environment decides."""

import platform
import subprocess
import sys

import pytest

from yt8m_distill import allocator

GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.fixture
def no_variables(monkeypatch):
    for name in allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not GLIBC, reason="only glibc takes these parameters")
def test_glibc_takes_every_parameter(no_variables):
    assert allocator.keep_freed_memory()


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_a_setting_in_the_environment_wins(no_variables, monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert not allocator.keep_freed_memory()


def test_another_library_is_left_alone(no_variables, monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()


# A thread allocates and frees 150 MB in pieces, ten times over: three of its heaps,
# which glibc drops each time. The page faults of the last nine tell.
CHURN = """
import ctypes, resource, sys, threading
from yt8m_distill import allocator
if sys.argv[1] == "kept":
    assert allocator.keep_freed_memory()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.argtypes = [ctypes.c_void_p]
size, pieces = 100_000, 1500  # 150 MB: three heaps of 64 MB

def churn():
    for number in range(10):
        if number == 1:
            before.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        found = [malloc(size) for _ in range(pieces)]
        for place in found:
            ctypes.memset(place, 1, size)
        for place in found:
            free(place)

before = []
thread = threading.Thread(target=churn)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before[0])
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc takes these parameters")
def test_pages_are_not_asked_for_again(no_variables):
    faults = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", CHURN, way],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for way in ("kept", "as glibc does it")
    }
    # 150 MB are 37,000 pages of 4 kB. How many of them glibc gives back each time is
    # its own affair; kept, none is.
    assert 10 * faults["kept"] < faults["as glibc does it"]
