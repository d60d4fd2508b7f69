"""Builds the data and the network from the settings of a run."""

import dataclasses
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from backbones import find_backbone
from datamodules import DATAMODULES
from datamodules.base import GraftDataModule
from datamodules.class_weights import class_weights
from datamodules.errors import DataError
from datamodules.mean_image import mean_image
from datamodules.size_rules import Fit
from experiments.command_line.crf_settings import read_crf_settings
from experiments.command_line.run_config import RunConfig
from heads import HEADS, find_head
from heads.box_head import BoxHead
from lightning_modules.base import GraftModule
from lightning_modules.classification import ClassificationModule
from lightning_modules.detection import DetectionModule
from lightning_modules.segmentation import SegmentationModule

MODULES: dict[str, type[GraftModule]] = {
    "classification": ClassificationModule,
    "segmentation": SegmentationModule,
    "detection": DetectionModule,
}
NO_CLASS = -100
DEFAULT_PROPOSALS = "selective_search"


def prepare(config: RunConfig) -> tuple[GraftDataModule, GraftModule]:
    """Build and check the data and the module.

    Raises:
        ValueError: the settings or the data cannot work; one line says why.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    crf = crf_settings(config)
    data = build_data(config)
    data.setup("fit")
    if config.epochs and data.train is None:
        raise DataError(f"there is no train split in {config.data_dir}; --epochs 0 scores without training")
    module = build_module(config, data, crf if config.crf == "train" else None)
    if module.network.mean_image is not None:  # before --start-from, which brings that of its run
        module.network.mean_image.values.copy_(mean_image(data))
    if config.start_from is not None:
        fresh = module.start_from(config.start_from)
        rank_zero_only(print)(
            f"starting from {config.start_from}; tensors not found there keep their initial values: "
            + (", ".join(fresh) or "none")
        )
    if config.mixup or config.cutmix:
        if not isinstance(module, ClassificationModule):
            does = "labels pixels" if module.task == "segmentation" else "finds objects"
            raise ValueError(f"--mixup and --cutmix mix the classes of whole images; {config.head} {does}")
        module.mix_batches(config.mixup, config.cutmix)
    return data, module


def crf_settings(config: RunConfig) -> dict[str, Any] | None:
    """Return the settings of `--crf` as plain values, or None without a CRF.

    Raises:
        ValueError: the head does not segment, or a setting is out of its range.
    """
    if config.crf == "none":
        return None
    if find_head(config.head).task != "segmentation":
        raise ValueError(
            f"--crf {config.crf} refines segmentations; {config.head} is a {find_head(config.head).task} head"
        )
    return dataclasses.asdict(read_crf_settings(config.crf_settings))


def build_data(config: RunConfig) -> GraftDataModule:
    """Build the data module for the head's task, with images normalised as the backbone's weights expect them."""
    head = find_head(config.head)
    rgb = config.in_channels == 3
    with torch.device("meta"):
        backbone = find_backbone(config.backbone)()
    return DATAMODULES[config.data](
        head.task,
        data_dir=config.data_dir,
        image_size=config.size,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        mean=backbone.mean if rgb else None,
        std=backbone.std if rgb else pixel_scale(backbone.std, config.in_channels),
        download=config.download,
        on_bad_sample=config.on_bad_sample,
        cache=config.cache,
        augmentation=config.augmentation,
        scale_range=None if config.scale_range is None else (config.scale_range[0], config.scale_range[1]),
        mask_suffix=config.mask_suffix,
        in_channels=config.in_channels,
        fit=size_for(config),
        weigh_borders="unet_border" in config.loss,
        object_masks=issubclass(head, BoxHead) and head.needs_masks,
        several_labels="binary_cross_entropy" in config.loss,
        proposals=proposals_of(config),
    )


def proposals_of(config: RunConfig) -> str | None:
    """The method or file of proposals, if the head needs some.

    Raises:
        ValueError: some are given to a head that needs none.
    """
    head = find_head(config.head)
    if issubclass(head, BoxHead) and head.needs_proposals:
        return config.proposals or DEFAULT_PROPOSALS
    if config.proposals is not None:
        needing = [name for name, one in HEADS.items() if issubclass(one, BoxHead) and one.needs_proposals]
        raise ValueError(f"--proposals are for {' and '.join(needing)}; {config.head} takes none, leave the flag out")
    return None


def size_for(config: RunConfig) -> Fit | None:
    """The size rule of a detector's images: the user's, or what the head needs.

    Raises:
        ValueError: the head sees whole images, which the user's rule leaves in several sizes.
    """
    if not find_head(config.head).sees_whole_image:
        return config.fit
    if config.fit not in (None, "stretch"):
        raise ValueError(f"--fit {config.fit}: {config.head} sees whole images of one size; use stretch, its default")
    return "stretch"


def pixel_scale(std: tuple[float, ...], in_channels: int) -> tuple[float, ...] | None:
    """The divisor of networks that take images in levels of 0..255, for as many bands; None for all others.

    The constants of AlexNet's response normalisation belong to that scale.
    """
    return (1 / 255,) * in_channels if set(std) == {1 / 255} else None


def ap_rule_of(config: RunConfig, data: GraftDataModule) -> str:
    """How detections are scored. Raises ValueError if `--ap-rule` is given and nothing is detected."""
    if config.ap_rule is not None and data.task != "detection":
        raise ValueError(f"--ap-rule {config.ap_rule} is for heads that detect; leave it out for {config.head}")
    return config.ap_rule or data.ap_rule


def build_module(config: RunConfig, data: GraftDataModule, crf: dict[str, Any] | None = None) -> GraftModule:
    """Build the Lightning module for the data's classes, with the CRF that is to be learned, if any."""
    return MODULES[data.task](
        config.backbone,
        config.head,
        data.class_names,
        weights=None if config.weights == "none" else config.weights,
        output_stride=config.output_stride,
        in_channels=config.in_channels,
        backbone_options=config.backbone_options,
        head_options=config.head_options,
        placement=config.placement,
        mean_image=list(data.image_size) if config.mean_image else None,
        crf=crf,
        loss=config.loss,
        class_weights=class_weights(config.class_weights, data),
        label_smoothing=config.label_smoothing,
        aux_weight=config.aux_weight,
        several_labels=data.several_labels,
        # In classification no label is ignored: 255 is a class of ImageNet, so this is an index that never occurs.
        ignore_index=data.ignore_index if data.task == "segmentation" else NO_CLASS,
        optimizer=config.optimizer,
        lr=config.lr,
        backbone_lr_mult=config.backbone_lr_mult,
        bias_lr_mult=config.bias_lr_mult,
        freeze_backbone=config.freeze_backbone,
        freeze_stages=config.freeze_stages,
        freeze_norms=config.freeze_norms,
        norm_momentum=config.norm_momentum,
        layer_decay=config.layer_decay,
        checkpoint_activations=config.checkpoint_activations,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        milestones=config.milestones,
        warmup=config.warmup,
        ap_rule=ap_rule_of(config, data),
        preprocessing=data.preprocessing(),
    )
