"""W&B servers that fail: training does not notice, waits no longer than stated, and nothing on disk is lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import experiments.callbacks.wandb_probe
from experiments.callbacks.curves import LogRows
from experiments.callbacks.metrics_csv import MetricsFile
from experiments.command_line.run_config import RunConfig
from experiments.run_files.read_run import read_run
from experiments.run_files.wandb_file import wandb_files
from experiments.run_files.wandb_runs import offline_runs
from tests.conftest import crf_arguments
from tests.fake_wandb import FakeWandb, closed_port, serving


@pytest.fixture(autouse=True)
def _a_client_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key, short waits, and a client that has not read its settings yet."""
    import wandb

    wandb.teardown()
    settings = {"API_KEY": "0" * 40, "SILENT": "true", "INIT_TIMEOUT": "1", "FINISH_TIMEOUT": "1", "HTTP_TIMEOUT": "1"}
    for name, value in (settings | {"ERROR_REPORTING": "false"}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "GRAFT_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(experiments.callbacks.wandb_probe, "PROBE_SECONDS", 0.3)
    yield
    wandb.teardown()


def log_one_row(folder: Path) -> None:
    from experiments.callbacks.wandb_log import WandbLog

    log = WandbLog(RunConfig(), folder, folder / "wandb_id", {"backbone": "b", "head": "h", "seed": 0}, "val/miou")
    log.row({"epoch": 1, "step": 4, "val/miou": 0.25}, 4)
    log.close(0)


FAULTS = {
    "refuses": "cannot be reached",
    "hangs": "has not answered within 0.3 s",
    "answers 500": "answers 500",
    "hangs when asked for a run": "lets no run begin",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_without_a_server_it_logs_offline(fault: str, tmp_path: Path, monkeypatch, capsys) -> None:
    fake = FakeWandb()
    fake.hangs = {"hangs": "all", "hangs when asked for a run": "runs"}.get(fault, "no")
    fake.status = 500 if fault == "answers 500" else 200
    with serving(fake) as url:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}" if fault == "refuses" else url)
        log_one_row(tmp_path)
    said = capsys.readouterr().out
    assert FAULTS[fault] in said
    assert "logging offline" in said
    assert "upload them with: wandb sync" in said
    (run,) = offline_runs([str(tmp_path)])
    assert run.curve == [{"epoch": 1, "step": 4, "val/miou": 0.25}]


def test_a_server_that_works_gets_the_rows(tmp_path: Path, monkeypatch, capsys) -> None:
    fake = FakeWandb()
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "60")
    with serving(fake) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        log_one_row(tmp_path)
    assert "/me/graft/runs/" in capsys.readouterr().out
    assert [(row["_step"], row["val/miou"]) for row in fake.history()] == [(4, 0.25)]


def test_a_server_that_dies_meanwhile_costs_nothing(crf_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import wandb

    from experiments.run import main

    class Dies(FakeWandb):
        def take_lines(self, files: dict) -> None:
            super().take_lines(files)
            self.hangs = "all"

    with serving(Dies()) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert main(crf_arguments(crf_folder, tmp_path, "--name", "w", "--logger", "wandb")) == 0
    said = capsys.readouterr().out
    assert "the server takes too long; upload the rest with: wandb sync" in said
    assert "without the confusion matrix" in said
    assert "switched off" not in said
    wandb.teardown()
    folder = tmp_path / "w"
    assert {one.name for one in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    (run,) = offline_runs([str(folder)])
    assert (run.scores, run.curve) == (read_run(folder).scores, read_run(folder).curve)
    assert run.state == "finished"
    (file,) = wandb_files(folder)
    assert file.summary["results"] == json.loads((folder / "results.json").read_text())


def test_a_log_that_fails_is_given_up(tmp_path: Path, capsys) -> None:
    closed = []

    class Full:
        name = "full"

        def row(self, values: object, step: int) -> None:
            raise OSError(28, "No space left on device")

        def close(self, exit_code: int) -> None:
            closed.append(exit_code)
            raise OSError(28, "No space left on device")

    curves = LogRows([Full()], MetricsFile(tmp_path / "metrics.csv"))  # type: ignore[list-item]
    curves.each(lambda log: log.row({}, 1))
    assert (
        "--logger full failed and is switched off; training and metrics.csv go on (OSError: [Errno 28]"
        in capsys.readouterr().out
    )
    curves.close(0)
    assert closed == [1]
