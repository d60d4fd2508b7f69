"""The permutohedral lattice and the exact spatial kernel against filtering every pair of points."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from heads.gaussian import SpatialGaussian
from heads.permutohedral import Normalization, Permutohedral, normalizers

HEIGHT, WIDTH = 24, 32


def positions() -> Tensor:
    """(H * W, 2) in float64, x first."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack((x, y), -1).reshape(-1, 2).double()


def smooth(channels: int, seed: int = 0) -> Tensor:
    """(H * W, channels) in 0..1: blobs with noise, so that colours are as coherent as in a photograph."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 4, 5, generator=generator, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")
    noise = torch.rand(HEIGHT * WIDTH, channels, generator=generator, dtype=torch.float64)
    return 0.95 * image.flatten(2)[0].T + 0.05 * noise


def dense(features: Tensor, values: Tensor, normalization: Normalization = "symmetric") -> Tensor:
    """The normalised Gaussian filter over all pairs."""
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    before, after = normalizers(kernel.sum(1, keepdim=True), normalization)
    return after * (kernel @ (before * values))


def error(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what was expected."""
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after"])
@pytest.mark.parametrize(("alpha", "beta", "channels"), [(8, 3, 3), (8, 13, 3), (20, 40, 3), (5, 20, 1), (8, 20, 4)])
def test_lattice_is_within_a_tenth_of_dense_filtering(
    alpha: float, beta: float, channels: int, normalization: Normalization
) -> None:
    features = torch.cat((positions() / alpha, 255 * smooth(channels) / beta), 1)
    values = smooth(5, seed=1)
    assert error(Permutohedral(features, normalization).filter(values), dense(features, values, normalization)) < 0.1


@pytest.mark.parametrize("sigma", [0.5, 1, 3, 20])
@pytest.mark.parametrize("normalization", ["symmetric", "before", "after"])
def test_spatial_kernel_is_exact(sigma: float, normalization: Normalization) -> None:
    values = smooth(5)
    kernel = SpatialGaussian(HEIGHT, WIDTH, sigma, normalization, like=values)
    expected = dense(positions() / sigma, values, normalization)
    torch.testing.assert_close(kernel.filter(values), expected, rtol=2e-6, atol=0)
    lattice = Permutohedral(positions() / sigma, normalization).filter(values)
    assert error(lattice, expected) < 0.05  # the lattice's own error


def test_spatial_kernel_filters_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = smooth(2)
    whole = SpatialGaussian(HEIGHT, WIDTH, 2, "symmetric", like=values)
    monkeypatch.setattr("heads.gaussian.INDEX_ENTRIES", 5 * WIDTH * 21)
    blocks = SpatialGaussian(HEIGHT, WIDTH, 2, "symmetric", like=values)
    assert len(blocks.rows) == 5 * WIDTH < len(whole.rows)
    assert torch.equal(blocks.filter(values), whole.filter(values))


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after"])
@pytest.mark.parametrize("kind", ["lattice", "exact"])
def test_reverse_is_the_transpose(kind: str, normalization: Normalization) -> None:
    """<u, K v> = <K^T u, v>; and the lattice's filter is not its own transpose, so that reversing matters."""
    u, v = smooth(1, seed=2), torch.randn(HEIGHT * WIDTH, 1, dtype=torch.float64)
    kernel: Permutohedral | SpatialGaussian
    if kind == "lattice":
        kernel = Permutohedral(torch.cat((positions() / 8, 255 * smooth(3) / 5), 1), normalization)
    else:
        kernel = SpatialGaussian(HEIGHT, WIDTH, 3, normalization, like=u)
    forward, backward = (u * kernel.filter(v)).sum(), (kernel.filter(u, reverse=True) * v).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-10)
    if kind == "lattice" or normalization != "symmetric":
        assert not torch.allclose(kernel.filter(u), kernel.filter(u, reverse=True), atol=1e-6)


def test_slices_of_points_give_what_all_give() -> None:
    values = smooth(3)
    kernels = (
        Permutohedral(torch.cat((positions() / 8, 255 * smooth(3) / 5), 1)),
        SpatialGaussian(HEIGHT, WIDTH, 2, "symmetric", like=values),
    )
    for kernel in kernels:
        state = kernel.spread(values)
        parts = [kernel.gather(state, slice(a, b)) for a, b in pairwise((0, WIDTH, 5 * WIDTH, HEIGHT * WIDTH))]
        torch.testing.assert_close(torch.cat(parts), kernel.filter(values))


def test_points_beyond_64_bits_of_digits() -> None:
    """With 12 features the corners' integers wrap around; far points still do not mix."""
    clusters = 1000 * torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = clusters.repeat_interleave(10, 0) + 0.01 * torch.randn(80, 12, dtype=torch.float64)
    values = torch.eye(8, dtype=torch.float64).repeat_interleave(10, 0)
    filtered = Permutohedral(features).filter(values)
    torch.testing.assert_close(filtered, values, rtol=0, atol=0.02)


def test_one_point_keeps_its_value() -> None:
    for kernel in (
        Permutohedral(torch.tensor([[3.0, 4.0, 5.0]])),
        SpatialGaussian(1, 1, 3, "symmetric", torch.ones(1)),
    ):
        torch.testing.assert_close(kernel.filter(torch.tensor([[0.25, 0.75]])), torch.tensor([[0.25, 0.75]]))
