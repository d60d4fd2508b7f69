"""Read checkpoints: published ones by address, local .pth / .safetensors files, and Graft's own run checkpoints."""

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

RUN_PREFIX = "network.backbone."


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict at an https address (kept in torch's own cache) or in a file.

    From a run's checkpoint only the backbone is taken. Everything is read with `weights_only=True`.

    Raises:
        ValueError: nothing readable is there; the message names what to do.
    """
    if source.startswith("https://"):
        return _download(source)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"--weights {source}: no such file (give imagenet, none, or a .pth, .safetensors or .ckpt file)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"--weights {source} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise ValueError(f"--weights {source} holds a {type(state).__name__}; expected a dict of tensors")
    for key in ("state_dict", "model"):  # Lightning's and many research codes' wrapping
        if isinstance(state.get(key), dict):
            state = state[key]
    own = {key.removeprefix(RUN_PREFIX): value for key, value in state.items() if key.startswith(RUN_PREFIX)}
    return own or state


def _download(url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, check_hash=True)
    except (URLError, OSError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        raise ValueError(
            f"--weights imagenet could not be fetched ({error}). On a machine with a network, download {url}, "
            f"then put it at {cache} or give it as --weights FILE"
        ) from error


def adapt_input_channels(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fit an RGB checkpoint's first convolution to another number of input channels.

    The RGB filters are repeated in turn and scaled by 3 / in_channels, so that a grey image repeated over all channels
    gives the activations it gave; one channel gets their sum.
    """
    adapted = dict(state)
    for key, value in state.items():
        target = own.get(key)
        if (
            target is None
            or value.ndim != 4
            or value.shape[1] != 3
            or target.shape[1] == 3
            or target.shape[2:] != value.shape[2:]
        ):
            continue
        n = target.shape[1]
        adapted[key] = value.sum(1, keepdim=True) if n == 1 else value[:, torch.arange(n) % 3] * (3 / n)
    return adapted


def shapes_that_differ(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """One line on how a checkpoint differs from a module's own state dict; empty where it fits."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} tensors are missing (first: {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} do not belong (first: {extra[0]})")
    if shapes:
        key = min(shapes)
        parts.append(
            f"{len(shapes)} have another shape (first: {key}, {tuple(state[key].shape)} "
            f"where {tuple(own[key].shape)} is needed)"
        )
    return "; ".join(parts)
