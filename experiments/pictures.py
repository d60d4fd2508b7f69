"""predictions.png: what the network makes of validation images."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

from datamodules.base import GraftDataModule
from lightning_modules.base import GraftModule

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

SAMPLES = 6


def samples(module: GraftModule, data: GraftDataModule) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(image uint8 `(H, W, 3)`, truth, prediction) of evenly spaced validation images."""
    assert data.val is not None
    indices = np.linspace(0, len(data.val) - 1, min(SAMPLES, len(data.val))).astype(int)
    items = [item for index in indices if (item := data.val[int(index)]) is not None]
    module.eval()
    with torch.inference_mode():  # one by one: images may differ in size
        predictions = [module(item["image"][None].to(module.device)).argmax(1)[0].cpu() for item in items]
    return [
        (data.to_pixels(item["image"]).permute(1, 2, 0).numpy(), item["target"].numpy(), prediction.numpy())
        for item, prediction in zip(items, predictions, strict=True)
    ]


def coloured(labels: np.ndarray, data: GraftDataModule) -> np.ndarray:
    """Class colours of labels `(H, W)` as uint8 `(H, W, 3)`; ignored pixels black."""
    table = np.zeros((256, 3), np.uint8)
    table[: data.num_classes] = data.colours
    return table[labels]


def write_predictions(module: GraftModule, data: GraftDataModule, path: Path) -> None:
    """One row an image: the image, the truth, the prediction, and a legend of the classes."""
    rows = samples(module, data)
    draw = draw_segmentation if data.task == "segmentation" else draw_classification
    figure = draw(rows, data)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_segmentation(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], data: GraftDataModule) -> plt.Figure:
    height, width = rows[0][0].shape[:2]
    figure, axes = plt.subplots(
        len(rows), 3, figsize=(7.4, 2.02 * len(rows) * height / width + 0.3), squeeze=False, layout="constrained"
    )
    for line, (image, truth, prediction) in zip(axes, rows, strict=True):
        pictures = (image, coloured(truth, data), coloured(prediction, data))
        for ax, picture in zip(line, pictures, strict=True):
            ax.imshow(picture, interpolation="nearest")
            ax.axis("off")
    for ax, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        ax.set_title(title, fontsize=10)
    patches = [
        Patch(color=tuple(channel / 255 for channel in colour), label=name)  # type: ignore[arg-type]
        for name, colour in zip(data.class_names, data.colours, strict=True)
    ]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def draw_classification(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], data: GraftDataModule) -> plt.Figure:
    figure, axes = plt.subplots(1, len(rows), figsize=(1.8 * len(rows), 2.2), squeeze=False, layout="constrained")
    for ax, (image, truth, prediction) in zip(axes[0], rows, strict=True):
        said, right = data.class_names[int(prediction)], data.class_names[int(truth)]
        ax.imshow(image)
        ax.axis("off")
        ax.set_title(said if said == right else f"{said} (is {right})", color="green" if said == right else "crimson")
    return figure
