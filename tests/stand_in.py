"""A stand-in for run.py that trains nothing: it takes run.py's flags and writes run folders as run.py does, at once.

What it does is set by the environment: STAND_IN_SECONDS an epoch; STAND_IN_CRASH, names of runs that crash after their
first epoch; STAND_IN_EMPTY, names of runs that end well without results; STAND_IN_DEAF, names of runs that ignore
SIGINT and SIGTERM; STAND_IN_CROWD, the number of calls that every run waits for. It records each call in
OUT/calls.jsonl.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path


def stopped(signum: int, frame: object) -> None:
    print("saving and stopping")
    sys.exit(128 + signum)


def ignored(out: str) -> None:
    """Note that a signal came, and go on."""
    (Path(out) / "asked-to-stop").touch()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("backbone", "resnet50"), ("head", "deeplab"), ("name", None), ("out", "runs")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    folder = Path(asked.out) / asked.name
    deaf = asked.name in os.environ.get("STAND_IN_DEAF", "").split(",")
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, (lambda *_: ignored(asked.out)) if deaf else stopped)
    shown = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "GRAFT_RUN_FOLDER")}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(vars(asked) | {"resume": False}))  # JSON is YAML
    with (Path(asked.out) / "calls.jsonl").open("a") as calls:
        paths = Path(asked.out).glob("*/config.yaml")
        crowd = sum(not path.with_name("results.json").is_file() for path in paths)
        calls.write(json.dumps({"pid": os.getpid(), "crowd": crowd, **vars(asked), **shown}) + "\n")
    while (Path(asked.out) / "calls.jsonl").read_text().count("\n") < int(os.environ.get("STAND_IN_CROWD", "0")):
        time.sleep(0.02)
    last, metrics = folder / "checkpoints" / "last.ckpt", folder / "metrics.csv"
    done = int(last.read_text()) if last.is_file() else 0
    lines = metrics.read_text().splitlines()[: done + 1] if done else ["epoch,val/miou"]
    score = 1 / (1 + abs(math.log10(asked.lr) + 2)) * (1 if asked.optimizer == "sgd" else 0.5)  # best: sgd at 0.01
    for epoch in range(done + 1, asked.epochs + 1):
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        lines.append(f"{epoch},{score * epoch / asked.epochs}")
        metrics.write_text("\n".join(lines) + "\n")
        last.write_text(str(epoch))
        print(f"epoch {epoch}/{asked.epochs}", flush=True)
        if asked.name in os.environ.get("STAND_IN_CRASH", "").split(","):
            sys.exit("the disk is on fire")
    protocol = {"data": "digits", "task": "segmentation", "splits": {}, "image_size": [], "classes": []}
    if asked.name in os.environ.get("STAND_IN_EMPTY", "").split(","):
        return
    results = {"scores": {"val": {"miou": score}}, "protocol": protocol | {"ignore_index": 255}, "wall_time_s": 1.0}
    (folder / "results.json").write_text(json.dumps(results))


main()
