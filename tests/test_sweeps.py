"""`experiments/sweeps/*.yaml`: what `wandb sweep` takes, and every flag and value one that run.py takes."""

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.command_line.run_config import parse

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "sweeps"
SWEEPS = sorted(FOLDER.glob("*.yaml"))
MACROS = {"${env}", "${interpreter}", "${program}", "${args}"}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def values(parameter: dict[str, Any]) -> list[Any]:
    """All that a parameter may be, or the ends of its range."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def runs(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings that cover the sweep: each value of each parameter, and each pair of backbone and head."""
    parameters = {name: values(parameter) for name, parameter in sweep["parameters"].items()}
    first = {name: options[0] for name, options in parameters.items()}
    alone = [first | {name: value} for name, options in parameters.items() for value in options]
    pairs = itertools.product(parameters.get("backbone", ()), parameters.get("head", ()))
    return alone + [first | {"backbone": backbone, "head": head} for backbone, head in pairs]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_is_one_that_run_py_takes(path: Path) -> None:
    """The agent's command line, made by W&B's own function."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils", reason="the W&B client is not installed")
    sweep = read(path)
    assert (FOLDER.parent.parent / sweep["program"]).is_file()
    command = sweep["command"]
    assert set(command) >= MACROS
    fixed = command[command.index("${program}") + 1 : command.index("${args}")]
    for run in runs(sweep):
        given = {name: {"value": value} for name, value in run.items()}
        config, _ = parse([*fixed, *utils.create_sweep_command_args({"args": given})["args"]])
        assert config.logger == ["wandb"]
        assert {name: getattr(config, name.replace("-", "_")) for name in run} == run


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_wandb_takes_it(path: Path) -> None:
    """W&B's own schema. Its package asks for an older numpy than torch does: pip install --no-deps sweeps."""
    package = importlib.util.find_spec("sweeps")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("W&B's package sweeps, which has the schema, is not installed")
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = Path(package.submodule_search_locations[0]) / "config" / "schema.json"
    jsonschema.validate(read(path), json.loads(schema.read_text(encoding="utf-8")))


def test_the_score_is_one_that_runs_log() -> None:
    from lightning_modules.segmentation import SegmentationModule

    for path in SWEEPS:
        assert read(path)["metric"] == {"name": SegmentationModule.monitor, "goal": "maximize"}
    assert len(SWEEPS) == 3
