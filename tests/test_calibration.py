"""Calibration: the temperature is the right one, checkpoints keep it, and every program uses it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from datamodules.size_rules import SizeKind, SizeRule
from experiments.evaluate import main as evaluate
from experiments.inference.calibration import save_temperature
from experiments.inference.check_export import as_batch
from experiments.inference.dense import densely_applied
from experiments.inference.export_network import PixelsToOutput, metadata_of
from experiments.inference.protocol import Predictor, Protocol, fold_norms
from experiments.inference.trained import TrainedNetwork, load
from experiments.inference.views import views_of
from experiments.run import main as run
from lightning_modules.base import GraftModule
from lightning_modules.calibration import TEMPERATURES, TemperatureFit, cubic_spline
from lightning_modules.classification import ClassificationModule
from lightning_modules.folding import fold_batch_norms
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import crf_arguments, randomise


@pytest.fixture(scope="module")
def segmenter(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on squares whose logits are then multiplied by 20: as accurate as before, and far too sure."""
    out = tmp_path_factory.mktemp("calibration")
    assert run(crf_arguments(crf_folder, out, "--name", "seg", "--epochs", "3")) == 0
    checkpoint = out / "seg" / "checkpoints" / "best.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    weights = state["state_dict"]
    last = [key for key in weights if key.startswith("network.head.")][-2:]
    for key in last:
        weights[key] *= 20
    torch.save(state | {"temperature": 1.0}, checkpoint)
    return out / "seg"


def answers(count: int, classes: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def test_the_spline_is_that_of_scipy() -> None:
    x, y = np.log(TEMPERATURES), np.random.default_rng(0).normal(size=len(TEMPERATURES))
    at = np.linspace(x[0], x[-1], 501)
    np.testing.assert_allclose(cubic_spline(x, y, at), CubicSpline(x, y)(at), atol=1e-12)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.7])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = answers(40_000, 7, temperature)
    fit = TemperatureFit(255)
    for part in zip(logits.split(1500), labels.split(1500), strict=True):
        fit.update(*part)
    assert fit.temperature() == pytest.approx(temperature, rel=0.03)


def test_maps_count_without_ignored_pixels() -> None:
    logits, labels = answers(200_000, 5, 2.0)
    maps, masks = logits.view(100, 40, 50, 5).permute(0, 3, 1, 2), labels.view(100, 40, 50)
    wrong = masks.clone()
    wrong[:, ::2] = (wrong[:, ::2] + 1) % 5
    masks = masks.clone()
    masks[:, ::2] = 255
    fits = [TemperatureFit(255), TemperatureFit(255)]
    for fit, target in zip(fits, (masks, wrong), strict=True):
        fit.update(maps, target)
    assert fits[0].temperature() == pytest.approx(2.0, rel=0.06)
    assert fits[1].temperature() > 3


def test_without_an_error_nothing_can_be_fitted() -> None:
    fit = TemperatureFit(-100)
    assert fit.temperature() == 1.0
    fit.update(5 * torch.eye(4), torch.arange(4))
    assert fit.temperature() == 1.0
    fit.update(torch.full((1, 4), float("nan")), torch.zeros(1, dtype=torch.long))
    assert fit.temperature() == 1.0


def test_a_network_that_knows_nothing_gets_the_largest_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    fit = TemperatureFit(-100)
    fit.update(9 * torch.randn(5000, 4, generator=generator), torch.randint(4, (5000,), generator=generator))
    assert fit.temperature() == pytest.approx(TEMPERATURES[-1])


def test_evaluation_shows_both_and_labels_stay(segmenter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([str(segmenter), "--out", str(segmenter / "before")]) == 0
    before = json.loads((segmenter / "before" / "evaluation.json").read_text())
    assert before["protocol"]["temperature"] == 1
    assert "ece_uncalibrated" not in before["scores"]
    assert evaluate([str(segmenter), "--fit-temperature", "--out", str(segmenter / "after"), "--abstain", "0.7"]) == 0
    after = json.loads((segmenter / "after" / "evaluation.json").read_text())
    temperature = after["protocol"]["temperature"]
    assert f"temperature 1 -> {temperature:g}" in capsys.readouterr().out
    assert temperature > 2
    assert after["scores"]["ece_uncalibrated"] == pytest.approx(before["scores"]["ece"], abs=1e-6)
    assert after["scores"]["ece"] < 0.8 * before["scores"]["ece"]
    for name in ("miou", "pixel_accuracy", "boundary_iou"):
        assert after["scores"][name] == before["scores"][name]
    answered = after["answered"]
    assert 0 < answered["coverage"] < 1
    assert answered["accuracy"] > after["scores"]["pixel_accuracy"]
    assert load(segmenter).temperature == temperature
    assert not list(segmenter.rglob("*.part"))


def test_training_fits_what_evaluate_fits(crf_folder: Path, tmp_path: Path) -> None:
    flags = ("--name", "one", "--epochs", "1", "--precision", "32-true")  # as evaluate.py computes
    assert run(crf_arguments(crf_folder, tmp_path, *flags)) == 0
    checkpoint = tmp_path / "one" / "checkpoints" / "best.ckpt"
    trained = load(checkpoint).temperature
    assert trained != 1
    save_temperature(checkpoint, 1.0)
    assert load(checkpoint).temperature == 1
    assert evaluate([str(tmp_path / "one"), "--fit-temperature"]) == 0
    assert load(checkpoint).temperature == pytest.approx(trained, rel=2e-3)


def test_an_exported_network_is_calibrated(segmenter: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "hot.ckpt"
    shutil.copy(segmenter / "checkpoints" / "best.ckpt", checkpoint)
    save_temperature(checkpoint, 2.5)
    network = load(checkpoint, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    logits = network.module(torch.from_numpy((image / 255 - network.mean) / network.std).permute(2, 0, 1)[None].float())
    exported = PixelsToOutput(network, "probabilities").eval()(torch.from_numpy(as_batch(image)))
    torch.testing.assert_close(exported, (logits / 2.5).softmax(1), atol=1e-5, rtol=0)
    assert metadata_of(network, "probabilities")["temperature"] == 2.5


# ---- batch norms folded away, crops, dense application


@pytest.mark.parametrize(
    ("backbone", "head", "left"),
    [
        ("resnet18", "deeplab", 0),
        ("mobilenet_v3_small", "unet", 0),
        ("efficientnet_lite0", "fcn32s", 0),
        ("densenet121", "fcn32s", 62),  # those before a ReLU have no convolution before them
    ],
)
def test_folded_norms_change_nothing(backbone: str, head: str, left: int) -> None:
    network = network_of(SegmentationModule(backbone, head, CLASSES), 64)
    image = np.random.default_rng(0).integers(0, 256, (70, 97, 3), np.uint8)
    before = network.probabilities(image)
    assert fold_norms(network) > 0
    assert sum(isinstance(part, torch.nn.BatchNorm2d) for part in network.module.modules()) == left
    after = network.probabilities(image)
    assert np.abs(after - before).max() <= 1e-5
    np.testing.assert_array_equal(after.argmax(0), before.argmax(0))


class Shared(torch.nn.Module):
    """A convolution that a norm and a sum read: folding it would change the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_fold_that_would_be_wrong_is_undone() -> None:
    network = randomise(Shared()).eval()
    image = torch.randn(1, 3, 8, 8)
    before = network(image)
    assert fold_batch_norms(network, image) == 0
    torch.testing.assert_close(network(image), before, rtol=0, atol=0)
    assert isinstance(network.norm, torch.nn.BatchNorm2d)


def test_crops_are_where_alexnet_took_them() -> None:
    image = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48, 1).repeat(3, 2)
    views = list(views_of((image // 12).astype(np.uint8), SizeRule("own", (32, 32)), (1.0,), False, crops=10))
    pixels = (image // 12).astype(np.uint8)
    places = [(0, 0), (0, 16), (32, 0), (32, 16), (16, 8)]
    for i, (y, x) in enumerate(places):
        np.testing.assert_array_equal(views[2 * i].image, pixels[y : y + 32, x : x + 32])
        np.testing.assert_array_equal(views[2 * i + 1].image, views[2 * i].image[:, ::-1])
    five = list(
        views_of(np.zeros((90, 60, 3), np.uint8), SizeRule("centre_crop", (28, 35)), (1.0, 1.5), False, crops=5)
    )
    assert [view.image.shape for view in five] == [(28, 35, 3)] * 10
    (whole,) = views_of(np.zeros((90, 60, 3), np.uint8), SizeRule("centre_crop", (28, 28)), (1.0,), False, whole=True)
    assert whole.image.shape == (48, 32, 3)


def test_a_dense_vgg_averages_all_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own size it is the same classifier; one stride larger, it is the mean of the windows that fit."""
    monkeypatch.setattr("backbones.fully_connected.HIDDEN", 64)  # instead of 120 million parameters
    network = network_of(ClassificationModule("vgg11", "classifier", CLASSES), 224, "centre_crop")
    dense = densely_applied(network)
    image = np.random.default_rng(0).integers(0, 256, (224, 256, 3), np.uint8)
    maps = torch.randn(1, 512, 7, 8)
    fc, conv = network.module.network, dense.module.network
    windows = [fc.head.classifier(maps[..., x : x + 7]) for x in (0, 1)]
    torch.testing.assert_close(
        conv.head.classifier(conv.backbone.fully_connected(maps)), torch.stack(windows).mean(0), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(dense.logits(image[:, :224]), network.logits(image[:, :224]), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_dense_or_cropped_says_so() -> None:
    lenet = network_of(ClassificationModule("lenet5", "classifier", CLASSES), 32, "stretch")
    with pytest.raises(ValueError, match="lenet5 with classifier scores no such map"):
        Predictor(lenet, Protocol(dense=True))
    with pytest.raises(ValueError, match=r"--scales 0\.5 leaves less than a crop"):
        Predictor(lenet, Protocol(crops=5, scales=(0.5, 1.0)))
    pixels = network_of(SegmentationModule("lenet5", "unet", CLASSES), 32)
    with pytest.raises(ValueError, match="are for classifiers"):
        Predictor(pixels, Protocol(crops=10))
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    ten = Predictor(lenet, Protocol(crops=10))(image)
    each = [lenet.logits(view.image).softmax(1) for view in views_of(image, lenet.size_rule, (1.0,), False, crops=10)]
    np.testing.assert_allclose(ten, torch.cat(each).mean(0).numpy(), atol=1e-6)


CLASSES = ("a", "b", "c")


def network_of(module: GraftModule, size: int, rule: SizeKind = "own") -> TrainedNetwork:
    """An untrained network with statistics that an error would show with."""
    module = randomise(module).eval().requires_grad_(False)
    grey = np.zeros((3, 3), np.uint8)
    return TrainedNetwork(module, CLASSES, grey, SizeRule(rule, (size, size)), (0.5,) * 3, (0.25,) * 3)
