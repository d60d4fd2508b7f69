"""evaluate.py for networks that detect objects: scores of a split, and the detections as a COCO result file."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from datamodules.errors import DataError
from experiments.command_line.console import make_console
from experiments.command_line.progress import with_progress
from experiments.command_line.protocol_flags import ProtocolFlags
from experiments.inference.detector import coco_results, detect, load_detector, rows_of
from experiments.inference.evaluate_all import data_of, pictures
from experiments.inference.evaluation_files import write_json
from experiments.inference.trained import checkpoint_of, run_settings
from experiments.run_files.atomic_file import write_atomically
from experiments.training.write_results import versions
from heads.box_head import BoxHead
from lightning_modules.detection_scores import DetectionScores


def evaluate_boxes(
    flags: ProtocolFlags,
    split: str,
    data_name: str | None,
    data_dir: str | None,
    out: Path,
    ap_rule: str | None,
    **others: Any,
) -> int:
    """Score a split and write evaluation.json and detections.json. Returns the exit code: 1 if a picture is unreadable.

    Args:
        ap_rule: rule of average precision; None: the run's.
        others: see `load_detector`.

    Raises:
        ValueError: a flag that detection does not have, or no such split, or no readable picture.
    """
    network = load_detector(flags, **others)
    head = cast("BoxHead", network.module.network.head)
    data = data_of(flags.run, data_name, data_dir, network)
    if split not in data.splits:
        raise ValueError(f"--split {split}: the data set has {', '.join(data.splits)}")
    rule = ap_rule or network.module.hparams["ap_rule"]
    scores, skipped, results = DetectionScores(rule), [], []
    for one in with_progress(pictures(data, split), len(getattr(data, split).source), "pictures"):
        if isinstance(one, DataError):
            skipped.append(str(one))
            continue
        index, image, truth, name = one
        proposals = data.found[split].of(name, image) if data.found else None
        found = detect(network, image, proposals)
        scores.update([name], [found], [truth.tensors()])
        results += [{"file_name": name} | row for row in coco_results(index, rows_of(found), range(data.num_classes))]
    if not scores.images:
        raise ValueError(f"no picture of the {split} split can be read; the first: {skipped[0]}")
    numbers = {name: plain(value) for name, value in scores.scores(data.class_names).items()}
    checkpoint, settings = checkpoint_of(Path(flags.run)), network.module.hparams
    protocol = {
        "checkpoint": str(checkpoint),
        "data": data_name or run_settings(checkpoint)["data"],
        "data_dir": None if data.data_dir is None else str(data.data_dir),
        "data_fingerprint": data.fingerprint(),
        "split": split,
        "pictures": len(scores.images),
        "skipped": skipped,
        "classes": list(data.class_names),
        "ap_rule": rule,
        "size_rule": network.size_rule.kind,
        "size": list(network.size_rule.size),
        **{name: settings[name] for name in ("backbone", "head")},
        **{name: getattr(head, name) for name in ("score_threshold", "overlap", "most")},
        "versions": versions(),
    }
    content = {"run": flags.run, "scores": numbers, "protocol": protocol}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "detections.json", json.dumps(results, ensure_ascii=False) + "\n")
    write_json(out / "evaluation.json", content)
    console = make_console()
    for name, value in numbers.items():
        console.print(f"{name:24} {'-' if value is None else f'{value:.4f}'}")
    console.print(f"{out}/: evaluation.json detections.json", soft_wrap=True)
    for line in skipped:
        print(f"not scored: {line}", file=sys.stderr)
    return int(bool(skipped))


def plain(value: torch.Tensor) -> float | None:
    """A score for JSON, which has no NaN: None for a class without objects."""
    return float(value) if np.isfinite(float(value)) else None
