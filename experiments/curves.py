"""Learning curves of groups of runs."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from experiments.paired import Mean, mean_of
from experiments.runs import Run

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 12


def mean_curve(runs: Iterable[Run], column: str) -> dict[int, Mean]:
    """A column of metrics.csv by epoch, over the runs that have it."""
    values = defaultdict(list)
    for run in runs:
        for row in run.curve:
            if column in row and "epoch" in row:
                values[int(row["epoch"])].append(row[column])
    return {epoch: mean for epoch, several in sorted(values.items()) if (mean := mean_of(several))}


def sparkline(values: Sequence[float]) -> str:
    """A curve in a line of text, from its least to its greatest value, thinned to `LONGEST` characters."""
    if not values:
        return ""
    steps = min(len(values), LONGEST)
    chosen = [values[round(i * (len(values) - 1) / max(1, steps - 1))] for i in range(steps)]
    least, greatest = min(chosen), max(chosen)
    scale = (len(BARS) - 1) / (greatest - least) if greatest > least else 0.0
    return "".join(BARS[round((value - least) * scale)] for value in chosen)
