"""What GoogLeNet, DenseNet and the Xceptions have beyond the common contract."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision

from backbones import BACKBONES
from backbones.densenet import DenseNet
from backbones.googlenet import GoogLeNet
from backbones.squeeze_excitation import SqueezeExcitation
from tests.conftest import randomise
from tests.oracles import oracle
from tests.test_backbones import HeldGates, relative

pytestmark = pytest.mark.usefixtures("quick_weights")

GATED = ["googlenet", "xception", "xception41"]


@pytest.mark.parametrize(
    ("name", "rate"), [("googlenet", 0.2), ("xception", 0.5), ("xception65", 0.5), ("densenet121", 0)]
)
def test_classifiers_drop_out_at_the_published_rate(name: str, rate: float) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        channels, classifier = BACKBONES[name]().channels[-1], BACKBONES[name]().classifier(1)
    (linear,) = (module for module in classifier.modules() if isinstance(module, torch.nn.Linear))
    classifier = classifier.to_empty(device="cpu")
    torch.nn.init.ones_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    kept = classifier(torch.ones(64, channels, 2, 2)) * (1 - rate) / channels
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.01)
    assert torch.equal(classifier.eval()(torch.ones(1, channels, 2, 2)), torch.full((1, 1), float(channels)))


def publish(name: str, path: Path) -> dict[str, torch.Tensor]:
    """Save a checkpoint as the other library would."""
    state = randomise(oracle(name)).state_dict()
    torch.save(state, path)
    return state


def test_auxiliary_classifiers_exist_in_training_only() -> None:
    x = torch.randn(2, 3, 64, 64)
    backbone = GoogLeNet("googlenet", aux=7)
    maps, logits = backbone.train().forward_with_aux(x)
    assert [tuple(one.shape) for one in logits] == [(2, 7), (2, 7)]
    assert [one.shape for one in maps] == [one.shape for one in backbone(x)]
    assert backbone.eval().forward_with_aux(x)[1] == []
    assert GoogLeNet("googlenet").train().forward_with_aux(x)[1] == []


def test_no_auxiliary_classifiers_are_built_unless_asked_for() -> None:
    with torch.device("meta"):
        names = [name for name, _ in GoogLeNet("googlenet", aux=0).named_parameters()]
    assert not any(name.startswith("aux") for name in names)


def test_auxiliary_classes_are_checked() -> None:
    with pytest.raises(ValueError, match="aux is -1"):
        GoogLeNet("googlenet", aux=-1)


def test_every_parameter_gets_a_gradient_from_main_and_auxiliary_losses() -> None:
    backbone = GoogLeNet("googlenet", aux=7).train()
    classifier = backbone.classifier(7)
    target = torch.tensor([1, 2])
    maps, logits = backbone.forward_with_aux(torch.randn(2, 3, 64, 64))
    loss = F.cross_entropy(classifier(maps[-1]), target) + 0.3 * sum(F.cross_entropy(one, target) for one in logits)
    loss.backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, f"no gradient for {key}"
        assert parameter.grad.isfinite().all(), f"gradient of {key} is not finite"


def test_auxiliary_logits_equal_the_oracle() -> None:
    published = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False, dropout_aux=0.0).train()
    backbone = GoogLeNet("googlenet", aux=1000).train()
    state = {key: value for key, value in published.state_dict().items() if not key.startswith("fc.")}
    backbone.load_state_dict(state, strict=True)
    for part in (backbone.aux1, backbone.aux2):
        part.dropout.p = 0.0
    x = torch.randn(2, 3, 96, 128)
    theirs = published(x)
    first, second = backbone.forward_with_aux(x)[1]
    assert relative(first, theirs.aux_logits1) <= 1e-5
    assert relative(second, theirs.aux_logits2) <= 1e-5


def test_published_googlenet_loads_with_any_number_of_auxiliary_classes(tmp_path: Path) -> None:
    path = tmp_path / "googlenet.pth"
    state = publish("googlenet", path)
    for aux in (0, 1000, 7):
        backbone = GoogLeNet("googlenet", weights=str(path), aux=aux)
        assert backbone.conv1.conv.weight.equal(state["conv1.conv.weight"])
        if aux == 1000:
            assert backbone.aux2.fc2.weight.equal(state["aux2.fc2.weight"])
    assert backbone.aux2.fc2.weight.shape == (7, 1024)


def test_googlenet_without_auxiliary_weights_loads_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    plain = GoogLeNet("googlenet")
    torch.save(plain.state_dict(), path)
    backbone = GoogLeNet("googlenet", weights=str(path), aux=7)
    assert backbone.conv1.conv.weight.equal(plain.conv1.conv.weight)


def test_old_densenet_names_load(tmp_path: Path) -> None:
    backbone = DenseNet("densenet121")
    classifier = backbone.classifier(1000)
    state = backbone.state_dict() | classifier.state_dict()
    old = {}
    for key, value in state.items():
        for new in ("norm1.", "norm2.", "conv1.", "conv2."):
            key = key.replace(new, f"{new[:-2]}.{new[-2:]}") if "denselayer" in key else key
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    path = tmp_path / "old.pth"
    torch.save(old, path)
    loaded = DenseNet("densenet121")
    head = loaded.classifier(1000)
    loaded.load(str(path), head)
    for key, value in (loaded.state_dict() | head.state_dict()).items():
        assert value.equal(state[key]), key


@pytest.mark.parametrize("training", [True, False])
def test_memory_efficient_densenet_is_the_same_network(training: bool) -> None:
    plain = randomise(DenseNet("densenet121")).train(training)
    efficient = DenseNet("densenet121", memory_efficient=True).train(training)
    efficient.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for backbone in (plain, efficient):
        backbone(x)[-1].square().mean().backward()
    for (key, ours), theirs in zip(efficient.named_parameters(), plain.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) <= 1e-4, key
    for (key, ours), theirs in zip(efficient.named_buffers(), plain.buffers(), strict=True):
        assert ours.equal(theirs), key


def test_memory_efficient_densenet_keeps_less() -> None:
    plain, efficient = (kept_for_backward(DenseNet("densenet121", memory_efficient=on)) for on in (False, True))
    assert efficient < 0.6 * plain


def kept_for_backward(backbone: DenseNet) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = backbone(torch.randn(1, 3, 96, 96))
    assert maps[-1].requires_grad
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("name", GATED)
def test_gates_start_beside_published_weights_and_learn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    state = publish(name, path)
    backbone = BACKBONES[name](weights=str(path), se=True)
    own = backbone.state_dict()
    assert all(own[key].equal(value) for key, value in backbone.convert_state_dict(state).items() if key in own)
    gates = [module for module in backbone.modules() if isinstance(module, SqueezeExcitation)]
    assert gates
    backbone(torch.randn(2, 3, 64, 64))[-1].square().sum().backward()
    for gate in gates:
        assert gate.fc2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilation_is_exact_with_gates(name: str, output_stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldGates(monkeypatch)
    strided = randomise(BACKBONES[name](se=True)).eval()
    dense = BACKBONES[name](se=True, output_stride=output_stride).eval()
    dense.load_state_dict(strided.state_dict(), strict=True)
    x = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        coarse = strided(x)[-1]
        held.replaying = True
        fine = dense(x)[-1]
    assert not held.gates
    step = 32 // output_stride
    assert relative(fine[..., ::step, ::step], coarse) <= 1e-5


@pytest.mark.parametrize("name", ["xception", "xception71"])
def test_all_maps_equal_the_oracle(name: str) -> None:
    published = oracle(name)
    backbone = randomise(BACKBONES[name]()).eval()
    # Our start keeps every layer's signal alive; timm's shrinks it so far that an error in a layer would hardly show.
    missing, unexpected = published.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected
    assert {key.rsplit(".", 1)[0] for key in missing} <= {"fc", "head.fc"}
    x = torch.randn(1, 3, 97, 131)
    with torch.inference_mode():
        theirs = published.forward_intermediates(x, intermediates_only=True)
        for ours, other in zip(backbone(x), theirs, strict=True):
            assert relative(ours, other) <= 1e-5
