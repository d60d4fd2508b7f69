"""`--precision auto`: bfloat16 on hardware that multiplies it; a resumed run keeps its precision."""

import json
from pathlib import Path

import pytest
import torch

from experiments.command_line.run_config import RunConfig
from experiments.run import main
from experiments.training.precision import choose_precision, has_bfloat16_units
from tests.conftest import crf_arguments

CPU = torch.device("cpu")


def capable(monkeypatch: pytest.MonkeyPatch, *units: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(("avx2", *units), True))


@pytest.mark.parametrize(("unit", "has"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512_f", False)])
def test_a_cpu_has_units_if_it_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch, unit: str, has: bool) -> None:
    capable(monkeypatch, unit)
    assert has_bfloat16_units(CPU) == has
    assert choose_precision(RunConfig(), CPU)[0] == ("bf16-mixed" if has else "32-true")


def test_a_gpu_is_asked_without_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bfloat16_units(torch.device("cuda"))
    assert not has_bfloat16_units(torch.device("mps"))


def test_a_precision_that_was_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, "avx512_bf16")
    assert choose_precision(RunConfig(precision="32-true"), CPU) == ("32-true", "")


def test_a_run_states_its_precision_and_keeps_it_when_it_goes_on_elsewhere(
    crf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capable(monkeypatch, "avx512_bf16")
    arguments = crf_arguments(crf_folder, tmp_path, "--name", "a")
    assert main([*arguments, "--max-steps", "2"]) == 0
    assert "--precision auto: bf16-mixed" in capsys.readouterr().out
    checkpoint = tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["precision"] == "bf16-mixed"
    capable(monkeypatch)
    assert main([*arguments, "--max-steps", "3", "--resume"]) == 0
    assert "bf16-mixed, as this run began" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "results.json").read_text())["training"]["precision"] == "bf16-mixed"


def test_an_older_checkpoint_was_trained_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, "amx_bf16")
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert choose_precision(RunConfig(), CPU, tmp_path / "last.ckpt")[0] == "32-true"
