"""Finds images, masks and class folders on disk, and pairs images with masks by name."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple, TypeVar

from datamodules.decoding import IMAGE_SUFFIXES, is_image
from datamodules.errors import DataError

T = TypeVar("T")

HELD_OUT = 0.2
"""Fraction of the training images that is held out if a data set has no validation split."""
JUNK_FOLDERS = ("__macosx", "@eadir")
JUNK_FILES = ("thumbs.db", "desktop.ini")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
"""Line breaks and other control characters, and bytes that are not UTF-8."""


def hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system and not to the user: .DS_Store, ._x, .ipynb_checkpoints."""
    return name.startswith(".") or name.lower() in (*JUNK_FOLDERS, *JUNK_FILES)


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not hidden(path.name))


def walk(folder: Path, passed_over: Counter[str], *, deep: bool = True) -> Iterator[Path]:
    """The image files in `folder` and, if `deep`, below it; counts all other files by suffix in `passed_over`.

    Hidden files and folders are left out without being counted. Linked folders are counted and not entered. Files
    without a suffix are images if they begin like one.

    Raises:
        ValueError: the name of an image has a line break or bytes that are not UTF-8.
    """
    for here, below, files in os.walk(folder):
        if UNPRINTABLE.search(os.path.relpath(here, folder)):
            raise DataError(f"{folder} holds a folder named {os.path.relpath(here, folder)!a}; rename it")
        visible = [name for name in below if not hidden(name)]
        linked = [name for name in visible if os.path.islink(os.path.join(here, name))]
        passed_over.update({"linked folders": len(linked)} if linked and deep else {})
        below[:] = [name for name in visible if name not in linked] if deep else []
        for name in files:
            if hidden(name):
                continue
            path = Path(here, name)
            suffix = path.suffix.lower()
            if not (suffix in IMAGE_SUFFIXES or (not suffix and is_image(path))):
                passed_over[ascii(suffix).strip("'") or "without suffix"] += 1
                continue
            if UNPRINTABLE.search(name):
                raise DataError(f"{folder} holds a file named {name!a}; rename it without line breaks, in UTF-8")
            yield path


def kinds(passed_over: Counter[str]) -> str:
    """The counts in words, the most frequent first: "35 .heic, 2 without suffix"."""
    text = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common())
    unread = [suffix for suffix in (".heic", ".heif") if suffix in passed_over]
    return f"{text} (pip install pillow-heif to read {unread[0]})" if unread else text


def list_images(folder: Path, passed_over: Counter[str] | None = None) -> dict[str, Path]:
    """All images under `folder`, sorted, by their path in it without suffix.

    Files that are no images are counted by suffix in `passed_over`.

    Raises:
        ValueError: there is no such folder or no image in it, or two images differ in their suffix only.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; check --data-dir and the layout")
    others: Counter[str] = Counter()
    images: dict[str, Path] = {}
    for path in sorted(walk(folder, others)):
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in images:
            raise DataError(f"{images[key]} and {path} differ in their suffix only; keep one of them")
        images[key] = path
    if not images:
        holds = f"{kinds(others)} and no images" if others else "no images"
        raise DataError(f"{folder} holds {holds} ({', '.join(sorted(IMAGE_SUFFIXES))}); check --data-dir")
    if passed_over is not None:
        passed_over.update(others)
    return images


def list_classes(tree: Path, passed_over: Counter[str] | None = None) -> dict[str, list[Path]]:
    """The images in each class folder of `tree`, both sorted by name."""
    return {folder.name: list(list_images(folder, passed_over).values()) for folder in folders_in(tree)}


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


def pair(
    images: Path, masks: Path, mask_suffix: str | None = None, passed_over: Counter[str] | None = None
) -> dict[str, Pair]:
    """Pairs an image `a/b.jpg` under `images` with the mask `a/b.png` under `masks`, or `a/b{mask_suffix}.png`.

    If no name is in both folders, those are tried that remain without what all names of a folder begin or end with,
    such as "_mask".

    Raises:
        ValueError: an image has no mask, or the other way round.
    """
    found, labels = list_images(images, passed_over), list_images(masks, passed_over)
    if mask_suffix is not None:
        ending = {key.removesuffix(mask_suffix): path for key, path in labels.items() if key.endswith(mask_suffix)}
        if not ending:
            raise DataError(f"--mask-suffix {mask_suffix}: no name in {masks} ends so, such as {example(labels)}")
        if passed_over is not None and len(ending) < len(labels):
            passed_over[f"masks without {mask_suffix}"] += len(labels) - len(ending)
        labels = ending
    elif not found.keys() & labels.keys():
        return pair_by_core(found, labels, images, masks)
    for key, path in found.items():
        if key not in labels:
            raise DataError(f"{path} has no mask; add {masks / key}{mask_suffix or ''}.png or remove the image")
    for key, path in labels.items():
        if key not in found:
            raise DataError(f"{path} has no image; add one named {key} to {images} or remove the mask")
    return {key: Pair(key, path, labels[key]) for key, path in found.items()}


def pair_by_core(found: dict[str, Path], labels: dict[str, Path], images: Path, masks: Path) -> dict[str, Pair]:
    """Pairs names that differ by the same beginning and ending throughout: `07.jpg` and `07_mask.png`.

    Raises:
        ValueError: they differ in another way.
    """
    by_core = dict(zip(cores(list(labels)), labels.values(), strict=True))
    for names in (list(found), cores(list(found))):
        if len(set(names)) == len(names) and set(names) == by_core.keys():
            return {key: Pair(key, path, by_core[name]) for name, (key, path) in zip(names, found.items(), strict=True)}
    raise DataError(
        f"{images} and {masks} have no name in common ({example(found)}; {example(labels)}); give an image and its "
        "mask one name, or say by --mask-suffix what the names of all masks add"
    )


def cores(names: list[str]) -> list[str]:
    """The names without what all of them begin and end with, cut at "_", "-", "." or a space."""
    if len(names) < 2:
        word = r"[_\-. ](mask|masks|label|labels|gt|seg|annotation)$"
        return [re.sub(word, "", name, flags=re.IGNORECASE) for name in names]
    first = shared_start(names)
    last = shared_start([name[::-1] for name in names])[::-1]
    start = max((at.end() for at in re.finditer(r"[_\-. ]", first)), default=0)
    end = re.search(r"[_\-. ]", last)
    taken = len(last) - end.start() if end else 0
    return [name[start : len(name) - taken] for name in names]


def shared_start(names: list[str]) -> str:
    """The characters that all names begin with."""
    low, high = min(names), max(names)
    return next((low[:end] for end in range(len(low), 0, -1) if high.startswith(low[:end])), "")


def example(paths: dict[str, Path]) -> str:
    """The names of a few files, for a message."""
    names = [path.name for path in paths.values()]
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def pair_listed(listing: Path, images: Path, masks: Path, suffixes: tuple[str, str] = (".jpg", ".png")) -> list[Pair]:
    """The pairs whose names a file lists, one a line."""
    return [Pair(name, images / f"{name}{suffixes[0]}", masks / f"{name}{suffixes[1]}") for name in read_lines(listing)]


def read_lines(path: Path) -> list[str]:
    """The first word of each line.

    Raises:
        ValueError: there is no such file, or nothing in it.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; check --data-dir and the layout")
    return [line.split()[0] for _, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers and without spaces around them.

    Raises:
        ValueError: the file cannot be read as text, or holds nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8 ({error})") from None
    found = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path} is empty; write the name of an image on each line")
    return found


def hold_out(items: list[T], names: Sequence[str], where: Path) -> tuple[list[T], list[T]]:
    """Splits off a fifth of the items, at least one: those whose names have the lowest hashes.

    The choice depends on the names alone. Adding items may move others between the two parts; the fingerprint of the
    data module shows that.
    """
    if len(items) < 2:
        raise DataError(f"{where} holds 1 image, too few to hold one out for validation; add images or a val/ folder")
    by_hash = sorted(range(len(items)), key=lambda i: sha1(names[i].encode()).digest())
    held = set(by_hash[: max(1, round(HELD_OUT * len(items)))])
    return [items[i] for i in range(len(items)) if i not in held], [items[i] for i in sorted(held)]
