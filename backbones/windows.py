"""Cuts maps into windows and puts them together again, shifted around the map's border (Swin, arXiv:2103.14030).

An exported graph gathers pixels by computed indices instead: it serves maps of any size, also those of a single window,
and ONNX cannot roll by symbolic numbers.
"""

import torch
from torch import Tensor

Size = tuple[int, int]


def to_windows(x: Tensor, side: int, shifts: Size) -> Tensor:
    """`(B, H, W, C)` -> `(windows, side * side, C)`, after moving the map up and left by `shifts`.

    H and W are multiples of `side`; what leaves the map on one border enters on the other.
    """
    batch, height, width, channels = x.shape
    if torch.compiler.is_exporting():
        row, column = window_pixels((height, width), side, x.device)
        source = remainder(row + shifts[0], height) * width + remainder(column + shifts[1], width)
        return x.view(batch, height * width, channels).index_select(1, source).view(-1, side**2, channels)
    if any(shifts):
        x = x.roll((-shifts[0], -shifts[1]), (1, 2))
    x = x.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
    return x.reshape(-1, side**2, channels)


def from_windows(x: Tensor, batch: int, padded: Size, size: Size, side: int, shifts: Size) -> Tensor:
    """Undo `to_windows` on a map of size `padded`, and crop it to `size`: -> `(B, *size, C)`."""
    channels = x.shape[-1]
    height, width = padded
    if torch.compiler.is_exporting():
        pixel = torch.arange(size[0] * size[1], device=x.device)
        row = remainder(pixel // size[1] + height - shifts[0], height)
        column = remainder(remainder(pixel, size[1]) + width - shifts[1], width)
        window = row // side * (width // side) + column // side
        source = window * side**2 + row % side * side + column % side
        return x.view(batch, height * width, channels).index_select(1, source).view(batch, *size, channels)
    x = x.view(batch, height // side, width // side, side, side, channels).transpose(2, 3)
    x = x.reshape(batch, height, width, channels)
    if any(shifts):
        x = x.roll(shifts, (1, 2))
    return x[:, : size[0], : size[1]]


def window_pixels(size: Size, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of the pixels of a map, window by window, both flat `(H * W,)`."""
    pixel = torch.arange(size[0] * size[1], device=device)
    window, inside = pixel // side**2, pixel % side**2
    across = size[1] // side
    return window // across * side + inside // side, remainder(window, across) * side + inside % side


def remainder(x: Tensor, divisor: int) -> Tensor:
    """x % divisor for x >= 0: ONNX takes the remainder by fixed numbers only, but divides by symbolic ones."""
    return x - x // divisor * divisor


def shifted_window_mask(size: Size, side: int, shifts: Size, like: Tensor) -> Tensor:
    """Attention mask `(windows, 1, N, N)`: -100 between pixels that only the shift brought together, else 0."""
    regions = []
    for pixel, length, shift in zip(window_pixels(size, side, like.device), size, shifts, strict=True):
        regions.append((pixel >= length - side).long() + (pixel >= length - shift))
    region = (3 * regions[0] + regions[1]).view(-1, side**2)
    return -100.0 * (region[:, None, :, None] != region[:, None, None, :]).to(like.dtype)
