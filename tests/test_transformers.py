"""What only ViT, Swin, ConvNeXt and the bridge to timm have."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import StochasticDepth

from backbones import BACKBONES, find_backbone
from backbones.timm_backbone import TimmBackbone
from backbones.vit import SimplePyramid
from tests.conftest import randomise
from tests.oracles import KNOBS, oracle
from tests.test_backbones import relative

pytestmark = pytest.mark.usefixtures("quick_weights")

BRIDGED = ["timm/resnet18", "timm/mobilenetv3_small_050"]


@pytest.mark.parametrize("name", KNOBS)
@pytest.mark.parametrize("size", [(1, 1), (65, 97), (224, 224), (321, 64)])
def test_vit_maps_cover_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        maps = BACKBONES[name]()(torch.empty(1, 3, *size))
    for one, reduction in zip(maps, (4, 8, 16, 32), strict=True):
        assert tuple(one.shape) == (1, 256, -(-size[0] // reduction), -(-size[1] // reduction))


def test_every_parameter_of_vit_with_its_pyramid_gets_a_gradient() -> None:
    backbone = BACKBONES["vit_b_16"]()
    sum(one.square().mean() for one in backbone(torch.randn(1, 3, 65, 97))).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, f"no gradient for {key}"
        assert parameter.grad.isfinite().all(), f"gradient of {key} is not finite"


def test_resized_position_embeddings_keep_their_place() -> None:
    encoder = BACKBONES["vit_b_32"](pyramid=False).encoder
    ramp = torch.linspace(-1, 1, 7)
    with torch.no_grad():
        encoder.pos_embedding[0, 1:, 0] = ramp.repeat_interleave(7)  # from row to row
        encoder.pos_embedding[0, 1:, 1] = ramp.repeat(7)  # from column to column
        tokens = encoder.positions((14, 21))
        rows, columns = (tokens[0, 1:, i].unflatten(0, (14, 21)) for i in (0, 1))
    assert torch.equal(tokens[:, 0], encoder.pos_embedding[:, 0])
    assert relative(rows, rows[:, :1].expand_as(rows)) <= 1e-6
    assert (rows[:, 0].diff() > 0).all()
    assert relative(columns, columns[:1].expand_as(columns)) <= 1e-6
    assert (columns[0].diff() > 0).all()
    assert encoder.positions((7, 7)) is encoder.pos_embedding


def test_padding_to_whole_patches_adds_zeros() -> None:
    backbone = BACKBONES["vit_b_32"](pyramid=False).eval()
    x = torch.zeros(1, 3, 96, 128)
    x[..., :65, :97] = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        assert torch.equal(backbone(x)[-1], backbone(x[..., :65, :97])[-1])


def test_vit_loads_the_published_names_and_leaves_the_neck_at_its_start(tmp_path: Path) -> None:
    state = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in oracle("vit_b_32").state_dict().items()
    }
    assert "encoder.layers.encoder_layer_11.mlp.linear_2.bias" in state
    torch.save(state, tmp_path / "published.pth")
    backbone = BACKBONES["vit_b_32"](weights=str(tmp_path / "published.pth"))
    assert torch.equal(
        backbone.encoder.layers[11].mlp[3].weight, state["encoder.layers.encoder_layer_11.mlp.linear_2.weight"]
    )
    partial = {key: value for key, value in backbone.state_dict().items() if key != "neck.levels.0.0.weight"}
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"1 of \d+ tensors are missing \(first: neck.levels.0.0.weight\)"):
        BACKBONES["vit_b_32"](weights=str(tmp_path / "partial.pth"))


def test_vit_without_a_pyramid_has_no_neck() -> None:
    with torch.device("meta"):
        backbone = BACKBONES["vit_b_16"](pyramid=False)
        maps = backbone(torch.empty(2, 3, 64, 64))
    assert [tuple(one.shape) for one in maps] == [(2, 768, 1, 1)]
    assert not any(isinstance(module, SimplePyramid) for module in backbone.modules())


def test_vits_classifier_says_that_it_needs_the_class_token() -> None:
    with torch.device("meta"):
        backbone = BACKBONES["vit_b_16"]()
        with pytest.raises(ValueError, match="use pyramid=False"):
            backbone.classifier(10)(backbone(torch.empty(2, 3, 64, 64))[-1])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("vit_b_16", "patches are 16 pixels wide"), ("swin_t", "attend to"), ("swin_v2_b", "attend to")],
)
def test_output_strides_without_an_exact_form_are_refused_with_the_reason(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"output_stride is 16; {name} has 32 only.*{reason}"):
        BACKBONES[name](output_stride=16)


@pytest.mark.parametrize(
    ("name", "last"), [("swin_t", 0.2), ("swin_v2_b", 0.5), ("convnext_tiny", 0.1), ("convnext_large", 0.5)]
)
def test_stochastic_depth_grows_linearly_to_the_published_rate(name: str, last: float) -> None:
    with torch.device("meta"):
        rates = [m.p for m in BACKBONES[name]().modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx(torch.linspace(0, last, len(rates)).tolist())


def test_stochastic_depth_acts_in_training_only() -> None:
    backbone = randomise(BACKBONES["convnext_tiny"]())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(backbone(x)[-1], backbone(x)[-1])
        backbone.eval()
        assert torch.equal(backbone(x)[-1], backbone(x)[-1])


class Calls(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "side", "rolls", "pads"),
    [
        # Blocks 2, 4, 6, 8 and 10 are shifted, there and back; the last stage is one window, which is not shifted.
        ("swin_t", 224, 10, 0),
        ("swin_v2_t", 256, 10, 0),
        # Maps of 50, 25 and 13 pixels: all but the last, of 7, are padded for windows, two more for merging.
        ("swin_t", 200, 10, 12),
        ("vit_b_32", 224, 0, 0),
        ("vit_b_32", 200, 0, 1),
        ("convnext_tiny", 224, 0, 0),
    ],
)
def test_maps_are_not_copied_by_empty_shifts_and_pads(name: str, side: int, rolls: int, pads: int) -> None:
    with torch.device("meta"), torch.no_grad(), Calls() as calls:
        BACKBONES[name]().eval()(torch.empty(1, 3, side, side))
    assert (calls.counts["roll"], calls.counts["constant_pad_nd"]) == (rolls, pads)


# --- timm/NAME ---


@pytest.mark.parametrize("name", BRIDGED)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_bridged_models_keep_the_contract(name: str, output_stride: int) -> None:
    backbone = find_backbone(name)(output_stride=output_stride, in_channels=4)
    maps = backbone(torch.randn(2, 4, 128, 192))
    assert tuple(one.shape[1] for one in maps) == backbone.channels
    assert backbone.reductions == tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))
    for one, reduction in zip(maps, backbone.reductions, strict=True):
        assert tuple(one.shape[2:]) == (128 // reduction, 192 // reduction)
    classifier = backbone.classifier(10)
    classifier(maps[-1]).sum().backward()
    for module in (backbone, classifier):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, f"no gradient for {key}"


@pytest.mark.parametrize(
    ("name", "channels", "reductions"),
    [
        ("timm/swin_tiny_patch4_window7_224", (96, 192, 384, 768), (4, 8, 16, 32)),  # timm's maps are (B, H, W, C)
        ("timm/vit_tiny_patch16_224", (192,), (16,)),  # timm gives three maps at stride 16
        ("timm/resnet18.a1_in1k", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),  # a name with its weights' tag
    ],
)
def test_bridged_maps_are_channels_first_and_one_per_stride(
    name: str, channels: tuple[int, ...], reductions: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        backbone = find_backbone(name)()
        maps = backbone(torch.empty(1, 3, 224, 224))
    assert (backbone.channels, backbone.reductions) == (channels, reductions)
    assert [tuple(one.shape) for one in maps] == [
        (1, width, 224 // r, 224 // r) for width, r in zip(channels, reductions, strict=True)
    ]


def test_bridged_models_state_their_input() -> None:
    with torch.device("meta"):
        backbone = find_backbone("timm/vit_tiny_patch16_224")()
    assert (backbone.input_size, backbone.mean, backbone.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert backbone.published_url().startswith("https://huggingface.co/timm/vit_tiny_patch16_224")
    assert backbone.published_top1() is None


def test_bridged_models_load_whole_timm_checkpoints_strictly(tmp_path: Path) -> None:
    import timm

    whole = randomise(timm.create_model("mobilenetv3_small_050", num_classes=7)).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = find_backbone("timm/mobilenetv3_small_050")(weights=str(tmp_path / "whole.pth")).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        _, maps = whole.forward_intermediates(x)
        assert relative(backbone(x)[-1], maps[-1]) <= 1e-5

    torch.save({f"network.backbone.{k}": v for k, v in backbone.state_dict().items()}, tmp_path / "run.ckpt")
    again = find_backbone("timm/mobilenetv3_small_050")(weights=str(tmp_path / "run.ckpt")).eval()
    with torch.inference_mode():
        assert torch.equal(again(x)[-1], backbone(x)[-1])

    with pytest.raises(ValueError, match=r"does not fit timm/resnet18: .*Missing key") as refusal:
        find_backbone("timm/resnet18")(weights=str(tmp_path / "whole.pth"))
    assert "\n" not in str(refusal.value)


def test_published_weights_come_from_timm_and_their_absence_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    published = randomise(timm.create_model("resnet18"))
    create = timm.create_model

    def on_a_network(*args: object, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if pretrained:
            options["pretrained_cfg_overlay"] = {"state_dict": published.state_dict()}
        return create(*args, pretrained=pretrained, **options)

    def offline(*args: object, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no route\nto host")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", on_a_network)
    backbone = find_backbone("timm/resnet18")(weights="imagenet")
    assert torch.equal(backbone.timm_model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"no route to host.*huggingface.co/timm/resnet18.*--weights FILE") as refusal:
        find_backbone("timm/resnet18")(weights="imagenet")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("timm/resnet81", 32, "timm has no model 'resnet81'; nearest: timm/resnet"),
        ("timm/resnet18.nonesuch", 32, "Invalid pretrained tag"),
        ("timm/densenet121", 8, "output_stride is 8; timm cannot build densenet121 so.*output_stride"),
        ("timm/vgg11", 16, "output_stride is 16; timm cannot build vgg11 so.*AssertionError"),
        ("resnet81", 32, "no backbone 'resnet81'; nearest: resnet"),
    ],
)
def test_what_timm_lacks_is_refused_in_one_line(name: str, output_stride: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message) as refusal:
        find_backbone(name)(output_stride=output_stride)
    assert "\n" not in str(refusal.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install graft\[timm\]"):
        TimmBackbone("resnet18")
