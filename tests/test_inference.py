"""load(), predict.py and evaluate.py on tiny runs: sizes, files, resuming, windows, scores."""

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datamodules.size_rules import SizeRule
from experiments.evaluate import main as evaluate
from experiments.inference.counts import Counts, boundary_counts, by_confidence
from experiments.inference.inputs import Inputs
from experiments.inference.label_files import label_png
from experiments.inference.outputs import run_lengths
from experiments.inference.paired import paired_scores
from experiments.inference.protocol import Predictor, Protocol
from experiments.inference.scores import coverage_curve, reliability
from experiments.inference.trained import TrainedNetwork, load
from experiments.inference.windows import reach_of, starts
from experiments.predict import main as predict
from experiments.run import main as run
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import crf_arguments, randomise


@pytest.fixture(scope="module")
def segmenter(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on squares, of 32x40 pixels."""
    out = tmp_path_factory.mktemp("segmenter")
    assert run(crf_arguments(crf_folder, out, "--name", "seg", "--epochs", "2")) == 0
    return out / "seg"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier")
    flags = ["--backbone", "lenet5", "--head", "classifier", "--epochs", "1", "--max-steps", "3", "--workers", "0"]
    assert run([*flags, "--accelerator", "cpu", "--out", str(out), "--name", "cls"]) == 0
    return out / "cls"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures with odd sizes and names; two of them differ in their suffix only; one cannot be read."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    names = ("a.png", "a.jpg", "sub folder/ü [x].png", "sub folder/deep/b.png", "two/b.png")
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (41 + i, 67, 3), np.uint8)).save(root / name)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "notes.doc").write_text("x")
    return root


def network_of(backbone: str, head: str, size: int = 64, **options: object) -> TrainedNetwork:
    names = ("a", "b", "c")
    module = randomise(SegmentationModule(backbone, head, names, **options)).eval().requires_grad_(False)
    return TrainedNetwork(
        module, names, np.zeros((3, 3), np.uint8), SizeRule("own", (size, size)), (0.5,) * 3, (0.25,) * 3
    )


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- load


def test_a_result_has_the_pictures_own_size(segmenter: Path, tmp_path: Path) -> None:
    network = load(segmenter)
    image = np.random.default_rng(1).integers(0, 255, (45, 71, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "one.png")
    results = [
        network(one)
        for one in (image, Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1), tmp_path / "one.png")
    ]
    for result in results:
        assert result.labels.shape == (45, 71)
        assert result.probabilities.shape == (2, 45, 71)
        np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(result.probabilities, results[0].probabilities)
    assert results[0].overlay(legend=False).size == (71, 45)
    results[0].save(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "labels.png")), results[0].labels)


def test_a_classifier_names_a_picture(classifier: Path) -> None:
    result = load(classifier)(np.zeros((50, 40), np.uint8))
    assert result.name == result.top(1)[0][0]
    assert result.probabilities.shape == (10,)
    assert sum(value for _, value in result.top(10)) == pytest.approx(1, abs=1e-5)


def test_a_checkpoint_alone_is_enough_and_older_ones_say_what_is_missing(segmenter: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(segmenter / "checkpoints" / "best.ckpt", alone)
    assert load(alone).size_rule == load(segmenter).size_rule == SizeRule("stretch", (32, 40))
    state = torch.load(alone, weights_only=True)
    before = state["hyper_parameters"].pop("preprocessing")
    torch.save(state, alone)
    with pytest.raises(ValueError, match="does not hold image size, mean and std; put it back into its run folder"):
        load(alone)
    older = tmp_path / "older"
    (older / "checkpoints").mkdir(parents=True)
    shutil.copy(alone, older / "checkpoints" / "best.ckpt")
    shutil.copy(segmenter / "config.yaml", older)
    assert load(older).size_rule == SizeRule(before["size_rule"], tuple(before["size"]))


def test_what_is_no_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"hyper_parameters": {"head": Evil()}}, tmp_path / "evil.ckpt")
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04 half")
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "plain.ckpt")
    for name, message in (("evil", "holds code"), ("half", "is damaged"), ("plain", "holds no network of Graft")):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="no such run folder or checkpoint"):
        load(tmp_path / "nothing")


def test_arrays_of_another_kind_are_refused(segmenter: Path) -> None:
    network = load(segmenter)
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"give (an array|a tensor) .* of uint8"):
            network(wrong)


# ---- predict.py


def test_results_lie_as_the_pictures_do(segmenter: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert predict([str(segmenter), str(photos), "--out", str(out)]) == 1  # one file cannot be read
    printed = capsys.readouterr()
    assert "passed over: 1 .doc" in printed.out
    assert "not predicted: broken.png: " in printed.err
    made = {name for name in files_below(out) if name.endswith(".png")}
    assert made == {"a.png.png", "a.jpg.png", "sub folder/ü [x].png", "sub folder/deep/b.png", "two/b.png"}
    assert Image.open(out / "two" / "b.png").size == (67, 45)
    rows = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8")))
    assert [row["input"] for row in rows] == sorted(row["input"] for row in rows)
    assert all(float(row["0"]) + float(row["1"]) == pytest.approx(1, abs=1e-4) for row in rows)


def test_the_same_command_goes_on_to_the_same_bytes(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").unlink()
    flags = ["--save", "labels", "csv", "coco", "overlay", "probabilities"]
    assert predict([str(segmenter), str(photos), "--out", str(tmp_path / "whole"), *flags]) == 0
    whole = files_below(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    manifest = tmp_path / "again" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed in the middle of a line
    (tmp_path / "again" / "predictions.csv").unlink()
    (tmp_path / "again" / "two" / "b.png").write_bytes(b"half")
    assert predict([str(segmenter), str(photos), "--out", str(tmp_path / "again"), *flags]) == 0
    assert files_below(tmp_path / "again") == whole


def test_another_protocol_needs_another_folder(segmenter: Path, photos: Path, tmp_path: Path, capsys) -> None:
    command = [str(segmenter), str(photos / "a.png"), "--out", str(tmp_path / "out")]
    assert predict(command) == 0
    assert predict([*command, "--flip"]) == 2
    assert "holds predictions with another flip" in capsys.readouterr().err


def test_lists_and_patterns(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{photos / 'a.png'}\n\n{photos / 'two' / 'b.png'}\n")
    assert [one.stem.as_posix() for one in Inputs([str(tmp_path / "list.txt")])] == ["a", "two/b"]
    assert len(Inputs([str(photos / "**" / "b.png")])) == 2
    for wrong in (photos / "*.gif", tmp_path / "nothing"):
        with pytest.raises(ValueError, match="no such file or folder"):
            Inputs([str(wrong)])


def test_frames_of_a_video(segmenter: Path, tmp_path: Path) -> None:
    import cv2

    video = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for level in range(0, 250, 50):
        video.write(np.full((32, 48, 3), level, np.uint8))
    video.release()
    out = tmp_path / "out"
    assert (
        predict([str(segmenter), str(tmp_path / "film.avi"), "--out", str(out), "--every", "2", "--save", "labels"])
        == 0
    )
    assert sorted(path.name for path in (out / "film").iterdir()) == ["000000.png", "000002.png", "000004.png"]


def test_uncertain_pixels_get_no_label(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    command = [str(segmenter), str(photos / "a.png"), "--abstain", "1", "--save", "labels", "--out", str(tmp_path)]
    assert predict(command) == 0
    assert set(np.unique(np.array(Image.open(tmp_path / "a.png")))) == {255}


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    labels = np.array([[0, 300], [-1, 255]])
    (tmp_path / "x.png").write_bytes(label_png(labels, np.zeros((301, 3), np.uint8)))
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "x.png")), [[0, 300], [65535, 255]])


def test_run_lengths_are_cocos() -> None:
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    assert run_lengths(mask) == [1, 4, 1]
    assert run_lengths(~mask) == [0, 1, 4, 1]
    assert sum(run_lengths(np.zeros((3, 4), bool))) == 12


# ---- windows


@pytest.mark.parametrize("head", ["fcn8s", "unet"])
def test_windows_equal_the_whole_image_where_the_field_fits(head: str) -> None:
    network = network_of("lenet5" if head == "unet" else "mobilenet_v1_025", head)
    reach = reach_of(network.module.network)
    assert reach.radius is not None
    side = 2 * reach.radius + 3 * 32
    image = np.random.default_rng(0).integers(0, 255, (side + 75, side + 140, 3), np.uint8)
    whole = Predictor(network, Protocol())(image)
    windowed = Predictor(network, Protocol(window=(side, side)))
    assert "equal to predicting whole images" in windowed.note
    assert np.abs(windowed(image) - whole).max() <= 1e-5
    blended = Predictor(network, Protocol(window=(side, side), overlap=32))
    assert "not equal to whole images" in blended.note
    assert np.abs(blended(image) - whole).max() > 1e-5


def test_a_network_that_sees_the_whole_image_says_so() -> None:
    for backbone, head in (("resnet18", "deeplab"), ("mobilenet_v3_small", "fcn32s"), ("vit_b_32", "fcn32s")):
        assert reach_of(network_of(backbone, head).module.network).radius is None
    assert (
        "averages over the whole image" in Predictor(network_of("resnet18", "pspnet"), Protocol(window=(64, 64))).note
    )


def test_windows_cover_everything_on_the_networks_grid() -> None:
    for length in (64, 65, 200, 333):
        places = starts(length, 96, 32, 32)
        assert places[0] == 0
        assert all(place % 32 == 0 for place in places)
        assert places[-1] + 96 >= length
        assert all(after - before <= 64 for before, after in pairwise(places))
    with pytest.raises(ValueError, match="leaves less than the network's stride"):
        starts(500, 96, 80, 32)


class Constant(nn.Module):
    """Logits that say class 1 in the left half of whatever it gets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 3, *x.shape[2:])
        logits[:, 1, :, : x.shape[3] // 2] = 5.0
        return logits


def test_flips_and_scales_average_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("lenet5", "unet")
    monkeypatch.setattr(network.module, "forward", Constant().forward)
    image = np.zeros((40, 60, 3), np.uint8)
    one = Predictor(network, Protocol())(image)
    both = Predictor(network, Protocol(flip=True))(image)
    np.testing.assert_allclose(both, (one + one[..., ::-1]) / 2, atol=1e-6)
    scaled = Predictor(network, Protocol(scales=(0.5, 1.0, 2.0)))(image)
    np.testing.assert_allclose(scaled[:, :, :20], one[:, :, :20], atol=1e-6)


# ---- evaluate.py


def test_it_scores_what_training_scored(segmenter: Path, crf_folder: Path) -> None:
    assert evaluate([str(segmenter)]) == 0
    found = json.loads((segmenter / "evaluation-val" / "evaluation.json").read_text())
    trained = json.loads((segmenter / "results.json").read_text())["scores"]["val"]
    assert found["scores"]["miou"] == pytest.approx(trained["miou"], abs=1e-4)
    assert found["scores"]["pixel_accuracy"] == pytest.approx(trained["pixel_accuracy"], abs=1e-4)
    for row in found["per_class"]:
        assert row["iou"] == pytest.approx(trained[f"iou/{row['class']}"], abs=1e-4)
    assert found["trimap"]["all"] == pytest.approx(found["scores"]["miou"], abs=1e-6)
    assert found["protocol"]["pictures"] == 5
    folder = segmenter / "evaluation-val"
    assert {"confusion.png", "confidence.png", "per_image.csv", "worst.html"} <= {
        path.name for path in folder.iterdir()
    }
    scores = [float(row["score"]) for row in csv.DictReader((folder / "per_image.csv").open())]
    page = (folder / "worst.html").read_text()
    shown = [float(part.split(",")[0]) for part in page.split(" score ")[1:]]
    assert shown == pytest.approx(sorted(scores), abs=1e-3)


def test_a_classifier_is_scored_as_in_training(classifier: Path) -> None:
    assert evaluate([str(classifier), "--split", "test"]) == 0
    found = json.loads((classifier / "evaluation-test" / "evaluation.json").read_text())
    trained = json.loads((classifier / "results.json").read_text())["scores"]["test"]
    assert found["scores"]["top1"] == pytest.approx(trained["top1"], abs=1e-6)
    assert found["scores"]["top5"] == pytest.approx(trained["top5"], abs=1e-6)


def test_two_networks_are_compared_picture_by_picture(segmenter: Path) -> None:
    assert evaluate([str(segmenter), "--against", str(segmenter)]) == 0
    pair = json.loads((segmenter / "evaluation-val" / "evaluation.json").read_text())["against"]
    assert pair["difference"] == pair["low"] == pair["high"] == 0
    assert (pair["better"], pair["worse"], pair["equal"], pair["sign_test_p"]) == (0, 0, 5, 1.0)


def test_a_clear_difference_is_found() -> None:
    generator = np.random.default_rng(0)
    right = generator.integers(60, 90, (40, 1, 2))
    ours = np.concatenate([right + 8, np.full((40, 1, 2), 100), np.full((40, 1, 2), 100)], 1)
    theirs = np.concatenate([right, np.full((40, 1, 2), 100), np.full((40, 1, 2), 100)], 1)
    pair = paired_scores(ours, theirs, "segmentation")
    assert pair["low"] > 0
    assert pair["better"] == 40
    assert pair["sign_test_p"] < 1e-9
    back = paired_scores(theirs, ours, "segmentation")
    assert back["difference"] == pytest.approx(-pair["difference"])


def test_calibration_and_coverage_by_hand() -> None:
    counts = Counts.none(2)
    confidence = np.repeat([0.95, 0.55], [100, 100])
    right = np.concatenate([np.arange(100) < 95, np.arange(100) < 55])
    counts.right, counts.total = by_confidence(confidence, right)
    rows = reliability(counts)
    assert [round(row["accuracy"], 2) for row in rows] == [0.55, 0.95]
    assert all(abs(row["accuracy"] - row["confidence"]) < 1e-3 for row in rows)
    half = next(row for row in coverage_curve(counts) if row["coverage"] == pytest.approx(0.5))
    assert half["accuracy"] == pytest.approx(0.95)


def test_boundary_regions_of_squares() -> None:
    truth = np.zeros((100, 100), np.int64)
    truth[20:60, 20:60] = 1
    shifted = np.roll(truth, 1, 1)
    valid = np.ones_like(truth, bool)
    same = boundary_counts(truth, truth, valid, 2)
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])
    reach = 3  # 2 % of the diagonal of 141 pixels
    assert same[2, 1] == 40**2 - (40 - 2 * reach) ** 2
    both, ours, theirs = boundary_counts(shifted, truth, valid, 2)[:, 1]
    assert ours == theirs
    assert 0 < both < ours


def test_no_picture_is_predicted_twice(segmenter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    logits = TrainedNetwork.logits
    monkeypatch.setattr(TrainedNetwork, "logits", lambda *args: calls.append(0) or logits(*args))
    out = segmenter / "pair"
    assert evaluate([str(segmenter), "--against", str(segmenter), "--worst", "3", "--out", str(out)]) == 0
    assert len(calls) == 2 * 5
    page = (out / "changed.html").read_text()
    assert page.count("<figure>") == 3
    assert page.count("<img") == 3 * 4  # image, truth and both predictions
    names = [row["name"] for row in sorted(csv.DictReader((out / "per_image.csv").open()), key=score_of_row)]
    shown = (out / "worst.html").read_text().split("<figcaption>")[1:]
    assert [part.split(" score ")[0] for part in shown] == names[:3]


def score_of_row(row: dict[str, str]) -> float:
    return float(row["score"])


def test_the_protocol_says_what_a_score_depends_on(classifier: Path) -> None:
    out = classifier / "ten"
    flags = ["--crops", "10", "--scales", "1", "1.25", "--abstain", "0.5", "--out", str(out)]
    assert evaluate([str(classifier), *flags]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    protocol = found["protocol"]
    assert (protocol["crops"], protocol["scales"], protocol["dense"], protocol["abstain"]) == (
        10,
        [1, 1.25],
        False,
        0.5,
    )
    assert (protocol["data"], protocol["backbone"], protocol["size_rule"]) == ("digits", "lenet5", "stretch")
    assert protocol["checkpoint"].endswith("best.ckpt")
    assert "val:" in protocol["data_fingerprint"]
    assert protocol["versions"]["torch"]
    assert 0 <= found["answered"]["coverage"] <= 1
    assert evaluate([str(classifier), "--dense"]) == 2
    assert evaluate([str(classifier), "--device", "abacus"]) == 2
