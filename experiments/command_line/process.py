"""How a program ends: exit codes, one-line errors, signals, and ending together with the parent process."""

import ctypes
import errno
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

USAGE_ERROR = 2
PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""
KEPT_BYTES = 2**31 - 1
"""The most that mallopt takes."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PLACE = (*NOT_WRITABLE, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
"""Reasons of the system, not of a program, why a file cannot be written."""
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("backbones", "heads", "lightning_modules", "datamodules", "experiments")
"""The folders of this project's code below ROOT."""


class Stopped(BaseException):
    """Raised when a signal ends the work at a point from which it can be resumed.

    `where` describes that point on rank 0 and is None on other ranks.
    """

    def __init__(self, where: str | None, code: int) -> None:
        super().__init__(where)
        self.where = where
        self.code = code


class RunError(Exception):
    """Raised for a failure that is not a usage error; the message is one line with the reason and what to do."""


def run_program(program: str, work: Callable[[], int | None], stopped: str) -> int:
    """Run `work`, which imports torch itself, and return its exit code, or 0 if it returns None.

    Errors that this project raises for its users, and those of full or unwritable disks, become one line. Other errors
    are bugs and keep their traceback; GRAFT_TRACEBACK=1 in the environment shows that of every error of this project.
    `stopped` is what to say about resuming after a signal.
    """
    if importlib.util.find_spec("fcntl") is None:
        print(f"{program}: error: Graft runs on Linux and macOS; on Windows, use it within WSL", file=sys.stderr)
        return USAGE_ERROR
    wait_briefly()
    keep_freed_memory()
    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        return work() or 0
    except (ValueError, RunError) as error:
        if not raised_here(error):
            raise
        if os.environ.get("GRAFT_TRACEBACK") == "1":
            traceback.print_exception(error)
        print(f"{program}: error: {last_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else USAGE_ERROR
    except OSError as error:
        if error.errno not in (*NO_ROOM, *NO_PLACE):
            raise
        doing = "free some space" if error.errno in NO_ROOM else "give another place, or change what is there"
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: error: {where}{error.strerror}; {doing}; {stopped}", file=sys.stderr)
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


def wait_briefly() -> None:
    """Let threads of OpenMP that have no work spin for some microseconds and then sleep; call it before torch is there.

    Spinning for long, their default, takes CPU time from the data-loader workers: several times slower on a busy
    machine. Sleeping at once makes a run on two cores a quarter slower, as most layers are computed in less time than a
    thread takes to wake; but two such runs at once are a fifth faster if they sleep at once. GCC's OpenMP, which
    PyTorch uses on Linux, spins for GOMP_SPINCOUNT turns of a loop; other OpenMP libraries read the policy only.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def keep_freed_memory() -> None:
    """Let malloc keep memory that is freed, up to 2 GB in one piece, instead of returning it to the system at once.

    A training step and a CRF take and free the same large arrays again and again, and the system fills each page with
    zeros before it gives it out again: 5 to 9 % of a float32 step on a CPU. Settings of the user's own (MALLOC_... in
    the environment) stay. Does nothing where the C library is not glibc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, KEPT_BYTES)


def raised_here(error: BaseException) -> bool:
    """Return whether a `raise` statement of this project raised the error, rather than a library that it called.

    torch raises errors of data-loader workers again itself, so errors of this project's own classes count too.
    """
    if type(error).__module__.split(".")[0] in PACKAGES:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or "raise" not in (frames[-1].line or "").split():  # functions in C have no frame of their own
        return False
    return any(Path(frames[-1].filename).is_relative_to(ROOT / package) for package in PACKAGES)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[-1]


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have Linux send this process the signal when its parent dies; other systems have no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
