"""run.py as its users meet it: a run through, resuming, two processes, and every mistake answered in one line."""

import csv
import json
import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from experiments.command_line.run_config import RunConfig
from experiments.run import main
from experiments.run_files import launch, run_folder
from experiments.training import write_results
from experiments.training.write_results import own_version

ROOT = Path(__file__).resolve().parent.parent
RUN = [sys.executable, str(ROOT / "experiments" / "run.py")]


def call(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=300, check=False, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight training and seven validation images with masks of two classes."""
    root = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 7)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 32), np.uint8)
            mask[8 + i : 24, 8:24] = 1
            image = generator.integers(0, 100, (32, 32, 3), np.uint8) + 120 * mask[..., None]
            cv2.imwrite(str(root / split / "images" / f"{i}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{i}.png"), mask)
    return root


def small(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "--backbone", "resnet18", "--head", "unet", "--data", "folders", "--data-dir", str(folder), "--out", str(out),
        "--image-size", "32", "--batch-size", "2", "--epochs", "2", "--workers", "0", "--accelerator", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("runs")
    assert main(small(folder, out, "--name", "one")) == 0
    return out / "one"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)


def test_a_run_leaves_everything_promised(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} >= {
        "config.yaml", "metrics.csv", "results.json", "predictions.png", "checkpoints",
    }  # fmt: skip
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    results = json.loads((finished / "results.json").read_text())
    assert 0 <= results["scores"]["val"]["miou"] <= 1
    assert results["protocol"]["image_size"] == [32, 32]
    assert results["protocol"]["splits"] == {"train": 8, "val": 7}
    assert results["params"] > 11e6
    assert results["gmacs"] > 0
    assert results["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    best = max(rows, key=lambda row: float(row["val/miou"]))
    assert float(best["val/miou"]) == pytest.approx(results["scores"]["val"]["miou"], abs=1e-7)


def test_config_of_a_run_runs_again_with_the_same_curve(finished: Path, tmp_path: Path) -> None:
    assert main(["--config", str(finished / "config.yaml"), "--out", str(tmp_path), "--name", "again"]) == 0
    assert (tmp_path / "again" / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


def test_resume_continues_where_it_stopped(finished: Path, folder: Path, tmp_path: Path) -> None:
    stopped = small(folder, tmp_path, "--name", "part", "--max-steps", "4")
    assert main(stopped) == 0
    assert main(small(folder, tmp_path, "--name", "part", "--resume")) == 0
    rows = list(csv.DictReader((tmp_path / "part" / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert not (tmp_path / "part-2").exists()


def test_the_weights_at_the_end_of_the_schedule_count(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """They are validated, kept if they are best, in metrics.csv and in the costs, also within an epoch of 4 steps."""
    from experiments.callbacks.checkpoints import Checkpoints

    scores = iter([0.25, 0.5, 0.75, 0.125])
    original = Checkpoints.epoch_end

    def scored(self, trainer, module) -> None:
        trainer.callback_metrics[self.monitor].fill_(next(scores))
        original(self, trainer, module)

    monkeypatch.setattr(Checkpoints, "epoch_end", scored)
    command = small(folder, tmp_path, "--name", "a", "--logger", "tensorboard")
    assert main([*command, "--max-steps", "6"]) == 0
    rows = list(csv.DictReader((tmp_path / "a" / "metrics.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("1.5", "6")]
    assert all(float(row["train/loss_epoch"]) > 0 for row in rows)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (results["best_epoch"], results["best_step"]) == (2, 6)
    assert results["train_images_per_s"] > 0
    best, last = (tmp_path / "a" / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert torch.load(best, weights_only=True)["global_step"] == 6
    assert main([*command, "--max-steps", "7", "--resume"]) == 0  # goes on within the epoch, and knows the best score
    rows = list(csv.DictReader((tmp_path / "a" / "metrics.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("1.5", "6"), ("1.75", "7")]
    assert torch.load(best, weights_only=True)["global_step"] == 7
    assert main([*command, "--max-steps", "8", "--resume"]) == 0
    rows = list(csv.DictReader((tmp_path / "a" / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "1.5", "1.75", "2"]
    assert (torch.load(best, weights_only=True)["global_step"], torch.load(last, weights_only=True)["global_step"]) == (
        7,
        8,
    )


def test_max_steps_may_end_it_before_the_first_validation(folder: Path, tmp_path: Path) -> None:
    assert main(small(folder, tmp_path, "--name", "short", "--max-steps", "2")) == 0
    results = json.loads((tmp_path / "short" / "results.json").read_text())
    assert results["scores"]["val"]["miou"] > 0
    assert (tmp_path / "short" / "checkpoints" / "last.ckpt").is_file()
    (row,) = csv.DictReader((tmp_path / "short" / "metrics.csv").open())
    assert (row["epoch"], row["step"]) == ("0.5", "2")
    assert float(row["val/miou"]) == pytest.approx(results["scores"]["val"]["miou"], abs=1e-7)


def test_results_say_how_the_run_was_trained(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["training"] == {
        "processes": 1, "nodes": 1, "accelerator": "cpu", "device": results["training"]["device"],
        "precision": "32-true", "global_batch": 2, "strategy": "single_device",
        "matmul_precision": torch.get_float32_matmul_precision(), "cudnn_benchmark": False, "deterministic": False,
    }  # fmt: skip
    assert "train:8:" in results["protocol"]["data_fingerprint"]
    assert results["versions"]["graft"] == own_version() != "unknown"


def test_the_version_is_that_of_the_code_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also if the package is not installed, which must not cost a run its results."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(write_results, "version", missing)
    assert own_version() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    monkeypatch.setattr(write_results, "ROOT", tmp_path)
    assert own_version() == "unknown"


@pytest.mark.parametrize("left_over", [{"RANK": "1"}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}])
def test_a_run_of_one_process_is_rank_0(left_over: dict[str, str], folder: Path, tmp_path: Path) -> None:
    """Several runs in one SLURM job, or variables that something else has left."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "sweep", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    environment = {**os.environ, **left_over} | (job if "SLURM_PROCID" in left_over else {})
    done = call(
        *small(folder, tmp_path, "--backbone", "lenet5", "--head", "hypercolumn", "--epochs", "1"), env=environment
    )
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "lenet5-hypercolumn-folders").iterdir()}
    assert files >= {"config.yaml", "metrics.csv", "results.json", "predictions.png"}


@pytest.mark.parametrize(("step", "said"), [(None, "it was started once, without srun"), ("0", "srun started 3")])
def test_a_slurm_job_that_would_wait_for_ever_says_so(
    step: str | None, said: str, folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JOB_ID", "NTASKS", "PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", {"JOB_ID": "4242", "NTASKS": "3"}.get(name, "0"))
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    if step is not None:
        monkeypatch.setenv("SLURM_STEP_ID", step)
    assert main(small(folder, tmp_path / "runs", "--devices", "2", "--strategy", "ddp")) == 2
    error = capsys.readouterr().err
    assert f"this run has 2 processes, but in this SLURM job {said}; put srun" in error
    assert not (tmp_path / "runs").exists()
    with monkeypatch.context() as patched:
        patched.setenv("SLURM_NTASKS", "2")
        patched.setenv("SLURM_STEP_ID", "0")
        assert launch.slurm_problem(2) is None
        patched.setenv("SLURM_JOB_NAME", "bash")  # salloc and the like, where Lightning starts the processes
        assert launch.slurm_problem(4) is None


def test_runs_that_start_at_the_same_moment_have_folders_of_their_own(tmp_path: Path, monkeypatch) -> None:
    config = RunConfig(out=str(tmp_path), devices="1")
    found = run_folder.choose_path(config)
    answers = iter([found, found])  # both have looked before either has made its folder
    with monkeypatch.context() as patched:
        original = run_folder.choose_path
        patched.setattr(run_folder, "choose_path", lambda config: next(answers, None) or original(config))
        first = run_folder.claim_path(config)
        second = run_folder.claim_path(config)
    assert (first.name, second.name) == ("resnet50-deeplab-digits", "resnet50-deeplab-digits-2")
    assert second.is_dir()


def test_ctrl_c_says_how_to_go_on_and_that_works(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from experiments.callbacks.progress import ProgressLines

    def press(self, trainer, *_: object) -> None:
        if trainer.global_step == 6:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(ProgressLines, "on_train_batch_end", press)
        assert main(small(folder, tmp_path, "--name", "cut")) == 130
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert "stopped; the same command continues" in capsys.readouterr().err
    assert main(small(folder, tmp_path, "--name", "cut", "--resume")) == 0
    rows = list(csv.DictReader((tmp_path / "cut" / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["4", "8"]


def test_two_processes_report_what_one_reports(folder: Path, tmp_path: Path) -> None:
    done = call(*small(folder, tmp_path, "--name", "two", "--devices", "2", "--strategy", "ddp", "--epochs", "1"))
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())["scores"]["val"]
    import lightning.pytorch as pl

    from datamodules import DATAMODULES
    from lightning_modules.segmentation import SegmentationModule

    module = SegmentationModule.load_from_checkpoint(
        tmp_path / "two" / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu"
    ).to(memory_format=torch.channels_last)
    data = DATAMODULES["folders"]("segmentation", data_dir=str(folder), image_size=(32, 32), batch_size=2, workers=0)
    data.setup()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False)
    (one,) = trainer.validate(module, data.val_dataloader(), verbose=False)
    assert {name.removeprefix("val/"): value for name, value in one.items()} == two
    assert int(module.split_scores("val").matrix().sum()) == 7 * 32 * 32


MISTAKES = {
    "--backbone resnet10": "no backbone 'resnet10'; nearest: resnet",
    "--head u-net": "no head 'u-net'; nearest: unet",
    "--data digit": "no data 'digit'; nearest: digits",
    "--output-stride 9": "--output-stride: 9 is not one of 8, 16, 32",
    "--epochs -1": "--epochs: -1 is not a whole number of at least 0",
    "--class-weights median": "--class-weights median: no such file (or give none, median_frequency, inverse_log)",
    "--lr -1": "--lr: -1 is not a number above 0",
    "--epoch 3": "no flag --epoch; nearest: --epochs",
    "--batchsize 3": "no flag --batchsize; nearest: --batch-size",
    "--logger paper": "--logger: paper is not one of csv, wandb, tensorboard",
    "--schedule polly": "no schedule 'polly'; nearest: poly",
    "--data-dir nowhere": "--data-dir nowhere: no such folder",
    "--weights nowhere.pth": "--weights nowhere.pth: no such file",
    "--image-size 1 2 3": "--image-size takes one number or two",
    "--config nowhere.yaml": "nowhere.yaml: no such file",
    "--backbone lenet5 --head fcn8s": "fcn8s needs maps at strides 8, 16, 32; lenet5 has 2, 4. Heads that work",
    "--backbone swin_t --output-stride 8": "--output-stride 8: swin_t can only be built at 32",
    "--batch-size": "--batch-size: expected one argument",
    "--loss cross_entropy+0.5*dise": "no loss 'dise'; nearest: dice",
    "--start-from nowhere.ckpt": "--start-from nowhere.ckpt: no such file",
    "--precision fp16": "--precision: fp16 is not one of auto, 32-true, 16-mixed, bf16-mixed",
    "--precision bf16-true": "--precision: bf16-true is not one of auto, 32-true, 16-mixed, bf16-mixed",
    "--matmul-precision exact": "--matmul-precision: exact is not one of highest, high, medium",
    "--strategy deepspeed_stage_2": "its checkpoints are no single files; use ddp, or fsdp2",
    "--strategy fsdp": "--strategy fsdp: its checkpoints are no single files; use ddp, or fsdp2",
    "--strategy fsdp2 --sync-batchnorm": "--strategy fsdp2 cannot be combined with --sync-batchnorm",
    "--strategy fsdp2 --optimizer sgd --momentum 0": "Lightning cannot resume sgd without momentum",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_usage_errors_are_one_line_without_torch(arguments: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert MISTAKES[arguments] in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["--matrix"], ["--backbone", "resnet10"]])
def test_answers_come_without_importing_torch(arguments: list[str]) -> None:
    code = f"import sys, experiments.run as run\ntry:\n run.main({arguments!r})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'lightning', 'albumentations'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_matrix_counts_every_pair(capsys) -> None:
    from experiments.command_line.known_names import catalogue, names_of

    assert main(["--matrix"]) == 0
    printed = capsys.readouterr().out
    pairs = len(names_of("backbones")) * len(names_of("heads"))
    refused = sum(len(entry["refused"]) for entry in catalogue().values())
    assert f"{pairs - refused} of {pairs} pairs work" in printed
    assert "lenet5              ●  ●  -  -  -  ●" in printed
    assert printed.count("needs maps at strides") == refused


def test_print_config_can_be_run(capsys, tmp_path) -> None:
    assert main(["--head", "unet", "--lr", "0.01", "--head-options", "{up: interpolate}", "--print-config"]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert main(["--config", str(path), "--lr", "0.1", "--print-config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["head"], settings["lr"], settings["head_options"]) == ("unet", 0.1, {"up": "interpolate"})


def spoil(root: Path, how: str) -> None:
    image, mask = root / "train" / "images" / "0.png", root / "train" / "masks" / "0.png"
    if how == "image without mask":
        mask.unlink()
    elif how == "mask of another size":
        cv2.imwrite(str(mask), np.zeros((16, 32), np.uint8))
    elif how == "label outside the classes":
        (root / "classes.txt").write_text("background\nsquare\n")
        cv2.imwrite(str(mask), np.full((32, 32), 7, np.uint8))
    elif how == "truncated image":
        image.write_bytes(image.read_bytes()[:200])
    elif how == "empty folder":
        for path in root.rglob("*.png"):
            path.unlink()


BAD_DATA = {
    "image without mask": "0.png",
    "mask of another size": "0.png",
    "label outside the classes": "7",
    "truncated image": "0.png",
    "empty folder": "images",
}


@pytest.mark.parametrize("how", BAD_DATA)
def test_bad_data_are_named_and_leave_nothing(how: str, folder: Path, tmp_path: Path, capsys) -> None:
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    spoil(copy, how)
    assert main(small(copy, tmp_path / "runs", "--name", "bad")) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert BAD_DATA[how] in error[-1]
    assert error[-1].startswith("run.py: error: ")
    assert not (tmp_path / "runs").exists()


def test_more_mistakes_leave_nothing(folder: Path, tmp_path: Path, capsys) -> None:
    foreign = tmp_path / "runs" / "foreign"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("precious")
    weights = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), weights)
    for more, message in (
        (["--batch-size", "9"], "--batch-size 9 is larger than the 8 training images; use at most 8"),
        (["--name", "foreign"], "foreign exists and is not a run folder"),
        (["--weights", str(weights)], "does not fit resnet18"),
        (["--name", "new", "--resume"], "has no config.yaml"),
        (["--head-options", "{depth: 3}"], "unet has no option 'depth'"),
        (["--accelerator", "tpu"], "--accelerator tpu --devices auto --strategy auto: "),
        (["--strategy", "dpp"], "invalid strategy name: `strategy='dpp'`"),
        (["--sync-batchnorm"], "--sync-batchnorm: PyTorch synchronises batch norms on GPUs only"),
        (["--batch-size", "1"], "--batch-size 1 --image-size 32 32: a batch norm of resnet18 or unet has one value"),
    ):
        assert main(small(folder, tmp_path / "runs", *more)) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["foreign", "thesis.txt"]


def test_a_run_is_not_mixed_with_another(finished: Path, folder: Path, capsys) -> None:
    arguments = small(folder, finished.parent, "--name", "one")
    assert main(arguments) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--lr", "0.5"]) == 2
    assert "was made with --lr 0.001, not 0.5" in capsys.readouterr().err


def test_default_names_are_numbered(folder: Path, tmp_path: Path) -> None:
    from experiments.command_line.run_config import RunConfig
    from experiments.run_files.run_folder import choose_path

    config = RunConfig(out=str(tmp_path))
    assert choose_path(config).name == "resnet50-deeplab-digits"
    (tmp_path / "resnet50-deeplab-digits").mkdir()
    assert choose_path(config).name == "resnet50-deeplab-digits-2"
    (tmp_path / "resnet50-deeplab-digits-2").mkdir()
    config.resume = True
    assert choose_path(config).name == "resnet50-deeplab-digits-2"
