"""Masks of objects from data to Mask R-CNN."""

import random

import albumentations as A
import numpy as np
import pytest
import torch

from datamodules import DATAMODULES
from datamodules.augmentation import compose
from datamodules.collate import collate
from datamodules.digits import Digits
from datamodules.objects import Objects, objects_of, transformed
from heads.maskrcnn import masks_in_boxes
from lightning_modules.detection import without_crowds
from lightning_modules.network import Network


def test_masks_of_digits_fill_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 4, "val": 2, "test": 2})
    data, plain = (
        Digits("detection", workers=0, batch_size=2, object_masks=True),
        Digits("detection", workers=0, batch_size=2),
    )
    for one in (data, plain):
        one.setup()
    for index in range(4):
        sample = data.train[index]
        target, boxes = sample["target"], plain.train[index]["target"]
        assert torch.equal(sample["image"], plain.train[index]["image"])
        assert torch.equal(target["boxes"], boxes["boxes"])
        assert "masks" not in boxes
        for mask, box in zip(target["masks"], target["boxes"].tolist(), strict=True):
            rows, columns = mask.nonzero().T
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box
    batch = collate([data.train.pixels(0), data.train.pixels(1)])
    assert [len(one["masks"]) for one in batch["target"]] == [len(one["boxes"]) for one in batch["target"]]


def test_masks_go_where_the_boxes_go() -> None:
    """A box that a crop leaves out takes its mask with it."""
    pipeline = compose([A.RandomCrop(40, 50), A.HorizontalFlip(p=0.5)], boxes=True)
    dropped = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        pipeline.set_random_state(generator, random.Random(seed))
        corners = generator.integers(0, (70, 50), (4, 2))
        boxes = np.concatenate([corners, corners + generator.integers(8, 25, (4, 2))], 1)
        masks = np.zeros((4, 80, 100), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
        given = Objects(boxes.astype(np.float32), np.arange(4), np.array([False, True, False, True]), masks)
        image, moved = transformed(pipeline, np.zeros((80, 100, 3), np.uint8), given)
        assert moved.masks.shape == (len(moved.boxes), *image.shape[:2])
        dropped += 4 - len(moved.boxes)
        assert (moved.crowd == moved.labels % 2).all()
        for mask, box in zip(moved.masks, moved.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(around - box).max() < 1e-3
    assert 0 < dropped < 60
    nothing = Objects(*(getattr(objects_of([], []), name) for name in ("boxes", "labels", "crowd")), masks[:0])
    assert transformed(pipeline, np.zeros((80, 100, 3), np.uint8), nothing)[1].masks.shape == (0, 40, 50)


def test_crowds_leave_with_their_masks() -> None:
    target = Objects(np.zeros((2, 4), np.float32), np.arange(2), np.array([True, False]), np.ones((2, 3, 3), bool))
    alone = without_crowds(target.tensors())
    assert alone["labels"].tolist() == [1]
    assert len(alone["masks"]) == 1


def test_masks_are_cut_out_by_boxes() -> None:
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[1, :, 20:] = True
    inside = masks_in_boxes(masks, torch.tensor([[10.0, 0, 30, 40], [0, 0, 40, 40]]), torch.tensor([1, 0]), 4)
    torch.testing.assert_close(inside[0], torch.tensor([0.0, 0, 1, 1]).expand(4, 4), atol=0.13, rtol=0)
    assert not inside[1].any()


def test_data_without_masks_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="masks of objects, and --data coco gives boxes only; use --head fasterrcnn"):
        DATAMODULES["coco"]("detection", data_dir="somewhere", object_masks=True)
    network = Network("resnet18", "maskrcnn", 2, head_options={"width": 32, "hidden": 32})
    target = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="a target has boxes only"):
        network.losses(torch.randn(1, 3, 64, 64), [target], [(64, 64)])
