"""What tune.py searches: `lr=log:1e-4:1e-1`, `batch_size=4:32`, `optimizer=sgd,adamw`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from jsonargparse.typing import NonNegativeInt, PositiveInt

from experiments.command_line.known_names import nearest
from experiments.command_line.parser import flag
from experiments.command_line.run_config import RunConfig
from experiments.many_runs.cells import OWN, comma_separated

if TYPE_CHECKING:
    import optuna

FIXED = tuple(name for name in OWN if name not in ("backbone", "head"))


@dataclass(frozen=True)
class Axis:
    """One setting of run.py and the values it may take."""

    name: str
    choices: tuple[str, ...] = ()
    """Values as on the command line; none for a range."""
    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False
    """Only whole numbers."""

    def ask(self, trial: optuna.Trial) -> str:
        """The trial's value, as on the command line."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log))
        return repr(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def ends(self) -> tuple[str, ...]:
        """All choices, or the ends of the range: what must be valid for all of it to be."""
        kind = int if self.whole else float
        return self.choices or (repr(kind(self.low)), repr(kind(self.high)))


def read_axis(text: str) -> Axis:
    """`NAME=log:LOW:HIGH`, `NAME=LOW:HIGH` or `NAME=VALUE,VALUE`.

    Raises:
        ValueError: it is none of these, or no setting of run.py has that name.
    """
    flag, _, values = text.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    known = {field.name: field.type for field in dataclasses.fields(RunConfig) if field.name not in FIXED}
    if name in FIXED:
        raise ValueError(f"--search: tune.py sets {name} itself; search another setting")
    if name not in known:
        raise ValueError(f"--search: no setting '{name}'; nearest: {nearest(name, known)}")
    log = values.startswith("log:")
    ends = values.removeprefix("log:").split(":")
    if len(ends) == 2 and all(is_number(end) for end in ends):
        low, high = map(float, ends)
        whole = bool({PositiveInt, NonNegativeInt} & {known[name], *get_args(known[name])})
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


@dataclass
class TuneConfig:
    """The order of the fields is the order of `--help`."""

    search: str = flag((), "settings and where to search: lr=log:1e-4:1e-1 warmup=0:0.2 optimizer=sgd,adamw", nargs="+")
    trials: PositiveInt = flag(20, "runs in all, those of earlier calls included")
    jobs: PositiveInt = flag(1, "runs at a time, which share the cores")
    gpus: str = flag("", "numbers of GPUs to share out among the jobs, such as 0,1,2,3; default: each run sees all")
    out: str = flag("runs/tune", "folder of the study (study.db) and its run folders, trial-0 and so on")
    seed: NonNegativeInt = flag(0, "of the search; run.py's own goes after --")
    prune: bool = flag(True, "stop runs that score below the median of the others after as many epochs")
