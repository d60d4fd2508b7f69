"""Masks of objects from data to Mask R-CNN."""

import json
import random
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from datamodules import DATAMODULES
from datamodules.augmentation import compose
from datamodules.coco import Coco
from datamodules.collate import collate
from datamodules.digits import Digits
from datamodules.objects import Objects, objects_of, transformed
from experiments import evaluate
from experiments.run import main
from heads.maskrcnn import MaskRCNN, masks_in_boxes, paste_masks
from lightning_modules.detection import without_crowds
from lightning_modules.detection_scores import DetectionScores
from lightning_modules.network import Network
from tests.fake_data import SIDE, make_coco


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


def detections(*rows: tuple[tuple[float, ...], float, int, int]) -> dict[str, torch.Tensor]:
    """Detections of a box, a score, a label, and a mask of the first rows of 28."""
    masks = torch.zeros(len(rows), 28, 28)
    for mask, row in zip(masks, rows, strict=True):
        mask[: row[3]] = 1
    return {
        "boxes": torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        "scores": torch.tensor([row[1] for row in rows]),
        "labels": torch.tensor([row[2] for row in rows], dtype=torch.int64),
        "masks": masks,
    }


def test_masks_are_scored_beside_boxes() -> None:
    """Boxes are right; masks overlap their objects by 0.91 and 0.66, after they are drawn into the image."""
    truth = objects_of([(0, 0, 28, 28), (30, 40, 58, 68)], [0, 1])
    masks = np.zeros((2, 70, 60), bool)
    masks[0, :14, :28] = masks[1, 40:68, 30:58] = True
    target = Objects(truth.boxes, truth.labels, truth.crowd, masks).tensors()
    found = detections(((0.0, 0, 28, 28), 0.9, 0, 14), ((30.0, 40, 58, 68), 0.8, 1, 18))
    drawn = (paste_masks(found, (70, 60)) >= 0.5).numpy()
    ious = [(ours & theirs).sum() / (ours | theirs).sum() for ours, theirs in zip(drawn, masks, strict=True)]
    assert ious == pytest.approx([0.905, 0.663], abs=1e-3)
    scores = DetectionScores()
    scores.update(["a"], [found], [target])
    values = scores.scores(["x", "y"])
    assert (float(values["map"]), float(values["map50"])) == pytest.approx((1, 1))
    # Nine thresholds up to 0.9, and four up to 0.65.
    assert (float(values["mask_map"]), float(values["mask_map50"])) == pytest.approx(((9 + 4) / 20, 1))

    # A false detection above the others halves a class's precision; images without objects or detections add none.
    nothing = Objects(truth.boxes[:0], truth.labels[:0], truth.crowd[:0], masks[:0]).tensors()
    scores.update(["b", "c"], [detections(((0.0, 0, 9, 9), 0.95, 0, 28)), detections()], [nothing, nothing])
    values = scores.scores(["x", "y"])
    assert float(values["mask_map50"]) == pytest.approx(0.75)
    assert float(values["mask_map"]) == pytest.approx((9 / 2 + 4) / 20)
    assert float(values["map"]) == pytest.approx(0.75)

    plain = {name: value for name, value in target.items() if name != "masks"}
    for rule, one in (("voc07", target), ("coco", plain)):
        alone = DetectionScores(rule)
        alone.update(["a"], [found], [one])
        assert "mask_map" not in alone.scores(["x", "y"])


def test_a_run_and_evaluate_report_the_same_score_of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head finds the objects of the only validation scene, whose masks lose a little in 28x28 values."""
    monkeypatch.setattr(Digits, "SCENES", {"train": 2, "val": 1, "test": 1})
    data = Digits("detection", workers=0, batch_size=2, object_masks=True)
    data.setup()
    truth = data.val[0]["target"]
    count = len(truth["labels"])
    found = {
        "boxes": truth["boxes"],
        "scores": torch.linspace(0.9, 0.8, count),
        "labels": truth["labels"],
        "masks": masks_in_boxes(truth["masks"], truth["boxes"], torch.arange(count), 28),
    }
    monkeypatch.setattr(MaskRCNN, "detections", lambda head, outputs, sizes: [found] * len(sizes))
    small = ["--backbone", "mobilenet_v3_small", "--head", "maskrcnn", "--head-options", "{width: 32, hidden: 32}"]
    more = ["--batch-size", "2", "--epochs", "0", "--workers", "0", "--accelerator", "cpu"]
    assert main([*small, *more, "--out", str(tmp_path), "--name", "a"]) == 0
    of_run = json.loads((tmp_path / "a" / "results.json").read_text())["scores"]["val"]
    assert (of_run["map"], of_run["mask_map50"]) == pytest.approx((1, 1))
    assert 0.7 < of_run["mask_map"] < 1
    assert evaluate.main([str(tmp_path / "a"), "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "a" / "evaluation-val" / "evaluation.json").read_text())["scores"]
    assert set(scores) == set(of_run) - {"loss"}
    for name in ("map", "map50", "mask_map", "mask_map50"):
        assert scores[name] == pytest.approx(of_run[name], abs=1e-6)


def test_masks_of_cocos_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Polygons and run lengths, in the order of the boxes; a batch of resized images has those of its objects."""
    make_coco(tmp_path)
    data = Coco("detection", data_dir=str(tmp_path), object_masks=True, batch_size=2, workers=0, fit="stretch",
                image_size=(48, 48))  # fmt: skip
    source = data.sources()["train"]
    _, objects, _ = source[1]
    assert objects.labels.tolist() == [0, 2, 2]
    assert objects.masks.shape == (3, SIDE + 2, SIDE + 1)
    assert [(x1, y1, x2, y2) for x1, y1, x2, y2 in objects.boxes.tolist()] == [box_of(mask) for mask in objects.masks]
    data.setup()
    batch = next(iter(data.train_dataloader()))
    for image, one in zip(batch["image"], batch["target"], strict=True):
        assert one["masks"].shape == (len(one["boxes"]), *image.shape[1:])
        assert one["masks"].flatten(1).any(1).all()
    assert data.val.cache is None


def box_of(mask: np.ndarray) -> tuple[float, ...]:
    """x1, y1, x2, y2 of the pixels that are true."""
    rows, columns = mask.nonzero()
    return tuple(map(float, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))


def test_annotations_without_an_outline_are_refused_before_training(tmp_path: Path) -> None:
    make_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content))
    data = Coco("detection", data_dir=str(tmp_path), object_masks=True)
    with pytest.raises(ValueError, match=r"train2017.json: 1 of \d+ annotations have a box only, and the head learns"):
        data.sources()


def test_data_without_masks_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="masks of objects, and --data voc gives boxes only; use --head fasterrcnn"):
        DATAMODULES["voc"]("detection", data_dir="somewhere", object_masks=True)
    network = Network("resnet18", "maskrcnn", 2, head_options={"width": 32, "hidden": 32})
    target = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="a target has boxes only"):
        network.losses(torch.randn(1, 3, 64, 64), [target], [(64, 64)])
