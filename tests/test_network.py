"""Every pair is built, shape-checked and trained one step, or refused with a reason."""

import functools
import inspect
import itertools

import pytest
import torch
from torch import nn

from backbones import BACKBONES, find_backbone, vit
from backbones.backbone import Backbone
from experiments.command_line.known_names import catalogue
from heads import HEADS
from heads.conv_norm import norm_pooled
from heads.fcn import bilinear_upsampling
from heads.head import index_of_stride, missing_strides
from lightning_modules import network as network_module
from lightning_modules.network import Network, mirrored
from lightning_modules.shapes_only import ShapesOnly
from tests.oracles import FIRST, KNOBS

pytestmark = pytest.mark.usefixtures("quick_weights", "few_regions")

CLASSES = 5
CHEAPER = {
    "spp": {"hidden": 64},
    "retinanet": {"width": 32},
    "fcos": {"width": 64},
    "yolov1": {"width": 16, "hidden": 16},
    "ssd": {"width": 64, "side": 96},
    "fasterrcnn": {"width": 32, "hidden": 64},
    "fastrcnn": {"hidden": 64},
    "fasterrcnn_c4": {"hidden": 64},
    "fasterrcnn_dc5": {"hidden": 64},
    "maskrcnn": {"width": 32, "hidden": 64},
}
"""Options under which a head is the same network, only narrower."""


SCORERS = [name for name, head in HEADS.items() if head.task != "detection"]
"""Of the others, test_detection_heads.py looks at the gradients."""


def sizes(name: str, backbone: Backbone) -> list[tuple[int, int]]:
    small = (max(65, backbone.min_size), 97)
    return [small, (321, 321)] if name in FIRST.values() else [small]


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
                    maps = {size: backbone(torch.empty(2, 3, *size)) for size in sizes(name, backbone)}
                    monkeypatch.setattr(backbone, "forward", lambda x: maps[x.shape[2], x.shape[3]])
                return built[key]

        return Builder(build.func, *build.args)

    monkeypatch.setattr("lightning_modules.network.find_backbone", find)


REFUSED: dict[object, set[str]] = {}
"""By what a head is given, the head itself if it has refused that, or nothing."""


def maps_of(name: str, head: str, output_stride: int, images: list[torch.Tensor]) -> object:
    """All that a head is given, which many backbones have in common; unlike anything else where it asks for more."""
    asks = HEADS[head].backbone_options.keys() & inspect.signature(BACKBONES[name]).parameters
    if asks or HEADS[head].takes_classifier or HEADS[head].takes_region_layers:
        return object()
    backbone = network_module.find_backbone(name)(output_stride=output_stride, in_channels=3)
    shapes = tuple(tuple(one.shape) for x in images for one in backbone(x))
    given = (backbone.channels, backbone.reductions, backbone.cropped_pixels, backbone.first_centres)
    return head, output_stride, *given, shapes


@torch.inference_mode()
@pytest.mark.usefixtures("backbones_once")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_pair_fits_odd_sizes_or_is_refused(backbone: str) -> None:
    refused = set()
    entry = catalogue()[backbone]
    with torch.device("meta"), ShapesOnly():
        images = [torch.empty(2, 3, *size) for size in sizes(backbone, BACKBONES[backbone]())]
        strides = (8, 16, 32) if backbone in FIRST.values() else (8, 32)
        for output_stride, head in itertools.product(strides, HEADS):
            built = output_stride in entry["output_strides"]
            seen = maps_of(backbone, head, output_stride, images) if built else object()
            if seen in REFUSED:
                refused |= REFUSED[seen]
                continue
            try:
                network = Network(backbone, head, CLASSES, output_stride=output_stride)
            except ValueError as error:
                if f"output_stride is {output_stride}" in str(error):
                    assert not built
                else:
                    assert f"{head} needs maps at" in str(error)
                    refused.add(head)
                    REFUSED[seen] = {head}
                continue
            network.head.eval()  # the backbone is already
            for x in images:
                if network.task == "detection":  # outputs of anchors, which test_detection_heads.py looks at
                    network(x)
                    continue
                expected = (2, CLASSES) if network.task == "classification" else (2, CLASSES, *x.shape[2:])
                assert network(x).shape == expected, f"{head} at output stride {output_stride}"
            REFUSED[seen] = set()
    assert refused == entry["refused"].keys()


def test_few_pairs_are_refused() -> None:
    """Under 5 % in the families that can be dilated; the test above checks the catalogue itself."""
    dilated = [entry for entry in catalogue().values() if len(entry["output_strides"]) == 3]
    pairs, refused = len(dilated) * len(HEADS), sum(len(entry["refused"]) for entry in dilated)
    print(f"{refused} of {pairs} pairs are refused, at each of the three output strides")
    assert len(dilated) > 60
    assert refused < 0.05 * pairs


@pytest.mark.parametrize("head", SCORERS)
def test_every_parameter_gets_a_finite_gradient(head: str) -> None:
    aux = HEADS[head].task == "segmentation"
    check_gradients(Network("resnet18", head, CLASSES, output_stride=32, head_options=CHEAPER.get(head), aux=aux))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("head", SCORERS)
def test_every_parameter_gets_a_gradient_at_smaller_output_strides(head: str, output_stride: int) -> None:
    aux = HEADS[head].task == "segmentation"
    with torch.device("meta"):
        check_gradients(Network("resnet18", head, CLASSES, output_stride=output_stride, aux=aux))


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_bottlenecks_and_inverted_ones(head: str, backbone: str) -> None:
    with device_of(head):
        check_gradients(Network(backbone, head, CLASSES, output_stride=32, head_options=CHEAPER.get(head)))


@pytest.mark.parametrize("aux", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_transformer_builds_no_level_that_its_head_does_not_read(
    head: str, aux: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So every parameter gets a gradient, which plain DDP needs."""
    monkeypatch.setitem(vit.VARIANTS, "vit_b_32", vit.Variant(patch=32, channels=64, depth=1, heads=2))
    aux = aux and HEADS[head].task == "segmentation"
    with device_of(head):
        check_gradients(Network("vit_b_32", head, CLASSES, head_options=CHEAPER.get(head), aux=aux))


def test_ddp_trains_a_transformer_under_a_head_of_one_map(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """DDP's reducer, in one process, refuses the second step if a parameter of the first got no gradient."""
    monkeypatch.setitem(vit.VARIANTS, "vit_b_32", vit.Variant(patch=32, channels=64, depth=1, heads=2))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        for head in ("fcn32s", "deeplabv3", "lraspp"):
            network = nn.parallel.DistributedDataParallel(Network("vit_b_32", head, CLASSES))
            for _ in range(3):
                network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_trains_under_two_heads(name: str) -> None:
    """The head that reads the last map, and the one that reads all maps, which has to give each of them a gradient.

    With values for the first variant of each class.
    """
    with torch.device("cpu" if name in FIRST.values() else "meta"):
        check_two_heads(name)


def check_two_heads(name: str) -> None:
    backbone = BACKBONES[name](**KNOBS.get(name, {}))
    size = max(32, backbone.min_size)
    maps = backbone(torch.randn(2, 3, size, size + 1))
    cut = [one.detach().requires_grad_() for one in maps]
    hypercolumn = HEADS["hypercolumn"](backbone.channels, backbone.reductions, CLASSES)
    hypercolumn(cut).square().mean().backward()
    check_all_have_gradients(hypercolumn)
    assert all(one.grad is not None and (one.is_meta or (is_finite(one.grad) and one.grad.any())) for one in cut)
    classifier = HEADS["classifier"](
        backbone.channels, backbone.reductions, CLASSES, classifier=backbone.classifier(CLASSES)
    )
    classifier(maps).square().mean().backward()
    check_all_have_gradients(nn.ModuleList((backbone, classifier)))


def device_of(head: str) -> torch.device:
    """Where gradients can be looked for: those of boxes depend on values, others are there without values too."""
    return torch.device("cpu" if HEADS[head].task == "detection" else "meta")


def is_finite(gradient: torch.Tensor) -> bool:
    return gradient.is_meta or bool(gradient.isfinite().all())


def check_gradients(network: Network) -> None:
    images = torch.randn(2, 3, 65, 97)
    if network.task == "detection":
        masks = torch.ones(1, 65, 97, dtype=torch.bool)
        objects = {"boxes": torch.tensor([[10.0, 5, 60, 60]]), "labels": torch.tensor([1]), "masks": masks}
        losses = network.losses(images, [objects, objects], [(65, 97)] * 2)
        sum(total for total, _ in losses.values()).backward()
    else:
        logits, aux = network.forward_with_aux(images)
        sum(one.square().mean() for one in (logits, *aux)).backward()
    check_all_have_gradients(network)


def check_all_have_gradients(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert is_finite(parameter.grad), f"the gradient of {name} is not finite"


@pytest.mark.parametrize("head", ["deeplabv3", "deeplab", "pspnet"])
def test_one_image_trains_under_synchronised_norms_too(head: str) -> None:
    """The norm of one value per channel is left out, whichever its class; others need a GPU to synchronise."""
    network = Network("resnet18", head, CLASSES)
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    pooled = network.head.pyramid[0] if head == "pspnet" else network.head.aspp.pooled
    norms = [part for part in pooled.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert len(norms) == 1
    before = norms[0].running_mean.clone()
    pooled.train()(torch.randn(1, 512, 4, 4)).mean().backward()
    assert torch.equal(norms[0].running_mean, before)


@pytest.mark.parametrize("head", ["fcn8s", "deeplab"])
def test_logits_come_back_at_every_size_from_1_to_80(head: str) -> None:
    """Each size is tried as a height and as a width."""
    with torch.device("meta"), ShapesOnly(), torch.no_grad():
        network = Network("resnet18", head, CLASSES).eval()
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
        with pytest.raises(ValueError, match="--aux-weight needs a segmentation head, or a backbone with auxiliary"):
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


def test_auxiliary_classifiers_are_built_as_asked() -> None:
    with torch.device("meta"):
        assert Network("googlenet", "classifier", CLASSES).has_aux
        assert not Network("googlenet", "classifier", CLASSES, aux=False).has_aux
        assert not any(
            "aux" in name for name, _ in Network("googlenet", "classifier", CLASSES, aux=False).named_modules()
        )
        assert not Network("googlenet", "spp", CLASSES).has_aux
        assert Network("googlenet", "spp", CLASSES, aux=True).has_aux
        assert not Network("googlenet", "unet", CLASSES).has_aux
        for head, aux, message in (
            (
                "unet",
                11,
                "aux=11: googlenet's auxiliary classifiers score images, leave it out, because unet scores pixels",
            ),
            ("classifier", 7, f"aux=7: .* use {{aux: {CLASSES}}} or leave it out"),
        ):
            with pytest.raises(ValueError, match=message):
                Network("googlenet", head, CLASSES, backbone_options={"aux": aux})


def test_unpadded_halves_of_unet_are_refused_or_fit() -> None:
    """A decoder that crops needs an encoder that has cropped; an encoder that crops fits under every decoder."""
    with pytest.raises(ValueError, match="needs maps .* cropped 124 pixels; unet_encoder crops 0"):
        Network("unet_encoder", "unet", 1, head_options={"up": "transpose", "valid": True})
    for head in ("unet", "hypercolumn"):
        network = Network("unet_encoder", head, 1, backbone_options={"valid_convolutions": True}).eval()
        for name, parameter in network.named_parameters():
            fill = 0 if name.endswith("bias") else 1 / parameter[0].numel() if parameter.ndim > 1 else 1
            nn.init.constant_(parameter, fill)
        x = torch.ones(1, 3, 252, 220, requires_grad=True)
        for row, column in ((100, 110), (130, 90)):
            (gradient,) = torch.autograd.grad(network(x)[0, 0, row, column], x)
            weight = gradient[0].sum(0)
            middle = (weight.sum(1) @ torch.arange(252.0), weight.sum(0) @ torch.arange(220.0))
            for found, wanted in zip(middle, (row, column), strict=True):
                assert abs(float(found / weight.sum()) - wanted) < 8, head


def test_unknown_names_and_options_are_refused() -> None:
    for arguments, message in (
        (("resnet10", "unet"), "no backbone 'resnet10'; nearest: resnet"),
        (("resnet18", "u_net"), "no head 'u_net'; nearest: unet"),
    ):
        with pytest.raises(ValueError, match=message):
            Network(*arguments, CLASSES)
    with pytest.raises(ValueError, match="unet has no option 'depth'; it has: up, norm, join, width"):
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
