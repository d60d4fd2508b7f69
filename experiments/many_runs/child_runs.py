"""run.py in processes of its own: each with a log beside its run folder, ended together with this process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Self

from experiments.command_line.known_names import RUN
from experiments.command_line.process import end_with_parent
from experiments.run_files.read_run import read_run


class Child:
    """One run.py that is running, or has ended.

    Its output is appended to `FOLDER.log`. A session of its own keeps Ctrl-C of the terminal from it, and from its
    loader processes, which would report it at length: who started it passes signals on.
    """

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.log = folder.with_name(folder.name + ".log")
        self.started = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
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

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.poll()

    def stop(self, signum: int) -> None:
        """Ask run.py alone: it ends its loaders and the other processes of DDP itself, after saving."""
        if self.code() is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        """End it and all that it started, at once."""
        if self.code() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_line(self) -> str:
        """The last line of its log that says something."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def failure(child: Child) -> str:
    """Why a run that has ended is not finished."""
    code = child.code()
    return f"exit code {code}: {child.last_line()}" if code else f"exit code 0, but {read_run(child.folder).reason}"


def resume_if_damaged(folder: Path) -> list[str]:
    """What makes run.py go on with a run that is not finished, though half a results.json makes it look so."""
    return ["--resume"] if (folder / "results.json").is_file() else []


def slot_environment(jobs: int, slot: int, gpus: list[str]) -> dict[str, str]:
    """The environment of the run in one of `jobs` slots: its share of the cores, and of the GPUs if they are named."""
    environment = {}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        environment["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot % len(gpus) :: jobs])
    return environment


class Signals:
    """SIGINT and SIGTERM that come while the `with` block runs are passed on to runs, instead of ending this process.

    The first one asks them to stop, a further one kills them.
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
        """What a shell would report, had the first signal ended this process."""
        return 128 + self.received[0]

    def pass_on(self, running: Iterable[Child]) -> None:
        """What has come since the last call."""
        for signum in self.received[self.passed_on :]:
            for child in running:
                if self.passed_on:
                    child.kill()
                else:
                    child.stop(signum)
            self.passed_on += 1
