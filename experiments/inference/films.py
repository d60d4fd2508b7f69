"""NAME.overlay.mp4: a video under the colours of its predicted labels, as fast as the original.

Made when all frames are predicted, from the video and the label files of its frames, so that a prediction that goes on
after a crash makes the same film.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from experiments.inference.inputs import Inputs
from experiments.inference.label_files import MOST_IN_PALETTE, UNLABELLED, UNLABELLED_16
from experiments.inference.results import overlay, with_lines

CODEC = "mp4v"
USUAL_RATE = 25.0
"""Frames a second where a video does not say."""
MOST_IN_LEGEND = 40
"""Classes; with more, a film has no legend."""


def write_films(inputs: Inputs, out: Path, class_names: tuple[str, ...], colours: np.ndarray) -> list[str]:
    """Write the film of every video whose frames have label files. Returns what is wrong with each other video.

    Args:
        colours: RGB of each class, uint8 `(C, 3)`.
    """
    problems = []
    for path in map(Path, inputs.videos):
        stem = inputs.stem_of(path)
        film = out / stem.with_name(f"{stem.name}.overlay.mp4")
        if (out / stem).is_dir() and not write_film(path, out / stem, film, inputs, class_names, colours):
            problems.append(f"{path}: this OpenCV cannot write videos ({CODEC}); the frames are in {out / stem}")
    return problems


def write_film(
    path: Path, labels: Path, film: Path, inputs: Inputs, class_names: tuple[str, ...], colours: np.ndarray
) -> bool:
    """Write one film, with all classes in its legend, since its frames must have one size. False if it cannot be."""
    video = cv2.VideoCapture(str(path))
    rate = (video.get(cv2.CAP_PROP_FPS) or USUAL_RATE) / inputs.every
    video.release()
    part = film.with_name(f"{film.stem}.part.mp4")
    writer = None
    for frame in inputs.frames_of(path):
        file = labels / f"{frame.stem.name}.png"
        if not file.is_file():
            continue
        found = np.array(Image.open(file)).astype(np.int64)
        found[found == (UNLABELLED if len(colours) <= MOST_IN_PALETTE else UNLABELLED_16)] = -1
        picture = overlay(frame.read(no_decoder), found, class_names, colours, legend=False)
        if len(class_names) <= MOST_IN_LEGEND:
            picture = with_lines(np.array(picture), list(zip(class_names, colours, strict=True)))
        shown = np.array(picture)[: picture.height // 2 * 2, : picture.width // 2 * 2, ::-1]  # codecs take even sides
        if writer is None:
            size = (shown.shape[1], shown.shape[0])
            writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*CODEC), rate, size)
            if not writer.isOpened():
                part.unlink(missing_ok=True)
                return False
        writer.write(np.ascontiguousarray(shown))
    if writer is not None:
        writer.release()
        part.replace(film)
    return True


def no_decoder(path: Path) -> np.ndarray:
    """Frames of a video are decoded already; one that is not cannot be opened."""
    raise ValueError(f"{path} cannot be opened as a video")
