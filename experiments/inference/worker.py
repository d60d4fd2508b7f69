"""A process that runs one network in one way, for measurements: it is loaded once, then asked many times.

Two thread pools in one process slow each other down, so every runtime gets a process of its own. While it is not asked
it waits for its pipe and uses no processor. Imports no torch.
"""

import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line.process import end_with_parent
from experiments.inference.open_export import Made, Runner

SECONDS_TO_END = 30.0
LEAST_CALLS = 3
"""Timed calls of one round, however long they take, unless a program asks for fewer."""


class WorkerError(Exception):
    """The process could not load or run its network; the message is one line."""


class Worker:
    """A process that holds what `make(argument)` returns, a `Made`.

    Args:
        make: a function of a module, which the process imports.
    """

    def __init__(self, make: Callable[[Any], Made], argument: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, argument), daemon=True)
        self.process.start()
        theirs.close()
        self.note = ""
        self.busy = True

    def wait_until_ready(self) -> None:
        """Wait until the network is loaded. Raises WorkerError."""
        self.note = self._answer()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The network's output. Raises WorkerError."""
        return self._ask("run", batch)

    def latencies(self, batch: np.ndarray, seconds: float, least: int = LEAST_CALLS) -> list[float]:
        """Seconds of each call, after one that does not count, for about `seconds`. Raises WorkerError."""
        return self._ask("time", (batch, seconds, least))

    def peak_memory(self) -> float:
        """Most memory of the process since its network was loaded, in MB (10^6 bytes). Raises WorkerError."""
        return self._ask("memory", None)

    def stop(self) -> None:
        """End the process: it notices that its pipe is closed. One that has not answered is killed."""
        self.pipe.close()
        if not self.busy:
            self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join()

    def _ask(self, what: str, payload: Any) -> Any:
        try:
            self.busy = True
            self.pipe.send((what, payload))
        except OSError:
            raise WorkerError(self._death()) from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            well, answer = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(self._death()) from None
        self.busy = False
        if not well:
            raise WorkerError(answer)
        return answer

    def _death(self) -> str:
        self.process.join(10)
        code = self.process.exitcode
        hint = " (killed: too little memory?)" if code == -signal.SIGKILL else ""
        return f"its process ended with exit code {code}{hint}"


def serve(pipe: Connection, make: Callable[[Any], Made], argument: Any) -> None:
    """Load the network, then answer until the parent closes the pipe or ends."""
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    made: Made | None = None
    while True:
        try:
            if made is None:
                made = make(argument)
                forget_peak()
                pipe.send((True, made.note))
            what, payload = pipe.recv()
            pipe.send((True, answer(made.run, what, payload)))
        except (EOFError, OSError):
            return
        except Exception as error:  # whatever a library raises is one row's failure, and is said there
            pipe.send((False, one_line(error)))
            if made is None:
                return


def answer(run: Runner, what: str, payload: Any) -> Any:
    match what:
        case "run":
            return run(payload)
        case "time":
            return timed(run, *payload)
        case "memory":
            return peak_memory()
        case _:
            raise ValueError(f"no request '{what}'")


def timed(run: Runner, batch: np.ndarray, seconds: float, least: int) -> list[float]:
    """Seconds of each call, of which there are at least so many."""
    run(batch)
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        started = time.perf_counter()
        run(batch)
        found.append(time.perf_counter() - started)
    return found


def forget_peak() -> None:
    """Let the peak of memory begin anew, without what loading took. Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> float:
    """Most memory of this process in MB: on a GPU what PyTorch has allocated there, otherwise resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def one_line(error: BaseException) -> str:
    """The first line of an error that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
