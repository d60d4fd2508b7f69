"""tune_crf.py: the search, the file it leaves, Ctrl-C, and every mistake in one line."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from experiments.analysis import crf_search
from experiments.analysis.crf_worker import Job, count_labels
from experiments.command_line.crf_settings import read_crf_settings
from experiments.tune_crf import main
from heads.crf import PRESETS, DenseCRF

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four settings instead of dozens."""
    monkeypatch.setattr(crf_search, "COARSE", ((3.0, 9.0), (35.0,), (6.0, 13.0)))
    monkeypatch.setattr(crf_search, "ROUNDS", 0)


def test_the_search_finds_a_peak_between_the_coarse_points() -> None:
    def score(points: Sequence[crf_search.Point], title: str) -> dict[crf_search.Point, float]:
        return {p: -abs(p[0] - 4) - abs(p[1] - 75) / 10 - abs(p[2] - 8) for p in points}

    tried = crf_search.search(score)
    assert crf_search.best_of(tried) == (4, 75, 8)
    assert len(tried) < 27 + 3 * 26
    assert min(min(point) for point in crf_search.neighbours((1, 5, 1))) > 0


def test_the_file_it_leaves_is_what_run_takes(crf_run: Path, tmp_path: Path, capsys, small_search) -> None:
    out = tmp_path / "mine.yaml"
    assert main([str(crf_run), "--images", "3", "--processes", "1", "--out", str(out)]) == 0
    written = yaml.safe_load(out.read_text())
    assert written["tuned_on"].items() >= {"split": "val", "images": 3, "of": 5}.items()
    scores = [one["miou"] for one in written["tried"]]
    assert len(scores) == 4
    assert all(0 < score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    best = {name: written[name] for name in crf_search.SEARCHED}
    assert best == {name: written["tried"][0][name] for name in crf_search.SEARCHED}
    assert read_crf_settings(str(out)) == dataclasses.replace(PRESETS["deeplabv2_resnet101"], **best)
    assert f"with {scores[0]:.4f}" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


def test_on_all_images_the_scores_are_those_of_run(crf_run: Path, tmp_path: Path, monkeypatch) -> None:
    default = PRESETS["deeplabv2_resnet101"]
    monkeypatch.setattr(crf_search, "COARSE", tuple((getattr(default, name),) for name in crf_search.SEARCHED))
    monkeypatch.setattr(crf_search, "ROUNDS", 0)
    out = tmp_path / "mine.yaml"
    assert main([str(crf_run), "--processes", "1", "--out", str(out)]) == 0
    tuned, scores = yaml.safe_load(out.read_text())["tuned_on"], json.loads((crf_run / "results.json").read_text())
    # Half precision may move a pixel that lies near a tie.
    assert tuned["miou_without"] == pytest.approx(scores["scores"]["val"]["miou"], abs=2e-3)
    assert tuned["miou_with"] == pytest.approx(scores["scores"]["val_crf"]["miou"], abs=2e-3)


def test_processes_do_not_change_what_is_found(crf_run: Path, tmp_path: Path, small_search) -> None:
    texts = []
    for processes in ("1", "2"):
        assert main([str(crf_run), "--images", "2", "--processes", processes, "--out", str(tmp_path / processes)]) == 0
        texts.append((tmp_path / processes).read_text())
    assert texts[0] == texts[1]


def test_settings_that_share_the_sigmas_share_the_lattice(crf_run: Path, tmp_path: Path, monkeypatch) -> None:
    built = []
    build = DenseCRF.build
    monkeypatch.setattr(DenseCRF, "build", lambda self, images: built.append(self.settings) or build(self, images))
    monkeypatch.setattr(crf_search, "COARSE", ((3.0, 6.0, 9.0), (35.0,), (6.0, 9.0)))
    monkeypatch.setattr(crf_search, "ROUNDS", 0)
    assert main([str(crf_run), "--images", "2", "--processes", "1", "--out", str(tmp_path / "a")]) == 0
    assert len(built) == 2 * 2 + 2, "two images, two pairs of sigmas, and once each for the score without"


def test_settings_on_one_lattice_score_as_they_do_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sample = tmp_path / "0.npz"
    np.savez(
        sample,
        probabilities=generator.dirichlet(np.ones(3), (16, 20)).transpose(2, 0, 1).astype(np.float16),
        pixels=generator.integers(0, 40, (3, 16, 20), np.uint8),
        target=np.where(generator.random((16, 20)) < 0.1, 255, generator.integers(0, 3, (16, 20))).astype(np.uint8),
    )
    settings = tuple(dataclasses.replace(PRESETS["pydensecrf"], w1=w1, w2=0) for w1 in (0.1, 1.0, 10.0))
    together = count_labels(Job(sample, settings, 255))
    assert list(together) == list(settings)
    for one in settings:
        assert torch.equal(count_labels(Job(sample, (one,), 255))[one], together[one])
        assert together[one].sum() == (np.load(sample)["target"] != 255).sum()
    assert not torch.equal(together[settings[0]], together[settings[2]])


@pytest.mark.parametrize("bad", [{1}, {0, 1, 2, 3, 4}])
def test_samples_that_the_run_skipped_are_left_out(
    bad: set[int], crf_run: Path, tmp_path: Path, monkeypatch, capsys, small_search
) -> None:
    load = crf_search.load_segmentation

    def with_bad(*arguments: Any) -> Any:
        data, module = load(*arguments)
        kept = [None if index in bad else data.val[index] for index in range(len(data.val))]
        data.val = kept
        return data, module

    monkeypatch.setattr(crf_search, "load_segmentation", with_bad)
    out = tmp_path / "mine.yaml"
    code = main([str(crf_run), "--processes", "1", "--out", str(out)])
    if len(bad) == 5:
        assert code == 2
        assert "none of the 5 validation images can be read" in capsys.readouterr().err
        return
    assert code == 0
    assert yaml.safe_load(out.read_text())["tuned_on"].items() >= {"images": 4, "of": 5}.items()


def test_by_default_there_is_a_process_for_each_core_of_the_job(
    crf_run: Path, tmp_path: Path, monkeypatch, small_search
) -> None:
    """Not for each core of a machine that others use too."""
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    workers = crf_search.workers
    monkeypatch.setattr(crf_search, "workers", lambda processes: asked.append(processes) or workers(processes))
    assert main([str(crf_run), "--images", "2", "--out", str(tmp_path / "a")]) == 0
    assert asked == [1]


def test_ctrl_c_writes_nothing(crf_run: Path, tmp_path: Path, monkeypatch, capsys, small_search) -> None:
    def press(job: Job) -> None:
        raise KeyboardInterrupt

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(crf_search, "count_labels", press)
    assert main([str(crf_run), "--images", "2", "--processes", "1", "--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr().err == "tune_crf.py: stopped; nothing was written\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


MISTAKES = {
    "": "required: run",
    "nowhere": "nowhere is no run folder (it has no config.yaml)",
    "unfinished": "unfinished has no checkpoints/best.ckpt",
    "RUN --images 0": "--images: 0 is not a whole number of at least 1",
    "RUN --processes two": "--processes: two is not a whole number of at least 1",
    "RUN --imags 3": "no flag --imags; nearest: --images",
    "RUN --crf-settings x": "no preset and no file 'x'",
    "RUN --out nowhere/a.yaml": "--out nowhere/a.yaml: there is no folder nowhere",
    "RUN --data-dir nowhere": "--data-dir nowhere: no such folder",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_usage_errors_are_one_line(arguments: str, crf_run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("head: unet\n")
    with pytest.raises(SystemExit) as stopped:
        main(arguments.replace("RUN", str(crf_run)).split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("tune_crf.py: error: ")
    assert MISTAKES[arguments] in error


def test_a_run_of_another_kind_is_refused_in_one_line(crf_run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"")
    for text, message in (
        ("head: classifier\n", f"{tmp_path} is a run of classifier, a classification head; a CRF refines"),
        ("hed: unet\n", "config.yaml was written by another version of Graft"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        assert main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


@pytest.mark.parametrize("script", ["tune_crf", "trimap"])
def test_help_comes_without_importing_torch(script: str) -> None:
    code = f"import sys, experiments.{script} as script\ntry:\n script.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'lightning', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "folder of a finished run" in done.stdout
