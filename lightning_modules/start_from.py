"""Start a network from the checkpoint of another run, which may have another head."""

from pathlib import Path

from torch import nn

from backbones.weights import read_state


def load_matching_weights(network: nn.Module, checkpoint: str) -> list[str]:
    """Copy every tensor whose name and shape match, for example from FCN-32s into FCN-16s.

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
    of_backbone = [name for name in left if name.startswith("backbone.")]
    if of_backbone:
        raise ValueError(
            f"--start-from {checkpoint}: the checkpoint has a different backbone (no {of_backbone[0]} of the expected "
            "shape); give a checkpoint made with the same --backbone"
        )
    if not any(name.startswith("head.") for name in matching):
        raise ValueError(
            f"--start-from {checkpoint}: nothing of its head fits; use --weights to take its backbone only"
        )
    network.load_state_dict(matching, strict=False)
    return left
