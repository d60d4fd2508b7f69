"""Progress of a loop: a bar on a terminal, otherwise a line every ten seconds. Imports no torch."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.markup import escape
from rich.progress import track

from experiments.command_line.console import make_console

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def with_progress(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """Yield the items; show a bar on a terminal, and otherwise print a line every ten seconds.

    There may be more items than `total`, of a camera for example.
    """
    console = make_console()
    if console.is_terminal:
        yield from track(items, escape(title), total, console=console)
        return
    started = last_line = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            left = (last_line - started) / done * (total - done)
            console.print(f"{title}  {done}/{total}  {duration(left)} left" if done <= total else f"{title}  {done}")


def duration(seconds: float) -> str:
    """Format as minutes:seconds, or as hours:minutes:seconds from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
