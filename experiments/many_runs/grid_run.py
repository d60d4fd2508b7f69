"""Run the cells of a grid, several at a time: skips finished runs, continues interrupted ones, reports failed ones.

A first Ctrl-C or SIGTERM is forwarded to the runs, which save and stop; a second one kills them.
"""

from experiments.many_runs.cells import Cell
from experiments.many_runs.child_runs import Child, Signals, Slot, failure, resume_if_damaged
from experiments.many_runs.grid_view import CellState, GridView
from experiments.run_files.read_run import is_finished


def run_grid(grid: list[Cell], slots: list[Slot]) -> int:
    """Returns 0 if all cells are finished, 1 if some failed, and 130 or 143 if Ctrl-C or SIGTERM stopped the grid."""
    states = [CellState(cell, "finished" if is_finished(cell.folder) else "waiting") for cell in grid]
    waiting = [state for state in states if state.state == "waiting"]
    running: dict[int, CellState] = {}
    with Signals() as signals, GridView(states) as view:
        while running or (waiting and not signals):
            for number, slot in enumerate(slots):
                if number not in running and waiting and not signals:
                    running[number] = waiting.pop(0)
                    start(running[number], slot)
            view.update()
            signals.wait()
            signals.pass_on([state.child for state in running.values() if state.child is not None])
            for state in running.values():
                follow(state, stopping=bool(signals))
            running = {number: state for number, state in running.items() if state.state == "running"}
        view.update()
    if signals:
        return signals.exit_code
    return int(any(state.state == "failed" for state in states))


def start(state: CellState, slot: Slot) -> None:
    folder = state.cell.folder
    state.child = Child([*state.cell.arguments, *slot.arguments, *resume_if_damaged(folder)], folder, slot.environment)
    state.state = "running"


def follow(state: CellState, *, stopping: bool) -> None:
    """Update the state from the run's files, and from its exit code once it has ended."""
    assert state.child is not None
    code = state.child.code()  # asked first, so that everything a run wrote before it ended is read below
    state.read()
    if code == 0 and is_finished(state.cell.folder):
        state.state = "finished"
    elif code is not None:
        state.state = "stopped" if stopping else "failed"
        state.reason = failure(state.child)
