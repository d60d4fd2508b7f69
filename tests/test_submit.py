"""submit.py's scripts, and its answers to mistakes, without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments.command_line.run_flags import RunConfig
from experiments.submit import main

RUN = ["--", "--backbone", "resnet18", "--head", "fcn8s", "--out", "/data/runs"]


def dry(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--dry-run", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that is said."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_machines_match_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    script = dry(capsys, "--nodes", "2", "--gpus-per-node", "4", "--partition", "gpu", "--sbatch", "account=lab", *RUN)
    options = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert options >= {
        "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=3", "partition=gpu", "account=lab",
        "signal=USR1@120", "requeue", "open-mode=append", "time=24:00:00",
    }  # fmt: skip
    assert "--nodes 2 --devices 4 --accelerator gpu ;;" in script
    on_cpus = dry(capsys, "--gpus-per-node", "0", *RUN, "--devices", "3", "--workers", "0")
    assert "#SBATCH --ntasks-per-node=3" in on_cpus
    assert "gpus" not in on_cpus
    assert "--nodes 1 --devices 3 --accelerator cpu ;;" in on_cpus


def test_the_folder_depends_on_the_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    script = dry(capsys, *RUN)
    assert "--name resnet18-fcn8s-digits " in script
    assert "#SBATCH --output=/data/runs/resnet18-fcn8s-digits.log" in script
    assert dry(capsys, *RUN) == script


def test_an_array_has_one_run_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "cells.txt"
    head_options = """--head-options '{"up": "interpolate"}'"""
    file.write_text(f"# two\npython experiments/run.py --name a {head_options}\n\n--name b --out x  # bare\n")
    script = dry(capsys, "--array", str(file), "--at-once", "8", "--setup", "module load cuda")
    assert "#SBATCH --array=0-1%8" in script
    assert f"0) set -- --name a {head_options} --name a" in script
    assert "1) set -- --name b --out x --name b" in script
    assert "\nmodule load cuda\n" in script
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nearest: --gpus-per-node" in refused(capsys, "--gpu-per-node", "2")
    assert "run.py: error: no flag --bakbone;" in refused(capsys, "--", "--bakbone", "x")
    assert "submit.py --nodes 4" in refused(capsys, "--nodes", "2", *RUN, "--nodes", "4")
    assert "--devices: 8 is not --gpus-per-node 1" in refused(capsys, *RUN, "--devices", "8")
    assert "no such file" in refused(capsys, "--array", str(tmp_path / "none"))
    assert "--at-once is for --array" in refused(capsys, "--at-once", "2", *RUN)
    file = tmp_path / "cells.txt"
    file.write_text("# nothing\n")
    assert "holds no commands" in refused(capsys, "--array", str(file))
    file.write_text("--seed 1\n--seed 2\n")
    assert "two lines would write to runs/resnet50-deeplab-digits" in refused(capsys, "--array", str(file))
    file.write_text("--name a --devices 1\n--name b --devices 2\n")
    assert "differ in --devices" in refused(capsys, "--gpus-per-node", "0", "--array", str(file))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.json").write_text("{}")
    assert "holds a finished run" in refused(capsys, "--", "--name", "done", "--out", str(tmp_path))
    for name in ("a b", "100%", 'a"b'):
        assert "sbatch takes no spaces, quotes, backslashes or % in that path" in refused(capsys, *RUN, "--name", name)
    named = tmp_path / "my runs.txt"
    named.write_text("--name a\n")
    assert "my runs.log, but sbatch takes no spaces" in refused(capsys, "--array", str(named))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no sbatch here" in refused(capsys, *RUN)


def test_a_cluster_that_takes_gres_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """With the flags that the help of --gpus-per-node gives."""
    with pytest.raises(SystemExit):
        main(["--help"])
    own = "--gpus-per-node 0 --sbatch gres=gpu:4 -- --devices 4 --accelerator gpu"
    assert own in " ".join(capsys.readouterr().out.split())
    script = dry(capsys, *own.split())
    assert "#SBATCH --gres=gpu:4\n" in script
    assert "#SBATCH --ntasks-per-node=4\n" in script
    assert "gpus-per-node" not in script
    assert "--accelerator gpu --name resnet50-deeplab-digits --nodes 1 --devices 4 ;;" in script


def test_an_array_fetches_each_thing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backbones and two data sets in six runs."""
    from experiments.training import fetch

    done: list[str] = []
    monkeypatch.setattr(fetch, "find_backbone", lambda name: lambda weights: done.append(f"{name} {weights}"))
    data = type("Data", (), {"sources": lambda self: done.append("data")})()
    monkeypatch.setattr(fetch, "build_data", lambda run: data)
    runs = [
        RunConfig(backbone=backbone, head=head, seed=seed, weights="imagenet", download=True)
        for backbone, head, seed in (
            ("resnet18", "unet", 0), ("resnet18", "fcn8s", 0), ("resnet18", "unet", 1),
            ("vgg16", "unet", 0), ("vgg16", "fcn8s", 0), ("vgg16", "classifier", 0),
        )
    ]  # fmt: skip
    fetch.fetch(runs)
    assert done == ["resnet18 imagenet", "vgg16 imagenet", "data", "data"]


def test_usage_is_answered_without_torch() -> None:
    code = "import sys; from experiments.submit import main; main(['--dry-run']); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(experiments.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)


def test_what_a_job_would_download_is_fetched_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute nodes have no network: sbatch comes after the weights and the data."""
    done: list[str | None] = []
    monkeypatch.setattr("datamodules.digits.Digits.sources", lambda self: done.append("data"))
    monkeypatch.setattr("backbones.backbone.Backbone.load", lambda self, weights: done.append(weights))
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\ncat > "$0.script"\necho "7;cluster"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = ["--backbone", "resnet18", "--head", "fcn8s", "--weights", "imagenet", "--download"]
    assert main(["--", *asked, "--out", str(tmp_path / "runs")]) == 0
    assert [one for one in done if one is not None] == ["imagenet", "data"]
    assert "srun" in (tmp_path / "sbatch.script").read_text()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    assert main(["--gpus-per-node", "0", "--", "--out", str(tmp_path / "runs")]) == 1
