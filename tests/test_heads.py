"""Heads on made-up maps: published parameter counts, parity with torchvision, receptive fields, odd sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50, lraspp_mobilenet_v3_large

from heads import HEADS, dilatednet
from heads.aspp import scaled_rates
from heads.deeplab import DeepLab
from heads.deeplabv2 import DeepLabV2
from heads.deeplabv3 import DeepLabV3
from heads.dilatednet import context_module
from heads.fcn import FCN8s
from heads.fpn import FPN
from heads.hypercolumn import Hypercolumn
from heads.lraspp import LRASPP
from lightning_modules.network import Network
from tests.conftest import randomise

CLASSES = 21
CHANNELS = (6, 8, 12, 16, 32)
SEGMENTERS = [name for name, head in HEADS.items() if head.task == "segmentation"]

# Every form of a head that its options make another network.
FORMS: list[tuple[str, dict]] = [(name, {}) for name in SEGMENTERS] + [
    ("deeplabv2", {"branches": "S"}),
    ("deeplabv2", {"hidden": 16}),
    ("dilatednet", {"context": "none"}),
    ("dilatednet", {"context": "large"}),
    ("dilatednet", {"layers": 7}),
    ("dilatednet", {"layers": 10}),
    ("hypercolumn", {"form": "concatenate"}),
]


def strides(output_stride: int) -> tuple[int, ...]:
    return tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))


def maps(output_stride: int, batch: int = 2, size: tuple[int, int] = (65, 97)) -> list[Tensor]:
    """Non-negative like a backbone's; sides rounded up, as padded convolutions leave them."""
    sides = [[-(-side // stride) for side in size] for stride in strides(output_stride)]
    return [torch.rand(batch, width, *side) for width, side in zip(CHANNELS, sides, strict=True)]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_odd_sizes_give_logits_and_finite_gradients(name: str, options: dict, output_stride: int) -> None:
    head = HEADS[name](CHANNELS, strides(output_stride), 3, **options)
    features = maps(output_stride)
    logits = head(features)
    sizes = [list(x.shape[2:]) for x in features]
    assert logits.shape[:2] == (2, 3)
    # At one of the maps' sizes, or enlarged to at least the image's.
    assert list(logits.shape[2:]) in sizes or (logits.shape[2] >= 65 and logits.shape[3] >= 97)
    logits.square().mean().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, f"no gradient for {parameter_name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {parameter_name} is not finite"


@pytest.mark.parametrize("name", SEGMENTERS)
def test_one_image_trains_and_every_map_it_needs_counts(name: str) -> None:
    head = HEADS[name](CHANNELS, strides(32), 3)
    for parameter in head.parameters():  # FCN's skips start at zero
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter)
    features = [x.requires_grad_() for x in maps(32, batch=1)]
    head(features).square().mean().backward()
    needed = {*HEADS[name].needs, 32}
    for stride, x in zip(strides(32), features, strict=True):
        assert stride not in needed or (x.grad is not None and x.grad.any()), f"the map at stride {stride} is not read"


@pytest.mark.parametrize("name", SEGMENTERS)
def test_any_number_of_maps(name: str) -> None:
    """Down to the coarsest one that the head needs, whatever else there is."""
    head = HEADS[name]
    finest = min([*head.needs, 32])
    start = strides(32).index(finest)
    features = maps(32)[start:]
    assert head(CHANNELS[start:], strides(32)[start:], 3)(features).shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("backbone", "head", "options", "published"),
    [
        ("vgg16", "fcn8s", {}, 134_489_759),  # with its transposed convolutions
        ("vgg16", "dilatednet", {"context": "none"}, 134_346_581),
        ("vgg16", "dilatednet", {"context": "basic"}, 134_346_581 + 28_392),
        ("vgg16", "dilatednet", {"context": "large"}, 134_346_581 + 6_803_139),
        ("vgg16", "deeplabv1", {}, 20_505_429),  # "20.5 M"
        ("resnet50", "deeplabv3", {}, 42_004_074 - 2_365_205),  # torchvision's less its auxiliary classifier
    ],
)
def test_networks_have_the_published_number_of_parameters(
    backbone: str, head: str, options: dict, published: int
) -> None:
    with torch.device("meta"):
        assert count(Network(backbone, head, CLASSES, head_options=options)) == published


def test_fcn_32s_and_16s_count_as_published_without_their_deconvolutions() -> None:
    for head, published in (("fcn32s", 134_346_581), ("fcn16s", 134_346_581 + 512 * CLASSES + CLASSES)):
        with torch.device("meta"):
            network = Network("vgg16", head, CLASSES)
        assert count(network) - count(network.head.ups) - count(network.head.final) == published


def test_fcn_upsampling_can_stay_fixed() -> None:
    head = FCN8s(CHANNELS, strides(32), CLASSES, learn_upsampling=False)
    assert not any(parameter.requires_grad for part in (head.ups, head.final) for parameter in part.parameters())
    assert all(parameter.requires_grad for parameter in head.scores.parameters())


def test_context_modules_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(context_module(CLASSES, "basic", 8)) == 28_392
        assert count(context_module(CLASSES, "large", 8)) == 6_803_139


@pytest.mark.parametrize(
    ("layers", "fields"),
    [
        (8, [3, 5, 9, 17, 33, 65, 67, 67]),
        (7, [3, 5, 9, 17, 33, 35, 35]),
        (10, [3, 5, 9, 17, 33, 65, 129, 257, 259, 259]),
    ],
)
def test_receptive_fields_of_the_context_measured_by_gradient(layers: int, fields: list[int]) -> None:
    context = context_module(1, "basic", layers)
    for parameter in context.parameters():
        nn.init.uniform_(parameter, 0.05, 0.15)  # strictly positive: no path cancels and no ReLU is off
    side = max(fields) + 4
    measured = []
    for depth in range(1, layers + 1):
        x = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
        context.double()[: 2 * depth - 1](x)[0, 0, side // 2, side // 2].backward()
        assert x.grad is not None
        touched = x.grad[0, 0] > 0
        rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
        height, width = (int(hit.max() - hit.min() + 1) for hit in (rows, columns))
        assert height == width
        if depth <= 5 or layers == 8:  # rates double from 1: no hole in the field
            assert touched.sum() == height * width
        measured.append(height)
    assert measured == fields


@pytest.mark.parametrize("layers", [7, 8, 10])
@pytest.mark.parametrize("width", ["basic", "large"])
def test_context_starts_as_the_identity(width: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, CLASSES, 9, 11)
    context = context_module(CLASSES, width, layers)
    # Each layer's noise adds sqrt(9 * C) * NOISE of the input's size at most; layers' noises are independent.
    bound = dilatednet.NOISE * (9 * CLASSES * layers) ** 0.5 * x.square().mean().sqrt()
    difference = (context(x) - x).square().mean().sqrt()
    assert 0 < difference < 1.5 * bound
    monkeypatch.setattr(dilatednet, "NOISE", 0.0)
    torch.testing.assert_close(context_module(CLASSES, width, layers)(x), x)


def test_deeplabv3_equals_torchvision() -> None:
    """At output stride 8, the one torchvision builds."""
    theirs = randomise(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5).classifier).eval()
    ours = DeepLabV3((64, 256, 512, 1024, 2048), (2, 4, 8, 8, 8), 5).eval()
    names = {
        "0.convs.0": "aspp.pointwise",
        "0.convs.1": "aspp.atrous.0",
        "0.convs.2": "aspp.atrous.1",
        "0.convs.3": "aspp.atrous.2",
        "0.convs.4.1": "aspp.pooled.conv",
        "0.convs.4.2": "aspp.pooled.norm",
        "0.project": "aspp.project",
        "1": "refine.0",
        "2": "refine.1",
        "4": "score",
    }
    state = {}
    for key, value in theirs.state_dict().items():
        prefix = max((name for name in names if key.startswith(name + ".")), key=len)
        state[names[prefix] + key.removeprefix(prefix)] = value
    ours.load_state_dict(state, strict=True)
    x = torch.rand(2, 2048, 9, 13)
    with torch.no_grad():
        torch.testing.assert_close(ours([x]), theirs(x))


def test_lraspp_equals_torchvision() -> None:
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).classifier
    theirs = randomise(theirs).eval()
    ours = LRASPP((16, 24, 40, 112, 960), (2, 4, 8, 16, 16), 5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    features = [torch.rand(2, c, 18 // s, 26 // s) for c, s in ((16, 1), (24, 1), (40, 1), (112, 2), (960, 2))]
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs({"low": features[2], "high": features[-1]}))


def test_deeplabv2_sums_the_papers_four_branches() -> None:
    for branches, rates in (("L", (6, 12, 18, 24)), ("S", (2, 4, 8, 12))):
        head = DeepLabV2(CHANNELS, strides(8), 3, branches=branches)
        x = maps(8)[-1]
        scores = [
            F.conv2d(x, branch.weight, branch.bias, padding=rate, dilation=rate)
            for branch, rate in zip(head.branches, rates, strict=True)
        ]
        torch.testing.assert_close(head([x]), sum(scores))


def test_rates_follow_the_output_stride() -> None:
    assert [scaled_rates((6, 12, 18), 16, stride) for stride in (8, 16, 32)] == [[12, 24, 36], [6, 12, 18], [3, 6, 9]]
    assert scaled_rates((2, 4, 8, 12), 8, 32) == [1, 1, 2, 3]
    for stride, rate in ((8, 12), (16, 6), (32, 3)):
        assert HEADS["deeplabv1"](CHANNELS, strides(stride), 3).branch[0].dilation == (rate, rate)


def test_deeplabv3plus_is_deeplab() -> None:
    assert HEADS["deeplabv3plus"] is DeepLab


def test_hypercolumn_forms_give_the_same_logits() -> None:
    summed, joined = (Hypercolumn(CHANNELS, strides(16), 3, form=form) for form in ("sum", "concatenate"))
    joined.load_state_dict(summed.state_dict(), strict=True)
    features = maps(16)
    torch.testing.assert_close(summed(features), joined(features))


def test_fpn_steps_by_the_papers_number_of_convolutions() -> None:
    assert [len(branch.steps) for branch in FPN(CHANNELS, strides(32), 3).branches] == [1, 1, 2, 3]
    assert [len(branch.steps) for branch in FPN(CHANNELS, strides(8), 3).branches] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv2", {"branches": "M"}, "branches=L or branches=S, not branches=M"),
        ("dilatednet", {"context": "small"}, "not context=small"),
        ("dilatednet", {"layers": 9}, "layers=7, 8, 10, not layers=9"),
        ("hypercolumn", {"form": "mean"}, "form=sum or form=concatenate, not form=mean"),
        ("fpn", {"width": 100}, "width is 100; it must be a multiple of 32"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HEADS[name](CHANNELS, strides(32), 3, **options)
