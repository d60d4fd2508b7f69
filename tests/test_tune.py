"""tune.py: what it searches, that it goes on after being killed, and what crashes and bad runs do to it."""

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

from experiments import children
from experiments.search_space import Axis, read_axis
from experiments.tune import main

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "stand_in.py"


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RUN", STAND_IN)


def start_tune(out: Path, *more: str, **environment: str) -> subprocess.Popen:
    code = f"from experiments import children\nfrom pathlib import Path\nchildren.RUN = Path({str(STAND_IN)!r})\n"
    code += "import sys\nfrom experiments.tune import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "--search", "lr=log:1e-4:1", "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{out}/study.db").trials


def calls(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.is_file():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_finds_the_best_and_says_how_to_repeat_it(tmp_path: Path, capsys) -> None:
    arguments = ["--search", "lr=log:1e-4:1", "optimizer=sgd,adamw", "--trials", "14", "--jobs", "2", "--prune", "false"]
    assert main([*arguments, "--out", str(tmp_path), "--", "--epochs", "2", "--head", "unet"]) == 0
    made = trials(tmp_path)
    assert [one.state for one in made] == [TrialState.COMPLETE] * 14
    for one, call in zip(made, sorted(calls(tmp_path), key=lambda call: int(call["name"][6:])), strict=True):
        assert call["name"] == f"trial-{one.number}"
        assert (call["lr"], call["optimizer"]) == (one.params["lr"], one.params["optimizer"])
        assert (call["epochs"], call["head"]) == (2, "unet")
    best = max(made, key=lambda one: one.value)
    assert best.params["optimizer"] == "sgd"
    assert best.value == json.loads((tmp_path / f"trial-{best.number}" / "results.json").read_text())["scores"]["val"]["miou"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"stand_in.py --epochs 2 --head unet --lr={best.params['lr']!r} --optimizer=sgd")
    assert main([*arguments, "--out", str(tmp_path), "--", "--epochs", "2", "--head", "unet"]) == 0
    assert len(trials(tmp_path)) == 14  # there are as many as asked for


def test_killed_it_goes_on_with_the_trial_that_was_running(tmp_path: Path) -> None:
    for round, end in enumerate((signal.SIGKILL, signal.SIGINT)):
        running = start_tune(tmp_path, "--trials", "3", STAND_IN_SECONDS="0.5")
        wait_for(tmp_path / f"trial-{round}" / "checkpoints" / "last.ckpt")
        running.send_signal(end)
        assert running.wait(30) == (-9 if end == signal.SIGKILL else 130)
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
    assert [call["resume"] for call in calls(tmp_path)].count(True) == 2
