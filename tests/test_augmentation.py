"""Augmentation: labels stay labels, places stay places, names and files choose, classes mix."""

from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from backbones.backbone import IMAGENET_MEAN
from datamodules import DATAMODULES
from datamodules.augmentation import AUGMENTATIONS, compose, find_augmentation
from datamodules.digits import Digits
from datamodules.scale_crop import ScaleCrop
from experiments.run import main
from lightning_modules.classification import ClassificationModule, SoftTargets
from lightning_modules.losses import WeightedSum

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
def test_mixed_batches_train_on_the_classes_they_are_made_of(mixup: float, cutmix: float) -> None:
    module = ClassificationModule("resnet18", "classifier", ["a", "b", "c"])
    module.mix_batches(mixup, cutmix)
    seen = []
    module._step = lambda batch, split: seen.append(batch)  # type: ignore[method-assign, assignment, func-returns-value]
    # Each image is one-hot in colour, so that its colours' shares are what its target must say.
    target = torch.tensor([0, 1, 2, 1])
    batch = {"image": torch.eye(3)[target][..., None, None].expand(4, 3, 64, 64).clone(), "target": target}
    for index in (0, 0, 1):
        module.on_train_batch_start(batch, index)
        module.training_step(batch, index)
    assert torch.equal(seen[0]["image"], seen[1]["image"]), "a function of the seed and the step"
    assert not torch.equal(seen[0]["image"], seen[2]["image"])
    torch.testing.assert_close(seen[0]["image"].mean((2, 3)), seen[0]["target"], atol=0.02, rtol=0)
    assert not torch.equal(seen[0]["target"], seen[0]["target"].round())


def test_soft_targets_cost_what_their_shares_cost() -> None:
    logits, hard, other = torch.randn(5, 3), torch.randint(0, 3, (5,)), torch.randint(0, 3, (5,))
    soft = 0.7 * torch.eye(3)[hard] + 0.3 * torch.eye(3)[other]
    loss = SoftTargets(WeightedSum("cross_entropy", 3, ignore_index=-100))
    torch.testing.assert_close(loss(logits, soft), 0.7 * loss(logits, hard) + 0.3 * loss(logits, other))
