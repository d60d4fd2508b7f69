"""Box heads: torchvision's detectors on the same weights, anchors, matching, losses, and every backbone below them."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as oracles
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbones import BACKBONES
from heads import HEADS
from heads.anchors import BACKGROUND, IGNORED, anchors_at, base_anchors, decode, encode, match, places
from heads.box_head import last_of_each_stride
from heads.maskrcnn import paste_masks
from lightning_modules.network import Network
from lightning_modules.shapes_only import ShapesOnly
from tests.conftest import randomise
from tests.shallow import make_shallow

pytestmark = pytest.mark.usefixtures("quick_weights", "few_regions")

DETECTORS = [name for name, head in HEADS.items() if head.task == "detection"]
CLASSES = 4
NARROW = {
    "retinanet": {"width": 32},
    "fcos": {"width": 64},
    "ssd": {"width": 64, "side": 96},
    "fasterrcnn": {"width": 32, "hidden": 64},
    "fastrcnn": {"hidden": 64},
    "fasterrcnn_c4": {"hidden": 64, "anchor_scales": [1, 2, 4]},
    "fasterrcnn_dc5": {"hidden": 64, "anchor_scales": [1, 2, 4]},
    "maskrcnn": {"width": 32, "hidden": 64},
    "yolov1": {"width": 32, "hidden": 64},
}
"""Options under which a head is the same network, only narrower."""
NORMS_OF_RESNET50 = 53_120
"""Scales and shifts of the batch norms, which torchvision's detectors hold as buffers."""
PUBLISHED = {
    "retinanet": ("resnet50", oracles.retinanet_resnet50_fpn, 34_014_999),
    "fcos": ("resnet50", oracles.fcos_resnet50_fpn, 32_269_600),
    "ssd": ("vgg16", oracles.ssd300_vgg16, 35_641_826),
    "fasterrcnn": ("resnet50", oracles.fasterrcnn_resnet50_fpn, 41_755_286),
    "maskrcnn": ("resnet50", oracles.maskrcnn_resnet50_fpn, 44_401_393),
}
BACKGROUND_CLASS = {"ssd": 1, "fasterrcnn": 1, "maskrcnn": 1}
"""Classes that the head has besides those of the data, which come first."""


def objects(*boxes: tuple[float, ...], labels: tuple[int, ...] = (), side: int = 256) -> dict[str, Tensor]:
    """Boxes with classes, and with masks of `side` pixels: the left half of each box."""
    masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[round(y1) : round(y2), round(x1) : round((x1 + x2) / 2)] = True
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or range(len(boxes)), dtype=torch.int64),
        "masks": masks,
    }


def total(network: Network, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    size = (images.shape[2], images.shape[3])
    losses = network.losses(images, targets, [size] * len(images))
    assert tuple(losses) == network.head.loss_terms
    return torch.stack([value / weight.clamp(min=1) for value, weight in losses.values()]).sum()


def own_name(name: str) -> str:
    """What a tensor of torchvision's detectors is called here."""
    name = name.replace("backbone.body.", "backbone.").replace("backbone.fpn.", "head.pyramid.fpn.")
    name = name.replace("roi_heads.mask_", "head.masks.mask_")
    for theirs, ours in OWN_NAMES_OF_SSD.items():
        name = name.replace(theirs, ours)
    return f"head.{name}" if name.startswith(("head.c", "head.r", "rpn.", "roi_heads.")) else name


OWN_NAMES_OF_SSD = {
    "backbone.scale_weight": "head.norm_scale",
    "backbone.extra.0.7.": "head.fc.",
    **{f"backbone.extra.0.{i}.": f"backbone.features.{23 + i}." for i in range(7)},
    **{f"backbone.extra.{i}.": f"head.extra.{i - 1}." for i in range(1, 5)},
}


OUTPUT_LAYERS = ("cls_logits", "bbox_reg", "bbox_pred", "cls_score", "mask_fcn_logits")
SIZES = {"ssd": ((268, 268), (300, 268))}
"""Sizes at which a head's detections are compared; for SSD, those at which torchvision's other pools round nothing."""
SIZE = ((128, 256), (256, 128))
"""The sizes of the others."""


WIDTH, HIDDEN = 64, 128
"""Of the pyramid and of the linear layers of both detectors that are compared; SSD is as wide as the published one."""


def narrow(name: str, classes: int) -> nn.Module:
    """torchvision's detector on a ResNet-18 with a narrow pyramid; SSD, whose widths are fixed, as it is."""
    still = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if name == "ssd":
        return oracles.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes, **still)
    one_stage = name in ("retinanet", "fcos")
    stages = (2, 3, 4) if one_stage else (1, 2, 3, 4)
    body = BackboneWithFPN(
        resnet18(),
        {f"layer{stage}": str(number) for number, stage in enumerate(stages)},
        [32 * 2**stage for stage in stages],
        WIDTH,
        LastLevelP6P7(WIDTH, WIDTH) if one_stage else None,
    )
    if one_stage:
        return {"retinanet": oracles.RetinaNet, "fcos": oracles.FCOS}[name](body, classes, **still)
    options: dict[str, object] = {
        "box_head": TwoMLPHead(WIDTH * 49, HIDDEN),
        "box_predictor": oracles.faster_rcnn.FastRCNNPredictor(HIDDEN, classes),
    }
    if name == "fasterrcnn":
        return oracles.FasterRCNN(body, **options, **still)
    options["mask_head"] = MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1)
    options["mask_predictor"] = MaskRCNNPredictor(WIDTH, WIDTH, classes)
    return oracles.MaskRCNN(body, **options, **still)


def own(name: str, oracle: nn.Module) -> Network:
    """Graft's network of the same widths with the oracle's weights."""
    options = {} if name == "ssd" else {"width": WIDTH}
    if "rcnn" in name:
        options["hidden"] = HIDDEN
    network = Network("vgg16" if name == "ssd" else "resnet18", name, CLASSES, head_options=options)
    network.load_state_dict({own_name(key): value for key, value in oracle.state_dict().items()})
    return network


@functools.lru_cache(maxsize=1)  # the tests of one detector follow each other
def oracle_of(name: str) -> nn.Module:
    """torchvision's detector with random weights that find something in images of noise."""
    torch.manual_seed(0)
    oracle = randomise(narrow(name, CLASSES + BACKGROUND_CLASS.get(name, 0))).eval()
    height, width = SIZES.get(name, SIZE)[0]
    give_size(oracle, height, width)
    hooks = [
        layer.register_forward_hook(tame)
        for key, layer in oracle.named_modules()
        if key.endswith(("cls_logits", "bbox_reg", "bbox_pred", "cls_score", "mask_fcn_logits"))
        or "module_list." in key
    ]
    with torch.no_grad():
        oracle(list(torch.randn(1, 3, height, width)))
    for hook in hooks:
        hook.remove()
    if name in ("retinanet", "fcos"):
        nn.init.constant_(oracle.head.classification_head.cls_logits.bias, -1.5)
    return oracle


def give_size(oracle: nn.Module, height: int, width: int) -> None:
    """Let torchvision's detector leave images of this size as they are."""
    oracle.transform.min_size, oracle.transform.max_size = (min(height, width),), max(height, width)
    if oracle.transform.fixed_size is not None:  # SSD, whose default boxes are fractions of the image
        oracle.transform.fixed_size = (width, height)
        fractions = oracle.anchor_generator._generate_wh_pairs(6)
        pixels = [pairs.clamp(max=1) * 300 for pairs in fractions]
        oracle.anchor_generator._wh_pairs = [pairs / torch.tensor([width, height]) for pairs in pixels]
        oracle.anchor_generator.clip = False


def tame(layer: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
    """Scale a layer to outputs of a usual size: random ones would make all boxes too large or too thin."""
    factor = 0.5 / output.std()
    layer.weight.data *= factor
    layer.bias.data *= factor
    return output * factor


LOSS_KEYS = {
    "retinanet": ("classification", "bbox_regression"),
    "fcos": ("classification", "bbox_regression", "bbox_ctrness"),
    "ssd": ("classification", "bbox_regression"),
    "fasterrcnn": ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"),
}
LOSS_KEYS["maskrcnn"] = (*LOSS_KEYS["fasterrcnn"], "loss_mask")
"""torchvision's names of the terms of the loss."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_parameters(name: str) -> None:
    backbone, _, published = PUBLISHED[name]
    with torch.device("meta"):
        network = Network(backbone, name, 91 - BACKGROUND_CLASS.get(name, 0))
    norms = NORMS_OF_RESNET50 if backbone == "resnet50" else 0
    assert sum(parameter.numel() for parameter in network.parameters()) - norms == published


@pytest.mark.parametrize("name", PUBLISHED)
@torch.inference_mode()
def test_detections_equal_torchvisions_on_the_same_weights(name: str) -> None:
    """At sizes that all strides divide: at others, torchvision's strides are not the maps'."""
    first = BACKGROUND_CLASS.get(name, 0)
    oracle = oracle_of(name).eval()
    network = own(name, oracle).eval()
    for height, width in SIZES.get(name, SIZE):
        give_size(oracle, height, width)
        images = torch.randn(1 if name == "ssd" else 2, 3, height, width)
        for ours, theirs in zip(network.detect(images), oracle(list(images)), strict=True):
            assert len(theirs["boxes"]) > 20
            if "masks" in theirs:
                pasted = paste_masks(ours, (height, width))
                torch.testing.assert_close(pasted, theirs["masks"][:, 0], atol=1e-4, rtol=1e-4)
            assert torch.equal(ours["labels"], theirs["labels"] - first)
            torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_losses_equal_torchvisions(name: str) -> None:
    """In training mode, with the same random draws; batch norms keep their statistics."""
    first = BACKGROUND_CLASS.get(name, 0)
    oracle = oracle_of(name).train()
    network = own(name, oracle).train()
    for part in (*oracle.modules(), *network.modules()):
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    height, width = SIZES.get(name, SIZE)[0]
    give_size(oracle, height, width)
    targets = [objects((10, 20, 90, 100), (60.5, 8, 250, 120)), objects(), objects((0, 0, 30, 28), labels=(3,))]
    targets = targets[: 1 if name == "ssd" else 3]  # SSD's images are large
    images = torch.randn(len(targets), 3, height, width)
    targets = [{**one, "masks": one["masks"][:, :height, :width]} for one in targets]
    shifted = [{**one, "labels": one["labels"] + first} for one in targets]
    torch.manual_seed(0)
    theirs = oracle(list(images), shifted)
    torch.manual_seed(0)
    for _ in images:
        torch.empty(1).uniform_()  # torchvision draws a size for each
    terms = network.losses(images, targets, [(height, width)] * len(images))
    ours = [float((value / weight).detach()) for value, weight in terms.values()]
    expected = [float(theirs[key].detach()) for key in LOSS_KEYS[name]]
    assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_every_parameter_gets_a_gradient_also_without_objects(
    name: str, output_stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a ResNet of one block a stage."""
    make_shallow("resnet18", monkeypatch, 1)
    network = Network("resnet18", name, CLASSES, output_stride=output_stride, head_options=NARROW.get(name))
    images = torch.randn(2, 3, 65, 97)
    for targets in ([objects((5, 6, 60, 50), (30, 2, 90, 64)), objects()], [objects(), objects()]):
        network.zero_grad()
        loss = total(network, images, targets)
        loss.backward()
        assert loss.isfinite()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, f"no gradient for {key}"
            assert parameter.grad.isfinite().all(), f"the gradient of {key} is not finite"


@pytest.mark.parametrize("name", DETECTORS)
def test_padding_changes_nothing_beyond_clipping(name: str) -> None:
    """Detections lie within the image's own size, not within the batch's."""
    network = Network("resnet18", name, CLASSES, head_options={**NARROW.get(name, {}), "score_threshold": 0.0}).eval()
    with torch.inference_mode():
        small, whole = network.detect(torch.randn(2, 3, 96, 128), [(50, 70), (96, 128)])
    assert len(small["boxes"])
    assert (small["boxes"] >= 0).all()
    assert (small["boxes"][:, ::2] <= 70).all()
    assert (small["boxes"][:, 1::2] <= 50).all()
    assert (whole["boxes"][:, 2] > 70).any()
    assert small["scores"].diff().le(0).all()


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("backbone", ["lenet5", "xception"])
def test_unpadded_backbones_are_refused_with_the_reason(backbone: str, name: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=f"{name} needs maps at multiples of their stride; {backbone}'s unpadded"),
    ):
        Network(backbone, name, CLASSES)


def test_retinanets_towers_have_the_norms_of_torchvisions_second_form() -> None:
    with torch.device("meta"):
        head = HEADS["retinanet"]([64, 128, 256], [8, 16, 32], 10, norm=True).head
        oracle = oracles.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=10).head
    shapes, expected = ({name: one.shape for name, one in kind.state_dict().items()} for kind in (head, oracle))
    assert shapes == expected
    with pytest.raises(ValueError, match="width is 32; with norm it must be a multiple of 64"):
        HEADS["retinanet"]([64, 128, 256], [8, 16, 32], 10, norm=True, width=32)


def test_of_maps_of_one_stride_the_last_is_read() -> None:
    assert last_of_each_stride((2, 4, 8, 8, 8), 8) == [4]
    assert last_of_each_stride((2, 4, 8, 16, 16), 8) == [2, 4]
    assert last_of_each_stride((2, 4, 8, 16, 32), 8) == [2, 3, 4]
    assert last_of_each_stride((2, 4), 8) == [1]


def test_anchors_lie_at_multiples_of_the_stride_whatever_the_size() -> None:
    """torchvision derives the stride 12 from 100 pixels and 8 values."""
    anchors = anchors_at(base_anchors([32.0], [1.0]), places(torch.empty(1, 1, 2, 13), 8, 0.0))
    assert anchors[0].tolist() == [-16, -16, 16, 16]
    assert anchors[12].tolist() == [80, -16, 112, 16]
    assert anchors[13].tolist() == [-16, -8, 16, 24]


def test_codes_are_inverted() -> None:
    corners = torch.rand(50, 2, 2).sort(1).values.flatten(1) * 100 + torch.tensor([0.0, 0, 5, 5])
    anchors = corners.roll(1, 0)
    for weights in ((1, 1, 1, 1), (10, 10, 5, 5)):
        torch.testing.assert_close(decode(encode(corners, anchors, weights), anchors, weights), corners)


def test_matching() -> None:
    truth = objects((0, 0, 10, 10), (100, 100, 104, 104))["boxes"]
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3], [96, 96, 112, 112], [500, 0, 510, 9]])
    assert match(truth, boxes, 0.5, 0.4).tolist() == [0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]
    assert match(truth, boxes, 0.5, 0.4, best_of_each=True).tolist() == [0, IGNORED, BACKGROUND, 1, BACKGROUND]
    assert match(truth[:0], boxes, 0.5, 0.4).tolist() == [BACKGROUND] * 5
    # An object that no box touches claims none.
    assert match(truth[1:], boxes[:3], 0.5, 0.4, best_of_each=True).tolist() == [BACKGROUND] * 3


FEW_BACKBONES = ["vgg11", "densenet121", "mobilenet_v3_small", "googlenet", "convnext_tiny", "vit_b_32"]


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("backbone", FEW_BACKBONES)
def test_other_families_fit(backbone: str, name: str) -> None:
    """On the meta device, without values; detection_grid.py trains all pairs."""
    assert backbone in BACKBONES
    with torch.device("meta"), ShapesOnly(), torch.no_grad():
        network = Network(backbone, name, CLASSES, head_options=NARROW.get(name))
        outputs = network(torch.empty(1, 3, 97, 129))
    if HEADS[name].needs_proposals:  # boxes come with the data
        assert outputs.x.shape[1] == network.backbone.channels[-1]
        return
    proposed = getattr(outputs, "proposed", outputs)
    assert sum(proposed.levels) == proposed[0].shape[1]
