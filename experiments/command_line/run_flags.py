"""Every setting of run.py as a field of one dataclass; each is a flag, and a line of config.yaml."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from experiments.command_line.kinds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from experiments.command_line.parser import flag

network_flag = partial(flag, group="network")
data_flag = partial(flag, group="data")
training_flag = partial(flag, group="training")
hardware_flag = partial(flag, group="hardware")
folder_flag = partial(flag, group="run folder")
logging_flag = partial(flag, group="logging")

LOSSES = ("lightning_modules/losses.py", "LOSSES")
LR_OF_RANDOM_WEIGHTS, LR_OF_TRAINED_WEIGHTS = 2e-3, 1e-3
SCHEDULES = ("lightning_modules/schedules.py", "SCHEDULES")


@dataclass
class RunConfig:
    """One training run. The order of the fields is that of `--help` and of config.yaml."""

    backbone: str = network_flag(
        "resnet50", "backbone: network that turns images into feature maps; --list shows all", folder="backbones"
    )
    head: str = network_flag(
        "deeplab",
        "head: network on top of the backbone; decides whether it classifies, segments or detects; --list shows all",
        folder="heads",
    )
    weights: str = network_flag(
        "none", "initial weights of the backbone: imagenet, none, or a file of weights", path=True
    )
    start_from: str | None = network_flag(
        None,
        "checkpoint of another run to initialise the network from; tensors of the same name and shape are copied, and "
        "of the output layer the rows of classes of the same name",
        path=True,
    )
    output_stride: Literal[8, 16, 32] | None = network_flag(
        None, "output stride: image pixels per pixel of the last feature map; default: the head's"
    )
    backbone_options: dict[str, Any] | None = network_flag(
        None, "further options of the backbone in YAML, such as '{zero_init: false}'"
    )
    head_options: dict[str, Any] | None = network_flag(
        None, "further options of the head in YAML, such as '{up: interpolate}'"
    )
    placement: Literal["placed", "stretched", "centred"] = network_flag(
        "placed",
        "segmentation: how maps join finer ones and scores reach the image: placed (on the pixels they stand for), "
        "stretched (resized, as in most libraries) or centred (at the centres of their receptive fields)",
    )
    crf: Literal["none", "test", "train"] = network_flag(
        "none",
        "fully connected CRF, for segmentation: test reports scores without and with it; train learns it together with "
        "the network",
    )
    crf_settings: str | None = network_flag(
        None,
        "settings of the CRF of --crf: a preset of heads/crf.py, a YAML file such as tune_crf.py writes, or YAML "
        "such as '{iterations: 5}'; default: deeplabv2_resnet101",
        path=True,
    )

    data: str = data_flag("digits", "data set; --list shows all", folder="datamodules")
    data_dir: str | None = data_flag(None, "folder of the data set; digits needs none", path=True)
    mask_suffix: str | None = data_flag(
        None,
        "text that mask names have and image names lack, such as _mask; default: detected, if it is the same for all",
    )
    in_channels: PositiveInt = data_flag(
        3,
        "bands of the images: 3 reads all images as RGB; others need files of so many bands, such as TIFF, in --data "
        "folders",
    )
    fit: Literal["own", "stretch", "within"] | None = data_flag(
        None,
        "size of whole images for heads that detect: own keeps it; stretch resizes to --image-size; within resizes in "
        "proportion, shorter and longer side at most the two numbers of --image-size; default: own, stretch for heads "
        "that see the whole image",
    )
    ap_rule: Literal["coco", "voc07", "voc10"] | None = data_flag(
        None,
        "rule of average precision: coco (mean over IoU 0.5 to 0.95), voc07 (11 points, IoU 0.5) or voc10 (area under "
        "the curve, IoU 0.5); default: the data set's",
    )
    download: bool = data_flag(False, "download the data set if it is missing and can be downloaded automatically")
    image_size: list[PositiveInt] | None = data_flag(
        None, "size of images in training, in pixels: height and width, or one number for both; default: the data set's"
    )
    augmentation: str | None = data_flag(
        None,
        "augmentation of training images: a preset such as deeplab, or an albumentations YAML file; default: the data "
        "set's own",
        path=True,
    )
    scale_range: list[PositiveFloat] | None = data_flag(
        None,
        "random scaling of training images before the crop, for augmentations that do both: smallest and largest "
        "factor; default: 0.5 2",
    )
    mean_image: bool = data_flag(
        False, "classification: subtract the mean training image, pixel by pixel, and not only its mean colour"
    )
    proposals: str | None = data_flag(
        None,
        "boxes that may hold an object, for heads that classify such boxes: selective_search, windows, or an .npz file "
        "of propose.py; default: selective_search under such a head",
        path=True,
    )
    mixup: NonNegativeFloat = data_flag(
        0.0,
        "MixUp alpha: training images are blended in a ratio drawn from Beta(alpha, alpha); 0: off; classification "
        "only",
    )
    cutmix: NonNegativeFloat = data_flag(
        0.0,
        "CutMix alpha: a part of one training image is pasted into another, with its share of the area drawn from "
        "Beta(alpha, alpha); 0: off; with --mixup, one of the two is chosen per batch; classification only",
    )
    on_bad_sample: Literal["error", "skip"] = data_flag(
        "error", "unreadable samples: error stops the run; skip replaces them in training and omits them in evaluation"
    )
    cache: Literal["none", "memory", "disk"] = data_flag(
        "memory",
        "cache of decoded samples: memory (until the run ends), disk (for later runs too) or none; limited to part of "
        "the free memory or disk space",
    )
    workers: NonNegativeInt = data_flag(2, "data-loader workers per rank; 0 loads in the training process")

    batch_size: PositiveInt = training_flag(
        8, "images per batch on each rank; an optimiser step takes --accumulate batches of every rank"
    )
    accumulate: PositiveInt = training_flag(1, "batches per optimiser step on each rank")
    epochs: NonNegativeInt = training_flag(12, "passes over the training images; 0 scores the weights as they are")
    max_steps: PositiveInt | None = training_flag(
        None, "stop after N optimiser steps, whatever --epochs says; default: no limit"
    )
    validate_every: PositiveInt = training_flag(
        1, "score the validation images after every Nth epoch; N must divide --epochs"
    )
    patience: NonNegativeInt = training_flag(
        0, "early stopping: stop after N validations without a better score; 0: never"
    )
    optimizer: Literal["adamw", "sgd", "rmsprop"] = training_flag("adamw", "optimiser")
    lr: PositiveFloat = training_flag(
        None,
        f"base learning rate; it is not scaled with the batch size; default: {LR_OF_RANDOM_WEIGHTS:g}, or "
        f"{LR_OF_TRAINED_WEIGHTS:g} with --weights or --start-from",
    )
    momentum: NonNegativeFloat = training_flag(0.9, "momentum of --optimizer sgd and rmsprop")
    weight_decay: NonNegativeFloat = training_flag(
        1e-4, "weight decay; never applied to normalisation layers and biases"
    )
    schedule: str = training_flag(
        "poly", "learning-rate schedule after warm-up: poly, cosine, step, exponential or constant", variable=SCHEDULES
    )
    milestones: list[PositiveFloat] | None = training_flag(
        None,
        "fractions of all steps after which --schedule step divides the rate by ten; default: at one third and two "
        "thirds of the steps after warm-up",
    )
    warmup: NonNegativeFloat = training_flag(
        0.05, "learning-rate warm-up: fraction of all steps over which the rate first rises linearly"
    )
    backbone_lr_mult: NonNegativeFloat = training_flag(1.0, "learning rate of the backbone, as a multiple of --lr")
    bias_lr_mult: NonNegativeFloat = training_flag(
        1.0, "learning rate of the biases of linear layers and convolutions, as a multiple of that of the weights"
    )
    layer_decay: PositiveFloat = training_flag(
        1.0, "layer-wise learning-rate decay: each backbone layer's rate is this times that of the next layer; 1: none"
    )
    freeze_backbone: bool = training_flag(
        False, "train the head only; the backbone's weights and batch-norm statistics stay as they are"
    )
    freeze_stages: NonNegativeInt = training_flag(
        0,
        "freeze the layers that the first N maps of the backbone depend on, with the statistics of their batch norms; "
        "0: none",
    )
    freeze_norms: bool = training_flag(
        False, "freeze the running statistics of the backbone's batch norms; all parameters are still trained"
    )
    norm_momentum: PositiveFloat | None = training_flag(
        None,
        "batch norms: share of each batch in the running statistics, such as 0.0003 in DeepLab; default: 0.1 or the "
        "network's own",
    )
    loss: str = training_flag(
        "cross_entropy",
        "loss, or a weighted sum such as cross_entropy+0.5*dice; heads that find objects bring their own",
        terms=LOSSES,
    )
    class_weights: str = training_flag(
        "none",
        "class weights in the loss: median_frequency, inverse_log, a file with one number per class, or none",
        path=True,
    )
    label_smoothing: NonNegativeFloat = training_flag(
        0.0, "label smoothing: fraction of the target probability that is spread over all classes"
    )
    aux_weight: NonNegativeFloat | None = training_flag(
        None,
        "weight of the auxiliary loss (an FCN head on the stride-16 map, or GoogLeNet's classifiers); default: no "
        "auxiliary head, 0.3 for googlenet",
    )
    clip_gradient: NonNegativeFloat = training_flag(
        0.0, "gradient clipping: maximum norm of the gradient; 0: no clipping"
    )
    ema: NonNegativeFloat = training_flag(
        0.0,
        "decay of an exponential moving average (EMA) of the weights, which is then evaluated and saved; 0: no EMA",
    )
    staged: bool = training_flag(
        False,
        "train in the stages of the paper, such as fcn32s and fcn16s before fcn8s, or vgg11 before vgg16 (classifier)",
    )
    seed: NonNegativeInt = training_flag(
        0, "random seed of weight initialisation, sample order, augmentation and dropout"
    )

    accelerator: str = hardware_flag("auto", "accelerator: cpu, gpu, mps, or auto")
    devices: str = hardware_flag(
        "auto",
        "training processes (ranks) per machine, usually one per GPU: a number, or auto, which takes every visible "
        "GPU; the global batch grows with the number",
    )
    nodes: PositiveInt = hardware_flag(1, "machines (nodes) that train together")
    strategy: str = hardware_flag(
        "auto", "division of work among ranks: auto, ddp, fsdp2 (shards the weights) or another one of Lightning's"
    )
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = hardware_flag(
        "auto",
        "float32, or automatic mixed precision with float16 or bfloat16; auto: bf16-mixed on hardware that multiplies "
        "bfloat16, else 32-true",
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = hardware_flag(
        None,
        "float32 matrix products on GPUs: highest is exact, high uses TF32; default: high, or highest with "
        "--deterministic",
    )
    sync_batchnorm: bool = hardware_flag(False, "synchronise batch-norm statistics over all ranks")
    compile: bool = hardware_flag(False, "compile the network with torch.compile")
    checkpoint_activations: bool = hardware_flag(
        False, "activation checkpointing: recompute blocks in the backward pass; less memory, about a third slower"
    )
    deterministic: bool = hardware_flag(
        False, "use only deterministic GPU kernels, so that results repeat bit for bit; slower"
    )

    name: str | None = folder_flag(
        None,
        "name of the run and of its folder in --out; default: BACKBONE-HEAD-DATA, with a number if that is taken",
    )
    out: str = folder_flag("runs", "folder that run folders are made in", path=True)
    resume: bool = folder_flag(
        False, "continue an existing run even if it is finished; unfinished runs continue without this flag"
    )
    checkpoint_every: NonNegativeInt = folder_flag(
        0,
        "also save last.ckpt every N optimiser steps, so that a killed run loses at most N steps; 0: after each epoch "
        "only",
    )

    logger: list[Literal["csv", "wandb", "tensorboard"]] = logging_flag(
        ("csv",), "where to log curves; several may be named; csv (metrics.csv) is always written"
    )
    wandb_project: str | None = logging_flag(
        None, "W&B project for --logger wandb; default: the environment variable WANDB_PROJECT, or graft"
    )
    wandb_group: str | None = logging_flag(
        None, "W&B group of the run, for example one group for all seeds of a network; default: none"
    )
    wandb_tags: list[str] | None = logging_flag(None, "tags of the W&B run; several may be given; default: none")
    wandb_checkpoint: bool = logging_flag(False, "upload the best checkpoint as an artifact of the W&B run")

    def __post_init__(self) -> None:
        if self.lr is None:
            trained = self.weights != "none" or self.start_from is not None
            self.lr = LR_OF_TRAINED_WEIGHTS if trained else LR_OF_RANDOM_WEIGHTS

    @property
    def run_name(self) -> str:
        return self.name or f"{self.backbone}-{self.head}-{self.data}".replace("/", "_")

    @property
    def size(self) -> tuple[int, int] | None:
        """`--image-size` as (H, W)."""
        return (self.image_size[0], self.image_size[-1]) if self.image_size else None
