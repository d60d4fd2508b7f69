"""What test_two_processes.py asks of runs of two processes, gathered at once: importing everything takes longest.

`PYTHONPATH=. python tests/two_processes.py FOLDER` prints JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.kill_trials import arguments, differences, finish, make_data, start, trial, whole_run

NO_NORMS = ("--backbone", "lenet5", "--head", "hypercolumn", "--optimizer", "sgd", "--lr", "0.1", "--aux-weight", "0")
NO_BATCH_NORMS = ("--backbone", "convnext_tiny", "--head", "fcn32s", "--aux-weight", "0")


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
    pids = start(arguments(data, out, name, "--epochs", "500", "--checkpoint-every", "1"), log, 2)
    until = time.monotonic() + 60
    while not (out / name / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pids[victim], signal.SIGKILL)
    killed = time.monotonic()
    codes = finish(pids)
    return {"codes": codes, "seconds": time.monotonic() - killed, "last_line": log.read_text().splitlines()[-1]}


def sharded(data: Path, out: Path) -> dict:
    """A step of FSDP2 against one of DDP: exit codes, and the largest difference relative to the largest weight."""
    # Batch norms over two images magnify rounding; dropout draws in the order of memory, which is another here.
    common = (*NO_BATCH_NORMS, "--max-steps", "1", "--optimizer", "sgd", "--image-size", "32", "--clip-gradient", "1")
    pids = start(arguments(data, out, "ddp", *common), out / "ddp.log", 2)
    pids += start(arguments(data, out, "fsdp2", *common, "--strategy", "fsdp2"), out / "fsdp2.log", 2)
    codes = finish(pids)
    ddp, fsdp2 = (
        torch.load(out / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("ddp", "fsdp2")
    )
    far = {name: float((value - fsdp2[name]).abs().max() / value.abs().max().clamp(1)) for name, value in ddp.items()}
    return {"codes": codes, "difference": max(far.values()), "names": sorted(fsdp2) == sorted(ddp)}


def main() -> None:
    out = Path(sys.argv[1])
    data = make_data(out / "data", 24)
    found = {"double_batch": double_batch(data, out)}
    found |= {f"killed{victim}": killed_rank(data, out, victim) for victim in (0, 1)}
    found["sharded"] = sharded(data, out)
    flags = ("--checkpoint-every", "2", "--ema", "0.9", "--epochs", "2")
    seconds = whole_run(data, out, flags, 2)
    kills, ways = trial(data, out, "trial", flags, seconds, random.Random(4), 2)
    found["trial"] = {"kills": kills, "ways": ways, "differences": differences(out / "trial", out / "whole")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
