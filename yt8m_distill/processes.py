"""Worker processes of a program."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from yt8m_distill import flag_groups
from yt8m_distill.training import interruption


def _start_process() -> None:
    """Makes a process of a pool end exactly when its parent does."""
    flag_groups.load_tensorflow()
    import tensorflow as tf

    # Each process would reserve the whole memory of a GPU.
    tf.config.set_visible_devices([], "GPU")
    parent = multiprocessing.parent_process().sentinel

    def end_with_parent():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    # A pool whose parent is killed waits for work forever (seen in Python 3.11).
    threading.Thread(target=end_with_parent, daemon=True).start()


def _call(function: Callable, task: tuple) -> Any:
    """Calls a function in a process of a pool; SIGTERM lets it remove its files."""
    try:
        with interruption.raised(""):
            return function(*task)
    except interruption.Interrupted:
        os._exit(1)


def call_all(
    function: Callable, tasks: Iterable[tuple], jobs: int
) -> Iterator[tuple[tuple, Any]]:
    """Calls a function in processes; gives each task and its result, as they end.

    After a signal or an error, the processes are ended.

    Args:
        function: of a module.
        tasks: the arguments of each call.
        jobs: number of processes.

    Raises:
        ValueError: if a process is killed.
    """
    # spawn: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _start_process) as pool:
        try:
            # The processes start here, and inherit that Ctrl-C is blocked: it is for
            # this one alone.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = {pool.submit(_call, function, task): task for task in tasks}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except concurrent.futures.BrokenExecutor as error:
            raise ValueError(f"A process ended: {error}") from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
