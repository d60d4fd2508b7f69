"""Start a network from the checkpoint of another run, which may have another head."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.backbone import Backbone, print_once
from backbones.weights import HARMLESS, read_state
from lightning_modules.network import Network

NAMED = 5
"""Most classes that a line names."""


def load_matching_weights(
    network: Network,
    checkpoint: str,
    class_names: Sequence[str] = (),
    wider: Callable[[], Network] | None = None,
) -> list[str]:
    """Copy every tensor whose name and shape match, for example from FCN-32s into FCN-16s.

    If the checkpoint is of other classes, or of the same in another order, rows of its output layer are copied for the
    classes of the same name. Of names that occur several times, the first is the first there, and so on. A checkpoint
    without names of classes is taken to be of the same.

    The backbone must be the same, except for its `optional_modules`: of ViT's pyramid only the levels exist that the
    head reads, and another head may read others.

    Args:
        wider: builds the network for one class more, which shows what depends on the classes; it may be on the meta
            device. None: the classes are the same.

    Returns:
        The names of the tensors that keep their initial values.

    Raises:
        ValueError: the file cannot be read, its backbone differs, or nothing of its head matches.
    """
    saved = {
        name.removeprefix("network."): value
        for name, value in read_state(Path(checkpoint), "--start-from").items()
        if name.startswith("network.")
    }
    own = network.state_dict()
    matching = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    theirs, axes = saved_class_names(checkpoint), {}
    if wider is not None and theirs and theirs != list(class_names):
        axes = class_axes(own, wider().state_dict())
        matching = {name: value for name, value in matching.items() if name not in axes}
        matching |= rows_by_name(own, saved, axes, class_names, theirs, checkpoint)
    left = [name for name in own if name not in matching]
    optional = optional_prefixes(network.backbone)
    of_backbone = [
        name for name in left if name.startswith("backbone.") and not name.startswith(optional) and name not in axes
    ]
    if of_backbone:
        raise ValueError(
            f"--start-from {checkpoint}: the checkpoint has a different backbone (no {of_backbone[0]} of the expected "
            "shape); give a checkpoint made with the same --backbone"
        )
    unused = sorted(name for name in saved if name not in own and name.startswith("backbone."))
    if unused:
        print_once(
            f"--start-from {checkpoint}: {len(unused)} tensors of its backbone are left out, because this network has "
            f"no such layers (first: {unused[0]})"
        )
    if not any(name.startswith("head.") for name in matching):
        raise ValueError(
            f"--start-from {checkpoint}: nothing of its head fits; use --weights to take its backbone only"
        )
    network.load_state_dict(matching, strict=False)
    return left


def optional_prefixes(backbone: Backbone) -> tuple[str, ...]:
    """The beginnings of the names of tensors, below the network, that another network on this backbone may lack."""
    kinds = backbone.optional_modules
    return tuple(f"backbone.{name}." for name, module in backbone.named_modules() if isinstance(module, kinds))


def saved_class_names(checkpoint: str) -> list[str]:
    """The class names in a run's checkpoint; none if it does not hold them."""
    if Path(checkpoint).suffix == ".safetensors":
        return []
    with torch.serialization.safe_globals(HARMLESS):
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    settings = content.get("hyper_parameters")
    return list(settings.get("class_names", ())) if isinstance(settings, dict) else []


def class_axes(own: Mapping[str, Tensor], wider: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The tensors that depend on the number of classes, and their axes that grow with it.

    Args:
        wider: the tensors of the same network for one class more.
    """
    sizes = {name: list(zip(value.shape, wider[name].shape, strict=True)) for name, value in own.items()}
    growing = {name: [axis for axis, (size, more) in enumerate(both) if size != more] for name, both in sizes.items()}
    return {name: axes for name, axes in growing.items() if axes}


def rows_by_name(
    own: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    axes: Mapping[str, list[int]],
    ours: Sequence[str],
    theirs: Sequence[str],
    checkpoint: str,
) -> dict[str, Tensor]:
    """The tensors whose `axes` are the classes: theirs for the classes of the same name, ours for all others.

    Tensors that hold classes in another way, such as several anchors of each, are left out.
    """
    places = {name: iter([i for i, other in enumerate(theirs) if other == name]) for name in set(ours) & set(theirs)}
    found = [(i, next(places[name], None)) for i, name in enumerate(ours) if name in places]
    rows = [(i, place) for i, place in found if place is not None]
    to, of = (torch.tensor([row[end] for row in rows], dtype=torch.long) for end in (0, 1))
    mixed = {}
    for name, classes in axes.items():
        value, other = own[name], saved.get(name)
        shape = [len(theirs) if axis in classes else size for axis, size in enumerate(value.shape)]
        if not rows or other is None or list(other.shape) != shape or {value.shape[a] for a in classes} != {len(ours)}:
            continue
        taken = other.to(value)
        for axis in classes:
            taken = taken.index_select(axis, of.to(value.device))
        mixed[name] = placed(value, taken, classes, to.to(value.device))
    known = {i for i, _ in rows} if mixed else set()
    fresh = [name for i, name in enumerate(ours) if i not in known]
    taken_over = f"of {', '.join(mixed)} the rows of {len(rows)} of our {len(ours)} classes are taken, by name"
    names = f"{', '.join(fresh[:NAMED])}{', ...' * (len(fresh) > NAMED)}"
    parts = [taken_over] * bool(mixed) + [f"{len(fresh)} classes start afresh ({names})"] * bool(fresh)
    print_once(f"--start-from {checkpoint}: it has {len(theirs)} classes, not the same; {'; '.join(parts)}")
    return mixed


def placed(value: Tensor, part: Tensor, axes: Sequence[int], places: Tensor) -> Tensor:
    """A copy of `value` with `part` at `places` of each of the axes."""
    axis, *others = axes
    inner = placed(value.index_select(axis, places), part, others, places) if others else part
    return value.index_copy(axis, places, inner)
