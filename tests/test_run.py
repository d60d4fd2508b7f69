"""run.py as its users meet it: a run through, resuming, signals, and two processes."""

import csv
import json
import os
import signal
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from experiments.command_line.run_config import RunConfig
from experiments.run import main
from experiments.run_files import launch, run_folder
from experiments.training import write_results
from experiments.training.write_results import own_version
from lightning_modules.network import Network
from tests.small_runs import make_pairs, small
from tests.warm_process import run_python

ROOT = Path(__file__).resolve().parent.parent
RUN = str(ROOT / "experiments" / "run.py")

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"))


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
    with torch.device("meta"):
        network = Network("resnet20", "unet", 2)
    assert results["params"] == sum(parameter.numel() for parameter in network.parameters())
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
    # Lightning reads the variables when it is imported.
    command = [RUN, *small(folder, tmp_path, "--backbone", "lenet5", "--head", "hypercolumn", "--epochs", "1")]
    done = run_python(command, env=environment, imported=("torchvision", "albumentations", "torchmetrics"))
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
    two = ("--precision", "32-true", "--name", "two", "--devices", "2", "--strategy", "ddp", "--epochs", "1")
    done = run_python([RUN, *small(folder, tmp_path, *two)])
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())["scores"]["val"]
    import lightning.pytorch as pl

    from datamodules import DATAMODULES
    from lightning_modules.segmentation import SegmentationModule

    module = SegmentationModule.load_from_checkpoint(
        tmp_path / "two" / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu"
    ).to(memory_format=torch.channels_last)
    backbone = module.network.backbone
    data = DATAMODULES["folders"](
        "segmentation", data_dir=str(folder), image_size=(32, 32), batch_size=2, workers=0,
        mean=backbone.mean, std=backbone.std,
    )  # fmt: skip
    data.setup()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False)
    (one,) = trainer.validate(module, data.val_dataloader(), verbose=False)
    one = {name.removeprefix("val/"): value for name, value in one.items()}
    # Batches hold other images, and convolutions round accordingly; counts of pixels are equal nevertheless.
    assert one.pop("loss") == pytest.approx(two.pop("loss"), rel=2e-7)
    assert one == two
    assert int(module.split_scores("val").matrix().sum()) == 7 * 32 * 32


def test_no_epochs_leave_a_trained_run_as_it_is(finished: Path, folder: Path, capsys) -> None:
    before = (finished / "results.json").read_bytes()
    assert main(small(folder, finished.parent, "--name", finished.name, "--resume", "--epochs", "0")) == 2
    assert f"evaluate.py {finished} scores it" in capsys.readouterr().err
    assert (finished / "results.json").read_bytes() == before


def test_a_run_is_not_mixed_with_another(finished: Path, folder: Path, capsys) -> None:
    arguments = small(folder, finished.parent, "--name", "one")
    assert main(arguments) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--lr", "0.5"]) == 2
    assert "was made with --lr 0.002, not 0.5" in capsys.readouterr().err


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
