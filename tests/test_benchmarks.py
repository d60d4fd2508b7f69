"""The benchmarks: every part runs on a CPU in small, and what they write says what was measured."""

import argparse
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from experiments.benchmarks import (
    accelerator,
    all,
    cpu_conv_speed,
    crf_speed,
    detector_peers,
    detectors,
    learning_peers,
    loader_speed,
    peers,
    roi_align_speed,
    scale,
    trainer_overhead,
)
from experiments.benchmarks.peer_networks import Job, Side
from tests.fake_data import make_camvid

pytestmark = pytest.mark.usefixtures("quick_weights")
SIDES = ("graft", "peer")
REWRITERS = [
    accelerator,
    cpu_conv_speed,
    crf_speed,
    detector_peers,
    detectors,
    learning_peers,
    loader_speed,
    peers,
    roi_align_speed,
    scale,
    trainer_overhead,
]
ASKED = argparse.Namespace(batch=4, size=256, repetitions=5, compile=False, device="cpu")


@pytest.mark.parametrize("module", REWRITERS)
def test_the_readme_that_a_benchmark_rewrites_has_its_comments(module: Any) -> None:
    text = module.README.read_text(encoding="utf-8")
    name = Path(module.__file__).name
    assert text.count(f"<!-- begin {name} -->") == text.count(f"<!-- end {name} -->") == 1


def test_roi_align_is_timed_in_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(roi_align_speed, "CASES", [roi_align_speed.Case(1, 4, 8, 3)])
    monkeypatch.setattr(sys, "argv", ["roi_align_speed.py", "--repetitions", "1"])
    roi_align_speed.main()
    assert "| 1 | 4 channels, 8x8 | 3 |" in capsys.readouterr().out


def test_detectors_of_both_sides_are_the_same_network_and_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One head of five; the others differ in nothing that this program does."""
    monkeypatch.setitem(detector_peers.PAIRS, "fcos", detector_peers.PAIRS["fcos"]._replace(side=192))
    sizes = []
    for build in ("graft", "of_torchvision"):
        real = getattr(detector_peers, build)

        def counted(*arguments: Any, real: Any = real) -> Any:
            built = real(*arguments)
            sizes.append(sum(parameter.numel() for parameter in built[0].parameters()))
            return built

        monkeypatch.setattr(detector_peers, build, counted)
    monkeypatch.setattr(sys, "argv", ["detector_peers.py", "--only", "fcos", "--batch", "1", "--repetitions", "1"])
    detector_peers.main()
    assert len(set(sizes)) == 1
    assert capsys.readouterr().out.count("** (") == 4


def learn(folder: Path, out: Path, seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--camvid", str(folder), "--out", str(out), "--seconds", seconds]
    monkeypatch.setattr(sys, "argv", ["learning_peers.py", "--only", "lraspp", *flags, "--size", "32", "32"])
    learning_peers.main()


def test_heads_learn_beside_peers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "camvid", tmp_path / "out"
    make_camvid(folder)
    learn(folder, out, "0.01", monkeypatch)
    table = capsys.readouterr().out.splitlines()
    row = next(line for line in table if line.startswith("| lraspp |"))
    assert "| torchvision LRASPPHead |" in row
    assert row.count("**") == 2, "the better of two last scores is bold"
    with monkeypatch.context() as patch:
        patch.setattr(learning_peers, "train", lambda *asked: pytest.fail("it has a result and is not trained again"))
        learn(folder, out, "0.01", patch)
        assert row in capsys.readouterr().out
        with pytest.raises(SystemExit, match="another protocol"):
            learn(folder, out, "0.02", patch)


def test_peers_start_from_the_same_maps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_camvid(tmp_path / "camvid")
    monkeypatch.setitem(
        learning_peers.NEAREST,
        "lraspp",
        learning_peers.Peer("other padding", lambda: smp.Unet("timm-tf_efficientnet_lite0", encoder_weights=None)),
    )
    monkeypatch.setattr(learning_peers, "train", lambda name, *asked: {"name": name, "curve": [0.5]})
    with pytest.raises(RuntimeError, match="the encoders differ by"):
        learn(tmp_path / "camvid", tmp_path / "out", "0.01", monkeypatch)


def peers_row(pair: str, operations: int, ratio: float) -> peers.Row:
    profile = {what: dict.fromkeys(parts, 7.0) for what, parts in peers.PROFILED.items()}
    timed = {"ratio": ratio, "range": [ratio - 0.1, ratio + 0.1], "seconds": 1.0}
    figures = {"training": {"graft": timed}, "inference": {"graft": timed, "folded": timed}, "of_rate": 0.5}
    return {
        "pair": pair,
        "float32": figures,
        "bfloat16": figures,
        "graft": {"operations": 1000},
        "peer": {"operations": operations},
        "peak_memory_mb": {"graft": 10.0, "peer": 20.0},
        "profile": dict.fromkeys(SIDES, profile),
    }


def test_rows_whose_structures_differ_are_marked_and_left_out_of_one_median() -> None:
    rows = [peers_row("a+unet", 1000, 1.0), peers_row("b+unet", 900, 2.0), peers_row("c+fcn", 1001, 1.2)]
    lines = peers.as_markdown(rows, ASKED).splitlines()
    assert sum("†" in line for line in lines) == 2  # one in each of the tables of ratios
    assert f"| b + unet |{' 7 / 7 |' * 9}" in lines
    assert "| b + unet † | **2.00** (1.90 to 2.10) |" in "\n".join(lines)
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| median |")] == ["1.20", "1.20"]
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| median of same")] == ["1.10", "1.10"]


def test_both_sides_train_and_infer_and_folding_changes_no_label() -> None:
    """Of the same structure, both sides have the same operations."""
    sides = {side: Side(Job("resnet18+unet", side, 2, 32)) for side in SIDES}
    for side in sides.values():
        before = next(side.network.parameters()).detach().clone()
        for autocast in (False, True):
            side.training(autocast)
            side.inference(side.network, autocast)
        assert not before.equal(next(side.network.parameters()))
    graft = sides["graft"]
    folded = graft.fold()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    with torch.inference_mode():
        plain, other = graft.network.eval()(graft.images), folded(graft.images)
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-4)
    assert 0.9 < sides["peer"].operations() / graft.operations() < 1.1
    for side in sides.values():
        training, inference = side.profile("training"), side.profile("inference")
        assert min(training.values()) > 0
        assert training["convolutions"] > inference["convolutions"] > 0 == inference["optimiser"]
        assert (inference["norms"] > 0) == side.peer  # Graft's are folded


def test_exponents_are_slopes_of_logarithms() -> None:
    points = [(x, {"seconds": 3.0 * x**2, "mb": 5.0}) for x in (1, 2, 4, 8)]
    assert scale.exponent(points, "seconds") == pytest.approx(2)
    assert scale.exponent(points, "mb") == pytest.approx(0)


def test_a_point_of_the_scaling_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process's part is run here; the metric's memory does not grow with the square of the classes."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(scale, "forget_peak", lambda: None)
    few, many = (scale.metric_cost(scale.Point(size=64, batch=2, classes=c), 1, threads) for c in (10, 100))
    assert 0 < many["bytes_per_pixel"] < 1.5 * few["bytes_per_pixel"]
    found = scale.train(scale.Point(size=32, batch=2, classes=3), 1, threads)
    assert found["seconds"] > 0
    results = {"classes": [(2, found), (3, {"seconds": 2 * found["seconds"], "mb": 1.0})]}
    scale.draw(results, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size < 2**20
    assert "| classes | 2 to 3 |" in scale.as_markdown(results, {"10": few})


@pytest.mark.parametrize("part", [name for name in accelerator.PARTS if name != "several"])
def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--quick", "--backbone", "resnet18", "--batch", "2", "--size", "32"]
    assert accelerator.main([*flags, "--repetitions", "1", "--only", part]) == 0
    printed = capsys.readouterr().out
    assert accelerator.PARTS[part][0] in printed
    assert "a processor, which shows only that it runs" in printed


def test_one_process_of_several() -> None:
    asked = argparse.Namespace(
        device="cpu", backbone="resnet18", batch=2, size=32, repetitions=1, layout=torch.channels_last
    )
    queue: SimpleQueue[float] = SimpleQueue()
    accelerator.one_of_several(0, 1, scale.free_port(), asked, queue)
    assert queue.get() > 0
    assert not torch.distributed.is_initialized()


def test_a_synchronisation_is_what_cuda_says_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loud(accelerator.Training):
        def step(self, *_: Any) -> torch.Tensor:
            accelerator.warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
            return torch.zeros(())

    monkeypatch.setattr(accelerator, "Training", Loud)
    asked = argparse.Namespace(
        device="cpu", backbone="resnet18", batch=1, size=32, repetitions=1, layout=torch.channels_last
    )
    assert accelerator.synchronisations(asked)[1:] == [["training step", "1"], ["update of the metric", "0"]]


def test_all_runs_the_benchmarks_in_turn_and_names_those_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("")
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        started.append([Path(command[1]).name, *command[2:]])
        return SimpleNamespace(returncode=int("loader_speed.py" in command[1]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(all.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "argv", ["all.py", "--camvid", str(tmp_path), "--peers"])
    assert all.main() == 1
    assert [command[0] for command in started] == [
        "crf_speed.py", "loader_speed.py", "trainer_overhead.py", "peers.py"
    ]  # fmt: skip
    assert all_end_with(started, "--readme")
    assert "failed: loader_speed.py" in capfd.readouterr().err
    monkeypatch.setattr(all.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        all.main()
    assert "crf_speed.py needs pydensecrf" in capfd.readouterr().err


def all_end_with(commands: list[list[str]], flag: str) -> bool:
    return not [command for command in commands if command[-1] != flag]
