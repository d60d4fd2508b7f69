"""benchmark.py: every way is held to the score, failures are rows, and processes end."""

import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmark import main as benchmark
from experiments.inference.benchmark_all import Plan, Row, as_values, noting
from experiments.inference.counts import count_pixels
from experiments.inference.runtimes import RUNTIMES
from experiments.inference.worker import Worker, WorkerError, timed
from experiments.run import main as run
from experiments.run_files.generated_part import replace_part
from tests.conftest import crf_arguments
from tests.doubling import doubling

PLAN = Plan(
    names=("eager", "int8"), split="val", images=2, batch=2, size=None, repeats=2, seconds=0.1, threads=1, device="cpu",
    calibration=2, max_drop=(0.001, 0.01),
)  # fmt: skip


def test_ways_are_compared_on_the_same_images(
    crf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--backbone", "lenet5", "--head", "hypercolumn", "--name", "a", "--max-steps", "3"]
    assert run(crf_arguments(crf_folder, tmp_path, *small)) == 0
    flags = ["--only", "onnxruntime", "int8", "--repeats", "2", "--seconds", "0.01", "--calibration", "3"]
    assert benchmark([str(tmp_path / "a"), *flags, "--limit", "3", "--batch", "2"]) == 0
    out = tmp_path / "a" / "benchmark"
    content = json.loads((out / "benchmark.json").read_text())
    rows = {row["runtime"]: row for row in content["rows"]}
    assert list(rows) == ["eager", "onnxruntime", "int8"]
    assert rows["eager"]["score_change"] == rows["eager"]["max_difference"] == 0
    assert rows["onnxruntime"]["status"] == "ok"
    assert 0 < rows["onnxruntime"]["max_difference"] < 1e-4
    assert rows["int8"]["max_difference"] > rows["onnxruntime"]["max_difference"]
    for row in rows.values():
        assert 0 < row["fastest_round_ms"] <= row["p50_ms"] <= row["slowest_round_ms"]
        assert row["images_per_s"] == pytest.approx(2000 / row["p50_ms"])
    # It loads no PyTorch.
    assert rows["onnxruntime"]["peak_memory_mb"] < 0.6 * rows["eager"]["peak_memory_mb"]
    assert content["machine"]["processor"]
    assert {"python", "torch", "onnxruntime"} <= content["versions"].keys()
    assert (content["protocol"]["threads"], content["protocol"]["images"]) == (os.cpu_count(), 3)
    table = list(csv.DictReader((out / "benchmark.csv").open()))
    assert [row["runtime"] for row in table] == list(rows)
    assert (out / "benchmark.png").stat().st_size > 5000
    assert "benchmark.json benchmark.csv benchmark.png" in capsys.readouterr().out


def row(name: str, accuracy: float) -> Row:
    """A measured row of which so many of 1,000 pixels are right."""
    truth = np.zeros((1, 1000), np.int64)
    truth[:, :500] = 1
    guess = truth.copy()
    guess[:, : round(1000 * (1 - accuracy))] ^= 1
    found = Row(name, rounds=[[0.01, 0.01, 0.02], [0.03, 0.03, 0.03]])
    found.counts = count_pixels(np.stack([1 - guess, guess]).astype(np.float32), truth, 255)
    return found


def test_ok_means_that_the_score_holds() -> None:
    reference = row("eager", 0.9)
    worse = as_values(row("onnxruntime", 0.895), reference, 1.0, "segmentation", PLAN)
    assert worse["status"].startswith("worse: miou falls by 0.00")
    assert as_values(row("int8", 0.895), reference, 1.0, "segmentation", PLAN)["status"] == "ok"
    assert as_values(row("int8", 0.88), reference, 1.0, "segmentation", PLAN)["status"].startswith("worse")
    better = as_values(row("onnxruntime", 0.95), reference, 1.0, "segmentation", PLAN)
    assert (better["status"], better["p50_ms"], better["images_per_s"]) == ("ok", 20.0, 100.0)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert RUNTIMES["openvino"].missing("cpu") == "needs openvino; pip install 'graft[export]'"
    assert RUNTIMES["compiled"].missing("cpu") == "needs a C++ compiler, g++ or clang++"
    assert RUNTIMES["compiled"].missing("cuda") == RUNTIMES["eager"].missing("cpu") == ""


def test_a_process_answers_fails_and_dies_in_one_line() -> None:
    worker = Worker(doubling, "")
    worker.wait_until_ready()
    assert worker.note == "twice"
    np.testing.assert_array_equal(worker.run(np.ones(3)), 2 * np.ones(3))
    assert all(value >= 0.002 for value in worker.latencies(np.ones(1), 0.01))
    assert worker.peak_memory() > 10
    with pytest.raises(WorkerError, match="^negative$"):
        worker.run(-np.ones(1))
    np.testing.assert_array_equal(worker.run(np.ones(1)), [2])  # an error does not end it
    failed = Row("int8", worker=worker)
    with noting(failed):
        worker.run(np.ones(0))
    assert failed.problem == "failed: its process ended with exit code -9 (killed: too little memory?)"
    assert failed.worker is None
    absent = Worker(doubling, "absent")
    with pytest.raises(WorkerError, match="^no such file$"):
        absent.wait_until_ready()
    absent.stop()
    idle = Worker(doubling, "")
    idle.wait_until_ready()
    idle.stop()
    assert idle.process.exitcode == 0


def test_the_first_call_does_not_count() -> None:
    waits = iter([0.2, 0.001, 0.001, 0.001, 0.001])
    calls = timed(lambda batch: (time.sleep(next(waits)), batch)[1], np.ones(1), 0.0, 3)
    assert len(calls) == 3
    assert max(calls) < 0.2


def test_a_part_of_a_readme_is_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    whole = "before\n<!-- begin a -->\n{}\n<!-- end a -->\nbetween\n<!-- begin a b -->\nother\n<!-- end a b -->\n"
    file.write_text(whole.format("old"))
    replace_part(file, "a", "new")
    assert file.read_text() == whole.format("new")
    with pytest.raises(ValueError, match="lacks the lines"):
        replace_part(file, "c", "new")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing"], "no such run folder or checkpoint"),
        (["{file}"], "--out: name a folder"),
        (["{file}", "--out", "x", "--size", "1", "2", "3"], "--size takes one number or two"),
        (["{file}", "--only", "tensorrt"], "tensorrt is not one of eager"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.ckpt"
    file.touch()
    with pytest.raises(SystemExit) as end:
        benchmark([flag.format(file=file) for flag in flags])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
