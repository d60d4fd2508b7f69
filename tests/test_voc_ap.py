"""Average precision by VOC's rules, against both definitions written out step by step, and by hand."""

import numpy as np
import pytest
import torch

from datamodules.digits import Digits
from experiments.command_line.run_config import RunConfig
from experiments.training.build import ap_rule_of
from lightning_modules.detection_scores import DetectionScores
from lightning_modules.voc_ap import average_precisions

KEYS = ("boxes", "labels", "iscrowd")


def made_up(seed: int, images: int = 12) -> list[tuple[dict, dict]]:
    """Detections and objects of two classes: some found twice, some missed, some difficult; scores have ties."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        count = int(generator.integers(0, 5))
        corners = generator.integers(0, 60, (count, 2))
        boxes = np.concatenate([corners, corners + generator.integers(8, 40, (count, 2))], 1).reshape(-1, 4)
        labels, difficult = generator.integers(0, 2, count), generator.random(count) < 0.3
        picked = generator.integers(0, count, int(generator.integers(0, 9))) if count else np.zeros(0, int)
        moved = boxes[picked] + generator.integers(-4, 5, (len(picked), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        wrong = generator.random(len(picked)) < 0.2
        found = {
            "boxes": torch.tensor(moved, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor(generator.integers(1, 20, len(picked)) / 20, dtype=torch.float32),
            "labels": torch.tensor(np.where(wrong, 1 - labels[picked], labels[picked]), dtype=torch.int64),
        }
        truth = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "iscrowd": torch.tensor(difficult).long(),
        }
        made.append((found, truth))
    return made


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def written_out(images: list[tuple[dict, dict]], label: int, *, eleven_points: bool) -> float:
    """The development kit's procedure, one detection and one recall after the other."""
    rows = []
    for number, (found, _) in enumerate(images):
        for box, score, kind in zip(*(found[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
            if kind == label:
                rows.append((score, number, box))
    rows.sort(key=lambda row: -row[0])
    objects = [
        [
            [box, bool(hard), False]
            for box, kind, hard in zip(*(truth[key].tolist() for key in KEYS), strict=True)
            if kind == label
        ]
        for _, truth in images
    ]
    count = sum(not hard for one in objects for _, hard, _ in one)
    right = wrong = 0
    curve = []
    for _, number, box in rows:
        best, overlap = None, -1.0
        for one in objects[number]:
            if iou(box, one[0]) > overlap:
                best, overlap = one, iou(box, one[0])
        if best is not None and overlap >= 0.5:
            if best[1]:
                continue
            if not best[2]:
                right += 1
                best[2] = True
            else:
                wrong += 1
        else:
            wrong += 1
        curve.append((right / count, right / (right + wrong)))
    if eleven_points:
        return sum(max([p for r, p in curve if r >= t / 10 - 1e-12], default=0.0) for t in range(11)) / 11
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("eleven_points", [True, False])
def test_it_is_the_procedure_written_out(eleven_points: bool) -> None:
    for seed in range(8):
        images = made_up(seed)
        expected = [written_out(images, label, eleven_points=eleven_points) for label in range(2)]
        found = average_precisions(images, 2, eleven_points=eleven_points)
        assert found.tolist() == pytest.approx(expected, abs=1e-12)
        assert 0 < found.mean() < 1


def one_class(scores: list[float], boxes: list[list[float]], objects: list[list[float]], hard: list[int]) -> list:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    found = {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": labels}
    truth = {"boxes": torch.tensor(objects), "labels": torch.zeros(len(objects), dtype=torch.int64)}
    return [(found, truth | {"iscrowd": torch.tensor(hard)})]


def test_by_hand() -> None:
    """Two objects and a difficult one: right, on the difficult one (passed over), a second hit (wrong), right."""
    objects = [[0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]]
    boxes = [[0.0, 0, 10, 10], [40.0, 0, 50, 10], [0.0, 0, 10, 9], [20.0, 0, 30, 10]]
    images = one_class([0.9, 0.8, 0.7, 0.6], boxes, objects, [0, 0, 1])
    # Precision 1 at recall 1/2 and 2/3 at recall 1.
    assert average_precisions(images, 1, eleven_points=False)[0] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precisions(images, 1, eleven_points=True)[0] == pytest.approx((6 + 5 * 2 / 3) / 11)
    # An IoU of exactly 0.5 is right.
    images = one_class([0.5], [[0.0, 0, 10, 5]], [[0.0, 0, 10, 10]], [0])
    assert average_precisions(images, 1, eleven_points=False)[0] == 1


def test_scores_by_rule() -> None:
    names = ["a", "b", "absent"]
    values = {}
    for rule in ("voc07", "voc10", "coco"):
        scores = DetectionScores(rule)
        for number, (found, truth) in enumerate(made_up(0)):
            scores.update([f"{number:02d}"], [found], [truth])
        values[rule] = {name: float(value) for name, value in scores.scores(names).items()}
        assert np.isnan(values[rule]["ap50/absent"])
    for rule in ("voc07", "voc10"):
        own = values[rule]
        assert own["map"] == own["map50"] == pytest.approx((own["ap50/a"] + own["ap50/b"]) / 2)
    assert values["voc07"]["map"] != values["voc10"]["map"]
    assert values["voc10"]["map50"] == pytest.approx(values["coco"]["map50"], abs=0.1)
    with pytest.raises(ValueError, match="no rule of average precision 'voc12'; there are coco, voc07, voc10"):
        DetectionScores("voc12")


def test_the_user_decides_before_the_data_set() -> None:
    data = Digits("detection")
    assert ap_rule_of(RunConfig(head="fcos"), data) == "coco"
    assert ap_rule_of(RunConfig(head="fcos", ap_rule="voc07"), data) == "voc07"
