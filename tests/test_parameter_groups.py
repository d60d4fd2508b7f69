"""Learning rates and weight decay of each parameter."""

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from heads import HEADS
from lightning_modules.network import Network
from lightning_modules.parameter_groups import decayed_parameters, parameter_groups
from lightning_modules.segmentation import SegmentationModule

NAMES = ("sky", "road", "car")
WITHOUT_DECAY = (
    "class_token", "pos_embedding", "layer_scale", "logit_scale", "relative_position_bias_table",
    "cpb_mlp.0.weight", "cpb_mlp.2.weight",
)  # fmt: skip
"""Ends of the names of all parameters with two or more axes that are no weights of a layer."""


def decayed_names(module: nn.Module) -> set[str]:
    decayed = {id(parameter) for parameter in decayed_parameters(module)}
    return {name for name, parameter in module.named_parameters() if id(parameter) in decayed}


@pytest.mark.parametrize("name", BACKBONES)
def test_only_weights_of_layers_decay(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    expected = {
        name
        for name, parameter in backbone.named_parameters()
        if parameter.ndim > 1 and not name.endswith(WITHOUT_DECAY)
    }
    assert decayed_names(backbone) == expected


@pytest.mark.parametrize("name", HEADS)
def test_only_weights_of_layers_decay_in_heads(name: str) -> None:
    with torch.device("meta"):
        head = Network("vgg16" if name == "deeplabv1" else "resnet18", name, 3).head
    assert decayed_names(head) == {name for name, parameter in head.named_parameters() if parameter.ndim > 1}


def test_the_weights_of_attention_decay_and_its_positions_do_not() -> None:
    with torch.device("meta"):
        swin, vit, convnext = (BACKBONES[name]() for name in ("swin_v2_t", "vit_b_32", "convnext_tiny"))
    block = {name.rpartition("attn.")[2] for name in decayed_names(swin) if ".attn." in name}
    assert block == {"qkv.weight", "proj.weight"}
    layer = "encoder.layers.encoder_layer_0."
    of_layer = {name.removeprefix(layer) for name in decayed_names(vit) if name.startswith(layer)}
    assert of_layer == {
        "self_attention.in_proj_weight", "self_attention.out_proj.weight", "mlp.0.weight", "mlp.3.weight"
    }  # fmt: skip
    assert not any(name.endswith("layer_scale") for name in decayed_names(convnext))


def test_deformable_and_transposed_convolutions_decay() -> None:
    network = Network("resnet18", "fcn8s", 3, backbone_options={"deformable": 1})
    kinds = {
        type(module).__name__
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) in {id(one) for one in decayed_parameters(network)}
    }
    assert {"DeformableConv2d", "CPUConv2d"} < kinds
    assert any(isinstance(module, nn.ConvTranspose2d) for module in network.head.modules())
    transposed = [module.weight for module in network.head.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert {id(weight) for weight in transposed} <= {id(one) for one in decayed_parameters(network)}


def test_groups_spare_norms_and_biases_and_slow_the_backbone() -> None:
    module = SegmentationModule("resnet18", "unet", NAMES)
    groups = parameter_groups(module.network, 1.0, 0.1, 5e-4)
    counted = [p for group in groups for p in group["params"]]
    assert len(counted) == len(list(module.parameters()))
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (parameter.ndim == 1)
    backbone = {id(p) for p in module.network.backbone.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.1 if id(parameter) in backbone else 1.0)


def test_rates_fall_towards_the_image() -> None:
    module = SegmentationModule("resnet18", "unet", NAMES, layer_decay=0.5)
    groups = parameter_groups(module.network, 1.0, 0.8, 1e-4, 0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(module.parameters()))
    backbone = module.network.backbone
    assert rates[id(backbone.layer4[1].conv1.weight)] == pytest.approx(0.8 * 0.5)
    assert rates[id(backbone.layer4[0].conv1.weight)] == pytest.approx(0.8 * 0.25)
    assert rates[id(backbone.conv1.weight)] == rates[id(backbone.bn1.weight)] == pytest.approx(0.8 * 0.5**9)
    assert decays[id(backbone.bn1.weight)] == 0
    assert all(rates[id(p)] == 1 for p in module.network.head.parameters())
    assert groups[-1]["lr"] == 1  # what metrics.csv shows


@pytest.mark.parametrize(
    ("backbone", "head", "weight"), [("resnet18", "fcn", 0.4), ("resnet18", "fcn", None), ("googlenet", "unet", 0.4)]
)
def test_every_parameter_is_optimised_the_auxiliary_heads_too(backbone: str, head: str, weight: float | None) -> None:
    module = SegmentationModule(backbone, head, NAMES, aux_weight=weight)
    grouped = [id(p) for group in parameter_groups(module.network, 1.0, 0.1, 5e-4) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    assert (module.network.aux_head is not None) == (weight is not None)
