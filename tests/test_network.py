"""Every pair is built, shape-checked and trained one step, or refused with a reason."""

import functools
import itertools

import pytest
import torch

from backbones import BACKBONES, find_backbone
from backbones.backbone import Backbone
from experiments.names import catalogue
from heads import HEADS
from heads.conv_norm import PooledBatchNorm
from heads.fcn import bilinear_upsampling
from heads.head import level, missing_strides
from lightning_modules.network import Network

CLASSES = 5


@pytest.fixture
def backbones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds each configuration of a backbone once, and runs it once: the maps are the same under every head."""
    built: dict[str, Backbone] = {}

    def find(name: str) -> functools.partial[Backbone]:
        build = find_backbone(name)

        class Builder(functools.partial):
            def __call__(self, **knobs: object) -> Backbone:
                key = repr(sorted(knobs.items()))
                if key not in built:
                    built[key] = backbone = build(**knobs).eval()
                    maps = backbone(torch.empty(2, 3, max(65, backbone.min_size), 97))
                    monkeypatch.setattr(backbone, "forward", lambda x: maps)
                return built[key]

        return Builder(build.func, *build.args)

    monkeypatch.setattr("lightning_modules.network.find_backbone", find)


@pytest.mark.usefixtures("backbones_once")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_pair_fits_odd_sizes_or_is_refused(backbone: str) -> None:
    refused = set()
    entry = catalogue()[backbone]
    with torch.device("meta"):
        height = max(65, BACKBONES[backbone]().min_size)
        x = torch.empty(2, 3, height, 97)
        for output_stride, head in itertools.product((8, 16, 32), HEADS):
            try:
                network = Network(backbone, head, CLASSES, output_stride=output_stride).eval()
            except ValueError as error:
                if f"output_stride is {output_stride}" in str(error):
                    assert output_stride not in entry["output_strides"]
                else:
                    assert f"{head} needs maps at" in str(error)
                    refused.add(head)
                continue
            expected = (2, CLASSES) if network.task == "classification" else (2, CLASSES, height, 97)
            assert network(x).shape == expected, f"{head} at output stride {output_stride}"
    assert refused == entry["refused"].keys()


def test_few_pairs_are_refused() -> None:
    """Of the families that can be dilated, under 5 %; the test above holds the catalogue to what is true."""
    dilated = [entry for entry in catalogue().values() if len(entry["output_strides"]) == 3]
    pairs, refused = len(dilated) * len(HEADS), sum(len(entry["refused"]) for entry in dilated)
    print(f"{refused} of {pairs} pairs are refused, at each of the three output strides")
    assert len(dilated) > 60
    assert refused < 0.05 * pairs


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_finite_gradient(head: str, output_stride: int) -> None:
    check_gradients(Network("resnet18", head, CLASSES, output_stride=output_stride))


@pytest.mark.parametrize("head", ["classifier", "fcn8s", "unet", "deeplab"])
def test_bottlenecks_get_gradients_too(head: str) -> None:
    check_gradients(Network("resnet50", head, CLASSES))


def check_gradients(network: Network) -> None:
    network(torch.randn(2, 3, 65, 97)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"


@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if head.task == "segmentation"])
def test_one_image_per_device_trains(head: str) -> None:
    network = Network("resnet18", head, CLASSES)
    network(torch.randn(1, 3, 64, 64)).mean().backward()


def test_pooled_norm_leaves_its_statistics_alone_on_one_value() -> None:
    norm = PooledBatchNorm(3)
    before = norm.running_mean.clone()
    norm(torch.randn(1, 3, 1, 1))
    assert torch.equal(norm.running_mean, before)
    norm(torch.randn(2, 3, 1, 1))
    assert not torch.equal(norm.running_mean, before)


def test_a_head_takes_the_output_stride_there_is() -> None:
    with torch.device("meta"):
        assert Network("resnet18", "deeplab", CLASSES).output_stride == 16
        assert Network("swin_t", "deeplab", CLASSES).output_stride == 32
        with pytest.raises(ValueError, match="output_stride is 16"):
            Network("swin_t", "deeplab", CLASSES, output_stride=16)


def test_levels_keep_their_order_under_dilation() -> None:
    assert [level((2, 4, 8, 8, 8), stride) for stride in (4, 8, 16, 32)] == [1, 2, 3, 4]
    assert [level((2, 4, 8, 16, 16), stride) for stride in (8, 16, 32)] == [2, 3, 4]
    assert [level((2, 4), stride) for stride in (2, 4, 8)] == [0, 1, None]
    assert missing_strides(HEADS["fcn8s"], (2, 4)) == [8, 16, 32]


def test_bilinear_start_equals_interpolation() -> None:
    x = torch.randn(1, 3, 5, 7)
    up = bilinear_upsampling(3, 4)(x)
    expected = torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    # Equal away from the border, where interpolation repeats the edge and a convolution sees zeros.
    torch.testing.assert_close(up[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_unknown_names_and_options_are_refused() -> None:
    for arguments, message in (
        (("resnet10", "unet"), "no backbone 'resnet10'; nearest: resnet"),
        (("resnet18", "u_net"), "no head 'u_net'; nearest: unet"),
    ):
        with pytest.raises(ValueError, match=message):
            Network(*arguments, CLASSES)
    with pytest.raises(ValueError, match="unet has no option 'depth'; it has: up, norm, width"):
        Network("resnet18", "unet", CLASSES, head_options={"depth": 3})
    with pytest.raises(ValueError, match="output_stride is 4"):
        Network("resnet18", "unet", CLASSES, output_stride=4)


def test_imagenet_sized_classifier_takes_the_published_weights(tmp_path) -> None:
    source = BACKBONES["resnet18"]()
    fc = source.classifier(1000)
    path = tmp_path / "resnet18.pth"
    torch.save(source.state_dict() | fc.state_dict(), path)
    network = Network("resnet18", "classifier", 1000, weights=str(path))
    assert torch.equal(network.head.classifier.fc.weight, fc.fc.weight)
    other = Network("resnet18", "classifier", 10, weights=str(path))
    assert torch.equal(other.backbone.conv1.weight, source.conv1.weight)
