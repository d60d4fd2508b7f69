"""explain.py: explanations of classes against ones computed by hand and random weights, and the program."""

from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules.digits import Digits
from experiments.command_line.explain_flags import Method
from experiments.explain import main as explain
from experiments.explaining.deconvnet import projection, strongest_place
from experiments.explaining.drawing import heat_over, panel
from experiments.explaining.examples import Examples, prepared, spread
from experiments.explaining.gradcam import class_activation, explain_class
from experiments.explaining.methods import METHODS
from experiments.explaining.occlusion import plan, probabilities_under, spread_over
from experiments.explaining.randomise import SanityCheck, rank_correlation, shuffled
from experiments.explaining.recording import record
from experiments.explaining.target import Target, choose_target, find_label, main_class
from experiments.inference.trained import TrainedNetwork, load
from experiments.run import main as run
from tests.explained_networks import bare, flags_of, network_of, picture, read_strictly


@pytest.fixture(scope="module")
def digit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-5 on the embedded digits, trained for a few seconds."""
    out = tmp_path_factory.mktemp("digits")
    flags = ["--backbone", "lenet5", "--head", "classifier", "--epochs", "5", "--lr", "0.004", "--workers", "0"]
    flags += ["--batch-size", "32"]
    assert run([*flags, "--accelerator", "cpu", "--out", str(out), "--name", "lenet"]) == 0
    return out / "lenet"


@pytest.fixture(scope="module")
def digits() -> list[tuple[np.ndarray, int]]:
    """Digits of the validation split, two of each class, with their class."""
    data = Digits("classification", workers=0)
    data.setup()
    assert data.val is not None
    found: dict[int, list[np.ndarray]] = {}
    for image, label, _ in (data.val.source[i] for i in range(120)):
        found.setdefault(int(label), []).append(image)
    return [(image, label) for label in sorted(found) for image in found[label][:2]]


# ---- Grad-CAM


def test_gradcam_is_the_weighted_sum_of_a_pooled_classifier() -> None:
    """With global average pooling and one linear layer, the weights are the layer's own (class activation maps)."""
    network = network_of("resnet18", "classifier", 96)
    _, x = prepared(network, picture(96, 128))
    for label in range(3):
        target = Target(label, "abc"[label], None, "")
        cam, name, _, _ = explain_class(network, x, flags_of(), target, picture(96, 128))
        last = network.module.network.backbone(x)[-1][0]
        weight = network.module.network.head.classifier.fc.weight[label]
        expected = torch.einsum("c,chw->hw", weight / last[0].numel(), last).clamp(min=0)
        torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-6)
        assert name == "map 5"


def test_gradcam_of_a_pixel_follows_that_pixel_only() -> None:
    layer = torch.randn(1, 3, 4, 5, requires_grad=True)
    scores = (layer * 2).sum(1, keepdim=True)
    target = Target(0, "a", torch.zeros(4, 5, dtype=torch.bool), "")
    assert target.pixels is not None
    target.pixels[1, 2] = True
    cam = class_activation(layer, target.of(scores)[0])
    torch.testing.assert_close(cam, (layer.detach() * 2 / 20).sum(1).clamp(min=0)[0])
    assert float(target.of(scores)) == pytest.approx(float(scores[0, 0, 1, 2]))


def test_gradcam_takes_the_input_of_a_pool_that_ends_the_backbone() -> None:
    with torch.no_grad():
        recording = record(bare("vgg11"), torch.randn(1, 3, 64, 64))
    name, layer = recording.layer(None)
    assert (name, tuple(layer.shape)) == ("features.18", (1, 512, 4, 4))
    assert recording.layer("5")[1].shape == (1, 512, 2, 2)
    assert recording.layer("features.0")[1].min() == 0, "a unit is what comes out of its rectifier"


def test_gradcam_of_the_digits_depends_on_the_class(digit_run: Path, digits: list[tuple[np.ndarray, int]]) -> None:
    network = load(digit_run, "cpu")
    alike = []
    for image, label in digits:
        _, x = prepared(network, image)
        maps = [
            explain_class(network, x, flags_of(), Target(one, str(one), None, ""), image)[0].numpy()
            for one in (label, (label + 1) % 10)
        ]
        alike.append(rank_correlation(*maps))
    assert np.mean(alike) < 0.3
    assert rank_correlation(*[edges(digits[0][0])] * 2) == pytest.approx(1)


# ---- explanations that explain nothing


def edges(image: np.ndarray) -> np.ndarray:
    """What looks like an explanation and knows no network."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def test_explanations_change_with_the_weights_and_an_edge_detector_is_caught(
    digit_run: Path, digits: list[tuple[np.ndarray, int]]
) -> None:
    network = load(digit_run, "cpu")
    check = SanityCheck(network)
    found: dict[str, list[float]] = {"gradcam": [], "deconvnet": [], "edges": []}
    for image, label in digits[::2]:
        _, x = prepared(network, image)
        target = Target(label, str(label), None, "")

        def gradcam(one: TrainedNetwork, x: Tensor = x, target: Target = target) -> np.ndarray:
            return explain_class(one, x, flags_of(), target, np.zeros((32, 32, 3), np.uint8))[0].numpy()

        @torch.no_grad()
        def deconvnet(one: TrainedNetwork, x: Tensor = x) -> np.ndarray:
            recording = record(one.module.network, x)
            layer = recording.layer(None)[1]
            return projection(recording, layer, 3, strongest_place(layer, 3))[0].abs().sum(0).numpy()

        for name, method in (("gradcam", gradcam), ("deconvnet", deconvnet)):
            found[name].append(check(method(network), method)["mean"])
        fake = check(edges(image), lambda one, image=image: edges(image))
        assert not fake["depends_on_the_weights"]
        found["edges"].append(fake["mean"])
    assert abs(np.mean(found["gradcam"])) < 0.3
    assert abs(np.mean(found["deconvnet"])) < 0.4
    assert np.mean(found["edges"]) == pytest.approx(1)


def test_shuffled_weights_are_the_same_numbers_elsewhere() -> None:
    network = network_of("lenet5", "classifier", 32)
    other = shuffled(network, 0)
    for ours, theirs in zip(network.module.parameters(), other.module.parameters(), strict=True):
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours.flatten().sort().values, theirs.flatten().sort().values)


def test_rank_correlation_is_that_of_scipy_and_zero_for_a_constant() -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).integers(0, 5, (2, 6, 7))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, np.zeros_like(a)) == 0


# ---- occlusion


class LooksAt(nn.Module):
    """A classifier of one place: class 1 is as likely as the pixels at rows 20..23 and columns 8..11 are bright."""

    def forward(self, x: Tensor) -> Tensor:
        score = 4 * x[:, 0, 20:24, 8:12].mean((1, 2))
        return torch.stack([torch.zeros_like(score), score], 1)


def test_occlusion_finds_the_place_that_a_network_looks_at() -> None:
    network = network_of("lenet5", "classifier", 32)
    network.module.network = LooksAt()  # type: ignore[assignment]
    x = torch.ones(1, 3, 31, 45)
    patches = plan((31, 45), 6, 3)
    target = Target(1, "b", None, "")
    drops = 0.982 - probabilities_under(network, x, patches, target, 7, "batches")
    heat = spread_over(drops, patches, (31, 45))
    inside = np.zeros((31, 45), bool)
    inside[20 - 5 : 24 + 5, 8 - 5 : 12 + 5] = True  # a patch that touches the place reaches as far
    assert np.abs(heat[~inside]).max() < 1e-3
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 20 <= row < 24
    assert 8 <= column < 12
    full = drops[patches.tops.index(18), patches.lefts.index(6)]
    assert full == pytest.approx(0.982 - 0.5, abs=1e-3), "the patch covers the place: the score is zero"


def test_occlusion_of_digits_marks_the_ink(digit_run: Path, digits: list[tuple[np.ndarray, int]]) -> None:
    network = load(digit_run, "cpu")
    ratios = []
    for image, label in digits[:6]:
        pixels, x = prepared(network, image)
        target = Target(label, str(label), None, "")
        with torch.no_grad():
            before = float(target.of(network.module.network(x).softmax(1))[0])
        patches = plan((32, 32), 6, 2)
        drops = before - probabilities_under(network, x, patches, target, 64, "batches")
        heat = spread_over(drops, patches, (32, 32)).clip(min=0)
        ink = pixels[..., 0] > 100
        ratios.append(heat[ink].mean() / max(heat[~ink].mean(), 1e-9))
    assert np.median(ratios) > 1.2


def test_patches_cover_every_pixel() -> None:
    patches = plan((31, 45), 6, 4)
    assert spread_over(np.ones((len(patches.tops), len(patches.lefts))), patches, (31, 45)).min() == 1


# ---- the program


def test_all_methods_are_in_the_flag() -> None:
    assert set(METHODS) == set(get_args(Method))


@pytest.mark.parametrize("method", ["gradcam", "occlusion", "deconvnet", "activations", "filters", "receptive_field"])
def test_every_picture_has_its_numbers_beside_it(method: str, digit_run: Path, tmp_path: Path) -> None:
    arguments = [str(digit_run), "--method", method, "--out", str(tmp_path), "--limit", "3", "--device", "cpu"]
    check = ["--sanity-check"] if method in ("gradcam", "deconvnet") else []
    assert explain([*arguments, *check]) == 0
    pictures = sorted(tmp_path.rglob("*.png"))
    assert pictures
    assert sorted(tmp_path.rglob("*")) == sorted([*pictures, *(one.with_suffix(".json") for one in pictures)])
    for one in pictures:
        assert one.name.endswith(f".{method}.png")
        assert one.stat().st_size < 150_000
        Image.open(one).verify()
        facts = read_strictly(one.with_suffix(".json"))
        assert facts["method"] == method
        assert facts.get("layer") or facts.get("patch")
        if check:
            assert len(facts["sanity_check"]["rank_correlation_with_random_weights"]) == 3


def test_masks_that_do_not_fit_are_named(
    crf_run: Path, crf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.full((32, 40), 2, np.uint8)).save(masks / "0.png")
    Image.fromarray(np.full((31, 40), 255, np.uint8)).save(masks / "1.png")
    images = str(crf_folder / "val" / "images")
    arguments = [str(crf_run), images, "--method", "crf", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert explain([*arguments, "--masks", str(masks)]) == 2
    error = capsys.readouterr().err
    assert "none of the pictures can be read; the first: 0.png: --masks: " in error
    assert "0.png holds the label 2; the network's classes are 0 to 1, and 255 is ignored" in error
    examples = Examples(load(crf_run, "cpu"), flags_of(inputs=[images], masks=str(masks)))
    with pytest.raises(ValueError, match="none of the pictures"):
        list(examples.take())
    assert "have different sizes, 31 x 40 and 32 x 40" in examples.problems[1]
    assert "there is no" in examples.problems[2]


def test_results_lie_as_the_pictures_do_and_a_broken_one_is_named(
    digit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "sub folder").mkdir(parents=True)
    Image.fromarray(picture(40, 50)).save(photos / "a.v1.png")
    Image.fromarray(picture(40, 50)).save(photos / "sub folder" / "ü [x].jpg")
    (photos / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = [str(digit_run), str(photos), "--out", str(out), "--target", "7", "--device", "cpu"]
    assert explain(arguments) == 1
    assert "not explained: broken.png" in capsys.readouterr().err
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert names == {"a.v1.gradcam.png", "sub folder/ü [x].gradcam.png"}
    facts = read_strictly(out / "a.v1.gradcam.json")
    assert (facts["picture"], facts["class"], facts["size"]) == ("a.v1.png", "7", [32, 32])


def test_a_segmentation_is_explained_at_pixels(crf_run: Path, crf_folder: Path, tmp_path: Path) -> None:
    one = str(crf_folder / "val" / "images" / "0.png")
    arguments = [str(crf_run), one, "--out", str(tmp_path), "--device", "cpu", "--layer", "3", "--target", "1"]
    for region, pixels in (["12", "10"], 1), (["10", "8", "14", "11"], 12):
        assert explain([*arguments, "--region", *region]) == 0
        facts = read_strictly(tmp_path / "0.gradcam.json")
        assert (facts["label"], facts["pixels"], facts["region"]) == (1, pixels, " ".join(region))
    network = load(crf_run, "cpu")
    image = network.read(one)
    with torch.no_grad():
        logits = network.module.network(prepared(network, image)[1])  # a CRF that follows is not explained
    assert facts["probability"] == pytest.approx(float(logits.softmax(1)[0, 1, 8:11, 10:14].mean()), abs=1e-5)
    at_pixel = choose_target(network, logits, flags_of(region=[12, 10]), image)
    assert at_pixel.label == int(logits[0, :, 10, 12].argmax())


def test_an_outlined_region_leaves_the_picture_as_it_is() -> None:
    image = picture(300, 320)
    pixels = torch.zeros(300, 320, dtype=torch.bool)
    pixels[200, 100] = True
    before = image.copy()
    drawn = np.array(panel(image, "one", Target(0, "a", pixels, "")))
    np.testing.assert_array_equal(image, before)
    changed = (drawn[-300:] != image).any(2)
    rows, columns = np.nonzero(changed)
    assert abs(rows.mean() - 200) < 1
    assert abs(columns.mean() - 100) < 1
    assert 50 < changed.sum() < 500


def test_heat_is_red_where_it_is_strongest_and_pale_if_it_is_weak() -> None:
    image = np.full((4, 5, 3), 100, np.uint8)
    heat = np.zeros((4, 5))
    heat[1, 2] = 0.1
    red = heat_over(image, heat).astype(int)
    assert red[1, 2, 0] > red[1, 2, 2] + 80
    assert (red[0] == red[0, 0, 0]).all(), "where there is no heat, the picture is grey"
    weak = heat_over(image, heat, least=1.0).astype(int)
    assert np.abs(weak[1, 2] - weak[0, 0]).max() < np.abs(red[1, 2] - red[0, 0]).max()


def test_the_class_that_is_explained_by_default_is_not_the_background() -> None:
    labels = torch.tensor([0] * 9 + [2] * 3 + [1])
    assert main_class(labels, ("background", "cat", "dog")) == 2
    assert main_class(labels, ("road", "cat", "dog")) == 0
    assert main_class(labels[:4], ("background", "cat", "dog")) == 0
    assert find_label("2", ("a", "2")) == 1
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unit", "3"], "--unit is for --method deconvnet or activations, not for gradcam"),
        (["--method", "deconvnet", "--unit", "16"], "--unit 16: c3 has 16 channels, 0 to 15"),
        (["--method", "deconvnet", "--layer", "c4"], "--layer: the backbone has no layer 'c4'; nearest: s4, c3, c1"),
        (["--layer", "3"], "--layer 3: the backbone has the maps 1 to 2, 1 is the finest"),
        (["--target", "cat"], "--target: there is no class 'cat' among 10"),
        (["--region", "1", "2"], "--region is for segmentations; this network classifies whole pictures"),
        (["--region", "1", "2", "3"], "--region takes two numbers, X Y, or four, LEFT TOP RIGHT BOTTOM; it has 3"),
        (["--method", "occlusion", "--patch", "32"], "--patch 32 covers the picture, which has 32 columns and 32 rows"),
        (["--method", "occlusion", "--patch", "4", "--step", "5"], "--step 5 leaves pixels out between patches of 4"),
        (["--method", "crf"], "--method crf is for segmentations; this network classifies whole pictures"),
        (["--method", "se_gates"], "--method se_gates needs squeeze-and-excitation gates; lenet5 has none"),
        (["--method", "crf", "--masks", "masks"], "--masks belongs to pictures that are named"),
        (["--method", "lime"], "--method: lime is not one of"),
    ],
)
def test_a_wrong_flag_is_one_line(
    flags: list[str], message: str, digit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = explain([str(digit_run), "--out", str(tmp_path / "out"), "--device", "cpu", "--limit", "1", *flags])
    except SystemExit as end:
        code = int(str(end.code))
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("explain.py: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_network_with_branches_is_refused_by_name(
    crf_run: Path, crf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(crf_folder / "val" / "images" / "0.png")
    arguments = [str(crf_run), one, "--out", str(tmp_path), "--device", "cpu"]
    for more, message in (
        (["--method", "deconvnet"], "needs a plain chain of layers, as in VGG"),
        (["--region", "40", "3"], "--region 40 3 is empty or outside of the picture, which has 40 columns and 32 rows"),
        (["--method", "se_gates"], "--method se_gates compares the classes of pictures; this network labels pixels"),
    ):
        assert explain([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
