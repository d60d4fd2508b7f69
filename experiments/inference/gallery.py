"""A page of the pictures that matter most, each drawn while the network's answer is at hand."""

import base64
import heapq
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.inference.results import ClassificationResult, Result, SegmentationResult, overlay
from experiments.inference.trained import TrainedNetwork
from experiments.run_files.atomic_file import write_atomically

SIDE = 320
"""Longest side in pixels of pictures in the page."""


class Gallery:
    """Keeps the `most` pictures with the lowest key, in memory that does not grow with the split."""

    def __init__(self, most: int, network: TrainedNetwork, ignore_index: int) -> None:
        self.most = most
        self.network = network
        self.ignore_index = ignore_index
        self.added = 0
        self.kept: list[tuple[float, int, str]] = []
        """A heap of negative key, negative place and HTML: its first entry is the next to go."""

    def add(self, key: float, caption: str, truth: Any, results: Sequence[Result]) -> None:
        """Keep a picture if its key is low enough; NaN never is, unless there is room.

        Args:
            caption: plain text.
            truth: classes `(H, W)`, or one class.
            results: what one or two networks made of it.
        """
        self.added += 1
        entry = (-key if np.isfinite(key) else -np.inf, -self.added)
        if len(self.kept) == self.most and (not self.most or entry < self.kept[0][:2]):
            return
        heapq.heappush(self.kept, (*entry, self.figure(caption, truth, results)))
        if len(self.kept) > self.most:
            heapq.heappop(self.kept)

    def figure(self, caption: str, truth: Any, results: Sequence[Result]) -> str:
        image = results[0].image  # what can be shown of it, if it has other bands than RGB
        pictures = [image]
        network = self.network
        if network.task == "segmentation":
            masks = [np.where(truth == self.ignore_index, -1, truth.astype(np.int64))]
            masks += [one.labels for one in results if isinstance(one, SegmentationResult)]
            pictures += [
                np.asarray(overlay(image, one, network.class_names, network.colours, legend=False)) for one in masks
            ]
        else:
            names = [one.name or "no label" for one in results if isinstance(one, ClassificationResult)]
            caption += f": {network.class_names[int(truth)]}, predicted {', '.join(names)}"
        tags = "".join(f'<img alt="" src="data:image/jpeg;base64,{embedded(one)}">' for one in pictures)
        return f"<figure><figcaption>{html.escape(caption)}</figcaption>{tags}</figure>"

    def write(self, path: Path, title: str, columns: str) -> None:
        """Write the page, the lowest key first; it needs no other file."""
        network = self.network
        rows = [figure for *_, figure in sorted(self.kept, key=lambda entry: entry[:2], reverse=True)]
        legend = ""
        if network.task == "segmentation":
            colours = zip(network.class_names, network.colours, strict=True)
            legend = "".join(
                f'<span><i style="background:#{bytes(colour).hex()}"></i>{html.escape(name)}</span>'
                for name, colour in colours
            )
        columns = columns if network.task == "segmentation" else "image"
        write_atomically(
            path, PAGE.format(title=html.escape(title), columns=columns, legend=legend, rows="\n".join(rows))
        )


def embedded(image: np.ndarray) -> str:
    """A picture as a JPEG file of at most `SIDE` pixels, in base64."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }}
figure {{ margin: 0 0 1.2rem; }} figcaption {{ margin-bottom: .3rem; }}
img {{ max-width: 24%; margin-right: .6%; vertical-align: top; }}
.legend span {{ display: inline-block; margin-right: 1rem; }}
.legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .35em; border: 1px solid #555; }}
</style></head><body>
<h1>{title}</h1>
<p>In each row: {columns}.</p>
<p class="legend">{legend}</p>
{rows}
</body></html>
"""
