"""experiments/statements.md: 110 rows, and names in them that exist. `test_readmes.py` checks that its tests exist."""

import inspect
import re

import pytest
import yaml

from backbones import BACKBONES
from datamodules import DATAMODULES
from datamodules.augmentation import AUGMENTATIONS
from experiments.command_line.run_flags import RunConfig
from experiments.explaining.methods import METHODS
from heads import HEADS
from lightning_modules.network import accepted_options
from tests.test_readmes import ROOT

TEXT = (ROOT / "experiments" / "statements.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if re.match(r"\| \d", line)]
WITH = re.compile(r"`(\w+)` with ((?:`\w+(?:: \S+)?`(?:, | and )?)+)")


def test_every_statement_has_its_number_and_a_test() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 111)]
    for number, statement, how, test in ROWS:
        assert statement, number
        assert how, number
        assert re.match(r"test_\w+\.py::test_\w+", test), number


def test_claims_recipes_methods_and_data_exist() -> None:
    folder = ROOT / "experiments"
    claims = re.findall(r"claims? ((?:`[\w-]+`(?:, )?)+)", TEXT)
    named = [name for some in claims for name in re.findall(r"`([\w-]+)`", some)]
    assert len(named) > 30
    for name in named:
        assert (folder / "claims" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"recipe `(\w+)`", TEXT):
        assert (folder / "recipes" / f"{name}.yaml").is_file(), name
    known_by_flag = {"method": {*METHODS, "windows"}, "data": DATAMODULES, "augmentation": AUGMENTATIONS, "head": HEADS}
    for flag, known in known_by_flag.items():
        for name in re.findall(rf"--{flag} (\w+)", TEXT):
            assert name in known, name
    for name in re.findall(r"`--([a-z-]+)", TEXT):
        assert name.replace("-", "_") in [*RunConfig.__dataclass_fields__, "method", "backbone_options", "head_options"]


@pytest.mark.parametrize(("name", "options"), WITH.findall("\n".join(row[2] for row in ROWS)))
def test_options_exist(name: str, options: str) -> None:
    build = BACKBONES.get(name) or HEADS[name]
    for option, value in re.findall(r"`(\w+)(?:: (\S+))?`", options):
        assert option in inspect.signature(build).parameters, option
        if value:
            accepted_options(name, build, {option: yaml.safe_load(value)})
