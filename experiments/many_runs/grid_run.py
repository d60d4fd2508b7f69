"""Run the cells of a grid, some at a time: skip what is finished, go on with what was broken off, tell what fails.

A first Ctrl-C or SIGTERM is passed on to the runs, which save and stop; a second kills them.
"""

import time

from experiments.many_runs.cells import Cell
from experiments.many_runs.child_runs import Child, Signals, failure, resume_if_damaged, slot_environment
from experiments.many_runs.grid_view import CellState, GridView
from experiments.run_files.read_run import is_finished

SECONDS_BETWEEN_LOOKS = 0.2


def run_grid(grid: list[Cell], jobs: int, gpus: list[str]) -> int:
    """The exit code: 0 if all cells are finished, 1 if some failed, 130 or 143 if Ctrl-C or SIGTERM stopped it."""
    states = [CellState(cell, "finished" if is_finished(cell.folder) else "waiting") for cell in grid]
    waiting = [state for state in states if state.state == "waiting"]
    running: dict[int, CellState] = {}
    with Signals() as signals, GridView(states) as view:
        while running or (waiting and not signals):
            for slot in range(jobs):
                if slot not in running and waiting and not signals:
                    running[slot] = waiting.pop(0)
                    start(running[slot], slot_environment(jobs, slot, gpus))
            view.update()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            signals.pass_on([state.child for state in running.values() if state.child is not None])
            for state in running.values():
                follow(state, stopping=bool(signals))
            running = {slot: state for slot, state in running.items() if state.state == "running"}
        view.update()
    if signals:
        return signals.exit_code
    return int(any(state.state == "failed" for state in states))


def start(state: CellState, environment: dict[str, str]) -> None:
    folder = state.cell.folder
    state.child = Child([*state.cell.arguments, *resume_if_damaged(folder)], folder, environment)
    state.state = "running"


def follow(state: CellState, *, stopping: bool) -> None:
    """Take over how far a run is, and how it has ended if it has."""
    assert state.child is not None
    code = state.child.code()  # first: what it wrote before it ended is read then
    state.read()
    if code == 0 and is_finished(state.cell.folder):
        state.state = "finished"
    elif code is not None:
        state.state = "stopped" if stopping else "failed"
        state.reason = failure(state.child)
