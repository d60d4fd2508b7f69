"""Checks of the settings of a run that need no torch, by theme."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from experiments.command_line.crf_settings import crf_settings_problem
from experiments.command_line.known_names import catalogue, dict_keys, names_of, nearest
from experiments.command_line.parser import dashed
from experiments.command_line.run_flags import RunConfig

WEIGHTINGS = ("none", "median_frequency", "inverse_log")
Problems = Iterator[str | None]
"""The problems that a check finds, each in one line; None stands for a part that is in order."""


def usage_problem(config: RunConfig) -> str | None:
    """The first problem that can be found without importing torch, in one line; None if there is none."""
    return next((problem for check in CHECKS for problem in check(config) if problem), None)


def names(config: RunConfig) -> Problems:
    for one in fields(config):
        given: list[str] = [getattr(config, one.name)]
        if "folder" in one.metadata:
            known = names_of(one.metadata["folder"])
        elif "variable" in one.metadata:
            known = dict_keys(*one.metadata["variable"])
        elif "terms" in one.metadata:
            known = dict_keys(*one.metadata["terms"])
            given = [term.split("*")[-1].strip() for term in given[0].split("+")]
        else:
            continue
        for name in given:
            of_timm = one.name == "backbone" and name.startswith("timm/")
            if name not in known and not of_timm:
                yield f"{dashed(one.name)}: no {one.name} '{name}'; nearest: {nearest(name, known)}"


def pair(config: RunConfig) -> Problems:
    counted = catalogue().get(config.backbone, {})
    if not config.backbone_options:  # which may change the maps' strides; the network then checks the pair
        yield counted.get("refused", {}).get(config.head)
    if config.output_stride and counted and config.output_stride not in counted["output_strides"]:
        strides = " or ".join(map(str, counted["output_strides"]))
        yield f"--output-stride {config.output_stride}: {config.backbone} can only be built at {strides}"


def numbers(config: RunConfig) -> Problems:
    if config.image_size is not None and len(config.image_size) > 2:
        yield f"--image-size takes one number or two, height and width, not {len(config.image_size)}"
    scales = config.scale_range
    if scales is not None and (len(scales) != 2 or scales[0] > scales[1]):
        yield f"--scale-range {' '.join(f'{one:g}' for one in scales)}: give the smallest and the largest factor"
    if config.devices != "auto" and not config.devices.isdigit():
        yield f"--devices: '{config.devices}' is neither a number nor auto"
    if config.devices != "auto" and int(config.devices) == 0:
        yield "--devices: there must be at least 1"
    if config.epochs % config.validate_every:
        yield (
            f"--validate-every {config.validate_every} does not divide --epochs {config.epochs}; the last epoch must "
            "be validated"
        )
    if config.validate_every > 1 and config.max_steps is not None:
        yield "--validate-every: --max-steps may end training in an epoch without validation; leave one of them out"
    if config.warmup >= 1:
        yield f"--warmup is {config.warmup:g}; it is a fraction of all steps, give a number below 1"
    if config.ema >= 1:
        yield f"--ema is {config.ema:g}; it is a decay, give a number below 1, such as 0.999"
    if config.norm_momentum is not None and config.norm_momentum > 1:
        yield f"--norm-momentum is {config.norm_momentum:g}; it is a share, give a number of at most 1, such as 0.01"
    if config.layer_decay > 1:
        yield f"--layer-decay is {config.layer_decay:g}; give a number of at most 1, such as 0.75"


def combinations(config: RunConfig) -> Problems:
    for name in ("ema", "compile", "sync_batchnorm"):
        if config.strategy == "fsdp2" and getattr(config, name):
            yield f"--strategy fsdp2 cannot be combined with {dashed(name)}; leave one of them out"
    if config.strategy == "fsdp2" and config.optimizer == "sgd" and not config.momentum:
        yield "--strategy fsdp2: Lightning cannot resume sgd without momentum; give a --momentum above 0, or use ddp"
    if config.strategy.startswith(("deepspeed", "fsdp")) and config.strategy != "fsdp2":
        yield (
            f"--strategy {config.strategy}: its checkpoints are no single files; use ddp, or fsdp2 to shard the weights"
        )
    if config.mixup or config.cutmix:
        flags = " and ".join(f"--{name}" for name in ("mixup", "cutmix") if getattr(config, name))
        if config.loss != "cross_entropy" or config.class_weights != "none":
            yield (
                f"{flags}: only --loss cross_entropy without --class-weights is supported; change the loss or leave "
                f"{flags} out"
            )


def crf(config: RunConfig) -> Problems:
    if config.crf_settings is not None:
        if config.crf == "none":
            yield "--crf-settings does nothing with --crf none; add --crf test or --crf train"
        yield crf_settings_problem(config.crf_settings)


def bands(config: RunConfig) -> Problems:
    if config.in_channels != 3:
        if config.data != "folders":
            yield f"--in-channels is for --data folders; the images of {config.data} are read as RGB"
        if config.crf != "none":
            yield f"--crf {config.crf} compares colours, which needs RGB images; leave it out with --in-channels"


def logging(config: RunConfig) -> Problems:
    for name in ("wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint"):
        if getattr(config, name) and "wandb" not in config.logger:
            yield f"{dashed(name)} does nothing without --logger wandb"
    for package in ("tensorboard", "wandb"):
        if package in config.logger and importlib.util.find_spec(package) is None:
            yield f"--logger {package}: the package is not installed; pip install {package}"


def files(config: RunConfig) -> Problems:
    if config.data_dir is not None and not Path(config.data_dir).is_dir() and not config.download:
        yield f"--data-dir {config.data_dir}: no such folder"
    if config.start_from is not None and not Path(config.start_from).is_file():
        yield f"--start-from {config.start_from}: no such file; give a run's checkpoints/best.ckpt"
    if config.class_weights not in WEIGHTINGS and not Path(config.class_weights).is_file():
        yield f"--class-weights {config.class_weights}: no such file (or give {', '.join(WEIGHTINGS)})"
    if config.augmentation is not None and not Path(config.augmentation).is_file():
        presets = dict_keys("datamodules/augmentation.py", "AUGMENTATIONS")
        if config.augmentation not in presets:
            known = nearest(config.augmentation, presets)
            yield f"--augmentation {config.augmentation}: no such name or file; nearest: {known}"
    methods = dict_keys("datamodules/proposals.py", "METHODS")
    if config.proposals is not None and config.proposals not in methods and not Path(config.proposals).is_file():
        yield f"--proposals {config.proposals}: no such file (or give {' or '.join(methods)})"
    if config.weights not in ("imagenet", "none") and not Path(config.weights).is_file():
        yield f"--weights {config.weights}: no such file (or give imagenet or none)"


CHECKS: tuple[Callable[[RunConfig], Problems], ...] = (names, pair, numbers, combinations, crf, bands, logging, files)
