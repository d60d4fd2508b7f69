"""What rcnn.py does: builds network and data, fits the detector, scores it and writes results.json."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backbones import find_backbone
from backbones.backbone import Backbone
from datamodules.base import GraftDataModule
from datamodules.errors import DataError
from datamodules.fingerprint import content_hash
from experiments.command_line.console import make_console
from experiments.command_line.progress import with_progress
from experiments.command_line.rcnn_flags import RCNNConfig
from experiments.command_line.run_config import RunConfig
from experiments.inference.inputs import stamp
from experiments.inference.protocol import device_of
from experiments.inference.trained import checkpoint_of, load_any
from experiments.region_svms.detector import Detector
from experiments.region_svms.feature_cache import picture
from experiments.region_svms.features import RegionFeatures
from experiments.run_files.atomic_file import write_atomically
from experiments.training.build import build_data
from lightning_modules.detection_scores import DetectionScores
from lightning_modules.network import Network

METHODS = {"warp": "R-CNN", "spp": "SPP-net"}


def fit_and_score(config: RCNNConfig) -> Detector:
    """Fit on the training split, score another one, write results.json, and return the detector.

    Raises:
        ValueError: network or data cannot work; one line says why.
    """
    features, name, identity = region_features(config)
    data = data_of(config, name)
    if data.train is None or getattr(data, config.split) is None:
        missing = "train" if data.train is None else config.split
        raise DataError(f"--data {config.data} has no split {missing}; it has {', '.join(data.splits)}")
    out = Path(config.out)
    started = time.perf_counter()
    detector, count = fitted(config, features, identity, data)
    needed = time.perf_counter() - started
    split = getattr(data, config.split)
    scores, proposals = DetectionScores(), 0
    for index in with_progress(range(len(split)), len(split), "pictures"):
        image, objects, boxes = picture(split, index)
        scores.update([str(index)], [detector.detect(image, boxes)], [objects.tensors()])  # type: ignore[list-item]
        proposals += len(boxes)
    numbers = {key: float(value) for key, value in scores.scores(data.class_names).items()}
    content = {
        "method": METHODS[config.pooling],
        "backbone": name,
        "run": config.run,
        "data": config.data,
        "data_fingerprint": data.fingerprint(),
        "image_size": list(data.image_size),
        "proposals": data.proposals,
        "proposals_per_image": proposals / len(split),
        "training_images": count,
        "split": config.split,
        "scores": {key: value if np.isfinite(value) else None for key, value in numbers.items()},
        "seconds_to_fit": needed,
        "seconds_per_image": {part: value / len(split) for part, value in detector.seconds.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    show(content, out)
    return detector


def fitted(
    config: RCNNConfig, features: RegionFeatures, identity: list[Any], data: GraftDataModule
) -> tuple[Detector, int]:
    """The detector, fitted to the training split, and the number of images that it has seen."""
    assert data.train is not None
    settings = [*identity, config.pooling, config.side, config.bins, data.fingerprint(), data.image_size, config.seed]
    settings += [data.proposals, stamp(Path(data.proposals or ""))]  # of a method, there is no file
    count = min(config.images or len(data.train), len(data.train))
    indices = np.linspace(0, len(data.train) - 1, count).astype(int).tolist()
    detector = Detector(features, data.num_classes)
    cache = Path(config.out) / f"features-{content_hash(map(str, settings))}"
    detector.fit(data.train, indices, cache, config.seed)
    return detector, count


def read_fitted(config: RCNNConfig) -> Detector:
    """The detector of a program that has ended, fitted again to the features that it has left."""
    features, name, identity = region_features(config)
    return fitted(config, features, identity, data_of(config, name))[0]


def region_features(config: RCNNConfig) -> tuple[RegionFeatures, str, list[Any]]:
    """The features, the backbone's name, and what else features depend on."""
    device = device_of(config.device) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.run is not None:
        network = load_any(config.run, device)
        backbone, name = network.module.network.backbone, str(network.module.hparams["backbone"])
        layers = trained_layers(network.module.network)
        mean, std, identity = network.mean, network.std, [stamp(checkpoint_of(Path(config.run)))]
    else:
        name = config.backbone or ""
        torch.manual_seed(config.seed)
        backbone = find_backbone(name)()
        layers = backbone.region_layers()
        backbone.load(None if config.weights == "none" else config.weights, layers)
        mean, std, identity = backbone.mean, backbone.std, [name, config.weights]
        backbone, layers = backbone.to(device).eval(), layers and layers.to(device).eval()
    check_last_map(backbone, name, config)
    features = RegionFeatures(
        backbone, mean, std, pooling=config.pooling, side=config.side, bins=config.bins, layers=layers
    )
    return features, name, identity


def trained_layers(network: Network) -> nn.Module | None:
    """A run's layers between the last map and the output layer, if its head has the published ones."""
    layers, trained = network.backbone.region_layers(), network.published_classifier()
    if layers is None or trained is None:
        return None
    own = trained.state_dict()
    layers.load_state_dict({key: own[key] for key in layers.state_dict()})
    return layers.to(next(trained.parameters()).device).eval()


def check_last_map(backbone: Backbone, name: str, config: RCNNConfig) -> None:
    """Raises ValueError if the backbone has no last map, or one that boxes cannot be placed on."""
    if config.pooling == "warp" and config.side < backbone.min_size:
        raise ValueError(f"--side {config.side}: {name} needs pictures of {backbone.min_size} pixels or more")
    if config.pooling == "spp" and backbone.cropped_pixels:
        raise ValueError(
            f"--pooling spp needs maps at multiples of their stride; {name}'s unpadded layers crop up to "
            f"{backbone.cropped_pixels} pixels. Use --pooling warp"
        )
    side = max(backbone.min_size, 64)
    with torch.inference_mode():
        parameter = next(backbone.parameters())
        last = backbone(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))[-1]
    if not last.numel():
        raise ValueError(f"{config.run} has no last map, because its head does not read it; give another run")


def data_of(config: RCNNConfig, backbone: str) -> GraftDataModule:
    """The data with proposals, ready to use."""
    data = build_data(
        RunConfig(
            backbone=backbone, head="fastrcnn", data=config.data, data_dir=config.data_dir,
            image_size=config.image_size, proposals=config.proposals, workers=config.workers, seed=config.seed,
            batch_size=1,
        )
    )  # fmt: skip
    data.setup()
    return data


def show(content: dict[str, Any], out: Path) -> None:
    """Print the scores and the times."""
    console = make_console()
    for name, value in content["scores"].items():
        console.print(f"{name:24} {'-' if value is None else f'{value:.4f}'}")
    times = ", ".join(f"{part} {value:.3f} s" for part, value in content["seconds_per_image"].items())
    console.print(f"{content['method']}: {content['proposals_per_image']:.0f} proposals an image; {times}")
    console.print(f"{out}/results.json", soft_wrap=True)
