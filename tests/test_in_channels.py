"""--in-channels: images of one, two, four and more bands, from the files to the pictures of the predictions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backbones import BACKBONES
from datamodules.augmentation import AUGMENTATIONS, RGB_ONLY, find_augmentation
from datamodules.bands import as_rgb, read_channels
from datamodules.errors import DataError
from datamodules.folders import Folders
from experiments.command_line.run_config import parse
from experiments.evaluate import main as evaluate
from experiments.explaining.drawing import heat_over, panel, tiles
from experiments.export import main as export
from experiments.inference.trained import load
from experiments.predict import main as predict
from experiments.run import main as run

FAST = ("--accelerator", "cpu", "--workers", "0", "--epochs", "10", "--batch-size", "2", "--image-size", "32")


def scene(i: int, bands: int, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Bands and mask: only the last band shows the square."""
    generator = np.random.default_rng(i)
    mask = np.zeros((36, 40), np.uint8)
    mask[4 + i : 20 + i, 8:28] = 1
    image = generator.integers(0, 60, (36, 40, bands))
    image[..., -1] += 180 * mask
    return (image * (40 if dtype == np.uint16 else 1)).astype(dtype), mask


def save_bands(path: Path, image: np.ndarray) -> None:
    if path.suffix == ".tif":
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
        return
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image, modes[image.shape[2]]).save(path)


def make(root: Path, bands: int, suffix: str = ".png", dtype: type = np.uint8, count: int = 8) -> Path:
    for split, first in (("train", 0), ("val", count)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(first, first + (count if split == "train" else 2)):
            image, mask = scene(i, bands, dtype)
            save_bands(root / split / "images" / f"{i}{suffix}", image)
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_every_band_of_a_png_arrives(bands: int, tmp_path: Path) -> None:
    image, _ = scene(0, bands)
    save_bands(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_channels(tmp_path / "a.png", bands), image)
    with pytest.raises(DataError, match=f"has {bands} band.*--in-channels is 7"):
        read_channels(tmp_path / "a.png", 7)


def test_16_bits_and_alpha_keep_their_order_and_levels(tmp_path: Path) -> None:
    image, _ = scene(0, 4, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(read_channels(tmp_path / "a.png", 4, white=10_200), np.round(image / 40))


@pytest.mark.parametrize("layout", ["interleaved", "planes", "pages"])
def test_a_tiff_of_seven_bands(layout: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    image, _ = scene(0, 7)
    path = tmp_path / "a.tif"
    if layout == "pages":
        tifffile.imwrite(path, image.transpose(2, 0, 1), photometric="minisblack")
    else:
        pixels = image if layout == "interleaved" else image.transpose(2, 0, 1)
        config = "contig" if layout == "interleaved" else "separate"
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig=config)
    np.testing.assert_array_equal(read_channels(path, 7), image)


def test_a_tiff_that_is_no_image_of_bands_is_named(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((5, 8, 8), np.float32), photometric="minisblack")
    with pytest.raises(DataError, match=r"a\.tif has levels of type float32; save it with 8 or 16 bits"):
        read_channels(path, 5)
    tifffile.imwrite(path, np.zeros((2, 3, 8, 8, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match=r"a\.tif has .*save height, width and bands only"):
        read_channels(path, 5)
    path.write_bytes(b"II*\0 is no TIFF file")
    with pytest.raises(DataError, match=r"a\.tif cannot be read .*replace the file or remove it"):
        read_channels(path, 5)


def test_without_the_flag_more_bands_are_refused_by_name(tmp_path: Path) -> None:
    save_bands(tmp_path / "a.tif", scene(0, 7)[0])
    with pytest.raises(DataError, match=r"7 bands.*--in-channels 7 reads all of them"):
        read_channels(tmp_path / "a.tif")


def test_mean_and_std_are_those_of_the_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Folders(
        "segmentation", data_dir=str(make(tmp_path / "d", 4)), image_size=(32, 32), batch_size=2, workers=0,
        in_channels=4, mean=None, std=None, cache="none",
    )  # fmt: skip
    data.setup()
    pixels = np.concatenate([scene(i, 4)[0].reshape(-1, 4) for i in range(8)]) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(0), atol=1e-6)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 4, 32, 32)
    assert "--in-channels 4: mean ± std of each band: " in capsys.readouterr().out
    assert data.preprocessing()["mean"] == list(data.mean)
    assert data._empty_batch(torch.device("cpu"))["image"].shape == (0, 4, 32, 32)


@pytest.mark.parametrize("bands", [1, 2, 6])
@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in RGB_ONLY])
def test_presets_take_any_number_of_bands(name: str, bands: int) -> None:
    image, mask = scene(0, bands)
    fill = [0.1 * band for band in range(bands)]
    if name == "unet_elastic" and bands > 4:
        with pytest.raises(DataError, match="unet_elastic takes at most 4 bands; with --in-channels 6 use deeplab or"):
            find_augmentation(name, (50, 30), fill)
        return
    for transform in find_augmentation(name, (50, 30), fill):
        out = transform(image=image, mask=mask)
        image, mask = out["image"], out["mask"]
    assert image.shape == (50, 30, bands)
    assert mask.shape == (50, 30)


@pytest.mark.parametrize("name", RGB_ONLY)
def test_presets_that_change_colours_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"--augmentation {name} changes colours.*--in-channels 4 use deeplab"):
        find_augmentation(name, (32, 32), [0.5] * 4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data", "digits"), "--in-channels is for --data folders"),
        (("--data", "folders", "--crf", "test"), "--crf test compares colours"),
    ],
)
def test_what_needs_rgb_is_refused(flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*flags, "--in-channels", "4"], "run.py")
    assert said in capsys.readouterr().err


def test_published_weights_say_what_becomes_of_the_rgb_filters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = BACKBONES["resnet18"]().state_dict()
    torch.save(state, tmp_path / "rgb.pth")
    five = BACKBONES["resnet18"](weights=str(tmp_path / "rgb.pth"), in_channels=5)
    assert "the RGB filters of conv1.weight are repeated in turn and scaled by 3/5 for 5 channels" in (
        capsys.readouterr().out
    )
    torch.testing.assert_close(five.conv1.weight[:, 3], state["conv1.weight"][:, 0] * 3 / 5)


def test_pictures_show_the_first_bands() -> None:
    image = np.arange(2 * 2 * 5, dtype=np.uint8).reshape(2, 2, 5)
    np.testing.assert_array_equal(as_rgb(image), image[..., :3])
    np.testing.assert_array_equal(as_rgb(image[..., :2]), image[..., [0, 0, 0]])
    for bands in (1, 5):
        assert panel(image[..., :bands], "a", least=1).size[0] == 2
        assert heat_over(image[..., :bands], np.ones((2, 2))).shape == (2, 2, 3)
        assert tiles([image[..., :bands]], 1, 2).shape == (2, 2, 3)


@pytest.mark.parametrize(("bands", "suffix", "dtype"), [(4, ".png", np.uint8), (6, ".tif", np.uint16)])
def test_a_run_learns_from_a_band_beyond_rgb_and_predicts(
    bands: int, suffix: str, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".tif":
        pytest.importorskip("tifffile")
    monkeypatch.chdir(tmp_path)
    make(Path("d"), bands, suffix, dtype)
    flags = ("--data", "folders", "--data-dir", "d", "--in-channels", str(bands), "--augmentation", "none", *FAST)
    assert run([*flags, "--backbone", "lenet5", "--head", "unet", "--lr", "0.01", "--out", "runs", "--name", "a"]) == 0
    scores = json.loads(Path("runs/a/results.json").read_text())["scores"]["val"]
    assert scores["miou"] > 0.9  # only the last band shows the object
    assert Path("runs/a/predictions.png").is_file()
    network = load("runs/a", "cpu")
    image = network.read(f"d/val/images/8{suffix}")
    assert image.shape == (36, 40, bands)
    result = network(image)
    assert (result.labels == scene(8, bands)[1]).mean() > 0.9
    assert result.image.shape == (36, 40, 3)
    with pytest.raises(ValueError, match=f"give an array .H, W, {bands}"):
        network(image[..., :3])
    assert predict(["runs/a", "d/val/images", "--out", "p", "--device", "cpu"]) == 0
    Image.new("RGB", (8, 8)).save("rgb.png")
    assert predict(["runs/a", "rgb.png", "--out", "q", "--device", "cpu"]) == 1
    assert evaluate(["runs/a", "--out", "e", "--device", "cpu"]) == 0
    assert json.loads(Path("e/evaluation.json").read_text())["scores"]["miou"] == pytest.approx(
        scores["miou"], abs=1e-6
    )
    assert export(["runs/a", "--to", "torch_export", "--out", "a.pt2"]) == 0
