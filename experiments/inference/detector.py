"""A trained network that detects objects: loading it, and what evaluate.py and predict.py do with it.

Each picture is predicted once and whole, at the size that the rule of the data set gives it; boxes are in its own
pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from datamodules.loader import Normalise
from datamodules.proposals import METHODS, Method
from experiments.command_line.protocol_flags import ProtocolFlags
from experiments.inference.protocol import device_of
from experiments.inference.trained import TrainedNetwork, checkpoint_of, hyperparameters, load_any
from experiments.training.build import DEFAULT_PROPOSALS
from heads import find_head
from heads.box_head import BoxHead, Detections
from lightning_modules.detection_scores import on_cpu

DEFAULTS: dict[str, Any] = {
    "scales": [1.0],
    "flip": False,
    "window": None,
    "overlap": None,
    "crf_settings": None,
    "crops": 1,
    "dense": False,
}
"""Flags of the protocol that networks with logits have, with the values that they must keep."""


def detects(run: str) -> bool:
    """Whether the network of a run detects objects. Raises ValueError if there is no such run."""
    return find_head(hyperparameters(checkpoint_of(Path(run)))["head"]).task == "detection"


def load_detector(flags: ProtocolFlags, **others: tuple[Any, Any]) -> TrainedNetwork:
    """The network of a run, for whole pictures.

    Args:
        others: further flags that detection does not have: their value and the one that they must keep.

    Raises:
        ValueError: a flag was given that detection does not have.
    """
    given = {name: (getattr(flags, name), default) for name, default in DEFAULTS.items()} | others
    for name, (value, default) in given.items():
        if (list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value) != default:
            raise ValueError(f"--{name.replace('_', '-')} is not supported for networks that detect; leave it out")
    return load_any(flags.run, device_of(flags.device))


@torch.inference_mode()
def detect(network: TrainedNetwork, image: np.ndarray, proposals: np.ndarray | None = None) -> Detections:
    """The objects of an image uint8 `(H, W, C)`, on the CPU.

    Args:
        proposals: boxes `(P, 4)` for a head that needs some; None: they are found as they were for training, or by
            selective search if those came from a file.
    """
    inner = network.module.network
    seen = np.ascontiguousarray(network.size_rule.apply(image))
    (height, width), (own_height, own_width) = seen.shape[:2], image.shape[:2]
    factors = torch.tensor([own_width / width, own_height / height]).repeat(2)
    batch = Normalise(network.mean, network.std)(torch.from_numpy(seen)[None])
    parameter = next(network.module.parameters())
    given = None
    if cast("BoxHead", inner.head).needs_proposals:
        boxes = proposals_method(network)(np.ascontiguousarray(image)) if proposals is None else proposals
        given = [(torch.from_numpy(boxes) / factors).to(parameter.device)]
    (found,) = inner.detect(batch.to(parameter.device, parameter.dtype), proposals=given)
    kept = on_cpu(found)
    masks = {"masks": found["masks"].cpu()} if "masks" in found else {}
    return kept | {"boxes": kept["boxes"] * factors} | masks  # type: ignore[return-value]


def proposals_method(network: TrainedNetwork) -> Method:
    """How boxes are found in pictures that come without any."""
    preprocessing = network.module.hparams["preprocessing"] or {}
    return METHODS.get(preprocessing.get("proposals") or "", METHODS[DEFAULT_PROPOSALS])


def rows_of(found: Detections) -> list[dict[str, Any]]:
    """Each object as plain values: its class, score and box (x1, y1, x2, y2) in pixels."""
    return [
        {"class": int(label), "score": round(float(score), 5), "box": [round(float(side), 2) for side in box]}
        for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True)
    ]


def coco_results(image_id: int, rows: list[dict[str, Any]], categories: Sequence[int]) -> list[dict[str, Any]]:
    """The objects of an image as entries of a COCO result file: boxes are x, y, width, height."""
    return [
        {
            "image_id": image_id,
            "category_id": categories[row["class"]],
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "score": row["score"],
        }
        for row in rows
        for x1, y1, x2, y2 in [row["box"]]
    ]
