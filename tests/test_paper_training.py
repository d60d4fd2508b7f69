"""What papers vary besides the backbone: upsampling of FCN, rates of biases, RMSProp."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heads.dilatednet import DilatedNet
from heads.fcn import FCN8s, bilinear_upsampling, interpolation_and_conv
from heads.unet import UNet
from lightning_modules.network import Network
from lightning_modules.parameter_groups import layer_biases, parameter_groups
from lightning_modules.segmentation import SegmentationModule

NAMES = ("sky", "road", "car")


def test_biases_learn_at_their_multiple_of_the_rate() -> None:
    network = Network("vgg11", "hypercolumn", 3)
    groups = parameter_groups(network, 0.5, 0.1, 5e-4, bias_lr_mult=2.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    biases = {id(p) for p in layer_biases(network)}
    in_backbone = {id(p) for p in network.backbone.parameters()}
    assert {id(m.bias) for m in network.backbone.modules() if isinstance(m, nn.Conv2d)} <= biases
    for parameter in network.parameters():
        base = 0.05 if id(parameter) in in_backbone else 0.5
        assert rates[id(parameter)] == pytest.approx(base * (2 if id(parameter) in biases else 1))
    assert groups[-1]["lr"] == 0.5  # what metrics.csv shows


def test_biases_of_norms_are_no_biases_of_layers() -> None:
    network = Network("resnet18", "hypercolumn", 3)
    biases = {id(p) for p in layer_biases(network)}
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(id(norm.bias) in biases for norm in norms)


def test_rmsprop_has_the_settings_of_efficientnet() -> None:
    settings = {"optimizer": "rmsprop", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-5, "bias_lr_mult": 2.0}
    made = SegmentationModule("lenet5", "hypercolumn", NAMES, **settings).new_optimizer()
    assert isinstance(made, torch.optim.RMSprop)
    for group in made.param_groups:
        assert (group["alpha"], group["eps"], group["momentum"]) == (0.9, 1e-3, 0.9)
    assert sorted({group["lr"] for group in made.param_groups}) == [0.1, 0.2]
    parameter = made.param_groups[-1]["params"][0]
    before, gradient = parameter.detach().clone(), torch.full_like(parameter, 2.0)
    rate, decay = made.param_groups[-1]["lr"], made.param_groups[-1]["weight_decay"]
    parameter.grad = gradient
    made.step()
    full = gradient + decay * before
    expected = before - rate * full / ((0.1 * full**2).sqrt() + 1e-3)
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_interpolation_starts_as_interpolation_and_learns(mode: str) -> None:
    up = interpolation_and_conv(3, 4, mode)
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(up(x), nn.functional.interpolate(x, scale_factor=4, mode=mode))
    head = FCN8s((4, 8, 16), (8, 16, 32), 3, up=mode)
    maps = [torch.randn(2, c, 32 // s, 64 // s) for c, s in ((4, 1), (8, 2), (16, 4))]
    logits = head(maps)
    assert logits.shape == (2, 3, 256, 512)
    logits.square().sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
    inner = (..., slice(4, -4), slice(4, -4))
    if mode == "bilinear":  # the other form starts as the same, but for the border
        torch.testing.assert_close(up(x)[inner], bilinear_upsampling(3, 4)(x)[inner])


def test_transposed_convolutions_make_a_checkerboard_and_interpolation_does_not() -> None:
    """On a constant map: outputs of an unevenly covered transposed convolution differ, interpolated ones do not."""
    x = torch.ones(1, 1, 8, 8)
    uneven = nn.ConvTranspose2d(1, 1, 3, 2, bias=False)
    nn.init.ones_(uneven.weight)
    covered = uneven(x)[0, 0, 2:-2, 2:-2]
    assert covered.unique().tolist() == [1, 2, 4]
    smooth = interpolation_and_conv(1, 2, "nearest")
    nn.init.normal_(smooth[1].weight)
    inner = smooth(x)[0, 0, 2:-2, 2:-2]
    torch.testing.assert_close(inner, inner[:1, :1].expand_as(inner))


def test_interpolation_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="learn_upsampling is false, .* but up is nearest; leave one out"):
        FCN8s((4, 8, 16), (8, 16, 32), 3, up="nearest", learn_upsampling=False)
    with pytest.raises(ValueError, match="fcn8s's option up is 'linear'; it takes transposed or bilinear or nearest"):
        Network("resnet18", "fcn8s", 3, head_options={"up": "linear"})


def test_unet_adds_the_maps_that_it_otherwise_concatenates() -> None:
    maps = [torch.randn(2, 4, 16, 24), torch.randn(2, 8, 8, 12), torch.randn(2, 16, 4, 6)]
    for up, join, read in (
        ("interpolate", "concatenate", (8 + 16, 4 + 8)),
        ("interpolate", "sum", (8, 4)),
        ("transpose", "concatenate", (8 + 8, 4 + 4)),
        ("transpose", "sum", (8, 4)),
    ):
        head = UNet((4, 8, 16), (2, 4, 8), 3, up=up, join=join, width=8)
        assert tuple(one[0].in_channels for one in head.joins) == read
        head(maps).square().sum().backward()
        assert all(parameter.grad is not None for parameter in head.parameters())
    head.joins = nn.ModuleList(nn.Identity() for _ in head.joins)  # the sums themselves
    first = head.projections[0](maps[1]) + head.ups[0](maps[2])
    torch.testing.assert_close(head(maps), head.score(head.projections[1](maps[0]) + head.ups[1](first)))
    with pytest.raises(ValueError, match="unet has join=concatenate or join=sum, not join=add"):
        UNet((4, 8), (2, 4), 3, join="add")


def test_unet_reads_interpolated_maps() -> None:
    fine, middle, coarse = torch.randn(2, 4, 16, 24), torch.randn(2, 8, 8, 12), torch.randn(2, 16, 4, 6)
    head = UNet((4, 8, 16), (2, 4, 8), 3, width=8)
    head.joins, head.score = nn.ModuleList(nn.Identity() for _ in head.joins), nn.Identity()
    joined = torch.cat((middle, F.interpolate(coarse, scale_factor=2, mode="bilinear")), 1)
    expected = torch.cat((fine, F.interpolate(joined, scale_factor=2, mode="bilinear")), 1)
    torch.testing.assert_close(head([fine, middle, coarse]), expected)


def test_a_context_module_can_start_at_random() -> None:
    maps = [torch.rand(1, 4, 9, 9)]
    for init, same in (("identity", True), ("random", False)):
        head = DilatedNet((4,), (8,), 5, init=init)
        scores = torch.rand(1, 5, 9, 9)
        assert torch.allclose(head.context(scores), scores, atol=0.2) == same
        assert head(maps).shape == (1, 5, 9, 9)
    large = DilatedNet((4,), (8,), 5, init="random", context="large").context[12]
    assert large.weight.std().item() == pytest.approx((2 / (9 * large.in_channels)) ** 0.5, rel=0.03)
    with pytest.raises(ValueError, match="dilatednet has init=identity or init=random, not init=zero"):
        DilatedNet((4,), (8,), 5, init="zero")
