"""Signals end training between two steps, and what goes on from there ends like a run that was never stopped."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the processes that get signals run this file

import pytest
import torch

from experiments.callbacks import preemption
from experiments.run import main
from lightning_modules.segmentation import SegmentationModule
from tests.interrupted_runs import STEPS, arguments, make_data, same_end
from tests.kill_trials import finish, start
from tests.warm_process import run_python, start_python

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    os.environ.pop("GRAFT_RUN_FOLDER", None)
    assert main(arguments(folder, out, "--name", "whole")) == 0
    return out / "whole"


def interrupt(patch: pytest.MonkeyPatch, step: str, at: int, *numbers: signal.Signals) -> None:
    """Let this process get signals within its `at`-th training_step, validation_step or test_step."""
    original = getattr(SegmentationModule, step)
    calls = 0

    def interrupted(self: SegmentationModule, *batch: object) -> object:
        nonlocal calls
        calls += 1
        # Lightning's own would be in its place, which broadcasts from within a signal handler.
        assert isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), preemption.Preemption)
        for number in numbers if calls == at else ():
            os.kill(os.getpid(), number)
        return original(self, *batch)

    patch.setattr(SegmentationModule, step, interrupted)


@pytest.mark.parametrize(
    ("step", "at", "number", "where", "saved"),
    [
        ("training_step", 1, signal.SIGTERM, "SIGTERM after step 1, saved in", 1),
        ("training_step", 4, signal.SIGUSR1, "SIGUSR1 after step 4, saved in", 4),
        ("training_step", STEPS, signal.SIGTERM, "SIGTERM after epoch 1", STEPS),
        ("validation_step", 1, signal.SIGINT, "SIGINT after step 7, saved in", STEPS + 1),
        ("training_step", 2 * STEPS, signal.SIGTERM, "SIGTERM after the last epoch", 2 * STEPS),
        ("validation_step", 5, signal.SIGTERM, "SIGTERM outside of training", 2 * STEPS),
    ],
)
def test_a_signal_costs_no_step(
    folder: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step: str,
    at: int,
    number: signal.Signals,
    where: str,
    saved: int,
) -> None:
    """In the first step, in the middle of an epoch, at its end, in validation, at the end, and in the final scoring."""
    handlers = [signal.getsignal(one) for one in preemption.SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, at, number)
        assert main(arguments(folder, tmp_path, "--name", "cut")) == 128 + number
    assert f"stopped by {where}" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in preemption.SIGNALS] == handlers
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved
    assert main(arguments(folder, tmp_path, "--name", "cut")) == 0
    same_end(tmp_path / "cut", whole)


def test_steps_are_not_cut_in_two(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients of two batches summed, a signal in the third batch waits for the fourth."""
    common = arguments(folder, tmp_path, "--accumulate", "2", "--ema", "0.9")
    assert main([*common, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, "training_step", 3, signal.SIGTERM)
        assert main([*common, "--name", "cut"]) == 143
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert main([*common, "--name", "cut"]) == 0
    same_end(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("at", [STEPS - 1, STEPS, STEPS + 1])
def test_an_epoch_without_validation_is_not_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """With a validation after every second epoch, a signal before, at and after the end of the first."""
    common = arguments(folder, tmp_path, "--validate-every", "2")
    assert main([*common, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, "training_step", at, signal.SIGTERM)
        assert main([*common, "--name", "cut"]) == 143
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == at
    assert main([*common, "--name", "cut"]) == 0
    same_end(tmp_path / "cut", tmp_path / "whole")
    rows = list(csv.DictReader((tmp_path / "cut" / "metrics.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("2", str(2 * STEPS))]
    assert json.loads((tmp_path / "cut" / "results.json").read_text())["best_epoch"] == 2


def test_a_second_ctrl_c_does_not_wait(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "SAME_PRESS_S", 0)
    interrupt(monkeypatch, "training_step", 3, signal.SIGINT, signal.SIGINT)
    assert main(arguments(folder, tmp_path, "--name", "cut")) == 130
    assert not (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """This file as a program, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return run_python([__file__, *arguments], env=environment, start_new_session=True)


def test_loaders_outlive_a_signal_to_all_processes(folder: Path, whole: Path, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal, and clusters, send it."""
    common = arguments(folder, tmp_path, "--name", "cut", "--workers", "2")
    done = call(*common, INTERRUPT_GROUP="4")
    assert (done.returncode, "SIGTERM after step 4" in done.stderr) == (143, True), done.stderr
    assert main(common) == 0
    same_end(tmp_path / "cut", whole)


def test_processes_agree_where_one_gets_the_signal(folder: Path, tmp_path: Path) -> None:
    """The second of two, which tells the first no sooner than with the next step. torchrun goes on, as on two nodes."""
    common = arguments(folder, tmp_path)
    for name, at, code in (("whole", "0", 0), ("cut", "4", 143)):
        done = call("--ranks", str(tmp_path / f"{name}.log"), *common, "--name", name, INTERRUPT_RANK_1=at)
        said = (tmp_path / f"{name}.log").read_text()
        assert (done.returncode, said.count("stopped by SIGTERM after step 5")) == (code, int(code > 0)), said
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command = [*launch, f"--rdzv-endpoint=localhost:{port}", str(ROOT / "experiments" / "run.py"), *common]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    nodes = [start_python([*command, "--nodes", "2", "--strategy", "ddp", "--name", "cut"], env=environment)]
    nodes.append(start_python([*command, "--nodes", "2", "--strategy", "ddp", "--name", "cut"], env=environment))
    assert [node.wait(200) for node in nodes] == [0, 0]
    same_end(tmp_path / "cut", tmp_path / "whole")


def program() -> int:
    """run.py, in which a step sends a signal: in rank 1, or to all processes of the group.

    After `--ranks LOG`, it is run in two ranks, and the exit code is that of the first.
    """
    original = SegmentationModule.training_step

    def step(self: SegmentationModule, batch: dict, index: int) -> torch.Tensor:
        at = self.trainer.global_step + 1
        if at == int(os.environ.get("INTERRUPT_GROUP", "0")):
            # From another process than loaders obey, and with time for one that dies to be missed.
            subprocess.run(["sh", "-c", "trap '' TERM; kill -TERM 0"], check=True)
            time.sleep(2)
        if at == int(os.environ.get("INTERRUPT_RANK_1", "0")) and self.trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    SegmentationModule.training_step = step  # type: ignore[method-assign]
    if sys.argv[1] == "--ranks":
        return finish(start(sys.argv[3:], Path(sys.argv[2]), 2))[0]
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(program())
