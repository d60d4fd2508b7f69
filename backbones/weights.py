"""Read checkpoints: published ones by address, local .pth / .safetensors files, and Graft's own run checkpoints."""

import argparse
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher")
"""Entries under which training programs keep an average of the weights, which is what they score."""
WRAPPERS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module")
"""Entries that hold the tensors. If a file has several, the first in this order is read."""
HARMLESS = (argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath)
"""Classes that training programs store beside the tensors; unpickling them runs no code of the file."""


class Checkpoint(NamedTuple):
    """The tensors of a file, by name."""

    state: dict[str, Tensor]
    entry: str
    """The entry of the file that holds them, such as "model"; empty if they are not wrapped."""


def read_weights(source: str) -> Checkpoint:
    """Read the state dict at an https address (kept in torch's own cache) or in a file, with `weights_only=True`.

    Raises:
        ValueError: nothing readable is there; the message names what to do.
    """
    path = cached_download(source) if source.startswith("https://") else Path(source)
    if not path.is_file():
        raise ValueError(f"--weights {source}: no such file; give imagenet, none, a .pth, .safetensors or .ckpt file")
    return read_checkpoint(path, "--weights")


def read_state(path: Path, flag: str) -> dict[str, Tensor]:
    """Read the state dict of a file as `read_checkpoint` does, without the name of its entry."""
    return read_checkpoint(path, flag).state


def read_checkpoint(path: Path, flag: str) -> Checkpoint:
    """Read the tensors of a file out of the entry that holds them, see `WRAPPERS`.

    Args:
        flag: the command-line flag to name in error messages.

    Raises:
        ValueError: it cannot be read as a state dict, or holds objects that could run code when they are unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            return Checkpoint(load_file(path), "")
        with torch.serialization.safe_globals(list(HARMLESS)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{flag} {path} cannot be read as a checkpoint: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {path} holds a {type(content).__name__}; expected a dict of tensors")
    checkpoint = unwrapped(content)
    if not checkpoint.state:
        raise ValueError(f"{flag} {path} holds no tensors under {', '.join(WRAPPERS)}; it has {', '.join(content)}")
    return checkpoint


def unwrapped(content: dict[str, Any]) -> Checkpoint:
    """Find the tensors of a file: in the first of its `WRAPPERS` that has any, or at its top."""
    for entry in WRAPPERS:
        if isinstance(content.get(entry), dict):
            inner = unwrapped(content[entry])
            if inner.state:
                return Checkpoint(inner.state, f"{entry}.{inner.entry}" if inner.entry else entry)
    return Checkpoint({key: value for key, value in content.items() if isinstance(value, Tensor)}, "")


def reason(error: Exception) -> str:
    """One line on why a file cannot be read; torch's own has many lines, and its advice is to trust the file."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return (
            f"beside tensors it holds a {refused[1]}, which could run code; if you trust the file, load it with "
            "weights_only=False and save its state dict alone"
        )
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def cached_download(url: str) -> Path:
    """The file at an address, from torch's cache or fetched into it, with its hash checked where its name has one.

    Raises:
        ValueError: it cannot be fetched; the message names the address, the cache and the flag.
    """
    parts = url.split("/")
    # The hub gives every model's file the same name, so the cache uses the repository's.
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
