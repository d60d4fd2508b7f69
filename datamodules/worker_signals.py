"""The signals that end a data-loader worker: only those of the training process that started it.

Ctrl-C in a terminal and a cluster's signals reach every process of a job. The training process then finishes its step
and saves a checkpoint. A worker that ended at once would make that step fail.

The sender of SIGTERM cannot be found out on macOS and Windows (Python has no `signal.sigwaitinfo` there). A worker then
ends by SIGTERM from any process.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Start workers in here: they inherit that SIGTERM is blocked, and so do all their threads.

    A worker that is not forked starts threads while it imports numpy and torch, before `ignore_signals_except_parents`.
    A fork server that ran before keeps its own signal mask, and gives that one to its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # it would unblock SIGTERM if it were started below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals_except_parents() -> None:
    """Ignore SIGINT and SIGUSR1; obey SIGTERM only if the training process sent it, because it ends hung workers so."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    # Not os.getppid(): a worker may have been started by a fork server, which is the default of Python 3.14 on Linux.
    parent = multiprocessing.parent_process()
    parent_pid = os.getppid() if parent is None or parent.pid is None else parent.pid
    # Blocked, so that the signal waits for the thread that can see its sender.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=exit_on_sigterm_of, args=(parent_pid,), daemon=True).start()


def exit_on_sigterm_of(parent_pid: int) -> None:
    """Wait for SIGTERM from that process, discarding it from all others, then end this one."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent_pid:
        pass
    os._exit(0)
