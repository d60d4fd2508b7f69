"""Which signals end a loader process: those of the training process that started it.

Ctrl-C in a terminal and a cluster's signals reach every process of a job. The training process then finishes its step
and saves; a loader process that died before that would take the step with it.
"""

import os
import signal
import threading


def heed_parent_only() -> None:
    """Ignore what ends training; SIGTERM is looked into, since the training process ends hung loaders by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Blocked here and in all threads to come, so that it waits for the one that can see the sender.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def watch(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
