"""Scores lie on the pixels they stand for: upsampling, where maps begin, and both at sizes that were not exported."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import BACKBONES
from backbones.backbone import Backbone
from experiments.analysis.receptive_field import FieldTracer, Linearised
from heads.placing import place
from heads.pooling import BinnedPool
from lightning_modules.network import Network
from tests.shallow import make_shallow

pytestmark = pytest.mark.usefixtures("quick_weights")

SIDE = 628  # no stride from 8 on divides it


@pytest.mark.parametrize("stride", [2, 4, 8, 32])
def test_placing_is_stretching_where_the_stride_divides_the_size(stride: int) -> None:
    """To the last bit, gradients too."""
    first = torch.randn(2, 3, 5, 7)
    maps = [first.clone().requires_grad_() for _ in range(2)]
    size = (5 * stride, 7 * stride)
    placed = place(maps[0], stride, size)
    stretched = F.interpolate(maps[1], size, mode="bilinear", align_corners=False)
    assert torch.equal(placed, stretched)
    for out in (placed, stretched):
        out.square().sum().backward()
    assert torch.equal(maps[0].grad, maps[1].grad)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("shift", [-17, -8, -3, 0, 3, 4, 11])
@pytest.mark.parametrize("size", [(13, 40), (19, 23), (24, 21)])
def test_value_i_lies_at_shift_plus_i_strides(size: tuple[int, int], shift: int, mode: str) -> None:
    """Against a map that has plenty of repeated border, of which the image is cut."""
    x, far = torch.randn(1, 2, 5, 6), 20
    wide = F.pad(x, (far,) * 4, mode="replicate")
    wide = F.interpolate(wide, scale_factor=4, mode=mode, align_corners=None if mode == "nearest" else False)
    start = 4 * far - shift
    expected = wide[:, :, start : start + size[0], start : start + size[1]]
    torch.testing.assert_close(place(x, 4, size, shift, mode), expected)


def centres(backbone: Backbone) -> list[float] | None:
    """Centre of what the first value of each map depends on, from the layers' arithmetic; None with attention."""
    with torch.no_grad(), FieldTracer() as tracer:
        maps = backbone(tracer.start(torch.empty(1, 3, 256, 256, device="meta")))
    return None if tracer.attention else [(tracer.of(one).first + tracer.of(one).last) / 2 for one in maps]


# A network of each family and form; `test_every_family_is_here` says which may be missing.
FORMS = [
    *((name, {}) for name in ("lenet5", "unet_encoder", "resnet18", "wrn28_10", "se_resnet50", "googlenet")),
    *((name, {}) for name in ("densenet121", "xception", "xception41", "mobilenet_v1_025", "mobilenet_v2")),
    *((name, {}) for name in ("mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "resnet20", "densenet40")),
    ("resnetv2_50", {}),
    *(
        (name, {"fully_convolutional": value})
        for name in ("alexnet", "alexnet_2gpu", "zfnet", "vgg11")
        for value in (0, 1)
    ),
    ("vgg11", {"remove_pools": True}),
    ("vgg11", {"pools": "3x3"}),
    *((name, {}) for name in ("resnet20", "resnetv2_50", "densenet40", "yolov1")),
    ("densenet100_bc", {"depth": 36, "blocks": 5}),
    ("densenet121", {"compression": 0.3, "bottleneck": 0}),
    ("googlenet", {"naive": True, "true_5x5": True}),
    ("lenet5", {"c3": "table", "subsampling": "trainable"}),
    ("unet_encoder", {"valid_convolutions": True}),
]


@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_declared_centres_are_what_the_layers_give(name: str, options: dict, output_stride: int) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](output_stride=output_stride, **options).eval()
    found = centres(backbone)
    if backbone.first_centres is not None:
        assert found == list(backbone.first_centres)
    else:  # not displaced inwards by more than a pixel or two; odd kernels displace outwards, up to half a stride
        assert all(0 <= centre <= 2 for centre in found)


def test_every_family_is_here() -> None:
    """But for transformers, whose patches have no such centre, and networks that pad by the size of the image."""
    families = {build.func for build in BACKBONES.values()} - {BACKBONES[name].func for name, _ in FORMS}
    assert {family.__name__ for family in families} == {"ViT", "Swin", "EfficientNetLite"}


def positive(network: Network) -> Network:
    """Weights that average, so that the gradient of a score has its middle where the score comes from."""
    for name, parameter in network.double().eval().named_parameters():
        if not name.startswith(("head.ups", "head.final")):  # which stay bilinear
            fill = 0 if name.endswith("bias") else 1 / parameter[0].numel() if parameter.ndim > 1 else 1
            nn.init.constant_(parameter, fill)
    return network


def displacements(network: Network, side: int = SIDE) -> list[float]:
    """By how many rows the middle of what a score depends on lies below the score, for scores in three rows."""
    x = torch.ones(1, 3, side, 64, dtype=torch.float64, requires_grad=True)
    found = []
    with Linearised():
        scores = network(x)[0, 0, :, 32]
    for row in (240, 310, 370):
        (gradient,) = torch.autograd.grad(scores[row], x, retain_graph=True)
        weight = gradient[0].sum((0, 2))
        found.append(float((weight * torch.arange(side)).sum() / weight.sum()) - row)
    return found


@pytest.mark.parametrize(
    ("backbone", "head", "allowed"),
    [
        *((name, "fcn32s", 1) for name in ("alexnet", "zfnet", "vgg11", "googlenet", "xception")),
        *((name, "fcn8s", 4) for name in ("alexnet", "googlenet")),
    ],
)
def test_scores_lie_on_their_pixels(backbone: str, head: str, allowed: float) -> None:
    """The middle of what a score depends on is its own pixel; FCN-8s joins maps at the nearest value of the finer."""
    found = displacements(positive(Network(backbone, head, 1)))
    assert max(map(abs, found)) <= allowed, found


def test_odd_kernels_displace_all_scores_alike() -> None:
    """By half a stride, as in torchvision's networks, but not by another distance in every row."""
    assert displacements(positive(Network("resnet18", "fcn32s", 1))) == pytest.approx([-15.5] * 3, abs=1)


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 13), (12, 12)])
def test_binned_pools_are_pytorchs_adaptive_ones(size: tuple[int, int], bins: int) -> None:
    for kind, theirs in (("average", nn.AdaptiveAvgPool2d(bins)), ("max", nn.AdaptiveMaxPool2d(bins))):
        x = torch.randn(2, 3, *size, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        ours, expected = BinnedPool(kind, bins)(x), theirs(y)
        torch.testing.assert_close(ours, expected)
        weight = torch.randn_like(expected)
        (ours * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("resnet18", "pspnet"), ("vgg11", "fcn8s")],  # fixed numbers of bins, and maps that begin elsewhere
)
def test_exported_networks_take_other_sizes(backbone: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that no stride divides, exported at one that all divide: nothing is frozen. With one block a stage."""
    make_shallow(backbone, monkeypatch, 1)
    network = Network(backbone, head, 3).eval()
    sizes = dict.fromkeys((2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(network, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
    for size in ((64, 96), (97, 65), (111, 130)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["deeplab", "pspnet", "lraspp", "fpn", "hypercolumn", "unet", "fcn8s"])
def test_joins_stay_in_half_precision(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs, autocast interpolates in float32: what comes after must not go on in it. The logits are float32."""
    plain = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, *args, **kwargs: plain(x.float(), *args, **kwargs))
    options = {"hypercolumn": {"form": "concatenate"}}.get(head)
    network = Network("resnet18", head, 3, head_options=options)
    seen: list[tuple[str, torch.dtype]] = []
    for name, module in network.head.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0].dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(2, 3, 64, 96))
    assert logits.dtype == torch.float32
    assert seen
    assert {name for name, dtype in seen if dtype != torch.bfloat16} == set()
