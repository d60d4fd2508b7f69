"""`load("runs/a")`: a trained network, ready for pictures of one's own.

from experiments.inference.trained import load

network = load("runs/a")              # a run folder, or a checkpoint
result = network("street.jpg")        # also a PIL image, an array (H, W, 3) or a tensor (3, H, W), uint8
result.labels                         # segmentation: (H, W), the picture's own size; classification: a number
result.overlay().save("street.png")
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.decoding import WHITE, read_image
from datamodules.loader import Normalise
from datamodules.size_rules import SizeRule
from experiments.command_line.run_config import RunConfig
from experiments.inference.results import ClassificationResult, Result, SegmentationResult
from experiments.training.build import MODULES, build_data
from heads import find_head
from lightning_modules.base import GraftModule

Picture = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the preprocessing that it was trained with. Call it with one picture."""

    module: GraftModule
    class_names: tuple[str, ...]
    colours: np.ndarray
    """RGB of each class, uint8 `(C, 3)`."""
    size_rule: SizeRule
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int = WHITE
    """Level of white in files of more than 8 bits."""
    least: int | None = None
    """JPEG files may be decoded smaller as long as both sides keep this many pixels."""

    @property
    def task(self) -> str:
        """The task of the head: classification or segmentation."""
        return self.module.task

    def __call__(self, picture: Picture) -> Result:
        """Predict one picture.

        Raises:
            ValueError: the file cannot be read, or the picture has another shape or type than `load` describes.
        """
        image = self.read(picture) if isinstance(picture, (str, Path)) else pixels_of(picture)
        return self.result(self.probabilities(image), image)

    def read(self, path: str | Path) -> np.ndarray:
        """A file as uint8 `(H, W, 3)`, decoded as in training. Raises ValueError if it cannot be read."""
        return read_image(Path(path), self.least, self.white)

    def result(self, probabilities: np.ndarray, image: np.ndarray) -> Result:
        """The result for probabilities `(C, H, W)` or `(C,)` of an image uint8 `(H, W, 3)`."""
        kind = SegmentationResult if self.task == "segmentation" else ClassificationResult
        return kind(probabilities, image, self.class_names, self.colours)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities, float32: `(C, H, W)` at the size of the image uint8 `(H, W, 3)`, or `(C,)`."""
        return probabilities_of(self.logits(self.size_rule.apply(image)), image.shape[:2])[0].numpy()

    @torch.inference_mode()
    def logits(self, image: np.ndarray) -> Tensor:
        """Logits float32 `(1, C, H, W)` or `(1, C)`, on the CPU, of an image uint8 `(H, W, 3)` after the size rule."""
        batch = Normalise(self.mean, self.std)(torch.from_numpy(np.ascontiguousarray(image))[None])
        parameter = next(self.module.parameters())
        return self.module(batch.to(parameter.device, parameter.dtype)).float().cpu()


def load(path: str | Path, device: str | torch.device | None = None) -> TrainedNetwork:
    """The best network of a run, ready to predict.

    Args:
        path: a run folder, or a checkpoint that run.py wrote.
        device: where it runs; None takes a GPU if there is one.

    Raises:
        ValueError: there is no checkpoint, or it does not hold what prediction needs; the message says what is missing.
    """
    checkpoint = checkpoint_of(Path(path))
    hparams = hyperparameters(checkpoint)
    if find_head(hparams["head"]).task == "detection":
        raise ValueError(
            f"{path} detects objects ({hparams['head']}), which only run.py and compare.py support; the run's "
            "results.json has its scores, predictions.png its pictures"
        )
    preprocessing = hparams.get("preprocessing") or preprocessing_of_older(checkpoint)
    module = MODULES[find_head(hparams["head"]).task].load_from_checkpoint(
        checkpoint, weights_only=True, map_location="cpu"
    )
    module = module.eval().requires_grad_(False).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return TrainedNetwork(
        module.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        tuple(hparams["class_names"]),
        np.array(preprocessing["colours"], np.uint8),
        SizeRule(preprocessing["size_rule"], (preprocessing["size"][0], preprocessing["size"][1])),
        tuple(preprocessing["mean"]),
        tuple(preprocessing["std"]),
        preprocessing["white"],
        preprocessing["least"],
    )


def probabilities_of(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Probabilities from logits: `(1, C, h, w)` -> `(1, C, *size)`, or `(1, C)` -> `(1, C)`."""
    if logits.dim() == 4 and logits.shape[2:] != size:
        # Resizing logits gives smoother borders, and better scores, than resizing labels.
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits.softmax(1)


def checkpoint_of(path: Path) -> Path:
    """The checkpoint file that a run folder or a path means.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return path
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder or checkpoint")
    why = "the run has not finished an epoch" if (path / "config.yaml").is_file() else "it is no run folder"
    raise ValueError(f"{path} has no checkpoints/best.ckpt: {why}; give a folder that run.py made")


def hyperparameters(checkpoint: Path) -> dict[str, Any]:
    """The arguments of the module in a checkpoint.

    Raises:
        ValueError: the file is damaged, holds code, or is no checkpoint of this project.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes torch, zipfile and pickle raise what they like
        reason = "it holds code, which is not run" if "Unsupported" in str(error) else "it is damaged"
        raise ValueError(f"{checkpoint} cannot be loaded: {reason}; give a checkpoint that run.py wrote") from error
    hparams = state.get("hyper_parameters") if isinstance(state, dict) else None
    if not isinstance(hparams, dict) or "head" not in hparams:
        raise ValueError(
            f"{checkpoint} holds no network of Graft (its hyper_parameters name no head); to start a run from plain "
            "weights, use run.py --weights"
        )
    return hparams


def preprocessing_of_older(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint that was written before it held its preprocessing needs, from the config.yaml of its run.

    Raises:
        ValueError: there is no config.yaml beside it, or it does not fit this version.
    """
    settings = run_settings(checkpoint)
    if not settings:
        raise ValueError(
            f"{checkpoint} was written by an older version and does not hold image size, mean and std; "
            f"put it back into its run folder (there is no {checkpoint.parent.parent / 'config.yaml'})"
        )
    data = build_data(RunConfig(**settings))
    data.class_names = tuple(hyperparameters(checkpoint)["class_names"])
    return data.preprocessing()


def run_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint lies in, as far as this version knows them; empty if it lies alone."""
    file = checkpoint.parent.parent / "config.yaml"
    if not file.is_file():
        return {}
    known = {one.name for one in dataclasses.fields(RunConfig)}
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if name in known}


def pixels_of(picture: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """A picture as uint8 `(H, W, 3)`, RGB, turned upright.

    Raises:
        ValueError: an array or tensor has another shape or type.
    """
    if isinstance(picture, Image.Image):
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    array = picture.permute(1, 2, 0).cpu().numpy() if isinstance(picture, Tensor) else picture
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        kind = "a tensor (3, H, W)" if isinstance(picture, Tensor) else "an array (H, W, 3) or (H, W)"
        given = tuple(picture.shape) if isinstance(picture, Tensor) else array.shape
        raise ValueError(f"the picture is {array.dtype} {given}; give {kind} of uint8")
    return array
