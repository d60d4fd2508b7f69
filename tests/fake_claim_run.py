"""A stand-in for a forked run.py, in a module of its own that imports no torch, because each process imports it."""

import json
import sys
from pathlib import Path

from experiments.command_line.run_config import parse, to_yaml


def fake_run(arguments: list[str], log: str) -> None:
    """Write the files of a run that has finished. The run two-s1 fails while there is no file `mended` beside it."""
    config, _ = parse(arguments)
    folder = Path(config.out) / config.run_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    with (folder.parent / "calls").open("a") as calls:
        calls.write(f"{folder.name}\n")
    if folder.name == "two-s1" and not (folder.parent / "mended").exists():
        Path(log).write_text("epoch 1/5\nthe disk is on fire\n")
        sys.exit(1)
    protocol = {
        "data": "digits", "task": "classification", "splits": {}, "image_size": [], "classes": [], "ignore_index": -100,
    }  # fmt: skip
    score = 1.0 + config.seed - config.max_steps
    (folder / "metrics.csv").write_text(f"epoch,train/loss_epoch\n1,99\n2,{score}\n")
    (folder / "results.json").write_text(json.dumps({"scores": {"test": {"loss": score}}, "protocol": protocol}))
