"""`run.py --staged`: the papers' staged training, each stage an ordinary run that starts from the one before.

FCN-8s comes from FCN-16s and that from FCN-32s (Long et al. 2014); DilatedNet's context from its front end (Yu, Koltun
2015); the classifier of a deep VGG from that of its 11-layer network (Simonyan, Zisserman 2014). Stages lie in
`runs/NAME-stage1`, `-stage2` and, the last, in `runs/NAME`. The same command again skips finished stages and goes on
with the broken one.
"""

import dataclasses
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

from backbones import find_backbone
from backbones.backbone import Backbone
from experiments.command_line.known_names import RUN
from experiments.command_line.run_config import RunConfig, to_yaml
from experiments.run_files.run_folder import LONGER, RunFolder, changed_setting, choose_path
from heads import HEADS, find_head


def stages(config: RunConfig) -> list[RunConfig]:
    """Return the settings of each stage.

    Raises:
        ValueError: neither the head nor the backbone has stages.
    """
    head = find_head(config.head)
    changes = head.stages or (stages_of_backbone(config.backbone) if head.takes_classifier else ())
    if not changes:
        having = ", ".join(name for name, head in HEADS.items() if head.stages)
        raise ValueError(
            f"--staged: {config.head} has no training stages; leave the flag out, or use one of the heads that have: "
            f"{having}; or the classifier of a deep VGG"
        )
    last = choose_path(config)
    runs, before = [], None
    for number, changed in enumerate(changes, 1):
        name = last.name if number == len(changes) else f"{last.name}-stage{number}"
        merged = changed | {"head_options": (config.head_options or {}) | changed.get("head_options", {}) or None}
        if before is not None:  # another backbone takes over layers by place, another head by name
            merged |= {"start_from": before} if head.stages else {"weights": before, "start_from": None}
        runs.append(dataclasses.replace(config, **merged, staged=False, name=name))
        before = str(last.with_name(name) / "checkpoints" / "best.ckpt")
    return runs


def stages_of_backbone(backbone: str) -> tuple[dict[str, Any], ...]:
    """The stages of a network that its paper starts from a smaller one; none for all others."""
    family = cast("type[Backbone]", cast("partial[Backbone]", find_backbone(backbone)).func)
    first = family.first_stages.get(backbone)
    return () if first is None else ({"backbone": first}, {})


def run_stages(config: RunConfig) -> int:
    """Run all stages, each in a process of its own. Returns the exit code of the first that fails, or 0.

    Raises:
        ValueError: see `stages`.
    """
    runs = stages(config)
    for number, one in enumerate(runs, 1):
        folder = RunFolder(Path(one.out) / one.run_name)
        finished = folder.results.is_file() and changed_setting(one, folder, LONGER) is None
        if finished and (config.resume or number < len(runs)):
            print(f"stage {number}/{len(runs)}: {folder.path} is finished", flush=True)
            continue
        print(f"stage {number}/{len(runs)}: {one.head} into {folder.path}", flush=True)
        one = dataclasses.replace(one, resume=config.resume and folder.last_checkpoint.is_file())
        code = run_stage(one)
        if code:
            return code
    return 0


def run_stage(config: RunConfig) -> int:
    """Start run.py with these settings in a process of its own. Returns its exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "stage.yaml"
        settings.write_text(to_yaml(config), encoding="utf-8")
        process = subprocess.Popen([sys.executable, str(RUN), "--config", str(settings)])
        for one in (signal.SIGTERM, signal.SIGUSR1):  # SIGINT reaches it from the terminal
            signal.signal(one, lambda number, _: process.send_signal(number))
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the child got the signal too and is saving
                continue
