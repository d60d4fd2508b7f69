"""Every recipe says what it needs, builds what it names and trains two steps on a tiny copy of its data."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from backbones import fully_connected, resnet, unet_encoder, xception_aligned, yolo
from datamodules import DATAMODULES
from experiments.command_line.run_config import RunConfig, parse
from experiments.run import main
from experiments.training.stages import stages
from heads import HEADS, dilatednet, find_head
from lightning_modules.network import Network
from tests import fake_data
from tests.fake_data import make_fake

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NARROW = {
    "yolov1": {"width": 16, "hidden": 16},
    "ssd": {"width": 64},
    "retinanet": {"width": 32},
    "fasterrcnn": {"width": 32, "hidden": 16},
}
"""Options of heads that detect, which make them narrower."""
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
def test_the_network_of_a_recipe_can_be_built(name: str) -> None:
    """At full size, without memory for it."""
    config = RunConfig(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))
    for one in stages(config) if config.staged else [config]:
        with torch.device("meta"):
            network = Network(
                one.backbone,
                one.head,
                len(getattr(DATAMODULES[one.data], "class_names", "ab")),  # folders have what they hold
                output_stride=one.output_stride,
                backbone_options=one.backbone_options,
                head_options=one.head_options,
                aux=bool(one.aux_weight),
            )
        assert sum(parameter.numel() for parameter in network.parameters()) > 5e6
        assert one.weights == "none" or network.backbone.published_top1() is not None


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("no_pictures", "quick_weights", "small")
def test_a_recipe_trains(name: str, tmp_path: Path) -> None:
    """Two steps of a thin or shallow copy of its network, with all its other settings."""
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    data_dir = make_fake(settings["data"], find_head(settings["head"]).task, tmp_path / "data")
    arguments = [
        "--config", str(FOLDER / f"{name}.yaml"), "--data-dir", str(data_dir), "--out", str(tmp_path), "--name", "run",
        "--weights", "none", "--staged", "false", "--image-size", "36", "--batch-size", "2", "--max-steps", "2",
        "--devices", "1", "--accelerator", "cpu", "--sync-batchnorm", "false", "--workers", "0", "--cache", "none",
    ]  # fmt: skip
    assert main(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["head"], results["protocol"]["data"]) == (settings["head"], settings["data"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the same kinds that take a second instead of half a minute, most of it for saving weights."""
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
    monkeypatch.setattr(fake_data, "TRAIN", 4)
    monkeypatch.setattr(fake_data, "VAL", 2)
    monkeypatch.setattr(fully_connected, "HIDDEN", 8)
    monkeypatch.setattr(dilatednet, "MARGIN", 32)
    thin = tuple(tuple((channels // 16, side) for channels, side in stage) for stage in yolo.STAGES)
    monkeypatch.setattr(yolo, "STAGES", thin)
    monkeypatch.setattr(fully_connected.FullyConnected, "channels", 8)
    for name, options in NARROW.items():
        for option, value in options.items():
            monkeypatch.setitem(HEADS[name].__init__.__kwdefaults__, option, value)
    monkeypatch.setattr(dilatednet, "FORMS", {layers: form[-2:] for layers, form in dilatednet.FORMS.items()})
    monkeypatch.setattr(unet_encoder, "CHANNELS", (4, 8, 16, 32, 64))
    for name in ("resnet50", "resnet101"):
        monkeypatch.setitem(resnet.VARIANTS, name, resnet.VARIANTS[name]._replace(depths=(1, 1, 1, 3)))
    entry, _, top1 = xception_aligned.VARIANTS["xception65"]
    monkeypatch.setitem(xception_aligned.VARIANTS, "xception65", (entry, 1, top1))
