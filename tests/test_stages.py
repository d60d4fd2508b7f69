"""Staged training: FCN-8s from FCN-16s from FCN-32s, DilatedNet's context from its front end."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch

from backbones import vit
from experiments.command_line.run_config import RunConfig
from experiments.run import main
from experiments.training import stages as module
from experiments.training.stages import run_stages, stages
from lightning_modules.classification import ClassificationModule
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import randomise

pytestmark = pytest.mark.usefixtures("no_pictures")

NAMES = ("sky", "road", "car")


def checkpoint(path: Path, head: str, **options: object) -> tuple[SegmentationModule, str]:
    """A run's checkpoint, as far as another run reads it."""
    one = SegmentationModule("resnet18", head, NAMES, **options)
    torch.save({"state_dict": one.state_dict()}, path)
    return one, str(path)


def test_fcn8s_takes_over_what_fcn16s_has(tmp_path: Path) -> None:
    coarse, path = checkpoint(tmp_path / "16s.ckpt", "fcn16s")
    fine = SegmentationModule("resnet18", "fcn8s", NAMES)
    assert fine.start_from(path) == [
        "head.scores.2.weight", "head.scores.2.bias", "head.ups.1.weight", "head.final.weight",
    ]  # fmt: skip
    for name in ("backbone.conv1.weight", "head.scores.0.weight", "head.scores.1.bias", "head.ups.0.weight"):
        assert torch.equal(fine.network.state_dict()[name], coarse.network.state_dict()[name])
    # Its new skip starts at zero, so that it begins with the scores of FCN-16s.
    features = [
        torch.rand(1, c, 64 // s, 64 // s) for c, s in zip((64, 64, 128, 256, 512), (2, 4, 8, 16, 32), strict=True)
    ]
    two, three = coarse.network.head, fine.network.head
    before = two.ups[0](two.scores[0](features[4])) + two.scores[1](features[3])
    after = three.ups[0](three.scores[0](features[4])) + three.scores[1](features[3])
    assert torch.equal(after, before)
    assert not three.scores[2](features[2]).any()


def test_the_context_takes_over_the_front_end(tmp_path: Path) -> None:
    front, path = checkpoint(tmp_path / "front.ckpt", "dilatednet", head_options={"context": "none"})
    whole = SegmentationModule("resnet18", "dilatednet", NAMES)
    left = whole.start_from(path)
    assert left
    assert all(name.startswith("head.context.") for name in left)
    assert torch.equal(whole.network.head.score.weight, front.network.head.score.weight)


def test_a_vit_under_another_head_takes_over_the_levels_that_both_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vit.VARIANTS, "vit_b_32", vit.Variant(32, 24, 2, 2))
    first = SegmentationModule("vit_b_32", "fcn32s", NAMES)
    torch.save({"state_dict": first.state_dict()}, tmp_path / "32s.ckpt")
    second = SegmentationModule("vit_b_32", "fcn16s", NAMES)
    left = second.start_from(str(tmp_path / "32s.ckpt"))
    ours, theirs = second.network.state_dict(), first.network.state_dict()
    assert {name for name in left if name.startswith("backbone.")} == {
        name for name in ours if name.startswith("backbone.neck.levels.2.")
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in left)
    torch.save({"state_dict": second.state_dict()}, tmp_path / "16s.ckpt")
    first.start_from(str(tmp_path / "16s.ckpt"))
    said = (
        "tensors of its backbone are left out, because this network has no such layers (first: backbone.neck.levels.2"
    )
    assert said in (capsys.readouterr().out)
    monkeypatch.setitem(vit.VARIANTS, "vit_b_32", vit.Variant(32, 24, 3, 2))
    with pytest.raises(ValueError, match=r"a different backbone \(no backbone\.encoder\.layers\.encoder_layer_2"):
        SegmentationModule("vit_b_32", "fcn32s", NAMES).start_from(str(tmp_path / "32s.ckpt"))


CLASSES = [f"class {i}" for i in range(64)]
"""As many as the stem of a ResNet has channels."""


def with_names(path: Path, head: str, **options: object) -> tuple[SegmentationModule, str]:
    """A run's checkpoint with the names of `CLASSES`."""
    one = SegmentationModule("resnet18", head, CLASSES, **options).eval()
    randomise(one.network.head)
    torch.save({"state_dict": one.state_dict(), "hyper_parameters": {"class_names": CLASSES}}, path)
    return one, str(path)


@pytest.mark.parametrize("head", ["fcn8s", "deeplab"])
def test_the_same_classes_in_another_order(head: str, tmp_path: Path) -> None:
    one, path = with_names(tmp_path / "one.ckpt", head)
    other = SegmentationModule("resnet18", head, CLASSES[::-1]).eval()
    assert other.start_from(path) == []
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(x), one(x).flip(1), rtol=1e-4, atol=1e-4)


def test_as_many_classes_of_other_names_start_afresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, path = with_names(tmp_path / "one.ckpt", "deeplab", aux_weight=0.4)
    names = [*CLASSES[32:], *(f"new {i}" for i in range(32))]
    other = SegmentationModule("resnet18", "deeplab", names, aux_weight=0.4)
    first = [other.network.head.score.weight.clone(), other.network.aux_head.layers[4].bias.clone()]
    assert other.start_from(path) == []
    assert "it has 64 classes, not the same; of head.score.weight, head.score.bias, aux_head." in (
        said := capsys.readouterr().out
    )
    assert "the rows of 32 of our 64 classes are taken, by name; 32 classes start afresh (new 0, new 1," in said
    for part in ("head.score.weight", "aux_head.layers.4.bias"):
        ours, theirs = other.network.state_dict()[part], one.network.state_dict()[part]
        assert torch.equal(ours[:32], theirs[32:])
        assert torch.equal(ours[32:], first.pop(0)[32:])
    assert torch.equal(other.network.backbone.conv1.weight, one.network.backbone.conv1.weight)
    strange = SegmentationModule("resnet18", "deeplab", [f"other {i}" for i in range(64)])
    assert strange.start_from(path) == ["head.score.weight", "head.score.bias"]
    assert "not the same; 64 classes start afresh (other 0," in capsys.readouterr().out


def test_classes_of_an_auxiliary_classifier_of_the_backbone(tmp_path: Path) -> None:
    one = ClassificationModule("googlenet", "classifier", ["a", "b"])
    torch.save({"state_dict": one.state_dict(), "hyper_parameters": {"class_names": ["a", "b"]}}, tmp_path / "one.ckpt")
    other = ClassificationModule("googlenet", "classifier", ["b", "c"])
    assert other.start_from(str(tmp_path / "one.ckpt")) == []
    assert other.network.has_aux
    taken, before = other.network.state_dict(), one.network.state_dict()
    for name in ("backbone.aux1.fc2.weight", "head.classifier.fc.weight"):
        assert torch.equal(taken[name][0], before[name][1])


def test_another_network_is_refused(tmp_path: Path) -> None:
    _, path = checkpoint(tmp_path / "unet.ckpt", "unet")
    with pytest.raises(ValueError, match="nothing of its head fits; use --weights"):
        SegmentationModule("resnet18", "fcn32s", NAMES).start_from(path)
    with pytest.raises(ValueError, match="the checkpoint has a different backbone"):
        SegmentationModule("resnet34", "unet", NAMES).start_from(path)
    (tmp_path / "torn.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match="--start-from .*torn.ckpt cannot be read"):
        SegmentationModule("resnet18", "unet", NAMES).start_from(str(tmp_path / "torn.ckpt"))


def test_each_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    config = RunConfig(
        backbone="resnet18", head="fcn8s", out=str(tmp_path), name="a", staged=True, head_options={"x": 1}
    )
    first, second, third = stages(config)
    assert [one.head for one in (first, second, third)] == ["fcn32s", "fcn16s", "fcn8s"]
    assert [one.name for one in (first, second, third)] == ["a-stage1", "a-stage2", "a"]
    assert first.start_from is None
    assert third.start_from == str(tmp_path / "a-stage2" / "checkpoints" / "best.ckpt")
    assert not any(one.staged for one in (first, second, third))
    front, context = stages(dataclasses.replace(config, head="dilatednet", head_options={"context": "large"}))
    assert (front.head_options, context.head_options) == ({"context": "none"}, {"context": "large"})
    assert (front.freeze_backbone, context.freeze_backbone) == (False, True)
    shallow, deep = stages(dataclasses.replace(config, backbone="vgg16_bn", head="classifier", weights="imagenet"))
    assert [(one.backbone, one.weights) for one in (shallow, deep)] == [
        ("vgg11_bn", "imagenet"), ("vgg16_bn", str(tmp_path / "a-stage1" / "checkpoints" / "best.ckpt")),
    ]  # fmt: skip
    assert shallow.start_from is deep.start_from is None
    with pytest.raises(ValueError, match="--staged: classifier has no training stages; .*the classifier of a deep VGG"):
        stages(dataclasses.replace(config, backbone="vgg11", head="classifier"))
    with pytest.raises(ValueError, match="--staged: unet has no training stages; .*: fcn16s, fcn8s, dilatednet"):
        stages(dataclasses.replace(config, head="unet"))


def test_finished_stages_are_skipped_and_a_failure_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    config = RunConfig(head="fcn8s", out=str(tmp_path), name="a", staged=True)
    codes = {"a-stage1": 0, "a-stage2": 3}
    ran: list[RunConfig] = []
    monkeypatch.setattr(module, "run_stage", lambda one: ran.append(one) or codes[one.name])
    assert run_stages(config) == 3
    assert [(one.name, one.resume) for one in ran] == [("a-stage1", False), ("a-stage2", False)]
    for name, file in (("a-stage1", "results.json"), ("a-stage2", "checkpoints/last.ckpt")):
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "a-stage1" / "config.yaml").write_text(module.to_yaml(stages(config)[0]))
    codes |= {"a-stage2": 0, "a": 0}
    ran.clear()
    assert run_stages(dataclasses.replace(config, resume=True)) == 0
    assert [(one.name, one.resume) for one in ran] == [("a-stage2", True), ("a", False)]
    ran.clear()
    assert run_stages(config) == 0
    assert [one.name for one in ran] == ["a-stage2", "a"]
    ran.clear()
    codes["a-stage1"] = 2  # run.py refuses a folder that was made with other settings
    assert run_stages(dataclasses.replace(config, lr=1.0)) == 2
    assert [one.name for one in ran] == ["a-stage1"]
    assert "stage 1/3: " in capsys.readouterr().out


def test_a_stage_gets_the_signals_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.py here is a program that sends its parent a signal and ends with what it gets back."""
    program = tmp_path / "run.py"
    program.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os._exit(42))\n"
        "time.sleep(1)\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "time.sleep(20)\n"
    )
    monkeypatch.setattr(module, "RUN", tmp_path / "run.py")
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        assert module.run_stage(RunConfig()) == 42
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


def test_staged_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through run.py, each stage in this process to save the imports."""

    def here(config: RunConfig) -> int:
        monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
        settings = tmp_path / f"{config.name}.yaml"
        settings.write_text(module.to_yaml(config))
        return main(["--config", str(settings)])

    monkeypatch.setattr(module, "run_stage", here)
    arguments = [
        "--backbone",
        "resnet18",
        "--head",
        "fcn16s",
        "--image-size",
        "32",
        "--max-steps",
        "1",
        "--workers",
        "0",
    ]
    assert main([*arguments, "--staged", "--out", str(tmp_path), "--name", "a", "--accelerator", "cpu"]) == 0
    assert json.loads((tmp_path / "a-stage1" / "results.json").read_text())["head"] == "fcn32s"
    assert json.loads((tmp_path / "a" / "results.json").read_text())["head"] == "fcn16s"
    assert "start_from: " + str(tmp_path / "a-stage1") in (tmp_path / "a" / "config.yaml").read_text()
    assert main(["--head", "unet", "--staged"]) == 2
