"""Every flag of run.py as one typed dataclass. Imports no torch: `--help` and usage errors answer within a second."""

import dataclasses
import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from experiments.command_line.crf_settings import crf_settings_problem
from experiments.command_line.known_names import catalogue, dict_keys, names_of, nearest
from experiments.command_line.parser import Parser, add_settings, dashed, flag, settings_from

LOSSES = ("lightning_modules/losses.py", "LOSSES")
WEIGHTINGS = ("none", "median_frequency", "inverse_log")


@dataclass
class RunConfig:
    """One training run. The order of the fields is the order of `--help`."""

    backbone: str = flag("resnet50", "network that turns the image into maps", folder="backbones")
    head: str = flag("deeplab", "what is made of the maps; classifier switches the task", folder="heads")
    data: str = flag("digits", "data set", folder="datamodules")
    data_dir: str | None = flag(None, "folder of the data set")
    download: bool = flag(False, "fetch the data set if it may be fetched and is not there")
    on_bad_sample: Literal["error", "skip"] = flag("error", "what a sample that cannot be read does to the run")
    cache: Literal["none", "memory", "disk"] = flag("memory", "where decoded samples are kept, within a budget")
    mask_suffix: str | None = flag(
        None, "what names of masks add to those of their images, such as _mask; default: found out, if it is one thing"
    )
    augmentation: str | None = flag(None, "of training images: a name, or a YAML file; default: the data set's")
    mixup: NonNegativeFloat = flag(0.0, "mix training images with a share from Beta(this, this); classification only")
    cutmix: NonNegativeFloat = flag(0.0, "the same by pasting a part; with both, either is drawn for each batch")
    weights: str = flag("none", "what the backbone starts from: imagenet, a file, or none")
    start_from: str | None = flag(
        None, "checkpoint of another run, whose network this one takes over as far as it fits"
    )
    staged: bool = flag(False, "train in the stages of the head's paper, such as fcn32s and fcn16s before fcn8s")
    output_stride: Literal[8, 16, 32] | None = flag(None, "pixels per pixel of the last map; default: the head's")
    backbone_options: dict[str, Any] | None = flag(None, "further options of the backbone, YAML: '{zero_init: false}'")
    head_options: dict[str, Any] | None = flag(None, "further options of the head, as YAML: '{up: interpolate}'")
    crf: Literal["none", "test", "train"] = flag(
        "none", "fully connected CRF: test scores without and with it, train learns it with the network"
    )
    crf_settings: str | None = flag(None, "of --crf: a preset of heads/crf.py, or a YAML file that tune_crf.py wrote")
    image_size: PositiveInt | None = flag(None, "H W, or one number for both; default: the data set's", nargs="+")
    batch_size: PositiveInt = flag(16, "images per process and step")
    epochs: NonNegativeInt = flag(5, "passes over the training images; 0 scores the weights as they are")
    checkpoint_every: NonNegativeInt = flag(0, "also save last.ckpt every so many steps; --resume goes on from there")
    max_steps: PositiveInt | None = flag(None, "stop after so many optimiser steps, whatever --epochs says")
    optimizer: Literal["adamw", "sgd"] = flag("adamw", "optimiser")
    lr: PositiveFloat = flag(1e-3, "base learning rate")
    backbone_lr_mult: NonNegativeFloat = flag(1.0, "the backbone learns at --lr times this")
    freeze_backbone: bool = flag(False, "train the head only; the backbone's batch norms keep their statistics")
    freeze_norms: bool = flag(False, "the backbone's batch norms keep their statistics, all else is trained")
    layer_decay: PositiveFloat = flag(1.0, "each layer of the backbone learns at the next one's rate times this")
    momentum: NonNegativeFloat = flag(0.9, "of sgd")
    weight_decay: NonNegativeFloat = flag(1e-4, "on weights; never on norms and biases")
    schedule: str = flag("poly", "how the rate falls", variable=("lightning_modules/schedules.py", "SCHEDULES"))
    warmup: NonNegativeFloat = flag(0.05, "share of the steps over which the rate rises first")
    loss: str = flag("cross_entropy", "loss, or a sum such as cross_entropy+0.5*dice", terms=LOSSES)
    class_weights: str = flag("none", "of the loss: median_frequency, inverse_log, a file of a number a class, or none")
    label_smoothing: NonNegativeFloat = flag(0.0, "share of the truth spread over all classes")
    aux_weight: NonNegativeFloat | None = flag(
        None, "of the loss of an auxiliary head on the stride-16 map; default: none"
    )
    accumulate: PositiveInt = flag(1, "batches per optimiser step")
    clip_gradient: NonNegativeFloat = flag(0.0, "norm that gradients are scaled down to; 0 leaves them")
    ema: NonNegativeFloat = flag(0.0, "decay of a moving average of the weights, which is scored and kept; 0: none")
    patience: NonNegativeInt = flag(0, "stop after so many epochs without a better score; 0: never")
    seed: NonNegativeInt = flag(0, "of weights, sample order and augmentation")
    accelerator: str = flag("auto", "auto, cpu, gpu, mps ...")
    devices: str = flag("auto", "processes on this machine: a number, or auto")
    nodes: PositiveInt = flag(1, "machines")
    strategy: str = flag(
        "auto", "how ranks share the work: auto, ddp, fsdp2 (shards the weights) or another of Lightning's"
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = flag(
        "32-true", "float32, or automatic mixed precision with float16 or bfloat16"
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = flag(
        None,
        "float32 matrix products on GPUs: highest is exact, high uses TF32; default: high, --deterministic: highest",
    )
    sync_batchnorm: bool = flag(False, "batch norm over all processes")
    compile: bool = flag(False, "torch.compile the network")
    checkpoint_activations: bool = flag(False, "compute blocks again for their gradients: a third slower, less memory")
    deterministic: bool = flag(False, "GPU kernels that repeat to the last bit only; slower")
    workers: NonNegativeInt = flag(2, "loader processes per training process")
    logger: Literal["csv", "wandb", "tensorboard"] = flag(("csv",), "where curves go; several may be named", nargs="+")
    wandb_project: str | None = flag(None, "of --logger wandb; default: WANDB_PROJECT, or graft")
    wandb_group: str | None = flag(None, "what W&B shows the run under, such as the seeds of one network")
    wandb_tags: str | None = flag(None, "of the W&B run; several may be given", nargs="+")
    wandb_checkpoint: bool = flag(False, "keep the best checkpoint as an artifact of the W&B run")
    name: str | None = flag(None, "of the run; default: BACKBONE-HEAD-DATA, numbered")
    out: str = flag("runs", "folder that run folders are made in")
    resume: bool = flag(False, "continue a run, a finished one too; an unfinished one needs no flag")

    @property
    def run_name(self) -> str:
        return self.name or f"{self.backbone}-{self.head}-{self.data}".replace("/", "_")

    @property
    def size(self) -> tuple[int, int] | None:
        """`--image-size` as (H, W)."""
        if self.image_size is None:
            return None
        sides = list(self.image_size)  # type: ignore[call-overload]  # nargs="+" makes it a list
        return (sides[0], sides[-1])


def build_parser() -> Parser:
    parser = Parser(prog="run.py", description="Train any backbone under any head.", print_config=None)
    parser.add_argument("--config", action="config", help="YAML file of these settings; the command line wins")
    add_settings(parser, RunConfig)
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and stop")
    parser.add_argument("--find-lr", action="store_true", help="try rates on the first batches, suggest one and stop")
    parser.add_argument("--check-data", action="store_true", help="report every fault of the data set and stop")
    parser.add_argument("--matrix", action="store_true", help="show which heads go onto which backbones and stop")
    parser.add_argument("--list", action="store_true", help="list every backbone, head and data set and stop")
    return parser


def parse(arguments: list[str] | None = None) -> tuple[RunConfig, Any]:
    """The settings, and a namespace with `print_config`, `check_data`, `matrix`, `list`. Exits with 2 on an error."""
    parser = build_parser()
    namespace = parser.parse_args(arguments)
    config = settings_from(namespace, RunConfig)
    problem = usage_problem(config)
    if problem and not (namespace.list or namespace.matrix):
        parser.error(problem)
    return config, namespace


def usage_problem(config: RunConfig) -> str | None:
    """What can be known to be wrong before torch is imported, in one line."""
    for one in fields(config):
        values = [getattr(config, one.name)]
        if "folder" in one.metadata:
            known = names_of(one.metadata["folder"])
        elif "variable" in one.metadata:
            known = dict_keys(*one.metadata["variable"])
        elif "terms" in one.metadata:
            known = dict_keys(*one.metadata["terms"])
            values = [term.split("*")[-1].strip() for term in values[0].split("+")]
        else:
            continue
        for value in values:
            if value not in known and not value.startswith("timm/"):
                return f"{dashed(one.name)}: no {one.name} '{value}'; nearest: {nearest(value, known)}"
    known_of = catalogue().get(config.backbone, {})
    if config.head in known_of.get("refused", {}):
        return known_of["refused"][config.head]
    if config.output_stride and known_of and config.output_stride not in known_of["output_strides"]:
        strides = " or ".join(map(str, known_of["output_strides"]))
        return f"--output-stride {config.output_stride}: {config.backbone} can only be built at {strides}"
    if config.image_size is not None and len(config.image_size) > 2:  # type: ignore[arg-type]
        return "--image-size takes one number or two, H W"
    if config.devices != "auto" and not config.devices.isdigit():
        return f"--devices: '{config.devices}' is neither a number nor auto"
    if config.devices == "0":
        return "--devices: there must be at least 1"
    if config.warmup >= 1:
        return f"--warmup is a share of all steps, below 1, not {config.warmup:g}"
    if config.ema >= 1:
        return f"--ema is a decay below 1, such as 0.999, not {config.ema:g}"
    if config.layer_decay > 1:
        return f"--layer-decay is at most 1, such as 0.75, not {config.layer_decay:g}"
    for name in ("ema", "compile", "sync_batchnorm"):
        if config.strategy == "fsdp2" and getattr(config, name):
            return f"--strategy fsdp2 cannot be combined with {dashed(name)}; leave one of them out"
    if config.strategy == "fsdp2" and config.optimizer == "sgd" and not config.momentum:
        return "--strategy fsdp2: Lightning cannot resume sgd without momentum; give a --momentum above 0, or use ddp"
    if config.strategy.startswith(("deepspeed", "fsdp")) and config.strategy != "fsdp2":
        return (
            f"--strategy {config.strategy}: its checkpoints are no single files; use ddp, or fsdp2 to shard the weights"
        )
    if config.crf_settings is not None and config.crf == "none":
        return "--crf-settings does nothing with --crf none; add --crf test or --crf train"
    if config.crf_settings is not None and crf_settings_problem(config.crf_settings):
        return crf_settings_problem(config.crf_settings)
    for name in ("wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint"):
        if getattr(config, name) and "wandb" not in config.logger:
            return f"{dashed(name)} does nothing without --logger wandb"
    if "tensorboard" in config.logger and importlib.util.find_spec("tensorboard") is None:
        return "--logger tensorboard: the package is not installed; pip install tensorboard"
    if config.data_dir is not None and not Path(config.data_dir).is_dir() and not config.download:
        return f"--data-dir {config.data_dir}: no such folder"
    if config.start_from is not None and not Path(config.start_from).is_file():
        return f"--start-from {config.start_from}: no such file; give a run's checkpoints/best.ckpt"
    if config.class_weights not in WEIGHTINGS and not Path(config.class_weights).is_file():
        return f"--class-weights {config.class_weights}: no such file (or give {', '.join(WEIGHTINGS)})"
    chosen = config.augmentation
    if chosen is not None and not Path(chosen).is_file():
        presets = dict_keys("datamodules/augmentation.py", "AUGMENTATIONS")
        if chosen not in presets:
            return f"--augmentation {chosen}: no such name or file; nearest: {nearest(chosen, presets)}"
    if config.mixup or config.cutmix:
        flags = " and ".join(f"--{name}" for name in ("mixup", "cutmix") if getattr(config, name))
        if config.loss != "cross_entropy" or config.class_weights != "none":
            return f"{flags}: works with --loss cross_entropy without --class-weights"
    if config.weights not in ("imagenet", "none") and not Path(config.weights).is_file():
        return f"--weights {config.weights}: no such file (or give imagenet or none)"
    return None


def to_yaml(config: RunConfig) -> str:
    """The settings as a file that `--config` takes."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
