"""`experiments/sweeps/*.yaml`: what `wandb sweep` takes, and every flag and value one that run.py takes."""

import itertools
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
    from wandb.sdk.launch.sweeps import utils

    sweep = read(path)
    assert (FOLDER.parent.parent / sweep["program"]).is_file()
    command = sweep["command"]
    fixed = command[command.index("${program}") + 1 : command.index("${args}")]
    for run in runs(sweep):
        given = {name: {"value": value} for name, value in run.items()}
        config, _ = parse([*fixed, *utils.create_sweep_command_args({"args": given})["args"]])
        assert config.logger == ["wandb"]
        assert {name: getattr(config, name.replace("-", "_")) for name in run} == run


KEYS = {"project", "name", "program", "method", "run_cap", "metric", "early_terminate", "command", "parameters"}
RANGES = {"log_uniform_values", "uniform", "q_uniform", "int_uniform"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_it_has_the_form_that_wandb_documents(path: Path) -> None:
    """A method, a metric, and parameters that are lists of values or ranges; a grid has lists alone."""
    sweep = read(path)
    assert {"program", "method", "metric", "command", "parameters"} <= set(sweep) <= KEYS
    assert sweep["method"] in ("grid", "random", "bayes")
    assert ("run_cap" in sweep) == (sweep["method"] != "grid"), "random and bayes go on for ever without it"
    assert set(sweep["command"]) >= MACROS
    assert all(isinstance(word, str) for word in sweep["command"])
    for name, parameter in sweep["parameters"].items():
        if "values" in parameter:
            assert set(parameter) == {"values"}, name
            assert isinstance(parameter["values"], list), name
            assert len(parameter["values"]) > 1, name
        else:
            assert sweep["method"] != "grid", name
            assert set(parameter) == {"distribution", "min", "max"}, name
            assert parameter["distribution"] in RANGES, name
            assert 0 < parameter["min"] < parameter["max"], name
    if "early_terminate" in sweep:
        assert set(sweep["early_terminate"]) == {"type", "min_iter", "eta"}
        assert sweep["early_terminate"]["type"] == "hyperband"


def test_lists_of_a_sweep_arrive_as_lists() -> None:
    """W&B's agent writes a list into one argument."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    given = {"image-size": {"value": [256, 320]}, "logger": {"value": ["wandb", "csv"]}, "data-dir": {"value": None}}
    arguments = create_sweep_command_args({"args": given})["args"]
    assert "--image-size=[256, 320]" in arguments
    config, _ = parse(arguments)
    assert (config.image_size, config.logger, config.data_dir) == ([256, 320], ["wandb", "csv"], None)


def test_the_score_is_one_that_runs_log() -> None:
    from lightning_modules.segmentation import SegmentationModule

    for path in SWEEPS:
        assert read(path)["metric"] == {"name": SegmentationModule.monitor, "goal": "maximize"}
    assert len(SWEEPS) == 3
