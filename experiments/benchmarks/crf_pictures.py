"""Draw the CRF on photographs with scribbles: `python experiments/benchmarks/crf_pictures.py FOLDER` draws one picture.

FOLDER holds `im1.png`, `anno1.png` (a colour for each label, black for unknown) and, for comparison, `out1.png`, the
answer of another program; the same with further numbers. pydensecrf's examples (github.com/lucasb-eyer/pydensecrf, MIT
licence) are named so. As in its example, an annotated pixel has its label with probability 0.7, an unknown one has all
labels alike, and there are five iterations.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import matplotlib
import numpy as np
import torch

from heads.crf import PRESETS, DenseCRF

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SETTINGS = dataclasses.replace(PRESETS["pydensecrf"], iterations=5)
CERTAINTY = 0.7
COLOURS = np.array([(222, 226, 232), (32, 105, 180), (246, 150, 40), (60, 160, 90)], np.uint8)
"""Colours of the labels, by falling area; the colours in the annotations are hard to tell apart."""
WIDTH, TITLE, GAP = 1200, 20, 6  # pixels
DPI = 100
Cell = tuple[str, np.ndarray]
"""Title and picture uint8 `(H, W, 3)`."""


def read(path: Path) -> np.ndarray:
    """RGB uint8 `(H, W, 3)`."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"crf_pictures.py: error: {path} is no picture")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def refine(image: np.ndarray, annotation: np.ndarray) -> np.ndarray:
    """The annotation, in its own colours, as the CRF completes it."""
    colours, _ = colours_of(annotation)
    is_label = torch.from_numpy((annotation == colours[:, None, None]).all(-1))  # (C, H, W)
    probabilities = torch.where(is_label, CERTAINTY, (1 - CERTAINTY) / (len(colours) - 1))
    probabilities[:, ~is_label.any(0)] = 1 / len(colours)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return colours[DenseCRF(SETTINGS)(probabilities[None], pixels[None], from_logits=False)[0].argmax(0).numpy()]


def colours_of(annotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours `(C, 3)` that are labels, which black is not, and how many pixels have each."""
    colours, counts = np.unique(annotation.reshape(-1, 3), axis=0, return_counts=True)
    labels = colours.any(-1)
    return colours[labels], counts[labels]


def recoloured(labels: np.ndarray, annotation: np.ndarray) -> np.ndarray:
    """A label map with the annotation's colours, in COLOURS; unknown stays black."""
    colours, counts = colours_of(annotation)
    out = np.zeros_like(labels)
    for colour, new in zip(colours[counts.argsort()[::-1]], COLOURS, strict=False):
        out[(labels == colour).all(-1)] = new
    return out


def cells_of(folder: Path, number: int) -> list[Cell]:
    """What is shown of one photograph, left to right."""
    image, annotation = read(folder / f"im{number}.png"), read(folder / f"anno{number}.png")
    refined = refine(image, annotation)
    cells = [
        ("image", image),
        ("annotation", recoloured(annotation, annotation)),
        ("Graft", recoloured(refined, annotation)),
    ]
    reference = folder / f"out{number}.png"
    if reference.is_file():
        theirs = read(reference)
        same = (theirs == refined).all(-1).mean()
        print(f"{reference}: {same:.2%} of the pixels are the same")
        cells.append(("pydensecrf", recoloured(theirs, annotation)))
    return cells


def draw(rows: list[list[Cell]], out: Path) -> None:
    """Rows of equal width; in each, all cells are equally high."""
    heights = [(WIDTH - GAP * (len(row) - 1)) / sum(cell.shape[1] / cell.shape[0] for _, cell in row) for row in rows]
    total = sum(heights) + TITLE * len(rows)
    figure = plt.figure(figsize=(WIDTH / DPI, total / DPI), dpi=DPI)
    top = total
    for row, height in zip(rows, heights, strict=True):
        top -= TITLE + height
        left = 0.0
        for title, picture in row:
            width = height * picture.shape[1] / picture.shape[0]
            ax = figure.add_axes((left / WIDTH, top / total, width / WIDTH, height / total))
            ax.imshow(picture, interpolation="antialiased" if title == "image" else "nearest", aspect="auto")
            ax.set_title(title, fontsize=9, pad=3)
            ax.axis("off")
            left += width + GAP
    figure.savefig(out)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="crf_pictures.py", description="Draw what the CRF makes of annotations.")
    parser.add_argument("folder", type=Path, help="im1.png, anno1.png, out1.png, im2.png ...")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "images" / "crf.png")
    options = parser.parse_args(arguments)
    numbers = sorted(int(path.stem[2:]) for path in options.folder.glob("im[0-9]*.png"))
    if not numbers:
        parser.error(f"{options.folder} holds no im1.png")
    cells = [cells_of(options.folder, number) for number in numbers]
    # The first, which has a comparison, on a row of its own; the others side by side.
    draw([cells[0], [cell for photograph in cells[1:] for cell in photograph]] if cells[1:] else cells, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
