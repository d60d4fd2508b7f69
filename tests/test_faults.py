"""What goes wrong during training is said in one line, and the run folder stays one that goes on."""

import csv
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from experiments.run import main
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import crf_arguments

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)


def flags(folder: Path, out: Path, *more: str) -> list[str]:
    return crf_arguments(folder, out, "--name", "a", "--backbone", "lenet5", "--head", "hypercolumn", *more)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "a" / "metrics.csv").open()))


def break_step(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException | float) -> None:
    """Raise, or give the loss this value, at an optimiser step counted from 0."""
    original = SegmentationModule.training_step

    def step(self: SegmentationModule, batch: dict, index: int) -> torch.Tensor:
        loss = original(self, batch, index)
        if self.global_step != at:
            return loss
        if isinstance(error, BaseException):
            raise error
        return loss * error

    monkeypatch.setattr(SegmentationModule, "training_step", step)


def test_a_loss_that_is_no_number_ends_the_run_before_a_checkpoint_has_it(
    crf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_step(patch, 6, float("nan"))
        assert main(flags(crf_folder, tmp_path)) == 1
    error = last_line(capsys)
    assert error.startswith("run.py: error: the loss is nan at step 7, on the samples ")
    named = error.split("samples ")[1].split(";")[0].split(", ")
    assert len(set(named)) == 2
    assert set(named) <= {str(i) for i in range(8)}
    assert "checkpoints/last.ckpt is whole, and the same command goes on from there" in error
    kept = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert main(flags(crf_folder, tmp_path)) == 0  # what broke it is mended
    assert [row["step"] for row in rows(tmp_path)] == ["4", "8"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried ..."), RuntimeError("[...] can't allocate memory: 9")]
)
def test_out_of_memory_says_what_to_lower(error: RuntimeError, crf_folder: Path, tmp_path: Path, capsys) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_step(patch, 1, error)
        assert main(flags(crf_folder, tmp_path)) == 1
    said = last_line(capsys)
    assert "out of memory; lower --batch-size (and raise --accumulate as much) or --image-size" in said
    assert "there is no checkpoint yet, and the same command starts anew" in said


def test_a_bug_keeps_its_traceback(crf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_step(monkeypatch, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main(flags(crf_folder, tmp_path))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 20 kB, which a checkpoint does and metrics.csv does not."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, full_disk: None) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state": torch.ones(10)}, path)
    with pytest.raises(OSError, match="last.ckpt") as caught:
        io.save_checkpoint({"state": torch.zeros(100_000)}, path)
    assert caught.value.errno == errno.EFBIG
    assert torch.load(path, weights_only=True)["state"].sum() == 10
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_last_checkpoint_and_the_metrics(crf_folder: Path, tmp_path: Path, capsys) -> None:
    original, saved = Checkpoints.on_train_epoch_end, 0

    def full_at_the_second(self: Checkpoints, trainer, module) -> None:
        nonlocal saved
        saved += 1
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if saved == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            original(self, trainer, module)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_end", full_at_the_second)
        assert main(flags(crf_folder, tmp_path)) == 1
    error = last_line(capsys)
    assert "ckpt cannot be written (File too large); free some space" in error
    assert "last.ckpt is whole, and the same command goes on from there" in error
    assert torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
    assert main(flags(crf_folder, tmp_path)) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]


def test_a_folder_that_cannot_be_written_is_said_before_training(crf_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(flags(crf_folder, tmp_path / "file")) == 2
    assert f"--out {tmp_path / 'file'}: cannot make a run folder there (Not a directory)" in last_line(capsys)


def test_the_same_command_goes_on_and_another_does_not(crf_folder: Path, tmp_path: Path, capsys) -> None:
    unnamed = flags(crf_folder, tmp_path)
    del unnamed[unnamed.index("--name") : unnamed.index("--name") + 2]
    with pytest.MonkeyPatch.context() as patch:
        break_step(patch, 6, KeyboardInterrupt())
        for command in (unnamed, flags(crf_folder, tmp_path)):
            assert main(command) == 130
    first = tmp_path / "lenet5-hypercolumn-folders"
    capsys.readouterr()
    assert main([*flags(crf_folder, tmp_path), "--lr", "0.5"]) == 2
    assert "was made with --lr 0.003, not 0.5" in last_line(capsys)
    assert main([*flags(crf_folder, tmp_path), "--epochs", "3"]) == 2
    assert "was made with --epochs 2, not 3" in last_line(capsys)
    assert main(unnamed) == 0
    assert f"goes on from {first}/checkpoints/last.ckpt" in capsys.readouterr().out
    assert (first / "results.json").is_file()
    assert not (tmp_path / "lenet5-hypercolumn-folders-2").exists()
    assert main([*unnamed, "--epochs", "1"]) == 0  # finished: a new one
    assert (tmp_path / "lenet5-hypercolumn-folders-2" / "results.json").is_file()
    assert main([*flags(crf_folder, tmp_path), "--epochs", "3", "--resume"]) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]


def test_two_processes_cannot_train_in_one_folder(crf_folder: Path, tmp_path: Path, capsys) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_step(patch, 6, KeyboardInterrupt())
        assert main(flags(crf_folder, tmp_path)) == 130
    hold = f"import fcntl, time; file = open({str(tmp_path / 'a' / '.lock')!r}, 'r+')\n"
    hold += "fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert main(flags(crf_folder, tmp_path)) == 2
        assert f"another process is training in {tmp_path / 'a'}" in last_line(capsys)
        other.kill()  # as hard as a process can end: the system lets go of what it held
    assert main(flags(crf_folder, tmp_path)) == 0


def test_folders_of_an_older_version_go_on(crf_folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_step(patch, 6, KeyboardInterrupt())
        assert main(flags(crf_folder, tmp_path)) == 130
    config = tmp_path / "a" / "config.yaml"
    config.write_text("".join(line for line in config.open() if not line.startswith(("ema:", "patience:"))))
    assert main(flags(crf_folder, tmp_path)) == 0


def test_a_process_of_ddp_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = "from experiments.orphan import end_with_parent; import os, time; end_with_parent(); "
    code += f"open({str(tmp_path / 'pid')!r} + '.part', 'w').write(str(os.getpid())); "
    code += f"os.rename({str(tmp_path / 'pid')!r} + '.part', {str(tmp_path / 'pid')!r}); time.sleep(100)"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT) as parent:
        until = time.monotonic() + 30
        while not (tmp_path / "pid").is_file() and time.monotonic() < until:
            time.sleep(0.1)
        child = int((tmp_path / "pid").read_text())
        os.kill(child, 0)
        parent.kill()
    until = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def test_a_score_that_is_no_number_is_beaten_by_any(tmp_path: Path) -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.saved: list[str] = []
            self.callback_metrics: dict[str, float] = {}
            self.fit_loop = self.epoch_loop = self.batch_progress = self
            self.is_last_batch = True

        def save_checkpoint(self, path: Path) -> None:
            self.saved.append(path.name)

    trainer = Told()
    checkpoints = Checkpoints(tmp_path, "score")
    for score in (float("nan"), 0.1, float("nan"), 0.1, 0.2):
        trainer.callback_metrics["score"] = score
        checkpoints.on_train_epoch_end(trainer, trainer)
    assert trainer.saved == ["best.ckpt", "last.ckpt"] * 2 + ["last.ckpt"] * 2 + ["best.ckpt", "last.ckpt"]


def test_killed_anywhere_and_resumed_it_ends_with_the_same_bits() -> None:
    """Averages, accumulation, dropout and checkpoints within epochs; kill_trials.py does more trials."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_trials", "--trials", "2", "--", "--ema", "0.9", "--accumulate", "2",
         "--checkpoint-every", "1", "--epochs", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "2 of 2 identical" in done.stdout
    assert done.stdout.count("writing") > 0
