"""Runs the cells of claims, each in a process forked from one that has imported everything.

A cell takes seconds, so importing torch for each would double the time.
"""

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing import connection, forkserver

from experiments.claiming.claim import Cell
from experiments.command_line.known_names import ROOT
from experiments.command_line.process import end_with_parent
from experiments.command_line.progress import duration
from experiments.many_runs.child_runs import Signals, Started, failure, resume_if_damaged, slots
from experiments.run_files.read_run import is_finished

IMPORTED = ["experiments.training.train", "torch._dynamo"]
"""Modules that are imported once; the optimisers of torch need the second."""
SECONDS_BETWEEN_SIGNALS = 0.2
"""How long a signal may have to wait while no run ends."""
CONTEXT = multiprocessing.get_context("forkserver")


class Forked(Started):
    """One cell that is running, or has ended."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell.folder)
        arguments = [*cell.arguments, *resume_if_damaged(cell.folder)]
        self.process = CONTEXT.Process(target=work, args=(arguments, str(self.log)))
        self.process.start()

    def code(self) -> int | None:
        return self.process.exitcode

    def stop(self, signum: int) -> None:
        if self.code() is None and self.process.pid is not None:
            os.kill(self.process.pid, signum)

    def kill(self) -> None:
        self.process.kill()


def work(arguments: list[str], log: str) -> None:
    """Be run.py in a forked process: its output goes to the log, and a Ctrl-C in the terminal does not reach it."""
    os.setsid()
    end_with_parent()
    with open(log, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.environ.pop("GRAFT_RUN_FOLDER", None)
    from experiments.run import main

    code = main(arguments)
    print(f"{time.process_time():.1f} s of processor time")
    sys.exit(code)


@dataclass
class Progress:
    """Prints a line for each cell that ends."""

    total: int
    started: float
    done: int = 0

    def say(self, cell: Cell, child: Started, problem: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        how = f"failed, {problem} ({child.log})" if problem else f"done in {duration(child.seconds)}"
        print(
            f"{time.strftime('%H:%M:%S')}  {self.done}/{self.total}  {duration(left)} left  {cell.claim}: {cell.arm}, "
            f"seed {cell.seed}: {how}",
            flush=True,
        )


def run_cells(cells: list[Cell], jobs: int) -> int:
    """Run the cells that are not finished, `jobs` at a time.

    Returns:
        0 if all are finished, 1 if some have failed, 130 or 143 if Ctrl-C or SIGTERM stopped the runs.
    """
    waiting = [cell for cell in cells if not is_finished(cell.folder)]
    if not waiting:
        return 0
    print(f"{len(waiting)} of {len(cells)} runs are left", flush=True)
    progress, failed = Progress(len(waiting), time.monotonic()), False
    start_server(jobs)
    running: list[tuple[Cell, Forked]] = []
    with Signals() as signals:
        while running or (waiting and not signals):
            while waiting and len(running) < jobs and not signals:
                cell = waiting.pop(0)
                running.append((cell, Forked(cell)))
            connection.wait([child.process.sentinel for _, child in running], SECONDS_BETWEEN_SIGNALS)
            signals.pass_on([child for _, child in running])
            for cell, child in running:
                if child.code() is not None and not signals:
                    problem = problem_of(child)
                    progress.say(cell, child, problem)
                    failed |= bool(problem)
            running = [(cell, child) for cell, child in running if child.code() is None]
    if signals:
        print("stopped; the same command continues", flush=True)
        return signals.exit_code
    return int(failed)


def problem_of(child: Started) -> str:
    """Why a run that has ended is not finished; empty if it is."""
    return "" if child.code() == 0 and is_finished(child.folder) else failure(child)


def start_server(jobs: int) -> None:
    """Start the process that is forked, with a share of the cores, on the code of this checkout."""
    # Without PYTHONSAFEPATH, the current directory would come first, which may be another checkout.
    changed = {"OMP_WAIT_POLICY": "passive", "PYTHONSAFEPATH": "1", **slots(jobs, "")[0].environment}
    changed["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        CONTEXT.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
