"""Data sets too large for a file an image: webdataset's tar files, read in place.

A sample is the files of one name: `000123.jpg` (or .jpeg, .webp, .png) with `000123.cls`, a class number as text, or
with `000123.png` (`000123.mask.png` beside a .png image), a mask of class numbers in which 255 is ignored. Names end at
their first dot, as webdataset has it; other files are passed over. `--data-dir` holds `train*.tar`, `val*.tar` and
perhaps `test*.tar`, or folders `train/`, `val/`, `test/` of tar files, and `classes.txt` with a name a line, which
classification may do without. Without a validation split, a fifth of the samples is held out, by a hash of their names.

The tar files are uncompressed, so that where each sample begins can be looked up: their tables of contents are read
once, in parallel, and kept in `~/.cache/graft`. From then on shards are read at any place, which webdataset itself,
reading from one end to the other, cannot do: here a sample is a function of (seed, epoch, index) as everywhere, the
order is a permutation of the whole set and not of a buffer, each sample comes exactly once an epoch over all processes
and workers whatever their number, and a run goes on within an epoch without reading what it has had. The price is a
seek for each sample, which discs that turn do not like.
"""

import io
import json
import os
import tarfile
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import albumentations as A
import numpy as np
from PIL import Image, ImageOps

from datamodules.base import ENOUGH, IGNORE_INDEX, GraftDataModule, Source, Task
from datamodules.class_table import read_classes
from datamodules.errors import DataError
from datamodules.size_rules import SizeRule
from datamodules.files import decode_plain, hold_out, in_threads

SPLITS = ("train", "val", "test")
IMAGES = ("jpg", "jpeg", "webp", "png")
LAYOUT = "--data-dir must name a folder with train*.tar and val*.tar, or train/ and val/ with tar files"


class Place(NamedTuple):
    """A sample in a tar file: where its parts begin, and their bytes."""

    name: str
    image: tuple[int, int]
    target: tuple[int, int]


class ShardSamples:
    """A split of samples in tar files. Arrays, not objects: there may be many millions.

    `least` may be set to the pixels that both sides of an image need to have.
    """

    def __init__(self, shards: list[Path], places: list[tuple[int, Place]], num_classes: int, task: Task) -> None:
        self.shards = shards
        self.shard = np.array([shard for shard, _ in places], np.int32)
        self.parts = np.array([(*place.image, *place.target) for _, place in places], np.int64).reshape(-1, 4)
        self.names = np.array([place.name.encode() for _, place in places], np.bytes_)
        self.num_classes = num_classes
        self.task = task
        self.least: int | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | int, str]:
        shard = self.shards[self.shard[index]]
        name = f"{shard.stem}/{self.names[index].decode()}"
        data, target = self.read(index)
        image = decode_plain(data, self.least)
        if image is None:
            image = np.array(ImageOps.exif_transpose(decode(data, f"{name} in {shard}")).convert("RGB"))
        if self.task == "classification":
            label = class_of(target, f"{name} in {shard}")
            if label >= self.num_classes:
                raise DataError(f"{name} in {shard} is of class {label}; classes.txt ends at {self.num_classes - 1}")
            return image, label, name
        stored = np.array(decode(target, f"the mask of {name} in {shard}"))
        if stored.shape != image.shape[:2]:
            raise DataError(f"the mask of {name} in {shard} is {stored.shape}, its image {image.shape[:2]}")
        wrong = ((stored < 0) | (stored >= self.num_classes)) & (stored != IGNORE_INDEX)
        if wrong.any():
            raise DataError(
                f"the mask of {name} in {shard} has the label value {stored[wrong].min()}; allowed are 0 to "
                f"{self.num_classes - 1} and {IGNORE_INDEX} (ignored); correct it, or complete classes.txt"
            )
        return image, stored.astype(np.uint8), name

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The content of image and target file."""
        with self.shards[self.shard[index]].open("rb") as file:
            start, size, target_start, target_size = (int(number) for number in self.parts[index])
            file.seek(start)
            image = file.read(size)
            file.seek(target_start)
            return image, file.read(target_size)

    def paths(self, index: int) -> tuple[Path, ...]:
        """The shard."""
        return (self.shards[self.shard[index]],)

    def recipe(self, index: int) -> tuple[Any, ...]:
        """Where in the shard, and how it is read."""
        return tuple(self.parts[index].tolist()), self.num_classes, self.task, self.least


class Shards(GraftDataModule):
    """Tar files of images with a class or a mask, at `image_size` (224x224 and 256x256 unless told)."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation")

    def default_size(self) -> tuple[int, int]:
        return (224, 224) if self.task == "classification" else (256, 256)

    def sources(self) -> dict[str, Source]:
        if self.data_dir is None:
            raise DataError(f"--data shards needs --data-dir; {LAYOUT}")
        root = Path(self.data_dir)
        shards = {split: sorted(root.glob(f"{split}*.tar")) or sorted((root / split).glob("*.tar")) for split in SPLITS}
        if not shards["train"]:
            raise DataError(f"{root} holds no train*.tar and no train/*.tar; {LAYOUT}")
        places = {split: self._places(found) for split, found in shards.items() if found}
        table = read_classes(root)
        if table:
            self.class_names = tuple(table.names)
        elif self.task == "classification":
            self.class_names = tuple(map(str, range(1 + self._largest_class(shards["train"], places["train"]))))
        else:
            raise DataError(f"{root / 'classes.txt'} is missing; write the names of the masks' classes into it")
        if "val" not in places:
            names = [f"{shards['train'][shard].stem}/{place.name}" for shard, place in places["train"]]
            places["train"], places["val"] = hold_out(places["train"], names, root)
            shards["val"] = shards["train"]
        sources: dict[str, Source] = {}
        for split in [split for split in SPLITS if split in places]:
            samples = ShardSamples(shards[split], places[split], self.num_classes, self.task)
            samples.least = ENOUGH * max(self.image_size) if self.task == "classification" else None
            sources[split] = samples
        return sources

    def _places(self, shards: list[Path]) -> list[tuple[int, Place]]:
        contents = in_threads("Reading tables of contents", [partial(contents_of, path) for path in shards])
        places = []
        for number, (path, members) in enumerate(zip(shards, contents, strict=True)):
            found = [place for name, files in members.items() if (place := self._place(name, files))]
            if not found:
                target = ".cls" if self.task == "classification" else ".png mask"
                raise DataError(f"{path} holds no image with a {target} of the same name; write it as webdataset does")
            places += [(number, place) for place in found]
        return places

    def _place(self, name: str, files: dict[str, tuple[int, int]]) -> Place | None:
        image = next((suffix for suffix in IMAGES if suffix in files), None)
        mask = "mask.png" if "mask.png" in files else "png" if image != "png" else None
        target = "cls" if self.task == "classification" else mask
        if image is None or target not in files:
            return None
        return Place(name, files[image], files[target])

    def _largest_class(self, shards: list[Path], places: list[tuple[int, Place]]) -> int:
        source = ShardSamples(shards, places, 0, self.task)
        return max(class_of(source.read(i)[1], f"{places[i][1].name}.cls") for i in range(len(source)))

    def size_rule(self) -> SizeRule:
        return SizeRule("stretch", self.image_size) if self.task == "segmentation" else super().size_rule()

    def preparation(self) -> list[A.BasicTransform]:
        return self.size_rule().transforms() if self.task == "segmentation" else []


def contents_of(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Name -> suffix -> (first byte, bytes) of all files in a tar file, from the cache where they are there.

    Raises:
        ValueError: it is no tar file, or a compressed one.
    """
    state = shard.stat()
    key = sha1(f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft" / f"shard-{key}.json"
    try:
        return {
            name: {suffix: (start, size) for suffix, (start, size) in files.items()}
            for name, files in json.loads(kept.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError):
        members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, file = member.name.rpartition("/")
                    stem, _, suffix = file.partition(".")
                    name = f"{folder}/{stem}" if folder else stem
                    members.setdefault(name, {})[suffix.lower()] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard} cannot be read as an uncompressed tar file ({error}); write it again") from None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(members), encoding="utf-8")
        part.replace(kept)
    except OSError:  # it is read again next time
        pass
    return members


def class_of(text: bytes, what: str) -> int:
    """Raises ValueError where the text is no class number."""
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{what} has the class {text[:20]!r}; a .cls file must hold a number of at least 0")
    return label


def decode(data: bytes, what: str) -> Image.Image:
    """Raises ValueError where it is no image."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    except Exception as error:  # decoders raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what} cannot be read ({reason}); write the shard again", "unreadable") from None
