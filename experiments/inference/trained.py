"""`load("runs/a")`: a trained network, ready for pictures of one's own.

from experiments.inference.trained import load

network = load("runs/a")              # a run folder, a checkpoint, or a folder that share.py wrote
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

from datamodules.bands import RGB, as_rgb, check_bands, pillow_bands, read_channels
from datamodules.decoding import WHITE
from datamodules.loader import Normalise
from datamodules.size_rules import SizeRule
from experiments.command_line.run_config import RunConfig
from experiments.inference.results import ClassificationResult, Result, SegmentationResult
from experiments.inference.shared_network import WEIGHTS, build_shared, read_hparams
from experiments.training.build import MODULES, build_data
from experiments.training.load_run import checkpoint_hparams
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
    min_side: int | None = None
    """JPEG files may be decoded smaller as long as both sides keep this many pixels."""
    temperature: float = 1.0
    """What logits are divided by, so that confidence matches accuracy; see `lightning_modules/calibration.py`."""

    @property
    def in_channels(self) -> int:
        """Bands of the images."""
        return len(self.mean)

    @property
    def task(self) -> str:
        """The task of the head: classification or segmentation."""
        return self.module.task

    def __call__(self, picture: Picture) -> Result:
        """Predict one picture.

        Raises:
            ValueError: the file cannot be read, or the picture has another shape or type than `load` describes.
        """
        image = self.read(picture) if isinstance(picture, (str, Path)) else pixels_of(picture, self.in_channels)
        return self.result(self.probabilities(image), image)

    def read(self, path: str | Path) -> np.ndarray:
        """A file as uint8 `(H, W, C)`, decoded as in training. Raises ValueError if it cannot be read."""
        return read_channels(Path(path), self.in_channels, self.min_side, self.white)

    def result(self, probabilities: np.ndarray, image: np.ndarray) -> Result:
        """The result for probabilities `(C, H, W)` or `(C,)` of an image uint8 `(H, W, bands)`, shown as RGB."""
        kind = SegmentationResult if self.task == "segmentation" else ClassificationResult
        return kind(probabilities, as_rgb(image), self.class_names, self.colours)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities, float32: `(C, H, W)` at the size of the image uint8 `(H, W, 3)`, or `(C,)`."""
        return self.probabilities_of(self.logits(self.size_rule.apply(image)), image.shape[:2])[0].numpy()

    def probabilities_of(self, logits: Tensor, size: tuple[int, ...]) -> Tensor:
        """Probabilities from logits: `(1, C, h, w)` -> `(1, C, *size)`, or `(1, C)` -> `(1, C)`."""
        if logits.dim() == 4 and logits.shape[2:] != size:
            # Resizing logits gives smoother borders, and better scores, than resizing labels.
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return self.module.probabilities(logits)

    def check_size(self, image: np.ndarray) -> None:
        """Raise a ValueError if an image that has passed the size rule is smaller than the network takes."""
        least = self.module.network.backbone.min_size
        if min(image.shape[:2]) < least:
            raise ValueError(
                f"{image.shape[1]}x{image.shape[0]} pixels are too few: {self.module.hparams['backbone']} needs sides "
                f"of {least} or more; enlarge the picture"
            )

    @torch.inference_mode()
    def logits(self, image: np.ndarray) -> Tensor:
        """Calibrated logits float32 `(1, C, H, W)` or `(1, C)`, on the CPU, of an image uint8 `(H, W, 3)`.

        The image is one that has passed the size rule.

        Raises:
            ValueError: it is smaller than the network takes.
        """
        self.check_size(image)
        batch = Normalise(self.mean, self.std)(torch.from_numpy(np.ascontiguousarray(image))[None])
        parameter = next(self.module.parameters())
        return self.module(batch.to(parameter.device, parameter.dtype)).float().cpu() / self.temperature


def load(path: str | Path, device: str | torch.device | None = None) -> TrainedNetwork:
    """The best network of a run, ready to predict.

    Args:
        path: a run folder, a checkpoint that run.py wrote, or a folder that share.py wrote.
        device: where it runs; None takes a GPU if there is one.

    Raises:
        ValueError: there is no checkpoint, or it does not hold what prediction needs; the message says what is missing.
    """
    head = hyperparameters(checkpoint_of(Path(path)))["head"]
    if find_head(head).task == "detection":
        raise ValueError(
            f"{path} detects objects ({head}); of the programs that use trained networks, only evaluate.py, "
            "predict.py, export.py and demo.py support that"
        )
    return load_any(path, device)


def load_any(path: str | Path, device: str | torch.device | None = None) -> TrainedNetwork:
    """The same for networks of every task; of one that detects objects, only the module can be called."""
    checkpoint = checkpoint_of(Path(path))
    hparams = hyperparameters(checkpoint)
    preprocessing = hparams.get("preprocessing") or preprocessing_of_older(checkpoint)
    module = (
        module_of(checkpoint, hparams)
        .eval()
        .requires_grad_(False)
        .to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    )
    return TrainedNetwork(
        module.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        tuple(hparams["class_names"]),
        np.array(preprocessing["colours"], np.uint8),
        SizeRule(preprocessing["size_rule"], (preprocessing["size"][0], preprocessing["size"][1])),
        tuple(preprocessing["mean"]),
        tuple(preprocessing["std"]),
        preprocessing["white"],
        preprocessing["least"],
        module.temperature,
    )


def checkpoint_of(path: Path) -> Path:
    """The file of weights that a path means: the path itself, a run's best checkpoint, or that of a shared network.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return path
    for file in (path / "checkpoints" / "best.ckpt", path / WEIGHTS):
        if file.is_file():
            return file
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder or checkpoint")
    why = "the run has not finished an epoch" if (path / "config.yaml").is_file() else "it is no run folder"
    raise ValueError(
        f"{path} has no checkpoints/best.ckpt: {why}; give a folder that run.py made, or one of share.py with {WEIGHTS}"
    )


def hyperparameters(checkpoint: Path) -> dict[str, Any]:
    """The arguments of the module in a checkpoint, or in the config.json beside a .safetensors file.

    Raises:
        ValueError: the file is damaged, holds code, or is no checkpoint of this project.
    """
    if checkpoint.suffix == ".safetensors":
        return read_hparams(checkpoint)
    return checkpoint_hparams(checkpoint)


def module_of(checkpoint: Path, hparams: dict[str, Any]) -> GraftModule:
    """The module in a file whose `hyperparameters` are these, on the CPU.

    Raises:
        ValueError: the file is of another version, whose networks have other tensors.
    """
    if checkpoint.suffix == ".safetensors":
        return build_shared(checkpoint, hparams)
    kind = MODULES[find_head(hparams["head"]).task]
    try:
        return kind.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu")
    except (RuntimeError, TypeError, KeyError) as error:  # of PyTorch, about tensors or arguments that do not fit
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint} does not fit this version of Graft: {reason[:200]}; train again") from error


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
    if not file.is_file() or checkpoint.suffix == ".safetensors":
        return {}
    known = {one.name for one in dataclasses.fields(RunConfig)}
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged; write it again, or give the checkpoint a place of its own")
    return {name: value for name, value in values.items() if name in known}


def pixels_of(picture: Image.Image | np.ndarray | Tensor, in_channels: int = RGB) -> np.ndarray:
    """A picture as uint8 `(H, W, C)`, RGB or of as many bands as it must have, turned upright.

    Raises:
        ValueError: an array or tensor has another shape or type.
    """
    if isinstance(picture, Image.Image):
        upright = ImageOps.exif_transpose(picture)
        if in_channels == RGB:
            return np.array(upright.convert("RGB"))
        return check_bands(pillow_bands(upright), in_channels, "the picture")
    array = picture.permute(1, 2, 0).cpu().numpy() if isinstance(picture, Tensor) else picture
    grey = in_channels in (1, RGB)
    if array.ndim == 2 and grey:
        array = np.repeat(array[..., None], in_channels, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != in_channels or 0 in array.shape:
        kind = f"an array (H, W, {in_channels})" + " or (H, W)" * grey
        kind = f"a tensor ({in_channels}, H, W)" if isinstance(picture, Tensor) else kind
        given = tuple(picture.shape) if isinstance(picture, Tensor) else array.shape
        raise ValueError(f"the picture is {array.dtype} {given}; give {kind} of uint8")
    return array
