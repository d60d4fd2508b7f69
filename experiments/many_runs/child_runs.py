"""run.py in child processes: each has a log next to its run folder and ends with this process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

from experiments.command_line.cores import available_cores
from experiments.command_line.known_names import RUN
from experiments.command_line.process import end_with_parent
from experiments.run_files.read_run import read_run

SECONDS_BETWEEN_POLLS = 1.0
"""Each poll reads the files of every run; network file systems are slow at that."""
GPUS_HELP = (
    "indices of the GPUs to divide among the jobs, such as 0,1,2,3, the same number for each; default: each run sees "
    "all GPUs"
)


@dataclass(frozen=True)
class Slot:
    """The part of the machine that one of several simultaneous runs gets."""

    environment: dict[str, str]
    arguments: list[str] = field(default_factory=list)
    """Arguments for run.py."""


def slots(jobs: int, gpus: str) -> list[Slot]:
    """Divide the CPU cores, and the GPUs if they are named, equally among `jobs` runs at a time.

    Args:
        gpus: the value of `--gpus`: indices with commas between them, or "".

    Raises:
        ValueError: the jobs cannot get the same number of GPUs, which would give their runs different global batches.
    """
    named = [one.strip() for one in gpus.split(",") if one.strip()]
    if len(set(named)) < len(named):
        raise ValueError(f"--gpus {gpus}: a GPU is named twice")
    if len(named) % jobs:
        raise ValueError(
            f"--gpus {gpus} --jobs {jobs}: {len(named)} GPUs cannot be divided equally among {jobs} jobs, and runs on "
            f"more GPUs have a larger global batch; name {len(named) - len(named) % jobs or jobs} GPUs or change --jobs"
        )
    each = len(named) // jobs
    environment = {}
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // jobs))
    if not named:
        return [Slot(environment)] * jobs
    shares = [",".join(named[job * each : (job + 1) * each]) for job in range(jobs)]
    return [Slot({**environment, "CUDA_VISIBLE_DEVICES": share}, ["--devices", str(each)]) for share in shares]


class Started:
    """A run in a process of its own, whose output is appended to `FOLDER.log`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_name(folder.name + ".log")
        self.started = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        raise NotImplementedError

    def stop(self, signum: int) -> None:
        """Send the signal to run.py alone; it saves, and then ends its data-loader workers and other ranks itself."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it and all processes that it started, at once."""
        raise NotImplementedError

    def last_line(self) -> str:
        """The last line of its log that is not blank."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Child(Started):
    """One run.py that is running, or has ended.

    It runs in a session of its own, so that a Ctrl-C in the terminal does not reach it or its data-loader workers
    (which would print tracebacks); the parent forwards signals instead.
    """

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__(folder)
        inherited = {name: value for name, value in os.environ.items() if name != "GRAFT_RUN_FOLDER"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(RUN), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def code(self) -> int | None:
        return self.process.poll()

    def stop(self, signum: int) -> None:
        if self.code() is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        if self.code() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def failure(child: Started) -> str:
    """Why a run that has ended is not finished."""
    code = child.code()
    return f"exit code {code}: {child.last_line()}" if code else f"exit code 0, but {read_run(child.folder).reason}"


def resume_if_damaged(folder: Path) -> list[str]:
    """Extra arguments for a run whose results.json is damaged: run.py would otherwise take the run for finished."""
    return ["--resume"] if (folder / "results.json").is_file() else []


class Signals:
    """Forwards SIGINT and SIGTERM to the runs while the `with` block runs, instead of ending this process.

    The first signal asks the runs to stop, a further one kills them.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.passed_on = 0

    def __enter__(self) -> Self:
        self.before = {signum: signal.signal(signum, self.note) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.received.append(signum)

    def __bool__(self) -> bool:
        return bool(self.received)

    @property
    def exit_code(self) -> int:
        """The exit code that a shell would report if the first signal had ended this process."""
        return 128 + self.received[0]

    def wait(self) -> None:
        """Sleep until the next poll, or until shortly after a signal."""
        end = time.monotonic() + SECONDS_BETWEEN_POLLS
        known = len(self.received)
        while len(self.received) == known and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def pass_on(self, running: Iterable[Started]) -> None:
        """Forward the signals that have come since the last call."""
        for signum in self.received[self.passed_on :]:
            for child in running:
                if self.passed_on:
                    child.kill()
                else:
                    child.stop(signum)
            self.passed_on += 1
