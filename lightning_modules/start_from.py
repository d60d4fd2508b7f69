"""Start a network from the checkpoint of another run, which may have another head."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.backbone import Backbone, print_once
from backbones.weights import HARMLESS, read_state
from lightning_modules.network import Network


def load_matching_weights(network: Network, checkpoint: str, class_names: Sequence[str] = ()) -> list[str]:
    """Copy every tensor whose name and shape match, for example from FCN-32s into FCN-16s.

    If the checkpoint is of other classes, rows of its output layer are copied for the classes of the same name. Of
    names that occur several times, the first is the first there, and so on.

    The backbone must be the same, except for its `optional_modules`: of ViT's pyramid only the levels exist that the
    head reads, and another head may read others.

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
    matching |= rows_by_name(own, saved, class_names, saved_class_names(checkpoint), checkpoint)
    left = [name for name in own if name not in matching]
    optional = optional_prefixes(network.backbone)
    of_backbone = [name for name in left if name.startswith("backbone.") and not name.startswith(optional)]
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


def rows_by_name(
    own: Mapping[str, Tensor], saved: Mapping[str, Tensor], ours: Sequence[str], theirs: Sequence[str], checkpoint: str
) -> dict[str, Tensor]:
    """Tensors whose rows are classes, ours but for the rows of the classes that theirs have too."""
    if not ours or len(ours) == len(theirs):
        return {}
    places = {name: iter([i for i, other in enumerate(theirs) if other == name]) for name in set(ours) & set(theirs)}
    found = [(i, next(places[name], None)) for i, name in enumerate(ours) if name in places]
    rows = [(i, place) for i, place in found if place is not None]
    if not rows:
        return {}
    to, of = (torch.tensor(one) for one in zip(*rows, strict=True))
    mixed = {}
    for name, value in own.items():
        other = saved.get(name)
        if other is None or (value.shape[:1], other.shape[:1]) != ((len(ours),), (len(theirs),)):
            continue
        if value.shape[1:] == other.shape[1:]:
            mixed[name] = value.clone().index_copy_(0, to.to(value.device), other[of].to(value))
    if mixed:
        print_once(
            f"--start-from {checkpoint}: it has {len(theirs)} classes; of {', '.join(mixed)} the rows of {len(rows)} "
            f"of our {len(ours)} classes are taken, by name"
        )
    return mixed
