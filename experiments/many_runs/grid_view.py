"""What a grid shows while it runs: a live table on a terminal, otherwise a line for each event; a table at the end."""

import time
from collections import Counter
from dataclasses import dataclass

from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.command_line.console import make_console
from experiments.command_line.progress import duration
from experiments.many_runs.cells import Cell
from experiments.many_runs.child_runs import Child
from experiments.run_files.read_run import read_run, validation_scores

WIDTH_OF_FILES = 120
ORDER = {"running": 0, "failed": 1, "stopped": 2, "waiting": 3, "finished": 4}
COLOURS = {"running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim", "finished": "green"}


@dataclass
class CellState:
    """The state and progress of a cell."""

    cell: Cell
    state: str
    """One of `ORDER`."""
    child: Child | None = None
    epoch: int = 0
    epochs: int | None = None
    best: float | None = None
    seconds: float | None = None
    reason: str = ""
    """Why it failed or was stopped."""

    def read(self) -> None:
        """Update progress and scores from the run folder."""
        run = read_run(self.cell.folder)
        scores = validation_scores(run)
        self.epoch, self.best = max(scores, default=0), max(scores.values(), default=None)
        self.seconds = run.costs.get("wall_time_s") if self.child is None else self.child.seconds
        self.epochs = run.config.get("epochs", self.epochs)


class GridView:
    """Shows the cells' states while its `with` block runs."""

    def __init__(self, states: list[CellState]) -> None:
        self.states = states
        self.console = make_console(WIDTH_OF_FILES)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.shown: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> "GridView":
        for state in self.states:
            if state.state == "finished":
                state.read()
                self.shown[state.cell.name] = (state.state, state.epoch)
        self.console.print(f"{len(self.states)} runs: {self.counts()}")
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        self.console.print(self.table(self.states))
        for state in self.states:
            if state.state == "failed":
                line = f"{state.cell.name} failed, {state.reason} ({state.cell.folder}.log)"
                self.console.print(line, soft_wrap=True)

    def update(self) -> None:
        """Refresh the table, or print a line for each run that began, ended or finished an epoch."""
        if self.console.is_terminal:
            rows = max(3, self.console.height - 6)
            self.live.update(self.table(sorted(self.states, key=lambda one: ORDER[one.state])[:rows]), refresh=True)
            return
        for state in self.states:
            now = (state.state, state.epoch)
            if state.state != "waiting" and self.shown.get(state.cell.name) != now:
                self.shown[state.cell.name] = now
                score = "" if state.best is None else f"  best {state.best:.3f}"
                took = "" if state.seconds is None else f"  {duration(state.seconds)}"
                reason = f"  {state.reason}" if state.reason else ""
                line = f"{state.cell.name}  {state.state}  {progress(state)}{score}{took}{reason}"
                self.console.print(f"{time.strftime('%H:%M:%S')}  {line}", soft_wrap=True)

    def counts(self) -> str:
        number = Counter(one.state for one in self.states)
        return ", ".join(f"{number[kind]} {kind}" for kind in reversed(ORDER) if number[kind])

    def table(self, states: list[CellState]) -> Table:
        table = Table(caption=self.counts(), caption_justify="left")
        for title in ("run", "state"):
            table.add_column(title, no_wrap=True)
        for title in ("epoch", "best score", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("last line", no_wrap=True, overflow="ellipsis", ratio=1)
        for one in states:
            line = one.child.last_line() if one.child is not None and one.state == "running" else one.reason
            table.add_row(
                one.cell.name,
                Text(one.state, COLOURS[one.state]),
                progress(one),
                "" if one.best is None else f"{one.best:.4f}",
                "" if one.seconds is None else duration(one.seconds),
                line,
            )
        return table


def progress(state: CellState) -> str:
    return f"{state.epoch}/{state.epochs}" if state.epochs is not None else ""
