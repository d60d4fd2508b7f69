"""Kill predict.py again and again, at random moments and in the middle of writing files, and compare its results.

`PYTHONPATH=. python tests/predict_kill_trials.py --trials 20` prints a line a trial; it exits with 1 if the same
command does not go on to the same bytes as an uninterrupted one. The tests do fewer of the same.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2  # before forking: each trial would import it again
import numpy as np
import torch
import yaml
from PIL import Image

import experiments.inference.predict_all  # noqa: F401
from experiments.inference.manifest import Manifest
from experiments.predict import main as predict
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import randomise
from tests.kill_trials import run_in_child

MOMENTS = 7
"""Moments of writing for each picture: three files are written and renamed, and the manifest gets a line."""
KINDS = ("labels", "overlay", "probabilities", "coco", "csv", "film")
FRAMES = 8
"""Frames of the video; each is a picture with files of its own."""
NAMES = (
    "plain.png", "with two  spaces.png", "ünïcödé ß 漢字.png", "[brackets] (round) {curly}.png", "a'quote\"s.png",
    "-dash.png", "#hash%20&+,;=.png", "new\nline.png", "tab\there.png", "next\x85line.png", "separator\u2028.png",
    "star*query?.png", "back\\slash.png", "e\u0301 combining.png", "manifest.png", "predictions.png", "coco.png",
    "twins.png", "twins.jpg", "twins.png.jpg", "dots.in.name.png", "😀.png", "x.overlay.png", "x.png",
    os.fsdecode(b"not \xff utf-8.png"), "one/same.png", "two/same.png", "two/deep er/[x]/same.png", "two.png",
)  # fmt: skip


def make_pictures(root: Path, count: int = 60) -> Path:
    """Small pictures of several sizes in folders, with names that a program may trip over."""
    generator = np.random.default_rng(0)
    names = [*NAMES, *(f"many/{number:03d}.png" for number in range(count - len(NAMES)))][:count]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = generator.integers(24, 56, 2)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return root


def make_film(path: Path) -> Path:
    """A short video, which also becomes a video of its overlay."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    generator = np.random.default_rng(1)
    for _ in range(FRAMES):
        video.write(generator.integers(0, 256, (32, 48, 3), np.uint8))
    video.release()
    return path


def make_run(folder: Path, backbone: str = "lenet5", head: str = "unet") -> Path:
    """A run folder of a network that was not trained: its random weights are enough to predict."""
    torch.manual_seed(0)
    names = ("ground", "square, with a comma", "ring")
    preprocessing: dict[str, Any] = {
        "size_rule": "own", "size": [48, 48], "mean": [0.5] * 3, "std": [0.25] * 3, "white": 255, "least": None,
        "colours": [[0, 0, 0], [200, 30, 30], [30, 200, 30]],
    }  # fmt: skip
    module = randomise(SegmentationModule(backbone, head, names, preprocessing=preprocessing))
    (folder / "checkpoints").mkdir(parents=True)
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state | {"pytorch-lightning_version": "2.0.0"}, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"backbone": backbone, "head": head}), encoding="utf-8")
    return folder


def arguments(run: Path, pictures: Path, out: Path) -> list[str]:
    return [str(run), str(pictures), "--out", str(out), "--save", *KINDS, "--device", "cpu"]


def start(flags: list[str], log: Path, prepare: Callable[[], Any] | None = None) -> int:
    """Start predict.py in a forked process, which first calls `prepare`; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    run_in_child(predict, flags, log, prepare)


def finish(pid: int) -> int:
    """The exit code; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_while_writing(moment: int) -> None:
    """Die at the moment of this number: a file half written, written but not renamed, a line of the manifest half."""
    seen = 0
    write, replace, add = Path.write_bytes, Path.replace, Manifest.add

    def now() -> bool:
        nonlocal seen
        seen += 1
        return seen == moment

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def writing(path: Path, content: bytes) -> int:
        if now():
            write(path, content[: len(content) // 2])
            die()
        return write(path, content)

    def replacing(path: Path, target: Any) -> Path:
        if now():
            die()
        return replace(path, target)

    def adding(manifest: Manifest, entry: dict[str, Any]) -> None:
        before = manifest.path.stat().st_size
        add(manifest, entry)
        if now():
            os.truncate(manifest.path, (before + manifest.path.stat().st_size) // 2)
            die()

    Path.write_bytes, Path.replace, Manifest.add = writing, replacing, adding  # type: ignore[method-assign, assignment]


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file, by its path below `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differences(here: Path, whole: Path) -> list[str]:
    """The files that are not as in the uninterrupted prediction."""
    one, other = files_below(here), files_below(whole)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def whole(run: Path, pictures: Path, scratch: Path) -> float:
    """The uninterrupted prediction, as `scratch/whole`; returns its seconds."""
    started = time.monotonic()
    code = finish(start(arguments(run, pictures, scratch / "whole"), scratch / "whole.log"))
    if code:
        raise AssertionError(f"exit code {code}: {(scratch / 'whole.log').read_text(errors='replace')[-3000:]}")
    return time.monotonic() - started


def killed(run: Path, pictures: Path, out: Path, seconds: float, chance: random.Random) -> str:
    """Start a prediction and kill it; one that ends before that is started again. Returns how it was killed."""
    log = out.with_name(out.name + ".log")
    while True:
        prepare, way = None, ""
        if chance.random() < 0.5:
            moment = chance.randrange(1, MOMENTS * (FRAMES + sum(path.is_file() for path in pictures.rglob("*"))))
            prepare, way = partial(die_while_writing, moment), f"writing {moment}"
        pid = start(arguments(run, pictures, out), log, prepare)
        if prepare is None:
            delay = chance.uniform(0.0, seconds)
            way = f"after {delay:.2f} s"
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if finish(pid) == -signal.SIGKILL:
            manifest = out / "manifest.jsonl"
            finished = manifest.read_bytes().count(b"\n") - 1 if manifest.is_file() else 0
            return f"{way}, {finished} finished"
        shutil.rmtree(out)


def trial(run: Path, pictures: Path, out: Path, seconds: float, chance: random.Random) -> str:
    """Kill a prediction, then let the same command go on to its end. Returns how it was killed."""
    way = killed(run, pictures, out, seconds, chance)
    log = out.with_name(out.name + ".log")
    code = finish(start(arguments(run, pictures, out), log))
    if code:
        raise AssertionError(f"exit code {code}: {log.read_text(errors='replace')[-3000:]}")
    return way


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        run, pictures = make_run(root / "run"), make_pictures(root / "pictures", asked.pictures)
        make_film(pictures / "film.avi")
        seconds = whole(run, pictures, root)
        made = files_below(root / "whole")
        print(f"uninterrupted: {seconds:.1f} s, {len(made)} files of {asked.pictures} pictures and a video", flush=True)
        for number in range(1, asked.trials + 1):
            out = root / f"trial{number}"
            way = trial(run, pictures, out, seconds, chance)
            found = differences(out, root / "whole")
            wrong += bool(found)
            print(f"{out.name}: killed {way}: {', '.join(found[:3]) or 'identical'}", flush=True)
    print(f"{asked.trials - wrong} of {asked.trials} identical")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
