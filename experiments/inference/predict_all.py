"""Predicts many pictures one after the other, in memory that does not grow, and goes on where it was stopped."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.bands import check_bands
from experiments.command_line.progress import with_progress
from experiments.inference.films import write_films
from experiments.inference.inputs import Input, Inputs
from experiments.inference.manifest import Manifest
from experiments.inference.outputs import COCO_NAME, CSV_NAME, entry_of, files_of, write_coco, write_csv
from experiments.inference.protocol import Predictor
from experiments.inference.trained import TrainedNetwork

if TYPE_CHECKING:  # rasterio is an extra
    from experiments.inference.geotiff import Rasters

READ_AHEAD = 4
"""Pictures that are decoded while the network works."""


def predict_all(
    predictor: Predictor,
    inputs: Inputs,
    out: Path,
    kinds: list[str],
    abstain: float,
    settings: dict[str, Any],
    rasters: "Rasters | None" = None,
) -> list[str]:
    """Write the files of every picture below `out`.

    Args:
        kinds: what is written; see `outputs.Kind`.
        abstain: pixels or pictures whose confidence is below this get no label.
        rasters: predicts georeferenced files; None treats them as pictures.
        settings: what the results depend on; a folder with results of other settings is refused.

    Returns:
        What is wrong with each picture that could not be predicted, one line each.

    Raises:
        ValueError: `out` holds results of other settings.
    """
    manifest = Manifest(out, settings)
    problems = []
    left, total = manifest.unfinished(inputs)
    network = predictor.network
    try:
        for one, image in with_progress(read_ahead(left, network, rasters), total, "pictures"):
            try:
                if isinstance(image, ValueError):
                    raise image
                if image is None:
                    assert rasters is not None
                    entry = rasters.predict(one.path, out / one.stem, kinds, abstain)
                else:
                    result = replace(network.result(predictor(image), image), abstain=abstain)
                    write_files(out / one.stem, files_of(result, kinds))
                    entry = entry_of(result, kinds)
            except ValueError as error:
                problems.append(f"{one.name}: {error}")
                continue
            manifest.add({"input": one.name, "stamp": one.stamp} | entry)
    finally:
        manifest.close()
    if "csv" in kinds:
        write_csv(manifest.entries(), out / CSV_NAME, network.task, network.class_names)
    if "coco" in kinds and network.task == "segmentation":
        write_coco(manifest.entries(), out / COCO_NAME, network.class_names)
    if "film" in kinds:
        problems += write_films(inputs, out, network.class_names, network.colours)
    return problems


def read_ahead(
    inputs: Iterable[Input], network: TrainedNetwork, rasters: "Rasters | None"
) -> Iterator[tuple[Input, np.ndarray | ValueError | None]]:
    """Each picture with its pixels, or with what is wrong with it, in order; a few are decoded in advance.

    A raster comes with None, because it may not fit into memory.
    """

    def read(one: Input) -> np.ndarray | ValueError | None:
        try:
            if rasters is not None and rasters.takes(one):
                return None
            return check_bands(one.read(network.read), network.in_channels, "the picture")
        except ValueError as error:
            return error

    pending: deque[tuple[Input, Future[np.ndarray | ValueError | None]]] = deque()
    with ThreadPoolExecutor(2) as threads:
        for one in inputs:
            pending.append((one, threads.submit(read, one)))
            if len(pending) >= READ_AHEAD:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()


def write_files(stem: Path, files: dict[str, bytes]) -> None:
    """Write the files `STEM + ENDING`, each under another name first, so that none is ever half written."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, content in files.items():
        path = stem.with_name(stem.name + ending)
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)
