"""What people do wrong with a trained network, and what goes wrong with a machine: one line, and nothing is lost."""

import errno
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from experiments.benchmark import main as benchmark
from experiments.demo import main as demo
from experiments.evaluate import main as evaluate
from experiments.explain import main as explain
from experiments.explaining.drawing import LARGEST, enlarged
from experiments.export import main as export
from experiments.inference.evaluate_all import evaluate as evaluate_all
from experiments.inference.outputs import LONGEST_JPEG
from experiments.inference.protocol import Predictor, Protocol
from experiments.inference.trained import TrainedNetwork, load
from experiments.predict import main as predict
from experiments.share import main as share
from lightning_modules.classification import ClassificationModule
from tests.conftest import randomise
from tests.predict_kill_trials import make_run

PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "benchmark": benchmark, "evaluate": evaluate, "explain": explain, "export": export, "predict": predict,
    "share": share,
}  # fmt: skip
KINDS = ("CMYK.jpg", "RGBA.png", "LA.png", "P.png", "1.png", "I;16.png", "L.jpg", "RGB.tif")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation network that takes pictures at their own size, of 16 pixels or more."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    (folder / "results.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def classifier(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    shutil.copytree(run, folder)
    file = folder / "checkpoints" / "best.ckpt"
    preprocessing = torch.load(file, weights_only=True)["hyper_parameters"]["preprocessing"] | {
        "size_rule": "stretch", "size": [32, 32]
    }  # fmt: skip
    module = randomise(ClassificationModule("lenet5", "classifier", ("a", "b", "c"), preprocessing=preprocessing))
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state | {"pytorch-lightning_version": "2.0.0"}, file)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8)).save(
            tmp_path / "photos" / name
        )
    return tmp_path / "photos"


def said(capsys: pytest.CaptureFixture, program: Callable[[list[str]], int], *arguments: object) -> tuple[int, str]:
    """The exit code and what was written to standard error."""
    capsys.readouterr()
    try:
        code = program([str(one) for one in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().err


def edited(run: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run whose checkpoint has been changed."""
    shutil.copytree(run, folder)
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    change(state)
    torch.save(state, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_place_that_cannot_hold_results_is_refused_at_once(name: str, run: Path, photos: Path, capsys) -> None:
    inputs = [photos] if name in ("explain", "predict") else []
    for out in (photos / "a.jpg", photos / "a.jpg" / "deeper"):
        file = out / "x.onnx" if name == "export" else out
        code, error = said(capsys, PROGRAMS[name], run, *inputs, "--out", file)
        assert (code, error.count("\n")) == (2, 1), error
        assert "--out" in error


def test_an_export_is_named_as_its_format_is(run: Path, tmp_path: Path, capsys) -> None:
    for name in ("x.pt2", "x"):
        code, error = said(capsys, export, run, "--to", "onnx", "--out", tmp_path / name)
        assert code == 2
        assert "name a file that ends in .onnx, as --to onnx writes" in error


def test_a_full_disk_is_one_line(run: Path, photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, error = said(capsys, predict, run, photos, "--out", tmp_path / "out", "--save", "labels")
    assert code == 1
    assert error.splitlines()[-1].endswith(
        "a.png.part: No space left on device; free some space; the same command goes on"
    )
    assert "Traceback" not in error
    monkeypatch.undo()
    assert predict([str(run), str(photos), "--out", str(tmp_path / "out"), "--save", "labels"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "manifest.jsonl"}


def test_results_among_the_pictures_are_refused(run: Path, photos: Path, capsys) -> None:
    """They would be predicted the next time."""
    before = set(photos.iterdir())
    code, error = said(capsys, predict, run, photos, "--out", photos)
    assert (code, "whose results would be taken for pictures the next time" in error) == (2, True)
    code, error = said(capsys, predict, run, photos / "*.jpg", "--out", photos)
    assert (code, "holds all files that match" in error) == (2, True)
    assert set(photos.iterdir()) == before


def test_explanations_are_not_explained(classifier: Path, photos: Path) -> None:
    command = [str(classifier), str(photos), "--method", "gradcam", "--out", str(photos / "explanations")]
    for _ in range(2):
        assert explain(command) == 0
    assert len(list((photos / "explanations").rglob("*.png"))) == 2
    Image.new("RGB", (40, 40)).save(photos / "c.png")
    assert explain([str(classifier), str(photos / "c.png"), "--out", str(photos)]) == 0, "nothing would be replaced"
    assert (photos / "c.gradcam.png").is_file()


def test_a_manifest_is_read_strictly_and_written_by_one(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    command = [run, photos, "--out", tmp_path / "out", "--save", "labels"]
    assert said(capsys, predict, *command)[0] == 0
    manifest = tmp_path / "out" / "manifest.jsonl"
    with manifest.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, error = said(capsys, predict, *command)
        assert (code, "another process is predicting into it; wait, or give another" in error) == (2, True)
    assert said(capsys, predict, *command) == (0, "")
    for content in ("x\n", "[]\n", manifest.read_text() + '{"input": 3}\n'):
        manifest.write_text(content)
        code, error = said(capsys, predict, *command)
        assert (code, "is damaged, or no manifest of predict.py" in error) == (2, True)
        assert manifest.read_text() == content


def test_too_little_memory_for_a_picture_costs_that_picture(
    run: Path, photos: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TrainedNetwork.logits

    def logits(network: TrainedNetwork, image: np.ndarray) -> torch.Tensor:
        if image.shape[1] > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes")
        return whole(network, image)

    monkeypatch.setattr(TrainedNetwork, "logits", logits)
    Image.new("RGB", (120, 40)).save(photos / "large.png")
    code, error = said(capsys, predict, run, photos, "--out", tmp_path / "out")
    assert code == 1
    assert "not predicted: large.png: 120x40 pixels need more memory than there is; cut them by --window" in error
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_pictures_of_every_kind_and_size(run: Path, classifier: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in KINDS:
        mode = Path(name).stem
        pixels = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
        deep = Image.fromarray(pixels.astype(np.uint16) * 257)
        (deep if mode == "I;16" else Image.fromarray(pixels).convert(mode)).save(photos / name)
    Image.new("RGB", (LONGEST_JPEG + 100, 16), "white").save(photos / "wide.png")
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    code, error = said(capsys, predict, run, photos, "--out", tmp_path / "out")
    assert (code, error.count("not predicted")) == (1, 1)
    assert "not predicted: dot.png: 1x1 pixels are too few: lenet5 needs sides of 16 or more" in error
    assert len(list((tmp_path / "out").glob("*.png"))) == len(KINDS) + 1
    with Image.open(tmp_path / "out" / "wide.overlay.jpg") as overlay:
        assert overlay.width == LONGEST_JPEG
    assert said(capsys, predict, classifier, photos, "--out", tmp_path / "classes")[0] == 0
    code, error = said(capsys, explain, run, photos / "dot.png", photos / "RGB.tif", "--out", tmp_path / "why")
    assert (code, "not explained: dot.png: 1x1 pixels are too few" in error) == (1, True)


def test_panels_of_any_shape_fit() -> None:
    for size in ((1, 70_000), (70_000, 1), (10, 2_000), (1, 1), (300, 300), (2_000, 900)):
        drawn = enlarged(np.zeros((*size, 3), np.uint8))
        assert max(drawn.shape[:2]) <= LARGEST
        assert min(drawn.shape[:2]) >= 1


def test_a_video_without_a_frame_is_named(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    video = cv2.VideoWriter(str(photos / "none.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    video.release()
    (photos / "text.mp4").write_text("no video")
    code, error = said(capsys, predict, run, photos, "--out", tmp_path / "out", "--save", "labels")
    assert code == 1
    assert error.count("it cannot be opened as a video, or holds no frame") == 2


def test_another_versions_checkpoint_is_one_line(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    for number, change in enumerate(
        (
            lambda state: state["state_dict"].popitem(),
            lambda state: state["state_dict"].update(more=torch.zeros(1)),
            lambda state: state["hyper_parameters"].update(backbone="lenet6"),
            lambda state: state["hyper_parameters"].update(backbone_options={"unknown": 1}),
            lambda state: state["hyper_parameters"].pop("class_names"),
        )
    ):
        other = edited(run, tmp_path / str(number), change)
        code, error = said(capsys, predict, other, photos, "--out", tmp_path / "out")
        assert (code, error.count("\n")) == (2, 1), error
    damaged = edited(run, tmp_path / "damaged", lambda state: state["hyper_parameters"].pop("preprocessing"))
    (damaged / "config.yaml").write_text("a: [")
    code, error = said(capsys, predict, damaged, photos, "--out", tmp_path / "out")
    assert (code, "config.yaml is damaged" in error) == (2, True)
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        (damaged / "checkpoints" / "best.ckpt").write_bytes(content)
        code, error = said(capsys, predict, damaged, photos, "--out", tmp_path / "out")
        assert (code, "cannot be loaded: it is damaged" in error) == (2, True)


def test_what_does_not_fit_the_task_is_refused(
    run: Path, classifier: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    out = ("--out", tmp_path / "out")
    for program, arguments, message in (
        (predict, (classifier, photos, "--save", "coco"), "--save coco is for segmentation networks"),
        (predict, (classifier, photos, "--save", "labels"), "--save labels is for segmentation networks"),
        (predict, (classifier, photos, "--window", "64"), "--window and --crf are for segmentation networks"),
        (predict, (run, photos, "--window", "4"), "--window 4: with an overlap of 0 pixels, this network needs"),
        (predict, (run, photos, "--window", "64", "--overlap", "64"), "--window 64: with an overlap of 64 pixels"),
        (predict, (run, photos, "--device", "cuda:9"), "--device cuda:9: PyTorch cannot use it here"),
        (explain, (run, photos, "--device", "nonsense"), "--device nonsense: PyTorch cannot use it here"),
        (predict, (photos, run), "photos has no checkpoints/best.ckpt"),
        (predict, (run, tmp_path / "nothing"), "no such file or folder"),
    ):  # fmt: skip
        code, error = said(capsys, program, *arguments, *out)
        assert (code, error.count("\n")) == (2, 1), error
        assert message in error
    assert not (tmp_path / "out").exists()
    code, error = said(capsys, demo, run, "--device", "nonsense")
    assert (code, error.count("\n")) == (2, 1)


def test_a_picture_that_cannot_be_scored_is_named_and_the_others_count(run: Path) -> None:
    small, large = np.zeros((8, 8, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)
    source = [(one, np.zeros(one.shape[:2], np.uint8), name) for one, name in ((small, "small"), (large, "large"))]
    data = SimpleNamespace(splits=["val"], val=SimpleNamespace(source=source), num_classes=3, ignore_index=255)
    predictor = Predictor(load(run, "cpu"), Protocol())
    (found, other), _ = evaluate_all([predictor, predictor], data, "val")  # type: ignore[arg-type]
    assert found.names == other.names == ["large"]
    assert found.skipped[0].startswith("small: 8x8 pixels are too few")
