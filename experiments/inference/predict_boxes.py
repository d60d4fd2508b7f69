"""predict.py for networks that detect objects: boxes as pictures, text files, one table and one COCO file."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.command_line.progress import with_progress
from experiments.command_line.protocol_flags import ProtocolFlags
from experiments.inference.detector import coco_results, detect, load_detector, rows_of
from experiments.inference.inputs import Inputs, stamp
from experiments.inference.manifest import ANY_NAME, Manifest
from experiments.inference.outputs import COCO_NAME, CSV_NAME, encoded
from experiments.inference.predict_all import read_ahead, write_files
from experiments.inference.trained import TrainedNetwork, checkpoint_of
from experiments.training.draw_boxes import draw_boxes
from heads.box_head import Detections

KINDS = ("labels", "overlay", "coco", "csv")


def predict_boxes(flags: ProtocolFlags, inputs: Inputs, out: Path, kinds: list[str], **others: Any) -> list[str]:
    """Predict all pictures below `out`, going on where it was stopped.

    Returns:
        What is wrong with each picture that could not be predicted, one line each.

    Raises:
        ValueError: a flag or a kind of file that detection does not have, or results of other settings in `out`.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"--save {kind} is not supported for networks that detect; they have {', '.join(KINDS)}")
    network = load_detector(flags, **others)
    manifest = Manifest(out, {"checkpoint": stamp(checkpoint_of(Path(flags.run))), "save": sorted(kinds)})
    left, total = manifest.unfinished(inputs)
    problems = []
    try:
        for one, image in with_progress(read_ahead(left, network, None), total, "pictures"):
            if not isinstance(image, np.ndarray):
                problems.append(f"{one.name}: {image}")
                continue
            found = detect(network, image)
            write_files(out / one.stem, files_of(found, image, network, kinds))
            size = {"height": image.shape[0], "width": image.shape[1]}
            manifest.add({"input": one.name, "stamp": one.stamp, **size, "objects": rows_of(found)})
    finally:
        manifest.close()
    if "csv" in kinds:
        write_table(manifest, out / CSV_NAME, network.class_names)
    if "coco" in kinds:
        write_coco(manifest, out / COCO_NAME, network.class_names)
    return problems


def files_of(found: Detections, image: np.ndarray, network: TrainedNetwork, kinds: list[str]) -> dict[str, bytes]:
    """The files of a picture: its endings and contents.

    `.txt` has a line for each object, as YOLO's programs write it: class from 0, then centre, width and height in
    fractions of the picture, then the score.
    """
    files = {}
    if "overlay" in kinds:
        drawn = draw_boxes(image, found, network.class_names, network.colours)
        files[".overlay.jpg"] = encoded(Image.fromarray(drawn), "JPEG", quality=90)
    if "labels" in kinds:
        height, width = image.shape[:2]
        lines = []
        for row in rows_of(found):
            x1, y1, x2, y2 = row["box"]
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(row["class"]), *(f"{number:.6f}" for number in numbers), str(row["score"])]))
        files[".txt"] = "".join(f"{line}\n" for line in lines).encode()
    return files


def write_table(manifest: Manifest, path: Path, class_names: tuple[str, ...]) -> None:
    """One row for each object of each picture."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", **ANY_NAME) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["input", "class", "score", "x1", "y1", "x2", "y2"])
        for entry in manifest.entries():
            for row in entry["objects"]:
                writer.writerow([entry["input"], class_names[row["class"]], row["score"], *row["box"]])
    part.replace(path)


def write_coco(manifest: Manifest, path: Path, class_names: tuple[str, ...]) -> None:
    """A COCO data set whose annotations are the detections with their scores; categories are numbered from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(manifest.entries(), 1):
        images.append({"id": number, "file_name": entry["input"], "height": entry["height"], "width": entry["width"]})
        for row in coco_results(number, entry["objects"], range(1, len(class_names) + 1)):
            area = row["bbox"][2] * row["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **row, "area": round(area, 2), "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    part = path.with_name(path.name + ".part")
    with part.open("w", **ANY_NAME) as file:
        json.dump({"categories": categories, "images": images, "annotations": annotations}, file, ensure_ascii=False)
    part.replace(path)
