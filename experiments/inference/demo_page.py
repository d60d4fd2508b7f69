"""The page of demo.py, made with Gradio: a picture goes in, its labels come out. Only this machine can reach it.

Gradio's reports to its makers are off, uploads go to a temporary folder that is removed at the end, and the page loads
nothing from other servers.
"""

import html
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from datamodules.errors import DataError
from experiments.command_line.process import RunError
from experiments.inference.protocol import Predictor
from experiments.inference.results import ClassificationResult, Result
from experiments.inference.trained import TrainedNetwork

MOST_MEGAPIXELS = 60
"""Larger pictures are refused before they are decoded: a small file can hold a picture that fills the memory."""
LEAST_SHOWN = 480
"""Smaller pictures are enlarged for the page, in pixels of the longer side."""
KEPT = 4
"""Predictions that are kept, so that the slider does not run the network again."""
TOP = 8
"""Bars of a classifier."""
NO_LABEL = (128, 128, 128)
STYLE = """
.bars {display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 10px; align-items: center}
.bars .track {background: var(--background-fill-secondary); border-radius: 3px; height: 14px}
.bars .bar {height: 14px; border-radius: 3px; min-width: 1px; border: 1px solid rgba(128, 128, 128, .5)}
.bars .value {text-align: right; font-variant-numeric: tabular-nums}
"""


class AnyAnswers(Protocol):
    """What the page asks: `Answers`, or `demo_boxes.BoxAnswers`."""

    least_shown: float
    """Least confidence when the page opens."""
    result: str
    """What the page calls the result."""

    @property
    def refined(self) -> object | None:
        """None if there is no CRF to switch on."""

    def __call__(self, path: str | None, confidence: float, crf: bool = False) -> tuple[Image.Image | None, str, str]:
        """The picture of the result, its bars as HTML, and a line; nothing for no picture."""


class Answers:
    """What the page shows for a picture.

    Args:
        plain: predicts without a CRF.
        refined: predicts with a CRF; None for classifiers.
        longest: pictures whose longer side has more pixels are reduced to that.
    """

    least_shown = 0.0
    result = "labels"

    def __init__(self, plain: Predictor, refined: Predictor | None, longest: int) -> None:
        self.plain, self.refined, self.longest = plain, refined, longest
        self.predict = lru_cache(KEPT)(self._predict)

    def __call__(self, path: str | None, confidence: float, crf: bool = False) -> tuple[Image.Image | None, str, str]:
        """The overlay, the bars as HTML, and a line on the picture; nothing for no picture.

        Raises:
            ValueError: the file is no picture, or too large.
        """
        if path is None:
            return None, "", ""
        result, line = self.predict(path, crf)
        result = replace(result, abstain=confidence)
        return overlay_of(result), bars(rows_of(result)), line

    def _predict(self, path: str, crf: bool) -> tuple[Result, str]:
        image, reduced = read_picture(self.plain.network, Path(path), self.longest)
        predictor = self.refined if crf and self.refined is not None else self.plain
        start = time.perf_counter()
        result = predictor.network.result(predictor(image), image)
        seconds = time.perf_counter() - start
        mean = float(np.mean(result.scores))
        height, width = image.shape[:2]
        return result, f"{width} x {height} pixels{reduced}, mean confidence {mean:.2f}, {seconds:.2f} s"


def read_picture(network: TrainedNetwork, path: Path, longest: int) -> tuple[np.ndarray, str]:
    """A picture uint8 `(H, W, 3)`, reduced to a longer side of `longest` pixels, and a note if it was.

    Raises:
        ValueError: the file is no picture, or too large.
    """
    try:
        with Image.open(path) as header:
            pixels = header.width * header.height
    except Exception:  # decoders raise what they like; reading it says what is wrong
        pixels = 0
    if pixels > MOST_MEGAPIXELS * 1e6:
        raise ValueError(f"{path.name} has {pixels / 1e6:.0f} megapixels; this page takes {MOST_MEGAPIXELS}")
    try:
        image = network.read(path)
    except DataError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image, ""
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    before = f"{image.shape[1]} x {image.shape[0]}"
    smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], image.shape[2])
    return smaller, f" (reduced from {before}; see --max-side)"


def overlay_of(result: Result) -> Image.Image:
    """The overlay, large enough to be looked at; a classifier's has no text, because the bars stand beside it."""
    if isinstance(result, ClassificationResult):
        return Image.fromarray(result.image)
    factor = max(1, round(LEAST_SHOWN / max(result.image.shape[:2])))
    if factor == 1:
        return result.overlay()
    image = result.image.repeat(factor, 0).repeat(factor, 1)
    probabilities = result.probabilities.repeat(factor, 1).repeat(factor, 2)
    return replace(result, image=image, probabilities=probabilities).overlay()


Bar = tuple[str, float, tuple[int, ...]]
"""Name, fraction in [0, 1] and RGB."""


def rows_of(result: Result) -> list[Bar]:
    """The bars: the likely classes, or the shares of the pixels by class."""
    if isinstance(result, ClassificationResult):
        shown: list[Bar] = [(name, value, (70, 120, 200)) for name, value in result.top(TOP)]
        return shown if result.labels >= 0 else [("no label: below the confidence", 0.0, NO_LABEL), *shown]
    shares = sorted(result.shares.items(), key=lambda pair: -pair[1])
    colours = {name: tuple(map(int, colour)) for name, colour in zip(result.class_names, result.colours, strict=True)}
    rows: list[Bar] = [(name, value, colours[name]) for name, value in shares]
    left = float((result.labels < 0).mean())
    return [*rows, ("no label", left, NO_LABEL)] if left else rows


def bars(rows: list[Bar]) -> str:
    """Horizontal bars as HTML. Names come from the data and are escaped."""
    cells = [
        f'<span>{html.escape(name)}</span><div class="track"><div class="bar" style="width: {100 * value:.2f}%; '
        f'background: rgb{colour}"></div></div><span class="value">{100 * value:.1f} %</span>'
        for name, value, colour in rows
    ]
    return f'<div class="bars">{"".join(cells)}</div>'


def serve(answers: AnyAnswers, title: str, port: int, megabytes: int, ready: Callable[[str], None]) -> None:
    """Serve the page on 127.0.0.1 until an interrupt.

    Args:
        megabytes: larger uploads are refused.
        ready: called with the page's address once it can be opened.

    Raises:
        RunError: the page cannot be served on the port.
    """
    with tempfile.TemporaryDirectory(prefix="graft-demo-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
        # Gradio asks itself whether it is up, which must not go through a proxy.
        os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1")))
        import gradio

        page = build_page(answers, title)
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                max_file_size=f"{megabytes}mb",
                quiet=True,
                ssr_mode=False,
                footer_links=[],
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=STYLE,
            )
        except OSError as error:
            raise RunError(f"--port {port}: {' '.join(str(error).split())}") from None
        try:
            ready(address)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def build_page(answers: AnyAnswers, title: str) -> "gradio.Blocks":  # type: ignore[name-defined]  # noqa: F821
    """The page: picture and settings on the left, what the network says on the right."""
    import gradio

    def answer(path: str | None, confidence: float, crf: bool = False) -> tuple[Image.Image | None, str, str]:
        try:
            return answers(path, confidence, crf)
        except ValueError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"## {title}")
        with gradio.Row():
            with gradio.Column():
                picture: Any = gradio.Image(
                    label="picture", type="filepath", image_mode=None, sources=["upload", "webcam", "clipboard"]
                )
                # Gradio would open the file itself first, and say of a broken one only that there was an error.
                picture.preprocess = lambda upload: upload and upload.path
                confidence = gradio.Slider(
                    0, 1, answers.least_shown, step=0.01, label="least confidence", info="nothing below it is shown"
                )
                settings: list[Any] = [picture, confidence]
                if answers.refined is not None:
                    settings.append(gradio.Checkbox(False, label="refine by the fully connected CRF (slower)"))
            with gradio.Column():
                shown = gradio.Image(
                    label=answers.result, format="png", interactive=False, buttons=["download", "fullscreen"]
                )
                line = gradio.Markdown()
                table = gradio.HTML()
        gradio.on(
            [one.change for one in settings],
            answer,
            settings,
            [shown, table, line],
            trigger_mode="always_last",
            api_visibility="private",
        )
    return page
