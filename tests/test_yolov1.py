"""YOLOv1: the published number of parameters, the loss of a hand-made picture, and decoding."""

import pytest
import torch
from torch import Tensor

from backbones.yolo import YOLO
from experiments.command_line.run_config import RunConfig
from experiments.training.build import size_for
from heads.yolov1 import Outputs, YOLOv1
from lightning_modules.network import Network

SIZE = (20, 40)
"""H and W: cells of the 2x2 grid are 10 pixels high and 20 wide."""


@pytest.fixture
def head() -> YOLOv1:
    return YOLOv1((4,), (2,), 3, grid=2, width=4, hidden=4)


def objects(*boxes: tuple[float, ...], labels: tuple[int, ...]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def test_the_network_of_2015() -> None:
    with torch.device("meta"):
        network = Network("yolov1", "yolov1", 20)
        maps = network.backbone(torch.empty(1, 3, 448, 448))
        outputs = network.head(maps)
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(counts.values()) == 271_703_550
    assert sum(count for name, count in counts.items() if "linear" not in name) == 60_155_968
    assert sum(name.endswith("weight") and "linear" not in name for name in counts) == 24
    assert [tuple(one.shape[1:]) for one in maps] == [
        (64, 224, 224), (192, 112, 112), (512, 56, 56), (1024, 28, 28), (1024, 14, 14),
    ]  # fmt: skip
    assert (tuple(outputs.classes.shape), tuple(outputs.boxes.shape)) == ((1, 49, 20), (1, 49, 2, 5))
    assert YOLO.input_size == 224


def test_the_loss_of_a_hand_made_picture(head: YOLOv1) -> None:
    """Two objects: one whose second box overlaps it, one that no box overlaps; a third in the first one's cell."""
    classes = torch.zeros(1, 4, 3)
    boxes = torch.zeros(1, 4, 2, 5)
    # Cell 1 (right above). The object is x 24 to 40, y 1 to 9: centre (32, 5), in cells (0.6, 0.5); sides 0.4 and 0.4.
    boxes[0, 1, 0] = torch.tensor([0.0, 0.0, 0.1, 0.1, 0.3])
    boxes[0, 1, 1] = torch.tensor([0.6, 0.5, 0.4**0.5, 0.2**0.5, 0.7])  # half of its height: IoU 0.5
    classes[0, 1] = torch.tensor([0.1, 0.8, -0.2])
    # Cell 2 (left below). The object is x 4 to 8, y 12 to 16: centre (6, 14), in cells (0.3, 0.4); sides 0.1 and 0.2.
    boxes[0, 2, 0] = torch.tensor([0.9, 0.9, 0.1, 0.1, 0.2])
    boxes[0, 2, 1] = torch.tensor([0.8, 0.8, 0.1, 0.1, -0.4])  # nearer
    classes[0, 2] = torch.tensor([0.0, 0.0, 1.0])
    boxes[0, 3, 0, 4] = 0.6
    truth = objects((24, 1, 40, 9), (4, 12, 8, 16), (31, 4, 33, 6), labels=(1, 2, 0))
    losses = {
        name: float(total) for name, (total, _) in head.losses(Outputs(classes, boxes, (4,)), [truth], [SIZE]).items()
    }
    first = (0.4**0.5 - 0.2**0.5) ** 2
    second = (0.8 - 0.3) ** 2 + (0.8 - 0.4) ** 2 + (0.1 - 0.1**0.5) ** 2 + (0.1 - 0.2**0.5) ** 2
    assert losses == {
        "coordinates": pytest.approx(5 * (first + second), rel=1e-5),
        "confidence": pytest.approx((0.7 - 0.5) ** 2 + (-0.4 - 0) ** 2, rel=1e-5),
        "background": pytest.approx(0.5 * (0.3**2 + 0.2**2 + 0.6**2), rel=1e-5),
        "classes": pytest.approx(0.1**2 + 0.2**2 + 0.2**2, rel=1e-5),
    }


def test_a_perfect_prediction_costs_nothing_and_is_found(head: YOLOv1) -> None:
    classes, boxes = torch.zeros(2, 4, 3), torch.zeros(2, 4, 2, 5)
    classes[0, 3, 2] = 1
    boxes[0, 3, 1] = torch.tensor([0.5, 0.25, 0.25**0.5, 0.1**0.5, 1.0])
    boxes[0, 3, 0] = torch.tensor([0.5, 0.5, 0.25**0.5, 0.1**0.5, 0.0])
    truth = objects((25, 11.5, 35, 13.5), labels=(2,))
    outputs = Outputs(classes, boxes, (4,))
    losses = head.losses(outputs, [truth, objects(labels=())], [SIZE, SIZE])
    assert sum(float(total) for total, _ in losses.values()) == pytest.approx(0, abs=1e-9)
    assert all(float(images) == 2 for _, images in losses.values())
    found, nothing = head.detections(outputs, [SIZE, SIZE])
    torch.testing.assert_close(found["boxes"], truth["boxes"], atol=1e-4, rtol=0)
    assert (found["labels"].tolist(), found["scores"].tolist()) == ([2], [1.0])
    assert not len(nothing["boxes"])


def test_overlapping_boxes_of_one_class_are_suppressed(head: YOLOv1) -> None:
    classes, boxes = torch.zeros(1, 4, 3), torch.zeros(1, 4, 2, 5)
    classes[0, 0] = torch.tensor([0.8, 0.0, 0.5])
    boxes[0, 0, 0] = torch.tensor([0.5, 0.5, 0.7, 0.7, 1.0])
    boxes[0, 0, 1] = torch.tensor([0.5, 0.5, 0.7, 0.72, 2.0])
    (found,) = head.detections(Outputs(classes, boxes, (4,)), [SIZE])
    assert found["labels"].tolist() == [0, 2]
    assert found["scores"].tolist() == [1.0, 1.0]  # cut to 1


def test_whole_images_are_stretched() -> None:
    assert size_for(RunConfig(head="yolov1")) == "stretch"
    assert size_for(RunConfig(head="fcos")) is None
    with pytest.raises(ValueError, match="--fit within: yolov1 sees whole images of one size; use stretch"):
        size_for(RunConfig(head="yolov1", fit="within"))
