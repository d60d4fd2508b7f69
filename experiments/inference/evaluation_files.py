"""The files of an evaluation: evaluation.json, per_image.csv, pictures of its curves, a page of the worst images."""

import base64
import csv
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from datamodules.base import GraftDataModule
from experiments.inference.counts import Counts
from experiments.inference.evaluate_all import Evaluation
from experiments.inference.paired import paired_scores, picture_scores
from experiments.inference.protocol import Predictor
from experiments.inference.results import SegmentationResult, overlay
from experiments.inference.scores import coverage_curve, per_class, reliability, summary
from experiments.run_files.atomic_file import write_atomically

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MOST_NAMED = 40
"""Classes whose names are written beside the confusion matrix."""
SIDE = 320
"""Longest side in pixels of pictures in the page."""


def content_of(found: Evaluation, predictor: Predictor, data_name: str, ignore_index: int) -> dict[str, Any]:
    """What evaluation.json holds of one network: scores, protocol, a row for each class, and curves."""
    network = predictor.network
    return {
        "scores": summary(found.counts, network.task),
        "protocol": {
            "data": data_name,
            "split": found.split,
            "pictures": len(found.names),
            "skipped": found.skipped,
            "classes": list(network.class_names),
            "ignore_index": ignore_index,
            **predictor.describe(),
        },
        "per_class": per_class(found.counts, network.task, network.class_names),
        "trimap": found.trimap,
        "reliability": reliability(found.counts),
        "coverage": coverage_curve(found.counts),
    }


def write_evaluation(
    found: Evaluation, predictor: Predictor, data: GraftDataModule, out: Path, run: str, worst: int
) -> None:
    """Write the table of pictures, the drawings, and a page of the `worst` pictures."""
    network = predictor.network
    write_per_image(found, out / "per_image.csv", network.task, network.class_names)
    draw_confusion(found.counts.matrix, network.class_names, out / "confusion.png")
    draw_confidence(found.counts, out / "confidence.png")
    scores = picture_scores(found.each, network.task)
    order = np.argsort(np.nan_to_num(scores, nan=np.inf), kind="stable")[:worst].tolist()
    title = f"{run}: the worst of {len(found.names)} {found.split} pictures"
    write_page(found, predictor, data, out / "worst.html", order, title)


def compare_evaluations(
    found: Evaluation,
    theirs: Evaluation,
    predictor: Predictor,
    data: GraftDataModule,
    out: Path,
    runs: tuple[str, str],
    most: int,
) -> dict[str, Any]:
    """Compare two networks picture by picture, and write a page of the `most` pictures where they differ most.

    Raises:
        ValueError: the two have seen different pictures.
    """
    if theirs.indices != found.indices:
        raise ValueError("the data changed while they were read: the two networks saw different pictures")
    task = predictor.network.task
    change = picture_scores(found.each, task) - picture_scores(theirs.each, task)
    order = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")[:most].tolist()
    title = f"{runs[0]} on the pictures where it differs most from {runs[1]}"
    write_page(found, predictor, data, out / "changed.html", order, title)
    changed = [{"name": found.names[i], "difference": float(change[i])} for i in order if np.isfinite(change[i])]
    return {
        "run": runs[1],
        "scores": summary(theirs.counts, task),
        **paired_scores(found.each, theirs.each, task),
        "most_changed": changed,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_per_image(found: Evaluation, path: Path, task: str, class_names: tuple[str, ...]) -> None:
    """One row per picture: its own score, its confidence, and per class IoU or truth and prediction."""
    part = path.with_name(path.name + ".part")
    scores = picture_scores(found.each, task)
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        segments = task == "segmentation"
        writer.writerow(["name", "score", "confidence", *(class_names if segments else ("truth", "prediction"))])
        for i, name in enumerate(found.names):
            right, truth, predicted = found.each[i]
            union = truth + predicted - right
            more: list[Any] = [f"{r / u:.5f}" if u else "" for r, u in zip(right, union, strict=True)]
            if not segments:
                more = [class_names[label] for label in found.labels[i]]
            writer.writerow([name, f"{scores[i]:.5f}", f"{found.confidence[i]:.5f}", *more])
    part.replace(path)


def save(figure: Any, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png")
    plt.close(figure)
    part.replace(path)


def draw_confusion(matrix: np.ndarray, class_names: tuple[str, ...], path: Path) -> None:
    """Fractions of each true class by prediction; numbers where they are legible."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(12.0, 3.0 + 0.42 * len(class_names))
    figure, ax = plt.subplots(figsize=(side, side), layout="constrained")
    ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(class_names) <= MOST_NAMED:
        ax.set_xticks(range(len(class_names)), class_names, rotation=90)
        ax.set_yticks(range(len(class_names)), class_names)
    if len(class_names) <= 21:
        for i, j in np.argwhere(shares >= 0.005):
            colour = "white" if shares[i, j] > 0.5 else "black"
            ax.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    ax.set_xlabel("prediction")
    ax.set_ylabel("truth")
    ax.set_title("% of the true class", fontsize=10)
    save(figure, path)


def draw_confidence(counts: Counts, path: Path) -> None:
    """Reliability diagram, and accuracy against coverage."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
    rows = reliability(counts)
    left.plot([0, 1], [0, 1], color="tab:gray", linestyle=":")
    left.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], marker="o", color="tab:blue")
    total = sum(row["count"] for row in rows)
    left.bar(
        [row["confidence"] for row in rows], [row["count"] / total for row in rows], width=0.04, color="tab:blue",
        alpha=0.25, label="fraction of all",
    )  # fmt: skip
    left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy", title="reliability")
    left.legend(frameon=False, loc="upper left")
    curve = coverage_curve(counts)
    right.plot([row["coverage"] for row in curve], [row["accuracy"] for row in curve], marker="o", color="tab:green")
    right.set(xlabel="fraction answered, most confident first", ylabel="accuracy", title="accuracy against coverage")
    right.invert_xaxis()
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def write_page(
    found: Evaluation, predictor: Predictor, data: GraftDataModule, path: Path, order: list[int], title: str
) -> None:
    """A page of pictures in the given order, each as image, truth and prediction; it needs no other file."""
    network = predictor.network
    scores = picture_scores(found.each, network.task)
    source = getattr(data, found.split).source
    rows = []
    for i in order:
        image, truth, name = source[found.indices[i]]
        result = network.result(predictor(image), image)
        line = f"<b>{html.escape(name)}</b> score {scores[i]:.3f}, confidence {found.confidence[i]:.3f}"
        pictures = [result.image]
        if isinstance(result, SegmentationResult):
            labels = np.where(truth == data.ignore_index, -1, truth.astype(np.int64))
            views = (labels, result.labels)
            pictures += [
                np.asarray(overlay(result.image, one, network.class_names, network.colours, legend=False))
                for one in views
            ]
        else:
            line += f": {html.escape(network.class_names[int(truth)])}, predicted {html.escape(result.name)}"
        tags = "".join(f'<img alt="" src="data:image/jpeg;base64,{embedded(one)}">' for one in pictures)
        rows.append(f"<figure><figcaption>{line}</figcaption>{tags}</figure>")
    names = "image, truth, prediction" if network.task == "segmentation" else "image"
    colours = zip(network.class_names, network.colours, strict=True)
    legend = "".join(
        f'<span><i style="background:#{bytes(colour).hex()}"></i>{html.escape(name)}</span>' for name, colour in colours
    )
    legend = legend if network.task == "segmentation" else ""
    text = PAGE.format(title=html.escape(title), names=names, legend=legend, rows="\n".join(rows))
    write_atomically(path, text)


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
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 64rem; padding: 0 1rem; color: #222; }}
figure {{ margin: 0 0 1.2rem; }} figcaption {{ margin-bottom: .3rem; }}
img {{ max-width: 32%; margin-right: 1%; vertical-align: top; }}
.legend span {{ display: inline-block; margin-right: 1rem; }}
.legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .35em; border: 1px solid #555; }}
</style></head><body>
<h1>{title}</h1>
<p>In each row: {names}.</p>
<p class="legend">{legend}</p>
{rows}
</body></html>
"""
