"""The interface of a log: a place besides metrics.csv that gets the rows, pictures and results of a run."""

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
        """Called when training begins after `step`.

        `rows` are the rows of metrics.csv up to that step, so that a log can add those that it has lost.
        """

    def row(self, values: LogRow, step: int) -> None: ...

    def end(self, ending: Ending) -> None: ...

    def close(self, exit_code: int) -> None: ...


def settings(folder: RunFolder, costs: Mapping[str, float]) -> dict[str, Any]:
    """Return the settings in config.yaml, and the costs."""
    return {**yaml.safe_load(folder.config.read_text(encoding="utf-8")), **costs}
