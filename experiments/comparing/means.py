"""Means over seeds, and differences between two groups of runs paired by seed.

Standard deviations are those of a sample (divided by n - 1). The interval is Student's t interval of the mean of the
paired differences: mean ± t(n - 1) s / sqrt(n). It assumes differences that are about normally distributed, and is not
widened for the number of groups that are compared.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from experiments.run_files.read_run import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedStatistics:
    """Mean and standard deviation of the values of `n` seeds; a single seed has no deviation."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of two groups on the `n` seeds that both have, with its interval; a single seed has none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def mean_of(values: Sequence[float]) -> SeedStatistics | None:
    """The statistics of the values; None if there are none."""
    if not values:
        return None
    n = len(values)
    mean = math.fsum(values) / n
    return SeedStatistics(mean, deviation(values, mean) if n > 1 else None, n)


def deviation(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The difference of `ours` to `theirs`, both by seed; None if they have no seed in common."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    mean, half = interval(differences)
    if len(differences) == 1:
        return Difference(mean, None, None, 1)
    return Difference(mean, mean - half, mean + half, len(differences))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % Student t interval, which is 0 for a single value."""
    found = mean_of(values)
    assert found is not None
    half = 0.0 if found.std is None else t_quantile(found.n - 1) * found.std / math.sqrt(found.n)
    return found.mean, half


@lru_cache
def t_quantile(degrees: int) -> float:
    """The (1 + CONFIDENCE) / 2 quantile of Student's t distribution."""
    from scipy.special import stdtrit  # takes half a second, which single seeds do not need

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def mean_curve(runs: Iterable[Run], column: str) -> dict[int, SeedStatistics]:
    """A column of metrics.csv by epoch, over the runs that have it."""
    values = defaultdict(list)
    for run in runs:
        for row in run.curve:
            if column in row and "epoch" in row:
                values[int(row["epoch"])].append(row[column])
    return {epoch: mean for epoch, several in sorted(values.items()) if (mean := mean_of(several))}
