"""Data sets with too many images for one file each: webdataset's tar files, read in place.

A sample is the files of one name: an image `000123.jpg` (or .jpeg, .webp, .png) and its target. The target is
`000123.cls`, a class number as text (with `--loss binary_cross_entropy` any number of them, separated by spaces, commas
or lines), or `000123.png` (`000123.mask.png` beside a .png image), a mask of class numbers in which 255 is ignored.
Names end at their first dot, as in webdataset; other files are skipped. `--data-dir` holds `train*.tar`, `val*.tar`
and, if there is a test split, `test*.tar`, or folders `train/`, `val/`, `test/` of tar files. It also holds
`classes.txt` with one name per line, which is optional for classification. Without a validation split, a fifth of the
samples is held out, chosen by a hash of their names.

The tar files must be uncompressed, because then the position of each sample in them is known. Their tables of contents
are read once, in parallel, together with the classes, and cached in `~/.cache/graft`. After that, samples are read in
any order, whereas webdataset itself reads from the beginning to the end. So a sample is a function of (seed, epoch,
index) as in all other data sets, the order is a permutation of the whole set instead of a buffer, each sample comes
exactly once per epoch over all ranks and workers, and an interrupted run resumes within an epoch without reading
earlier samples again. The cost is one seek per sample, which is slow on spinning disks.
"""

import io
import tarfile
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import albumentations as A
import numpy as np
from PIL import Image, ImageOps

from datamodules.base import IGNORE_INDEX, MIN_DECODED_SIZE_FACTOR, GraftDataModule, Source, Task
from datamodules.cache_folder import cache_folder, read_json, write_json
from datamodules.checking import in_threads
from datamodules.class_table import read_classes
from datamodules.decoding import decode_plain, to_rgb
from datamodules.errors import DataError
from datamodules.pairing import hold_out
from datamodules.size_rules import SizeRule

FORMAT = 3
"""Part of the name of cached tables of contents; to be raised when their layout changes."""
SPLITS = ("train", "val", "test")
IMAGES = ("jpg", "jpeg", "webp", "png")
LAYOUT = "--data-dir must name a folder with train*.tar and val*.tar, or train/ and val/ with tar files"
NO_CLASS = -1
Span = tuple[int, int]
"""First byte and number of bytes of a file in a tar file."""


class Contents(NamedTuple):
    """The table of contents of a tar file, with its classes."""

    files: dict[str, dict[str, Span]]
    """Sample name -> suffix -> where its file is."""
    classes: dict[str, list[int]]
    """Sample name -> the numbers in its .cls file; `NO_CLASS` alone if it holds something else."""


class Place(NamedTuple):
    """Where the parts of a sample are in a tar file, and its classes (none for segmentation)."""

    name: str
    image: Span
    target: Span
    labels: list[int]


class ShardSamples:
    """A split of samples in tar files. Kept in arrays instead of objects, because there may be many millions.

    `min_side` may be set to the number of pixels that both sides of an image need to have.
    """

    def __init__(self, shards: list[Path], places: list[tuple[int, Place]], num_classes: int, task: Task) -> None:
        self.shards = shards
        self.shard = np.array([shard for shard, _ in places], np.int32)
        self.parts = np.array([(*place.image, *place.target) for _, place in places], np.int64).reshape(-1, 4)
        self.names = np.array([place.name.encode() for _, place in places], np.bytes_)
        self.labels = np.array([only(place.labels) for _, place in places], np.int64)
        self.num_classes = num_classes
        self.task = task
        self.min_side: int | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | int, str]:
        target = self.label(index) if self.task == "classification" else self.mask(index)
        data, what = self.read(index, 0), self.described(index)
        image = decode_plain(data, self.min_side)
        if image is None:
            image = to_rgb(ImageOps.exif_transpose(decode(data, what)), what)
        if isinstance(target, np.ndarray) and target.shape != image.shape[:2]:
            raise DataError(f"the mask of {what} is {target.shape}, its image {image.shape[:2]}")
        return image, target, self.name(index)

    def name(self, index: int) -> str:
        """The shard and the name in it."""
        return f"{self.shards[self.shard[index]].stem}/{self.names[index].decode()}"

    def described(self, index: int) -> str:
        """The sample, for error messages."""
        return f"{self.name(index)} in {self.shards[self.shard[index]]}"

    def label(self, index: int) -> int:
        """The class of an image."""
        label = int(self.labels[index])
        if label == NO_CLASS:
            text = self.read(index, 2)[:20]
            raise DataError(
                f"{self.described(index)} has the class {text!r}; a .cls file must hold a number of at least 0, or "
                "several for --loss binary_cross_entropy"
            )
        if label >= self.num_classes:
            raise DataError(f"{self.described(index)} is of class {label}; classes.txt ends at {self.num_classes - 1}")
        return label

    def mask(self, index: int) -> np.ndarray:
        """Classes uint8 `(H, W)`, 255 = ignore."""
        what = f"the mask of {self.described(index)}"
        stored = np.array(decode(self.read(index, 2), what))
        wrong = ((stored < 0) | (stored >= self.num_classes)) & (stored != IGNORE_INDEX)
        if wrong.any():
            raise DataError(
                f"{what} has the label value {stored[wrong].min()}; allowed are 0 to {self.num_classes - 1} and "
                f"{IGNORE_INDEX} (ignored); correct it, or complete classes.txt"
            )
        return stored.astype(np.uint8)

    def read(self, index: int, part: int) -> bytes:
        """The content of the image file (`part` 0) or the target file (`part` 2)."""
        start, size = (int(number) for number in self.parts[index, part : part + 2])
        with self.shards[self.shard[index]].open("rb") as file:
            file.seek(start)
            return file.read(size)

    def paths(self, index: int) -> tuple[Path, ...]:
        """The shard."""
        return (self.shards[self.shard[index]],)

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        """The position in the shard, and how it is read."""
        return tuple(self.parts[index].tolist()), self.num_classes, self.task, self.min_side

    def class_labels(self) -> np.ndarray | None:
        """The class of each sample, without reading an image; None for segmentation."""
        return self.labels[self.labels != NO_CLASS] if self.task == "classification" else None


class ShardSamplesOfSeveralLabels(ShardSamples):
    """A split whose samples have any number of classes; see `SourceOfSeveralLabels`."""

    def __init__(self, shards: list[Path], places: list[tuple[int, Place]], num_classes: int, task: Task) -> None:
        super().__init__(shards, places, num_classes, task)
        self.labels = np.array([label for _, place in places for label in place.labels], np.int64)
        self.ends = np.cumsum([len(place.labels) for _, place in places])

    def label(self, index: int) -> int:
        """The sample's own number, after its classes were checked."""
        for label in self.classes_of(index):
            if label == NO_CLASS:
                text = self.read(index, 2)[:20]
                raise DataError(
                    f"{self.described(index)} has the classes {text!r}; a .cls file must hold numbers of at least 0"
                )
            if label >= self.num_classes:
                raise DataError(
                    f"{self.described(index)} is of class {label}; classes.txt ends at {self.num_classes - 1}"
                )
        return index

    def classes_of(self, index: int) -> np.ndarray:
        return self.labels[self.ends[index - 1] if index else 0 : self.ends[index]]

    def labels_of(self, number: int) -> np.ndarray:
        labels = np.zeros(self.num_classes, np.uint8)
        labels[self.classes_of(number)] = 1
        return labels

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        """The cached target is the sample's number, so that it belongs to the key."""
        return index, *super().decoding_key(index)


class Shards(GraftDataModule):
    """Tar files of images with a class or a mask; `image_size` is 224x224 or 256x256 by default."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation")
    takes_several_labels = True

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
            largest = max((label for _, place in places["train"] for label in place.labels), default=0)
            self.class_names = tuple(map(str, range(max(1, 1 + largest))))
        else:
            raise DataError(f"{root / 'classes.txt'} is missing; write the names of the masks' classes into it")
        if "val" not in places:
            names = [f"{shards['train'][shard].stem}/{place.name}" for shard, place in places["train"]]
            places["train"], places["val"] = hold_out(places["train"], names, root)
            shards["val"] = shards["train"]
        sources: dict[str, Source] = {}
        kind = ShardSamplesOfSeveralLabels if self.several_labels else ShardSamples
        for split in [split for split in SPLITS if split in places]:
            samples = kind(shards[split], places[split], self.num_classes, self.task)
            samples.min_side = MIN_DECODED_SIZE_FACTOR * max(self.image_size) if self.task == "classification" else None
            sources[split] = samples
        return sources

    def _places(self, shards: list[Path]) -> list[tuple[int, Place]]:
        """The samples of a split, each with the number of its shard."""
        tables = in_threads("Reading tables of contents", [partial(contents_of, path) for path in shards])
        places = []
        for number, (path, contents) in enumerate(zip(shards, tables, strict=True)):
            found = [place for name in contents.files if (place := self._place(name, contents))]
            if not found:
                target = ".cls" if self.task == "classification" else ".png mask"
                raise DataError(f"{path} holds no image with a {target} of the same name; write it as webdataset does")
            places += [(number, place) for place in found]
        return places

    def _place(self, name: str, contents: Contents) -> Place | None:
        """A sample; None if it has no image or no target for the task."""
        files = contents.files[name]
        image = next((suffix for suffix in IMAGES if suffix in files), None)
        mask = "mask.png" if "mask.png" in files else "png" if image != "png" else None
        target = "cls" if self.task == "classification" else mask
        if image is None or target not in files:
            return None
        return Place(name, files[image], files[target], contents.classes[name] if target == "cls" else [])

    def size_rule(self) -> SizeRule:
        return SizeRule("stretch", self.image_size) if self.task == "segmentation" else super().size_rule()

    def preparation(self) -> list[A.BasicTransform]:
        return self.size_rule().transforms() if self.task == "segmentation" else []


def contents_of(shard: Path) -> Contents:
    """The table of contents of a tar file, from the cache if it is there.

    Raises:
        ValueError: it is no tar file, or a compressed one.
    """
    state, folder = shard.stat(), cache_folder()
    if folder is None:
        return read_contents(shard)
    key = sha1(f"{FORMAT} {shard.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    file = folder / f"shard-{key}.json"
    kept = read_json(file)
    if kept is None:
        contents = read_contents(shard)
        write_json(file, contents)
        return contents
    files, classes = kept
    spans = {name: {suffix: (start, size) for suffix, (start, size) in one.items()} for name, one in files.items()}
    return Contents(spans, classes)


def read_contents(shard: Path) -> Contents:
    """Read the headers of all files in a tar file and the content of its .cls files."""
    contents = Contents({}, {})
    try:
        with tarfile.open(shard, "r:") as tar, shard.open("rb") as file:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, rest = member.name.rpartition("/")
                stem, _, suffix = rest.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                contents.files.setdefault(name, {})[suffix.lower()] = (member.offset_data, member.size)
                if suffix.lower() == "cls":
                    file.seek(member.offset_data)
                    contents.classes[name] = classes_of(file.read(member.size))
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard} cannot be read as an uncompressed tar file ({error}); write it again") from None
    return contents


def classes_of(text: bytes) -> list[int]:
    """The class numbers in a .cls file; `NO_CLASS` alone if something in it is no number of at least 0."""
    try:
        labels = [int(number) for number in text.replace(b",", b" ").split()]
    except ValueError:
        return [NO_CLASS]
    return list(dict.fromkeys(labels)) if all(0 <= label < 1 << 31 for label in labels) else [NO_CLASS]


def only(labels: list[int]) -> int:
    """The only label; `NO_CLASS` if there is none or more than one."""
    return labels[0] if len(labels) == 1 else NO_CLASS


def decode(data: bytes, what: str) -> Image.Image:
    """The whole image, in the mode of the file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    except Exception as error:  # decoders raise all kinds of exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what} cannot be read ({reason}); write the shard again", "unreadable") from None
