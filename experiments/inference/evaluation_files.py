"""The files of an evaluation: evaluation.json, per_image.csv, pictures of its curves, a page of the worst images."""

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments.inference.evaluate_all import Evaluation
from experiments.inference.gallery import Gallery
from experiments.inference.paired import paired_scores, picture_scores
from experiments.inference.protocol import Predictor
from experiments.inference.scores import answered, calibration_error, coverage_curve, per_class, reliability, summary
from experiments.run_files.atomic_file import write_atomically
from experiments.training.write_results import versions

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MOST_NAMED = 40
"""Classes whose names are written beside the confusion matrix."""


def content_of(found: Evaluation, predictor: Predictor, data: dict[str, Any]) -> dict[str, Any]:
    """What evaluation.json holds of one network: scores, protocol, a row for each class, and curves.

    Args:
        data: what the protocol says of the data set.
    """
    network = predictor.network
    raw = found.uncalibrated
    content = {
        "scores": summary(found.counts, network.task)
        | ({} if raw is None else {"ece_uncalibrated": calibration_error(raw)}),
        "protocol": {
            **data,
            "split": found.split,
            "pictures": len(found.names),
            "skipped": found.skipped,
            "classes": list(network.class_names),
            **predictor.describe(),
            "abstain": found.abstain,
            "backbone": network.module.hparams["backbone"],
            "head": network.module.hparams["head"],
            "versions": versions(),
        },
        "per_class": per_class(found.counts, network.task, network.class_names),
        "trimap": found.trimap,
        "reliability": reliability(found.counts),
        "coverage": coverage_curve(found.counts),
    }
    if raw is not None:
        content["reliability_uncalibrated"] = reliability(raw)
    if found.abstain:
        content["answered"] = answered(found.counts, network.task, found.abstain)
    return content


def write_evaluation(found: Evaluation, predictor: Predictor, out: Path, run: str) -> None:
    """Write the table of pictures, the drawings, and the page of the worst pictures."""
    network = predictor.network
    write_per_image(found, out / "per_image.csv", network.task, network.class_names)
    draw_confusion(found.counts.matrix, network.class_names, out / "confusion.png")
    draw_confidence(found, out / "confidence.png")
    title = f"{run}: the worst of {len(found.names)} {found.split} pictures"
    found.worst.write(out / "worst.html", title, "image, truth, prediction")


def compare_evaluations(
    found: Evaluation, theirs: Evaluation, changed: Gallery, out: Path, runs: tuple[str, str], task: str
) -> dict[str, Any]:
    """Compare two networks picture by picture, and write a page of the pictures where they differ most."""
    change = picture_scores(found.each, task) - picture_scores(theirs.each, task)
    order = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")[: changed.most].tolist()
    title = f"{runs[0]} and {runs[1]} on the pictures where they differ most"
    changed.write(out / "changed.html", title, f"image, truth, prediction of {runs[0]}, prediction of {runs[1]}")
    return {
        "run": runs[1],
        "scores": summary(theirs.counts, task),
        **paired_scores(found.each, theirs.each, task),
        "most_changed": [
            {"name": found.names[i], "difference": float(change[i])} for i in order if np.isfinite(change[i])
        ],
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


def draw_confidence(found: Evaluation, path: Path) -> None:
    """Reliability diagram, before and after calibration, and accuracy against coverage."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
    left.plot([0, 1], [0, 1], color="tab:gray", linestyle=":")
    lines = [(found.counts, "tab:blue", "calibrated")]
    if found.uncalibrated is not None:
        lines.append((found.uncalibrated, "tab:orange", "as trained"))
    else:
        lines[0] = (found.counts, "tab:blue", "")
    for counts, colour, name in lines:
        rows = reliability(counts)
        total = sum(row["count"] for row in rows)
        confidence = [row["confidence"] for row in rows]
        label = f"{name + ', ' if name else ''}ECE {calibration_error(counts) or 0:.3f}"
        left.plot(confidence, [row["accuracy"] for row in rows], marker="o", color=colour, label=label)
        left.bar(confidence, [row["count"] / total for row in rows], width=0.04, color=colour, alpha=0.25)
    left.set(
        xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence (bars: fraction of all)", ylabel="accuracy",
        title="reliability",
    )  # fmt: skip
    left.legend(frameon=False, loc="upper left")
    curve = coverage_curve(found.counts)
    right.plot([row["coverage"] for row in curve], [row["accuracy"] for row in curve], marker="o", color="tab:green")
    if found.abstain:
        at = answered(found.counts, "classification", found.abstain)
        right.plot(
            [at["coverage"]], [at["accuracy"]], marker="x", markersize=10, color="tab:red",
            label=f"--abstain {found.abstain:g}",
        )  # fmt: skip
        right.legend(frameon=False)
    right.set(xlabel="fraction answered, most confident first", ylabel="accuracy", title="accuracy against coverage")
    right.invert_xaxis()
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, path)
