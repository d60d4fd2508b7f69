"""Every recipe says what it needs, builds what it names and trains two steps on a tiny copy of its data."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from backbones import fully_connected
from experiments.config import RunConfig, parse
from experiments.run import main
from experiments.stages import stages
from heads import dilatednet, find_head
from tests.fake_data import make_fake

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FIELDS = ("Command", "Hardware", "Expected", "Source", "Deviations")


def opening(name: str) -> dict[str, str]:
    """The comment a recipe opens with, by field; the title under ""."""
    fields, last = {"": ""}, ""
    for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            return fields
        field = re.match(r"# (\w+): ", line)
        if field and field[1] in FIELDS:
            last = field[1]
            line = line[field.end() :]
        fields[last] = f"{fields.get(last, '')} {line.strip('# ')}".strip()
    raise AssertionError(f"{name} has no settings")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_all_it_takes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = opening(name)
    assert set(fields) == {"", *FIELDS}
    assert re.search(r"arXiv:\d{4}\.\d{4}", fields[""])
    assert re.search(r"\d\d\.\d|0\.\d\d", fields["Expected"])
    program, *arguments = shlex.split(fields["Command"].replace("\\", "").removeprefix("python "))
    assert program == "experiments/run.py"
    (tmp_path / "weights.pth").touch()
    places = {"DIR": str(tmp_path), "FILE": str(tmp_path / "weights.pth")}
    monkeypatch.chdir(FOLDER.parent.parent)
    config, _ = parse([places.get(argument, argument) for argument in arguments])
    assert arguments[:4] == ["--config", f"experiments/recipes/{name}.yaml", "--data-dir", "DIR"]
    processes = int(config.devices) if config.devices != "auto" else 1
    assert int(re.match(r"\d+", fields["Hardware"])[0]) == processes
    assert int(re.search(r"batch (\d+)", fields["Hardware"])[1]) == config.batch_size * processes * config.accumulate


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps. fc6 and fc7 of VGG are as narrow as their kind allows: 120 million weights are slow to save."""
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
    monkeypatch.setattr(fully_connected, "HIDDEN", 8)
    monkeypatch.setattr(dilatednet, "MARGIN", 32)
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    data_dir = make_fake(settings["data"], find_head(settings["head"]).task, tmp_path / "data")
    if settings.get("staged"):
        config = RunConfig(**settings, out=str(tmp_path))
        assert len(stages(config)) == 2
        assert all(dataclasses.replace(one, name=None) for one in stages(config))
    arguments = [
        "--config", str(FOLDER / f"{name}.yaml"), "--data-dir", str(data_dir), "--out", str(tmp_path), "--name", "run",
        "--weights", "none", "--staged", "false", "--image-size", "36", "--batch-size", "2", "--max-steps", "2",
        "--devices", "1", "--accelerator", "cpu", "--sync-batchnorm", "false", "--workers", "0", "--cache", "none",
    ]  # fmt: skip
    assert main(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["head"], results["protocol"]["data"]) == (settings["head"], settings["data"])
