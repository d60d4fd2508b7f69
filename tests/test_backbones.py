"""Every backbone keeps the contract, equals its oracle and dilates exactly. A new one needs no edit here."""

import functools
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import BACKBONES, vit
from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.squeeze_excitation import SqueezeExcitation
from lightning_modules.shapes_only import ShapesOnly
from tests.conftest import randomise
from tests.oracles import CLASSES, FIRST, IN_CHANNELS, IN_DOUBLE, KNOBS, PARAMETERS, SIZES, WITHOUT_ORACLE, oracle
from tests.shallow import make_shallow

pytestmark = pytest.mark.usefixtures("quick_weights")

NAMES = list(BACKBONES)


STRIDED = [(name, stride) for name in NAMES for stride in BACKBONES[name].func.output_strides]  # type: ignore[attr-defined]
FIRST_OR_32 = [(name, stride) for name, stride in STRIDED if stride == 32 or name in FIRST.values()]


@functools.cache
def on_meta(name: str, output_stride: int) -> Backbone:
    """A backbone without further options and without values."""
    with torch.device("meta"):
        return BACKBONES[name](output_stride=output_stride)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](in_channels=IN_CHANNELS.get(name, 3), **KNOBS.get(name, {}))
        classifier = backbone.classifier(CLASSES.get(name, 1000))
    ours = sum(p.numel() for m in (backbone, classifier) for p in m.parameters())
    assert ours == PARAMETERS[name]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WITHOUT_ORACLE])
def test_logits_equal_the_oracle(name: str) -> None:
    published = oracle(name)
    randomise(published)
    state = published.state_dict()
    with torch.device("meta"):  # no time spent on weights that are replaced
        backbone = BACKBONES[name](**KNOBS.get(name, {}))
        classifier = backbone.classifier(1000)
    renamed = backbone.convert_state_dict(state)
    own = backbone.state_dict().keys() | classifier.state_dict().keys()
    assert own == renamed.keys()
    for module in (backbone, classifier):
        module.load_state_dict({k: renamed[k] for k in module.state_dict()}, strict=True, assign=True)
    backbone.eval(), classifier.eval()
    if name == "vit_l_16":  # 24 equal blocks: two show what all compute
        for network in (published, backbone):
            network.encoder.layers = network.encoder.layers[:2]
    for size in SIZES.get(name, ((64, 64), (97, 131)) if name in FIRST.values() else ((65, 97),)):
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            assert relative(classifier(backbone(x)[-1]), published(x)) <= 1e-5


@pytest.mark.parametrize(("name", "output_stride"), STRIDED)
def test_channels_and_reductions_are_true(name: str, output_stride: int) -> None:
    backbone = on_meta(name, output_stride)
    with torch.device("meta"), ShapesOnly():
        maps = backbone(torch.empty(2, 3, 128, 192))
    assert tuple(m.shape[1] for m in maps) == backbone.channels
    assert len(backbone.reductions) == len(maps)
    assert list(backbone.reductions) == sorted(backbone.reductions)
    for one, reduction in zip(maps, backbone.reductions, strict=True):
        for side, image_side in zip(one.shape[2:], (128, 192), strict=True):
            assert (image_side - backbone.cropped_pixels) // reduction <= side <= image_side // reduction
    assert max(backbone.reductions) <= output_stride


def all_maps_exist(backbone: nn.Module, height: int, width: int) -> bool:
    try:
        with torch.device("meta"), ShapesOnly():
            return all(one.numel() for one in backbone(torch.empty(2, 3, height, width)))
    except RuntimeError:
        return False


@pytest.mark.parametrize(("name", "output_stride"), FIRST_OR_32)
def test_smallest_image_is_true(name: str, output_stride: int) -> None:
    backbone = on_meta(name, output_stride)
    least = backbone.min_size
    assert all_maps_exist(backbone, least, least + 13)
    if least > 1:
        assert not all_maps_exist(backbone, least - 1, 256)
        assert not all_maps_exist(backbone, 256, least - 1)


@pytest.mark.parametrize("name", NAMES)
def test_native_reductions_increase_and_others_are_refused(name: str) -> None:
    backbone = on_meta(name, 32)
    assert list(backbone.reductions) == sorted(set(backbone.reductions))
    with torch.device("meta"):
        for output_stride in {4, 8, 16, 32} - set(backbone.output_strides):
            with pytest.raises(ValueError, match=f"output_stride is {output_stride}"):
                BACKBONES[name](output_stride=output_stride)


class HeldGates:
    """Squeeze-and-excitation averages over the map; the dense network replays the strided one's gates in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gates: list[torch.Tensor] = []
        self.replaying = False
        compute = SqueezeExcitation.gate

        def gate(module: SqueezeExcitation, x: torch.Tensor) -> torch.Tensor:
            if self.replaying:
                return self.gates.pop(0)
            self.gates.append(compute(module, x))
            return self.gates[-1]

        monkeypatch.setattr(SqueezeExcitation, "gate", gate)


BETWEEN = [(name, stride) for name, stride in STRIDED if 8 < stride < 32 and name in FIRST.values()]


@functools.lru_cache(maxsize=1)  # the cases of one backbone follow each other
def strided_maps(name: str) -> tuple[Backbone, torch.Tensor, list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """A backbone, images, its maps of them, and the gates of squeeze-and-excitation."""
    with pytest.MonkeyPatch.context() as patch:
        held = HeldGates(patch)
        backbone = randomise(BACKBONES[name]()).eval()
        with torch.device("meta"):
            least = BACKBONES[name](output_stride=8).min_size
        x = torch.randn(1, 3, max(64, least), 96)
        if name in IN_DOUBLE:
            backbone, x = backbone.double(), x.double()
        return backbone, x, backbone(x), tuple(held.gates)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "output_stride"), [(name, stride) for name, stride in STRIDED if stride == 8 or (name, stride) in BETWEEN]
)
def test_dilation_is_exact(name: str, output_stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    strided, x, coarse, gates = strided_maps(name)
    with torch.device("meta"):  # no time spent on weights that are replaced
        dense = BACKBONES[name](output_stride=output_stride).eval()
    dense.load_state_dict(strided.state_dict(), strict=True, assign=True)
    held = HeldGates(monkeypatch)
    held.gates, held.replaying = list(gates), True
    fine = dense(x)
    assert not held.gates
    for strided_map, dense_map, native, reduction in zip(
        coarse, fine, strided.reductions, dense.reductions, strict=True
    ):
        step = native // reduction
        assert relative(dense_map[..., ::step, ::step], strided_map) <= 1e-5


EXPORTED = [
    *FIRST.values(), "alexnet_2gpu", "vgg11_bn", "resnet50", "efficientnet_v2_s", "vit_b_32", "swin_v2_t",
]  # fmt: skip
"""Networks that hold each kind of layer of every class."""
SHALLOW = {"densenet121": {"layers": [2, 2, 2, 2]}, "densenet40": {"depth": 10}}
"""Options that leave two of many equal layers in each block."""
FIT_224 = ("swin_t", "vit_b_32")
"""Networks that need no padding at 224 pixels. The graph has to pad at other sizes all the same."""


def test_every_kind_of_layer_is_exported() -> None:
    """Otherwise the network belongs to EXPORTED."""
    kinds = {name: {type(part) for part in on_meta(name, 32).modules()} for name in NAMES}
    for name in NAMES:
        kin = [other for other in EXPORTED if BACKBONES[other].func is BACKBONES[name].func]  # type: ignore[attr-defined]
        assert kinds[name] <= set[type[nn.Module]]().union(*(kinds[other] for other in kin)), name


@pytest.mark.parametrize("name", EXPORTED)
def test_exports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of network's graph; its numbers for one network of each class, to save time."""
    if name in vit.VARIANTS:
        monkeypatch.setitem(vit.VARIANTS, name, vit.VARIANTS[name]._replace(depth=2))
    make_shallow(name, monkeypatch)  # of Swin, every second block shifts its windows
    first = name in FIRST.values()
    with torch.device("cpu" if first else "meta"):
        backbone = BACKBONES[name](**SHALLOW.get(name, {})).eval()
        side = 224 if name in FIT_224 else max(64, backbone.min_size)
        x = torch.randn(1, 3, side, side)
    program = torch.export.export(backbone, (x,))
    assert name not in FIT_224 or any("pad" in str(node.target) for node in program.graph.nodes)
    for ours, theirs in zip(backbone(x), program.module()(x), strict=True):
        assert ours.shape == theirs.shape
        if first:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", EXPORTED)
def test_other_input_channels(name: str) -> None:
    with torch.device("meta"), ShapesOnly():
        backbone = BACKBONES[name](in_channels=5)
        side = max(64, backbone.min_size)
        maps = backbone(torch.empty(1, 5, side, side))
    assert maps[-1].ndim == 4


def paper(name: str) -> str:
    """The paper of a variant: the one its file names for it, or else the file's first line."""
    module = inspect.getmodule(BACKBONES[name].func)
    others = {variant: one for one, variants in getattr(module, "PAPERS", {}).items() for variant in variants}
    return others.get(name) or module.__doc__.splitlines()[0]


def test_every_backbone_names_its_paper_with_a_year() -> None:
    for name in NAMES:
        assert re.search(r"[A-Z]\w+.* (19|20)\d\d\b", paper(name)), name
    assert "One weird trick" in paper("alexnet")
    assert "2012" in paper("alexnet_2gpu")
    assert "EfficientNetV2" in paper("efficientnet_v2_m")
    assert "Wide Residual" in paper("wide_resnet50_2")
    assert "ResNeXt" in paper("resnext101_64x4d")
    assert "V2" in paper("swin_v2_b")
    assert "V2" not in paper("swin_b")


def test_papers_belong_to_variants_that_exist() -> None:
    for name in NAMES:
        for variants in getattr(inspect.getmodule(BACKBONES[name].func), "PAPERS", {}).values():
            assert set(variants) <= set(NAMES)


def test_the_readme_lists_every_backbone_with_its_paper() -> None:
    text = (Path(__file__).parents[1] / "backbones" / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- backbones: ")[1].split("<!-- end of backbones -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert {row[0]: row[-1] for row in rows} == {name: paper(name) for name in NAMES}


def test_steps_know_their_native_stride_and_what_follows() -> None:
    traded, kept = atrous_steps((2, 2, 2, 2, 2), 8)[-2], atrous_steps((2, 2, 2, 2, 2), 32)[-1]
    assert (traded.stride, traded.native_stride, kept.native_stride) == (1, 2, 2)
    assert traded.rest == Step(stride=1, dilation=2, dilation_after=2, reduction=8)
    assert traded.rest.native_stride == 1


def test_steps_follow_the_accumulated_rate() -> None:
    *_, third, fourth = atrous_steps((2, 2, 1, 2, 2, 2), 8)
    assert third == Step(stride=1, dilation=1, dilation_after=2, reduction=8)
    assert fourth == Step(stride=1, dilation=2, dilation_after=4, reduction=8)


def test_output_stride_must_be_known() -> None:
    with pytest.raises(ValueError, match="8, 16 or 32"):
        atrous_steps((2, 2), 4)


def test_grey_weights_see_grey_images_as_rgb_does(tmp_path) -> None:
    rgb = BACKBONES["resnet18"]().eval()
    path = tmp_path / "rgb.pth"
    torch.save(rgb.state_dict() | rgb.classifier(1000).state_dict(), path)
    grey = BACKBONES["resnet18"](weights=str(path), in_channels=1).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert relative(grey(x)[-1], rgb(x.expand(-1, 3, -1, -1))[-1]) <= 1e-5


def test_weights_of_another_architecture_are_refused(tmp_path) -> None:
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(3, 3).state_dict(), path)
    with pytest.raises(ValueError, match="does not fit resnet18"):
        BACKBONES["resnet18"](weights=str(path))
