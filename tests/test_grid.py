"""grid.py: which cells it makes and refuses, and what it does when runs finish, crash, hang or are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.grid import main
from experiments.many_runs import child_runs
from experiments.many_runs.cells import Cell, comma_separated
from experiments.many_runs.grid_view import CellState, GridView, progress
from experiments.run import main as run
from tests.fake_runs import write_run

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "stand_in.py"
SETTINGS = {"data": "digits", "batch_size": 8, "epochs": 12}
"""Those of run.py where `write_run` has others."""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_runs, "RUN", STAND_IN)
    monkeypatch.setattr(child_runs, "SECONDS_BETWEEN_POLLS", 0.05)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("GRAFT_RUN_FOLDER", "of another run")


def grid(out: Path, *more: str) -> int:
    return main(["--backbones", "resnet18,lenet5", "--heads", "unet", "--seeds", "0,1", "--out", str(out), *more])


def start_grid(out: Path, *more: str, **environment: str) -> subprocess.Popen:
    code = "from pathlib import Path\nfrom experiments.many_runs import child_runs\n"
    code += f"child_runs.RUN = Path({str(STAND_IN)!r})\n"
    code += "import sys\nfrom experiments.grid import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "--backbones", "resnet18", "--heads", "unet", "--seeds", "0,1,2"]
    return subprocess.Popen(
        [*command, "--out", str(out), *more], cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )


def calls(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


def wait_until(true: object, seconds: float = 60) -> None:
    """`true` is called until it says so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_every_cell_runs_once_and_only_what_is_not_finished_again(tmp_path: Path, capsys) -> None:
    assert grid(tmp_path, "--", "--epochs", "2") == 0
    names = ["resnet18-unet-s0", "resnet18-unet-s1", "lenet5-unet-s0", "lenet5-unet-s1"]
    assert [call["name"] for call in calls(tmp_path)] == names
    assert {call["epochs"] for call in calls(tmp_path)} == {2}
    assert [call["seed"] for call in calls(tmp_path)] == [0, 1, 0, 1]
    assert {call["GRAFT_RUN_FOLDER"] for call in calls(tmp_path)} == {None}
    assert "epoch 2/2" in (tmp_path / "lenet5-unet-s1.log").read_text()
    printed = capsys.readouterr().out
    assert "4 finished" in printed
    assert "resnet18-unet-s0  finished  2/2  best 0.294" in printed
    (tmp_path / names[1] / "results.json").write_text('{"scores": ')  # half of it
    (tmp_path / names[2] / "results.json").unlink()
    assert grid(tmp_path, "--", "--epochs", "2") == 0
    assert [call["name"] for call in calls(tmp_path)[4:]] == [names[1], names[2]]
    assert [call["resume"] for call in calls(tmp_path)[4:]] == [True, False]  # run.py goes on by itself with the second


def test_finished_runs_with_other_settings_are_not_taken_for_these(tmp_path: Path, capsys) -> None:
    assert grid(tmp_path, "--", "--lr", "0.1") == 0
    with pytest.raises(SystemExit):
        grid(tmp_path, "--", "--lr", "0.2")
    error = capsys.readouterr().err
    assert f"{tmp_path}/resnet18-unet-s0 was made with --lr 0.1, not 0.2; give the same settings or another" in error
    assert len(calls(tmp_path)) == 4


def test_a_run_that_crashes_does_not_stop_the_others(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN_CRASH", "resnet18-unet-s1")
    assert grid(tmp_path) == 1
    assert len(calls(tmp_path)) == 4
    last = capsys.readouterr().out.splitlines()[-1]
    log = tmp_path / "resnet18-unet-s1.log"
    assert last == f"resnet18-unet-s1 failed, exit code 1: the disk is on fire ({log})"
    monkeypatch.delenv("STAND_IN_CRASH")
    assert grid(tmp_path) == 0
    assert len(calls(tmp_path)) == 5
    assert log.read_text().count(f"epoch 1/{SETTINGS['epochs']}") == 1  # it went on where it was
    assert "the disk is on fire" in log.read_text()


def test_a_run_without_results_is_not_finished(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN_EMPTY", "resnet18-unet-s0")
    assert grid(tmp_path, "--seeds", "0") == 1
    assert (
        f"resnet18-unet-s0 failed, exit code 0, but epoch {SETTINGS['epochs']} of {SETTINGS['epochs']} is done ("
        in capsys.readouterr().out
    )


def test_jobs_run_at_a_time_and_share_cores_and_gpus(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN_CROWD", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    assert grid(tmp_path, "--seeds", "0", "--jobs", "2", "--gpus", "0,1,2,3") == 0
    monkeypatch.delenv("STAND_IN_CROWD")
    assert grid(tmp_path, "--jobs", "2", "--gpus", "0,1,2,3") == 0
    made = calls(tmp_path)
    assert len(made) == 4
    assert max(call["crowd"] for call in made) == 2
    assert {call["OMP_NUM_THREADS"] for call in made} == {"4"}
    assert sorted(call["CUDA_VISIBLE_DEVICES"] for call in made[:2]) == ["0,1", "2,3"]
    assert {call["devices"] for call in made} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert child_runs.slots(2, "GPU-5a, GPU-7b")[1] == child_runs.Slot(
        {"CUDA_VISIBLE_DEVICES": "GPU-7b"}, ["--devices", "1"]
    )
    assert child_runs.slots(2, "") == [child_runs.Slot({}), child_runs.Slot({})]


def test_a_signal_stops_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        running = start_grid(tmp_path, "--jobs", "2", STAND_IN_SECONDS="0.3")
        begun = len(calls(tmp_path)) if (tmp_path / "calls.jsonl").is_file() else 0
        wait_until(lambda begun=begun: (tmp_path / "calls.jsonl").is_file() and len(calls(tmp_path)) >= begun + 2)
        wait_until(lambda: (tmp_path / "resnet18-unet-s0" / "checkpoints" / "last.ckpt").is_file())
        running.send_signal(signum)
        assert running.wait(60) == 128 + signum
        assert "stopped" in running.stdout.read()
        assert len(calls(tmp_path)) == begun + 2  # the third was not begun
        assert not any(alive(call["pid"]) for call in calls(tmp_path))
    assert "saving and stopping" in (tmp_path / "resnet18-unet-s0.log").read_text()
    running = start_grid(tmp_path)
    assert running.wait(60) == 0
    rows = (tmp_path / "resnet18-unet-s0" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", *map(str, range(1, SETTINGS["epochs"] + 1))]
    assert "3 finished" in running.stdout.read()


def test_a_second_signal_kills_what_does_not_stop(tmp_path: Path) -> None:
    running = start_grid(tmp_path, STAND_IN_SECONDS="60", STAND_IN_DEAF="resnet18-unet-s0")
    wait_until((tmp_path / "resnet18-unet-s0" / "config.yaml").is_file)
    running.send_signal(signal.SIGINT)
    wait_until((tmp_path / "asked-to-stop").is_file)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert not alive(calls(tmp_path)[0]["pid"])
    assert "exit code -9" in running.stdout.read()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell children of their parent's death")
def test_no_run_outlives_a_grid_that_is_killed(tmp_path: Path) -> None:
    running = start_grid(tmp_path, STAND_IN_SECONDS="60")
    wait_until(lambda: (tmp_path / "calls.jsonl").is_file() and calls(tmp_path))
    running.kill()
    running.wait(60)
    wait_until(lambda: not alive(calls(tmp_path)[0]["pid"]))


def test_print_gives_commands_of_what_is_left(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "lenet5-unet-lr=0.1-s1", "lenet5", "unet", 1, 0.5, **SETTINGS, lr=0.1, head_options={"up": 0})
    assert grid(tmp_path, "--vary", "lr=0.1,0.01", "--print", "--", "--head-options", "{up: 0}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("python ")
    shared = "run.py --head-options '{up: 0}' --lr=0.1 --backbone resnet18 --head unet --seed 0 "
    assert lines[0].endswith(f"{shared}--name resnet18-unet-lr=0.1-s0 --out {tmp_path}")
    assert not any("lenet5-unet-lr=0.1-s1" in line for line in lines)


def test_slurm_gets_an_array_of_what_is_left(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(child_runs, "RUN", ROOT / "experiments" / "run.py")
    write_run(tmp_path / "lenet5-unet-s1", "lenet5", "unet", 1, 0.5, **SETTINGS, lr=0.002)
    assert grid(tmp_path, "--slurm", "--dry-run --time 1:00:00 --at-once 2") == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-2%2\n" in script
    assert "#SBATCH --time=1:00:00\n" in script
    assert f"2) set -- --backbone lenet5 --head unet --seed 0 --name lenet5-unet-s0 --out {tmp_path} " in script
    assert (tmp_path / "grid.txt").read_text().count("run.py") == 3
    for name, backbone, seed in (("resnet18-unet-s0", "resnet18", 0), ("resnet18-unet-s1", "resnet18", 1)):
        write_run(tmp_path / name, backbone, "unet", seed, 0.5, **SETTINGS, lr=0.002)
    write_run(tmp_path / "lenet5-unet-s0", "lenet5", "unet", 0, 0.5, **SETTINGS, lr=0.002)
    assert grid(tmp_path, "--slurm", "") == 0
    assert capsys.readouterr().out == "all runs are finished\n"


REFUSALS = {
    "--heads unet,fcn8s": "fcn8s needs maps at strides 8, 16, 32; lenet5 has 2, 4",
    "--heads unet,u-net": "--head: no head 'u-net'; nearest: unet",
    "--backbones resnet18,resnet10": "--backbone: no backbone 'resnet10'; nearest: resnet1",
    "--seeds 0,one": "--seeds: '0,one' is not a list of whole numbers",
    "--heads ,": "--backbones and --heads each take at least one name",
    "--vary lr": "--vary: 'lr' is not a setting and its values such as lr=0.1,0.01",
    "--vary learning=3": "--vary: no setting 'learning'; nearest: ",
    "--vary seed=1,2": "--vary: seed is the grid's own",
    "--vary lr=0.1,-1": "--lr: -1 is not a number above 0",
    "-- --lr -1": "grid.py: error: --lr: -1 is not a number above 0",
    "-- --head fcn8s": "--head is the grid's own",
    "-- --name=x": "--name=x is the grid's own",
    "-- --list": "do not train",
    "-- --find-lr": "do not train",
    "--jobs 2 --gpus 0,1,2": "3 GPUs cannot be divided equally among 2 jobs, and runs on more GPUs have a larger "
    "global batch; name 2 GPUs or change --jobs",
    "--jobs 4 --gpus 0,1": "2 GPUs cannot be divided equally among 4 jobs",
    "--gpus 1,1": "a GPU is named twice",
    "--gpus 0,1 -- --devices 1": "--devices: --gpus 0,1 gives each job 2; leave --devices out",
    "--gpus 0,1 --vary devices=1,2": "--devices: --gpus 0,1 gives each job 2; leave --devices out",
    "--gpus 0 --slurm x": "with --slurm, give --gpus-per-node there",
    "--jobs 2 --seeds": "--seeds: expected one argument",
}


@pytest.mark.parametrize("arguments", REFUSALS)
def test_what_cannot_work_is_refused_before_anything_runs(arguments: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        grid(tmp_path, *arguments.split())
    assert stopped.value.code == 2
    assert REFUSALS[arguments] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_refused_pairs_can_be_left_out(tmp_path: Path, capsys) -> None:
    assert grid(tmp_path, "--heads", "unet,fcn8s", "--seeds", "0", "--skip-refused") == 0
    assert [call["name"] for call in calls(tmp_path)] == ["resnet18-unet-s0", "resnet18-fcn8s-s0", "lenet5-unet-s0"]
    assert capsys.readouterr().err.startswith("grid.py: fcn8s needs maps at strides 8, 16, 32; lenet5 has 2, 4.")


def test_commas_within_brackets_separate_nothing() -> None:
    assert comma_separated("{a: [1, 2], b: 3}, {a: [4]},,5,5") == ["{a: [1, 2], b: 3}", "{a: [4]}", "5"]


def test_a_terminal_gets_a_live_table(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("STAND_IN_SECONDS", "0.2")
    monkeypatch.setenv("COLUMNS", "100")
    assert grid(tmp_path, "--heads", "unet", "--seeds", "0") == 0
    printed = capsys.readouterr().out
    assert "1 waiting, 1 running" in printed
    assert f"epoch 1/{SETTINGS['epochs']}" in printed  # the last line of the log
    assert "0.2943" in printed


def test_answers_come_without_importing_torch() -> None:
    code = "import sys\nfrom experiments.grid import main\n"
    code += "main(['--backbones', 'resnet18,vgg16', '--heads', 'unet,fcn8s', '--print'])\n"
    code += "assert not {'torch', 'lightning', 'albumentations'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_real_run_killed_in_the_middle_finishes(crf_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Two tiny cells, one of them finished before: the other is stopped after its first epoch, and goes on."""
    shared = ["--data", "folders", "--data-dir", str(crf_folder), "--image-size", "32", "40", "--batch-size", "2"]
    shared += ["--workers", "0", "--accelerator", "cpu", "--epochs", "4"]
    backbones = ["lenet5", "mobilenet_v3_small"]
    command = [sys.executable, str(ROOT / "experiments" / "grid.py"), "--backbones", ",".join(backbones)]
    command += ["--heads", "unet", "--out", str(tmp_path), "--", *shared]
    names = [f"{backbone}-unet-s0" for backbone in backbones]
    monkeypatch.delenv("GRAFT_RUN_FOLDER")
    assert run(["--backbone", "lenet5", "--head", "unet", "--name", names[0], "--out", str(tmp_path), *shared]) == 0
    before = (tmp_path / names[0] / "results.json").stat().st_mtime_ns
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_until((tmp_path / names[1] / "checkpoints" / "last.ckpt").is_file, 60)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert "1 finished, 1 stopped" in running.stdout.read()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for name in names:
        rows = (tmp_path / name / "metrics.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4"]
    assert (tmp_path / names[0] / "results.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_last_lines_are_shown_as_they_are(terminal: bool, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    state = CellState(Cell("resnet18", "unet", 0, (), str(tmp_path / "[/runs]"), ()), "running", reason="")
    with GridView([state]) as view:
        state.state, state.reason = "failed", "[/red] :car: [train] set"
        view.update()
    printed = capsys.readouterr().out
    assert printed.count("[/red] :car: [train] set") >= 2  # in the table, and in the line at the end
    assert f"{tmp_path}/[/runs]/resnet18-unet-s0.log" in printed


@pytest.mark.parametrize(("epochs", "shown"), [(("4", "8"), "8/12"), (("1", "1.5"), "2/12"), ((), "0/12")])
def test_epochs_are_those_of_metrics_csv(epochs: tuple[str, ...], shown: str, tmp_path: Path) -> None:
    """Not its rows: with --validate-every some epochs have none."""
    cell = Cell("resnet18", "unet", 0, (), str(tmp_path), ())
    write_run(cell.folder, "resnet18", "unet", 0, 0.5, epochs=12, done=False)
    (cell.folder / "metrics.csv").write_text(
        "epoch,val/miou\n" + "".join(f"{epoch},0.{i}\n" for i, epoch in enumerate(epochs, 1))
    )
    state = CellState(cell, "stopped")
    state.read()
    assert progress(state) == shown
    assert state.best == (0.2 if epochs else None)
