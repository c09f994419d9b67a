"""How the C library keeps memory that TensorFlow has freed.

A training step frees and asks for the same buffers again and again. glibc gives
them back to the kernel in between, because it drops every 64 MB heap of a thread
that has become empty, and the kernel hands them out again page by page, zeroed: a
third of the time of a small network's step. With a pad of more than a heap they
stay. Nothing is reserved but addresses; memory that was used once stays with the
process until it ends, so its size is that of its largest moment, as before.
"""

import ctypes
import os

# Names and numbers of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

PARAMETERS = {
    M_TOP_PAD: 256 << 20,
    # The pad switches off that these two adapt to what is freed: they get the
    # values to which they would have risen. glibc takes no more than 32 MB for
    # the second one.
    M_TRIM_THRESHOLD: 1 << 30,
    M_MMAP_THRESHOLD: 32 << 20,
}
# Whoever sets one of these has decided for themselves.
VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
)


def keep_freed_memory() -> bool:
    """Lets freed memory stay in the process, for the rest of its life.

    Returns:
        Whether it was done: not with another C library than glibc, nor against a
        setting in the environment.
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    try:
        library = ctypes.CDLL(None)
        # Other libraries have a mallopt too, with other parameters.
        library.gnu_get_libc_version  # noqa: B018
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    return all([mallopt(name, value) == 1 for name, value in PARAMETERS.items()])
