"""What test_two_processes.py asks of runs of two processes, gathered at once: importing everything takes longest.

`PYTHONPATH=. python tests/two_processes.py FOLDER` prints JSON.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backbones import convnext, vit
from experiments.callbacks.checkpoints import Checkpoints
from tests.kill_trials import arguments, differences, finish, make_data, start, trial, whole_run


def backbone(name: str) -> tuple[str, ...]:
    """Flags for another backbone than that of kill_trials.py, whose options do not suit it."""
    return ("--backbone", name, "--backbone-options", "{}")


NO_NORMS = (*backbone("lenet5"), "--head", "hypercolumn", "--optimizer", "sgd", "--lr", "0.1", "--aux-weight", "0")
NO_BATCH_NORMS = (*backbone("convnext_tiny"), "--head", "fcn32s", "--aux-weight", "0")
"""A network of which `small` makes the backbone small, as of the next."""
VIT = (*backbone("vit_b_32"), "--head", "fcn32s", "--aux-weight", "0", "--max-steps", "3", "--optimizer", "sgd")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["scores"]["val"]


def double_batch(data: Path, out: Path) -> dict:
    """Two processes against one with twice the batch: the largest difference of a weight, and the scores."""
    common = (*NO_NORMS, "--epochs", "2")
    pids = start(arguments(data, out, "one", *common, "--batch-size", "4"), out / "one.log")
    pids += start(arguments(data, out, "two", *common, "--batch-size", "2"), out / "two.log", 2)
    codes = finish(pids)
    one, two = (
        torch.load(out / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    return {
        "codes": codes,
        "difference": max(float((value - two[name]).abs().max()) for name, value in one.items()),
        "scores": [results(out / "one"), results(out / "two")],
    }


def killed_rank(data: Path, out: Path, victim: int) -> dict:
    """Kill one of two processes in the middle of training: how the other ends, and after how many seconds."""
    log = out / f"killed{victim}.log"
    name = f"killed{victim}"
    pids = start(arguments(data, out, name, *NO_NORMS, "--epochs", "500", "--checkpoint-every", "1"), log, 2)
    until = time.monotonic() + 60
    while not (out / name / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pids[victim], signal.SIGKILL)
    killed = time.monotonic()
    codes = finish(pids)
    return {"codes": codes, "seconds": time.monotonic() - killed, "last_line": log.read_text().splitlines()[-1]}


def sharded(data: Path, out: Path) -> dict:
    """Three steps of FSDP2 against DDP and against a resumed run of it.

    Returns exit codes, the largest difference from DDP relative to the largest weight, how far DDP moved a weight in
    that measure, each rank's hash of its full weights and its share of the parameters, and whether resuming two steps
    gives the same bits.
    """
    # Batch norms over two images magnify rounding; dropout draws in the order of memory, which differs here. No
    # gradient is clipped and the rate is high, so that gradients that are not averaged over the ranks show.
    common = (*NO_BATCH_NORMS, "--optimizer", "sgd", "--image-size", "32", "--lr", "0.5", "--warmup", "0")
    common += ("--schedule", "constant")
    three = (*common, "--max-steps", "3")
    pids = start(arguments(data, out, "ddp", *three), out / "ddp.log", 2, small)
    codes = finish(pids)
    pids = start(arguments(data, out, "fsdp2", *three, "--strategy", "fsdp2"), out / "fsdp2.log", 2, note_shards(out))
    codes += finish(pids)
    two = ("--strategy", "fsdp2", *common)
    for name, more in (("part", ("--max-steps", "2")), ("part", ("--max-steps", "3", "--resume"))):
        codes += finish(start(arguments(data, out, name, *two, *more), out / "part.log", 2, small))
    ddp, fsdp2 = (
        torch.load(out / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("ddp", "fsdp2")
    )
    far = {name: float((value - fsdp2[name]).abs().max() / value.abs().max().clamp(1)) for name, value in ddp.items()}
    part = torch.load(out / "part" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {
        "codes": codes,
        "difference": max(far.values()),
        "names": sorted(fsdp2) == sorted(ddp),
        "shards": [json.loads((out / f"shards{rank}.json").read_text()) for rank in (0, 1)],
        "resumed": [name for name, value in fsdp2.items() if not torch.equal(value, part[name])],
        "scores": [results(out / name) for name in ("ddp", "fsdp2")],
        "predictions": (out / "fsdp2" / "predictions.png").is_file(),
    }


def small(rank: int) -> None:
    """Make ViT-B/32 and ConvNeXt-T small: a block or two of few channels for each of their stages."""
    vit.VARIANTS["vit_b_32"] = vit.Variant(32, 24, 2, 2)
    convnext.VARIANTS["convnext_tiny"] = convnext.Variant((1, 1, 2, 1), (8, 16, 32, 64), 0.1)


def sharded_crf(data: Path, out: Path) -> dict:
    """Three steps that learn a CRF, under DDP and under FSDP2, on a ViT under a head that reads one level.

    Returns exit codes, the CRF's weights of both, and what they printed.
    """
    codes, learnt = [], []
    for name in ("ddp", "fsdp2"):
        flags = arguments(data, out, f"crf_{name}", *VIT, "--crf", "train", "--strategy", name)
        codes += finish(start(flags, out / f"crf_{name}.log", 2, small))
        state = torch.load(out / f"crf_{name}" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        learnt.append({key: value.tolist() for key, value in state.items() if key.startswith("crf.crf.")})
    logs = {name: (out / f"crf_{name}.log").read_text() for name in ("ddp", "fsdp2")}
    return {"codes": codes, "learnt": learnt, "logs": logs}


def note_shards(out: Path) -> Callable[[int], None]:
    """Have every rank write down, at the end of training, its share of the parameters and the sum of all weights."""

    def prepare(rank: int) -> None:
        small(rank)
        finished = Checkpoints.epoch_end

        def noting(self: Checkpoints, trainer: Any, module: Any) -> None:
            finished(self, trainer, module)
            local = sum(parameter.to_local().numel() for parameter in module.network.parameters())
            full = [parameter.full_tensor() for parameter in module.network.parameters()]
            found = {"share": local / sum(one.numel() for one in full), "sums": [float(one.sum()) for one in full]}
            (out / f"shards{trainer.global_rank}.json").write_text(json.dumps(found))

        Checkpoints.epoch_end = noting  # type: ignore[method-assign]

    return prepare


def main() -> None:
    out = Path(sys.argv[1])
    data = make_data(out / "data", 24)
    found = {"double_batch": double_batch(data, out)}
    found |= {f"killed{victim}": killed_rank(data, out, victim) for victim in (0, 1)}
    found["sharded"] = sharded(data, out)
    found["sharded_crf"] = sharded_crf(data, out)
    flags = ("--checkpoint-every", "2", "--ema", "0.9", "--epochs", "2")
    seconds = whole_run(data, out, flags, 2)
    kills, ways = trial(data, out, "trial", flags, seconds, random.Random(4), 2)
    found["trial"] = {"kills": kills, "ways": ways, "differences": differences(out / "trial", out / "whole")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
