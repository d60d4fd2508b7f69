"""CPUConv2d computes what nn.Conv2d computes, by ways that are faster on a CPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step
from backbones.cpu_conv import CPUConv2d
from backbones.efficientnet_lite import SameConv2d
from lightning_modules.network import Network

CASES = {  # kernel size, rate, stride, groups, height, width
    "parts": (3, 2, 1, 8, 9, 12),
    "parts of another size": (3, 4, 1, 8, 10, 17),
    "a large kernel": (7, 2, 1, 8, 11, 5),
    "two outputs a channel": (3, 2, 1, 8, 8, 8),
    "the centre only": (3, 18, 1, 8, 16, 16),
    "the centre of all channels": (3, 6, 1, 1, 4, 6),
    "one row": (3, 4, 1, 1, 3, 9),
    "one row of each channel": (3, 4, 1, 8, 3, 9),
    "parts of two values": (3, 9, 1, 8, 14, 17),
    "large parts of two values": (7, 9, 1, 8, 16, 17),
    "five of seven": (7, 3, 1, 8, 8, 20),
    "all taps read the map": (3, 7, 1, 8, 8, 9),
    "a stride": (3, 4, 2, 8, 3, 13),
    "groups": (3, 2, 1, 2, 9, 9),
}


def both(case: str) -> tuple[nn.Conv2d, CPUConv2d, Tensor]:
    size, rate, stride, groups, height, width = CASES[case]
    out = 16 if case == "two outputs a channel" else 8
    settings = {"stride": stride, "padding": rate * (size // 2), "dilation": rate, "groups": groups}
    plain, ours = (kind(8, out, size, **settings) for kind in (nn.Conv2d, CPUConv2d))
    ours.load_state_dict(plain.state_dict())
    return plain, ours, torch.randn(2, 8, height, width).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_a_plain_convolution(case: str) -> None:
    plain, ours, x = both(case)
    found = []
    for convolution in (plain, ours):
        image = x.clone().requires_grad_()
        y = convolution(image)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        found.append((y.detach(), image.grad, convolution.weight.grad, convolution.bias.grad))
    for expected, seen in zip(*found, strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    assert ours.weight.grad.shape == ours.weight.shape


@pytest.mark.parametrize(
    ("case", "grad", "kernel", "dilation", "images"),
    [
        ("parts", True, (3, 3), 1, 8),
        ("parts", False, (3, 3), 2, 2),  # as fast without being divided
        ("the centre only", True, (1, 1), 1, 2),
        ("the centre of all channels", False, (1, 1), 1, 2),
        ("one row", True, (1, 3), 4, 2),
        ("five of seven", True, (5, 7), 1, 18),
        ("one row of each channel", True, (1, 3), 1, 8),
        ("parts of two values", True, (3, 3), 1, 2),  # side by side
        ("parts of two values", False, (3, 3), 1, 162),
        ("all taps read the map", True, (3, 3), 7, 2),  # its parts would be padding mostly
        ("groups", True, (3, 3), 2, 2),
    ],
)
def test_which_way_is_taken(
    case: str, grad: bool, kernel: Any, dilation: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours, x = both(case)
    seen: list[Any] = []
    convolve = F.conv2d

    def watched(x: Tensor, weight: Tensor, *args: Any, **settings: Any) -> Tensor:
        y = convolve(x, weight, *args, **settings)
        dilation = args[3] if len(args) > 2 else 1
        seen.append((tuple(weight.shape[2:]), dilation if isinstance(dilation, int) else max(dilation), len(x)))
        return y

    monkeypatch.setattr(F, "conv2d", watched)
    with torch.set_grad_enabled(grad):
        ours(x)
    assert seen == [(kernel, dilation, images)]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_1x1_convolution_is_a_matrix_product_where_it_trains_in_bfloat16(autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    plain, ours = (kind(8, 6, 1, dtype=dtype) for kind in (nn.Conv2d, CPUConv2d))
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, found = plain(x), ours(x)
        with torch.no_grad():
            assert ours(x).equal(plain(x))
        contiguous = ours(x.contiguous())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for y, name in ((expected, "Convolution"), (found, "Permute"), (contiguous, "Convolution")):
        assert y.grad_fn.name().startswith(name)
    gradients = [torch.autograd.grad(y.float().square().sum(), layer.weight)[0] for y, layer in
                 ((expected, plain), (found, ours))]  # fmt: skip
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "settings", [{"padding": 0}, {"padding": 2, "padding_mode": "reflect"}, {"padding": (2, 1), "dilation": (2, 1)}]
)
def test_other_dilated_layers_are_pytorchs(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = CPUConv2d(4, 4, 3, groups=4, **({"dilation": 2} | settings))
    monkeypatch.setattr(CPUConv2d, "_dilated", lambda *_: pytest.fail("this is for layers that keep the size"))
    x = torch.randn(1, 4, 9, 9)
    assert layer(x).equal(nn.Conv2d.forward(layer, x))


def test_networks_have_such_layers() -> None:
    network = Network("resnet18", "deeplab", 3)
    kinds = {type(module) for module in network.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {CPUConv2d}


def test_an_exported_layer_is_one_dilated_convolution_for_all_sizes() -> None:
    _, ours, x = both("parts")
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(ours.eval(), (x,), dynamic_shapes=(sizes,))
    assert sum("conv" in str(node.target) for node in program.graph.nodes) == 1
    other = torch.randn(2, 8, 5, 31)
    torch.testing.assert_close(program.module()(other), ours(other))


def gradients_in_both(layer: nn.Module, side: tuple[int, int], called: Any) -> tuple[Tensor, Tensor]:
    """The gradients of a layer's weights in float32, and in bfloat16 where `called` computes."""
    x = torch.randn(2, layer.in_channels, *side).contiguous(memory_format=torch.channels_last)  # type: ignore[arg-type]
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = []
    for one, autocast in ((layer, False), (called, True)):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = one(x)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
        found.append(layer.weight.grad.clone())  # type: ignore[union-attr,operator]
    return found[0], found[1]


@pytest.mark.parametrize(
    ("channels", "groups", "size", "rate", "side"),
    [
        (48, 48, 3, 2, (17, 65)),
        (32, 32, 3, 2, (64, 80)),
        (48, 48, 7, 4, (32, 40)),
        (64, 16, 3, 2, (33, 41)),  # four maps in each group, as in the first stage of a ResNeXt
        (32, 32, 3, 7, (8, 60)),  # divided although its parts are padding mostly
    ],
)
@pytest.mark.parametrize("padded_as", ["equally", "tensorflow"])
def test_gradients_in_bfloat16_are_those_in_float32(
    padded_as: str, channels: int, groups: int, size: int, rate: int, side: tuple[int, int]
) -> None:
    """PyTorch 2.14 has gradients of these weights that differ by more than their own size, or are NaN."""
    if padded_as == "tensorflow":
        step = Step(stride=1, dilation=rate, dilation_after=2 * rate, reduction=16)
        layer: nn.Module = SameConv2d(channels, channels, size, step, groups)
    else:
        layer = CPUConv2d(channels, channels, size, padding=rate * (size // 2), dilation=rate, groups=groups)
    expected, seen = gradients_in_both(layer, side, layer)
    assert (seen - expected).norm() < 0.02 * expected.norm()


def test_a_compiled_layer_has_the_same_gradient_in_bfloat16() -> None:
    layer = CPUConv2d(48, 48, 3, padding=2, dilation=2, groups=48)
    expected, seen = gradients_in_both(layer, (17, 65), torch.compile(layer, backend="aot_eager"))
    assert (seen - expected).norm() < 0.02 * expected.norm()
