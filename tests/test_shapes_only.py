"""Shapes come out as PyTorch finds them, and what it refuses is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.network import Network
from lightning_modules.shapes_only import ShapesOnly, ghost_of


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(
    ("backbone", "head"), [("mobilenet_v3_small", "deeplab"), ("convnext_tiny", "hypercolumn"), ("resnet18", "fpn")]
)
def test_all_maps_have_the_shapes_that_pytorch_finds(backbone: str, head: str) -> None:
    with torch.device("meta"):
        network = Network(backbone, head, 3)
    for size in ((network.backbone.min_size,) * 2, (65, 97)):
        expected = network(empty(2, 3, *size))
        with ShapesOnly():
            found = network(empty(2, 3, *size))
        assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)


@pytest.mark.parametrize(
    ("size", "options"),
    [((4, 7), {"mode": "bilinear"}), (6, {"mode": "nearest"}), (None, {"scale_factor": 2.5, "mode": "bilinear"})],
)
def test_interpolation_to_a_size_and_by_a_factor(size: object, options: dict) -> None:
    x = empty(2, 3, 5, 5)
    with ShapesOnly():
        assert F.interpolate(x, size, **options).shape == F.interpolate(torch.ones(2, 3, 5, 5), size, **options).shape


def test_what_pytorch_refuses_is_refused() -> None:
    norm = nn.BatchNorm2d(3, device="meta")
    with ShapesOnly():
        assert norm(empty(1, 3, 1, 2)).shape == (1, 3, 1, 2)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm(empty(1, 3, 1, 1))
        norm.eval()(empty(1, 3, 1, 1))
        with pytest.raises(RuntimeError, match="a batch norm of 3 channels cannot normalise 4 channels"):
            norm(empty(1, 4, 2, 2))
        with pytest.raises(ValueError, match="spatial dim"):
            F.interpolate(empty(1, 3, 4, 4), (2,), mode="bilinear")


def test_sums_products_and_layer_norms_that_do_not_fit_are_refused() -> None:
    x = empty(2, 3, 4, 5)
    with ShapesOnly():
        for other in (empty(2, 3, 4, 4), empty(2, 4, 1, 1), empty(5, 4)):
            with pytest.raises(RuntimeError, match="broadcast|must match"):
                x + other
        for width in (4, 6):
            with pytest.raises(RuntimeError, match="normalized_shape"):
                F.layer_norm(x, (width,))
        assert (empty(3, 1, 1) * x).shape == (empty(2, 3, 1, 1) * x).shape == (x * empty(2, 3, 1, 1)).shape == x.shape
        assert (x + 1).shape == torch.add(x, x, alpha=2).shape == x.shape
        whole = torch.ones(2, 3, dtype=torch.int64, device="meta")
        assert (whole * empty(2, 3)).dtype == (empty(2, 3) * whole).dtype == torch.float32
        assert torch.sigmoid(whole).dtype == torch.float32


def test_group_norms_that_do_not_fit_are_refused() -> None:
    norm = nn.GroupNorm(2, 4, device="meta")
    with ShapesOnly():
        assert norm(empty(2, 4, 3, 5)).shape == (2, 4, 3, 5)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            nn.GroupNorm(4, 4, device="meta")(empty(1, 4, 1, 1))
        with pytest.raises(RuntimeError, match="divisible by num_groups"):
            norm(empty(2, 5, 3, 5))


def test_numbers_leave_a_tensor_its_type_or_not_as_in_pytorch() -> None:
    for dtype in (torch.float32, torch.int64, torch.bool):
        x, real = (torch.ones(2, 3, dtype=dtype, device=device) for device in ("meta", "cpu"))
        for work in (
            lambda x: x + 1,
            lambda x: x * 2.5,
            lambda x: torch.sub(x + 0, 1),
            lambda x: (x + 0).clamp(0, 1),
            lambda x: (x + 0).clamp(min=0.5),
        ):
            with ShapesOnly():
                found = work(x)
            expected = work(real)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_tensors_with_values_are_computed() -> None:
    x, norm = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3)
    expected = F.interpolate(x, (8, 8), mode="bilinear")
    with ShapesOnly():
        assert norm(x).mean().abs() < 1e-6
        assert torch.equal(F.interpolate(x, (8, 8), mode="bilinear"), expected)


def test_a_ghost_has_the_shapes_and_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    network[0].weight.requires_grad_(False)
    ghost = ghost_of(network)
    assert {one.device.type for one in (*ghost.parameters(), *ghost.buffers())} == {"meta"}
    for mine, theirs in zip(ghost.parameters(), network.parameters(), strict=True):
        assert (mine.shape, mine.stride(), mine.requires_grad) == (theirs.shape, theirs.stride(), theirs.requires_grad)
    assert ghost(empty(2, 3, 5, 5)).shape == (2, 4, 3, 3)
    ghost[1].sum = None
    assert not hasattr(network[1], "sum")
    assert network[0].weight.device.type == "cpu"
