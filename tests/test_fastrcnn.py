"""Fast R-CNN: what it learns from, what it computes, and a run with proposals from data to pictures."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.proposals import METHODS
from experiments import evaluate, predict
from experiments.run import main
from experiments.training.load_run import checkpoint_hparams
from heads.fastrcnn import FastRCNN
from lightning_modules.network import Network


@pytest.fixture(scope="module")
def head() -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN([3], [8], 4, hidden=16)


def test_background_overlaps_an_object_a_little(head: FastRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 0.1 to 0.5, as in the paper; without objects, all is background."""
    truth = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([2])}
    near, little, far = [0.0, 0, 20, 18], [0.0, 0, 20, 5], [0.0, 0, 20, 1]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(head, "classify", lambda x, boxes: seen.extend(boxes) or scores(sum(map(len, boxes))))
    target = truth | {"proposals": torch.tensor([near, little, far])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    terms = head.losses(
        head([torch.zeros(2, 3, 8, 8)]), [target, none | {"proposals": torch.tensor([far])}], [(64, 64)] * 2
    )
    assert sorted(seen[0].tolist()) == sorted([near, truth["boxes"][0].tolist(), little])
    assert seen[1].tolist() == [far]
    assert {name: float(weight) for name, (_, weight) in terms.items()} == {"classification": 4, "boxes": 4}


def scores(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(count, 5), torch.zeros(count, 5, 4)


def test_it_draws_64_of_which_a_quarter_has_an_object(head: FastRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = torch.arange(200.0)[:, None] * torch.tensor([0.0, 0.0, 0.0, 0.02]) + torch.tensor([0.0, 0, 20, 18])
    little = torch.tensor([0.0, 0, 20, 5]).repeat(300, 1)
    truth = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([2])}
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(head, "classify", lambda x, boxes: seen.extend(boxes) or scores(len(boxes[0])))
    head.losses(head([torch.zeros(1, 3, 8, 8)]), [truth | {"proposals": torch.cat([corners, little])}], [(64, 64)])
    assert len(seen[0]) == 64
    assert (seen[0][:, 3] > 10).sum() == 16


def test_detections_are_of_the_given_boxes(head: FastRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [torch.tensor([[0.0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 40, 50]]), torch.zeros(0, 4)]
    logits = torch.full((3, 5), -9.0)
    logits[0, 3], logits[1, 3], logits[2, 1] = 5.0, 9.0, 7.0
    monkeypatch.setattr(head, "classify", lambda x, given: (logits, torch.zeros(3, 5, 4)))
    outputs = head.with_proposals(head([torch.zeros(2, 3, 8, 8)]), boxes)
    first, second = head.detections(outputs, [(64, 64)] * 2)
    assert first["labels"].tolist() == [2, 0]
    assert first["boxes"].tolist() == [[1, 0, 20, 20], [30, 30, 40, 50]]
    assert len(second["boxes"]) == 0


def test_without_proposals_windows_slide_over_the_image(head: FastRCNN) -> None:
    """Every image has its own, also within a padded batch."""
    outputs = head([torch.rand(2, 3, 8, 8)])
    found = head.eval().detections(outputs, [(64, 64), (40, 30)])
    assert [len(one["boxes"]) > 0 for one in found] == [True, True]
    assert (found[1]["boxes"][:, 2:] <= torch.tensor([30, 40])).all()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on digit scenes with selective search, whose cache is its own."""
    folder = tmp_path_factory.mktemp("fastrcnn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("datamodules.digits.Digits.SCENES", {"train": 4, "val": 3, "test": 2})
        arguments = [
            "--backbone", "mobilenet_v3_small", "--head", "fastrcnn", "--head-options", "{hidden: 16}", "--out",
            str(folder), "--name", "a", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--accelerator", "cpu",
            "--precision", "32-true",
        ]  # fmt: skip
        assert main(arguments) == 0
        yield folder


def test_a_run_leaves_scores_and_remembers_how_boxes_are_found(finished: Path) -> None:
    results = json.loads((finished / "a" / "results.json").read_text())
    assert np.isfinite(results["scores"]["val"]["map"])
    assert len(list((finished / "cache" / "graft" / "proposals").glob("selective_search-*.npz"))) == 1
    kept = checkpoint_hparams(finished / "a" / "checkpoints" / "best.ckpt")
    assert kept["preprocessing"]["proposals"] == "selective_search"


def test_evaluation_takes_the_proposals_of_the_data(finished: Path) -> None:
    """The same scores as at the end of training; the boxes come from the cache."""
    assert evaluate.main([str(finished / "a"), "--device", "cpu"]) == 0
    written = json.loads((finished / "a" / "evaluation-val" / "evaluation.json").read_text())
    results = json.loads((finished / "a" / "results.json").read_text())
    assert written["scores"]["map50"] == pytest.approx(results["scores"]["val"]["map50"], abs=1e-6)


def test_prediction_looks_for_boxes_itself(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8)
    (finished / "photos").mkdir()
    Image.fromarray(pixels).save(finished / "photos" / "a.png")
    asked = []

    def method(image: np.ndarray) -> np.ndarray:
        asked.append(image)
        return np.float32([[0, 0, 30, 30], [5, 5, 50, 40]])

    monkeypatch.setitem(METHODS, "selective_search", method)
    arguments = [str(finished / "a"), str(finished / "photos"), "--out", str(finished / "out"), "--device", "cpu"]
    assert predict.main([*arguments, "--save", "csv"]) == 0
    assert np.array_equal(asked[0], pixels)
    assert len(asked) == 1


def test_proposals_that_cannot_serve_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--backbone", "resnet18", "--out", str(tmp_path), "--accelerator", "cpu"]
    assert main([*arguments, "--head", "fcos", "--proposals", "windows"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--proposals are for fastrcnn; fcos takes none, leave the flag out" in line
    with pytest.raises(SystemExit):
        main([*arguments, "--head", "fastrcnn", "--proposals", "nowhere.npz"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--proposals nowhere.npz: no such file (or give selective_search or windows)" in line


def test_vgg16_is_the_papers_network() -> None:
    with torch.device("meta"):
        network = Network("vgg16", "fastrcnn", 20)
    assert sum(parameter.numel() for parameter in network.parameters()) == 134_690_729
    assert network.backbone.reductions[-1] == 16
