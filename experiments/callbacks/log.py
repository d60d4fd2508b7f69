"""What a log is: one place besides metrics.csv that gets the rows, pictures and results of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import yaml

from experiments.run_files.run_folder import RunFolder

LogRow = Mapping[str, float]


@dataclass(frozen=True)
class Ending:
    """What a run ends with."""

    step: int
    results: dict[str, Any]
    """The dictionary of results.json."""
    settings: dict[str, Any]
    """The settings and the costs."""
    matrix: np.ndarray | None
    """Counts [truth, prediction] `(C, C)` over the validation split; None for classifiers of very many classes."""
    folder: RunFolder


class Log(Protocol):
    """One place that curves go to."""

    name: str

    def start(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Training begins after `step`; the rows of metrics.csv until then are given for a log that has lost some."""

    def row(self, values: LogRow, step: int) -> None: ...

    def end(self, ending: Ending) -> None: ...

    def close(self, exit_code: int) -> None: ...


def settings(folder: RunFolder, costs: Mapping[str, float]) -> dict[str, Any]:
    """Those of config.yaml, and the costs."""
    return {**yaml.safe_load(folder.config.read_text(encoding="utf-8")), **costs}
