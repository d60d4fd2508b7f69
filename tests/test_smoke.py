"""run.py --smoke: what it reduces, what it reports, and that it keeps nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.command_line.run_config import RunConfig, parse
from experiments.run import main
from experiments.training import smoke
from experiments.training.build import build_data
from experiments.training.smoke import LossLines, changes, reduce

RECIPES = sorted((Path(__file__).resolve().parent.parent / "experiments" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_becomes_small(recipe: Path) -> None:
    config = parse(["--config", str(recipe)])[0]
    small = reduce(config)
    assert (small.data, small.weights, small.devices, small.accumulate) == ("digits", "none", "1", 1)
    assert small.batch_size <= 4
    for name in ("backbone", "head", "optimizer", "schedule", "loss", "augmentation"):
        assert getattr(small, name) == getattr(config, name)
    global_batch = config.batch_size * config.accumulate * (int(config.devices) if config.devices.isdigit() else 1)
    assert small.lr / small.batch_size == pytest.approx(config.lr / global_batch)
    assert any(line.startswith("--data digits instead of") for line in changes(config, small))
    assert (small.head_options or {}).get("padding") != "reflect", "192 mirrored pixels around an image of 125"
    build_data(small).setup("fit")


def test_sizes() -> None:
    large = RunConfig(backbone="vgg16", head="fcn8s", image_size=[512, 1024])
    assert reduce(large).image_size == [128, 256]
    assert reduce(replace(large, image_size=[64, 64])).image_size == [32, 32], "the smallest that VGG takes"
    assert reduce(replace(large, image_size=[300, 300], head="yolov1")).image_size == [300, 300], "YOLO sees one size"
    assert reduce(replace(large, image_size=None)).image_size is None
    assert reduce(replace(large, data="camvid", data_dir="here")).data == "camvid"


@pytest.mark.parametrize(
    ("flags", "falls"), [(["--lr", "0.01"], True), (["--freeze-backbone", "--lr", "1e-12"], False)]
)
def test_the_exit_code_says_whether_the_loss_falls(
    flags: list[str], falls: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smoke, "STEPS", 12)
    if not falls:  # hardly any learning: the loss is as noisy as its batches, so it is given
        monkeypatch.setattr(LossLines, "ends", lambda self: (self.values[0], self.values[0]))
    code = main(["--backbone", "lenet5", "--head", "classifier", "--data", "mnist", "--smoke", *flags])
    said = capsys.readouterr().out
    assert code == int(not falls), said
    assert ("the loss fell: " if falls else "the loss did not fall: ") in said
    assert "of 12 steps" in said
    assert not list(tmp_path.iterdir())


def test_it_ends_after_its_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(smoke, "SECONDS", 0.0)
    main(["--backbone", "lenet5", "--head", "classifier", "--smoke"])
    assert "of 1 steps" in capsys.readouterr().out


def test_the_means_are_of_the_first_and_last_quarter() -> None:
    lines = LossLines()
    lines.values = [4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0]
    assert lines.ends() == (3.0, 1.5)
