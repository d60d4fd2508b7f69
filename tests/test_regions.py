"""Detectors that classify regions of a map: RoI pooling, the paper's anchors and draws, published layers behind it."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from backbones import BACKBONES
from heads.anchors import IGNORED, centred_anchors
from heads.regions import draw_regions
from heads.roi_pooling import align_on_cpu, pool_regions, regions_of
from heads.rpn import PairedRPNHead, RegionProposals
from lightning_modules.detection import DetectionModule
from lightning_modules.network import Network
from tests.conftest import randomise

pytestmark = pytest.mark.usefixtures("quick_weights")


def looped(x: Tensor, region: list[float], side: int, stride: int) -> Tensor:
    """RoI max pooling as the Fast R-CNN paper describes it, `(C, side, side)`; halves are rounded away from zero."""
    x1, y1, x2, y2 = (int(v / stride + 0.5) for v in region)
    rows, columns = torch.linspace(y1, y2 + 1, side + 1), torch.linspace(x1, x2 + 1, side + 1)
    bins = [[x[:, int(rows[i]):int(rows[i + 1].ceil()), int(columns[j]):int(columns[j + 1].ceil())]
             for j in range(side)] for i in range(side)]  # fmt: skip
    return torch.stack([torch.stack([part.amax((1, 2)) for part in row], 1) for row in bins], 1)


def test_max_pooling_is_that_of_four_lines() -> None:
    x = torch.randn(2, 3, 12, 15)
    boxes = torch.tensor([[0, 0, 100, 80], [33, 20, 47, 60], [3, 9, 120, 95], [64, 64, 64, 64], [41, 7, 77, 93]])
    pooled = pool_regions(x, regions_of([boxes[:2].float(), boxes[2:].float()]), 4, 8)
    for number, box in enumerate(boxes.tolist()):
        assert torch.equal(pooled[number], looped(x[int(number >= 2)], box, 4, 8)), box


@pytest.mark.parametrize("kind", ["max", "align"])
def test_pooling_follows_the_offset_and_rounds_no_box_in_half_precision(kind: str) -> None:
    x, regions = torch.randn(1, 2, 40, 40), torch.tensor([[0, 333.0, 250, 501, 437]])
    pooled = pool_regions(x, regions, 7, 16, 0.0, kind)
    moved = regions + torch.tensor([0, 5.0, 5, 5, 5])
    assert torch.equal(pool_regions(x, moved, 7, 16, 5.0, kind), pooled)
    half = pool_regions(x.bfloat16(), regions, 7, 16, 0.0, kind)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pooled, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("channels_last", [False, True])
def test_aligning_on_a_cpu_is_torchvisions(channels_last: bool) -> None:
    """Regions within the map, across each border, outside, in its last value, without a side, and none at all."""
    boxes = [[9, 5, 31, 44], [-30, -9, 20, 70], [50, 30, 90, 60], [80, 80, 95, 99], [63, 47, 64, 48], [8, 8, 8, 8]]
    regions = torch.tensor([[image, *box] for image in (0.0, 1.0) for box in boxes])
    x = torch.randn(2, 5, 12, 16)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for chosen in (regions, regions[:0]):
        results = []
        for pool in (partial(roi_align, sampling_ratio=2), align_on_cpu):
            values = x.clone().requires_grad_()
            pooled = pool(values, chosen, 7, 0.25)
            (pooled * torch.arange(pooled.numel()).view_as(pooled).sin()).sum().backward()
            results.append((pooled.detach(), values.grad))
        torch.testing.assert_close(results[1], results[0])


def test_aligning_takes_boxes_that_are_not_finite() -> None:
    """Training that diverges gives such boxes; another check reports it."""
    regions = torch.tensor([[0.0, math.nan, 1, 9, 9], [0.0, -math.inf, -math.inf, math.inf, math.inf]])
    assert not align_on_cpu(torch.ones(1, 2, 4, 4), regions, 7, 0.25).any()


def test_the_nine_anchors_of_the_paper() -> None:
    """As its code lists them: pixels counted from 1, the last one included."""
    anchors = centred_anchors(16, (8, 16, 32)) + torch.tensor([1, 1, 0, 0])
    assert anchors.tolist() == [
        [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
        [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
        [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
    ]  # fmt: skip


def test_two_logits_of_objectness_are_one_by_their_difference() -> None:
    layers = PairedRPNHead(4, 3)
    x = torch.randn(1, 4, 2, 2)
    ((objectness,), _) = layers([x])
    pairs = layers.cls_logits(layers.conv(x)).unflatten(1, (3, 2))
    torch.testing.assert_close(objectness.sigmoid(), pairs.softmax(2)[:, :, 1])


def test_anchors_that_cross_the_border_do_not_train() -> None:
    rpn = RegionProposals(4, [16], [torch.empty(1, 4)], inside_only=True)
    anchors = torch.tensor([[-1.0, 0, 20, 20], [0, 0, 20, 20], [30, 0, 51, 20], [0, 0, 300, 300]])
    truth = torch.tensor([[0.0, 0, 20, 20]])
    assert rpn.matched(anchors, truth, (50, 50)).tolist() == [IGNORED, 0, IGNORED, IGNORED]
    # All cross the border of this image: the loss would be empty.
    assert rpn.matched(anchors, truth, (10, 10)).tolist() == [0, 0, -1, -1]


def test_regions_that_overlap_too_little_are_not_drawn() -> None:
    proposals = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 2], [50, 50, 60, 60]])]
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([4])}
    drawn = draw_regions(proposals, [truth], 8, 0.5, training=True, least_overlap=0.1)
    assert drawn.classes.tolist() == [5, 5, 0]
    assert drawn.boxes[0][2].tolist() == [0, 0, 10, 2]
    assert drawn.objects[0].tolist() == [0, 0]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert len(draw_regions(proposals, [nothing], 8, 0.5, training=True, least_overlap=0.1).classes) == 3


def test_faster_rcnn_on_vgg16_has_the_papers_layers() -> None:
    with torch.device("meta"):
        network = Network("vgg16", "fasterrcnn_c4", 20)
        outputs = network(torch.empty(1, 3, 608, 800))
    assert sum(parameter.numel() for parameter in network.parameters()) == 137_078_239
    assert outputs.map.shape == (1, 512, 38, 50)
    assert outputs.proposed.levels == (38 * 50 * 9,)
    assert network.head.side == 7
    assert network.backbone.reductions == (1, 2, 4, 8, 16)


@torch.inference_mode()
def test_regions_pass_the_rest_of_the_published_network(tmp_path) -> None:
    """A region that is the whole map gets the features before the published output layer; weights load into them."""
    whole = randomise(BACKBONES["resnet18"]()).eval()
    published = whole.classifier(7).eval()
    torch.save(whole.state_dict() | published.state_dict(), tmp_path / "published.pth")
    network = Network("resnet18", "fasterrcnn_c4", 4, weights=str(tmp_path / "published.pth")).eval()
    x = torch.randn(1, 3, 224, 224)
    (map_,) = network.backbone(x)[-1:]
    assert map_.shape == (1, 256, 14, 14)
    features = network.head.classifier(map_)
    torch.testing.assert_close(features, whole(x)[-1].mean((2, 3)), atol=1e-4, rtol=1e-4)
    back = BACKBONES["resnet18"](c4=True)
    classifier = back.classifier(7)
    back.load(str(tmp_path / "published.pth"), classifier)
    torch.testing.assert_close(classifier.eval()(back.eval()(x)[-1]), published(whole(x)[-1]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("pools", ["2x2", "3x3"])
def test_vgg_gives_the_maps_before_its_pools(pools: str, tmp_path) -> None:
    whole, before = BACKBONES["vgg11"](pools=pools).eval(), BACKBONES["vgg11"](pools=pools, before_pools=True).eval()
    before.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 64, 96)
    maps, pooled = before(x), whole(x)
    assert [len(x[0, 0]) for x in maps] == [64, 32, 16, 8, 4]
    assert before.reductions == (1, 2, 4, 8, 16)
    pool = nn.MaxPool2d(2) if pools == "2x2" else nn.MaxPool2d(3, 2, 1)
    for own, theirs in zip(maps, pooled, strict=True):
        assert torch.equal(pool(own), theirs)
    one, other = whole.classifier(3).eval(), before.classifier(3).eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(pooled[-1]), other(maps[-1]))
    ceil = BACKBONES["vgg11"](before_pools=True, ceil_mode=True)
    with torch.device("meta"):
        assert [x.shape[2] for x in ceil.to("meta")(torch.empty(1, 3, 300, 300))] == [300, 150, 75, 38, 19]
    with pytest.raises(ValueError, match="before_pools leaves out the pool that fully_convolutional needs"):
        BACKBONES["vgg11"](before_pools=True, fully_convolutional=True)


def test_frozen_norms_are_those_behind_regions_too() -> None:
    module = DetectionModule("resnet18", "fasterrcnn_c4", ["a"], freeze_norms=True).train()
    norms = [part for part in module.network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(norm.training for norm in norms)


def test_anchors_of_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="anchor_scales is"):
        Network("resnet18", "fasterrcnn_c4", 4, head_options={"anchor_scales": [8, 0]})


@pytest.mark.parametrize("head", ["fastrcnn", "fasterrcnn", "fasterrcnn_c4", "fasterrcnn_dc5", "maskrcnn"])
def test_the_loss_takes_as_many_regions_as_asked_for(head: str) -> None:
    options = {"hidden": 8, "regions": 5}
    network = Network("mobilenet_v3_small", head, 3, head_options=options)
    truth = torch.tensor([[8.0, 8, 40, 40]])
    target = {"boxes": truth, "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 64, dtype=torch.bool)}
    terms = network.losses(torch.randn(2, 3, 64, 64), [target, target], [(64, 64)] * 2)  # type: ignore[list-item]
    assert 2 <= float(terms["classification"][1]) <= 2 * 5
    with pytest.raises(ValueError, match="regions is 0; give 1 or more"):
        Network("mobilenet_v3_small", head, 3, head_options=options | {"regions": 0})
