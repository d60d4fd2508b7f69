"""Samples per second out of three loaders, alternated in one run: Graft's, and two that people write themselves.

    python experiments/benchmarks/loader_speed.py --camvid DIR --readme

All three give batches of the same size, normalised and shuffled, after the same augmentation (scale by 0.5 to 2, random
crop with padding, mirror), with the same number of workers. Each repetition starts new loaders with nothing cached,
each in a process of its own: what Graft sets for all of a process must not reach the others. Graft's first epoch
includes what its `setup()` does, which is to read and check all files. Two data sets: CamVid at 360x480, and PNG files
of 2048x1024 made from it, as large as Cityscapes', cropped to 512x1024.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from datamodules import DATAMODULES
from datamodules.node_folder import NODE_FOLDER, let_go, node_folder
from experiments.command_line.progress import with_progress
from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part

Size = tuple[int, int]
FILL = tuple(round(255 * value) for value in IMAGENET_MEAN)
EPOCHS = 3
README = Path(__file__).resolve().parents[2] / "datamodules" / "README.md"


class Data(NamedTuple):
    """A data set, the size of its crops and the images of a batch."""

    title: str
    size: Size
    batch_size: int


DATA = {
    "camvid": Data("CamVid, 360x480", (360, 480), 8),
    "large": Data("2048x1024 PNG, crops of 512x1024", (512, 1024), 4),
}


class TorchvisionReference(Dataset[Any]):
    """torchvision.transforms.v2 on uint8 tensors, as its segmentation reference does it: resize whole, then crop."""

    def __init__(self, pairs: list[tuple[Path, Path]], size: Size) -> None:
        self.pairs = pairs
        self.size = size
        self.after = v2.Compose(
            [
                v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: list(FILL), tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(0.5),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = F.pil_to_tensor(Image.open(self.pairs[index][0]).convert("RGB"))
        mask = F.pil_to_tensor(Image.open(self.pairs[index][1]))
        factor = float(torch.empty(1).uniform_(0.5, 2.0))
        scaled = [int(side * factor) for side in image.shape[1:]]
        image = F.resize(image, scaled, antialias=True)
        mask = F.resize(mask, scaled, interpolation=v2.InterpolationMode.NEAREST)
        image, mask = self.after(tv_tensors.Image(image), tv_tensors.Mask(mask[0]))
        return image, mask


class PlainAlbumentations(Dataset[Any]):
    """OpenCV and one `A.Compose`, as in albumentations' own examples."""

    def __init__(self, pairs: list[tuple[Path, Path]], size: Size) -> None:
        self.pairs = pairs
        self.pipeline = A.Compose(
            [
                A.RandomScale(scale_limit=(-0.5, 1.0), p=1.0),
                A.RandomCrop(*size, pad_if_needed=True, fill=FILL, fill_mask=255),
                A.HorizontalFlip(p=0.5),
                A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.imread(str(self.pairs[index][0]), cv2.IMREAD_COLOR_RGB)
        mask = cv2.imread(str(self.pairs[index][1]), cv2.IMREAD_UNCHANGED)
        out = self.pipeline(image=image, mask=mask)
        return out["image"], out["mask"].long()


def one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


def graft(root: Path, size: Size, batch_size: int, workers: int) -> Iterable[Any]:
    """Graft's loader over a folder laid out as CamVid's, in memory of its own."""
    os.environ.pop(NODE_FOLDER, None)
    data = DATAMODULES["camvid"](
        "segmentation", data_dir=str(root), image_size=size, batch_size=batch_size, workers=workers
    )
    data.setup()
    return data.train_dataloader()


def plain(kind: Callable[..., Dataset[Any]], root: Path, size: Size, batch_size: int, workers: int) -> Iterable[Any]:
    """A DataLoader over one of the datasets above."""
    names = (root / "train.txt").read_text().split()
    images = {path.stem: path for path in (root / "train").iterdir()}
    pairs = [(images[name], root / "trainannot" / f"{name}.png") for name in names]
    return DataLoader(
        kind(pairs, size),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=one_thread,
    )


LOADERS: dict[str, Callable[[Path, Size, int, int], Iterable[Any]]] = {
    "Graft": graft,
    "torchvision's reference transforms": lambda *more: plain(TorchvisionReference, *more),
    "plain albumentations Dataset": lambda *more: plain(PlainAlbumentations, *more),
}


def lay_out(camvid: Path, root: Path, count: int | None) -> Path:
    """CamVid's training images as they are or, where `count` is given, so many enlarged to 2048x1024 PNG files."""
    names = [Path(line.split()[0]).stem for line in (camvid / "train.txt").read_text().splitlines()]
    images = {path.stem: path for path in (camvid / "train").iterdir()}
    for folder in ("train", "trainannot", "val", "valannot"):
        (root / folder).mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in names[:count]:
        image, mask = images[name], camvid / "trainannot" / f"{name}.png"
        if count is None:
            shutil.copy(image, root / "train")
            shutil.copy(mask, root / "trainannot")
            continue
        pixels = np.array(Image.open(image).convert("RGB"))
        large = cv2.resize(pixels, (2048, 1024), interpolation=cv2.INTER_CUBIC)
        # Sensor noise, without which enlarged images would compress, and decode, far better than photographs.
        large = np.clip(large + noise.integers(-3, 4, large.shape), 0, 255).astype(np.uint8)
        labels = cv2.resize(np.array(Image.open(mask)), (2048, 1024), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(large).save(root / "train" / f"{name}.png")
        Image.fromarray(labels).save(root / "trainannot" / f"{name}.png")
    (root / "train.txt").write_text("\n".join(names[:count]))
    (root / "val.txt").write_text(names[0])
    for folder in ("train", "trainannot"):
        path = next((root / folder).glob(f"{names[0]}.*"))
        shutil.copy(path, root / folder.replace("train", "val"))
    return root


def epoch_rates(kind: str, root: Path, size: Size, batch_size: int, workers: int) -> list[float]:
    """Samples per second in each of the first epochs; the first includes making the loader."""
    rates = []
    started = time.perf_counter()
    loader = LOADERS[kind](root, size, batch_size, workers)
    for _ in range(EPOCHS):
        count = sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader)
        now = time.perf_counter()
        rates.append(count / (now - started))
        started = now
    if NODE_FOLDER in os.environ:  # what would remove it is not called at the end of such a process
        let_go(node_folder())
    return rates


def measure(options: argparse.Namespace, kind: str) -> dict[str, list[float]]:
    """Median samples per second of each loader in the first epochs, by turns."""
    size, batch_size = DATA[kind].size, DATA[kind].batch_size
    rates: dict[str, list[list[float]]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        root = lay_out(options.camvid, Path(folder) / kind, options.large if kind == "large" else None)
        for _ in with_progress(range(options.repetitions), options.repetitions, kind):
            for name in LOADERS:
                with ProcessPoolExecutor(1, get_context("fork")) as process:
                    one = process.submit(epoch_rates, name, root, size, batch_size, options.workers)
                    rates[name].append(one.result())
    return {name: [statistics.median(epoch) for epoch in zip(*runs, strict=True)] for name, runs in rates.items()}


def as_markdown(found: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> str:
    """Samples per second of each epoch, and by what factor Graft is faster."""
    about = machine()
    lines = [
        f"Samples per second, {about['processor']}, {about['cores']} cores, {options.workers} workers, medians of "
        f"{options.repetitions} alternated repetitions; in brackets, how many times as fast Graft is.",
        "",
        "| data | loader | first epoch | second | third |",
        "|---|---|--:|--:|--:|",
    ]
    for kind, medians in found.items():
        for name, epochs in medians.items():
            ratios = [ours / its for ours, its in zip(medians["Graft"], epochs, strict=True)]
            cells = [
                f"{rate:.0f}" if name == "Graft" else f"{rate:.0f} ({ratio:.1f})"
                for rate, ratio in zip(epochs, ratios, strict=True)
            ]
            lines.append(f"| {DATA[kind].title if name == 'Graft' else ''} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--large", type=int, default=24, help="images of 2048x1024")
    parser.add_argument("--only", choices=list(DATA), help="one of the two data sets")
    parser.add_argument("--readme", action="store_true", help="write the table into datamodules/README.md")
    options = parser.parse_args()
    found = {kind: measure(options, kind) for kind in DATA if options.only in (None, kind)}
    text = as_markdown(found, options)
    print(text)
    if options.readme:
        replace_part(README, "loader_speed.py", text)


if __name__ == "__main__":
    main()
