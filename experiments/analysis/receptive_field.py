"""Receptive field, in pixels of an image row, of one value of a map: by the layers' arithmetic and by gradient.

Both count the pixels from the first to the last on which the value depends. The arithmetic follows every operation that
a network computes (on shapes alone); the measurement sets all weights to positive averages, so that no path cancels,
and looks at which pixels the gradient of one value is not zero. Both leave out squeeze-and-excitation gates, which see
the whole map. Networks with attention have no such number.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones.squeeze_excitation import SqueezeExcitation
from lightning_modules.shapes_only import ghost_of


class Field(NamedTuple):
    """The pixels on which the first value of a row depends, and the distance in pixels to its neighbour's field."""

    first: float
    last: float
    stride: float
    whole: bool = False
    """Whether the whole map is averaged on the way, as for a gate."""

    @property
    def size(self) -> int:
        return round(self.last - self.first + 1)


@dataclass(frozen=True)
class Layer:
    """One operation with parameters or a window, as `FieldTracer` met it."""

    kind: str
    shape: tuple[int, ...]
    kernel: int
    dilation: int
    field: Field


class FieldTracer(TorchDispatchMode):
    """Follows the fields of the maps that are computed inside it, on any device, "meta" included."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, Field]] = {}  # the tensor is held, so that its id stays its own
        self.layers: list[Layer] = []
        self.attention = False
        self.global_pooling = False
        """Whether any layer, a gate too, averages over a whole map."""

    def start(self, image: Tensor) -> Tensor:
        self.known[id(image)] = (image, Field(0, 0, 1))
        return image

    def of(self, x: Tensor) -> Field:
        return self.known[id(x)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        fields = [self.known[id(x)][1] for x in tree_leaves(args) if isinstance(x, Tensor) and id(x) in self.known]
        if not fields:
            return out
        local = [field for field in fields if not field.whole] or fields
        field = Field(
            min(one.first for one in local),
            max(one.last for one in local),
            max(one.stride for one in local),
            all(one.whole for one in fields),
        )
        name = func.overloadpacket.__name__
        field = self._through(name, args, field, out)
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self.known[id(one)] = (one, field)
        return out

    def _through(self, name: str, args: Any, field: Field, out: Any) -> Field:
        match name:
            case "convolution":
                _, weight, _, stride, padding, dilation, transposed, *_ = args
                return self._window(name, out, field, weight.shape[-1], stride, padding, dilation, transposed)
            case "max_pool2d_with_indices" | "avg_pool2d":
                _, kernel, stride, padding = (*args, [], [], [])[:4]
                dilation = args[4] if name.startswith("max") and len(args) > 4 else [1]
                shape = out[0] if name.startswith("max") else out
                return self._window(name, shape, field, kernel[-1], stride or kernel, padding or [0], dilation, False)
            case "mean":
                axes = args[1] if len(args) > 1 else [-1]
                if not {-1, args[0].ndim - 1} & set(axes):
                    return field
                self.global_pooling = True
                return field._replace(whole=True)
            case "_adaptive_avg_pool2d" | "adaptive_max_pool2d":
                self.global_pooling = True
                return field._replace(whole=True)
            case "slice":
                _, axis, start = (*args, 0, 0)[:3]
                moved = (start or 0) * field.stride if args[0].ndim == 4 and axis in (3, -1) and (start or 0) > 0 else 0
                return field._replace(first=field.first + moved, last=field.last + moved)
            case "constant_pad_nd" | "replication_pad2d" | "reflection_pad2d":
                moved = args[1][0] * field.stride
                return field._replace(first=field.first - moved, last=field.last - moved)
            case "upsample_bilinear2d" | "upsample_nearest2d":
                factor = out.shape[-1] / args[0].shape[-1]
                beside = field.stride if name == "upsample_bilinear2d" and factor > 1 else 0
                return field._replace(
                    first=field.first - beside, last=field.last + beside, stride=field.stride / factor
                )
            case "lerp" if args[2].ndim == 1:  # between neighbouring columns; see `heads.placing.sample`
                return field._replace(first=field.first - field.stride, last=field.last + field.stride)
            case "bmm" | "baddbmm":
                self.attention = True
            case _ if "attention" in name:
                self.attention = True
        return field

    def _window(
        self, name: str, out: Tensor, field: Field, kernel: int, stride: Any, padding: Any, dilation: Any, up: bool
    ) -> Field:
        step, before, rate = stride[-1], padding[-1], dilation[-1]
        if field.whole:
            new = field
        elif up:
            reach = -(-kernel // step) - 1  # values of the coarser map behind one of the finer, beside the first
            new = field._replace(first=field.first - reach * field.stride, stride=field.stride / step)
        else:
            new = Field(
                field.first - before * field.stride,
                field.last + ((kernel - 1) * rate - before) * field.stride,
                field.stride * step,
            )
        self.layers.append(Layer("up-convolution" if up else name, tuple(out.shape), kernel, rate, new))
        return new


def traced(network: nn.Module, size: tuple[int, int], in_channels: int = 3) -> tuple[FieldTracer, Field | None]:
    """The tracer after one image, and the field of the network's last output; None if attention mixes the map."""
    ghost = ghost_of(network).eval()
    with torch.no_grad(), FieldTracer() as tracer:
        out = ghost(tracer.start(torch.empty(1, in_channels, *size, device="meta")))
    last = out[-1] if isinstance(out, list) else out
    return tracer, None if tracer.attention else tracer.of(last)


class Linearised(TorchFunctionMode):
    """Activations become the identity and max pools sums, so that every path counts."""

    SAME = frozenset(
        {
            F.relu, torch.relu, torch.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.silu, F.gelu, F.hardswish, F.tanh,
            torch.tanh, torch.sigmoid, F.sigmoid, F.softplus, F.mish, F.local_response_norm, F.layer_norm,
            F.hardsigmoid,
        }
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.SAME:
            return args[0]
        if func in (F.max_pool2d, torch.max_pool2d):
            x, kernel, stride, padding, dilation = pool_arguments(*args, **kwargs)
            ones = torch.ones(x.shape[1], 1, kernel, kernel, dtype=x.dtype) / kernel**2
            return F.conv2d(x, ones, None, stride, padding, dilation, groups=x.shape[1])
        if func is F.pad and kwargs.get("value") == float("-inf"):
            kwargs = {**kwargs, "value": 0.0}
        return func(*args, **kwargs)


def pool_arguments(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *_: Any, **__: Any
) -> tuple[Tensor, int, int, int, int]:
    one = [value[0] if isinstance(value, (tuple, list)) else value for value in (kernel_size, padding, dilation)]
    step = stride[0] if isinstance(stride, (tuple, list)) else stride
    return x, one[0], step or one[0], one[1], one[2]


def measured(backbone: nn.Module, expected: Field, height: int, in_channels: int = 3) -> Field:
    """The field of the value in the middle of the last map, by gradient, and the shift to its neighbour's.

    The image is a strip of `height` rows, as wide as `expected` asks for and some strides more.
    """
    network = copy.deepcopy(backbone).double().eval()
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, SqueezeExcitation):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else 1 / parameter[0].numel() if parameter.ndim > 1 else 1)
    stride = int(expected.stride)
    width = (expected.size // stride + 5) * stride
    x = torch.ones(1, in_channels, height, width, dtype=torch.float64, requires_grad=True)
    with Linearised():
        last = network(x)[-1]
    row, column = last.shape[2] // 2, last.shape[3] // 2
    ends = []
    for place in (column, column + 1):
        (gradient,) = torch.autograd.grad(last[0, :, row, place].sum(), x, retain_graph=True)
        touched = gradient[0].abs().sum((0, 1)).nonzero()
        ends.append((int(touched.min()), int(touched.max())))
    return Field(*ends[0], ends[1][0] - ends[0][0])
