"""What the page of demo.py shows for a network that detects objects: boxes over the picture, and a bar for each."""

import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.bands import as_rgb
from experiments.inference.demo_page import KEPT, Bar, bars, read_picture
from experiments.inference.detector import detect
from experiments.inference.trained import TrainedNetwork
from experiments.training.draw_boxes import LEAST_SCORE, draw_boxes, shown
from heads.box_head import Detections

MOST_BARS = 20


class BoxAnswers:
    """What the page shows for a picture; see `demo_page.Answers`."""

    refined = None
    least_shown = LEAST_SCORE
    result = "objects"

    def __init__(self, network: TrainedNetwork, longest: int) -> None:
        self.network, self.longest = network, longest
        self.predict = lru_cache(KEPT)(self._predict)

    def __call__(self, path: str | None, confidence: float, crf: bool = False) -> tuple[Image.Image | None, str, str]:
        """The picture with its boxes, a bar for each object as HTML, and a line on the picture; nothing for none.

        Raises:
            ValueError: the file is no picture, or too large.
        """
        if path is None:
            return None, "", ""
        image, found, line = self.predict(path)
        drawn = draw_boxes(as_rgb(image), found, self.network.class_names, self.network.colours, confidence)
        rows = self.rows_of(found, confidence)
        return Image.fromarray(drawn), bars(rows[:MOST_BARS]), f"{len(rows)} objects, {line}"

    def _predict(self, path: str) -> tuple[np.ndarray, Detections, str]:
        image, reduced = read_picture(self.network, Path(path), self.longest)
        start = time.perf_counter()
        found = detect(self.network, image)
        seconds = time.perf_counter() - start
        return image, found, f"{image.shape[1]} x {image.shape[0]} pixels{reduced}, {seconds:.2f} s"

    def rows_of(self, found: Detections, confidence: float) -> list[Bar]:
        """Class, score and colour of each object that is confident enough, the most confident first."""
        kept = shown(found, confidence)
        return [
            (self.network.class_names[label], float(score), tuple(map(int, self.network.colours[label])))
            for label, score in zip(kept["labels"], kept["scores"], strict=True)
        ]
