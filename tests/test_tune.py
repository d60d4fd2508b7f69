"""tune.py: what it searches, that it goes on after being killed, and what crashes and bad runs do to it."""

import errno
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from experiments.many_runs import child_runs
from experiments.many_runs.search_space import Axis, read_axis
from experiments.tune import main

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "stand_in.py"
LR = ["--search", "lr=log:1e-4:1"]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_runs, "RUN", STAND_IN)
    monkeypatch.setattr(child_runs, "SECONDS_BETWEEN_POLLS", 0.05)


def start_tune(out: Path, *more: str, **environment: str) -> subprocess.Popen:
    code = "from pathlib import Path\nfrom experiments.many_runs import child_runs\n"
    code += f"child_runs.RUN = Path({str(STAND_IN)!r})\n"
    code += "import sys\nfrom experiments.tune import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "--out", str(out), *(more or LR)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{out}/study.db").trials


def calls(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.is_file():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_finds_the_best_and_says_how_to_repeat_it(tmp_path: Path, capsys) -> None:
    arguments = [
        "--search",
        "lr=log:1e-4:1",
        "optimizer=sgd,adamw",
        "--trials",
        "14",
        "--jobs",
        "2",
        "--prune",
        "false",
    ]
    assert main([*arguments, "--out", str(tmp_path), "--", "--epochs", "2", "--head", "unet"]) == 0
    made = trials(tmp_path)
    assert [one.state for one in made] == [TrialState.COMPLETE] * 14
    for one, call in zip(made, sorted(calls(tmp_path), key=lambda call: int(call["name"][6:])), strict=True):
        assert call["name"] == f"trial-{one.number}"
        assert (call["lr"], call["optimizer"]) == (one.params["lr"], one.params["optimizer"])
        assert (call["epochs"], call["head"]) == (2, "unet")
    best = max(made, key=lambda one: one.value)
    assert best.params["optimizer"] == "sgd"
    assert (
        best.value
        == json.loads((tmp_path / f"trial-{best.number}" / "results.json").read_text())["scores"]["val"]["miou"]
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"stand_in.py --epochs 2 --head unet --lr={best.params['lr']!r} --optimizer=sgd")
    assert main([*arguments, "--out", str(tmp_path), "--", "--epochs", "2", "--head", "unet"]) == 0
    assert len(trials(tmp_path)) == 14  # there are as many as asked for


def test_killed_it_goes_on_with_the_trial_that_was_running(tmp_path: Path) -> None:
    for round, end in enumerate((signal.SIGKILL, signal.SIGINT)):
        running = start_tune(tmp_path, *LR, "--trials", "3", STAND_IN_SECONDS="0.5")
        wait_for(tmp_path / f"trial-{2 * round}" / "checkpoints" / "last.ckpt")
        running.send_signal(end)
        assert running.wait(60) == (-9 if end == signal.SIGKILL else 130)
    assert main(["--search", "lr=log:1e-4:1", "--out", str(tmp_path), "--trials", "3"]) == 0
    made = trials(tmp_path)
    failed = [one for one in made if one.state == TrialState.FAIL]
    done = [one for one in made if one.state == TrialState.COMPLETE]
    assert (len(failed), len(done)) == (2, 3)
    for one in failed:
        (again,) = [other for other in done if other.params == one.params]
        assert again.number > one.number
        assert again.user_attrs["folder"] == one.user_attrs.get("folder", f"trial-{one.number}")
    assert not any(call["name"] not in {f"trial-{one.number}" for one in made} for call in calls(tmp_path))
    assert len(calls(tmp_path)) == 5


def test_a_run_that_does_badly_is_stopped(tmp_path: Path, capsys) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="tune", direction="maximize")
    good, bad = "0.01", "0.00000001"
    for _ in range(4):
        distributions = {"lr": optuna.distributions.CategoricalDistribution((good, bad))}
        curve = dict.fromkeys(range(1, 41), 0.5)
        study.add_trial(
            optuna.trial.create_trial(
                params={"lr": good}, distributions=distributions, value=0.5, intermediate_values=curve
            )
        )
    study.enqueue_trial({"lr": bad})
    running = start_tune(
        tmp_path, "--search", f"lr={good},{bad}", "--trials", "5", "--", "--epochs", "40", STAND_IN_SECONDS="0.3"
    )
    assert running.wait(60) == 0
    assert "trial-4  pruned after epoch 2" in running.stdout.read()
    assert trials(tmp_path)[4].state == TrialState.PRUNED
    assert "saving and stopping" in (tmp_path / "trial-4.log").read_text()
    assert not (tmp_path / "trial-4" / "results.json").exists()


def test_a_run_that_crashes_is_marked_and_the_others_go_on(tmp_path: Path, capsys, monkeypatch) -> None:
    arguments = ["--search", "lr=0.1,0.2", "--out", str(tmp_path)]
    monkeypatch.setenv("STAND_IN_CRASH", "trial-0")
    assert main([*arguments, "--trials", "1"]) == 1
    assert "trial-0  failed, exit code 1: the disk is on fire" in capsys.readouterr().out
    assert main([*arguments, "--trials", "2"]) == 0
    assert [one.state for one in trials(tmp_path)] == [TrialState.FAIL, TrialState.COMPLETE]


def test_one_study_is_not_mixed_with_another(tmp_path: Path, capsys) -> None:
    assert main(["--search", "lr=0.1,0.2", "--out", str(tmp_path), "--trials", "1"]) == 0
    assert main(["--search", "lr=0.1,0.3", "--out", str(tmp_path), "--trials", "2"]) == 2
    assert "was begun with 'lr=0.1,0.2', not 'lr=0.1,0.3'; give the same, or another --out" in capsys.readouterr().err
    assert main(["--search", "lr=0.1,0.2", "--out", str(tmp_path), "--trials", "2", "--", "--epochs", "3"]) == 2
    assert "was begun with '', not '--epochs 3'" in capsys.readouterr().err
    running = start_tune(tmp_path / "other", STAND_IN_SECONDS="60")
    wait_for(tmp_path / "other" / "calls.jsonl")
    assert main(["--search", "lr=log:1e-4:1", "--out", str(tmp_path / "other")]) == 2
    assert "another tune.py works on this study" in capsys.readouterr().err
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EAGAIN, 2), (errno.EACCES, 2), (errno.ENOLCK, 0), (errno.ENOSYS, 0)]
)
def test_a_file_system_without_locks_is_no_other_process(
    number: int, code: int, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["--search", "lr=0.1,0.2", "--out", str(tmp_path), "--trials", "1"]) == code
    error = capsys.readouterr().err
    assert ("another tune.py works on this study" in error) == bool(code)
    assert (f"the file system of {tmp_path} has no locks ({os.strerror(number)})" in error) == (not code)


def test_axes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_axis("lr=log:1e-4:1") == Axis("lr", (), 1e-4, 1, log=True)
    assert read_axis("--weight-decay=0:1") == Axis("weight_decay", (), 0, 1)
    assert read_axis("batch_size=4:32") == Axis("batch_size", (), 4, 32, whole=True)
    assert read_axis("head_options={a: [1, 2]},{}") == Axis("head_options", ("{a: [1, 2]}", "{}"))
    trial = optuna.trial.FixedTrial({"lr": 1e-5, "batch_size": 8, "optimizer": "sgd"})
    assert read_axis("lr=1e-6:1").suggest(trial) == "1e-05"
    assert read_axis("batch_size=log:4:32").suggest(trial) == "8"
    assert read_axis("optimizer=sgd,adamw").suggest(trial) == "sgd"


MISTAKES = {
    "": "--search: name at least one setting, such as --search lr=log:1e-4:1e-1",
    "--search lr": "--search: 'lr' is not NAME=LOW:HIGH, NAME=log:LOW:HIGH or NAME=VALUE,VALUE",
    "--search lr=0.1": "--search: 'lr=0.1' is not NAME=LOW:HIGH",
    "--search lr=log:0:1": "--search: log:0:1 is no range of lr",
    "--search lr=1:0.1": "--search: 1:0.1 is no range of lr",
    "--search batch_size=1.5:4": "--search: 1.5:4 is no range of batch_size",
    "--search rate=1:2": "--search: no setting 'rate'; nearest: ",
    "--search seed=1:2": "--search: tune.py sets seed itself",
    "--search devices=1:4": "--search: 'devices=1:4' is not NAME=LOW:HIGH",
    "--search lr=1:2 --jobs 2 --gpus 0,1,2": "3 GPUs cannot be divided equally among 2 jobs",
    "--search lr=1:2 --gpus 0,1 -- --devices=1": "--devices: --gpus 0,1 gives each job 2",
    "--search lr=0:1": "--lr: 0.0 is not a number above 0",
    "--search head=unet,u-net": "--head: no head 'u-net'; nearest: unet",
    "--search lr=1:2 -- --name a": "--name is set for each trial by tune.py",
    "--search lr=1:2 -- --batch-size 0": "--batch-size: 0 is not a whole number of at least 1",
    "--search backbone=resnet18,lenet5 -- --head fcn8s": "fcn8s needs maps at strides 8, 16, 32; lenet5 has 2, 4",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_what_cannot_work_is_refused_before_anything_runs(arguments: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path), *arguments.split()])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("tune.py: error: ")
    assert MISTAKES[arguments] in error
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_it_says_what_to_install(capsys, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["--search", "lr=0.1,0.2"])
    assert "Optuna is not installed; pip install 'graft[tune]'" in capsys.readouterr().err
