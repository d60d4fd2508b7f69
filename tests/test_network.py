"""Every pair is built, shape-checked and trained one step, or refused with a reason."""

import functools
import itertools

import pytest
import torch
from torch import nn

from backbones import BACKBONES, find_backbone
from backbones.backbone import Backbone
from experiments.command_line.known_names import catalogue
from heads import HEADS
from heads.conv_norm import norm_pooled
from heads.fcn import bilinear_upsampling
from heads.head import index_of_stride, missing_strides
from lightning_modules.network import Network, mirrored
from tests.oracles import KNOBS

CLASSES = 5
CHEAPER = {"spp": {"hidden": 64}}
"""Options under which a head is the same network, only narrower."""


def sizes(backbone: Backbone) -> list[tuple[int, int]]:
    return [(max(65, backbone.min_size), 97), (321, 321)]


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
                    maps = {size: backbone(torch.empty(2, 3, *size)) for size in sizes(backbone)}
                    monkeypatch.setattr(backbone, "forward", lambda x: maps[x.shape[2], x.shape[3]])
                return built[key]

        return Builder(build.func, *build.args)

    monkeypatch.setattr("lightning_modules.network.find_backbone", find)


@pytest.fixture
def norms_of_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device most time goes into batch norms, which change no shape: here they only look at theirs."""

    def same_shape(x: torch.Tensor, mean: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        assert x.shape[1] == len(mean), f"{len(mean)} channels are normalised, {x.shape[1]} come"
        return torch.empty_like(x)

    monkeypatch.setattr(torch.nn.functional, "batch_norm", same_shape)


@torch.inference_mode()
@pytest.mark.usefixtures("backbones_once", "norms_of_shapes")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_pair_fits_odd_sizes_or_is_refused(backbone: str) -> None:
    refused = set()
    entry = catalogue()[backbone]
    with torch.device("meta"):
        images = [torch.empty(2, 3, *size) for size in sizes(BACKBONES[backbone]())]
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
            for x in images:
                expected = (2, CLASSES) if network.task == "classification" else (2, CLASSES, *x.shape[2:])
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
    aux = HEADS[head].task == "segmentation"
    options = CHEAPER.get(head)
    check_gradients(Network("resnet18", head, CLASSES, output_stride=output_stride, head_options=options, aux=aux))


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_bottlenecks_and_inverted_ones(head: str, backbone: str) -> None:
    check_gradients(Network(backbone, head, CLASSES, output_stride=32, head_options=CHEAPER.get(head)))


def test_a_transformer_trains_its_whole_pyramid() -> None:
    check_gradients(Network("vit_b_32", "hypercolumn", CLASSES))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_trains_under_two_heads(name: str) -> None:
    """The head that reads the last map and the one that reads all; both on the maps of one pass, to save time."""
    backbone = BACKBONES[name](**KNOBS.get(name, {}))
    size = max(32, backbone.min_size)
    maps = backbone(torch.randn(2, 3, size, size + 1))
    classifier = HEADS["classifier"](
        backbone.channels, backbone.reductions, CLASSES, classifier=backbone.classifier(CLASSES)
    )
    for head in (classifier, HEADS["hypercolumn"](backbone.channels, backbone.reductions, CLASSES)):
        backbone.zero_grad()
        head(maps).square().mean().backward(retain_graph=True)
        check_all_have_gradients(nn.ModuleList((backbone, head)))


def check_gradients(network: Network) -> None:
    logits, aux = network.forward_with_aux(torch.randn(2, 3, 65, 97))
    sum(one.square().mean() for one in (logits, *aux)).backward()
    check_all_have_gradients(network)


def check_all_have_gradients(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"


@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if head.task == "segmentation"])
def test_one_image_per_device_trains(head: str) -> None:
    network = Network("resnet18", head, CLASSES)
    network(torch.randn(1, 3, 64, 64)).mean().backward()


@pytest.mark.parametrize("head", ["fcn8s", "deeplab"])
def test_logits_come_back_at_every_size_from_1_to_80(head: str) -> None:
    """Of height and width in turn."""
    network = Network("resnet18", head, CLASSES).eval()
    with torch.no_grad():
        for size in range(1, 81):
            for shape in ((size, 33), (47, size)):
                assert network(torch.zeros(1, 3, *shape)).shape[2:] == shape


def test_an_auxiliary_head_reads_the_stride_16_map_and_works_in_training_only() -> None:
    for output_stride in (8, 16, 32):
        network = Network("resnet18", "unet", CLASSES, output_stride=output_stride, aux=True)
        assert network.aux_level == 3
        assert network.aux_head.layers[0].in_channels == 256
    x = torch.randn(2, 3, 65, 97)
    logits, (aux,) = network.forward_with_aux(x)
    assert aux.shape == logits.shape == (2, CLASSES, 65, 97)
    network.zero_grad()
    network(x).mean().backward()
    assert all(parameter.grad is None for parameter in network.aux_head.parameters())
    with torch.device("meta"):
        assert Network("lenet5", "unet", CLASSES, aux=True).aux_level == 0
        with pytest.raises(ValueError, match="--aux-weight needs a segmentation head, or a backbone with auxiliary classifiers"):
            Network("resnet18", "classifier", CLASSES, aux=True)


def test_mirrored_margins_go_back_and_forth_as_often_as_needed() -> None:
    assert mirrored(3, 4, 5, torch.device("cpu")).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert mirrored(1, 2, 1, torch.device("cpu")).tolist() == [0, 0, 0, 0]
    row = torch.arange(5.0).expand(1, 1, 5, 5)
    ours = row[..., mirrored(5, 3, 2, torch.device("cpu"))]
    torch.testing.assert_close(ours, torch.nn.functional.pad(row, (3, 2, 0, 0), mode="reflect"))


def test_pooled_norm_leaves_its_statistics_alone_on_one_value() -> None:
    norm = nn.BatchNorm2d(3)
    before = norm.running_mean.clone()
    norm_pooled(norm, torch.randn(1, 3, 1, 1))
    assert torch.equal(norm.running_mean, before)
    norm_pooled(norm, torch.randn(2, 3, 1, 1))
    assert not torch.equal(norm.running_mean, before)


def test_a_head_takes_the_output_stride_there_is() -> None:
    with torch.device("meta"):
        assert Network("resnet18", "deeplab", CLASSES).output_stride == 16
        assert Network("swin_t", "deeplab", CLASSES).output_stride == 32
        with pytest.raises(ValueError, match="output_stride is 16"):
            Network("swin_t", "deeplab", CLASSES, output_stride=16)


def test_levels_keep_their_order_under_dilation() -> None:
    assert [index_of_stride((2, 4, 8, 8, 8), stride) for stride in (4, 8, 16, 32)] == [1, 2, 3, 4]
    assert [index_of_stride((2, 4, 8, 16, 16), stride) for stride in (8, 16, 32)] == [2, 3, 4]
    assert [index_of_stride((2, 4), stride) for stride in (2, 4, 8)] == [0, 1, None]
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
