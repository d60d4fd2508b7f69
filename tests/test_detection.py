"""Detection from data to results: boxes on their way to batches, scores, training, and what a run leaves."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.augmentation import AUGMENTATIONS, compose, find_augmentation
from datamodules.collate import collate
from datamodules.digits import Digits
from datamodules.objects import objects_of, transformed
from datamodules.sample_cache import SampleCache
from experiments import benchmark, evaluate, explain, export, predict
from experiments.inference import export_network
from experiments.inference.demo_boxes import BoxAnswers
from experiments.inference.detector import detect
from experiments.inference.suppression import suppress
from experiments.inference.trained import load_any
from experiments.run import main
from experiments.run_files.read_run import read_run
from heads import HEADS
from lightning_modules.detection import DetectionModule, without_crowds
from lightning_modules.detection_scores import DetectionScores
from tests.overfit_detection import mask_overlap, overfit
from tests.warm_process import start_python

PROJECT = Path(__file__).resolve().parent.parent
DETECTORS = [name for name, head in HEADS.items() if head.task == "detection"]


def digits(monkeypatch: pytest.MonkeyPatch, task: str = "detection", **more: object) -> Digits:
    monkeypatch.setattr(Digits, "SCENES", {"train": 8, "val": 7, "test": 3})
    data = Digits(task, workers=0, batch_size=2, **more)
    data.setup()
    return data


def test_boxes_surround_the_ink_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenes are those of segmentation. A digit that another covers in part keeps its whole box."""
    boxed, masked = digits(monkeypatch), digits(monkeypatch, "segmentation")
    assert masked.class_names[1:] == boxed.class_names
    alone = 0
    for index in range(8):
        image, mask, name = masked.train.source[index]
        same, objects, again = boxed.train.source[index]
        assert np.array_equal(image, same)
        assert name == again
        for (x1, y1, x2, y2), label in zip(objects.boxes.astype(int), objects.labels, strict=True):
            others = [box for box in objects.boxes if tuple(box) != (x1, y1, x2, y2)]
            if any(x1 < b[2] + 4 and b[0] < x2 + 4 and y1 < b[3] + 4 and b[1] < y2 + 4 for b in others):
                continue
            alone += 1
            top, left = max(0, y1 - 2), max(0, x1 - 2)
            rows, columns = np.nonzero(mask[top : y2 + 2, left : x2 + 2] == 1 + label)
            around = (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)
            assert around == (x1, y1, x2, y2)
    assert alone > 2


# A spline bends the sides of boxes.
@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "unet_elastic"])
def test_boxes_go_where_the_pixels_go(name: str) -> None:
    pipeline = compose(find_augmentation(name, (60, 80), (0.0, 0.0, 0.0)), boxes=True)
    kept = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        pipeline.set_random_state(generator, random.Random(seed))
        image = np.zeros((100, 120, 3), np.uint8)
        x1, y1 = generator.integers(0, 80), generator.integers(0, 60)
        x2, y2 = x1 + generator.integers(10, 30), y1 + generator.integers(10, 30)
        image[y1:y2, x1:x2] = 255
        out, objects = transformed(pipeline, image, objects_of([(x1, y1, x2, y2)], [3], [True]))
        assert out.shape == (60, 80, 3)
        if not len(objects.boxes) or name == "randaugment":  # turns boxes, whose hull is wider, and inverts colours
            continue
        kept += 1
        assert (objects.labels.tolist(), objects.crowd.tolist()) == ([3], [True])
        rows, columns = np.nonzero(out[..., 1] > 100)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(objects.boxes[0] - seen).max() < 2.01, seed
    assert kept > 15 or name == "randaugment"


def test_batches_hold_the_objects_of_each_image() -> None:
    def sample(height: int, width: int, count: int) -> dict:
        objects = objects_of([(0, 0, 2, 2)] * count, [1] * count)
        return {"image": torch.ones(height, width, 3, dtype=torch.uint8), "target": objects.tensors(), "name": "a"}

    batch = collate([sample(4, 6, 2), None, sample(5, 3, 0)])
    assert batch["image"].shape == (2, 5, 6, 3)
    assert batch["sizes"] == [(4, 6), (5, 3)]
    assert [one["boxes"].shape for one in batch["target"]] == [(2, 4), (0, 4)]
    assert "sizes" not in collate([sample(4, 6, 1)] * 2)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_objects_are_cached(count: int, tmp_path: Path) -> None:
    store = SampleCache(tmp_path, 0)
    objects = objects_of(np.random.rand(count, 4), range(count), [True] * count)
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    store.put("abcd", (image, objects, "name"))
    back, again, name = store.get("abcd")
    assert np.array_equal(back, image)
    assert name == "name"
    for field in ("boxes", "labels", "crowd"):
        assert np.array_equal(getattr(again, field), getattr(objects, field))
        assert getattr(again, field).dtype == getattr(objects, field).dtype


def made_up(images: int = 7) -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """Names, detections and truth: some boxes are missed, some are moved, some are of nothing."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(images):
        corners = torch.rand(4, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + 10], 1)
        labels = torch.arange(4) % 2
        moved = boxes + torch.randn(4, 1, generator=generator)
        scores = torch.rand(4, generator=generator).round(decimals=1)  # ties, which the order of images decides
        masks = torch.zeros(3, 70, 70, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=False):
            mask[y1:y2, x1:x2] = True
        truth = {"boxes": boxes[:3], "labels": labels[:3], "iscrowd": torch.tensor([0, 0, 1]), "masks": masks}
        found = {"boxes": moved, "scores": scores, "labels": labels, "masks": torch.ones(4, 28, 28)}
        made.append((f"image {number}", found, truth))
    return made


def scored(images: list) -> dict[str, float]:
    scores = DetectionScores()
    for name, found, truth in images:
        scores.update([name], [found], [truth])
    return {name: float(value) for name, value in scores.scores(["a", "b", "none"]).items()}


def test_scores_are_those_of_a_hand_made_case() -> None:
    """Two objects of one class: found at IoU 0.9, a false one of a higher score, the second missed."""
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), "labels": torch.tensor([0, 0])}
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 9], [80, 80, 90, 90]]),
        "scores": torch.tensor([0.6, 0.9]),
        "labels": torch.tensor([0, 0]),
    }
    scores = scored([("one", found, truth)])
    # Precision 1/2 up to recall 1/2: 51 of 101 points, at the 9 thresholds up to 0.9.
    assert scores["map50"] == pytest.approx(0.5 * 51 / 101)
    assert scores["ap50/a"] == pytest.approx(scores["map50"])
    assert scores["map"] == pytest.approx(0.5 * 51 / 101 * 9 / 10)
    assert np.isnan(scores["ap50/b"])
    assert np.isnan(scores["ap50/none"])


def test_a_split_without_objects_has_no_score() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert all(np.isnan(value) for value in scored([("one", nothing, nothing)]).values())


RANK = """
import sys, torch
from tests.test_detection import made_up, scored
number, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=number, world_size=2)
print(scored(made_up()[number::2]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_report_the_score_of_one(tmp_path: Path) -> None:
    """To the last digit, with ties and four images on one and three on the other."""
    # Ranks that are forked from a process of tests, which has threads, may hang.
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    programs = []
    for number, log in enumerate(logs):
        with log.open("w") as file:
            programs.append(start_python(["-c", RANK, str(number), str(tmp_path)], stdout=file))
    assert [program.wait(100) for program in programs] == [0, 0]
    one = scored(made_up()[::-1])
    assert 0.05 < one["map"] < 0.9
    assert 0.05 < one["mask_map"] < 0.9
    assert [log.read_text() for log in logs] == [f"{one}\n"] * 2


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "fasterrcnn_c4"])
def test_one_image_can_be_learned(name: str) -> None:
    """Until all boxes are found; overfit_detection.py goes on to mAP 1, on several backbones and with all regions.

    fasterrcnn_c4 is left out: a ResNet's last stage costs much for each region. Its code is that of fasterrcnn_dc5.
    """
    copies = 2 if name == "yolov1" else 1  # yolov1 learns more slowly
    learned = overfit("resnet18", name, most=80, every=5, rate=2e-3, enough=0.6, copies=copies)
    assert learned.map50 == pytest.approx(1)
    if HEADS[name].needs_masks:
        assert mask_overlap(learned.found, learned.truth) > 0.4


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"loss": "dice"}, "--loss"),
        ({"class_weights": [1.0, 2.0]}, "--class-weights"),
        ({"label_smoothing": 0.1}, "--label-smoothing"),
        ({"aux_weight": 0.4}, "--aux-weight"),
    ],
)
def test_settings_of_other_losses_are_refused(setting: dict, flag: str) -> None:
    with pytest.raises(ValueError, match=f"fcos brings its own loss; leave {flag} out"):
        DetectionModule("resnet18", "fcos", ["a", "b"], **setting)


def flags(out: Path, *more: str) -> list[str]:
    return [
        "--backbone", "resnet18", "--head", "fcos", "--head-options", "{width: 64, score_threshold: 0.001}", "--out",
        str(out), "--batch-size", "2", "--epochs", "2", "--workers", "0", "--accelerator", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on a few scenes."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "SCENES", {"train": 8, "val": 7, "test": 3})
        assert main(flags(out, "--name", "one")) == 0
    return out / "one"


def test_a_run_leaves_scores_and_pictures(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["protocol"]["task"] == "detection"
    assert results["protocol"]["classes"] == [str(digit) for digit in range(10)]
    assert set(results["scores"]) == {"val", "test"}
    assert {"loss", "map", "map50", "ap50/0", "ap50/9"} <= set(results["scores"]["val"])
    assert results["gmacs"] > 0
    header = (finished / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/map", "val/map50", "val/ap50/3", "train/loss_epoch", "lr"} <= set(header)
    run = read_run(finished)
    assert len(run.pictures) == 6
    for picture in run.pictures:
        sizes = {Image.open(path).size for path in (picture.image, picture.truth, picture.prediction)}
        assert sizes == {(384, 384)}
        changed = np.asarray(Image.open(picture.image)) != np.asarray(Image.open(picture.truth))
        assert changed.any()
    index = json.loads((finished / "predictions" / "index.json").read_text())
    x1, y1, x2, y2 = index["samples"][0]["truth_boxes"][0]["box"]
    assert 0 <= x1 < x2 <= 384
    assert 0 <= y1 < y2 <= 384


def test_a_stopped_run_resumes_to_the_same_bits(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 8, "val": 7, "test": 3})
    out = finished.parent
    step = DetectionModule.training_step

    def broken(module: DetectionModule, batch: dict, index: int) -> Tensor:
        if module.global_step == 6:
            raise KeyboardInterrupt
        return step(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", broken)
        assert main(flags(out, "--name", "two", "--checkpoint-every", "3")) != 0
    assert main(flags(out, "--name", "two", "--checkpoint-every", "3")) == 0
    whole, resumed = (
        torch.load(out / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert (out / "one" / "metrics.csv").read_text() == (out / "two" / "metrics.csv").read_text()


def test_evaluate_repeats_the_scores_of_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 8, "val": 7, "test": 3})
    out = finished / "evaluation-val"
    assert evaluate.main([str(finished), "--device", "cpu"]) == 0
    written = json.loads((out / "evaluation.json").read_text())
    scores, protocol = written["scores"], written["protocol"]
    assert (protocol["ap_rule"], protocol["data"], protocol["split"], protocol["head"]) == (
        "coco",
        "digits",
        "val",
        "fcos",
    )
    of_run = json.loads((finished / "results.json").read_text())["scores"]["val"]
    for name, value in scores.items():
        assert value == pytest.approx(of_run[name], abs=1e-3), name
    results = json.loads((out / "detections.json").read_text())
    assert {row["image_id"] for row in results} <= set(range(7))
    assert {"category_id", "bbox", "score", "file_name"} <= results[0].keys()

    assert evaluate.main([str(finished), "--device", "cpu", "--ap-rule", "voc10", "--out", str(out)]) == 0
    by_voc = json.loads((out / "evaluation.json").read_text())
    assert by_voc["protocol"]["ap_rule"] == "voc10"
    assert by_voc["scores"]["map"] == by_voc["scores"]["map50"] != scores["map"]
    # The area under the curve and 101 points of it hardly differ.
    assert by_voc["scores"]["map50"] == pytest.approx(scores["map50"], abs=0.02)


def test_predict_writes_boxes_and_goes_on_where_it_was_stopped(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index, size in enumerate(((64, 64), (50, 90))):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    arguments = [str(finished), str(photos), "--out", str(out), "--device", "cpu", "--save", "labels", "overlay"]
    assert predict.main([*arguments, "coco", "csv"]) == 1
    assert "not predicted: " in capsys.readouterr().err
    assert Image.open(out / "0.overlay.jpg").size == (384, 384)
    coco = json.loads((out / "coco.json").read_text())
    assert [(one["width"], one["height"]) for one in coco["images"]] == [(64, 64), (90, 50)]
    rows = (out / "predictions.csv").read_text().splitlines()
    assert len(coco["annotations"]) == len(rows) - 1 > 0
    x, y, width, height = coco["annotations"][0]["bbox"]
    label, *numbers = map(float, (out / "0.txt").read_text().split()[:5])
    assert label == coco["annotations"][0]["category_id"] - 1
    assert numbers == pytest.approx([(x + width / 2) / 64, (y + height / 2) / 64, width / 64, height / 64], abs=1e-3)
    (photos / "broken.png").unlink()
    before = (out / "0.txt").stat().st_mtime_ns
    assert predict.main([*arguments, "coco", "csv"]) == 0
    assert (out / "0.txt").stat().st_mtime_ns == before
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 2


def test_an_exported_file_finds_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 8, "val": 7, "test": 3})
    # Tracing and reading the file take longest: the network is traced once, the file read by the command only.
    graph = export_network.trace(load_any(finished, "cpu"), "boxes")
    monkeypatch.setattr(export_network, "trace", lambda network, output: {"boxes": graph}[output])
    read, runs = export_network.runner, []
    monkeypatch.setattr(export_network, "runner", lambda form, path: runs.append(read(form, path)) or runs[-1])
    out = tmp_path / "net.pt2"
    command = [str(finished), "--to", "torch_export", "--out", str(out)]
    assert export.main(command) == 0
    said = capsys.readouterr().out
    assert "net.pt2: map 0." in said
    assert "on 7 val images, largest difference of a score, or of a box in widths of the image" in said
    (run,), network = runs, load_any(finished, "cpu")
    assert out.is_file()
    image = np.random.default_rng(0).integers(0, 255, (75, 101, 3), np.uint8)
    found = detect(network, image)
    head = network.module.network.head
    boxes, scores, labels = suppress(
        run(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))[0], (75, 101),
        threshold=head.score_threshold, overlap=head.overlap, most=head.most,
    )  # fmt: skip
    assert len(boxes) > 5
    assert labels.tolist() == found["labels"].tolist()
    assert scores == pytest.approx(found["scores"].numpy(), abs=1e-5)
    assert boxes == pytest.approx(found["boxes"].numpy(), abs=1e-3)

    text = (PROJECT / "experiments" / "README.md").read_text(encoding="utf-8")
    program = text.split("A detector's file gives all boxes")[1].split("```python\n")[1].split("```")[0]
    Image.fromarray(image).save(tmp_path / "street.png")
    program = program.replace("street.jpg", str(tmp_path / "street.png"))
    about = export_network.metadata_of(network, "boxes") | {"most": 0}
    session = SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={"graft": json.dumps(about)}),
        get_inputs=lambda: [SimpleNamespace(name="images")],
        run=lambda _, given: [run(np.ascontiguousarray(given["images"]))],
    )
    stand_in = SimpleNamespace(InferenceSession=lambda path: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    capsys.readouterr()
    exec(program, {})
    monkeypatch.delitem(sys.modules, "onnxruntime")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    best = sorted(printed, key=lambda row: -float(row[1]))[: len(labels)]
    assert [int(row[0]) for row in best] == labels.tolist()
    (tmp_path / "street.png").unlink()

    def damaged(form: str, path: Path) -> Callable:
        """Boxes one pixel to the right."""
        return lambda images: run(images) + np.array([1, 0, 1, 0, *[0] * 10], np.float32)

    monkeypatch.setattr(export_network, "runner", damaged)
    out.unlink()
    assert export.main(command) == 1
    assert "export.py: refused: map" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_demos_page_shows_boxes(finished: Path, tmp_path: Path) -> None:
    network = load_any(finished, "cpu")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 101, 3), np.uint8)).save(tmp_path / "a.png")
    answers = BoxAnswers(network, 1600)
    every = len(detect(network, network.read(tmp_path / "a.png"))["scores"])
    shown, table, line = answers(str(tmp_path / "a.png"), 0.0)
    assert (shown.size, line.split(",")[0]) == ((303, 225), f"{every} objects")
    assert table.count('class="track"') == min(every, 20)
    nothing, table, line = answers(str(tmp_path / "a.png"), 1.0)
    assert (table.count('class="track"'), line.split(",")[0]) == (0, "0 objects")
    assert (np.asarray(nothing) != np.asarray(shown)).any()
    assert answers(None, 0.5) == (None, "", "")


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        (evaluate.main, ["--flip"], "--flip is not supported for networks that detect"),
        (evaluate.main, ["--abstain", "0.5"], "--abstain is not supported"),
        (export.main, ["--int8"], "--int8 is not supported for networks that detect; leave it out"),
        (export.main, ["--output", "labels"], "--output labels is not supported for networks that detect"),
        (benchmark.main, [], "only evaluate.py, predict.py, export.py and demo.py support that"),
        (explain.main, ["--method", "occlusion"], "only evaluate.py, predict.py, export.py and demo.py support that"),
    ],
)
def test_what_is_not_supported_is_said_in_one_line(
    program: Callable, flag: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture
) -> None:
    assert program([str(finished), *flag]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_crowds_do_not_train() -> None:
    objects = objects_of([(0, 0, 2, 2), (1, 1, 5, 5)], [1, 0], [False, True]).tensors()
    alone = without_crowds(objects)
    assert alone["boxes"].tolist() == [[0, 0, 2, 2]]
    assert alone["labels"].tolist() == [1]
