"""Names of a user's classes, and the colours that stand for them in masks: `classes.txt` and `classes.csv`."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.base import IGNORE_INDEX, Colour
from datamodules.errors import DataError
from datamodules.files import decode, read_mask

MOST_CLASSES = IGNORE_INDEX
IGNORED_NAMES = ("void", "ignore")
"""Names, in any case, of rows that are no classes: their pixels count for nothing."""


class ColourCoded:
    """Reads masks whose colours are those of a table: the row of each pixel, `(H, W)`.

    Grey and palette masks hold row numbers instead, unless all colours of the table are greys: then they are levels.
    """

    def __init__(self, colours: Sequence[Colour], table: str) -> None:
        self.table = table
        self.levels = all(r == g == b for r, g, b in colours)
        codes = np.array([r << 16 | g << 8 | b for r, g, b in colours], np.int32)
        self.rows = np.argsort(codes).astype(np.uint8)
        self.codes = codes[self.rows]

    def __call__(self, path: Path) -> np.ndarray:
        image = decode(path)
        if image.mode not in ("RGB", "RGBA") and not self.levels:
            return read_mask(path)
        r, g, b = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), -1, 0)
        codes = r << 16 | g << 8 | b
        at = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        unknown = codes[self.codes[at] != codes]
        if unknown.size:
            code = int(unknown[0])
            colour = f"{code >> 16},{code >> 8 & 255},{code & 255}"
            hint = "; JPEG changes colours, use PNG" if path.suffix.lower() in (".jpg", ".jpeg") else ""
            message = f"{path} has the colour {colour}, which {self.table} does not list; add it or correct the mask"
            raise DataError(message + hint, "unknown label")
        return self.rows[at]


class ClassTable(NamedTuple):
    """What a mask of a data set means."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    labels: dict[int, int]
    """Stored value -> class, or 255 = ignore."""
    read: Callable[[Path], np.ndarray]


def class_table(rows: Sequence[tuple[str, Colour | None]], source: str) -> ClassTable:
    """The table of rows (name, colour). Stored values are row numbers; rows that are no classes are ignored."""
    names = tuple(name for name, _ in rows if name.lower() not in IGNORED_NAMES)
    labels = {
        row: names.index(name) if name.lower() not in IGNORED_NAMES else IGNORE_INDEX
        for row, (name, _) in enumerate(rows)
    }
    if not 2 <= len(set(names)) == len(names) <= MOST_CLASSES:
        raise DataError(f"{source} names {len(set(names))} different classes; write 2 to {MOST_CLASSES}, each once")
    coloured = [colour for _, colour in rows if colour is not None]
    if len(coloured) < len(rows):
        return ClassTable(names, None, {IGNORE_INDEX: IGNORE_INDEX} | labels, read_mask)
    if len(set(coloured)) < len(coloured):
        raise DataError(f"{source} gives one colour to two classes; make all colours different")
    colours = tuple(colour for (name, _), colour in zip(rows, coloured, strict=True) if name in names)
    return ClassTable(names, colours, {IGNORE_INDEX: IGNORE_INDEX} | labels, ColourCoded(coloured, source))


def read_classes(root: Path) -> ClassTable | None:
    """The table in `root/classes.txt` (a name a line) or `root/classes.csv` (name or name,r,g,b), if there is one.

    Raises:
        ValueError: the file is not of that form.
    """
    text, table = root / "classes.txt", root / "classes.csv"
    if text.is_file():
        lines = text.read_text(encoding="utf-8-sig").splitlines()
        return class_table([(line.strip(), None) for line in lines if line.strip()], str(text))
    if not table.is_file():
        return None
    rows: list[tuple[str, Colour | None]] = []
    with table.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            try:
                colour = (int(row["r"]), int(row["g"]), int(row["b"])) if "r" in row else None
                if colour and not 0 <= min(colour) <= max(colour) <= 255:
                    raise ValueError
                rows.append((row["name"], colour))
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{table} must begin with the line name or name,r,g,b; {row} does not fit") from None
    return class_table(rows, str(table))
