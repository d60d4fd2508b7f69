"""Augmentation: labels stay labels, places stay places, names and files choose, classes mix."""

from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from backbones.backbone import IMAGENET_MEAN
from datamodules import DATAMODULES
from datamodules.augmentation import AUGMENTATIONS, compose, find_augmentation, set_scale_range
from datamodules.colour_noise import EIGENVALUES, EIGENVECTORS, ImageNetColourNoise
from datamodules.digits import Digits
from datamodules.errors import DataError
from datamodules.scale_crop import ScaleCrop
from experiments.run import main
from lightning_modules.base import GraftModule
from lightning_modules.classification import ClassificationModule
from lightning_modules.seeding import SeedSteps

SPARSE = (0, 7, 200)


def ramp(height: int, width: int) -> np.ndarray:
    """An image whose red and green are the row and the column, 0 to 200."""
    rows, columns = np.mgrid[0 : 200 : complex(height), 0 : 200 : complex(width)]
    return np.stack([rows, columns, np.full_like(rows, 100)], axis=-1).round().astype(np.uint8)


def sparse_mask(height: int, width: int) -> np.ndarray:
    """Labels between which interpolation would find others, in small pieces."""
    return np.random.default_rng(0).choice(np.array(SPARSE, np.uint8), (height, width))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_preset_makes_a_new_label_value(name: str) -> None:
    pipeline = compose(find_augmentation(name, (32, 40), IMAGENET_MEAN))
    seen = set()
    for seed, size in enumerate([(20, 50), (64, 80), (33, 41)] * 8):
        pipeline.set_random_seed(seed)
        out = pipeline(image=ramp(*size), mask=sparse_mask(*size))
        assert out["image"].shape == (32, 40, 3)
        assert out["image"].dtype == np.uint8
        assert out["mask"].shape == (32, 40)
        seen |= set(np.unique(out["mask"]).tolist())
    assert set(SPARSE) <= seen <= {*SPARSE, 255}


@pytest.mark.parametrize("name", ["deeplab", "unet_elastic", "alexnet", "inception"])
def test_image_and_mask_go_the_same_way(name: str) -> None:
    """Left of the middle is class 0, right of it 1, and the image's columns say which is which."""
    image = ramp(60, 80)
    mask = (image[..., 1] > 100).astype(np.uint8)
    # What recolours would hide where a pixel came from.
    transforms = [
        one for one in find_augmentation(name, (48, 48), (0, 0, 0)) if not isinstance(one, A.ImageOnlyTransform)
    ]
    pipeline = compose(transforms)
    agreeing = counted = 0
    for seed in range(20):
        pipeline.set_random_seed(seed)
        out = pipeline(image=image, mask=mask)
        clear = (
            (np.abs(out["image"][..., 1].astype(int) - 100) > 12) & (out["mask"] != 255) & (out["image"][..., 2] > 95)
        )
        agreeing += int(((out["image"][..., 1] > 100) == out["mask"])[clear].sum())
        counted += int(clear.sum())
    assert counted > 10_000
    assert agreeing >= 0.995 * counted


def test_scale_crop_draws_what_scaling_then_cropping_draws() -> None:
    """The same factors and places on average, from the columns that the crops show."""
    image, mask = ramp(60, 80), np.zeros((60, 80), np.uint8)
    two_steps = [
        A.RandomScale(scale_limit=(-0.5, 1.0), p=1.0),
        A.RandomCrop(40, 40, pad_if_needed=True, fill=0, fill_mask=255),
    ]
    statistics = []
    for transforms in ([ScaleCrop((40, 40))], two_steps):
        pipeline = compose(transforms)
        spans, starts, padded = [], [], []
        for seed in range(600):
            pipeline.set_random_seed(seed)
            out = pipeline(image=image, mask=mask)
            inside = out["mask"] == 0
            columns = out["image"][..., 1][inside]
            spans.append(int(columns.max()) - int(columns.min()))
            starts.append(int(columns.min()))
            padded.append(1 - inside.mean())
        statistics.append([np.mean(spans), np.std(spans), np.mean(starts), np.std(starts), np.mean(padded) * 100])
    np.testing.assert_allclose(statistics[0], statistics[1], rtol=0.12, atol=1.5)


@pytest.mark.parametrize("name", ["deeplab", "mmsegmentation", "unet_elastic"])
def test_the_scale_range_replaces_the_presets_own(name: str) -> None:
    """A factor of one takes the crop of an image as it is, so neighbours differ by what they differ by in the image."""
    transforms = find_augmentation(name, (24, 24), IMAGENET_MEAN)
    set_scale_range(transforms, (1.0, 1.0))
    image = np.tile((np.arange(80, dtype=np.uint8) * 3)[None, :, None], (60, 1, 3))
    out = compose(transforms[:1])(image=image, mask=np.zeros((60, 80), np.uint8))["image"]
    assert (np.diff(out[..., 0].astype(int), axis=1) == 3).all()


def test_a_scale_range_needs_an_augmentation_that_scales() -> None:
    with pytest.raises(DataError, match="--scale-range: this augmentation does not scale and crop; deeplab, mmsegm"):
        set_scale_range(find_augmentation("inception", (24, 24), IMAGENET_MEAN), (1.0, 2.0))


def test_a_crop_is_the_part_of_the_scaled_image() -> None:
    """With a factor that keeps whole pixels, exactly."""
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    crop = ScaleCrop((40, 40), scale=(2.0, 2.0))
    params = crop.get_params_dependent_on_data({"shape": image.shape}, {})
    rows, columns = params["part"]
    whole = cv2.resize(image, (160, 120), interpolation=cv2.INTER_LINEAR)
    expected = whole[2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop]
    inner = slice(1, -1)  # at the border of the part, linear interpolation has no neighbours beyond it
    np.testing.assert_array_equal(crop.apply(image, **params)[inner, inner], expected[inner, inner])


def test_colour_noise_adds_the_papers_offset_to_every_pixel() -> None:
    """Krizhevsky et al. 2012, section 4.1: the sum of p_i alpha_i lambda_i, here with alphas that are known."""
    noise = ImageNetColourNoise()
    image = np.random.default_rng(0).integers(60, 190, (40, 50, 3), np.uint8)
    alphas = np.array([0.2, -0.1, 0.3])
    noise.random_generator = SimpleNamespace(normal=lambda mean, std, count: alphas if std == 0.1 else None)
    moved = noise.apply(image, **noise.get_params())
    expected = 255 * sum(EIGENVECTORS[:, i] * alphas[i] * EIGENVALUES[i] for i in range(3))
    assert np.abs(expected).max() > 5
    assert np.abs(moved.astype(float) - image - expected).max() <= 0.5 + 1e-9
    assert (noise.apply(np.full((2, 2, 3), 254, np.uint8), np.array([9.0, -300, 0])) == [255, 0, 254]).all()


@pytest.mark.parametrize("name", ["alexnet", "vgg"])
def test_the_mean_colour_varies_as_the_paper_says(name: str) -> None:
    """The standard deviation of an image's mean colour over many draws, by the formula."""
    pipeline = compose(
        [one for one in find_augmentation(name, (8, 8), (0, 0, 0)) if isinstance(one, A.ImageOnlyTransform)]
    )
    means = []
    for seed in range(400):
        pipeline.set_random_seed(seed)
        means.append(pipeline(image=np.full((8, 8, 3), 128, np.uint8))["image"].mean((0, 1)))
    expected = 0.1 * 255 * np.sqrt((np.square(EIGENVECTORS) * np.square(EIGENVALUES)).sum(1))
    np.testing.assert_allclose(np.std(means, axis=0), expected, rtol=0.12)
    np.testing.assert_allclose(np.mean(means, axis=0), 128, atol=0.5)


def shown(name: str, image: np.ndarray, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """First row and column of each crop of 56x56, and whether it is flipped, `(count, 3)`; last ones `(count, 2)`.

    Rows and columns are the levels of red and green.
    """
    pipeline = compose(
        [t for t in find_augmentation(name, (56, 56), (0, 0, 0)) if not isinstance(t, A.ImageOnlyTransform)]
    )
    first, last = [], []
    for seed in range(count):
        pipeline.set_random_seed(seed)
        out = pipeline(image=image)["image"].astype(float)
        flipped = out[0, 0, 1] > out[0, -1, 1]
        out = out[:, ::-1] if flipped else out
        first.append((*out[0, 0, :2], flipped))
        last.append(out[-1, -1, :2])
    return np.array(first), np.array(last)


def test_alexnet_crops_7_of_8_of_the_central_square() -> None:
    """An image of 80x160 whose red and green are row and column, 0 to 200: 256 -> 224, here 64 -> 56."""
    first, last = shown("alexnet", ramp(80, 160))
    rows, columns = (last - first[:, :2]).mean(0)
    assert rows == pytest.approx(200 * 7 / 8, rel=0.02)
    assert columns == pytest.approx(200 * 7 / 8 / 2, rel=0.02)
    assert first[:, 1].min() == pytest.approx(50, abs=3), "the square begins at a quarter of the width"
    assert last[:, 1].max() == pytest.approx(150, abs=3)
    assert first[:, 0].min() == pytest.approx(0, abs=3)
    assert last[:, 0].max() == pytest.approx(200, abs=3)
    assert first[:, 2].mean() == pytest.approx(0.5, abs=0.1), "every other crop is flipped"


def test_vgg_draws_the_shorter_side_uniformly_from_8_to_16_sevenths_of_the_crop() -> None:
    """S of 256 to 512 for a crop of 224: the crop shows 56 / S of the shorter side, S in 64 to 128."""
    first, last = shown("vgg", ramp(200, 260), 600)
    sides = 56 / ((last[:, 0] - first[:, 0]) / 200 + 1 / 128)  # from centre to centre of the outer pixels
    assert sides.min() == pytest.approx(64, rel=0.03)
    assert sides.max() == pytest.approx(128, rel=0.06)
    counts = np.histogram(sides, np.linspace(64, 128, 9))[0]
    assert counts.min() > 600 / 8 / 2, "no gaps, as between fixed scales"
    assert len(np.unique(sides.round(1))) > 60


def test_a_file_chooses_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 4, "val": 1, "test": 1})
    path = tmp_path / "dark.yaml"
    A.save(A.Compose([A.CenterCrop(16, 16), A.ToGray(p=1.0)]), path, data_format="yaml")
    data = DATAMODULES["digits"]("segmentation", image_size=(16, 16), batch_size=2, workers=0, augmentation=str(path))
    data.setup()
    pixels = data.to_pixels(data.train[0]["image"])
    assert (pixels.amax(0) - pixels.amin(0)).max() == 0


def test_a_file_cannot_have_masks_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "smooth.yaml"
    inner = A.Compose([A.Resize(16, 16, mask_interpolation=cv2.INTER_LINEAR, area_for_downscale="image_mask")])
    A.save(A.Compose([inner], mask_interpolation=cv2.INTER_CUBIC), path, data_format="yaml")
    pipeline = compose(find_augmentation(str(path), (16, 16), IMAGENET_MEAN))
    out = pipeline(image=ramp(40, 50), mask=sparse_mask(40, 50))
    assert set(np.unique(out["mask"]).tolist()) <= set(SPARSE)


def test_what_no_file_can_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    A.save(A.Compose([A.CenterCrop(16, 16), A.Normalize()]), path, data_format="yaml")
    with pytest.raises(
        ValueError, match=r"some\.yaml makes float32 \(16, 16, 3\) of an image, not uint8 \(16, 16, 3\)"
    ):
        find_augmentation(str(path), (16, 16), IMAGENET_MEAN)
    with pytest.raises(ValueError, match=r"makes .*, not uint8 \(20, 16, 3\); end it with a crop to --image-size"):
        find_augmentation(str(path), (20, 16), IMAGENET_MEAN)
    path.write_text("- a\n")
    with pytest.raises(ValueError, match=r"some\.yaml is no pipeline that A\.save could have written"):
        find_augmentation(str(path), (16, 16), IMAGENET_MEAN)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--augmentation deplab", "--augmentation deplab: no such name or file; nearest: deeplab"),
        ("--mixup 0.2 --loss dice", "--mixup: only --loss cross_entropy without --class-weights is supported"),
    ],
)
def test_usage_errors(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags.split())
    assert message in capsys.readouterr().err


def test_mixing_whole_images_needs_whole_image_classes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--backbone", "resnet18", "--mixup", "0.2", "--out", str(tmp_path), "--accelerator", "cpu"]) == 2
    assert "--mixup and --cutmix mix the classes of whole images; deeplab labels pixels" in capsys.readouterr().err


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_batches_train_on_the_classes_they_are_made_of(
    mixup: float, cutmix: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ClassificationModule("resnet18", "classifier", ["a", "b", "c"])
    (seeding,) = (callback for callback in module.configure_callbacks() if isinstance(callback, SeedSteps))
    module.mix_batches(mixup, cutmix)
    seen = []
    monkeypatch.setattr(GraftModule, "training_step", lambda self, batch, index: seen.append(batch))
    # Each image is one-hot in colour, so that its colours' shares are what its target must say.
    target = torch.tensor([0, 1, 2, 1])
    batch = {"image": torch.eye(3)[target][..., None, None].expand(4, 3, 64, 64).clone(), "target": target}
    for index in (0, 0, 1):
        seeding.on_train_batch_start(None, module, batch, index)  # type: ignore[arg-type]
        module.training_step(batch, index)
    assert torch.equal(seen[0]["image"], seen[1]["image"]), "a function of the seed and the step"
    assert not torch.equal(seen[0]["image"], seen[2]["image"])
    torch.testing.assert_close(seen[0]["image"].mean((2, 3)), seen[0]["target"], atol=0.02, rtol=0)
    assert not torch.equal(seen[0]["target"], seen[0]["target"].round())
