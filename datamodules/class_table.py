"""The names of a user's classes, and the values or colours that stand for them in masks.

Read are, in the data folder and the first that is there:

- `classes.txt`, `class_names.txt` (labelme2voc): a name a line, in the order of the labels in the masks;
- `classes.csv`, `class_dict.csv`, `_classes.csv` (Roboflow): a header with `name` and, if there are any, `value` (the
  label in the masks, otherwise the number of the row from 0) and `r`, `g`, `b`;
- `labelmap.txt` (CVAT): `name:r,g,b::` a line.

Cells are separated by commas, semicolons or tabs. The text is UTF-8, UTF-16 with a byte order mark, or Latin-1.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.collate import IGNORE_INDEX
from datamodules.decoding import decode, read_mask
from datamodules.errors import DataError
from datamodules.palette import Colour

MOST_CLASSES = IGNORE_INDEX
MOST_VALUE = 65_535
IGNORED_NAMES = ("void", "ignore", "__ignore__")
"""Names, in any case, of rows that are no classes: their pixels count for nothing."""
LISTS = ("classes.txt", "class_names.txt")
TABLES = ("classes.csv", "class_dict.csv", "_classes.csv")
LABELMAP = "labelmap.txt"
HEADERS = {
    "name": ("name", "class", "class name", "class_name", "label"),
    "value": ("value", "pixel value", "id", "index", "label id"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "hex": ("color", "colour", "hex", "rgb"),
}
"""What the columns may be called, in any case."""
HEX = re.compile("#?([0-9a-fA-F]{6})")
FORM = "must begin with the line name or name,r,g,b or name,color (as #ff0000) or value,name"


class Row(NamedTuple):
    """A line of a table."""

    name: str
    colour: Colour | None = None
    value: int | None = None


class ColourCoded:
    """Reads colour-coded masks: returns, per pixel, the value of the row of its colour, `(H, W)`.

    Grey masks are taken to hold the values themselves, unless all colours of the table are grey; then their levels are
    looked up like colours. Palette masks are read by colour if all colours that they use are in the table (255 may have
    any), because programs reorder palettes; otherwise their indices are the values.
    """

    def __init__(self, colours: Sequence[Colour], table: str, values: Sequence[int]) -> None:
        self.table = table
        self.levels = all(r == g == b for r, g, b in colours)
        codes = np.array([r << 16 | g << 8 | b for r, g, b in colours], np.int32)
        order = np.argsort(codes)
        self.codes = codes[order]
        self.values = np.array(values, np.uint8 if max(values) <= IGNORE_INDEX else np.uint16)[order]

    def __call__(self, path: Path) -> np.ndarray:
        image = decode(path)
        if image.mode == "P" and not self.levels:
            by_index = self.of_palette(image)
            return by_index[np.array(image)] if by_index is not None else read_mask(path)
        if image.mode not in ("RGB", "RGBA") and not self.levels:
            return read_mask(path)
        r, g, b = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), -1, 0)
        codes = r << 16 | g << 8 | b
        at = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        unknown = codes[self.codes[at] != codes]
        if unknown.size:
            code = int(unknown[0])
            colour = f"{code >> 16},{code >> 8 & 255},{code & 255}"
            lossy = image.format in ("JPEG", "MPO", "WEBP")
            hint = f"; {image.format} compression changes colours, save masks as PNG" if lossy else ""
            message = f"{path} has the colour {colour}, which {self.table} does not list; add it or correct the mask"
            raise DataError(message + hint, "unknown label")
        return self.values[at]

    def of_palette(self, image: Image.Image) -> np.ndarray | None:
        """The value of each index of a palette mask, or None if it uses a colour that is not in the table."""
        used = np.flatnonzero(np.bincount(np.array(image).ravel(), minlength=256))
        palette = np.zeros((256, 3), np.int32)
        stored = np.array(image.getpalette("RGB") or [], np.int32).reshape(-1, 3)
        palette[: len(stored)] = stored
        codes = palette[:, 0] << 16 | palette[:, 1] << 8 | palette[:, 2]
        at = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        listed = self.codes[at] == codes
        if not listed[used[used != IGNORE_INDEX]].all():
            return None
        return np.where(listed, self.values[at], IGNORE_INDEX).astype(self.values.dtype)


class ClassTable(NamedTuple):
    """What a mask of a data set means."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    labels: dict[int, int]
    """Stored value -> class, or 255 = ignore."""
    read: Callable[[Path], np.ndarray]
    source: str
    """Where the table is from, for messages."""
    listed: frozenset[int]
    """The stored values that the table itself names."""


def class_table(rows: Sequence[Row], source: str) -> ClassTable:
    """The table of some rows; those that are no classes are ignored. Rows with a value may share a name.

    Raises:
        ValueError: there are fewer than 2 or more than 255 classes, or a name, value or colour stands twice.
    """
    values = [number if row.value is None else row.value for number, row in enumerate(rows)]
    classes = [row.name for row in rows if row.name.lower() not in IGNORED_NAMES]
    names = tuple(dict.fromkeys(classes))
    explicit = any(row.value is not None for row in rows)
    if not 2 <= len(names) <= MOST_CLASSES or (len(names) < len(classes) and not explicit):
        raise DataError(f"{source} names {len(names)} different classes; write 2 to {MOST_CLASSES}, each once")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise DataError(f"{source} gives the value {twice} twice; make all values different")
    labels = {IGNORE_INDEX: IGNORE_INDEX} | {
        value: names.index(row.name) if row.name in names else IGNORE_INDEX
        for value, row in zip(values, rows, strict=True)
    }
    coloured = [row.colour for row in rows if row.colour is not None]
    if len(coloured) < len(rows):
        return ClassTable(names, None, labels, read_mask, source, frozenset(values))
    if len(set(coloured)) < len(coloured):
        raise DataError(f"{source} gives one colour to two classes; make all colours different")
    first = {row.name: row.colour for row in reversed(rows)}
    colours = tuple(colour for name in names if (colour := first[name]) is not None)
    read = ColourCoded(coloured, source, values)
    return ClassTable(names, colours, labels, read, source, frozenset(values))


def read_classes(root: Path) -> ClassTable | None:
    """The table of the classes in the folder, if there is one.

    Raises:
        ValueError: the file is not of its form; the message names file and line.
    """
    for name in (*LISTS, *TABLES, LABELMAP):
        path = root / name
        if path.is_file():
            lines = read_text(path).splitlines()
            if name == LABELMAP:
                rows = labelmap_rows(path, lines)
            elif name in LISTS and not is_table(lines):
                rows = [Row(line.strip()) for line in lines if line.strip()]
            else:
                rows = table_rows(path, lines)
            return class_table(rows, str(path))
    return None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, in UTF-16 with a byte order mark, or else in Latin-1."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def columns_of(cells: Sequence[str]) -> dict[str, int]:
    """Which column holds what, by the cells of a header."""
    found = [cell.strip().lower() for cell in cells]
    return {column: found.index(name) for column, names in HEADERS.items() for name in names[::-1] if name in found}


def delimiter_of(line: str) -> str:
    """The most frequent of comma, semicolon and tab."""
    return max(",;\t", key=line.count)


def is_table(lines: Sequence[str]) -> bool:
    """Whether a list of names is a table after all, by its first line."""
    cells = lines[0].split(delimiter_of(lines[0])) if lines else []
    return len(cells) > 1 and {"name"} < columns_of(cells).keys()


def table_rows(path: Path, lines: Sequence[str]) -> list[Row]:
    """The rows of a table with a header.

    Raises:
        ValueError: there is no such header, or a line does not fit it.
    """
    reader = csv.reader(lines, delimiter=delimiter_of(lines[0] if lines else ""), skipinitialspace=True)
    columns = columns_of(next(reader, []))
    if "name" not in columns:
        raise DataError(f"{path}, line 1: {lines[0] if lines else 'the file is empty'!r}; the file {FORM}")
    colours = [columns[channel] for channel in "rgb" if channel in columns]
    if len(colours) not in (0, 3):
        raise DataError(f"{path}, line 1: {lines[0]!r} names some of r, g, b only; the file {FORM}")
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        try:
            r_g_b = [int(cells[column]) for column in colours]
            if "hex" in columns and not colours:
                r_g_b = list(bytes.fromhex(HEX.fullmatch(cells[columns["hex"]].strip())[1]))  # type: ignore[index]
            value = int(cells[columns["value"]]) if "value" in columns else None
            if r_g_b and not 0 <= min(r_g_b) <= max(r_g_b) <= 255:
                raise ValueError
            if value is not None and not 0 <= value <= MOST_VALUE:
                raise ValueError
            name = cells[columns["name"]].strip()
        except (IndexError, TypeError, ValueError):
            line = lines[reader.line_num - 1]
            raise DataError(f"{path}, line {reader.line_num}: {line!r} does not fit; the file {FORM}") from None
        rows.append(Row(name, (r_g_b[0], r_g_b[1], r_g_b[2]) if r_g_b else None, value))
    return rows


def labelmap_rows(path: Path, lines: Sequence[str]) -> list[Row]:
    """The rows of CVAT's `name:r,g,b:parts:actions`.

    Raises:
        ValueError: a line is not of that form.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour, *_ = line.rsplit(":", 3)
            r, g, b = (int(level) for level in colour.split(","))
            if not 0 <= min(r, g, b) <= max(r, g, b) <= 255:
                raise ValueError
        except ValueError:
            raise DataError(f"{path}, line {number}: {line!r} does not fit; write name:r,g,b:: as CVAT does") from None
        rows.append(Row(name.strip(), (r, g, b)))
    return rows
