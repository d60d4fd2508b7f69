"""What flags of training promise: layer-wise rates, frozen norms, recomputed activations, patience, accumulation."""

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from backbones import BACKBONES
from experiments.run import main
from experiments.training.make_trainer import Patience
from lightning_modules.blocks import blocks, depths
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import crf_arguments

NAMES = ("sky", "road", "car")


def build(backbone: str = "resnet18", head: str = "unet", **options) -> SegmentationModule:
    return SegmentationModule(backbone, head, NAMES, **options)


def batch(size: int = 64) -> dict:
    return {"image": torch.randn(2, 3, size, size), "target": torch.randint(0, 3, (2, size, size)), "name": ["a", "b"]}


@pytest.mark.usefixtures("quick_weights")
@pytest.mark.parametrize("name", BACKBONES)
def test_layers_are_counted_in_order(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    of_parameter, layers = depths(backbone)
    assert set(of_parameter) == {key for key, _ in backbone.named_parameters()}
    assert set(of_parameter.values()) == set(range(layers))
    convolutions = [module for module in backbone.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert 2 <= layers <= len(convolutions)
    first = next(key for key, value in backbone.named_parameters() if value.ndim == 4)
    assert of_parameter[first] == 0


def test_layers_of_known_networks() -> None:
    expected = {"resnet18": 9, "resnet101": 34, "vgg16": 13, "vgg16_bn": 13, "swin_t": 16, "densenet121": 8}
    for name, layers in expected.items():
        with torch.device("meta"):
            assert depths(BACKBONES[name]())[1] == layers, name
    with torch.device("meta"):
        of_parameter, _ = depths(BACKBONES["vit_b_16"]())
    assert of_parameter["conv_proj.weight"] == of_parameter["encoder.pos_embedding"] == 0
    assert [of_parameter[f"encoder.layers.encoder_layer_{i}.mlp.0.weight"] for i in range(12)] == list(range(1, 13))


FIRST_STAGES = {
    "resnet18": ("conv1", "bn1", "layer1"),
    "vgg11_bn": ("features.0", "features.1", "features.4", "features.5"),
}


@pytest.mark.parametrize(("name", "frozen"), FIRST_STAGES.items())
def test_the_first_stages_are_frozen(name: str, frozen: tuple[str, ...]) -> None:
    module = build(name, "hypercolumn", freeze_stages=2).train()
    for key, parameter in module.network.named_parameters():
        part = key.removeprefix("backbone.")
        assert parameter.requires_grad != any(part.startswith(f"{one}.") for one in frozen), key
    for key, part in module.network.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.training != any(f"{key}.".startswith(f"backbone.{one}.") for one in frozen), key
    with pytest.raises(ValueError, match="--freeze-stages is 6; resnet18 has 5 maps, so give at most that"):
        build("resnet18", "hypercolumn", freeze_stages=6)


def test_frozen_norms_keep_their_statistics_and_learn_their_scales() -> None:
    module = build(freeze_norms=True).train()
    norm, head_norm = module.network.backbone.bn1, module.network.head
    before = norm.running_mean.clone(), norm.running_var.clone()
    heads = {name: value.clone() for name, value in head_norm.named_buffers()}
    loss = module.training_step(batch(), 0)
    loss.backward()
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    assert norm.weight.grad.abs().sum() > 0
    assert any(not torch.equal(value, heads[name]) for name, value in head_norm.named_buffers())
    assert not norm.training
    assert module.network.backbone.layer1.training


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "mobilenet_v3_small"])
def test_recomputing_changes_nothing_but_memory(name: str) -> None:
    plain = build(name, "fcn32s").train()
    frugal = build(name, "fcn32s", checkpoint_activations=True).train()
    frugal.load_state_dict(plain.state_dict())
    data = batch()
    saved = []
    for module in (plain, frugal):
        torch.manual_seed(3)
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = module.training_step(data, 0)
        loss.backward()
        saved.append(count)
    assert saved[1] < 0.6 * saved[0]
    for (key, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=key, rtol=1e-4, atol=1e-6)
    for (key, one), other in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        assert torch.equal(one, other), key
    copied = copy.deepcopy(frugal)  # as for the moving average
    assert copied.state_dict().keys() == plain.state_dict().keys()
    assert next(iter(blocks(copied.network.backbone))).forward.args[1] is not blocks(frugal.network.backbone)[0]


def test_rows_of_single_layers_cannot_be_recomputed() -> None:
    with pytest.raises(ValueError, match="this backbone has single layers"):
        build("lenet5", "hypercolumn", checkpoint_activations=True)


def test_a_run_that_had_lost_patience_does_not_go_on() -> None:
    stopper = Patience("val/miou", mode="max", patience=2)
    trainer = SimpleNamespace(should_stop=False)
    for waited, stops in ((0, False), (1, False), (2, True)):
        stopper.wait_count = waited
        stopper.on_train_start(trainer, None)
        assert trainer.should_stop == stops


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)


@pytest.mark.usefixtures("_alone")
def test_two_halves_of_a_batch_make_the_step_of_the_whole(crf_folder: Path, tmp_path: Path) -> None:
    common = ["--backbone", "lenet5", "--head", "hypercolumn", "--optimizer", "sgd", "--lr", "0.1", "--epochs", "1"]
    common += ["--augmentation", "none", "--clip-gradient", "0.5"]  # scaled crops have padding, which counts in no mean
    whole = crf_arguments(crf_folder, tmp_path, *common, "--name", "whole", "--batch-size", "4")
    halves = crf_arguments(crf_folder, tmp_path, *common, "--name", "halves", "--batch-size", "2", "--accumulate", "2")
    assert main(whole) == main(halves) == 0
    one, two = last_weights(tmp_path / "whole"), last_weights(tmp_path / "halves")
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.usefixtures("_alone")
def test_find_lr_suggests_a_rate_and_keeps_nothing(crf_folder: Path, tmp_path: Path, capsys) -> None:
    flags = crf_arguments(crf_folder, tmp_path / "runs", "--backbone", "lenet5", "--head", "hypercolumn", "--find-lr")
    assert main(flags) == 0
    rate = float(capsys.readouterr().out.splitlines()[-1].removeprefix("--lr "))
    assert 1e-6 < rate < 1
    assert list(tmp_path.iterdir()) == []


FEW_LAYERS = ("resnet20", "fcn")
SHALLOW = {"backbone_options": {"depth": 8}, "head_options": {"dropout": 0.0}}
"""Of a network that is compiled in a third of the time of resnet18."""


def compiled_graphs(module: SegmentationModule, work: Callable[[], object]) -> int:
    """How many graphs torch.compile makes of what `work` runs; they are run as traced, without a C++ compiler."""
    torch._dynamo.reset()
    counter = CompileCounter()
    module.compile_network(backend=counter)
    work()
    return counter.frame_count


@pytest.mark.parametrize("aux_weight", [None, 0.4])
def test_training_and_evaluation_are_compiled_with_auxiliary_losses_too(aux_weight: float | None) -> None:
    torch.manual_seed(0)
    module = build(*FEW_LAYERS, aux_weight=aux_weight, **SHALLOW).train()
    plain = copy.deepcopy(module)
    data = batch()
    losses = []
    assert compiled_graphs(module, lambda: losses.append(module.training_step(data, 0))) > 0
    torch.manual_seed(1)
    losses.append(module.training_step(data, 0))
    torch.manual_seed(1)
    losses[-1].backward()
    plain.training_step(data, 0)  # moves the batch norms as often
    torch.manual_seed(1)
    expected = plain.training_step(data, 0)
    torch.testing.assert_close(losses[-1], expected)
    module.eval()
    with torch.no_grad():
        assert compiled_graphs(module, lambda: module(data["image"])) > 0


def test_recomputed_activations_are_recomputed_when_compiled_too() -> None:
    torch.manual_seed(0)
    plain = build(*FEW_LAYERS, **SHALLOW).train()
    start = copy.deepcopy(plain.state_dict())
    data = batch()
    plain.training_step(data, 0).backward()
    saved = []
    for recompute in (False, True):
        module = build(*FEW_LAYERS, **SHALLOW, checkpoint_activations=recompute).train()
        module.load_state_dict(start)
        torch._dynamo.reset()
        module.compile_network(backend="aot_eager_decomp_partition")
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel() if tensor.ndim == 4 and len(tensor) == 2 else 0  # maps of the two images
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = module.training_step(data, 0)
        loss.backward()
        saved.append(count)
        for (key, one), other in zip(plain.named_parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, msg=key, rtol=1e-4, atol=1e-6)
        for (key, one), other in zip(plain.named_buffers(), module.buffers(), strict=True):
            torch.testing.assert_close(one, other, msg=key, rtol=1e-5, atol=1e-5)
    assert saved[1] < 0.6 * saved[0]


def test_recomputation_that_cannot_be_traced_is_refused() -> None:
    module = build("densenet121", "fcn32s", backbone_options={"memory_efficient": True})
    with pytest.raises(ValueError, match="--compile does not work with the backbone's option memory_efficient"):
        module.compile_network()


@pytest.mark.usefixtures("_alone")
def test_compiling_leaves_the_names_of_weights(crf_folder: Path, tmp_path: Path, monkeypatch) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    whole = SegmentationModule.compile_network
    monkeypatch.setattr(SegmentationModule, "compile_network", lambda self: whole(self, backend=counter))
    flags = ["--backbone", "lenet5", "--head", "hypercolumn", "--compile", "--epochs", "1", "--name", "a"]
    assert main(crf_arguments(crf_folder, tmp_path, *flags)) == 0
    assert counter.frame_count > 0
    assert all(name.startswith(("network.backbone.", "network.head.")) for name in last_weights(tmp_path / "a"))


@pytest.mark.usefixtures("_alone")
def test_the_average_is_what_is_scored_and_kept(crf_folder: Path, tmp_path: Path) -> None:
    flags = ["--ema", "0.5", "--epochs", "1", "--max-steps", "4", "--name", "ema"]
    assert main(crf_arguments(crf_folder, tmp_path, *flags)) == 0
    kept = torch.load(tmp_path / "ema" / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(iter(kept["state_dict"]))
    assert not torch.equal(kept["state_dict"][name], kept["current_model_state"][name])
    # The results are those of the checkpoint's weights; so is the epoch's row.
    (row,) = csv.DictReader((tmp_path / "ema" / "metrics.csv").open())
    results = json.loads((tmp_path / "ema" / "results.json").read_text())["scores"]["val"]
    assert float(row["val/loss"]) == pytest.approx(results["loss"], rel=1e-5)
