"""The cells of a grid: one run.py command line for each backbone, head, seed and further setting."""

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from experiments.command_line.known_names import nearest
from experiments.command_line.parser import Parser, dashed, settings_from
from experiments.command_line.run_checks import usage_problem
from experiments.command_line.run_config import build_parser
from experiments.command_line.run_flags import RunConfig
from experiments.run_files.run_folder import LONGER, RunFolder, changed_setting

OWN = ("backbone", "head", "seed", "name", "out", "resume")
"""Settings of run.py that a grid sets itself."""
ACTIONS = ("print_config", "list", "matrix", "check_data", "find_lr", "smoke")


@dataclass(frozen=True)
class Cell:
    """One run. Its folder depends on its settings alone, so that the same grid finds it again."""

    backbone: str
    head: str
    seed: int
    varied: tuple[tuple[str, str], ...]
    """Further settings and their values, as on the command line."""
    out: str
    common: tuple[str, ...]
    """Arguments of run.py that all cells share."""

    @property
    def name(self) -> str:
        parts = [self.backbone, self.head, *(f"{name}={value}" for name, value in self.varied), f"s{self.seed}"]
        return re.sub(r"[^\w.+=-]+", "_", "-".join(parts))

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name

    @property
    def arguments(self) -> list[str]:
        """The arguments of run.py; the grid's own come last, because the last of a repeated flag counts."""
        varied = [f"{dashed(name)}={value}" for name, value in self.varied]
        own = ["--backbone", self.backbone, "--head", self.head, "--seed", str(self.seed)]
        return [*self.common, *varied, *own, "--name", self.name, "--out", self.out]


def cells(
    backbones: str, heads: str, seeds: str, vary: list[str], out: str, common: list[str], parser: Parser
) -> list[Cell]:
    """The Cartesian product of all lists; seeds vary fastest, so all seeds of a pair run before the next pair starts.

    Ends with a usage error of the parser if a list or a setting is wrong.
    """
    numbers = comma_separated(seeds)
    if not numbers or not all(seed.isdigit() for seed in numbers):
        parser.error(f"--seeds: '{seeds}' is not a list of whole numbers such as 0,1,2")
    known = [field.name for field in dataclasses.fields(RunConfig) if field.name not in OWN]
    axes = []
    for one in vary:
        flag, equals, values = one.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not equals or not comma_separated(values):
            parser.error(f"--vary: '{one}' is not a setting and its values such as lr=0.1,0.01")
        if name in OWN:
            parser.error(f"--vary: {name} is the grid's own; --backbones, --heads and --seeds take lists")
        if name not in known:
            parser.error(f"--vary: no setting '{name}'; nearest: {nearest(name, known)}")
        axes.append([(name, value) for value in comma_separated(values)])
    made = [
        Cell(backbone, head, int(seed), varied, out, tuple(common))
        for varied in itertools.product(*axes)
        for backbone in comma_separated(backbones)
        for head in comma_separated(heads)
        for seed in numbers
    ]
    if not made:
        parser.error("--backbones and --heads each take at least one name")
    return made


def comma_separated(text: str) -> list[str]:
    """The items of a list, each once, as they are written; commas within brackets belong to an item."""
    items, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return list(dict.fromkeys(item.strip() for item in items if item.strip()))


def refused(made: list[Cell], parser: Parser) -> dict[Cell, str]:
    """The cells that run.py would refuse, with the reason. Checks only what can be checked without importing torch."""
    reader = build_parser(parser.prog)
    settings: dict[tuple[tuple[str, str], ...], RunConfig] = {}
    problems = {}
    for cell in made:
        if cell.varied not in settings:  # parsing takes longer than all the rest
            parsed = reader.parse_args(cell.arguments)
            if any(getattr(parsed, action) for action in ACTIONS):
                given = ", ".join(map(dashed, ACTIONS))
                parser.error(f"{given} do not train; give them to run.py")
            settings[cell.varied] = settings_from(parsed, RunConfig)
        config = dataclasses.replace(settings[cell.varied], backbone=cell.backbone, head=cell.head, seed=cell.seed)
        problem = usage_problem(config) or another_run(config, cell.folder)
        if problem:
            problems[cell] = problem
    return problems


def another_run(config: RunConfig, path: Path) -> str | None:
    """Why the existing folder holds a different run, or None.

    Finished runs are checked too, because they would otherwise be skipped without comparing their settings.
    """
    folder = RunFolder(path)
    other = changed_setting(config, folder, LONGER) if folder.config.is_file() else None
    if other is None:
        return None
    name, there, here = other
    return f"{path} was made with {dashed(name)} {there}, not {here}; give the same settings or another --out"


def own_flag(common: list[str], own: tuple[str, ...] = OWN) -> str | None:
    """The first of run.py's arguments that is one of `own`, which the caller sets itself."""
    flags = [dashed(name) for name in own]
    return next((argument for argument in common if argument.split("=")[0] in flags), None)
