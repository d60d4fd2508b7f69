"""What recipes need beside networks: sampled fc6 and fc7, ResNet-C's stem, the momentum of norms, a schedule."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torchvision.models import vgg16
from torchvision.models.detection.ssd import _vgg_extractor

from backbones import BACKBONES, fully_connected
from experiments.command_line.run_config import RunConfig
from lightning_modules.freezing import freeze_stages
from lightning_modules.network import Network
from lightning_modules.parameter_groups import parameter_groups
from lightning_modules.schedules import learning_rate_factor
from lightning_modules.segmentation import SegmentationModule

pytestmark = pytest.mark.usefixtures("quick_weights")
NAMES = ("sky", "road", "car")
RECIPES = Path(__file__).resolve().parent.parent / "experiments" / "recipes"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fully_connected, "HIDDEN", 64)


def test_deeplabv1_samples_every_fourth_neuron_and_third_position(narrow: None, tmp_path: Path) -> None:
    """The index lists of the published conversion: 4096 to 1024 neurons, 7x7 to 3x3 positions."""
    whole = BACKBONES["vgg11"]()
    classifier = whole.classifier(1000)
    torch.save(whole.state_dict() | classifier.state_dict(), tmp_path / "vgg11.pth")
    options = {"sampled": True, "hidden": 16}
    network = Network("vgg11", "deeplabv1", 3, head_options=options, weights=str(tmp_path / "vgg11.pth"))
    fc6, fc7 = network.head.branch[0], network.head.branch[3]
    linear6, linear7 = classifier.classifier[0], classifier.classifier[3]
    expected = linear6.weight.view(64, 512, 7, 7)[::4, :, ::3, ::3]
    assert fc6.weight.shape == (16, 512, 3, 3)
    assert torch.equal(fc6.weight, expected)
    assert torch.equal(fc6.bias, linear6.bias[::4])
    assert torch.equal(fc7.weight[:, :, 0, 0], linear7.weight[::4, ::4])
    assert torch.equal(fc7.bias, linear7.bias[::4])
    rates = {id(p): group["lr"] for group in parameter_groups(network, 1.0, 0.1, 0.0) for p in group["params"]}
    assert [rates[id(network.head.branch[i].weight)] for i in (0, 3, 6)] == [0.1, 0.1, 1.0]
    Network("vgg11", "deeplabv1", 3, head_options=options)  # as a checkpoint rebuilds it, without weights


def test_what_cannot_be_sampled_is_refused(narrow: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="option sampled takes fc6 and fc7 of the backbone; resnet18 has none, vgg16"):
        Network("resnet18", "deeplabv1", 3, head_options={"sampled": True})
    whole = BACKBONES["vgg11"]()
    torch.save(whole.state_dict(), tmp_path / "maps.pth")
    for name, hidden, message in (
        ("maps.pth", 16, "needs fc6 and fc7 in the file of --weights, which has none"),
        ("all.pth", 128, "hidden=128, above the 64 neurons"),
    ):
        torch.save(whole.state_dict() | whole.classifier(7).state_dict(), tmp_path / "all.pth")
        options = {"sampled": True, "hidden": hidden}
        with pytest.raises(ValueError, match=message):
            Network("vgg11", "deeplabv1", 3, head_options=options, weights=str(tmp_path / name))


def test_a_stem_of_three_convolutions_is_timms(tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model("resnet50c").eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50c.pth")
    ours = Network(
        "resnet50", "classifier", 1000, backbone_options={"stem": "3x3"}, weights=str(tmp_path / "resnet50c.pth")
    ).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 25_576_264
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no ImageNet weights are published for resnet50 with stem=3x3"):
        BACKBONES["resnet50"](stem="3x3", weights="imagenet")


def test_dilatednets_recipe_has_the_papers_numbers() -> None:
    """Section 4: SGD with batches of 14, a rate of 1e-3, momentum 0.9, 60,000 steps; biases at twice the rate."""
    config = RunConfig(**yaml.safe_load((RECIPES / "voc_dilatednet_vgg16.yaml").read_text()))
    batch = config.batch_size * int(config.devices) * config.accumulate
    assert (config.optimizer, batch, config.lr, config.momentum, config.max_steps) == ("sgd", 14, 1e-3, 0.9, 60_000)
    assert (config.bias_lr_mult, config.staged, config.head) == (2, True, "dilatednet")


def test_ssds_recipe_freezes_what_torchvision_freezes() -> None:
    """With ImageNet weights, four of VGG's five blocks are trained."""
    config = RunConfig(**yaml.safe_load((RECIPES / "coco_ssd300_vgg16.yaml").read_text()))
    with torch.device("meta"):
        theirs = _vgg_extractor(vgg16(), highres=False, trainable_layers=4)
        ours = Network(config.backbone, config.head, 90).backbone
    freeze_stages(ours, config.freeze_stages, in_channels=3)
    frozen = [sum(p.numel() for p in one.parameters() if not p.requires_grad) for one in (ours, theirs)]
    assert frozen == [38_720, 38_720]


def test_the_momentum_of_all_norms_is_the_flags() -> None:
    module = SegmentationModule("resnet18", "unet", NAMES, norm_momentum=3e-4)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) > 20
    assert {norm.momentum for norm in norms} == {3e-4}


def test_the_exponential_schedule_is_efficientnets() -> None:
    """0.97 times the rate every 2.4 epochs of 350."""
    steps = 350 * 10
    rates = [learning_rate_factor("exponential", step, steps, 0) for step in range(steps)]
    assert rates[0] == rates[23] == 1
    assert rates[24] == rates[47] == pytest.approx(0.97)
    assert rates[-1] == pytest.approx(0.97**145)
