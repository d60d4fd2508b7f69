"""Heads on made-up maps: published parameter counts, parity with torchvision, receptive fields, odd sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import BACKBONES
from backbones.pooling import Pool2d
from heads import HEADS, dilatednet
from heads.aspp import scaled_rates
from heads.deeplab import DeepLabV3Plus
from heads.deeplabv2 import DeepLabV2
from heads.dilatednet import context_module
from heads.fcn import FCN8s
from heads.fpn import FPN
from heads.hypercolumn import Hypercolumn
from lightning_modules.network import Network

pytestmark = pytest.mark.usefixtures("quick_weights")

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
    ("dilatednet", {"padding": "reflect"}),
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
    needed = {*HEADS[name].required_strides, 32}
    for stride, x in zip(strides(32), features, strict=True):
        assert stride not in needed or (x.grad is not None and x.grad.any()), f"the map at stride {stride} is not read"


@pytest.mark.parametrize("name", SEGMENTERS)
def test_any_number_of_maps(name: str) -> None:
    """Down to the coarsest one that the head needs, whatever else there is."""
    head = HEADS[name]
    finest = min([*head.required_strides, 32])
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
    learned = FCN8s(CHANNELS, strides(32), CLASSES)
    learned.scores.load_state_dict(head.scores.state_dict())
    features = maps(32)
    torch.testing.assert_close(head(features), learned(features))
    assert head.final.weight.numel() * CLASSES == learned.final.weight.numel()


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


def test_doubling_dilations_see_3_7_and_15_pixels() -> None:
    """F_i, the paper's section 2: 3x3 convolutions dilated by 1, 2, 4 see squares of side 2^(i + 2) - 1."""
    x = torch.rand(1, 1, 21, 21, requires_grad=True)
    maps = [x]
    for row in dilatednet.FRONT[1:4]:
        kernel = torch.ones(1, 1, row.kernel_size, row.kernel_size)
        maps.append(F.conv2d(maps[-1], kernel, padding=row.dilation, dilation=row.dilation))
    for i, one in enumerate(maps[1:]):
        (gradient,) = torch.autograd.grad(one[0, 0, 10, 10], x, retain_graph=True)
        side = 2 ** (i + 2) - 1
        assert (gradient > 0).sum() == side**2
        assert (gradient[..., 10 - side // 2 : 11 + side // 2, 10 - side // 2 : 11 + side // 2] > 0).all()


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


@pytest.mark.parametrize(
    ("channels", "widths"),
    [((16, 24, 40, 112, 320), [256, 128, 64, 32]), ((64, 64, 128, 256, 512), [256, 128, 64, 64]),
     ((64, 256, 512, 1024, 2048), [512, 256, 128, 64])],
    ids=["efficientnet_lite0", "resnet18", "resnet50"],
)  # fmt: skip
def test_unet_has_the_maps_channels_between_half_the_originals_and_the_originals(
    channels: tuple[int, ...], widths: list[int]
) -> None:
    head = HEADS["unet"](channels, (2, 4, 8, 16, 32), 5)
    assert [join[0].out_channels for join in head.joins] == widths


def test_unet_starts_with_the_papers_standard_deviation() -> None:
    """sqrt(2 / N), also of up-convolutions, where N is the number of input channels."""
    torch.manual_seed(0)
    head = HEADS["unet"]((64, 128, 256, 512, 1024), (1, 2, 4, 8, 16), 5, up="transpose")
    for up in head.ups:
        assert float(up.weight.std()) == pytest.approx(math.sqrt(2 / up.in_channels), rel=0.05)
        x = torch.randn(2, up.in_channels, 16, 16)
        assert float(up(x).std()) == pytest.approx(math.sqrt(2), rel=0.05)
    for convolution in (head.joins[0][0], head.joins[0][3]):
        assert float(convolution.weight.std()) == pytest.approx(math.sqrt(2 / 9 / convolution.in_channels), rel=0.05)


@pytest.mark.parametrize(("in_channels", "classes", "published"), [(1, 2, 31_030_658), (3, 21, 31_033_045)])
def test_unet_is_the_original(in_channels: int, classes: int, published: int) -> None:
    """Parameters, and the sizes of figure 1: 572 pixels of input for 388 of output."""
    with torch.device("meta"):
        network = Network(
            "unet_encoder",
            "unet",
            classes,
            in_channels=in_channels,
            backbone_options={"valid_convolutions": True},
            head_options={"up": "transpose", "valid": True, "norm": False},
        )
        assert count(network) == published
        assert (network.head.mirror_before, network.head.mirror_after(388)) == (92, 92)
        features = network.backbone(torch.empty(1, in_channels, 572, 572))
        assert [x.shape[2] for x in features] == [568, 280, 136, 64, 28]
        assert network.head(features).shape == (1, classes, 388, 388)
        for size in (1, 65, 97):  # no size needs to fit the pools
            assert network(torch.empty(1, in_channels, size, size + 1)).shape == (1, classes, size, size + 1)


def test_unpadded_unet_scores_the_pixel_it_should() -> None:
    """The pixel that pulls most at a score is its own; at the border, where mirrored pixels count twice, one near."""
    network = Network(
        "unet_encoder",
        "unet",
        1,
        backbone_options={"valid_convolutions": True},
        head_options={"up": "transpose", "valid": True},
    ).eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1 / parameter[0].numel() if parameter.ndim > 1 else 0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    for place in ((20, 13), (0, 32), (40, 1)):
        x = torch.rand(1, 3, 41, 33, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x)[0, 0, place[0], place[1]], x)
        row, column = divmod(int(gradient[0].sum(0).argmax()), 33)
        near = 0 if place == (20, 13) else 2
        assert max(abs(row - place[0]), abs(column - place[1])) <= near


def test_reflection_leaves_no_zeros_to_see() -> None:
    """An image of stripes that goes on beyond its border by reflection is scored like the middle of a larger one."""
    backbone = "mobilenet_v1_025"  # whose field of view, 315 pixels, the margins cover
    network = Network(backbone, "dilatednet", 3, head_options={"padding": "reflect", "context": "none"}).eval()
    for module in network.modules():  # norms at rest let the maps of a fresh network fade away
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None
    network(torch.randn(1, 3, 64, 64))
    network.eval()
    rows = torch.randn(1, 3, 17, 1)
    small = rows.expand(-1, -1, -1, 16)
    large = rows.expand(-1, -1, -1, 400)
    with torch.no_grad():
        plain = Network(backbone, "dilatednet", 3, head_options={"context": "none"}).eval()
        plain.load_state_dict(network.state_dict())
        inside = network(large)[..., 192:208]
        scale = inside.std()
        assert (network(small) - inside).abs().max() < 1e-4 * scale
        assert (plain(small) - plain(large)[..., 192:208]).abs().max() > 0.1 * scale


def test_pools_that_give_up_their_stride_can_be_left_out() -> None:
    knobs = {"output_stride": 8, "fully_convolutional": True}
    with torch.device("meta"):
        backbone = Network("vgg16", "dilatednet", CLASSES).backbone
        kept = BACKBONES["vgg16"](**knobs)
    pools = [module.kernel_size for module in backbone.modules() if isinstance(module, Pool2d)]
    assert pools == [2, 2, 2, 1, 1]
    assert [module.kernel_size for module in kept.modules() if isinstance(module, Pool2d)] == [2] * 5
    rates = [module.dilation[0] for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert rates == [1] * 10 + [2] * 3 + [4, 1]  # conv5 at 2, fc6 at 4
    x = torch.rand(1, 4, 5, 6)
    torch.testing.assert_close(Pool2d("max", 1, backbone.features[-1].step)(x), x)


def test_multi_grid_dilates_the_blocks_of_the_last_stage() -> None:
    with torch.device("meta"):
        network = Network("resnet50", "deeplabv3", CLASSES, backbone_options={"multi_grid": [1, 2, 4]})
        assert [block.conv2.dilation[0] for block in network.backbone.layer4] == [1, 4, 8]
        plain = Network("resnet50", "deeplabv3", CLASSES)
        assert [block.conv2.dilation[0] for block in plain.backbone.layer4] == [1, 2, 2]
    dense, strided = (BACKBONES["resnet18"](output_stride=stride, multi_grid=(2, 4)).eval() for stride in (8, 32))
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(dense(x)[-1][..., ::4, ::4], strided(x)[-1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="multi_grid is \\[1, 2, 4\\]; resnet18 takes 2 rates"):
        BACKBONES["resnet18"](multi_grid=(1, 2, 4))


def test_spp_gives_21_values_per_channel_whatever_the_size() -> None:
    head = HEADS["spp"](CHANNELS, strides(32), 3).eval()
    assert head.layers[0].in_features == 21 * CHANNELS[-1]
    x = torch.rand(1, CHANNELS[-1], 7, 5)
    pooled = [pool(x) for pool in head.pools]
    assert [list(level.shape[2:]) for level in pooled] == [[4, 4], [2, 2], [1, 1]]
    torch.testing.assert_close(pooled[1][..., 0, 0], x[..., :4, :3].amax((2, 3)))
    for size in ((1, 1), (3, 9), (13, 13)):
        assert head([torch.rand(2, CHANNELS[-1], *size)]).shape == (2, 3)


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


def test_deeplab_is_deeplabv3plus() -> None:
    assert HEADS["deeplab"] is HEADS["deeplabv3plus"] is DeepLabV3Plus


@pytest.mark.parametrize(("name", "stride"), [("deeplab", 4), ("lraspp", 8), ("fcn8s", 8), ("fcn16s", 16)])
def test_a_missing_map_is_refused(name: str, stride: int) -> None:
    """Also without `Network`, which asks before it builds."""
    with pytest.raises(ValueError, match=f"needs a map at stride {stride}; there are 2, 32"):
        HEADS[name]((6, 32), (2, 32), 3)


def test_dilatednets_second_stage_freezes_the_backbone() -> None:
    front, context = HEADS["dilatednet"].stages
    assert front == {"head_options": {"context": "none"}}
    assert context == {"freeze_backbone": True}


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
        ("dilatednet", {"padding": "wrap"}, "not padding=wrap"),
        ("unet", {"up": "transpose", "valid": True}, "valid=true for maps at strides 1, 2, 4, 8, 16 only"),
        ("unet", {"valid": True}, "valid=true with up=transpose only"),
        ("spp", {"bins": []}, "spp has bins="),
        ("hypercolumn", {"form": "mean"}, "form=sum or form=concatenate, not form=mean"),
        ("fpn", {"width": 100}, "width is 100; it must be a multiple of 32"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HEADS[name](CHANNELS, strides(32), 3, **options)
