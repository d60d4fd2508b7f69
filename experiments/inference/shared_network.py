"""A trained network as two files to pass on: model.safetensors with its tensors, config.json with all else.

Neither can hold code. config.json has the version of Graft, the arguments of the Lightning module, the class names and
the preprocessing; `trained.load` takes the folder of both, for example a snapshot of a Hugging Face repository.
"""

import inspect
import json
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.run_files.atomic_file import write_atomically
from experiments.training.build import MODULES
from experiments.training.write_results import own_version
from heads import find_head
from lightning_modules.base import GraftModule

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1
"""Raised when older versions of this file could not read what a newer one writes."""
OUTSIDE = ("class_names", "preprocessing")
"""Arguments of the module that stand beside the others in config.json, because other programs may want them."""


def write_shared(folder: Path, hparams: dict[str, Any], state: dict[str, Tensor], temperature: float) -> None:
    """Write both files into a folder, each under another name first.

    Args:
        hparams: the arguments of the module, with preprocessing.
        state: its state dict.
        temperature: what its logits are divided by.
    """
    part = folder / f"{WEIGHTS}.part"
    # Every tensor as a copy of its own: safetensors stores neither views nor channels-last tensors.
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, part, {"format": "pt"}
    )
    part.replace(folder / WEIGHTS)
    content = {
        "graft": own_version(),
        "format": FORMAT,
        **{name: hparams[name] for name in OUTSIDE},
        "temperature": temperature,
        "module": {name: value for name, value in hparams.items() if name not in OUTSIDE},
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / CONFIG, text + "\n")


def is_another(folder: Path, hparams: dict[str, Any], state: dict[str, Tensor]) -> bool:
    """Whether a folder already holds a network other than this one, or something damaged in its place."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        return False
    try:
        before, tensors = read_hparams(weights), load_file(weights)
    except (ValueError, OSError, SafetensorError):
        return True
    same_names = tensors.keys() == state.keys() and before == json.loads(json.dumps(hparams))
    return not (same_names and all(tensors[name].equal(value.cpu()) for name, value in state.items()))


def read_hparams(weights: Path) -> dict[str, Any]:
    """The arguments of the module whose tensors a file holds; see `read_content`."""
    content = read_content(weights)
    return content["module"] | {name: content[name] for name in OUTSIDE}


def read_content(weights: Path) -> dict[str, Any]:
    """The config.json beside a file of tensors.

    Raises:
        ValueError: there is none, or it is no JSON, or not of this project, or of a newer version.
    """
    path = weights.with_name(CONFIG)
    if not path.is_file():
        raise ValueError(f"{weights} has no {CONFIG} beside it; give the folder that share.py wrote, with both files")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is no JSON ({error}); get the file again") from None
    if not isinstance(content, dict) or not isinstance(content.get("module"), dict) or "head" not in content["module"]:
        raise ValueError(f"{path} describes no network of Graft; give a folder that share.py wrote")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')}, this version reads {FORMAT}; it was written by Graft "
            f"{content.get('graft')}"
        )
    missing = [name for name in OUTSIDE if not content.get(name)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; give a folder that share.py wrote")
    temperature = content.setdefault("temperature", 1.0)
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool) or not temperature > 0:
        raise ValueError(f"{path} has the temperature {temperature}; it is a number above 0")
    return content


def no_constant(name: str) -> NoReturn:
    """Called for NaN and infinities, which Python's JSON has and JSON has not."""
    raise ValueError(f"it holds {name}")


def build_shared(weights: Path, hparams: dict[str, Any]) -> GraftModule:
    """The module with its tensors, on the CPU.

    Raises:
        ValueError: the arguments are not those of this version's module, or the tensors do not fit.
    """
    kind = MODULES[find_head(hparams["head"]).task]
    unknown = hparams.keys() - inspect.signature(kind).parameters.keys()
    if unknown:
        raise ValueError(
            f"{weights.with_name(CONFIG)} has {', '.join(sorted(unknown))}, which this version ({own_version()}) does "
            "not know; use the version that wrote it"
        )
    module = kind(**hparams)
    try:
        module.load_state_dict(load_file(weights), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights} does not hold the tensors of {CONFIG}: {reason[:200]}; get both again") from None
    module.temperature = float(read_content(weights)["temperature"])
    return module
