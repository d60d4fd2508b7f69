"""What goes wrong during training is said in one line, and the run folder stays one that goes on."""

import csv
import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.errors import DataError
from experiments.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from experiments.callbacks.finite_loss import FiniteLoss
from experiments.callbacks.preemption import Preemption
from experiments.command_line.process import RunError, run_program
from experiments.run import main
from experiments.run_files.run_folder import RunFolder
from experiments.training.resume import SameStart, check_same_data, read_checkpoint
from heads import find_head
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import crf_arguments
from tests.warm_process import run_python

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("no_pictures")


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
    code = "from experiments.command_line.process import end_with_parent; import os, time; end_with_parent(); "
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
            self.is_last_batch = self.is_global_zero = True
            self.current_epoch, self.check_val_every_n_epoch = 0, 1

        def save_checkpoint(self, path: Path) -> None:
            self.saved.append(path.name)
            path.write_text(path.name)

    trainer = Told()
    checkpoints = Checkpoints(tmp_path, "score")
    for score in (float("nan"), 0.1, float("nan"), 0.1, 0.2):
        trainer.callback_metrics["score"] = score
        checkpoints.on_train_epoch_end(trainer, trainer)
    assert trainer.saved == ["best.ckpt"] * 2 + ["last.ckpt"] * 2 + ["best.ckpt"]
    assert (tmp_path / "last.ckpt").read_text() == "best.ckpt"  # one file with two names, written once
    assert os.path.samefile(tmp_path / "last.ckpt", tmp_path / "best.ckpt")


def test_killed_anywhere_and_resumed_it_ends_with_the_same_bits() -> None:
    """Averages, accumulation, dropout and checkpoints within epochs; kill_trials.py does more trials."""
    flags = ["--ema", "0.9", "--accumulate", "2", "--checkpoint-every", "1", "--epochs", "2"]
    command = ["-m", "tests.kill_trials", "--trials", "2", "--", *flags]
    done = run_python(command, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "2 of 2 identical" in done.stdout
    assert done.stdout.count("writing") > 0


def test_a_loss_that_is_no_number_on_another_rank_is_in_no_checkpoint(tmp_path: Path) -> None:
    """This rank's own losses are finite, and the weights are not: gradients are averaged over the ranks."""

    class OtherRank:
        bad = False

        def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
            return decision or self.bad

    other = OtherRank()
    trainer = SimpleNamespace(strategy=other, global_step=7)
    callback = FiniteLoss(RunFolder(tmp_path))
    module = SimpleNamespace(device=torch.device("cuda"))
    callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, {"name": ["a"]}, 0)
    callback.on_save_checkpoint(trainer, module, {})
    other.bad = True
    with pytest.raises(RunError, match="not finite on another rank, up to step 7; lower --lr"):
        callback.on_save_checkpoint(trainer, module, {})
    other.bad = False
    callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(torch.inf)}, {"name": ["a"]}, 0)
    with pytest.raises(RunError, match="the loss is inf at step 7, on the samples a"):
        callback.on_save_checkpoint(trainer, module, {})


def test_ranks_that_see_different_checkpoints_do_not_start(tmp_path: Path) -> None:
    class Ranks:
        precision = "32-true"

        def broadcast(self, mine: bool | str) -> bool | str:
            return True if isinstance(mine, bool) else self.precision

        def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
            return decision

    trainer = SimpleNamespace(strategy=Ranks(), precision="32-true")
    SameStart(tmp_path / "last.ckpt", "").setup(trainer, None, "fit")
    with pytest.raises(RunError, match="not all machines see the run's last.ckpt yet"):
        SameStart(None, "").setup(trainer, None, "fit")
    trainer.strategy.precision = "bf16-mixed"
    with pytest.raises(RunError, match="--precision auto differs between the machines"):
        SameStart(tmp_path / "last.ckpt", "").setup(trainer, None, "fit")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of a file", b"thesis"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged \(.*\); delete it to start anew$"):
        read_checkpoint(path)
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match="to start anew, or copy best.ckpt over it to go on from there"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="it holds no state_dict"):
        read_checkpoint(path)


def test_other_classes_are_refused_and_other_files_are_said(tmp_path: Path, capsys) -> None:
    """Before anything in the folder is changed: `open_run_folder` asks first."""
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    kept = {"state_dict": {}, "hyper_parameters": {"class_names": ["bee", "wasp"]}}
    torch.save(kept | {"data_fingerprint": "classes:2:aa train:8:bb val:2:cc"}, folder.last_checkpoint)
    data = SimpleNamespace(class_names=("ant", "bee"), fingerprint=lambda: "classes:2:aa train:9:dd val:2:cc")
    with pytest.raises(ValueError, match="was trained on the 2 classes bee, wasp; the data now have the 2 classes ant"):
        check_same_data(folder, data)
    data.class_names = ("bee", "wasp")
    check_same_data(folder, data)
    assert "the data have changed since this run began (train:8:bb is now train:9:dd" in capsys.readouterr().out
    torch.save(kept, folder.last_checkpoint)  # of an older version
    check_same_data(folder, data)
    assert capsys.readouterr().out == ""


def test_classes_that_changed_leave_the_finished_run_as_it_is(crf_folder: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    shutil.copytree(crf_folder, data)
    command = flags(data, tmp_path, "--epochs", "1")
    assert main(command) == 0
    (data / "classes.txt").write_text("ground\nsquare\n")
    before = (tmp_path / "a" / "results.json").read_bytes()
    assert main([*command, "--epochs", "2", "--resume"]) == 2
    assert "the data now have the 2 classes ground, square; give another --name" in last_line(capsys)
    assert (tmp_path / "a" / "results.json").read_bytes() == before


def test_an_error_while_drawing_loses_no_score(crf_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("experiments.training.predictions.write_predictions", full)
    assert main(flags(crf_folder, tmp_path, "--epochs", "1", "--logger", "tensorboard")) == 0
    printed = capsys.readouterr().out
    assert "no predictions.png: OSError: [Errno 28] No space left on device; the scores are in results.json" in printed
    assert "switched off" not in printed
    assert (tmp_path / "a" / "results.json").is_file()
    assert not (tmp_path / "a" / "predictions.png").exists()


def test_only_own_errors_are_one_line(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def own() -> None:
        raise AtomicFileError

    def torchs() -> None:
        torch.empty(1).view(-1, 0)

    def numpys() -> None:
        np.frombuffer(b"a", np.int32)  # raised in C, called from here

    def ours() -> None:
        find_head("u-net")

    class AtomicFileError(DataError):
        def __init__(self) -> None:
            ValueError.__init__(self)

    AtomicFileError.__module__ = "datamodules.errors"
    assert run_program("run.py", ours, "") == 2
    assert capsys.readouterr().err.startswith("run.py: error: no head 'u-net'")
    assert run_program("run.py", own, "") == 2  # with an empty message
    assert capsys.readouterr().err == "run.py: error: AtomicFileError\n"
    with pytest.raises(ValueError, match="buffer size"):
        run_program("run.py", numpys, "")
    with pytest.raises(RuntimeError):
        run_program("run.py", torchs, "")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_program("run.py", lambda: nn.BatchNorm1d(2)(torch.ones(1, 2)) and None, "")
    monkeypatch.setenv("GRAFT_TRACEBACK", "1")
    assert run_program("run.py", ours, "") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_system_without_fcntl_is_told_in_one_line() -> None:
    """As on Windows, where signal has no SIGUSR1 and there is no module resource either."""
    code = "import signal, sys; del signal.SIGUSR1; sys.modules |= {'fcntl': None, 'resource': None}\n"
    code += "from experiments.run import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "run.py: error: Graft runs on Linux and macOS; on Windows, use it within WSL\n"


def test_private_methods_of_lightning_are_looked_for_before_they_are_replaced() -> None:
    trainer = SimpleNamespace(_signal_connector=SimpleNamespace())
    with pytest.raises(ValueError, match=r"Lightning .* has no SimpleNamespace.register_signal_handlers.*lightning>="):
        Preemption(Path("last.ckpt")).listen(trainer)
