"""The report of a project, saved by W&B's own client on a server on loopback."""

import pytest

from experiments.report import main
from tests.fake_wandb import FakeWandb, serving


def test_it_has_curves_costs_pictures_and_a_table(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    import wandb

    wandb.teardown()
    fake = FakeWandb()
    with serving(fake) as url:
        for name, value in {"BASE_URL": url, "API_KEY": "0" * 40, "ERROR_REPORTING": "false", "SILENT": "true"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        assert main(["me/graft", "--title", "Five heads"]) == 0
        wandb.teardown()
    assert capsys.readouterr().out.strip() == f"{url}/me/graft/reports/Five-heads--Vmlldzox"
    (grid,) = [block for block in fake.report["blocks"] if block["type"] == "panel-grid"]
    panels = {
        panel["config"].get("chartTitle", panel["viewType"]): panel["config"]
        for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]
    }
    assert panels["val/miou"]["xAxis"] == "epoch"
    assert panels["loss"]["metrics"] == ["train/loss_epoch", "val/loss"]
    assert panels["score against GMACs"]["yAxis"] == "summary:val/miou.max"
    assert panels["score against parameters"]["xAxis"] == "config:params.value"
    assert panels["predictions"]["mediaKeys"] == ["predictions"]
    (table,) = grid["metadata"]["runSets"]
    assert table["sort"]["keys"] == [{"key": {"section": "summary", "name": "val/miou.max"}, "ascending": False}]


def test_mistakes_are_said_in_one_line(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["graft"])
    assert capsys.readouterr().err.strip() == "report.py: error: graft: give entity/project"
