"""Options that papers vary: the parameters of their tables, exact dilation, a gradient for every parameter."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from backbones import BACKBONES
from backbones.alexnet import TowerNorm
from backbones.efficientnet import EfficientNet, compound, scaled
from backbones.lenet import TABLE, RadialBasis, TableConv, TrainablePool, class_codes
from backbones.squeeze_excitation import SqueezeExcitation
from backbones.xception import SeparableConv, Style
from experiments.analysis.receptive_field import traced
from lightning_modules.classification import ClassificationModule
from lightning_modules.network import Network
from tests.conftest import randomise
from tests.test_backbones import HeldGates, relative
from tests.test_resnet_kin import deformed

pytestmark = pytest.mark.usefixtures("quick_weights")

Row = tuple[str, dict[str, Any], int, float]
"""Backbone, its options, classes, and the parameters in millions that the paper states."""

TABLES: list[Row] = [
    # He et al. 2015, table 6; option A has as many parameters as the plain network
    *((f"resnet{d}", {}, 10, millions) for d, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7))),
    ("resnet110", {"shortcut": "none"}, 10, 1.7),
    # Zagoruyko, Komodakis 2016, tables 3 to 5
    *(
        ("wrn16_8", {"depth": depth, "widening": k}, 10, millions)
        for depth, k, millions in (
            *((40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7), (28, 10, 36.5), (28, 12, 52.5)),
            *((22, 8, 17.2), (22, 10, 26.8), (16, 8, 11.0), (16, 10, 17.1)),
        )
    ),
    # Xie et al. 2016, tables 1 and 3: cardinality at equal cost
    ("resnext50_32x4d", {}, 1000, 25.0),
    ("resnet50", {"groups": 32, "group_width": 4}, 1000, 25.0),
    ("resnext101_32x4d", {}, 1000, 44.2),
    ("resnetv2_200", {}, 1000, 64.7),
    # Hu et al. 2017, table 10: the reduction of SE-ResNet-50 (45.7, 35.7, 30.7, 28.1 and 26.9 there)
    *(("resnet50", {"se_reduction": r}, 1000, m) for r, m in ((2, 45.7), (4, 35.6), (8, 30.6), (16, 28.1), (32, 26.8))),
    # its tables 2 and 3
    ("mobilenet_v1", {"se_reduction": 16}, 1000, 4.7),
    ("se_resnet50", {"se_reduction": 0}, 1000, 25.6),
    ("senet154", {"se_reduction": 16}, 1000, 115.1),
    # Huang et al. 2016, table 2
    ("densenet40", {}, 10, 1.0),
    ("densenet40", {"depth": 100}, 10, 7.0),
    ("densenet40", {"depth": 100, "growth": 24}, 10, 27.2),
    ("densenet100_bc", {}, 10, 0.8),
    ("densenet100_bc", {"depth": 250, "growth": 24}, 10, 15.3),
    ("densenet100_bc", {"depth": 190, "growth": 40}, 10, 25.6),
    ("densenet121", {"layers": [6, 12, 32, 32]}, 1000, 14.1),  # densenet169
    # Howard et al. 2017, table 6
    *(("mobilenet_v1", {"width": alpha}, 1000, millions) for alpha, millions in ((0.75, 2.6), (0.5, 1.3), (0.25, 0.5))),
    # Tan, Le 2019, table 2: phi = 1, 2 and 3.5
    ("efficientnet_b0", {"phi": 1.0}, 1000, 9.1),
    ("efficientnet_b0", {"phi": 2.0}, 1000, 12.2),
    ("efficientnet_b0", {"phi": 3.5}, 1000, 19.3),
    # Szegedy et al. 2014, table 1: 6.8 M without batch norms, of which there are 57 with 7,280 channels together
    ("googlenet", {"true_5x5": True}, 1000, 7.0),
]

KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"stem": "3x3", "removed": [1, 3]}),
    ("resnet18", {"shortcut": "none", "se_reduction": 4}),
    ("resnet50", {"groups": 2, "group_width": 24, "se_reduction": 8}),
    ("resnet20", {"shortcut": "none"}),
    ("resnet20", {"depth": 14, "width": 8, "shortcut": "B", "se_reduction": 4}),
    ("wrn16_8", {"depth": 10, "widening": 1, "se_reduction": 2}),
    ("resnetv2_50", {"se_reduction": 16}),
    ("densenet40", {"depth": 16, "growth": 4, "se_reduction": 2}),
    ("densenet100_bc", {"depth": 36, "blocks": 5, "growth": 4}),
    ("densenet121", {"growth": 8, "compression": 0.3, "bottleneck": 2, "layers": [2, 3, 2, 2], "se_reduction": 4}),
    ("densenet121", {"growth": 8, "compression": 1.0, "bottleneck": 0, "layers": [1, 2, 1, 1], "deformable": 2}),
    ("vgg11", {"init": "normal", "se_reduction": 8}),
    ("vgg11_bn", {"deformable": 5, "deformable_version": 1}),
    ("vgg11", {"pools": "3x3"}),
    ("vgg16", {"width": 0.125, "single_kernels": True}),
    ("alexnet", {"se_reduction": 16, "response_norm": True}),
    ("zfnet", {"se_reduction": 16}),
    ("se_resnet50", {"se_reduction": 4}),
    ("googlenet", {"true_5x5": True, "se_reduction": 8}),
    ("mobilenet_v1", {"width": 0.33, "se_reduction": 4}),
    ("mobilenet_v1", {"width": 0.125, "full": True}),
    ("mobilenet_v2", {"width": 0.5, "se_reduction": 4}),
    ("mobilenet_v3_small", {"se_reduction": 2}),
    ("efficientnet_b0", {"phi": 0.5, "se_reduction": 8}),
    ("efficientnet_b0", {"width": 0.5, "depth": 0.4}),
    ("xception", {"order": "pointwise", "segments": 8, "between": "relu", "middle": 1}),
    ("xception", {"between": "elu", "middle": 9, "se_reduction": 8}),
    ("xception41", {"se_reduction": 8}),
    ("lenet5", {"c3": "table", "subsampling": "trainable"}),
]
"""Options that change the graph, on one small network of each family."""


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(("name", "options", "classes", "millions"), TABLES)
def test_parameters_are_those_of_the_papers_tables(
    name: str, options: dict[str, Any], classes: int, millions: float
) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](**options)
        classifier = backbone.classifier(classes)
    digits = len(str(millions).split(".")[1])
    assert round(count(backbone, classifier) / 1e6, digits) == millions


@pytest.mark.parametrize(("name", "options"), KNOBS)
def test_dilation_is_exact_under_options(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldGates(monkeypatch)
    strided = deformed(name, **options).double().eval()
    with torch.device("meta"):
        dense = BACKBONES[name](output_stride=8, **options).double().eval()
    dense.load_state_dict(strided.state_dict(), strict=True, assign=True)
    height, width = 64, 96
    x = torch.randn(1, 3, height, width, dtype=torch.double)
    with torch.inference_mode():
        coarse = strided(x)
        held.replaying = True
        fine = dense(x)
    for one, other, native, reduction in zip(coarse, fine, strided.reductions, dense.reductions, strict=True):
        assert one.shape[1] == other.shape[1]
        for side, image_side in zip(one.shape[2:], (height, width), strict=True):
            assert (image_side - strided.cropped_pixels) // native <= side <= image_side // native
        assert relative(other[..., :: native // reduction, :: native // reduction], one) <= 1e-10


@pytest.mark.parametrize(("name", "options"), KNOBS)
def test_every_parameter_gets_a_gradient_under_options(name: str, options: dict[str, Any]) -> None:
    backbone = randomise(BACKBONES[name](**options)).train()
    for module in backbone.modules():
        if isinstance(module, SqueezeExcitation):
            nn.init.constant_(module.fc1.bias, 5.0)  # all of its few ReLUs are active
    last = backbone(torch.randn(2, 3, 64, 96))[-1]
    (last * torch.randn_like(last)).sum().backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {"depth": 21}, r"depth is 21; this network has 6 n \+ 2 layers, such as 20 or 26"),
        ("resnet20", {"depth": 2}, "such as 8 or 14"),
        ("resnet20", {"shortcut": "C"}, "resnet20's option shortcut is 'C'; it takes A or B or none"),
        ("resnet20", {"width": 0}, "width is 0"),
        ("wrn16_8", {"widening": 0}, "widening is 0"),
        ("wrn16_8", {"depth": "deep"}, "wrn16_8's option depth is 'deep'; it takes a whole number or null"),
        ("wrn16_8", {"dropout": True}, "option dropout is True; it takes a number"),
        ("resnet18", {"groups": 2}, "resnet18 has no bottlenecks"),
        ("resnet50", {"groups": 0}, "groups is 0"),
        ("resnet50", {"multi_grid": [1, "2", 4]}, "multi_grid is .*; it takes a list in brackets"),
        ("resnet50", {"se_reduction": -1}, "se_reduction is -1"),
        ("resnet50", {"se": 1}, "option se is 1; it takes true or false"),
        ("densenet40", {"depth": 41}, r"depth is 41; 3 blocks have 3 n \+ 4 layers, such as 40 or 43"),
        ("densenet100_bc", {"depth": 40, "blocks": 4}, r"4 blocks with bottlenecks have 8 n \+ 5 layers, such as 37"),
        ("densenet40", {"blocks": 6}, "blocks is 6; give 1 to 5"),
        ("densenet40", {"growth": 0}, "growth is 0"),
        ("densenet40", {"dropout": 1.0}, "dropout is 1"),
        ("densenet121", {"bottleneck": -1}, "bottleneck is -1"),
        ("densenet121", {"compression": 1.5}, "compression is 1.5"),
        ("densenet121", {"layers": [6, 12]}, r"layers is \[6, 12\]; densenet121 has 4 blocks"),
        ("densenet121", {"deformable": 5}, "the network has 4 blocks: give 0"),
        ("vgg16", {"deformable": 6}, "the network has 5 stages"),
        ("vgg16", {"deformable": 1, "single_kernels": True}, "deformable = 1 needs 3x3 kernels; leave one out"),
        ("vgg16", {"width": 0}, "width is 0"),
        ("vgg16", {"init": "he2"}, "vgg16's option init is 'he2'; it takes he or normal"),
        ("mobilenet_v1", {"width": 0.01}, "width is 0.01; .* at least 0.03125"),
        ("mobilenet_v2", {"width": 0}, "width is 0"),
        ("efficientnet_b0", {"alpha": 0}, "alpha is 0"),
        ("efficientnet_b0", {"depth": -1}, "depth is -1"),
        ("efficientnet_b3", {"phi": 1}, "scale efficientnet_b0; efficientnet_b3 is another network"),
        ("efficientnet_b0", {"se_reduction": -4}, "se_reduction is -4"),
        ("xception", {"segments": 3}, "segments is 3; .* divisible by 1, 2, 4 and 8"),
        ("xception", {"middle": -1}, "middle is -1"),
        ("xception", {"order": "first"}, "it takes depthwise or pointwise"),
        ("googlenet", {"naive": "yes"}, "it takes true or false"),
        ("lenet5", {"output": "rbfs"}, "it takes linear or rbf"),
    ],
)
def test_odd_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(name, "classifier", 3, backbone_options=options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"groups": 2}, "with groups=2"),
        ("resnet18", {"shortcut": "none"}, "with shortcut=none"),
        ("densenet121", {"growth": 12, "compression": 1.0}, "with growth=12, compression=1.0"),
        ("mobilenet_v2", {"width": 0.5}, "with width=0.5"),
        ("mobilenet_v1", {"full": True}, "with full=True"),
        ("vgg16", {"single_kernels": True}, "with single_kernels=True"),
        ("xception", {"order": "pointwise"}, "with order=pointwise"),
        ("googlenet", {"naive": True}, "with naive=True"),
        ("se_resnet50", {"se_reduction": 8}, "with se_reduction=8"),
        ("efficientnet_b0", {"phi": 1.0}, "with scaling=Coefficients.depth=1.2.*"),
    ],
)
def test_published_weights_are_refused_before_they_are_fetched(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"no ImageNet weights are published for {name} {message}; leave that out"):
        BACKBONES[name](weights="imagenet", **options)


def test_plain_networks_have_no_shortcut_and_start_with_scales_of_one() -> None:
    plain = BACKBONES["resnet18"](shortcut="none").eval()
    for stage in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
        for block in stage:
            assert block.downsample is None
            assert (block.bn2.weight == 1).all()
    block = plain.layer1[0]
    nn.init.zeros_(block.conv2.weight)
    assert (block(torch.rand(1, 64, 4, 4)) == 0).all()  # a block with a shortcut would return its input


def test_gates_of_any_reduction_squeeze_to_that_part() -> None:
    for reduction in (2, 8, 64):
        block = BACKBONES["resnet20"](se_reduction=reduction).layer2[0]
        assert block.se.fc1.out_channels == max(1, 32 // reduction)
    one, other = (BACKBONES["resnet18"](**options).state_dict() for options in ({"se": True}, {"se_reduction": 16}))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}


def test_published_weights_load_under_gates_and_deformable_convolutions(tmp_path: Path) -> None:
    """On one network of each way in which they are built."""
    for name, options in (
        ("mobilenet_v2", {"se_reduction": 4}),
        ("mobilenet_v1_025", {"se_reduction": 4}),
        ("densenet121", {"se_reduction": 4, "deformable": 4}),
        ("xception41", {"se_reduction": 8}),
    ):
        published = randomise(BACKBONES[name]()).state_dict()
        torch.save(published, tmp_path / "weights.pth")
        ours = BACKBONES[name](weights=str(tmp_path / "weights.pth"), **options).state_dict()
        assert published.keys() < ours.keys()
        assert all(torch.equal(ours[key], value) for key, value in published.items())


def test_the_published_efficientnets_follow_from_three_numbers() -> None:
    """1.2, 1.1 and 1.15, rounded to one decimal as in the table, give B0 to B4 exactly; what differs is in the file."""
    for name, phi, input_size in (("b0", 0, 224), ("b1", 0.5, 240), ("b2", 1, 260), ("b3", 2, 300), ("b4", 3.5, 380)):
        depth, width, resolution = compound(phi)
        published = EfficientNet.variants[f"efficientnet_{name}"]
        made = scaled(round(width, 1), round(depth, 1), 0, 0)
        assert made.stages == published.stages, name
        assert (made.stem, made.head) == (published.stem, published.head)
        assert abs(224 * resolution / input_size - 1) < 0.05
    for phi, depth, width, input_size in ((5, 2.2, 1.6, 456), (6, 2.6, 1.8, 528), (7, 3.1, 2.0, 600)):
        formula = compound(phi)
        assert 0.86 <= depth / formula.depth <= 0.89
        assert abs(width / formula.width - 1) < 0.03
        assert abs(224 * formula.resolution / input_size - 1) < 0.05
    assert pytest.approx(2, abs=0.1) == 1.2 * 1.1**2 * 1.15**2


def test_one_dimension_is_scaled_alone() -> None:
    """Each step of phi doubles the multiply-adds, and so do depth by 2, and width or resolution by the root of 2."""
    with torch.device("meta"):
        base = EfficientNet("efficientnet_b0")
        deeper = EfficientNet("efficientnet_b0", depth=2.0)
        wider = EfficientNet("efficientnet_b0", width=2.0)
        larger = EfficientNet("efficientnet_b0", resolution=1.5)
    assert [len(stage) for stage in deeper.features[1:-1]] == [2 * len(stage) for stage in base.features[1:-1]]
    assert deeper.channels == base.channels
    assert wider.channels == tuple(2 * channels for channels in base.channels)
    assert [len(stage) for stage in wider.features[1:-1]] == [len(stage) for stage in base.features[1:-1]]
    assert (larger.input_size, larger.channels, count(larger)) == (336, base.channels, count(base))


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.4])
def test_mobilenet_v2_has_torchvisions_widths(width: float) -> None:
    with torch.device("meta"):
        ours = BACKBONES["mobilenet_v2"](width=width)
        theirs = torchvision.models.mobilenet_v2(width_mult=width)
    shapes = {key: value.shape for key, value in ours.convert_state_dict(theirs.state_dict()).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()}.items() <= shapes.items()


def test_lenet_with_all_parts_has_the_papers_60000_parameters() -> None:
    options = {"c3": "table", "subsampling": "trainable", "output": "rbf"}
    backbone = BACKBONES["lenet5"](in_channels=1, **options)
    assert count(backbone, backbone.classifier(10)) == 60_000
    assert [count(part) for part in (backbone.c1, backbone.s2, backbone.c3, backbone.s4)] == [156, 12, 1516, 32]


def test_c3_reads_the_maps_of_the_table_only() -> None:
    conv = TableConv()
    x = torch.randn(1, 6, 9, 9, requires_grad=True)
    for k, read in enumerate(TABLE):
        (gradient,) = torch.autograd.grad(conv(x)[0, k].sum(), x)
        assert tuple(i for i in range(6) if gradient[0, i].abs().max() > 0) == tuple(sorted(read))
    columns = "012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 0134 1245 0235 012345"
    assert ["".join(map(str, sorted(read))) for read in TABLE] == columns.split()
    assert [sum(i in read for read in TABLE) for i in range(6)] == [10] * 6


def test_trainable_subsampling_adds_four_pixels() -> None:
    pool = TrainablePool(2, 2)
    x = torch.randn(1, 2, 4, 6)
    added = x.unflatten(2, (2, 2)).unflatten(4, (3, 2)).sum((3, 5))
    expected = 1.7159 * torch.tanh(2 / 3 * (pool.coefficient * added + pool.bias))
    torch.testing.assert_close(pool(x), expected)


def test_rbf_logits_are_distances_to_the_classes_codes() -> None:
    codes = class_codes(12)
    assert set(codes.flatten().tolist()) == {-1, 1}
    assert len({tuple(code.tolist()) for code in codes}) == 12
    eight = codes[8].view(12, 7)
    assert torch.equal(eight, eight.flip(1))  # the drawing of an 8 is symmetrical
    logits = RadialBasis(12)(codes)
    assert (logits.diagonal() == 0).all()
    assert (logits.argmax(1) == torch.arange(12)).all()
    assert logits[0, 1] == -4 * (codes[0] != codes[1]).sum()
    network = Network("lenet5", "classifier", 3, backbone_options={"output": "rbf"})
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_naive_blocks_grow_and_cost_more() -> None:
    """Figure 2a: without projection each block passes on all the channels that it reads."""
    with torch.device("meta"):
        assert 10 < count(BACKBONES["googlenet"](naive=True)) / count(BACKBONES["googlenet"]()) < 13
    naive = BACKBONES["googlenet"](naive=True)
    assert naive.inception3a.out_channels == 64 + 128 + 32 + 192
    assert naive.channels == (64, 192, 832, 3344, 4944)
    assert len(naive.inception3a.branch2) == 1
    block = naive.inception3a
    block(torch.randn(2, 192, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    five = BACKBONES["googlenet"](true_5x5=True).inception4a.branch3[1].conv
    assert (five.kernel_size, five.padding) == ((5, 5), (2, 2))


def test_single_kernels_see_what_the_small_ones_see() -> None:
    with torch.device("meta"):
        small, single = (BACKBONES["vgg16"](single_kernels=one) for one in (False, True))
    kernels = [layer.kernel_size[0] for layer in single.features if isinstance(layer, nn.Conv2d)]
    assert kernels == [5, 5, 7, 7, 7]
    fields = [traced(network, (256, 256))[1] for network in (small, single)]
    assert fields[0] == fields[1]
    assert small.channels == single.channels
    assert BACKBONES["vgg11"](width=0.25).channels == (16, 32, 64, 128, 128)


def test_response_normalisation_can_be_left_out() -> None:
    with torch.device("meta"):
        for name, published in (("alexnet_2gpu", True), ("alexnet", False)):
            for norm in (None, True, False):
                layers = BACKBONES[name](response_norm=norm).features
                assert any(isinstance(layer, TowerNorm) for layer in layers) == (published if norm is None else norm)


@pytest.mark.parametrize("order", ["depthwise", "pointwise"])
@pytest.mark.parametrize("between", ["none", "relu", "elu"])
def test_separable_convolutions_in_both_orders(order: str, between: str) -> None:
    one = SeparableConv(8, 16, 1, Style(order, 2, between))
    x = torch.randn(1, 8, 5, 5)
    act = {"none": lambda y: y, "relu": torch.relu, "elu": torch.nn.functional.elu}[between]
    width = 8 if order == "depthwise" else 16
    assert one.conv1.weight.shape == (width, width // 2, 3, 3)
    spatial, across = one.conv1, one.pointwise
    expected = across(act(spatial(x))) if order == "depthwise" else spatial(act(across(x)))
    assert torch.equal(one(x), expected)


def test_a_full_spatial_convolution_is_one_segment() -> None:
    with torch.device("meta"):
        whole, extreme = (BACKBONES["xception"](segments=n).block1.rep[0].conv1 for n in (1, 0))
    assert (whole.groups, extreme.groups) == (1, 64)


def test_vgg_can_start_as_in_the_paper() -> None:
    backbone = BACKBONES["vgg11"](init="normal")
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions[1:]:  # the first has few weights
        assert convolution.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all((convolution.bias == 0).all() for convolution in convolutions)
    he = BACKBONES["vgg11"]().features[3].weight.std().item()
    assert he == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_densely_connected_layers_without_bottleneck_are_one_convolution() -> None:
    layer = BACKBONES["densenet40"]().blocks[0].denselayer2
    assert layer.conv1.weight.shape == (12, 16 + 12, 3, 3)
    assert not hasattr(layer, "conv2")
    dropping = BACKBONES["densenet40"](dropout=0.2).blocks[0].denselayer1.train()
    assert (dropping([torch.randn(4, 16, 8, 8)]) == 0).float().mean().item() == pytest.approx(0.2, abs=0.05)


def test_the_readme_names_every_option() -> None:
    text = (Path(__file__).parents[1] / "backbones" / "README.md").read_text(encoding="utf-8")
    section = text.split("## Options\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    common = {"weights", "output_stride", "in_channels", "se"}
    for name, build in BACKBONES.items():
        options = set(inspect.signature(build).parameters) - common
        assert options <= named, (name, options - named)


def test_options_are_kept_in_the_checkpoint(tmp_path: Path) -> None:
    options = {"c3": "table", "subsampling": "trainable", "output": "rbf"}
    module = ClassificationModule("lenet5", "classifier", ("a", "b", "c"), backbone_options=options)
    hparams = module.hparams
    assert hparams["backbone_options"] == options
    again = ClassificationModule(**hparams)
    again.load_state_dict(module.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), module.eval()(x))
