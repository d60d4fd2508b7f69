"""Claims: a paper's statement, the networks that are compared, and what has to be true of them. Imports no torch.

A file of `experiments/claims/` holds one. Its keys are the fields of `Claim`; README.md of experiments/ shows one.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.claiming.relation import Relation, read_relation
from experiments.command_line.known_names import nearest
from experiments.command_line.parser import Parser, dashed, settings_from
from experiments.command_line.run_checks import usage_problem
from experiments.command_line.run_config import build_parser
from experiments.command_line.run_flags import RunConfig
from experiments.many_runs.cells import another_run

FOLDER = Path(__file__).resolve().parents[1] / "claims"
COUNTED = ("params", "macs", "field", "cover")
"""Measures that need no training; `claiming.measured` counts them."""
COMMON = {"workers": 0, "precision": "32-true"}
"""Settings of all runs: the networks are so small that a process of its own for the data would only cost time."""
OWN = ("seed", "name", "out", "resume", "data_dir")
"""Settings of run.py that claims.py sets itself."""
STACK = ("convolutions", "in_channels", "image_size")
"""Keys of an arm that is no network but some convolutions."""
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and how it is tried."""

    name: str
    statement: str
    source: str
    """Authors, year, arXiv id, section."""
    minutes: float
    """On two cores with three seeds."""
    arms: Mapping[str, Settings]
    """The networks that are compared: settings of run.py by name, or convolutions alone."""
    holds_if: tuple[Relation, ...]
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings that all arms share."""
    note: str = ""
    """How the experiment differs from the paper's, in a line or two."""
    data: str = ""
    """What `--data-dir` has to hold; empty if the data are built in."""

    @property
    def trained(self) -> bool:
        """Whether anything has to be trained for it."""
        return any(not is_counted(measure) for one in self.holds_if for _, measure in one.values)

    def full(self, arm: str) -> dict[str, Any]:
        """All settings of an arm."""
        return {**self.settings, **self.arms[arm]}


@dataclass(frozen=True)
class Cell:
    """One run of a claim."""

    claim: str
    arm: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    """Of run.py."""


def is_counted(measure: str) -> bool:
    return measure in COUNTED


def known_claims() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_claims(names: list[str]) -> list[Claim]:
    """The claims of these names.

    Raises:
        ValueError: there is no such claim, or its file is wrong.
    """
    known = known_claims()
    for name in names:
        if name not in known:
            raise ValueError(f"no claim '{name}'; nearest: {nearest(name, known)}")
    return [read_claim(FOLDER / f"{name}.yaml") for name in dict.fromkeys(names)]


def read_claim(path: Path) -> Claim:
    """The claim of a file.

    Raises:
        ValueError: something is missing, unknown or no relation of its arms; one line says what.
    """
    try:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    fields = {one.name: one for one in dataclasses.fields(Claim) if one.name != "name"}
    if not isinstance(there, dict):
        raise ValueError(f"{path}: no claim; its keys are {', '.join(fields)}")
    for key in there:
        if key not in fields:
            raise ValueError(f"{path}: no key '{key}'; nearest: {nearest(str(key), fields)}")
    for key in ("statement", "source", "minutes", "arms", "holds_if"):
        if not there.get(key) and there.get(key) != 0:
            raise ValueError(f"{path}: '{key}' is missing")
    try:
        relations = tuple(
            read_relation(str(measure), text, list(there["arms"]), exact=is_counted(str(measure)))
            for one in there["holds_if"]
            for measure, text in one.items()
        )
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: holds_if: {error}") from error
    return Claim(path.stem, **there | {"holds_if": relations})


def cells_of(claim: Claim, out: Path, seeds: int, data_dir: str | None) -> list[Cell]:
    """The runs of a claim, with seeds 0, 1 ...; all arms of a seed before the next seed."""
    if not claim.trained:
        return []
    cells = []
    for seed in range(seeds):
        for arm in claim.arms:
            folder = out / claim.name / f"{arm}-s{seed}"
            own = {"seed": seed, "name": folder.name, "out": str(folder.parent)}
            own |= {"data_dir": data_dir} if claim.data else {}
            cells.append(Cell(claim.name, arm, seed, folder, arguments(COMMON | claim.full(arm) | own)))
    return cells


def arguments(settings: Settings) -> tuple[str, ...]:
    """Settings of run.py as its command line has them."""
    return tuple(f"{dashed(name)}={as_text(value)}" for name, value in settings.items())


def as_text(value: Any) -> str:
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value)  # which is YAML
    return str(value)


def check_cells(cells: list[Cell], parser: Parser) -> None:
    """End with a usage error of the parser if run.py would refuse a run, or its folder holds another one."""
    reader = build_parser(parser.prog)
    for cell in cells:
        config = settings_from(reader.parse_args(cell.arguments), RunConfig)
        problem = usage_problem(config) or another_run(config, cell.folder)
        if problem:
            parser.error(f"{cell.claim}, {cell.arm}: {problem}")
