"""The files that predict.py writes for each picture, and the tables over all of them."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from experiments.inference.label_files import label_png
from experiments.inference.manifest import ANY_NAME
from experiments.inference.results import ClassificationResult, Result, SegmentationResult

Kind = Literal["labels", "overlay", "probabilities", "coco", "csv", "film"]
COCO_NAME = "coco.json"
CSV_NAME = "predictions.csv"
TOP = 5
LONGEST_JPEG = 65_500
"""Longest side in pixels that a JPEG file can have; larger overlays are reduced."""


def files_of(result: Result, kinds: Iterable[str]) -> dict[str, bytes]:
    """The content of a picture's own files, by the ending that their name gets."""
    files = {}
    if "labels" in kinds and isinstance(result, SegmentationResult):
        files[".png"] = label_png(result.labels, result.colours)
    if "overlay" in kinds:
        picture = result.overlay()
        picture.thumbnail((LONGEST_JPEG, LONGEST_JPEG))
        files[".overlay.jpg"] = encoded(picture, "JPEG", quality=90)
    if "probabilities" in kinds:
        file = io.BytesIO()
        np.save(file, result.probabilities.astype(np.float16))
        files[".npy"] = file.getvalue()
    return files


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def entry_of(result: Result, kinds: Iterable[str], top: int = TOP) -> dict[str, Any]:
    """What the manifest keeps of a picture: its size, and what the tables over all pictures need."""
    entry: dict[str, Any] = {"height": result.image.shape[0], "width": result.image.shape[1]}
    if isinstance(result, ClassificationResult):
        entry["label"] = result.name
        entry["top"] = [[name, round(value, 6)] for name, value in result.top(top)]
        return entry
    entry["confidence"] = round(float(result.scores.mean()), 6)
    entry["shares"] = {name: round(value, 6) for name, value in result.shares.items()}
    if "coco" in kinds:
        entry["regions"] = list(regions(result.labels))
    return entry


def regions(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """One region per class that occurs, as COCO's run lengths: counts of 0 and 1 in turn, down the columns."""
    for label in np.unique(labels[labels >= 0]).tolist():
        mask = labels == label
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        yield {
            "class": label,
            "area": int(mask.sum()),
            "bbox": [int(value) for value in box],
            "counts": run_lengths(mask),
        }


def run_lengths(mask: np.ndarray) -> list[int]:
    """The lengths of runs of equal values down the columns of a mask bool `(H, W)`, beginning with a run of False."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [len(flat)]))).tolist()
    return [0, *lengths] if flat[0] else lengths


def write_csv(entries: Iterable[dict[str, Any]], path: Path, task: str, class_names: tuple[str, ...]) -> None:
    """One row per picture: its most likely classes, or the fraction of its pixels that each class has."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", **ANY_NAME) as file:
        writer = csv.writer(file, lineterminator="\n")
        if task == "classification":
            places = range(1, min(TOP, len(class_names)) + 1)
            writer.writerow(["input", "label", *(f"{what}_{i}" for i in places for what in ("class", "probability"))])
            for entry in entries:
                writer.writerow([entry["input"], entry["label"], *(cell for pair in entry["top"] for cell in pair)])
        else:
            writer.writerow(["input", "confidence", *class_names])
            for entry in entries:
                shares = [entry["shares"].get(name, 0.0) for name in class_names]
                writer.writerow([entry["input"], entry["confidence"], *shares])
    part.replace(path)


def write_coco(entries: Iterable[dict[str, Any]], path: Path, class_names: tuple[str, ...]) -> None:
    """A COCO data set of the predicted regions; categories are numbered from 1. Written entry by entry.

    COCO's lists of images and annotations cannot be written side by side, so annotations go to a second file first.
    """
    part, rest = path.with_name(path.name + ".part"), path.with_name(path.name + ".annotations.part")
    number = 0
    with part.open("w", **ANY_NAME) as images, rest.open("w+", **ANY_NAME) as annotations:
        images.write('{"categories": ')
        json.dump([{"id": i + 1, "name": name} for i, name in enumerate(class_names)], images, ensure_ascii=False)
        images.write(', "images": [')
        for image, entry in enumerate(entries, 1):
            size = {"height": entry["height"], "width": entry["width"]}
            images.write(", " if image > 1 else "")
            json.dump({"id": image, "file_name": entry["input"], **size}, images, ensure_ascii=False)
            for region in entry["regions"]:
                number += 1
                annotations.write(", " if number > 1 else "")
                annotation = {"id": number, "image_id": image, "category_id": region["class"] + 1, "iscrowd": 1}
                annotation |= {"area": region["area"], "bbox": region["bbox"]}
                annotation["segmentation"] = {"size": [entry["height"], entry["width"]], "counts": region["counts"]}
                json.dump(annotation, annotations)
        images.write('], "annotations": [')
        annotations.seek(0)
        while block := annotations.read(1 << 20):
            images.write(block)
        images.write("]}\n")
    rest.unlink()
    part.replace(path)
