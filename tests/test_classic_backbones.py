"""What only LeNet, AlexNet, ZFNet, VGG and U-Net have: published sizes, fc6 and fc7 as maps, staged starts."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from backbones import BACKBONES
from backbones import backbone as backbone_module
from backbones.alexnet import VARIANTS as ALEXNETS
from backbones.alexnet import TowerNorm
from backbones.alexnet_towers import TowersOnDevices
from backbones.backbone import Backbone
from backbones.fully_connected import FullyConnected
from backbones.vgg import VARIANTS as VGGS
from backbones.weights import Checkpoint
from experiments.analysis.receptive_field import traced
from lightning_modules.network import Network
from tests.conftest import randomise
from tests.test_backbones import relative

pytestmark = pytest.mark.usefixtures("quick_weights")

FULLY_CONNECTED = [*ALEXNETS, "zfnet", *VGGS]
# One of each layout of layers: the tests below build networks of more than 100 M parameters.
DENSE = ["alexnet", "alexnet_2gpu", "zfnet", "vgg11"]


def sides(backbone: Backbone, image: int) -> list[int]:
    with torch.device("meta"):
        return [one.shape[-1] for one in backbone.to("meta")(torch.empty(1, 3, image, image))]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_alexnet_has_the_papers_sides() -> None:
    backbone = BACKBONES["alexnet_2gpu"]().to("meta")
    x, pooled = torch.empty(1, 3, 227, 227, device="meta"), []
    for layer in backbone.features:
        x = layer(x)
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            pooled.append((x.shape[1], x.shape[2]))
    assert pooled == [(96, 55), (96, 27), (256, 27), (256, 13), (384, 13), (384, 13), (256, 13), (256, 6)]
    assert backbone.input_size == 227


def test_the_towers_meet_at_the_third_convolution_only() -> None:
    backbone = BACKBONES["alexnet_2gpu"]().eval()
    convolutions = [layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]
    assert [convolution.groups for convolution in convolutions] == [1, 2, 1, 2, 2]
    x = torch.randn(1, 3, 67, 67)
    with torch.inference_mode():
        before = backbone(x)
        convolutions[0].weight[48:] = 0  # the second tower's filters
        after = backbone(x)
    assert torch.equal(before[1][:, :128], after[1][:, :128])
    assert not torch.equal(before[2][:, :128], after[2][:, :128])


def test_towers_on_two_devices_compute_the_same() -> None:
    """With a second device that computes no values, the second tower's layers are seen to lie there."""
    whole = BACKBONES["alexnet_2gpu"]()
    split = TowersOnDevices(whole, ("cpu", "cpu"))
    x = torch.randn(2, 3, 99, 67)
    for one, other in zip(split(x), whole(x), strict=True):
        torch.testing.assert_close(one, other)
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in whole.parameters())
    apart = TowersOnDevices(whole, ("cpu", "meta"))
    assert [{p.device.type for p in tower.parameters()} for tower in apart.towers] == [{"cpu"}, {"meta"}]
    with pytest.raises(ValueError, match="for the two towers of alexnet_2gpu"):
        TowersOnDevices(BACKBONES["alexnet"](), ("cpu", "cpu"))


def test_response_normalisation_is_the_papers() -> None:
    x = torch.randn(2, 16, 3, 3) * 50
    wanted = torch.empty_like(x)
    for tower in (range(8), range(8, 16)):
        for i in tower:
            near = [j for j in range(i - 2, i + 3) if j in tower]
            wanted[:, i] = x[:, i] / (2 + 1e-4 * (x[:, near] ** 2).sum(1)) ** 0.75
    torch.testing.assert_close(TowerNorm(2)(x), wanted)


@pytest.mark.parametrize("name", ["alexnet_2gpu", "zfnet"])
def test_images_have_the_scale_of_the_papers_constants(name: str) -> None:
    """Weights of N(0, 0.01), biases of 1 and an alpha of 1e-4 are for pixels from 0 to 255 minus their mean."""
    backbone = BACKBONES[name]()
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :227, :227]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    x = (photograph / 255 - mean) / std
    torch.testing.assert_close(x, photograph - 255 * mean, rtol=0, atol=1e-3)
    with torch.inference_mode():
        first = backbone(x)[0].relu()
    positive = first[first > 0]
    assert 3 < positive.std().item() < 30
    padded = torch.nn.functional.pad(first.square(), (0, 0, 0, 0, 2, 2))
    sums = 1e-4 * sum(padded[:, i : i + first.shape[1]] for i in range(5))
    assert sums.max().item() > 0.05  # beside a constant of 2; with images divided by std it is 5e-5


def test_response_normalisation_keeps_channels_last() -> None:
    x = torch.randn(2, 16, 5, 4).contiguous(memory_format=torch.channels_last)
    for towers in (1, 2):
        assert TowerNorm(towers)(x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(TowerNorm(towers)(x), TowerNorm(towers)(x.contiguous()))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2gpu", "zfnet", "vgg11", "vgg11_bn"])
def test_half_the_units_of_fc6_and_fc7_are_dropped_and_no_others(name: str) -> None:
    with torch.device("meta"):
        for knobs in ({}, {"fully_convolutional": True}):
            backbone = BACKBONES[name](**knobs)
            classifier = backbone.classifier(10)
            dropouts = [m for part in (backbone, classifier) for m in part.modules() if isinstance(m, nn.Dropout)]
            assert {dropout.p for dropout in dropouts} == {0.5}
            layers = [m for m in classifier.modules() if isinstance(m, (nn.Linear, nn.Dropout, nn.ReLU))]
            kinds = "".join({nn.Linear: "L", nn.Dropout: "D", nn.ReLU: "R"}[type(m)] for m in layers)
            assert knobs or kinds == ("DLRDLRL" if name == "alexnet" else "LRDLRDL")


def test_a_map_of_the_window_is_not_pooled() -> None:
    layers = FullyConnected(3, 6, 4, dropout_first=False, hidden_bias=0.0).eval()
    for side, pools in ((6, 0), (7, 1)):
        with torch.no_grad(), torch.autograd.profiler.profile() as profile:
            layers(torch.randn(1, 3, side, side))
        assert sum(event.name == "aten::adaptive_avg_pool2d" for event in profile.function_events) == pools


@pytest.mark.parametrize(("name", "biases"), [("alexnet", (0, 1, 0, 1, 1)), ("zfnet", (0, 0, 0, 0, 0))])
def test_first_values_are_the_papers(name: str, biases: tuple[int, ...]) -> None:
    convolutions = [m for m in BACKBONES[name]().modules() if isinstance(m, nn.Conv2d)]
    for convolution, bias in zip(convolutions, biases, strict=True):
        assert convolution.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert (convolution.bias == bias).all()


def test_three_small_kernels_see_what_a_large_one_sees() -> None:
    """VGG's argument: 27 C^2 weights and three non-linearities instead of 49 C^2 weights."""
    small, large = [nn.Conv2d(8, 8, 3, bias=False) for _ in range(3)], nn.Conv2d(8, 8, 7, bias=False)
    assert (count(*small), count(large)) == (27 * 64, 49 * 64)
    with torch.device("meta"):
        fields = [traced(network, (32, 32), 8)[1] for network in (nn.Sequential(*small), large)]
    assert [(field.size, field.stride) for field in fields] == [(7, 1), (7, 1)]


def test_zfnet_has_the_papers_sides() -> None:
    assert sides(BACKBONES["zfnet"](), 224) == [110, 55, 26, 13, 6]


@pytest.mark.parametrize("side", [28, 32, 45])
def test_lenet_takes_digits_of_any_side(side: int) -> None:
    backbone = BACKBONES["lenet5"](in_channels=1)
    maps = backbone(torch.randn(2, 1, side, side))
    assert maps[0].shape == (2, 6, (side - 4) // 2, (side - 4) // 2)
    assert side != 32 or maps[1].shape == (2, 16, 5, 5)
    assert backbone.classifier(10)(maps[1]).shape == (2, 10)


def test_unet_encoder_takes_the_papers_tile() -> None:
    assert sides(BACKBONES["unet_encoder"](valid_convolutions=True), 572) == [568, 280, 136, 64, 28]
    for output_stride in (8, 16):
        smallest = BACKBONES["unet_encoder"](valid_convolutions=True, output_stride=output_stride)
        assert sides(smallest, smallest.min_size)[-1] == 1
        with pytest.raises(RuntimeError):
            sides(smallest, smallest.min_size - 1)


def test_unet_encoder_is_exact_with_valid_convolutions() -> None:
    strided = BACKBONES["unet_encoder"](valid_convolutions=True).eval()
    dense = BACKBONES["unet_encoder"](valid_convolutions=True, output_stride=8).eval()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 172, 156)
    with torch.inference_mode():
        assert relative(dense(x)[-1][..., ::2, ::2], strided(x)[-1]) <= 1e-5


def test_unet_encoder_drops_out_its_two_coarsest_maps_in_training() -> None:
    torch.manual_seed(0)
    backbone = BACKBONES["unet_encoder"]()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        one, other = backbone(x), backbone(x)
    assert [torch.equal(a, b) for a, b in zip(one, other, strict=True)] == [True, True, True, False, False]


@pytest.mark.parametrize(("in_channels", "num_classes", "total"), [(1, 2, 31_030_658), (3, 21, 31_033_045)])
def test_unet_encoder_leaves_the_expanding_path_its_published_count(
    in_channels: int, num_classes: int, total: int
) -> None:
    with torch.device("meta"):
        encoder = BACKBONES["unet_encoder"](in_channels=in_channels)
        c = (1024, 512, 256, 128, 64)
        expanding = [
            layer
            for wide, narrow in pairwise(c)
            for layer in (
                nn.ConvTranspose2d(wide, narrow, 2, 2),
                nn.Conv2d(wide, narrow, 3),
                nn.Conv2d(narrow, narrow, 3),
            )
        ]
        score = nn.Conv2d(64, num_classes, 1)
    assert count(encoder, *expanding, score) == total


@pytest.mark.parametrize("name", FULLY_CONNECTED)
def test_convolutions_hold_the_parameters_of_the_linear_layers(name: str) -> None:
    with torch.device("meta"):
        linear, dense = BACKBONES[name](), BACKBONES[name](fully_convolutional=True)
        assert count(dense, dense.classifier(1000)) == count(linear, linear.classifier(1000))
        assert dense.channels == (*linear.channels[:-1], 4096)
        if name == "vgg16":
            assert count(dense, dense.classifier(21)) == 134_346_581  # FCN-32s and DilatedNet's front end


@pytest.mark.parametrize("name", DENSE)
def test_dense_scores_hold_the_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = BACKBONES[name]().eval()
    classifier = linear.classifier(1000).eval()
    published = linear.state_dict() | classifier.state_dict()
    monkeypatch.setattr(backbone_module, "read_weights", lambda source: Checkpoint(published, ""))
    dense = BACKBONES[name](fully_convolutional=True).eval()
    scores = dense.classifier(1000).eval()
    dense.load("published.pth", scores)
    side = linear.input_size
    x = torch.randn(1, 3, side + 64, side + 32)
    crops = {(0, 0): x[..., :side, :side], (2, 1): x[..., 64:, 32:]}
    whole = linear.window // 2  # where the window of fc6 covers the whole map of a crop
    with torch.inference_mode():
        for crop in crops.values():
            logits = classifier(linear(crop)[-1])
            last = dense(crop)[-1]
            assert last.shape[2:] == (linear.window, linear.window)
            assert relative(scores.score(last)[:, :, whole, whole], logits) <= 1e-5
            assert relative(scores(last), logits) <= 1e-5
        larger = dense(x)[-1]
        dense_map = scores.score(larger)
        assert dense_map.shape == (1, 1000, linear.window + 2, linear.window + 1)
        # The mean over the 3 x 2 windows inside the larger image.
        inside = dense_map[:, :, whole : whole + 3, whole : whole + 2]
        assert relative(scores(larger), inside.mean((2, 3))) <= 1e-5


@pytest.mark.parametrize("name", DENSE)
def test_dense_scores_stay_exact_at_smaller_output_strides(name: str) -> None:
    strided = randomise(BACKBONES[name](fully_convolutional=True)).eval()
    x = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        coarse = strided(x)[-1]
        for output_stride in (16, 8):
            dense = BACKBONES[name](fully_convolutional=True, output_stride=output_stride).eval()
            dense.load_state_dict(strided.state_dict())
            step = 32 // output_stride
            assert relative(dense(x)[-1][..., ::step, ::step], coarse) <= 1e-5


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_dropout_is_kept_and_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = BACKBONES[name](fully_convolutional=True)
    classifier = backbone.classifier(10)
    x = torch.randn(1, 3, 64, 64)
    last = backbone(x)[-1]
    assert not torch.equal(last, backbone(x)[-1])
    classifier(last).sum().backward()
    for module in (backbone, classifier):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, f"no gradient for {key}"


def test_a_checkpoint_with_other_linear_layers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "narrow.pth"
    narrow: dict[str, Tensor] = BACKBONES["alexnet"]().state_dict()
    torch.save(narrow | {"classifier.1.weight": torch.zeros(10, 7), "classifier.1.bias": torch.zeros(10)}, path)
    with pytest.raises(ValueError, match=r"does not fit alexnet: .* do not belong \(first: classifier.1.bias\)"):
        BACKBONES["alexnet"](weights=str(path), fully_convolutional=True)


@pytest.mark.parametrize(("name", "convolutions"), [("vgg13", (0, 5, 10, 12)), ("vgg16_bn", (0, 7, 14, 17))])
def test_a_deeper_vgg_starts_from_vgg11(name: str, convolutions: tuple[int, ...], tmp_path: Path) -> None:
    start = "vgg11_bn" if name.endswith("_bn") else "vgg11"
    shallow = randomise(BACKBONES[start]())
    first_four = (0, 4, 8, 11) if name.endswith("_bn") else (0, 3, 6, 8)
    path = tmp_path / "vgg11.pth"
    linear = {f"classifier.{i}.{kind}": torch.ones(1) for i in (0, 3, 6) for kind in ("weight", "bias")}
    torch.save(shallow.state_dict() | linear, path)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=f"{name} starts from a {start} checkpoint"):
        deep = BACKBONES[name](weights=str(path))
    torch.manual_seed(0)
    fresh = BACKBONES[name]().state_dict()
    own, theirs = deep.state_dict(), shallow.state_dict()
    staged = set()
    for ours, source in zip(convolutions, first_four, strict=True):
        for offset in (0, 1) if name.endswith("_bn") else (0,):
            keys = [key for key in theirs if key.startswith(f"features.{source + offset}.")]
            for key in keys:
                target = key.replace(f"{source + offset}", f"{ours + offset}", 1)
                staged.add(target)
                assert torch.equal(own[target], theirs[key])
    assert own.keys() == fresh.keys()
    assert all(torch.equal(own[key], fresh[key]) for key in own.keys() - staged)


def test_a_staged_network_takes_the_fully_connected_layers(tmp_path: Path) -> None:
    shallow = BACKBONES["vgg11"]()
    published = shallow.classifier(1000)
    path = tmp_path / "vgg11.pth"
    torch.save(shallow.state_dict() | published.state_dict(), path)
    with pytest.warns(UserWarning, match="its other 6 convolutions stay as initialised"):
        dense = BACKBONES["vgg13"](weights=str(path), fully_convolutional=True)
    assert torch.equal(dense.fully_connected.fc6.weight.flatten(1), published.classifier[0].weight)
    assert torch.equal(dense.fully_connected.fc7.weight.flatten(1), published.classifier[3].weight)
    linear = BACKBONES["vgg13"]()
    classifier = linear.classifier(1000)
    linear.load(str(path), classifier)
    path.unlink()  # half a gigabyte that pytest would keep
    for one, other in zip(classifier.parameters(), published.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_starts_a_deeper_vgg_with_its_own_classes(tmp_path: Path) -> None:
    shallow = Network("vgg11", "classifier", 10)
    path = tmp_path / "run.ckpt"
    torch.save({"state_dict": {f"network.{key}": value for key, value in shallow.state_dict().items()}}, path)
    with pytest.warns(UserWarning, match="vgg13 starts from a vgg11 checkpoint"):
        deep = Network("vgg13", "classifier", 10, weights=str(path))
    path.unlink()
    assert torch.equal(deep.backbone.features[5].weight, shallow.backbone.features[3].weight)
    for one, other in zip(deep.head.parameters(), shallow.head.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("checkpoint", "name"), [("vgg13", "vgg16"), ("vgg16", "vgg13"), ("vgg11", "vgg13_bn")])
def test_only_vgg11_starts_a_deeper_vgg(checkpoint: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(BACKBONES[checkpoint]().state_dict(), path)
    with pytest.raises(ValueError, match=f"does not fit {name}"):
        BACKBONES[name](weights=str(path))


@pytest.mark.parametrize("name", ["vgg11", "vgg13"])
def test_a_vgg11_with_a_layer_too_many_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "spoiled.pth"
    torch.save(BACKBONES["vgg11"]().state_dict() | {"features.30.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=f"does not fit {name}"):
        BACKBONES[name](weights=str(path))


def test_a_staged_start_adapts_the_input_channels(tmp_path: Path) -> None:
    path = tmp_path / "vgg11.pth"
    rgb = BACKBONES["vgg11"]().state_dict()
    torch.save(rgb, path)
    with pytest.warns(UserWarning, match="starts from a vgg11"):
        grey = BACKBONES["vgg16"](weights=str(path), in_channels=1)
    torch.testing.assert_close(grey.features[0].weight, rgb["features.0.weight"].sum(1, keepdim=True))
