"""Reading checkpoints: files of every kind, the cache, what is said without a network; which tensors are loaded."""

import argparse
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones import BACKBONES, find_backbone
from backbones.backbone import Backbone
from backbones.weights import cached_download, read_weights
from lightning_modules.network import Network
from tests.conftest import randomise

pytestmark = pytest.mark.usefixtures("quick_weights")

StateDict = dict[str, Tensor]


def below(prefix: str, state: StateDict) -> StateDict:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def published() -> StateDict:
    """torchvision's ResNet-18 with values that no initialisation gives."""
    torch.manual_seed(7)
    return randomise(torchvision.models.resnet18()).state_dict()


@pytest.fixture(scope="module")
def body(published: StateDict) -> StateDict:
    return {key: value for key, value in published.items() if not key.startswith("fc.")}


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def holds(backbone: nn.Module, body: StateDict) -> bool:
    own = backbone.state_dict()
    return own.keys() == body.keys() and all(torch.equal(own[key], body[key]) for key in own)


# --- reading files ---


def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path) -> None:
    state = {"a": torch.randn(2, 3)}
    torch.save(state, tmp_path / "plain.pth")
    for entry in ("state_dict", "model", "model_state_dict", "module"):
        torch.save({entry: state, "epoch": 3}, tmp_path / f"{entry}.pth")
    torch.save({"model": {"state_dict": state}}, tmp_path / "twice.pth")
    save_file(state, tmp_path / "plain.safetensors")
    for path in tmp_path.iterdir():
        read = read_weights(str(path)).state
        assert read.keys() == state.keys()
        assert torch.equal(read["a"], state["a"])


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema", "teacher"])
def test_an_average_is_taken_before_the_weights_it_averages(entry: str, tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.zeros(1)}, "model": {"a": torch.zeros(1)}, entry: {"a": torch.ones(1)}}
    read = read_weights(saved(content, tmp_path / "averaged.pth"))
    assert read.entry == entry
    assert read.state["a"].item() == 1


def test_an_entry_without_tensors_is_passed_over(tmp_path: Path) -> None:
    content = {"ema": {"decay": 0.99, "shadow_params": [torch.zeros(1)]}, "model": {"a": torch.ones(1)}}
    assert read_weights(saved(content, tmp_path / "list.pth")).entry == "model"
    with pytest.raises(ValueError, match=r"holds no tensors under state_dict_ema,.* it has epoch, lr$"):
        read_weights(saved({"epoch": 1, "lr": 0.1}, tmp_path / "settings.pth"))


def test_settings_beside_the_tensors_are_allowed(tmp_path: Path) -> None:
    settings = argparse.Namespace(lr=0.1, output_dir=Path("runs"), sizes=[1, 2])
    content = {"model": {"a": torch.ones(1)}, "args": settings, "best_acc1": np.float64(71.5), "epoch": np.int64(3)}
    assert read_weights(saved(content, tmp_path / "args.pth")).state["a"].item() == 1


class Harmful:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    settings = argparse.Namespace(lr=0.1, callback=Harmful(folder))
    path = saved({"model": {"a": torch.ones(1)}, "args": settings}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match=r"harmful.* holds a \S*mkdir, which could run code") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not folder.exists()
    torch.load(path, weights_only=False)  # as a reader that trusts the file would
    assert folder.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"half{suffix}"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"half.* cannot be read as a checkpoint") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)


def test_offline_names_address_cache_and_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="--weights imagenet could not be fetched") as caught:
        BACKBONES["resnet18"](weights="imagenet")
    for part in ("https://download.pytorch.org/models/resnet18-f37072fd.pth", str(tmp_path), "--weights FILE"):
        assert part in str(caught.value)


def test_the_cache_is_used_and_keeps_models_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "xception41.tf_in1k.safetensors"
    cached.parent.mkdir()
    save_file({"a": torch.ones(1)}, cached)
    assert cached_download("https://huggingface.co/timm/xception41.tf_in1k/resolve/main/model.safetensors") == cached


# --- names under a prefix ---


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "encoder.",
        "backbone.",
        "module.encoder_q.",
        "module.base_encoder.",
        "model.backbone._orig_mod.",
    ],
)
def test_prefixes_without_meaning_are_taken_off(
    prefix: str, published: StateDict, body: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = BACKBONES["resnet18"](weights=saved(below(prefix, published), tmp_path / "prefixed.pth"))
    assert holds(backbone, body)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"120 tensors; named there with the prefix '{prefix}'" in line


def test_the_rest_of_a_segmentation_network_is_left_out(
    body: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = {"decoder.blocks.0.conv1.0.weight": torch.ones(1), "segmentation_head.0.bias": torch.ones(1)}
    scores = {"classifier.4.bias": torch.ones(21), "aux_classifier.4.bias": torch.ones(21)}
    for content in (below("encoder.", body) | decoder, {"model": below("backbone.", body) | scores, "epoch": 3}):
        assert holds(BACKBONES["resnet18"](weights=saved(content, tmp_path / "segmenter.pth")), body)
        assert "tensors left out, outside the prefix: 2" in capsys.readouterr().out


def test_another_head_of_self_supervised_training_is_left_out(body: StateDict, tmp_path: Path) -> None:
    projection = {f"fc.{i}.{kind}": torch.ones(1) for i in (0, 2) for kind in ("weight", "bias")}
    momentum = below("module.encoder_k.", body) | {"module.queue": torch.ones(1)}
    content = {"state_dict": below("module.encoder_q.", body | projection) | momentum, "arch": "resnet18"}
    assert holds(BACKBONES["resnet18"](weights=saved(content, tmp_path / "moco.pth")), body)


def test_averages_of_torch_load(body: StateDict, published: StateDict, tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Identity()).state_dict() | below("module.", published)
    content = {"model": {key: torch.zeros_like(value) for key, value in published.items()}, "model_ema": averaged}
    assert holds(BACKBONES["resnet18"](weights=saved(content, tmp_path / "averaged.pth")), body)


def test_a_prefix_before_another_architecture_is_refused(published: StateDict, tmp_path: Path) -> None:
    path = saved(below("module.", published), tmp_path / "deep.pth")
    with pytest.raises(ValueError, match=r"does not fit resnet34: under the prefix 'module.', .* are missing"):
        BACKBONES["resnet34"](weights=path)
    spoiled = {key: value for key, value in published.items() if key != "bn1.bias"}
    with pytest.raises(ValueError, match=r"1 of \d+ tensors are missing \(first: bn1.bias\)"):
        BACKBONES["resnet18"](weights=saved(below("module.", spoiled), tmp_path / "spoiled.pth"))


def test_vit_keeps_the_encoder_of_its_own_names(tmp_path: Path) -> None:
    state = BACKBONES["vit_b_32"](pyramid=False).state_dict()
    path = saved(below("module.", state), tmp_path / "vit.pth")
    assert torch.equal(BACKBONES["vit_b_32"](weights=path).conv_proj.weight, state["conv_proj.weight"])


def test_timm_models_load_from_under_a_prefix(tmp_path: Path) -> None:
    import timm

    whole = randomise(timm.create_model("mobilenetv3_small_050"))
    path = saved({"state_dict": below("module.", whole.state_dict())}, tmp_path / "whole.pth")
    backbone = find_backbone("timm/mobilenetv3_small_050")(weights=path)
    assert torch.equal(backbone.timm_model.conv_stem.weight, whole.conv_stem.weight)


def test_only_the_first_process_says_what_was_loaded(
    body: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    BACKBONES["resnet18"](weights=saved(body, tmp_path / "body.pth"))
    assert capsys.readouterr().out == ""


# --- the classifier ---

HIDDEN = {  # tensors of the published classifier that do not depend on the number of classes
    "resnet18": 0,
    "googlenet": 0,
    "densenet121": 0,
    "mobilenet_v3_small": 2,
    "swin_t": 2,
    "convnext_tiny": 2,
    "alexnet": 4,
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("classes", [1000, 10])
def test_all_of_a_classifier_but_its_output_layer_fits_any_number_of_classes(
    name: str, classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = BACKBONES[name]()
    theirs = randomise(backbone.classifier(1000)).state_dict()
    path = saved(backbone.state_dict() | theirs, tmp_path / "published.pth")
    torch.manual_seed(1)
    start = Network(name, "classifier", classes).head.classifier.state_dict()
    torch.manual_seed(1)
    ours = Network(name, "classifier", classes, weights=path).head.classifier.state_dict()
    os.unlink(path)
    loaded = [key for key in ours if ours[key].shape == theirs[key].shape]
    assert len(loaded) == (len(ours) if classes == 1000 else HIDDEN[name])
    for key, value in ours.items():
        assert torch.equal(value, theirs[key] if key in loaded else start[key]), key
    said = capsys.readouterr().out
    assert ("its output layer is for 1000 classes, so ours for 10 stays as initialised" in said) == (classes == 10)


def test_a_file_without_a_classifier_leaves_ours_as_initialised(
    body: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network("resnet18", "classifier", 1000, weights=saved(body, tmp_path / "body.pth"))
    assert holds(network.backbone, body)
    assert "it has no classifier, so ours stays as initialised" in capsys.readouterr().out


def test_half_a_classifier_is_refused(published: StateDict, tmp_path: Path) -> None:
    path = saved({key: value for key, value in published.items() if key != "fc.bias"}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="does not fit resnet18: its classifier lacks fc.bias"):
        Network("resnet18", "classifier", 10, weights=path)


def test_other_hidden_layers_leave_the_classifier_as_initialised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = BACKBONES["mobilenet_v3_small"]()
    state = backbone.state_dict() | backbone.classifier(1000).state_dict()
    state["classifier.0.weight"] = torch.zeros(7, 576)
    Network("mobilenet_v3_small", "classifier", 10, weights=saved(state, tmp_path / "narrow.pth"))
    assert "its classifier is another (first: classifier.0.weight)" in capsys.readouterr().out


def run_checkpoint(network: Network, path: Path) -> str:
    return saved({"state_dict": below("network.", network.state_dict()), "epoch": 1}, path)


def test_a_run_of_ones_own_brings_its_classifier(tmp_path: Path) -> None:
    before = Network("mobilenet_v3_small", "classifier", 5)
    path = run_checkpoint(before, tmp_path / "run.ckpt")
    same = Network("mobilenet_v3_small", "classifier", 5, weights=path)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), same.parameters(), strict=True))
    other = Network("mobilenet_v3_small", "classifier", 7, weights=path)
    assert torch.equal(other.head.classifier.classifier[0].weight, before.head.classifier.classifier[0].weight)
    assert holds(Network("mobilenet_v3_small", "unet", 7, weights=path).backbone, before.backbone.state_dict())


def test_a_segmentation_run_gives_its_backbone_only(tmp_path: Path) -> None:
    before = Network("resnet18", "deeplab", 5, aux=True)
    after = Network("resnet18", "classifier", 5, weights=run_checkpoint(before, tmp_path / "run.ckpt"))
    assert holds(after.backbone, before.backbone.state_dict())


@pytest.mark.parametrize("first", [False, True])
def test_fully_connected_layers_move_between_linear_and_convolutional_runs(first: bool, tmp_path: Path) -> None:
    before = Network("alexnet", "classifier", 5, backbone_options={"fully_convolutional": first}).eval()
    path = run_checkpoint(before, tmp_path / "run.ckpt")
    after = Network(
        "alexnet", "classifier", 5, weights=path, backbone_options={"fully_convolutional": not first}
    ).eval()
    os.unlink(path)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-6)


# --- levels that are not read ---


def test_levels_of_vit_that_nothing_reads_are_not_built() -> None:
    backbone = BACKBONES["vit_b_32"]()
    whole = sum(p.numel() for p in backbone.parameters())
    names = [name for name, _ in backbone.named_parameters() if not name.startswith("neck.levels.")]
    backbone.keep_levels([-1])
    assert sum(p.numel() for p in backbone.parameters()) < whole
    assert [n for n, _ in backbone.named_parameters() if not n.startswith("neck.levels.3.")] == names
    maps = backbone(torch.randn(2, 3, 40, 70))
    assert [tuple(one.shape) for one in maps] == [(2, 256, 0, 0)] * 3 + [(2, 256, 2, 3)]
    maps[-1].square().mean().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_levels_are_checked_and_other_backbones_keep_all_maps() -> None:
    with torch.device("meta"), pytest.raises(IndexError):
        BACKBONES["vit_b_32"]().keep_levels([4])
    with torch.device("meta"):
        for name in ("resnet18", "swin_t"):
            backbone: Backbone = BACKBONES[name]()
            backbone.keep_levels([-1])
            assert all(one.numel() for one in backbone(torch.empty(1, 3, 64, 64)))


def test_weights_of_a_vit_that_read_other_levels_load(tmp_path: Path) -> None:
    before = BACKBONES["vit_b_32"]()
    before.keep_levels([0, 3])
    path = saved({"state_dict": below("network.backbone.", before.state_dict())}, tmp_path / "run.ckpt")
    after = BACKBONES["vit_b_32"]()
    after.keep_levels([2, 3])
    start = {key: value.clone() for key, value in after.state_dict().items()}
    after.load(path)
    for key, value in after.state_dict().items():
        assert torch.equal(value, start[key] if key.startswith("neck.levels.2.") else before.state_dict()[key]), key
