"""How fast each head learns, beside the nearest structure of segmentation_models.pytorch or torchvision, on CamVid.

    python experiments/benchmarks/learning_peers.py --camvid DIR --readme
    python experiments/benchmarks/learning_peers.py --camvid DIR --only unet pspnet --seconds 240

EfficientNet-Lite0 with its ImageNet weights under every head of either side; the same images, augmentation, loss with
class weights, AdamW, learning rates, schedule and seed, under bfloat16 autocast where the processor has it. Both sides
have Graft's convolutions for CPUs (`backbones/cpu_conv.py`), because PyTorch's may have wrong gradients in bfloat16.
Every network trains for the same time, which counts loading but not validation; the learning rate falls with that time.
The validation mIoU, of whole images and from one confusion matrix, is taken at each third of it.

Each result is a JSON file in `--out`, and networks that have one are not trained again. So a list may be finished
later, or two processes with one thread each (OMP_NUM_THREADS=1) may share it. `--readme` writes the table of `--only`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from backbones.cpu_conv import use_cpu_convolutions
from datamodules.base import GraftDataModule
from experiments.benchmarks.peer_networks import CLASSES, of_smp
from experiments.command_line.process import keep_freed_memory
from experiments.command_line.progress import duration
from experiments.command_line.run_config import RunConfig
from experiments.inference.benchmark_files import machine
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.generated_part import replace_part
from experiments.run_files.json_file import read_json
from experiments.training.build import prepare
from lightning_modules.base import GraftModule
from lightning_modules.metrics import SegmentationScores
from lightning_modules.network import Network
from lightning_modules.parameter_groups import decayed_parameters
from lightning_modules.schedules import learning_rate_factor

README = Path(__file__).resolve().parents[1] / "README.md"
BACKBONE, ENCODER = "efficientnet_lite0", "tu-tf_efficientnet_lite0"
STRIDE = 32
"""Sides that segmentation_models.pytorch takes are multiples of it; whole images are padded to that."""
TICKS = 1000
"""The schedule's steps: parts of the time of a training."""
PARTS = 3
"""Validations of a training, evenly spaced."""


class OfTorchvision(nn.Module):
    """A head of torchvision on the encoder of segmentation_models.pytorch; logits of the image's size."""

    def __init__(self, build: Callable[[list[int], int], nn.Module], levels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.encoder = smp.encoders.get_encoder(ENCODER, weights=None, output_stride=stride)
        self.levels = levels
        self.decoder = build([self.encoder.out_channels[level] for level in levels], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        read = [features[level] for level in self.levels]
        scores = self.decoder(read[0] if len(read) == 1 else {"low": read[0], "high": read[1]})
        return F.interpolate(scores, x.shape[2:], mode="bilinear")


class Peer(NamedTuple):
    """Another library's network."""

    name: str
    build: Callable[[], nn.Module]


def smp_peer(name: str) -> Peer:
    return Peer(f"smp {name}", of_smp(name, ENCODER))


PYRAMID, DEEPLABV3, LINKNET = smp_peer("FPN"), smp_peer("DeepLabV3"), smp_peer("Linknet")
FCN = Peer("torchvision FCNHead", lambda: OfTorchvision(lambda widths, classes: FCNHead(widths[0], classes), (5,), 8))
NEAREST = {
    "unet": smp_peer("Unet"),
    "fpn": PYRAMID,
    "deeplab": smp_peer("DeepLabV3Plus"),
    "deeplabv3": DEEPLABV3,
    "pspnet": smp_peer("PSPNet"),
    "lraspp": Peer(
        "torchvision LRASPPHead",
        lambda: OfTorchvision(lambda widths, classes: LRASPPHead(widths[0], widths[1], classes, 128), (3, 5), 16),
    ),
    "fcn": FCN,
    "fcn8s": LINKNET,
    "fcn16s": LINKNET,
    "hypercolumn": PYRAMID,
    "fcn32s": FCN,
    "deeplabv1": FCN,
    "deeplabv2": DEEPLABV3,
    "dilatednet": DEEPLABV3,
}
"""Each head and the structure that is nearest to it; the last seven have no counterpart."""


def train(name: str, network: Any, data: GraftDataModule, module: GraftModule, asked: Any) -> dict[str, Any]:
    """Train a network for `asked.seconds`; its scores after each part of them, its steps and its size."""
    torch.manual_seed(asked.seed)
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    own = isinstance(network, Network)
    optimizer = new_optimizer(network, network.backbone if own else network.encoder, asked.lr)
    spent, steps, curve, waiting = 0.0, 0, [], [asked.seconds * (part + 1) / PARTS for part in range(PARTS)]
    rates = [group["lr"] for group in optimizer.param_groups]
    started = time.monotonic()
    for batch in endless(data.train_dataloader()):
        factor = learning_rate_factor("poly", min(TICKS - 1, int(TICKS * spent / asked.seconds)), TICKS, TICKS // 20)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=asked.bf16):
            logits = network(batch["image"].contiguous(memory_format=torch.channels_last))
        loss = module.loss(logits.float(), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        now = time.monotonic()
        spent, started = spent + now - started, now
        if spent >= waiting[0]:
            curve.append(validate(network, data.val_dataloader(), own, asked.bf16))
            print(f"{name}: {spent:.0f} s, {steps} steps, mIoU {curve[-1]:.3f}", flush=True)
            del waiting[0]
            if not waiting:
                break
            network.train()
            started = time.monotonic()
    return {
        "name": name,
        "curve": curve,
        "steps": steps,
        "params": sum(p.numel() for p in network.parameters()),
        "protocol": protocol(asked),
    }


def protocol(asked: Any) -> dict[str, Any]:
    """What all results of a table have in common."""
    return {name: getattr(asked, name) for name in ("seconds", "size", "batch", "lr", "seed", "bf16", "threads")}


def endless(loader: Any) -> Iterator[dict[str, Tensor]]:
    """Batches of one epoch after another, each in an order of its own."""
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def new_optimizer(network: nn.Module, encoder: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW as in the study: the encoder learns at 0.3 of the rate, and only weights of layers decay."""
    inside = {id(parameter) for parameter in encoder.parameters()}
    decayed = {id(parameter) for parameter in decayed_parameters(network)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        groups.setdefault((id(parameter) in inside, id(parameter) in decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": some, "lr": lr * (0.3 if encoded else 1), "weight_decay": 1e-4 if decays else 0}
            for (encoded, decays), some in groups.items()
        ],
        fused=True,
    )


@torch.inference_mode()
def validate(network: nn.Module, loader: DataLoader[Any], own: bool, bf16: bool) -> float:
    """The mIoU of whole images."""
    network.eval()
    scores = SegmentationScores(CLASSES, 255)
    for batch in loader:
        image, (height, width) = batch["image"], batch["image"].shape[2:]
        if not own:
            image = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(image.contiguous(memory_format=torch.channels_last))
        scores.update(logits[..., :height, :width].float(), batch["target"])
    return float(scores.scores([str(one) for one in range(CLASSES)])["miou"])


def with_our_weights(peer: Any, module: GraftModule) -> Any:
    """Copy the backbone's weights into the peer's encoder, whose tensors are the same in the same order.

    Raises:
        RuntimeError: the two encoders compute different maps.
    """
    ours, encoder = module.network.backbone, peer.encoder
    values = ours.state_dict().values()
    encoder.load_state_dict(dict(zip(encoder.state_dict(), values, strict=False)), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own, theirs = ours.eval()(image)[2], encoder.eval()(image)[3]
    if not torch.allclose(own, theirs, atol=1e-4):
        raise RuntimeError(f"the encoders differ by {float((own - theirs).abs().max()):.2g} on their stride-8 maps")
    return peer


def measured(name: str, asked: argparse.Namespace, peer: Peer | None) -> dict[str, Any]:
    """The result of one network, from its file or a training."""
    path = asked.out / f"{name.replace(' ', '-')}.json"
    if path.is_file():
        found: dict[str, Any] = read_json(path)
        if found["protocol"] != protocol(asked):
            raise SystemExit(f"{path} has another protocol, {found['protocol']}; remove it or choose another --out")
        return found
    config = RunConfig(
        backbone=BACKBONE,
        head="unet" if peer else name,  # a peer takes the loss and the backbone's weights of this module
        weights="imagenet",
        data="camvid",
        data_dir=str(asked.camvid),
        image_size=list(asked.size),
        batch_size=asked.batch,
        class_weights="median_frequency",
        workers=0,
        seed=asked.seed,
        accelerator="cpu",
    )
    data, module = prepare(config)
    network = with_our_weights(peer.build(), module) if peer else module.network
    use_cpu_convolutions(network)
    found = train(name, network, data, module, asked)
    write_atomically(path, json.dumps(found))
    return found


def as_markdown(rows: list[tuple[dict[str, Any], dict[str, Any]]], asked: argparse.Namespace) -> str:
    """A table with a row for each head, and the machine and protocol above it."""
    about = machine()
    precision = "bfloat16 autocast" if asked.bf16 else "float32"
    lines = [
        f"{about['processor']}, threads: {asked.threads}, torch {torch.__version__}, smp {smp.__version__}; "
        f"{BACKBONE}, {asked.batch} crops of {asked.size[0]}x{asked.size[1]}, {precision}, "
        f"{duration(asked.seconds)} of training each, seed {asked.seed}; val mIoU after each third, and steps.",
        "",
        "| head | curve | steps | params | nearest | curve | steps | params |",
        "|---|---|--:|--:|---|---|--:|--:|",
    ]
    for own, peer in rows:
        ahead = own["curve"][-1] > peer["curve"][-1]
        cells = [
            cell
            for one, best in ((own, ahead), (peer, not ahead))
            for cell in (one["name"], curve_cell(one["curve"], best), str(one["steps"]), f"{one['params'] / 1e6:.1f} M")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    differences = [own["curve"][-1] - peer["curve"][-1] for own, peer in rows]
    lines += ["", f"Median of Graft's last mIoU minus the other's: {statistics.median(differences):+.3f}"]
    return "\n".join(lines)


def curve_cell(curve: list[float], best: bool) -> str:
    *before, last = [f"{value:.3f}"[1:] for value in curve]
    return ", ".join([*before, f"**{last}**" if best else last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--only", nargs="+", choices=NEAREST, default=list(NEAREST), metavar="HEAD")
    parser.add_argument("--seconds", type=float, default=120, help="of training, for each network")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 320], help="H W of the crops")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("learning_peers"), help="folder of the results")
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    asked.bf16, asked.threads = "avx512_bf16" in machine()["extensions"], torch.get_num_threads()
    asked.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    rows = [(measured(head, asked, None), measured(NEAREST[head].name, asked, NEAREST[head])) for head in asked.only]
    table = as_markdown(rows, asked)
    print(table)
    if asked.readme:
        replace_part(README, "learning_peers.py", table)


if __name__ == "__main__":
    main()
