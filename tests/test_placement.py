"""The ways in which maps join and scores reach the image: placed, stretched, centred."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import BACKBONES
from experiments.command_line.run_config import RunConfig
from experiments.training.build import build_data, build_module
from heads import dilatednet
from heads.placing import PLACEMENTS, sample
from lightning_modules.network import Network
from tests.test_placing import displacements, positive

pytestmark = pytest.mark.usefixtures("quick_weights")
FEW_LAYERS = {"fully_convolutional": False}


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("first", [-3.5, 0.0, 6.25])
def test_sampling_a_ramp_gives_the_ramp(first: float, step: int) -> None:
    """Value i lies at pixel `first + 8 i`; a linear map is interpolated exactly, and its border is repeated."""
    pixels = first + 8 * torch.arange(6.0)
    x = (pixels[:, None] + 100 * pixels).expand(2, 3, 6, 6)
    found = sample(x, 8, (50 // step, 60 // step), step, (first, first))
    rows, columns = (torch.arange(0, n // step * step, step).clamp(pixels[0], pixels[-1]) for n in (50, 60))
    torch.testing.assert_close(found, (rows[:, None] + 100 * columns).expand_as(found))
    nearest = sample(x[..., :1], 8, (50, 1), 1, (first, 0), "nearest")[0, 0, :, 0]
    inside = slice(8, 40)
    assert ((nearest - nearest[0]).sub(torch.arange(50) - first)[inside].abs() <= 4).all()


def test_stretched_is_what_other_libraries_do() -> None:
    network = Network("resnet18", "deeplab", 3, placement="stretched").eval()
    x, head = torch.randn(1, 3, 77, 101), network.head
    maps = network.backbone(x)
    low = head.reduce(maps[head.levels[0]])
    high = F.interpolate(head.aspp(maps[-1]), low.shape[2:], mode="bilinear", align_corners=False)
    scores = head.score(head.decode(torch.cat((high, low), 1)))
    expected = F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(x), expected)
    network.set_placement("placed")
    assert not torch.allclose(network(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "head", "side"),
    [
        ("resnet18", "fcn32s", 628),
        ("resnet18", "fcn8s", 628),
        ("efficientnet_lite0", "fcn8s", 628),
        ("efficientnet_lite0", "fcn8s", 640),
    ],
)
def test_a_centred_score_lies_in_the_middle_of_what_it_depends_on(backbone: str, head: str, side: int) -> None:
    """At a size that no stride divides, and at one that all divide: EfficientNet-Lite pads them differently."""
    found = displacements(positive(Network(backbone, head, 1, placement="centred")), side)
    assert max(map(abs, found)) <= 1, found


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_a_mirrored_border_moves_no_score(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All strides divide these sizes, and VGG's maps have no offset: all placements are the same."""
    monkeypatch.setattr(dilatednet, "MARGIN", 32)
    x, found = torch.randn(1, 3, 64, 48), []
    for placement in PLACEMENTS:
        torch.manual_seed(0)
        options = {"head_options": {"padding": padding, "context": "none"}, "backbone_options": FEW_LAYERS}
        found.append(Network("vgg11", "dilatednet", 2, placement=placement, **options).eval()(x))
    assert all(one.shape == (1, 2, 64, 48) for one in found)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


class Shifted(nn.Module):
    """The part of a centred EfficientNet-Lite that depends on the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.between = BACKBONES["efficientnet_lite0"](output_stride=16).pixels_between

    def forward(self, x: Tensor) -> Tensor:
        first = [self.between(4, -1, side) for side in x.shape[2:]]
        return sample(x, 2, x.shape[2:], 1, first)


@pytest.mark.parametrize("placement", ["stretched", "centred"])
def test_exported_at_one_size_they_take_others(placement: str) -> None:
    network = Network("lenet5", "hypercolumn", 3, placement=placement).eval()
    for module in (network, Shifted()) if placement == "centred" else (network,):
        sizes = dict.fromkeys((2, 3), torch.export.Dim.AUTO)
        exported = torch.export.export(module, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
        for size in ((97, 65), (111, 130)):
            x = torch.randn(1, 3, *size)
            with torch.no_grad():
                torch.testing.assert_close(exported(x), module(x), rtol=1e-4, atol=1e-4)


def test_placements_that_cannot_be_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(ValueError, match="--placement centred is for segmentation heads; this head's task is clas"):
            Network("resnet18", "classifier", 3, placement="centred")
        with pytest.raises(ValueError, match="--placement central: there are placed, stretched, centred"):
            Network("resnet18", "unet", 3, placement="central")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="--placement stretched: unet's option valid crops maps"):
            Network(
                "unet_encoder", "unet", 3, output_stride=16, placement="stretched",
                backbone_options={"valid_convolutions": True}, head_options={"up": "transpose", "valid": True},
            )  # fmt: skip


def test_a_run_is_placed_as_its_flag_says(tmp_path: Path) -> None:
    config = RunConfig(backbone="lenet5", head="fcn", placement="stretched", aux_weight=0.4)
    data = build_data(config)
    data.setup("fit")
    module = build_module(config, data)
    assert module.network.head.placement == module.network.aux_head.placement == "stretched"
    assert module.hparams["placement"] == "stretched"
