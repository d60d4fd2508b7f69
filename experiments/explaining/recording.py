"""One pass of a picture through a network, with every layer's output and the steps of its backbone.

The steps are known if the backbone is a plain chain, in which each operation takes the result of the one before. They
are what a deconvnet walks back through. Where an operation joins several maps, `refusal` says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.hooks import RemovableHandle

from backbones.alexnet import TowerNorm
from backbones.pooling import Pool2d
from experiments.command_line.known_names import nearest

StepKind = Literal["linear", "pool", "rectifier", "same"]
KINDS: dict[str, StepKind] = {
    "conv2d": "linear", "batch_norm": "linear", "avg_pool2d": "linear", "pad": "linear", "mul": "linear",
    "index_select": "linear", "max_pool2d": "pool", "relu": "rectifier", "relu_": "rectifier", "hardtanh": "rectifier",
    "tanh": "same", "dropout": "same", "response_norm": "same",
}  # fmt: skip
"""How a deconvnet goes back through an operation: by the transposed operation, through the switches of a pool, by a
rectifier, or not at all. Of networks that are plain chains, only MobileNetV1 calls hardtanh, for its ReLU6."""
AFTER_A_CONVOLUTION = ("batch_norm", "relu", "relu_", "hardtanh", "tanh", "mul")
"""Operations that belong to the convolution before them: a unit is what comes out of these."""
POOLS = (Pool2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Step:
    """One operation of a chain: `after = function(before)`, computed by the module `name` of the backbone."""

    name: str
    operation: str
    function: Callable[[Tensor], Tensor]
    before: Tensor
    after: Tensor

    @property
    def kind(self) -> StepKind:
        return KINDS[self.operation]


@dataclass
class Recording:
    """What one pass left.

    Args:
        maps: of the backbone, finest first.
        outputs: of the backbone's modules that return one tensor, by name.
        pooled: input and output of each pool that ran.
        steps: of the backbone, if it is a plain chain.
        refusal: why it is none; "" if it is one.
    """

    maps: list[Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    pooled: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    refusal: str = ""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def layer(self, which: str | None, level: int = -1) -> tuple[str, Tensor]:
        """Name and output `(B, C, h, w)` of a layer.

        Args:
            which: the number of a map, counted from 1; the name of a module; or None for the map `level`, or the input
                of the pool that gives this map, which is the last convolution of networks that end in a pool.

        Raises:
            ValueError: there is no such map or module, or its output is no map.
        """
        if which is None or which.isdigit():
            name, out = self._map(which, level)
        else:
            if which not in self.outputs:
                raise ValueError(
                    f"--layer: the backbone has no layer '{which}'; nearest: {nearest(which, self.outputs)}"
                )
            name, out = which, self.outputs[which]
            place = self.place_of(out)
            while place is not None and place + 1 < len(self.steps):
                if self.steps[place + 1].operation not in AFTER_A_CONVOLUTION:
                    break
                place += 1
                out = self.steps[place].after
        if out.ndim != 4 or out.numel() == 0:
            raise ValueError(f"--layer {which}: its output has the shape {tuple(out.shape)}, which is no map")
        return name, out

    def _map(self, which: str | None, level: int) -> tuple[str, Tensor]:
        number = level % len(self.maps) + 1 if which is None else int(which)
        if not 1 <= number <= len(self.maps):
            raise ValueError(f"--layer {which}: the backbone has the maps 1 to {len(self.maps)}, 1 is the finest")
        out = self.maps[number - 1]
        if which is not None:
            return f"map {number}", out
        for before, after in self.pooled:
            if after is out:
                return self.name_of(before, f"the input of the pool of map {number}"), before
        return self.name_of(out, f"map {number}"), out

    def name_of(self, out: Tensor, otherwise: str) -> str:
        """The last convolution that led to a tensor, if the backbone is a chain."""
        place = self.place_of(out)
        before = [] if place is None else self.steps[: place + 1]
        return next((step.name for step in reversed(before) if step.operation == "conv2d"), otherwise)

    def place_of(self, out: Tensor) -> int | None:
        """The last of the steps whose result is this tensor; in-place operations return the tensor they changed."""
        return next((i for i in reversed(range(len(self.steps))) if self.steps[i].after is out), None)


class StepTracer(TorchFunctionMode):
    """Notes the operations between a picture and the maps of a backbone."""

    def __init__(self, picture: Tensor, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self.end = picture
        self.known = {id(picture): picture}  # tensors are held, so that their ids stay their own
        self.inside: list[str] = []
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.paused or self.recording.refusal or not isinstance(out, Tensor):
            return out
        traced = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and id(one) in self.known]
        if traced:
            self.add(func.__name__, args, kwargs, traced, func, out)
        return out

    def add(self, operation: str, args: Any, kwargs: Any, traced: list[Tensor], func: Any, out: Tensor) -> None:
        """Note a step, or why the network is no chain."""
        where = self.inside[-1] if self.inside and self.inside[-1] else "its forward pass"
        recording = self.recording
        if len(traced) > 1:
            recording.refusal = f"{where} joins several maps ({operation})"
        elif traced[0] is not self.end:
            recording.refusal = f"{where} reads a map that another layer has read ({operation})"
        elif operation not in KINDS:
            recording.refusal = f"{where} computes {operation}, which has no way back"
        if recording.refusal:
            recording.steps = []
            return
        leaves, form = tree_flatten((args, {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs))
        place = next(i for i, leaf in enumerate(leaves) if leaf is traced[0])

        def function(x: Tensor) -> Tensor:
            inner_args, inner_kwargs = tree_unflatten([*leaves[:place], x, *leaves[place + 1 :]], form)
            return func(*inner_args, **inner_kwargs)

        recording.steps.append(Step(where, operation, function, traced[0], out))
        self.known[id(out)] = self.end = out


def record(network: nn.Module, picture: Tensor) -> Recording:
    """Run a network with a `backbone` on a picture `(1, C, H, W)`, with gradients if enabled, and note what happens."""
    recording = Recording()
    tracer = StepTracer(picture, recording)
    with hooked(cast("nn.Module", network.backbone), recording, tracer), tracer:
        recording.logits = network(picture)
    return recording


@contextmanager
def hooked(backbone: nn.Module, recording: Recording, tracer: StepTracer) -> Iterator[None]:
    """Within this context, the modules of the backbone report to the recording."""
    handles: list[RemovableHandle] = []
    for name, module in backbone.named_modules():
        handles += hooks_of(name, module, recording, tracer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooks_of(name: str, module: nn.Module, recording: Recording, tracer: StepTracer) -> list[RemovableHandle]:
    def enter(module: nn.Module, args: Any) -> None:
        tracer.inside.append(name)
        tracer.paused = tracer.paused or isinstance(module, TowerNorm)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        tracer.inside.pop()
        if isinstance(module, TowerNorm):  # many operations, which the deconvnet passes as one
            tracer.paused = False
            if not recording.refusal:
                tracer.inside.append(name)
                tracer.add("response_norm", args, {}, [args[0]], module.forward, out)
                tracer.inside.pop()
        if isinstance(module, POOLS):
            recording.pooled.append((args[0], out))
        if isinstance(out, Tensor) and name:
            recording.outputs[name] = out
        if not name:
            recording.maps = list(out)
            tracer.paused = True  # what the head computes is no step of the backbone

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
