"""Start a network from the checkpoint of another run, which may have another head."""

from pathlib import Path

from backbones.backbone import Backbone, print_once
from backbones.weights import read_state
from lightning_modules.network import Network


def load_matching_weights(network: Network, checkpoint: str) -> list[str]:
    """Copy every tensor whose name and shape match, for example from FCN-32s into FCN-16s.

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
