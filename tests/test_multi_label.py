"""Images with any number of labels: from tar files through training to scores and predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multilabel_average_precision

from experiments import evaluate, predict
from experiments.run import main
from lightning_modules.classification import ClassificationModule
from lightning_modules.losses import WeightedSum
from lightning_modules.multi_label import HIGHEST, LEVELS, MultiLabelScores
from tests.test_shards import build, encoded, write_shard

NAMES = ("cat", "dog", "sea", "sun")


def test_scores_are_torchmetrics_of_rounded_logits() -> None:
    logits, target = 3 * torch.randn(90, 8), (torch.rand(90, 8) < 0.2).long()
    target[:, 7] = 0  # a class that no image has
    target[:9] = 0
    scores = MultiLabelScores(8)
    for part in range(0, 90, 7):
        scores.update(logits[part : part + 7], target[part : part + 7])
    found = scores.scores([str(i) for i in range(8)])
    rounded = ((logits + HIGHEST) / (2 * HIGHEST) * LEVELS).floor() / LEVELS
    each = multilabel_average_precision(rounded, target, 8, average=None)
    torch.testing.assert_close(scores.precision.compute()[:7].float(), each[:7])
    assert scores.precision.compute()[7].isnan()
    assert float(found["map"]) == pytest.approx(float(each[:7].mean()))
    labelled = target.any(1)
    first = target.gather(1, logits.argmax(1, keepdim=True))[labelled, 0]
    assert float(found["hit1"]) == pytest.approx(float(first.double().mean()))
    best = target.gather(1, logits.topk(5).indices)[labelled].any(1)
    assert float(found["hit5"]) == pytest.approx(float(best.double().mean()))


def test_the_loss_sums_over_classes_and_means_over_images() -> None:
    logits, target = torch.randn(5, 4), torch.randint(0, 2, (5, 4))
    loss = WeightedSum("binary_cross_entropy", 4)
    expected = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="sum") / 5
    torch.testing.assert_close(loss(logits, target), expected)
    (total,), (weight,) = loss.sums(logits, target)
    assert float(total / weight) == pytest.approx(float(expected))
    labels = torch.tensor([0, 3, 1, 2, 2])
    torch.testing.assert_close(loss(logits, labels), loss(logits, F.one_hot(labels, 4)))
    maps, masks = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    masks[0, 0, 0] = 255
    one = F.binary_cross_entropy_with_logits(
        maps, F.one_hot(masks % 255, 4).movedim(-1, 1).float(), reduction="none"
    ).sum(1)
    torch.testing.assert_close(loss(maps, masks), one[masks != 255].mean())


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="--label-smoothing has no meaning for --loss binary_cross_entropy"):
        WeightedSum("binary_cross_entropy", 4, label_smoothing=0.1)
    with pytest.raises(ValueError, match="a classification head and --loss binary_cross_entropy alone; .* cross_en"):
        ClassificationModule("lenet5", "classifier", NAMES, several_labels=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images whose labels are the bits of their number; image 0 has none. A quarter of a picture lights for each."""
    root = tmp_path_factory.mktemp("labels")
    for split, numbers in (("train", range(15, -1, -1)), ("val", range(15, -1, -1))):
        files = {}
        for number in numbers:
            labels = [bit for bit in range(4) if number >> bit & 1]
            image = np.zeros((32, 32, 3), np.uint8)
            for bit in labels:
                image[16 * (bit // 2) : 16 * (bit // 2) + 16, 16 * (bit % 2) : 16 * (bit % 2) + 16] = 255
            files |= {
                f"{number:02d}.png": encoded(image, "png"),
                f"{number:02d}.cls": " ".join(map(str, labels)).encode(),
            }
        write_shard(root / f"{split}-0.tar", files)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_targets_are_what_the_files_say(shards: Path, cache: str) -> None:
    data = build(shards, "classification", several_labels=True, cache=cache, batch_size=16)
    assert data.several_labels
    for _ in range(2):
        (batch,) = list(data.val_dataloader())
        bits = [[int(name.split("/")[1]) >> bit & 1 for bit in range(4)] for name in batch["name"]]
        assert batch["target"].tolist() == bits
    assert np.bincount(data.train.source.class_labels()).tolist() == [8, 8, 8, 8]


def test_several_numbers_need_the_loss_for_them(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"has the class b'0 1 2 3'; a \.cls .* binary_cross_entropy"):
        build(shards, "classification")


def test_a_run_scores_and_predicts_each_label_by_itself(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", "shards", "--data-dir", str(shards), "--backbone", "lenet5", "--head", "classifier"]
    common += ["--loss", "binary_cross_entropy", "--image-size", "32", "--workers", "0", "--out", str(tmp_path)]
    assert main([*common, "--name", "a", "--epochs", "2", "--batch-size", "4", "--lr", "0.003"]) == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert set(results["scores"]["val"]) == {"loss", "map", "hit1"}
    assert results["protocol"]["several_labels"] is True
    drawn = json.loads((tmp_path / "a" / "predictions" / "index.json").read_text())["samples"]
    assert {"none", ", ".join(NAMES)} <= {one["truth"] for one in drawn}
    best = str(tmp_path / "a" / "checkpoints" / "best.ckpt")
    assert main([*common, "--name", "b", "--epochs", "0", "--start-from", best]) == 0
    again = json.loads((tmp_path / "b" / "results.json").read_text())["scores"]["val"]
    assert again["map"] == results["scores"]["val"]["map"]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "all.png").write_bytes(encoded(np.full((32, 32, 3), 255, np.uint8), "png"))
    assert predict.main([str(tmp_path / "a"), str(pictures), "--out", str(tmp_path / "predicted")]) == 0
    rows = list(csv.DictReader((tmp_path / "predicted" / "predictions.csv").open()))
    module = ClassificationModule.load_from_checkpoint(best, weights_only=True).eval()
    with torch.no_grad():
        expected = float(module(torch.full((1, 3, 32, 32), 0.0) + whitest(module)).sigmoid().max())
    assert float(rows[0]["probability_1"]) == pytest.approx(expected, abs=1e-3)
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "a")]) == 2
    assert "gives images several labels, which this program does not support; run.py with" in capsys.readouterr().err


def whitest(module: ClassificationModule) -> torch.Tensor:
    """White as the network sees it."""
    about = module.hparams["preprocessing"]
    mean, std = (torch.tensor(about[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return (1 - mean) / std
