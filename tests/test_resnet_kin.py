"""What ResNet's knobs promise beyond the contract of all backbones, and what is particular to Wide-ResNet and SENet."""

from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from backbones.backbone import Backbone
from backbones.deformable import DeformableConv2d, Offsets
from backbones.shortcuts import ZeroPaddedIdentity
from backbones.squeeze_excitation import SqueezeExcitation
from tests.conftest import randomise
from tests.oracles import TIMM

pytestmark = pytest.mark.usefixtures("quick_weights")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def saved(backbone: Backbone, path: Path) -> str:
    torch.save(backbone.state_dict() | backbone.classifier(1000).state_dict(), path)
    return str(path)


def kinds(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, kind)]


def deformed(name: str, **knobs: bool | int | str) -> Backbone:
    """A deformable network with everything at random but its offsets, which are at their start."""
    backbone = randomise(BACKBONES[name](**knobs))
    for offsets in kinds(backbone, Offsets):
        offsets.initialise()
    return backbone


@pytest.mark.parametrize("output_stride", [32, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("name", "deformable"), [("resnet18", 4), ("resnext50_32x4d", 2)])
def test_deformable_starts_as_the_plain_network(
    name: str, deformable: int, version: int, output_stride: int, tmp_path: Path
) -> None:
    plain = randomise(BACKBONES[name](output_stride=output_stride)).double().eval()
    weights = saved(plain, tmp_path / "plain.pth")
    knobs = {"deformable": deformable, "deformable_version": version, "output_stride": output_stride}
    ours = BACKBONES[name](weights=weights, **knobs).double().eval()
    # Rounded to float32 on the way into `ours`; in float64 no other difference could hide below 1e-12.
    plain.load_state_dict({key: value.float() for key, value in plain.state_dict().items()})
    assert kinds(ours, DeformableConv2d)
    x = torch.randn(1, 3, 75, 96, dtype=torch.double)
    with torch.inference_mode():
        for one, other in zip(ours(x), plain(x), strict=True):
            assert relative(one, other) <= 1e-12


def test_the_last_stages_are_deformable() -> None:
    with torch.device("meta"):
        backbone = BACKBONES["resnet50"](deformable=3)
    counts = [len(kinds(layer, DeformableConv2d)) for layer in (backbone.layer1, backbone.layer2, backbone.layer3)]
    assert counts == [0, 4, 6]
    assert len(kinds(backbone.layer4, DeformableConv2d)) == 3


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_offsets_reach_as_far_in_a_dilated_network(version: int, output_stride: int) -> None:
    """Offsets of whole steps, different for each sample and layer; modulation that depends on what is seen.

    In float64, because steep modulation enlarges rounding.
    """
    knobs = {"deformable": 2, "deformable_version": version}
    strided = deformed("resnet18", **knobs).double().eval()
    for offsets in kinds(strided, Offsets):
        nn.init.normal_(offsets.weight[18:], 0, 0.1)
        offsets.bias.data = torch.randint(-2, 3, offsets.bias.shape).double()
    dense = BACKBONES["resnet18"](output_stride=output_stride, **knobs).double().eval()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 128, 160, dtype=torch.double)
    with torch.inference_mode():
        coarse, fine = strided(x)[-1], dense(x)[-1]
    step = 32 // output_stride
    assert relative(fine[..., ::step, ::step], coarse) <= 1e-10


@pytest.mark.parametrize("dilation", [1, 2])
def test_offsets_are_row_then_column(dilation: int) -> None:
    """Moving all samples by the same offset moves the image; half an offset is the mean of two whole ones."""
    conv = DeformableConv2d(4, 6, 1, dilation, 2, 1)
    x = torch.randn(1, 4, 16, 20)

    def moved(row: float, column: float) -> torch.Tensor:
        conv.offsets.bias.data = torch.tensor([float(row), float(column)]).repeat(9)
        return conv(x)

    inner = (..., slice(4, -4), slice(4, -4))
    expected = moved(0, 0).roll((-dilation, 2 * dilation), (2, 3))
    assert relative(moved(1, -2)[inner], expected[inner]) <= 1e-5
    half = 1 / (2 * dilation)  # half a pixel of this map
    assert relative(moved(0, half)[inner], (moved(0, 0) + moved(0, 2 * half))[inner] / 2) <= 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_offsets_are_trained_from_the_start(version: int) -> None:
    backbone = deformed("resnet18", deformable=1, deformable_version=version)
    (backbone(torch.randn(2, 3, 64, 64))[-1] ** 2).sum().backward()
    for offsets in kinds(backbone, Offsets):
        gradient = offsets.weight.grad
        assert gradient.shape[0] == (18, 27)[version - 1]
        assert gradient.isfinite().all()
        assert all(gradient[i].abs().max() > 0 for i in range(len(gradient)))


def test_weights_without_gates_leave_the_gates_at_their_start(tmp_path: Path) -> None:
    plain = randomise(BACKBONES["resnet18"]())
    weights = saved(plain, tmp_path / "plain.pth")
    torch.manual_seed(3)
    untouched = BACKBONES["resnet18"](se=True).state_dict()
    torch.manual_seed(3)
    gated = BACKBONES["resnet18"](se=True, weights=weights).state_dict()
    assert {key for key in gated if ".se." in key} == gated.keys() - plain.state_dict().keys()
    for key, value in gated.items():
        assert torch.equal(value, untouched[key] if ".se." in key else plain.state_dict()[key]), key


def test_only_whole_kinds_may_be_absent(tmp_path: Path) -> None:
    gated = BACKBONES["resnet18"](se=True)
    weights = saved(gated, tmp_path / "gated.pth")
    both = BACKBONES["resnet18"](se=True, deformable=1, weights=weights)
    assert torch.equal(both.layer1[0].se.fc1.weight, gated.layer1[0].se.fc1.weight)
    with pytest.raises(ValueError, match=r"32 do not belong \(first: layer1.0.se.fc1.bias"):
        BACKBONES["resnet18"](weights=weights)

    state = torch.load(weights)
    del state["layer1.0.se.fc1.weight"]
    torch.save(state, weights)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors are missing \(first: layer1.0.se.fc1.weight"):
        BACKBONES["resnet18"](se=True, weights=weights)
    del state["layer1.0.conv1.weight"]
    torch.save({key: value for key, value in state.items() if ".se." not in key}, weights)
    with pytest.raises(ValueError, match=r"first: layer1.0.conv1.weight"):
        BACKBONES["resnet18"](se=True, weights=weights)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_gates_act_on_the_residual_before_the_sum(name: str) -> None:
    plain = randomise(BACKBONES[name]()).eval()
    gated = BACKBONES[name](se=True).eval()
    assert not gated.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    x = torch.randn(1, 3, 64, 64)

    def hold(logit: float) -> list[torch.Tensor]:
        for gate in kinds(gated, SqueezeExcitation):
            nn.init.zeros_(gate.fc2.weight)
            nn.init.constant_(gate.fc2.bias, logit)
        with torch.inference_mode():
            return gated(x)

    with torch.inference_mode():
        for one, other in zip(hold(100), plain(x), strict=True):
            assert relative(one, other) <= 1e-5
        shut = hold(-200)
        carried = shut[1]
        for layer, shut_map in zip((gated.layer2, gated.layer3, gated.layer4), shut[2:], strict=True):
            carried = layer[0].downsample(carried).relu()
            assert relative(shut_map, carried) <= 1e-5


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "wide_resnet50_2"])
def test_option_a_has_no_parameters(name: str) -> None:
    with torch.device("meta"):
        plain, ours = BACKBONES[name](), BACKBONES[name](shortcut="A")
        maps, plain_maps = ours(torch.empty(1, 3, 65, 97)), plain(torch.empty(1, 3, 65, 97))
    projections = {key for key in plain.state_dict() if ".downsample." in key}
    assert projections
    assert ours.state_dict().keys() == plain.state_dict().keys() - projections
    assert [one.shape for one in maps] == [one.shape for one in plain_maps]


def test_option_a_keeps_every_second_pixel_and_adds_zeros() -> None:
    x = torch.randn(1, 2, 5, 7)
    y = ZeroPaddedIdentity(2, 3)(x)
    assert y.shape == (1, 5, 3, 4)
    assert torch.equal(y[:, :2], x[..., ::2, ::2])
    assert not y[:, 2:].any()


def test_option_a_has_no_published_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet18 with shortcut=A; leave that out"):
        BACKBONES["resnet18"](shortcut="A", weights="imagenet")
    weights = saved(BACKBONES["resnet18"](), tmp_path / "projections.pth")
    with pytest.raises(ValueError, match="first: layer2.0.downsample.0.weight"):
        BACKBONES["resnet18"](shortcut="A", weights=weights)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_dilation_is_exact_with_all_knobs(name: str, output_stride: int) -> None:
    knobs = {"se": True, "shortcut": "A", "deformable": 2}
    strided = deformed(name, **knobs).eval()
    for gate in kinds(strided, SqueezeExcitation):
        nn.init.zeros_(gate.fc1.weight)  # constant gates: the same over any map
        nn.init.normal_(gate.fc1.bias)
    dense = BACKBONES[name](output_stride=output_stride, **knobs).eval()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        coarse, fine = strided(x)[-1], dense(x)[-1]
    step = 32 // output_stride
    assert relative(fine[..., ::step, ::step], coarse) <= 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_offsets_are_predicted_and_used_in_single_precision_at_least(version: int) -> None:
    layer = DeformableConv2d(8, 8, 1, 2, 2, version)
    nn.init.normal_(layer.offsets.weight, std=0.3)
    dtypes: list[torch.dtype] = []
    layer.offsets.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    x = torch.randn(2, 8, 12, 12).bfloat16().float()
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, low = layer(x), layer(x.bfloat16())
        layer.weight.copy_(layer.weight.bfloat16())
        layer.offsets.weight.copy_(layer.offsets.weight.bfloat16())
        rounded = layer(x)
        whole = layer.bfloat16()(x.bfloat16())
        double = layer.double()(x.double())
    assert dtypes == [torch.float32] * 5 + [torch.float64]
    assert torch.equal(mixed, exact)
    assert torch.equal(low, exact.bfloat16())
    assert torch.equal(whole, rounded.bfloat16())
    torch.testing.assert_close(double.float(), rounded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_deformable_networks_train_at_any_precision(precision: str) -> None:
    dtype = torch.float64 if precision == "64-true" else torch.bfloat16
    backbone, x = BACKBONES["resnet18"](deformable=1), torch.randn(2, 3, 64, 64)
    if precision.endswith("true"):
        backbone, x = backbone.to(dtype), x.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.endswith("mixed")):
        loss = backbone(x)[-1].float().square().mean()
    loss.backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("zero_init", [True, False])
def test_resnet_is_initialised_as_he_et_al_say(zero_init: bool) -> None:
    backbone = BACKBONES["resnet50"](zero_init=zero_init)
    for name, part in backbone.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 10_000:
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03), name
            assert abs(part.weight.mean().item()) < 0.1 * (2 / fan_out) ** 0.5, name
        if isinstance(part, nn.BatchNorm2d):
            scale = 0.0 if zero_init and name.endswith("bn3") else 1.0
            assert (part.weight == scale).all(), name
            assert (part.bias == 0).all(), name


def test_multi_grid_multiplies_the_rates_of_exact_dilation() -> None:
    with torch.device("meta"):
        stage = BACKBONES["resnet50"](output_stride=16, multi_grid=(1, 2, 4)).layer4
    assert [block.conv2.dilation[0] for block in stage] == [1, 4, 8]


def test_all_knobs_train_and_export() -> None:
    backbone = BACKBONES["resnet18"](se=True, shortcut="A", deformable=4, output_stride=8)
    sum(one.sum() for one in backbone(torch.randn(2, 3, 64, 64))).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, f"no gradient for {key}"
        assert parameter.grad.isfinite().all(), f"gradient of {key} is not finite"
    backbone.eval()
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(backbone, (x,)).module()
    torch.testing.assert_close(backbone(x), exported(x))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"deformable": 5}, "deformable is 5; .* 0 .* to 4"),
        ({"deformable": -1}, "deformable is -1"),
        ({"deformable": 1, "deformable_version": 3}, "deformable_version is 3; give 1 .* or 2"),
        ({"shortcut": "C"}, 'shortcut is \'C\'; give "A" .* "B" .* or "none"'),
    ],
)
def test_unknown_knobs_are_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BACKBONES["resnet18"](**knobs)


def test_wide_resnet_drops_between_the_convolutions_in_training_only() -> None:
    x = torch.randn(2, 3, 32, 32)
    backbone = BACKBONES["wrn40_4"](dropout=1.0)
    block = backbone.layer1[1]
    c = torch.randn(2, 64, 8, 8)
    seen: list[torch.Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert torch.equal(block(c), c)  # with all dropped, the identity is left
    assert not seen[0].any()
    maps = backbone.eval()(x)
    assert [tuple(one.shape[1:]) for one in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert not torch.equal(block(c), c)
    assert maps[-1].min() >= 0


@pytest.mark.parametrize(("name", "top1"), [("wide_resnet50_2", 78.47), ("resnext101_32x8d", 79.31)])
def test_kin_have_torchvision_weights(name: str, top1: float) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    assert backbone.published_url().startswith(f"https://download.pytorch.org/models/{name}-")
    assert round(backbone.published_top1(), 2) == top1


@pytest.mark.parametrize("name", [n for n in TIMM if n.startswith("se_res") or n == "senet154"])
def test_senets_have_timm_weights(name: str) -> None:
    import timm

    with torch.device("meta"):
        backbone = BACKBONES[name]()
    assert backbone.published_url() == timm.get_pretrained_cfg(TIMM[name]).url
    assert 77 < backbone.published_top1() < 82
