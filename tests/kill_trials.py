"""Kill a training run again and again, at random moments and in the middle of writing files, and compare its end.

`PYTHONPATH=. python tests/kill_trials.py --trials 20 [--processes 2] [-- flags of run.py]` prints a line a trial; it
exits with 1 if a resumed run differs from the uninterrupted one. The tests do fewer of the same.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import torch

import experiments.training.train  # noqa: F401  # before forking: each trial would import it again
from experiments.run import main as run
from tests.interrupted_runs import SMALL

NETWORK = (*SMALL, "--aux-weight", "0.4")


def make_data(root: Path, images: int = 12) -> Path:
    """A folder of training and validation images of 24x24 pixels with masks."""
    generator = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 3)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((24, 24), np.uint8)
            mask[4 + i % 12 : 20, 6:20] = 1
            image = generator.integers(0, 100, (24, 24, 3), np.uint8) + 120 * mask[..., None]
            cv2.imwrite(str(root / split / "images" / f"{i}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{i}.png"), mask)
    return root


def arguments(data: Path, out: Path, name: str, *more: str) -> list[str]:
    return [
        *NETWORK, "--data", "folders", "--data-dir", str(data), "--out", str(out), "--name", name, "--image-size", "24",
        "--batch-size", "2", "--epochs", "3", "--workers", "0", "--accelerator", "cpu", "--lr", "0.01",
        "--precision", "32-true", *more,
    ]  # fmt: skip


def start(flags: list[str], log: Path, processes: int = 1, prepare: Callable[[int], Any] | None = None) -> list[int]:
    """Start run.py with these flags in forked processes, one per rank; `prepare` is called with the rank in each."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        with_rank = flags
        if processes > 1:
            with_rank = ["--devices", str(processes), "--strategy", "ddp", *flags]
        run_in_child(run, with_rank, log, partial(prepare_rank, rank, processes, port, prepare))
    return pids


def prepare_rank(rank: int, processes: int, port: int, prepare: Callable[[int], Any] | None) -> None:
    """Tell Lightning which rank this process is, then call `prepare`."""
    if processes > 1:
        os.environ |= {
            "LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank
    if prepare is not None:
        prepare(rank)


def run_in_child(
    program: Callable[[list[str]], int], flags: list[str], log: Path, prepare: Callable[[], Any] | None
) -> NoReturn:
    """Run a program in this process, which was forked for it, and end with its exit code; 99 if it raises."""
    code = 99
    with contextlib.suppress(BaseException), log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        if prepare is not None:
            prepare()
        try:
            code = program(flags)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(code)


def finish(pids: list[int], within: float = 120.0) -> list[int]:
    """The exit codes; negative for signals. When one has failed, the others get 15 s before they are killed, as srun
    and torchrun do at once: one that is killed while it looks for the others leaves them waiting.

    Raises:
        TimeoutError: one of them still runs after so many seconds. All are killed.
    """
    codes: dict[int, int] = {}
    until = time.monotonic() + within
    failed = False
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) and not failed:
            failed, until = True, time.monotonic() + 15
        if time.monotonic() > until:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
            if not failed:
                raise TimeoutError(f"still running after {within:.0f} s")
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def die_while_writing(rank: int, moment: int) -> None:
    """Kill rank 0 at the moment of this number: a checkpoint half written, written but not renamed, just renamed."""
    if rank:
        return
    seen = 0
    save, replace = torch.save, Path.replace

    def maybe() -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def saving(value: Any, file: Any) -> None:
        start = file.tell()
        save(value, file)
        file.flush()
        whole = file.tell()
        file.truncate(start + whole // 2)
        maybe()
        file.seek(start)
        save(value, file)

    def replacing(path: Path, target: Any) -> Path:
        maybe()
        moved = replace(path, target)
        maybe()
        return moved

    torch.save, Path.replace = saving, replacing


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of both checkpoints: weights, averages, the optimiser's."""
    tensors: dict[str, torch.Tensor] = {}

    def gather(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensors[prefix] = value
        elif isinstance(value, dict):
            for name, one in value.items():
                gather(f"{prefix}/{name}", one)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                gather(f"{prefix}/{index}", one)

    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        gather(path.name, torch.load(path, weights_only=True))
    return tensors


def differences(folder: Path, whole: Path) -> list[str]:
    """What of a resumed run is not as in the uninterrupted one."""
    here, there = state(folder), state(whole)
    found = [name for name in there if name not in here or not torch.equal(here[name], there[name])]
    found += [name for name in here if name not in there]
    if (folder / "metrics.csv").read_text() != (whole / "metrics.csv").read_text():
        found.append("metrics.csv")
    return found


def trial(
    data: Path, out: Path, name: str, flags: tuple[str, ...], seconds: float, chance: random.Random, processes: int = 1
) -> tuple[int, str]:
    """Kill a run up to three times, then let it finish: how often it was killed, and how."""
    log = out / f"{name}.log"
    kills, ways = 0, []
    for _ in range(3):
        prepare = None
        if chance.random() < 0.5:
            moment = chance.randrange(1, 25)
            prepare = partial(die_while_writing, moment=moment)
            ways.append(f"writing {moment}")
        pids = start(arguments(data, out, name, *flags), log, processes, prepare)
        if prepare is None:
            delay = chance.uniform(0.05, seconds)
            ways.append(f"after {delay:.1f} s")
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
        codes = finish(pids)
        state(out / name)  # no checkpoint is ever unreadable
        if (out / name / "results.json").is_file():
            ways[-1] += " (finished)"
            return kills, ", ".join(ways)
        if codes == [0] * processes:
            raise AssertionError(f"ended without results: {log.read_text()[-2000:]}")
        kills += 1
    codes = finish(start(arguments(data, out, name, *flags), log, processes))
    if codes != [0] * processes:
        raise AssertionError(f"exit codes {codes}: {log.read_text()[-3000:]}")
    return kills, ", ".join(ways)


def whole_run(data: Path, out: Path, flags: tuple[str, ...], processes: int = 1) -> float:
    """The uninterrupted run, as `out/whole`; returns its seconds."""
    started = time.monotonic()
    log = out / "whole.log"
    codes = finish(start(arguments(data, out, "whole", *flags), log, processes))
    if any(codes):
        raise AssertionError(f"exit codes {codes}: {log.read_text()[-3000:]}")
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="of run.py, after --")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        data = make_data(out / "data", 12 * asked.processes)
        seconds = whole_run(data, out, tuple(asked.flags), asked.processes)
        print(f"uninterrupted: {seconds:.1f} s", flush=True)
        for number in range(1, asked.trials + 1):
            name = f"trial{number}"
            kills, ways = trial(data, out, name, tuple(asked.flags), seconds, chance, asked.processes)
            found = differences(out / name, out / "whole")
            wrong += bool(found)
            print(f"{name}: killed {kills} times ({ways}): {', '.join(found[:3]) or 'identical'}", flush=True)
    print(f"{asked.trials - wrong} of {asked.trials} identical")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
