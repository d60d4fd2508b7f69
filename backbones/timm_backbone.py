"""PyTorch Image Models. Wightman 2019, https://github.com/huggingface/pytorch-image-models (Apache-2.0).

`timm/NAME` wraps any timm model that supports `features_only` in Graft's `Backbone` interface, for architectures that
have no file of their own here. timm is an optional extra (`pip install graft[timm]`). Initialisation, weights and
dilation are timm's own: an output stride that timm cannot build is refused. If several maps have the same stride, only
the deepest is kept. A transformer of fixed image size keeps its size. The classifier is a pooled linear layer that is
not pretrained. Models with TensorFlow's SAME padding (`tf_...`) compute maps that move with the size of the image; the
option `pad_as_even`, which heads that label pixels or find boxes are given, pads their images by zeros to multiples of
32 and crops the maps (see `backbones.efficientnet_lite`).
"""

import difflib
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone, print_once
from backbones.classifiers import PooledClassifier
from backbones.state_dicts import StateDict, candidates
from backbones.weights import read_weights


class TimmBackbone(Backbone):
    """The timm model of this name; maps as timm's `feature_info` states them.

    Raises:
        ValueError: timm is not installed, has no such model, or cannot build it so.
    """

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        pad_as_even: bool = False,
    ) -> None:
        super().__init__(variant)
        timm = import_timm()
        if not timm.is_model(variant):
            near = difflib.get_close_matches(variant, timm.list_models(), n=5, cutoff=0.4)
            raise ValueError(f"timm has no model '{variant}'; nearest: {', '.join(f'timm/{name}' for name in near)}")
        self.options = {"features_only": True, "in_chans": in_channels}
        if output_stride != 32:  # most timm models reject `output_stride`, so pass it only if it is not the default
            self.options["output_stride"] = output_stride
        refused = f"output_stride is {output_stride}; timm cannot build {variant} so with features_only"
        try:
            self.timm_model = timm.create_model(variant, **self.options)
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
            raise ValueError(f"{refused}: {one_line(error)}") from error
        info, config = self.timm_model.feature_info, self.timm_model.pretrained_cfg
        reductions = info.reduction()
        if reductions[-1] > output_stride:
            raise ValueError(f"{refused}: its last map is at stride {reductions[-1]}")
        self.kept = [
            i for i, reduction in enumerate(reductions) if output_stride != 32 or reduction not in reductions[i + 1 :]
        ]
        self.channels = tuple(info.channels()[i] for i in self.kept)
        self.reductions = tuple(reductions[i] for i in self.kept)
        self.pads = pad_as_even and any(type(layer).__name__.endswith("Same") for layer in self.timm_model.modules())
        self.channels_last = getattr(self.timm_model, "output_fmt", "NCHW") == "NHWC"
        self.input_size = config["input_size"][-1]
        self.mean, self.std = config["mean"], config["std"]
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[2:]
        if self.pads:
            x = F.pad(x, (0, -width % 32, 0, -height % 32))
        maps = self.timm_model(x)
        maps = [maps[i].permute(0, 3, 1, 2) if self.channels_last else maps[i] for i in self.kept]
        if self.pads:
            sides = [((height + r - 1) // r, (width + r - 1) // r) for r in self.reductions]
            maps = [one[:, :, :rows, :columns] for one, (rows, columns) in zip(maps, sides, strict=True)]
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        """Global average pooling and one linear layer, untrained: timm's classifiers do not follow `features_only`."""
        return PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes))

    def pixels_between(self, level: int, finer: int, side: int) -> float:
        raise ValueError(f"--placement centred: timm does not say where the maps of {self.variant} begin; use placed")

    def published_url(self) -> str:
        config = self.timm_model.pretrained_cfg
        if config.get("hf_hub_id"):
            return f"https://huggingface.co/{config['hf_hub_id']}/resolve/main/model.safetensors"
        if config.get("url"):
            return config["url"]
        raise ValueError(f"no weights are published for timm/{self.variant}; use --weights FILE or none")

    def published_top1(self) -> float | None:
        return None

    def load(self, weights: str | None, classifier: nn.Module | None = None) -> None:
        """Load "imagenet" through timm, or a local file: a run's own, or one of the whole model in timm's names.

        Only a run's own file fills `classifier`, because `features_only` models have none.
        """
        if weights is None or weights == "none":
            return
        timm = import_timm()
        source = {}
        if weights == "imagenet":
            self.published_url()
        else:
            file = read_weights(weights)
            found = list(candidates(file.state))
            if any(key.startswith("timm_model.") for key in found[0][1]):
                return super().load(weights, classifier)
            with torch.device("meta"):
                names = timm.create_model(self.variant).state_dict().keys()
            prefix, state = max(found, key=lambda one: len(names & one[1].keys()))
            # Loading into features_only is lenient, so a file is first tried on the whole model, which is strict.
            self.try_whole_model(weights, state)
            source = {"state_dict": state}
            note = f", named there with the prefix '{prefix}'" if prefix else ""
            print_once(f"--weights {weights}: {len(state)} tensors of timm/{self.variant}{note}")
        try:
            trained = timm.create_model(self.variant, pretrained=True, pretrained_cfg_overlay=source, **self.options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"--weights {weights} could not be loaded into timm/{self.variant} ({one_line(error)}). On a machine "
                f"with a network, download {self.published_url()} and give it as --weights FILE"
            ) from error
        self.timm_model.load_state_dict(trained.state_dict(), strict=True)

    def try_whole_model(self, weights: str, state: StateDict) -> None:
        timm = import_timm()
        config = timm.get_pretrained_cfg(self.variant)
        name = config.classifier[0] if isinstance(config.classifier, tuple) else config.classifier
        head = state.get(f"{name}.weight")
        classes = config.num_classes if head is None else len(head)
        try:
            timm.create_model(
                self.variant,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": classes},
                num_classes=classes,
                in_chans=self.options["in_chans"],
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"--weights {weights} does not fit timm/{self.variant}: {one_line(error)}") from error


def import_timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ValueError("backbones named timm/NAME need timm: pip install graft[timm]") from None
    return timm


def one_line(error: Exception) -> str:
    """The start of an exception's message; some of timm's refusals are bare assertions."""
    text = " ".join(str(error).split()) or f"a {type(error).__name__} without a message"
    return text if len(text) <= 200 else f"{text[:200]} …"
