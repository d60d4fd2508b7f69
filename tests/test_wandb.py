"""The real W&B client: what was promised is in its files, resuming keeps the run, and TensorBoard gets the same."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.run_files.read_run import Run, read_run
from experiments.run_files.wandb_file import WandbFile, wandb_files
from experiments.run_files.wandb_runs import offline_runs, project_runs
from tests.conftest import crf_arguments
from tests.fake_wandb import FakeWandb, serving

FLAGS = ("--logger", "wandb", "tensorboard", "--wandb-group", "seeds", "--wandb-tags", "a", "b", "--wandb-checkpoint")


@pytest.fixture(scope="module")
def logged(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs of four steps, logged offline, that Ctrl-C stopped at step 6 and resumed."""
    from experiments.callbacks.progress import ProgressLines
    from experiments.run import main

    def press(self: ProgressLines, trainer: object, *_: object) -> None:
        if trainer.global_step == 6:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("logged")
    arguments = crf_arguments(crf_folder, out, "--name", "w", *FLAGS)
    arguments[arguments.index("--epochs") + 1] = "3"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_MODE", "offline")
        patched.setenv("WANDB_SILENT", "true")
        patched.delenv("WANDB_PROJECT", raising=False)
        patched.delenv("GRAFT_RUN_FOLDER", raising=False)
        with patched.context() as pressed:
            pressed.setattr(ProgressLines, "on_train_batch_end", press)
            assert main(arguments) == 130
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
        assert main([*arguments, "--resume"]) == 0
    return out / "w"


@pytest.fixture(scope="module")
def files(logged: Path) -> list[WandbFile]:
    return wandb_files(logged)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_settings_costs_and_labels_are_there(logged: Path, files: list[WandbFile]) -> None:
    last = files[-1]
    assert (last.name, last.project, last.group, last.tags) == ("w", "graft", "seeds", ("a", "b"))
    assert last.job_type == "train"
    results = json.loads((logged / "results.json").read_text())
    assert last.config["lr"] == 0.003
    assert last.config["params"] == results["params"]
    assert last.config["gmacs"] == results["gmacs"]


def test_pictures_matrix_checkpoint_and_results_are_there(logged: Path, files: list[WandbFile]) -> None:
    last = files[-1]
    assert last.summary["results"] == json.loads((logged / "results.json").read_text())
    # Without a server, W&B summarises what the last process of a run has logged.
    logged_last = [row for row in last.history if "val/miou" in row]
    assert len(logged_last) > 1
    assert last.summary["val/miou"]["max"] == max(row["val/miou"] for row in logged_last)
    assert last.summary["val/loss"]["min"] == min(row["val/loss"] for row in logged_last)
    (pictures,) = [row["predictions"] for row in last.history if "predictions" in row]
    assert pictures["count"] == 5
    assert all(set(masks) == {"prediction", "truth"} for masks in pictures["all_masks"])
    media = last.path.parent / "files"
    for name in [*pictures["filenames"], *(mask["path"] for one in pictures["all_masks"] for mask in one.values())]:
        assert (media / name).is_file()
    (table,) = [row["confusion_matrix_table"] for row in last.history if "confusion_matrix_table" in row]
    counts = json.loads((media / table["path"]).read_text())["data"]
    assert sum(count for _, _, count in counts) == 5 * 32 * 40
    assert "confusion_matrix" in last.config["_wandb"]["visualize"]
    assert [name for name in last.artifacts if name.endswith("-best")] == [f"{last.run_id}-best"]


def test_a_resumed_run_is_one_without_gaps_or_repeats(logged: Path, files: list[WandbFile]) -> None:
    assert {one.run_id for one in files} == {(logged / "wandb_id").read_text().strip()}
    assert [one.exit_code for one in files] == [1, 0]
    history = [row for one in files for row in one.history]
    assert [row["_step"] for row in history] == [4, 5, 8, 10, 12]
    assert [row["epoch"] for row in history if "epoch" in row] == [1, 2, 3]


def test_its_numbers_are_those_of_the_folder(logged: Path) -> None:
    (run,) = offline_runs([str(logged.parent)])
    same_numbers(run, read_run(logged))


def same_numbers(run: Run, folder: Run) -> None:
    assert folder.state == "finished"
    for part in ("name", "state", "config", "protocol", "scores", "best_epoch", "costs", "versions", "curve"):
        assert getattr(run, part) == getattr(folder, part), part
    assert len(run.curve) == 3


def test_compare_shows_the_same_from_the_files_as_from_the_folder(logged: Path, tmp_path: Path, capsys) -> None:
    from experiments.compare import main

    broken = tmp_path / "offline-run-1"
    broken.mkdir()
    (broken / "run-1.wandb").write_bytes(b"not W&B's")
    offline = sorted(map(str, (logged / "wandb").glob("offline-run-*")))
    assert len(offline) == 2
    tables, prints = [], []
    for paths in ([str(logged)], offline, [str(logged / "wandb")]):
        assert main([*paths, str(broken), "--csv", str(tmp_path / "one.csv")]) == 0
        tables.append((tmp_path / "one.csv").read_text())
        prints.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].count("\n") == 2
    assert prints[0] == prints[1] == prints[2]  # with the curve
    assert "offline-run-1" in prints[0]


def test_a_killed_process_leaves_no_gap(logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had not written out of W&B's file is in metrics.csv, and logged by the process that goes on."""
    from experiments.callbacks.wandb_log import WandbLog
    from experiments.command_line.run_config import RunConfig

    monkeypatch.setenv("WANDB_MODE", "offline")
    shutil.copytree(logged, tmp_path / "w", symlinks=True)
    first, second = wandb_files(tmp_path / "w")
    shutil.rmtree(second.path.parent)
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: whole.index(b"_step") + 20])  # breaks off within the first row
    assert wandb_files(tmp_path / "w")[0].history == []
    log = WandbLog(RunConfig(), tmp_path / "w", tmp_path / "w" / "wandb_id", first.config, "val/miou")
    log.start(12, rows(logged))
    log.close(0)
    parts = wandb_files(tmp_path / "w")
    assert [row["epoch"] for one in parts for row in one.history] == [1, 2, 3]
    assert [row["_step"] for one in parts for row in one.history] == [4, 8, 12]
    (run,) = offline_runs([str(tmp_path)])
    assert run.curve == read_run(logged).curve


def test_syncing_makes_one_run_of_the_parts_and_the_api_gives_its_numbers(
    logged: Path, files: list[WandbFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()
    fake = FakeWandb()
    with serving(fake) as url:
        for name, value in {"BASE_URL": url, "API_KEY": "0" * 40, "ERROR_REPORTING": "false", "SILENT": "true"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *(str(one.path.parent) for one in files)],
            capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (run,) = project_runs("me/graft")
        wandb.teardown()
    assert [row["_step"] for row in fake.history()] == [4, 5, 8, 10, 12]
    assert fake.overwritten == []
    assert any(name.startswith("media/images/predictions") for name in fake.uploaded)
    assert run.where == f"{url}/me/graft/runs/id"
    same_numbers(run, read_run(logged))


def test_a_server_that_does_not_give_runs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoProject:
        def runs(self, project: str, lazy: bool) -> list[object]:
            raise LookupError(f"could not find project {project}")

    with pytest.raises(ValueError, match="--wandb me/none: could not find project"):
        project_runs("me/none", NoProject())
    with pytest.raises(ValueError, match="--wandb none: give entity/project"):
        project_runs("none", NoProject())


def test_tensorboard_has_the_same(logged: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    there = events.EventAccumulator(str(logged / "tensorboard"))
    there.Reload()
    table = rows(logged)
    for name in set(table[0]) - {"step"}:
        said = [(event.step, event.value) for event in there.Scalars(name)]
        assert said == [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-6)) for row in table], name
    assert [event.step for event in there.Scalars("train/loss_step")] == [5, 10]
    assert set(there.Tags()["images"]) == {"predictions", "confusion_matrix"}
    assert "results/val/miou" in there.Tags()["scalars"]
