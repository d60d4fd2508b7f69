"""Pictures of predictions for validation images: predictions.png to look at, and single PNGs to compare runs.

predictions/  index.json  00000-image.png  00000-truth.png  00000-prediction.png  00025-image.png ...

Label maps are PNGs with a palette: their values are the classes, shown in the classes' colours. In classification
there are none; index.json has the class names instead. In detection, PNGs show the image with boxes, and index.json has
the boxes too, in pixels of the PNGs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.bands import as_rgb
from datamodules.base import GraftDataModule
from experiments.training.draw_boxes import draw_boxes, enlarged, shown
from experiments.training.picture_table import BLACK, Colour, picture_table
from lightning_modules.base import GraftModule
from lightning_modules.detection_scores import on_cpu
from lightning_modules.sharding import is_sharded

SAMPLES = 6
LONGEST_SIDE = 384
"""Longest side of the single PNGs, in pixels."""
GREEN, RED = (0, 128, 0), (220, 20, 60)
Sample = tuple[np.ndarray, Any, Any]
"""Image uint8 `(H, W, 3)`, truth, prediction: arrays, or in detection objects and detections."""


def draw_predictions(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule, path: Path) -> bool:
    """Write the pictures of a finished run on rank 0. Returns False, with one line, if that fails or shows nothing.

    Scores are written by then, so no error may end the run here. Pictures of an earlier end of the run are removed.
    """
    try:
        if trainer.is_global_zero:
            path.unlink(missing_ok=True)
            (path.with_suffix("") / "index.json").unlink(missing_ok=True)
        # All ranks compute sharded weights together.
        drawn = samples_by_index(module, data) if trainer.is_global_zero or is_sharded(module.network) else {}
        if trainer.is_global_zero:
            if not drawn:
                raise ValueError("none of the chosen validation images can be read")
            write_predictions(drawn, data, path)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        print(f"no predictions.png: {type(error).__name__}: {reason}; the scores are in results.json", flush=True)
        return False
    return True


def samples(module: GraftModule, data: GraftDataModule) -> list[Sample]:
    """Return (image uint8 `(H, W, 3)`, truth, prediction) of evenly spaced validation images."""
    return list(samples_by_index(module, data).values())


def samples_by_index(module: GraftModule, data: GraftDataModule) -> dict[int, Sample]:
    """Return the same by their index in the validation split, without images that cannot be read."""
    assert data.val is not None
    indices = np.linspace(0, len(data.val) - 1, min(SAMPLES, len(data.val))).astype(int).tolist()
    items = {index: item for index in indices if (item := data.val[index]) is not None}
    module.eval()
    with torch.inference_mode():  # one by one: images may differ in size
        outputs = [output_of(module, item) for item in items.values()]
    images = [as_rgb(data.to_pixels(item["image"]).permute(1, 2, 0).numpy()) for item in items.values()]
    truths: list[Any]
    predictions: list[Any]
    if data.task == "detection":
        truths, predictions = [item["target"] for item in items.values()], [on_cpu(found) for (found,) in outputs]
    else:
        truths = [item["target"].numpy() for item in items.values()]
        predictions = [predicted(module, logits)[0].cpu().numpy() for logits in outputs]
    return dict(zip(items, zip(images, truths, predictions, strict=True), strict=True))


def predicted(module: GraftModule, logits: Tensor) -> Tensor:
    """The class of each pixel or image; of several labels, 1 for each class that is likelier than not, `(B, C)`."""
    return (logits > 0).long() if module.hparams["several_labels"] else logits.argmax(1)


def label_names(labels: np.ndarray, class_names: Sequence[str]) -> str:
    """The name of a class, or those of the labels 0 or 1 `(C,)`."""
    if labels.ndim == 0:
        return class_names[int(labels)]
    return ", ".join(class_names[i] for i in np.flatnonzero(labels).tolist()) or "none"


def output_of(module: GraftModule, item: Mapping[str, Any]) -> Any:
    """The logits or detections of one sample, among its proposals if it has some."""
    image = item["image"][None].to(module.device)
    if isinstance(item["target"], dict) and "proposals" in item["target"]:
        return module(image, [item["target"]["proposals"].to(module.device)])
    return module(image)


def coloured(labels: np.ndarray, data: GraftDataModule) -> np.ndarray:
    """Return labels `(H, W)` in their class colours, as uint8 `(H, W, 3)`; ignored pixels are black."""
    return palette(data)[labels]


def palette(data: GraftDataModule) -> np.ndarray:
    """Return the colour of every label, uint8 `(256, 3)`."""
    table = np.zeros((256, 3), np.uint8)
    table[: data.num_classes] = data.colours
    return table


def write_predictions(drawn: dict[int, Sample], data: GraftDataModule, path: Path) -> None:
    """Write a figure with one row per image (image, truth, prediction) and a legend, and the folder of single PNGs."""
    figure = DRAWINGS[data.task](list(drawn.values()), data)
    figure.save(path)
    write_singly(drawn, data, path.with_suffix(""))


def write_singly(drawn: dict[int, Sample], data: GraftDataModule, folder: Path) -> None:
    """Write each picture as a PNG; the index is written last, so that it never names a missing file."""
    folder.mkdir(exist_ok=True)
    entries = []
    for index, (image, truth, prediction) in drawn.items():
        entry: dict[str, Any] = {"index": index, "image": f"{index:05d}-image.png"}
        picture_of_image = smaller(enlarged(image) if data.task == "detection" else image, cv2.INTER_AREA)
        Image.fromarray(picture_of_image).save(folder / f"{index:05d}-image.png", optimize=True)
        for kind, labels in (("truth", truth), ("prediction", prediction)):
            if data.task == "classification":
                entry[kind] = label_names(labels, data.class_names)
                continue
            entry[kind] = f"{index:05d}-{kind}.png"
            if data.task == "detection":
                over = draw_boxes(image, labels, data.class_names, data.colours)
                Image.fromarray(smaller(over, cv2.INTER_AREA)).save(folder / entry[kind], optimize=True)
                entry[f"{kind}_boxes"] = as_rows(labels, picture_of_image.shape[0] / image.shape[0])
                continue
            picture = Image.fromarray(smaller(labels.astype(np.uint8), cv2.INTER_NEAREST))
            picture.putpalette(palette(data).tobytes())
            picture.save(folder / f"{index:05d}-{kind}.png", optimize=True)
        entries.append(entry)
    colours = {name: "#" + bytes(colour).hex() for name, colour in zip(data.class_names, data.colours, strict=True)}
    text = json.dumps({"task": data.task, "colours": colours, "samples": entries}, indent=2, ensure_ascii=False)
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")


def as_rows(objects: Mapping[str, Any], scale: float) -> list[dict[str, Any]]:
    """The drawn objects for index.json: `box` in pixels times `scale`, `label` and, for detections, `score`."""
    arrays = shown(objects)
    rows: list[dict[str, Any]] = [
        {"box": [round(float(corner) * scale, 2) for corner in box], "label": int(label)}
        for box, label in zip(arrays["boxes"], arrays["labels"], strict=True)
    ]
    for row, score in zip(rows, arrays.get("scores", ()), strict=False):
        row["score"] = round(float(score), 4)
    return rows


def smaller(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """Shrink the picture so that its longer side is at most `LONGEST_SIDE`."""
    height, width = picture.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=interpolation)


def draw_segmentation(rows: list[Sample], data: GraftDataModule) -> Image.Image:
    return draw_rows(
        [(image, coloured(truth, data), coloured(prediction, data)) for image, truth, prediction in rows], data
    )


def draw_detection(rows: list[Sample], data: GraftDataModule) -> Image.Image:
    def over(image: np.ndarray, objects: Mapping[str, Any]) -> np.ndarray:
        return draw_boxes(image, objects, data.class_names, data.colours)

    return draw_rows([(enlarged(image), over(image, truth), over(image, found)) for image, truth, found in rows], data)


def draw_rows(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], data: GraftDataModule) -> Image.Image:
    """A row of pictures for each image (image, truth, prediction), and a legend of the classes' colours."""
    titles = [(title, BLACK) for title in ("image", "truth", "prediction")]
    colours = [(int(red), int(green), int(blue)) for red, green, blue in data.colours]
    return picture_table(rows, titles, list(zip(data.class_names, colours, strict=True)))


def draw_classification(rows: list[Sample], data: GraftDataModule) -> Image.Image:
    """The images beside each other under what is predicted: green if it is right, else red and with the truth."""
    titles: list[tuple[str, Colour]] = []
    for _, truth, prediction in rows:
        said, right = (label_names(one, data.class_names) for one in (prediction, truth))
        titles.append((said, GREEN) if said == right else (f"{said} (is {right})", RED))
    return picture_table([[image for image, _, _ in rows]], titles)


DRAWINGS = {
    "classification": draw_classification,
    "segmentation": draw_segmentation,
    "detection": draw_detection,
}
"""The figure of each task."""
