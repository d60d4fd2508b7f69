"""Backbones by name. To add one: a file in this folder, an import, and a line in the dict."""

import difflib
from collections.abc import Callable
from functools import partial

from backbones.alexnet import AlexNet
from backbones.backbone import Backbone
from backbones.convnext import ConvNeXt
from backbones.densenet import DenseNet
from backbones.densenet_cifar import DenseNetCifar
from backbones.efficientnet import EfficientNet
from backbones.efficientnet_lite import EfficientNetLite
from backbones.googlenet import GoogLeNet
from backbones.lenet import LeNet
from backbones.mobilenet_v1 import MobileNetV1
from backbones.mobilenet_v2 import MobileNetV2
from backbones.mobilenet_v3 import MobileNetV3
from backbones.resnet import ResNet
from backbones.resnet_cifar import ResNetCifar
from backbones.resnet_preactivation import PreActivationResNet
from backbones.senet import SENet
from backbones.swin import Swin
from backbones.timm_backbone import TimmBackbone
from backbones.unet_encoder import UNetEncoder
from backbones.vgg import VGG
from backbones.vit import ViT
from backbones.wide_resnet_cifar import WideResNetCifar
from backbones.xception import Xception
from backbones.xception_aligned import XceptionAligned
from backbones.yolo import YOLO
from backbones.zfnet import ZFNet

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "lenet5": partial(LeNet, "lenet5"),
    "alexnet": partial(AlexNet, "alexnet"),
    "alexnet_2gpu": partial(AlexNet, "alexnet_2gpu"),
    "zfnet": partial(ZFNet, "zfnet"),
    "vgg11": partial(VGG, "vgg11"),
    "vgg13": partial(VGG, "vgg13"),
    "vgg16": partial(VGG, "vgg16"),
    "vgg19": partial(VGG, "vgg19"),
    "vgg11_bn": partial(VGG, "vgg11_bn"),
    "vgg13_bn": partial(VGG, "vgg13_bn"),
    "vgg16_bn": partial(VGG, "vgg16_bn"),
    "vgg19_bn": partial(VGG, "vgg19_bn"),
    "unet_encoder": partial(UNetEncoder, "unet_encoder"),
    "yolov1": partial(YOLO, "yolov1"),
    "resnet18": partial(ResNet, "resnet18"),
    "resnet34": partial(ResNet, "resnet34"),
    "resnet50": partial(ResNet, "resnet50"),
    "resnet101": partial(ResNet, "resnet101"),
    "resnet152": partial(ResNet, "resnet152"),
    "wide_resnet50_2": partial(ResNet, "wide_resnet50_2"),
    "wide_resnet101_2": partial(ResNet, "wide_resnet101_2"),
    "resnext50_32x4d": partial(ResNet, "resnext50_32x4d"),
    "resnext101_32x4d": partial(ResNet, "resnext101_32x4d"),
    "resnext101_32x8d": partial(ResNet, "resnext101_32x8d"),
    "resnext101_64x4d": partial(ResNet, "resnext101_64x4d"),
    "resnet20": partial(ResNetCifar, "resnet20"),
    "resnet32": partial(ResNetCifar, "resnet32"),
    "resnet44": partial(ResNetCifar, "resnet44"),
    "resnet56": partial(ResNetCifar, "resnet56"),
    "resnet110": partial(ResNetCifar, "resnet110"),
    "resnetv2_50": partial(PreActivationResNet, "resnetv2_50"),
    "resnetv2_101": partial(PreActivationResNet, "resnetv2_101"),
    "resnetv2_152": partial(PreActivationResNet, "resnetv2_152"),
    "resnetv2_200": partial(PreActivationResNet, "resnetv2_200"),
    "wrn16_8": partial(WideResNetCifar, "wrn16_8"),
    "wrn28_10": partial(WideResNetCifar, "wrn28_10"),
    "wrn40_4": partial(WideResNetCifar, "wrn40_4"),
    "se_resnet50": partial(SENet, "se_resnet50"),
    "se_resnet101": partial(SENet, "se_resnet101"),
    "se_resnet152": partial(SENet, "se_resnet152"),
    "se_resnext50_32x4d": partial(SENet, "se_resnext50_32x4d"),
    "se_resnext101_32x4d": partial(SENet, "se_resnext101_32x4d"),
    "senet154": partial(SENet, "senet154"),
    "googlenet": partial(GoogLeNet, "googlenet"),
    "densenet121": partial(DenseNet, "densenet121"),
    "densenet161": partial(DenseNet, "densenet161"),
    "densenet169": partial(DenseNet, "densenet169"),
    "densenet201": partial(DenseNet, "densenet201"),
    "densenet40": partial(DenseNetCifar, "densenet40"),
    "densenet100_bc": partial(DenseNetCifar, "densenet100_bc"),
    "xception": partial(Xception, "xception"),
    "xception41": partial(XceptionAligned, "xception41"),
    "xception65": partial(XceptionAligned, "xception65"),
    "xception71": partial(XceptionAligned, "xception71"),
    "mobilenet_v1_025": partial(MobileNetV1, "mobilenet_v1_025"),
    "mobilenet_v1_050": partial(MobileNetV1, "mobilenet_v1_050"),
    "mobilenet_v1_075": partial(MobileNetV1, "mobilenet_v1_075"),
    "mobilenet_v1": partial(MobileNetV1, "mobilenet_v1"),
    "mobilenet_v1_125": partial(MobileNetV1, "mobilenet_v1_125"),
    "mobilenet_v2": partial(MobileNetV2, "mobilenet_v2"),
    "mobilenet_v3_small": partial(MobileNetV3, "mobilenet_v3_small"),
    "mobilenet_v3_large": partial(MobileNetV3, "mobilenet_v3_large"),
    "efficientnet_b0": partial(EfficientNet, "efficientnet_b0"),
    "efficientnet_b1": partial(EfficientNet, "efficientnet_b1"),
    "efficientnet_b2": partial(EfficientNet, "efficientnet_b2"),
    "efficientnet_b3": partial(EfficientNet, "efficientnet_b3"),
    "efficientnet_b4": partial(EfficientNet, "efficientnet_b4"),
    "efficientnet_b5": partial(EfficientNet, "efficientnet_b5"),
    "efficientnet_b6": partial(EfficientNet, "efficientnet_b6"),
    "efficientnet_b7": partial(EfficientNet, "efficientnet_b7"),
    "efficientnet_v2_s": partial(EfficientNet, "efficientnet_v2_s"),
    "efficientnet_v2_m": partial(EfficientNet, "efficientnet_v2_m"),
    "efficientnet_v2_l": partial(EfficientNet, "efficientnet_v2_l"),
    "efficientnet_lite0": partial(EfficientNetLite, "efficientnet_lite0"),
    "efficientnet_lite1": partial(EfficientNetLite, "efficientnet_lite1"),
    "efficientnet_lite2": partial(EfficientNetLite, "efficientnet_lite2"),
    "efficientnet_lite3": partial(EfficientNetLite, "efficientnet_lite3"),
    "efficientnet_lite4": partial(EfficientNetLite, "efficientnet_lite4"),
    "vit_b_16": partial(ViT, "vit_b_16"),
    "vit_b_32": partial(ViT, "vit_b_32"),
    "vit_l_16": partial(ViT, "vit_l_16"),
    "swin_t": partial(Swin, "swin_t"),
    "swin_s": partial(Swin, "swin_s"),
    "swin_b": partial(Swin, "swin_b"),
    "swin_v2_t": partial(Swin, "swin_v2_t"),
    "swin_v2_s": partial(Swin, "swin_v2_s"),
    "swin_v2_b": partial(Swin, "swin_v2_b"),
    "convnext_tiny": partial(ConvNeXt, "convnext_tiny"),
    "convnext_small": partial(ConvNeXt, "convnext_small"),
    "convnext_base": partial(ConvNeXt, "convnext_base"),
    "convnext_large": partial(ConvNeXt, "convnext_large"),
}


def find_backbone(name: str) -> Callable[..., Backbone]:
    """Return the constructor for a backbone name: an entry of `BACKBONES`, or for timm/NAME a timm model.

    Raises:
        ValueError: no backbone has that name; the message lists the nearest.
    """
    if name.startswith("timm/"):
        return partial(TimmBackbone, name.removeprefix("timm/"))
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, cutoff=0.4) or list(BACKBONES)
        raise ValueError(f"no backbone '{name}'; nearest: {', '.join(near)}")
    return BACKBONES[name]
