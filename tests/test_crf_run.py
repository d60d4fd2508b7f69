"""`run.py --crf`: scores without and with the CRF, the CRF learned with the network, and every mistake in one line."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from experiments.benchmarks import crf_pictures
from experiments.command_line.crf_settings import read_crf_settings
from experiments.run import main
from heads.crf import PRESETS, DenseCRF
from lightning_modules.classification import ClassificationModule
from lightning_modules.metrics import SegmentationScores
from lightning_modules.refinement import CRFRefinement
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import crf_arguments

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("no_pictures")
DEFAULT = PRESETS["deeplabv2_resnet101"]
SETTINGS = dataclasses.asdict(DEFAULT)


def loaded(run: Path) -> SegmentationModule:
    return SegmentationModule.load_from_checkpoint(
        run / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu"
    ).eval()


def test_scores_with_the_crf_are_those_of_the_crf_on_the_files_pixels(crf_run: Path, crf_folder: Path) -> None:
    module, crf = loaded(crf_run), DenseCRF(DEFAULT)
    assert module.crf is None
    plain, refined = (SegmentationScores(2, 255) for _ in range(2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for path in sorted((crf_folder / "val" / "images").iterdir()):
        image = torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).movedim(-1, 0).float()
        truth = torch.from_numpy(cv2.imread(str(crf_folder / "val" / "masks" / path.name), -1)).long()
        with torch.inference_mode():
            logits = module(((image / 255 - mean) / std)[None])
            plain.update(logits, truth[None])
            refined.update(crf(logits, image[None]), truth[None])
    results = json.loads((crf_run / "results.json").read_text())
    assert set(results["scores"]) == {"val", "val_crf"}
    assert results["crf"] == {"mode": "test", **SETTINGS}
    # A pixel or two may lie so near a tie that the order of additions decides.
    for split, scores in (("val", plain), ("val_crf", refined)):
        assert results["scores"][split]["miou"] == pytest.approx(scores.scores(("0", "1"))["miou"].item(), abs=2e-3)
    assert abs(results["scores"]["val"]["miou"] - results["scores"]["val_crf"]["miou"]) > 4e-3


def test_crf_at_test_time_changes_nothing_about_training(crf_run: Path, crf_folder: Path, tmp_path: Path) -> None:
    assert main(crf_arguments(crf_folder, tmp_path, "--name", "plain")) == 0
    assert (tmp_path / "plain" / "metrics.csv").read_text() == (crf_run / "metrics.csv").read_text()
    without, with_crf = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "plain", crf_run))
    assert without["crf"] is None
    assert without["scores"] == {"val": with_crf["scores"]["val"]}


def test_a_learned_crf_is_in_the_checkpoint(crf_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("w1: 6\nsigma_beta: 20\n")
    more = ["--crf", "train", "--crf-settings", str(file), "--lr", "0.01", "--warmup", "0", "--schedule", "constant"]
    assert main(crf_arguments(crf_folder, tmp_path, "--name", "learned", *more)) == 0
    module = loaded(tmp_path / "learned")
    assert module.crf.settings == dataclasses.replace(DEFAULT, w1=6, sigma_beta=20)
    learned = dict(module.crf.crf.named_parameters())
    assert learned["weights"].tolist() != [6, 3]
    assert learned["compatibility"].detach().diagonal().abs().max() > 0, "the compatibility stayed Potts"
    results = json.loads((tmp_path / "learned" / "results.json").read_text())
    assert set(results["scores"]) == {"val"}
    rows = list(csv.DictReader((tmp_path / "learned" / "metrics.csv").open()))
    best = max(float(row["val/miou"]) for row in rows)
    assert results["scores"]["val"]["miou"] == pytest.approx(best, abs=1e-7)
    assert {row["lr"] for row in rows} == {"0.01"}


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_the_crf_sees_the_pixels_and_gives_logits(mean: tuple[float, ...]) -> None:
    std = (0.25, 0.2, 0.3)
    pixels = torch.randint(0, 256, (2, 3, 9, 12), dtype=torch.uint8)
    logits = torch.randn(2, 4, 9, 12)
    images = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    settings = PRESETS["pydensecrf"]
    refinement = CRFRefinement(settings, 4, mean, std, trainable=True)
    for training, iterations in ((True, 5), (False, 10)):
        expected = DenseCRF(dataclasses.replace(settings, iterations=iterations))(logits, pixels)
        said = refinement.train(training)(logits, images).softmax(1)
        assert (said - expected).abs().max() < 1e-4
    other = DenseCRF(settings)(logits, pixels // 2)
    assert (other - expected).abs().max() > 1e-3, "this case would not notice a wrong scale of pixels"
    short = CRFRefinement(dataclasses.replace(settings, iterations=2), 4, mean, std)
    expected = DenseCRF(dataclasses.replace(settings, iterations=2))(logits, pixels)
    assert torch.allclose(short(logits, images).softmax(1), expected, atol=1e-5)


def test_gradients_pass_through_the_crf_to_the_network() -> None:
    module = SegmentationModule("mobilenet_v3_small", "lraspp", ("a", "b", "c"), crf=SETTINGS)
    batch = {"image": torch.randn(2, 3, 32, 32), "target": torch.randint(0, 3, (2, 32, 32))}
    module.training_step(batch, 0).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all(), name


MISTAKES = {
    "--crf maybe": "--crf: maybe is not one of none, test, train",
    "--crf-settings pydensecrf": "--crf-settings does nothing with --crf none; add --crf test or --crf train",
    "--crf test --crf-settings deeplabv2": "no preset and no file 'deeplabv2'; nearest presets: deeplabv1, deeplabv2_",
    "--crf test --crf-settings nowhere.yaml": "--crf-settings nowhere.yaml: no such file",
    "--crf test --crf-settings key.yaml": "key.yaml: no setting 'sigma_alfa'; nearest: sigma_alpha",
    "--crf test --crf-settings word.yaml": "word.yaml: w1 is much, not a number",
    "--crf test --crf-settings list.yaml": "list.yaml: write a setting on each line, such as w1: 4; there are w1",
    '--crf test --crf-settings {"iteratons":3}': "{\"iteratons\":3}: no setting 'iteratons'; nearest: iterations",
    "--crf test --crf-settings {w1": "{w1: not a YAML file",
    "--crf test --crf-settings broken.yaml": "broken.yaml: not a YAML file",
}
FILES = {
    "key.yaml": "w1: 4\nsigma_alfa: 3\n",
    "word.yaml": "w1: much\n",
    "list.yaml": "- 4\n- 3\n",
    "broken.yaml": "w1: [4\n",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_usage_errors_are_one_line(arguments: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert MISTAKES[arguments] in error
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_usage_errors_come_without_importing_torch() -> None:
    code = "import sys, experiments.run as run\ntry:\n run.main('--crf test --crf-settings x'.split())\n"
    code += "except SystemExit: pass\nassert not {'torch', 'lightning'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_more_mistakes_leave_nothing(crf_folder: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "sigma.yaml"
    file.write_text("sigma_alpha: -1\n")
    for more, message in (
        (["--crf", "test", "--head", "classifier"], "--crf test refines segmentations; classifier is a classification"),
        (["--crf", "train", "--crf-settings", str(file)], "sigma.yaml: sigma_alpha is -1"),
    ):
        assert main(crf_arguments(crf_folder, tmp_path / "runs", *more)) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
    assert not (tmp_path / "runs").exists()


def test_a_classification_module_refuses_a_crf() -> None:
    with pytest.raises(ValueError, match="a CRF refines segmentations; classifier is a classification head"):
        ClassificationModule("lenet5", "classifier", ("a", "b"), crf=SETTINGS)


def test_settings_files_may_say_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text("w1: 5\nnormalization: after\ntuned_on: {images: 3}\ntried: [{w1: 5}]\n")
    assert read_crf_settings(str(file)) == dataclasses.replace(DEFAULT, w1=5, normalization="after")
    assert read_crf_settings("pydensecrf") == PRESETS["pydensecrf"]
    assert read_crf_settings(None) == DEFAULT
    assert read_crf_settings("{w1: 5, iterations: 3}") == dataclasses.replace(DEFAULT, w1=5, iterations=3)


def test_pictures_show_annotations_completed_along_the_edges(tmp_path: Path, capsys) -> None:
    image = np.full((24, 36, 3), 40, np.uint8)
    image[:, 15:] = 200
    truth = np.full((24, 36, 3), (0, 0, 90), np.uint8)
    truth[:, 15:] = (0, 90, 0)
    annotation = truth.copy()
    annotation[:, 8:28] = 0  # unknown
    assert np.array_equal(crf_pictures.refine(image, annotation), truth)
    for name, picture in (("im1", image), ("anno1", annotation), ("out1", truth), ("im2", image), ("anno2", truth)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[..., ::-1])
    crf_pictures.main([str(tmp_path), "--out", str(tmp_path / "all.png")])
    assert "100.00% of the pixels are the same" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "all.png")).shape[1] == crf_pictures.WIDTH
    (tmp_path / "anno2.png").write_text("no picture")
    with pytest.raises(SystemExit, match="anno2.png is no picture"):
        crf_pictures.main([str(tmp_path), "--out", str(tmp_path / "all.png")])
