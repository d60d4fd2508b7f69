"""Segmentation networks against torchvision's, decoders against segmentation_models.pytorch, on the same weights.

Where structures differ from the oracle's, the test says how and compares what coincides.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from heads.aspp import ASPP
from heads.conv_norm import conv_bn_relu, separable_conv
from heads.deeplab import DeepLabV3Plus
from heads.lraspp import LRASPP
from heads.unet import double_conv
from lightning_modules.network import Network
from tests.conftest import randomise

pytestmark = pytest.mark.usefixtures("quick_weights")

CLASSES = 21
DEEPLABV3 = {
    "classifier.0.convs.0.": "head.aspp.pointwise.",
    "classifier.0.convs.1.": "head.aspp.atrous.0.",
    "classifier.0.convs.2.": "head.aspp.atrous.1.",
    "classifier.0.convs.3.": "head.aspp.atrous.2.",
    "classifier.0.convs.4.1.": "head.aspp.pooled.conv.",
    "classifier.0.convs.4.2.": "head.aspp.pooled.norm.",
    "classifier.0.project.": "head.aspp.project.",
    "classifier.1.": "head.refine.0.",
    "classifier.2.": "head.refine.1.",
    "classifier.4.": "head.score.",
    "aux_classifier.": "aux_head.layers.",
}
FCN = {"classifier.": "head.layers.", "aux_classifier.": "aux_head.layers."}


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The state dict with the longest prefix of each name replaced."""
    result = {}
    for key, value in state.items():
        prefix = max((name for name in names if key.startswith(name)), key=len, default="")
        result[names.get(prefix, "") + key.removeprefix(prefix)] = value
    return result


def give(ours: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A module built without memory takes over the oracle's own tensors, every one of them."""
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval()


@pytest.mark.parametrize(
    ("oracle", "backbone", "head", "names", "published"),
    [
        ("fcn_resnet50", "resnet50", "fcn", FCN, 35_322_218),
        ("fcn_resnet101", "resnet101", "fcn", FCN, 54_314_346),
        ("deeplabv3_resnet50", "resnet50", "deeplabv3", DEEPLABV3, 42_004_074),
        ("deeplabv3_resnet101", "resnet101", "deeplabv3", DEEPLABV3, 60_996_202),
    ],
)
def test_networks_equal_torchvisions(oracle: str, backbone: str, head: str, names: dict, published: int) -> None:
    """With the auxiliary head, at output stride 8, the one torchvision builds."""
    build = segmentation.__dict__[oracle]
    theirs = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    theirs = randomise(theirs).eval()
    with torch.device("meta"):
        ours = Network(backbone, head, CLASSES, output_stride=8, aux=True)
    ours = give(ours, renamed(theirs.state_dict(), names))
    assert sum(parameter.numel() for parameter in ours.parameters()) == published
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, (logits, (aux,)) = theirs(x), ours.forward_with_aux(x)
        torch.testing.assert_close(ours(x), logits)
    scale = expected["out"].abs().max().item()
    torch.testing.assert_close(logits, expected["out"], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(aux, expected["aux"], rtol=0, atol=1e-5 * expected["aux"].abs().max().item())


def test_lraspp_equals_torchvision() -> None:
    """Torchvision reads the first of three maps at stride 8, ours the last; given that one, the networks are equal."""
    theirs = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    theirs = randomise(theirs).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, features = theirs(x)["out"], theirs.backbone(x)
        last = list(theirs.backbone.children())[-1]
        assert features["high"].shape[1] == last[0].out_channels == 960
    ours = LRASPP((16, 24, 40, 112, 960), (2, 4, 8, 16, 16), CLASSES).eval()
    ours.load_state_dict(theirs.classifier.state_dict(), strict=True)
    with torch.no_grad():
        logits = ours([x, x, features["low"], x, features["high"]])
        logits = nn.functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected)


def plain_norms(module: nn.Module) -> None:
    """Batch norms that change nothing in eval mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.running_var, 1 - part.eps)


def separable(prefix: str, place: str) -> dict[str, str]:
    """Their depthwise and pointwise convolution and its norm -> ours."""
    return {
        f"{prefix}.0.0.": f"{place}.0.",
        f"{prefix}.0.1.": f"{place}.3.",
        f"{prefix}.1.": f"{place}.4.",
    }


def test_aspp_of_deeplabv3plus_equals_smps_but_for_a_norm() -> None:
    """Ours has batch norm and ReLU between depthwise and pointwise, as the paper's code; smp has nothing there.

    With that norm at rest and nothing negative before it, the pyramids are equal.
    """
    import segmentation_models_pytorch.decoders.deeplabv3.decoder as smp_deeplab

    theirs = smp_deeplab.ASPP(32, 16, (6, 12, 18), separable=True, dropout=0.5)
    randomise(theirs).eval()
    for branch in list(theirs.convs)[1:4]:
        branch[0][0].weight.data.abs_()
    names = {
        "convs.0.": "pointwise.",
        "convs.4.1.": "pooled.conv.",
        "convs.4.2.": "pooled.norm.",
        "project.": "project.",
    }
    for i in range(3):
        names |= separable(f"convs.{i + 1}", f"atrous.{i}")
    ours = ASPP(32, 16, (6, 12, 18), separable_conv).eval()
    plain_norms(ours)
    state = renamed(theirs.state_dict(), names)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert {name.split(".")[2] for name in missing} == {"1"}  # the norm between
    x = torch.rand(2, 32, 13, 17)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_aspp_without_that_norm_equals_smps() -> None:
    import segmentation_models_pytorch.decoders.deeplabv3.decoder as smp_deeplab

    theirs = randomise(smp_deeplab.ASPP(32, 16, (6, 12, 18), separable=True, dropout=0.5)).eval()
    head = DeepLabV3Plus((8, 32), (4, 16), CLASSES, depthwise_norm=False)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in head.modules()) == 9, "one each, and no norm between"
    ours = ASPP(32, 16, (6, 12, 18), partial(separable_conv, depthwise_norm=False)).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), strict=True)
    x = torch.randn(2, 32, 13, 17)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_decoder_of_deeplabv3plus_equals_smps_where_it_is_built_alike() -> None:
    """The 48-channel path, and the first of our two separable convolutions, of which smp has one (the paper, two)."""
    import segmentation_models_pytorch.decoders.deeplabv3.decoder as smp_deeplab

    theirs = smp_deeplab.DeepLabV3PlusDecoder((3, 8, 12, 16, 24, 32), 5, 256, (6, 12, 18), 16, True, 0.5)
    randomise(theirs).eval()
    theirs.block2[0][0].weight.data.abs_()
    reduce, decode = conv_bn_relu(12, 48, 1).eval(), separable_conv(256 + 48, 256, 1).eval()
    reduce.load_state_dict(theirs.block1.state_dict(), strict=True)
    plain_norms(decode)
    names = {"0.0.": "0.", "0.1.": "3.", "1.": "4."}
    assert not decode.load_state_dict(renamed(theirs.block2.state_dict(), names), strict=False).unexpected_keys
    low, pyramid = torch.rand(2, 12, 16, 20), torch.rand(2, 256, 16, 20)
    with torch.no_grad():
        torch.testing.assert_close(reduce(low), theirs.block1(low))
        joined = torch.cat((pyramid, reduce(low)), 1)
        torch.testing.assert_close(decode(joined), theirs.block2(joined))


def test_unet_levels_equal_smps() -> None:
    """Smp enlarges to the nearest, joins in the other order and goes on to the image's size; a level is the same."""
    import segmentation_models_pytorch.decoders.unet.decoder as smp_unet

    theirs = smp_unet.UnetDecoderBlock(24, 12, 16)
    randomise(theirs).eval()
    ours = double_conv(12 + 24, 16, norm=True, valid=False).eval()
    names = {"conv1.0.": "0.", "conv1.1.": "1.", "conv2.0.": "3.", "conv2.1.": "4."}
    state = renamed(theirs.state_dict(), names)
    state["0.weight"] = torch.cat(state["0.weight"].split((24, 12), 1)[::-1], 1)
    ours.load_state_dict(state, strict=True)
    x, skip = torch.randn(2, 24, 10, 14), torch.randn(2, 12, 10, 14)
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.cat((skip, x), 1)), theirs(x, 10, 14, skip))
