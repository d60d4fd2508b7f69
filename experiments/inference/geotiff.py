"""GeoTIFFs in and out: labels of a georeferenced raster, with its coordinate system and transform.

A raster may be larger than the memory. It is read, predicted and written in windows, each with a margin of its
surroundings whose own labels are not used. Pixels without data get no label. Needs rasterio.
"""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from datamodules.bands import RGB, as_rgb, scaled
from experiments.inference.inputs import Frame, Input, is_geotiff
from experiments.inference.label_files import MOST_IN_PALETTE, UNLABELLED, UNLABELLED_16
from experiments.inference.outputs import encoded
from experiments.inference.protocol import Predictor
from experiments.inference.results import overlay

LEAST_WINDOW = 512
"""Side in pixels of windows for networks that take images of any size."""
LONGEST_OVERLAY = 2048
"""Longer side of the overlay in pixels; larger rasters are shown reduced."""
CACHE_MB = 256
"""Memory that GDAL may keep blocks of files in; its own choice is a twentieth of the machine's."""
SECONDS_BETWEEN_LINES = 10.0
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
Span = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """One window along one axis: what is read, and the part of it that is kept, as (start, stop) in pixels."""

    read: Span
    kept: Span


def cuts(length: int, window: int, margin: int, grid: int) -> list[Cut]:
    """Windows that cover an axis.

    Args:
        margin: pixels at both ends of a window that are read and not kept, except at the ends of the axis.
        grid: windows start at multiples of this, the network's largest stride, as a whole image's maps would.

    Raises:
        ValueError: the margins leave nothing to keep.
    """
    if length <= window:
        return [Cut((0, length), (0, length))]
    margin = (margin + grid - 1) // grid * grid
    if (window - 2 * margin) // grid < 1:
        raise ValueError(
            f"a window of {window} pixels has nothing left between margins of {margin}; use a larger --window or a "
            "smaller --overlap"
        )
    last = (length - window) // grid * grid  # where the last window starts; it reaches the end
    found = []
    start = 0
    while start < length:
        first = min(max(0, start - margin), last)
        stop = length if first == last else (first + window - margin) // grid * grid
        found.append(Cut((first, length if first == last else first + window), (start, stop)))
        start = stop
    return found


class Rasters:
    """Predicts rasters with one network.

    Args:
        predictor: its protocol is applied to every window; without `--window`, windows have the size of the training
            images.
        bands: numbers, from 1, of the bands that the network sees; None takes what the file says.

    Raises:
        ValueError: the windows cannot work, see `Predictor`; or the network takes another number of bands.
    """

    def __init__(self, predictor: Predictor, bands: list[int] | None = None) -> None:
        if bands is not None and len(bands) != predictor.network.in_channels:
            raise ValueError(f"--bands names {len(bands)} bands; the network takes {predictor.network.in_channels}")
        rule = predictor.network.size_rule
        side = max(LEAST_WINDOW, *rule.size)
        usual = (side, side) if rule.kind == "own" else rule.size
        self.window = predictor.protocol.window or usual
        planned = Predictor(predictor.network, replace(predictor.protocol, window=self.window))
        self.margin = (planned.overlap + 1) // 2
        self.grid = planned.stride if rule.kind == "own" else 1  # resized windows lie on no common grid
        exact = bool(planned.radius) and rule.kind == "own" and predictor.protocol.crf is None
        self.note = (
            f"GeoTIFFs: windows of {self.window[0]} x {self.window[1]} pixels with {self.margin} around them, "
            f"{'equal' if exact else 'not equal'} to predicting the raster whole"
        )
        self.predict_window = Predictor(predictor.network, replace(predictor.protocol, window=None))
        self.network = predictor.network
        self.bands = bands

    def takes(self, one: Input) -> bool:
        """Whether an input is a file for `predict`; others are read whole."""
        return not isinstance(one, Frame) and is_geotiff(one.path)

    def predict(self, path: Path, stem: Path, kinds: list[str], abstain: float) -> dict[str, Any]:
        """Write the files of a raster, and return its entry of the manifest.

        Args:
            stem: path of the results without ending: .tif for labels, .probabilities.tif, .overlay.jpg.
            kinds: see `outputs.Kind`; a raster has no part in coco.json.

        Raises:
            ValueError: it cannot be read, or it is not clear which bands are colours.
        """
        stem.parent.mkdir(parents=True, exist_ok=True)
        parts = {ending: stem.with_name(f"{stem.name}{ending}.part") for ending in (".tif", ".probabilities.tif")}
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_MB), ExitStack() as files:
                source = files.enter_context(rasterio.open(path))
                labels = files.enter_context(self._create(parts[".tif"], source, 1, self._label_profile()))
                scores = None
                if "probabilities" in kinds:
                    form = {"dtype": "float32", "nodata": np.nan}
                    count = len(self.network.class_names)
                    scores = files.enter_context(self._create(parts[".probabilities.tif"], source, count, form))
                entry = self._fill(source, labels, scores, abstain)
            if "overlay" in kinds:
                self._write_overlay(path, parts[".tif"], stem.with_name(f"{stem.name}.overlay.jpg"))
            for ending, part in parts.items():
                if part.is_file() and (ending != ".tif" or "labels" in kinds):
                    part.replace(stem.with_name(stem.name + ending))
        except RasterioError as error:
            raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
        return entry | ({"regions": []} if "coco" in kinds else {})

    def _fill(self, source: Any, labels: Any, scores: Any, abstain: float) -> dict[str, Any]:
        """Predict all windows into the open files, and return what the manifest keeps."""
        bands = self._bands(source)
        counts = np.zeros(len(self.network.class_names), np.int64)
        valid_pixels, confidence, last_line = 0, 0.0, time.monotonic()
        rows = cuts(source.height, self.window[0], self.margin, self.grid)
        columns = cuts(source.width, self.window[1], self.margin, self.grid)
        for done, (row, column) in enumerate(((row, column) for row in rows for column in columns), 1):
            found = self._window(source, bands, row, column)
            place = window_of(row.kept, column.kept)
            valid = source.dataset_mask(window=place) > 0
            best = found.max(0)
            taken = np.where(valid & (best >= abstain), found.argmax(0), -1)
            labels.write(np.where(taken < 0, labels.nodata, taken).astype(labels.dtypes[0]), 1, window=place)
            if scores is not None:
                scores.write(np.where(valid, found, np.nan).astype(np.float32), window=place)
            counts += np.bincount(taken[taken >= 0], minlength=len(counts))
            valid_pixels += int(valid.sum())
            confidence += float(best[valid].sum(dtype=np.float64))
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                print(f"{Path(source.name).name}  {done}/{len(rows) * len(columns)} windows", flush=True)
        pixels = max(1, valid_pixels)
        shares = {
            name: round(int(count) / pixels, 6)
            for name, count in zip(self.network.class_names, counts, strict=True)
            if count
        }
        size = {"height": source.height, "width": source.width}
        return size | {"confidence": round(confidence / pixels, 6), "shares": shares}

    def _window(self, source: Any, bands: list[int], row: Cut, column: Cut) -> np.ndarray:
        """Probabilities float32 `(C, h, w)` of the part of a window that is kept."""
        shape = (row.kept[1] - row.kept[0], column.kept[1] - column.kept[0])
        place = window_of(row.read, column.read)
        if not source.dataset_mask(window=place).any():
            return np.full((len(self.network.class_names), *shape), 1 / len(self.network.class_names), np.float32)
        pixels = scaled(source.read(bands, window=place), self.network.white)
        found = self.predict_window(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        top, left = row.kept[0] - row.read[0], column.kept[0] - column.read[0]
        return found[:, top : top + shape[0], left : left + shape[1]]

    def _bands(self, source: Any) -> list[int]:
        """The numbers of the bands that the network sees.

        Raises:
            ValueError: the file does not say which they are, or their pixels are no whole numbers of 8 or 16 bits.
        """
        path, count, wanted = source.name, source.count, self.network.in_channels
        if self.bands is not None:
            bands = list(self.bands)
        elif wanted == RGB and set(COLOURS) <= set(source.colorinterp):
            bands = [source.colorinterp.index(colour) + 1 for colour in COLOURS]
        elif wanted == RGB and count == 1:
            bands = [1, 1, 1]
        elif count == wanted:
            bands = list(range(1, count + 1))
        else:
            what = "red, green and blue" if wanted == RGB else f"the {wanted} that the network takes"
            raise ValueError(f"{path} has {count} bands; say which are {what}, as in --bands 3 2 1")
        if max(bands) > count:
            raise ValueError(f"{path} has {count} bands; there is no band {max(bands)} (--bands)")
        kinds = {source.dtypes[band - 1] for band in bands}
        if not kinds <= {"uint8", "uint16"}:
            raise ValueError(f"{path} has {', '.join(sorted(kinds))} pixels; save it with 8 or 16 bits")
        return bands

    def _label_profile(self) -> dict[str, Any]:
        small = len(self.network.class_names) <= MOST_IN_PALETTE
        return {"dtype": "uint8" if small else "uint16", "nodata": UNLABELLED if small else UNLABELLED_16}

    def _create(self, path: Path, source: Any, count: int, form: dict[str, Any]) -> Any:
        """A new GeoTIFF that lies where the source does, open for writing."""
        points, system = source.gcps
        place = {"gcps": points, "crs": system} if points else {"transform": source.transform, "crs": source.crs}
        made = rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=source.height,
            width=source.width,
            count=count,
            compress="deflate",
            tiled=True,
            blockxsize=256,
            blockysize=256,
            bigtiff="if_safer",
            **place,
            **form,
        )
        made.update_tags(classes=json.dumps(list(self.network.class_names), ensure_ascii=False))
        if form["dtype"] == "uint8":
            colours = enumerate(self.network.colours.tolist())
            made.write_colormap(1, {index: (*colour, 255) for index, colour in colours})
        return made

    def _write_overlay(self, path: Path, labels: Path, to: Path) -> None:
        """Write the overlay of a raster, reduced to at most `LONGEST_OVERLAY` pixels."""
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB), rasterio.open(path) as source, rasterio.open(labels) as made:
            factor = min(1.0, LONGEST_OVERLAY / max(source.shape))
            shape = (max(1, round(source.height * factor)), max(1, round(source.width * factor)))
            bands = self._bands(source)
            pixels = source.read(bands, out_shape=(len(bands), *shape))
            image = as_rgb(np.ascontiguousarray(scaled(pixels, self.network.white).transpose(1, 2, 0)))
            found = made.read(1, out_shape=shape).astype(np.int64)
            found[found == made.nodata] = -1
        picture = overlay(image, found, self.network.class_names, self.network.colours, legend=True)
        part = to.with_name(to.name + ".part")
        part.write_bytes(encoded(picture, "JPEG", quality=90))
        part.replace(to)


def window_of(rows: Span, columns: Span) -> Window:
    return Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
