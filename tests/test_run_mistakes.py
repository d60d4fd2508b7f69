"""run.py answers every mistake in one line, before it makes a folder, and most of them without importing torch."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from experiments.run import main
from tests.small_runs import make_pairs, small

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)


MISTAKES = {
    "--backbone resnet10": "no backbone 'resnet10'; nearest: resnet",
    "--head u-net": "no head 'u-net'; nearest: unet",
    "--data digit": "no data 'digit'; nearest: digits",
    "--output-stride 9": "--output-stride: 9 is not one of 8, 16, 32",
    "--validate-every 2 --epochs 3": "--validate-every 2 does not divide --epochs 3; the last epoch must be validated",
    "--validate-every 2 --max-steps 3": "--validate-every: --max-steps may end training in an epoch without validation",
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
    assert printed.count(" needs maps at ") == refused


def test_print_config_can_be_run(capsys, tmp_path) -> None:
    assert main(["--head", "unet", "--lr", "0.01", "--head-options", "{up: transpose}", "--print-config"]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert main(["--config", str(path), "--lr", "0.1", "--print-config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["head"], settings["lr"], settings["head_options"]) == ("unet", 0.1, {"up": "transpose"})


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
        (["--name", "foreign"], "foreign exists and is not a run folder"),
        (["--backbone", "resnet18", "--weights", str(weights)], "does not fit resnet18"),
        (["--name", "new", "--resume"], "has no config.yaml"),
        (["--head-options", "{depth: 3}"], "unet has no option 'depth'"),
        (["--accelerator", "tpu"], "--accelerator tpu --devices auto --strategy auto: "),
        (["--strategy", "dpp"], "invalid strategy name: `strategy='dpp'`"),
        (["--sync-batchnorm"], "--sync-batchnorm: PyTorch synchronises batch norms on GPUs only"),
        (
            ["--backbone", "resnet18", "--batch-size", "1"],
            "--batch-size 1 --image-size 32 32: a batch norm of resnet18 or unet has one value",
        ),
    ):
        assert main(small(folder, tmp_path / "runs", *more)) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["foreign", "thesis.txt"]
