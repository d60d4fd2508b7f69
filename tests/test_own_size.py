"""Masks are scored at their own size, whatever size the network sees, and whatever the batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import DATAMODULES
from lightning_modules.own_size import at_own_sizes
from lightning_modules.segmentation import SegmentationModule
from tests.fake_data import photo, save

SIZES = ((64, 48), (40, 90), (32, 32))


def make(root: Path) -> Path:
    """Images of several sizes with a class of single rows, which nearest neighbours pass over at half the size."""
    for split in ("train", "val", "test"):
        for index, size in enumerate(SIZES):
            mask = np.zeros(size, np.uint8)
            mask[::8] = 1
            mask[:, :2] = 255
            save(root / split / "images" / f"{index}.png", photo(index, *size))
            save(root / split / "masks" / f"{index}.png", mask)
    return root


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_pixel_of_a_mask_is_scored_once(batch_size: int, tmp_path: Path) -> None:
    data = DATAMODULES["folders"](
        "segmentation", data_dir=str(make(tmp_path)), image_size=(32, 32), batch_size=batch_size, workers=0
    )
    data.setup()
    module = SegmentationModule("lenet5", "unet", data.class_names).eval()
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        with torch.inference_mode():
            for batch in loader:
                assert batch["image"].shape[1:] == (3, 32, 32)
                (module.validation_step if split == "val" else module.test_step)(batch, 0)
        truth = module.split_scores(split).matrix().sum(1).tolist()
        rows = sum(height // 8 * (width - 2) for height, width in SIZES)
        assert truth == [sum(height * (width - 2) for height, width in SIZES) - rows, rows]
    matrix = module.split_scores("val").matrix()
    expected = torch.zeros(2, 2, dtype=torch.int64)
    for index in range(len(SIZES)):  # by hand, one at a time
        sample = data.val[index]
        with torch.inference_mode():
            logits = module(sample["image"][None])
        predicted = torch.nn.functional.interpolate(logits, SIZES[index], mode="bilinear").argmax(1)[0]
        valid = sample["target"] != 255
        cells = sample["target"][valid] * 2 + predicted[valid]
        expected += torch.bincount(cells, minlength=4).view(2, 2)
    assert (matrix - expected).abs().sum() <= 0.001 * expected.sum()  # a sum in another order may tip a pixel


def test_logits_meet_their_masks_without_the_padding() -> None:
    logits = torch.arange(8.0).view(2, 1, 2, 2)
    target = torch.full((2, 4, 6), 255)
    sizes = [(4, 2), (3, 6)]
    for index, (height, width) in enumerate(sizes):
        target[index, :height, :width] = index
    found = list(at_own_sizes(logits, target, sizes))
    assert [tuple(one.shape) for one, _ in found] == [(1, 1, 4, 2), (1, 1, 3, 6)]
    assert [labels.unique().tolist() for _, labels in found] == [[0], [1]]
    assert list(at_own_sizes(logits, target, None)) == [(logits, target)]
