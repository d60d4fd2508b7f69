"""The search space of tune.py: `lr=log:1e-4:1e-1`, `batch_size=4:32`, `optimizer=sgd,adamw`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_type_hints

from experiments.command_line.kinds import NonNegativeInt, PositiveInt, kind_of
from experiments.command_line.known_names import nearest
from experiments.command_line.parser import flag
from experiments.command_line.run_flags import RunConfig
from experiments.many_runs.cells import OWN, comma_separated
from experiments.many_runs.child_runs import GPUS_HELP

if TYPE_CHECKING:
    import optuna

FIXED = tuple(name for name in OWN if name not in ("backbone", "head"))


@dataclass
class TuneConfig:
    """The order of the fields is the order of `--help`."""

    search: list[str] = flag((), "settings and where to search: lr=log:1e-4:1e-1 warmup=0:0.2 optimizer=sgd,adamw")
    trials: PositiveInt = flag(20, "number of trials in all, including those of earlier calls")
    jobs: PositiveInt = flag(1, "number of runs at a time; they share the CPU cores")
    gpus: str = flag("", GPUS_HELP)
    out: str = flag("runs/tune", "folder of the study (study.db) and its run folders, trial-0 and so on", path=True)
    seed: NonNegativeInt = flag(0, "random seed of the search; the runs' own --seed goes after --")
    prune: bool = flag(True, "stop runs that score below the median of the others after as many epochs")


@dataclass(frozen=True)
class Axis:
    """One setting of run.py and the values it may take: either `choices`, or a range from `low` to `high`."""

    name: str
    choices: tuple[str, ...] = ()
    """Values as on the command line; empty for a range."""
    low: float = 0
    high: float = 0
    log: bool = False
    """Whether the range is searched on a logarithmic scale."""
    whole: bool = False
    """Whether only whole numbers are tried."""

    def suggest(self, trial: optuna.Trial) -> str:
        """The value that the study suggests for the trial, as on the command line."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log))
        return repr(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def to_check(self) -> tuple[str, ...]:
        """All choices, or both ends of the range; if these are valid, the whole axis is."""
        if self.choices:
            return self.choices
        return (str(int(self.low)), str(int(self.high))) if self.whole else (repr(self.low), repr(self.high))


def read_axis(text: str) -> Axis:
    """Parse `NAME=log:LOW:HIGH`, `NAME=LOW:HIGH` or `NAME=VALUE,VALUE`.

    Raises:
        ValueError: it is none of these, or no setting of run.py has that name.
    """
    flag, _, values = text.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    known = {key: hint for key, hint in get_type_hints(RunConfig, include_extras=True).items() if key not in FIXED}
    if name in FIXED:
        raise ValueError(f"--search: tune.py sets {name} itself; search another setting")
    if name not in known:
        raise ValueError(f"--search: no setting '{name}'; nearest: {nearest(name, known)}")
    log = values.startswith("log:")
    ends = values.removeprefix("log:").split(":")
    number = kind_of(known[name]).number
    if number and len(ends) == 2 and all(is_number(end) for end in ends):
        low, high = map(float, ends)
        whole = number is int
        if not low < high or (log and low <= 0) or (whole and not (low.is_integer() and high.is_integer())):
            raise ValueError(f"--search: {values} is no range of {name}")
        return Axis(name, (), low, high, log, whole)
    choices = comma_separated(values)
    if log or len(choices) < 2:
        raise ValueError(f"--search: '{text}' is not NAME=LOW:HIGH, NAME=log:LOW:HIGH or NAME=VALUE,VALUE")
    return Axis(name, tuple(choices))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
