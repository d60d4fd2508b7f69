"""Read checkpoints: published ones by address, local .pth / .safetensors files, and Graft's own run checkpoints."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

RUN_PREFIX = "network.backbone."


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict at an https address (kept in torch's own cache) or in a file.

    From a run's checkpoint only the backbone is taken. Everything is read with `weights_only=True`.

    Raises:
        ValueError: nothing readable is there; the message names what to do.
    """
    path = fetched(source) if source.startswith("https://") else Path(source)
    if not path.is_file():
        raise ValueError(f"--weights {source}: no such file; give imagenet, none, a .pth, .safetensors or .ckpt file")
    state = read_state(path, "--weights")
    own = {key.removeprefix(RUN_PREFIX): value for key, value in state.items() if key.startswith(RUN_PREFIX)}
    return own or state


def read_state(path: Path, flag: str) -> dict[str, Tensor]:
    """The state dict in a file that `flag` named, out of whatever wraps it.

    Raises:
        ValueError: it cannot be read as one.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{flag} {path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{flag} {path} holds a {type(state).__name__}; expected a dict of tensors")
    for key in ("state_dict", "model"):  # Lightning's and many research codes' wrapping
        if isinstance(state.get(key), dict):
            state = state[key]
    return state


def fetched(url: str) -> Path:
    """The file at an address, from torch's cache or fetched into it, with its hash checked where its name has one.

    Raises:
        ValueError: it cannot be fetched; the message names the address, the cache and the flag.
    """
    parts = url.split("/")
    # The hub names every model's file alike; its repository tells them apart.
    name = f"{parts[4]}.safetensors" if parts[-1] == "model.safetensors" else parts[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digest = re.search(r"-([a-f0-9]{8,})\.", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: the hash is another
        raise ValueError(
            f"--weights imagenet could not be fetched ({error}). On a machine with a network, download {url}, "
            f"then put it at {path} or give it as --weights FILE"
        ) from error
    return path


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
