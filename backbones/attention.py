"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) that exports with symbolic sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Queries, keys and values `(B, heads, N, C)` -> `(B, heads, N, C)`.

    Args:
        bias: added to the products of queries and keys; broadcastable to `(B, heads, N, N)`.
        scale: of these products; None: 1 / sqrt(C).
    """
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    # PyTorch's function gives tensors of other strides when the exporters take it apart than when it was traced.
    products = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    return (products if bias is None else products + bias).softmax(-1) @ v
