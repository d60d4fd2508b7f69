"""How a program ends: exit codes, one-line errors, signals, and dying with the parent process."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

USAGE_ERROR = 2
PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """A signal has ended the work where it can be gone on with; says where that is, in one of several processes."""

    def __init__(self, where: str | None, code: int) -> None:
        super().__init__(where)
        self.where = where
        self.code = code


class RunError(Exception):
    """What ended the work and is nobody's usage error: one line with the reason and what to do."""


def run_program(program: str, work: Callable[[], int | None], stopped: str) -> int:
    """The exit code of `work`, which imports torch itself. After a signal, `stopped` says where things stand."""
    # Threads that spin while they wait steal the processor from the loader: several-fold slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        return work() or 0
    except ValueError as error:
        print(f"{program}: error: {str(error).splitlines()[-1]}", file=sys.stderr)
        return USAGE_ERROR
    except RunError as fault:
        print(f"{program}: error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped; {stopped}", file=sys.stderr)
        return 130
    except Stopped as stop:
        if stop.where is not None:
            print(f"{program}: stopped by {stop.where}; {stopped}", file=sys.stderr, flush=True)
        return stop.code
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have Linux send this process the signal when its parent dies; other systems have no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
