"""Made-up run folders with the files that run.py writes, for tests of everything that reads runs."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CLASSES = ("background", "road", "<b>tree</b>", "car", "person")
COLOURS = (0, 0, 0, 128, 64, 128, 107, 142, 35, 0, 0, 142, 220, 20, 60)


def write_run(
    folder: Path,
    backbone: str,
    head: str,
    seed: int,
    miou: float,
    *,
    epochs: int = 3,
    gmacs: float = 1.0,
    done: bool = True,
    pictures: bool = True,
    classes: Sequence[str] = CLASSES,
    protocol: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write a run folder in which every score follows from `miou`.

    Args:
        done: whether there are results.
        protocol: changes to the usual one.
        training: changes to what is recorded of a training on one CPU.
        settings: changes to the usual ones.
    """
    folder.mkdir(parents=True)
    config = {
        "backbone": backbone, "head": head, "data": "camvid", "data_dir": None, "epochs": epochs, "batch_size": 8,
        "lr": 0.001, "seed": seed, "name": folder.name, "out": str(folder.parent),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings, sort_keys=False), encoding="utf-8")
    per_class = {f"iou/{name}": miou + 0.02 * number - 0.04 for number, name in enumerate(classes)}
    with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
        scores = ["val/loss", "val/miou", *(f"val/{name}" for name in per_class)]
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "lr", "train/loss_epoch", *scores])
        for epoch in range(1, epochs + 1):
            share = epoch / epochs
            values = [1 - miou * share, miou * share, *(value * share for value in per_class.values())]
            writer.writerow([epoch, 10 * epoch, 0.001, 2 - miou * share, *values])
    if not done:
        return folder
    if pictures:
        write_pictures(folder / "predictions", seed)
    values = {"loss": 1 - miou, "miou": miou, "pixel_accuracy": miou + 0.1, **per_class}
    results = {
        "scores": {"val": values, "test": {name: value - 0.05 for name, value in values.items()}},
        "best_epoch": epochs,
        "protocol": {
            "data": "camvid",
            "data_fingerprint": "0123456789abcdef",
            "task": "segmentation",
            "splits": {"train": 20, "val": 10, "test": 10},
            "image_size": [24, 32],
            "classes": list(classes),
            "ignore_index": 255,
            "seed": seed,
            "skipped": {"train": 0, "val": 0, "test": 0},
            **(protocol or {}),
        },
        "backbone": backbone,
        "head": head,
        "crf": None,
        "params": int(gmacs * 1e7),
        "gmacs": gmacs,
        "wall_time_s": 60 * gmacs + seed,
        "train_images_per_s": 100 / gmacs,
        "peak_memory_mib": 500 * gmacs,
        "training": {"processes": 1, "device": "x86_64", "global_batch": 8, **(training or {})},
        "versions": {"python": "3.11.7", "torch": "2.14.1", "graft": "0.1.0"},
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    return folder


def write_pictures(folder: Path, seed: int) -> None:
    """Two images, the same for all seeds, and predictions that differ."""
    folder.mkdir()
    samples = []
    for index in (0, 5):
        generator = np.random.default_rng(index)
        image = generator.integers(0, 256, (24, 32, 3), np.uint8)
        truth = np.repeat(np.arange(4, dtype=np.uint8), 8)[None].repeat(24, 0)
        for kind, pixels in (("image", image), ("truth", truth), ("prediction", np.roll(truth, seed + 1, 1))):
            picture = Image.fromarray(pixels)
            if kind != "image":
                picture.putpalette(COLOURS)
            picture.save(folder / f"{index:05d}-{kind}.png")
        samples.append(
            {"index": index, **{kind: f"{index:05d}-{kind}.png" for kind in ("image", "truth", "prediction")}}
        )
    colours = {name: "#" + bytes(COLOURS[3 * i : 3 * i + 3]).hex() for i, name in enumerate(CLASSES)}
    index_file = {"task": "segmentation", "colours": colours, "samples": samples}
    (folder / "index.json").write_text(json.dumps(index_file), encoding="utf-8")


def write_grid(folder: Path) -> Path:
    """Write three backbones under two heads with three seeds each, and folders that are not ranked."""
    generator = np.random.default_rng(0)
    for number, backbone in enumerate(("resnet18", "resnet50", "vgg16")):
        for other, head in enumerate(("fcn8s", "unet")):
            for seed in range(3):
                miou = 0.5 + 0.05 * number + 0.01 * other + 0.01 * seed + float(generator.normal(0, 0.01))
                write_run(
                    folder / f"{backbone}-{head}-{seed}", backbone, head, seed, miou, gmacs=1.0 + number + 0.3 * other
                )
    write_run(folder / "going", "resnet18", "unet", 3, 0.4, epochs=2, done=False)
    broken = write_run(folder / "half", "resnet18", "unet", 4, 0.4)
    text = (broken / "results.json").read_text(encoding="utf-8")
    (broken / "results.json").write_text(text[: len(text) // 2], encoding="utf-8")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.txt").write_text("precious", encoding="utf-8")
    write_run(folder / "small", "resnet18", "unet", 0, 0.9, protocol={"image_size": [12, 16]})
    return folder
