"""predict.py on georeferenced rasters: where they lie, what has no data, windows, bands, memory."""

import json
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.size_rules import SizeRule
from experiments.inference.inputs import is_geotiff
from experiments.inference.protocol import Predictor, Protocol
from experiments.inference.trained import TrainedNetwork, load
from experiments.inference.windows import reach_of
from experiments.predict import main as predict
from tests.test_inference import network_of

rasterio = pytest.importorskip("rasterio", reason='no rasterio: pip install -e ".[test]"')
from rasterio.transform import from_origin  # noqa: E402

from experiments.inference.geotiff import Rasters, cuts  # noqa: E402

PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}


def write_raster(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """A GeoTIFF of pixels `(bands, H, W)`."""
    profile = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **PLACE | profile | options) as file:
        file.write(pixels)
    return path


def pixels_like(*shape: int, seed: int = 0, high: int = 255) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, high, shape).astype(np.uint8 if high < 256 else np.uint16)


def own_size(network: TrainedNetwork) -> TrainedNetwork:
    return replace(network, size_rule=SizeRule("own", (64, 64)))


def test_labels_lie_where_the_raster_lies(crf_run: Path, tmp_path: Path, capsys) -> None:
    pixels = pixels_like(3, 90, 130)
    pixels[:, 20:50, 60:130] = 0
    pixels[0, 0, 0] = 0  # one band alone is no pixel without data
    raster = write_raster(tmp_path / "A b [1].tif", pixels, nodata=0)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "plain.tif")
    out = tmp_path / "out"
    save = ["--save", "labels", "overlay", "probabilities", "csv", "coco"]
    assert predict([str(crf_run), str(raster), str(tmp_path / "plain.tif"), "--out", str(out), *save]) == 0
    printed = capsys.readouterr().out
    assert "GeoTIFFs: windows of 32 x 40 pixels" in printed
    assert "coco.json leaves them out" in printed
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["A b [1].tif", "A b [1].probabilities.tif", "A b [1].overlay.jpg", "plain.png", "plain.npy",
         "plain.overlay.jpg", "predictions.csv", "coco.json", "manifest.jsonl"]
    )  # fmt: skip
    with rasterio.open(out / "A b [1].tif") as made, rasterio.open(out / "A b [1].probabilities.tif") as scores:
        for file in (made, scores):
            assert file.crs.to_epsg() == 32633
            assert file.transform == PLACE["transform"]
            assert file.shape == (90, 130)
            assert json.loads(file.tags()["classes"]) == ["0", "1"]
        labels, found = made.read(1), scores.read()
        assert made.nodata == 255
        assert made.colormap(1)[1][:3] == tuple(load(crf_run, "cpu").colours[1])
        np.testing.assert_array_equal(made.dataset_mask() > 0, (pixels > 0).any(0))
    valid = (pixels > 0).any(0)
    np.testing.assert_array_equal(labels[valid], found.argmax(0)[valid])
    np.testing.assert_allclose(found.sum(0)[valid], 1, atol=1e-5)
    assert np.isnan(found[:, ~valid]).all()
    entry = json.loads((out / "manifest.jsonl").read_text().splitlines()[1])
    assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert entry["shares"]["1"] == pytest.approx(float((labels[valid] == 1).mean()), abs=1e-5)


def test_windows_equal_the_whole_raster_where_the_field_fits(tmp_path: Path) -> None:
    network = own_size(network_of("lenet5", "unet"))
    radius = reach_of(network.module.network).radius or 0
    side = 2 * radius + 96
    pixels = pixels_like(3, side + 75, side + 140)
    raster = write_raster(tmp_path / "a.tif", pixels)
    whole = Predictor(network, Protocol())(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    for overlap, equal in ((None, True), (4, False)):
        rasters = Rasters(Predictor(network, Protocol(window=(side, side), overlap=overlap)))
        assert ("not equal to predicting" in rasters.note) is not equal
        rasters.predict(raster, tmp_path / "out", ["probabilities"], 0.0)
        with rasterio.open(tmp_path / "out.probabilities.tif") as file:
            difference = np.abs(file.read() - whole).max()
        assert bool(difference <= 1e-5) is equal
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize(("length", "window", "margin", "grid"), [(1000, 128, 20, 32), (97, 96, 0, 32), (64, 96, 9, 8)])
def test_cuts_cover_an_axis_once(length: int, window: int, margin: int, grid: int) -> None:
    found = cuts(length, window, margin, grid)
    assert found[0].kept[0] == 0
    assert found[-1].kept[1] == length
    assert all(before.kept[1] == after.kept[0] for before, after in pairwise(found))
    for one in found:
        assert one.read[0] % grid == 0
        assert one.read[1] - one.read[0] >= min(length, window)
        assert one.read[0] == 0 or one.kept[0] - one.read[0] >= margin
        assert one.read[1] == length or one.read[1] - one.kept[1] >= margin
        assert one.read[1] - one.read[0] < window + grid
    with pytest.raises(ValueError, match="nothing left between margins"):
        cuts(1000, 64, 32, 32)


def test_bands(tmp_path: Path) -> None:
    network = own_size(network_of("lenet5", "unet"))
    rgb = pixels_like(3, 40, 50)
    many = np.concatenate([pixels_like(2, 40, 50, seed=1), rgb[::-1]])
    options = {"photometric": "minisblack"}
    paths = {
        "rgb": write_raster(tmp_path / "rgb.tif", rgb),
        "many": write_raster(tmp_path / "many.tif", many, **options),
        "deep": write_raster(tmp_path / "deep.tif", rgb.astype(np.uint16) * 257),
        "float": write_raster(tmp_path / "float.tif", rgb.astype(np.float32)),
    }

    def labels(name: str, bands: list[int] | None) -> np.ndarray:
        Rasters(Predictor(network, Protocol()), bands).predict(paths[name], tmp_path / f"out-{name}", ["labels"], 0.0)
        with rasterio.open(tmp_path / f"out-{name}.tif") as file:
            return file.read(1)

    np.testing.assert_array_equal(labels("many", [5, 4, 3]), labels("rgb", None))
    np.testing.assert_array_equal(labels("deep", None), labels("rgb", None))
    for name, bands, message in (
        ("many", None, "has 5 bands; say which are red, green and blue"),
        ("rgb", [1, 2, 4], "has 3 bands; there is no band 4"),
        ("float", None, "has float32 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            labels(name, bands)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match="--bands names 2 bands; the network takes 3"):
        labels("rgb", [1, 2])


def test_a_network_of_other_bands(tmp_path: Path) -> None:
    network = replace(own_size(network_of("lenet5", "unet", in_channels=4)), mean=(0.5,) * 4, std=(0.25,) * 4)
    pixels = pixels_like(4, 40, 50)
    raster = write_raster(tmp_path / "a.tif", pixels, photometric="minisblack")
    Rasters(Predictor(network, Protocol())).predict(raster, tmp_path / "out", ["probabilities", "overlay"], 0.0)
    with rasterio.open(tmp_path / "out.probabilities.tif") as file:
        np.testing.assert_allclose(
            file.read(), network.probabilities(np.ascontiguousarray(pixels.transpose(1, 2, 0))), atol=1e-5
        )
    with pytest.raises(ValueError, match="has 3 bands; say which are the 4 that the network takes"):
        Rasters(Predictor(network, Protocol())).predict(
            write_raster(tmp_path / "b.tif", pixels[:3]), tmp_path / "out", ["labels"], 0.0
        )


def test_a_broken_raster_is_listed_and_the_others_are_predicted(crf_run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_raster(folder / "a.tif", pixels_like(3, 200, 200))
    (folder / "a.tif").write_bytes((folder / "a.tif").read_bytes()[:60_000])
    write_raster(folder / "b.tif", pixels_like(3, 40, 40))
    assert predict([str(crf_run), str(folder), "--out", str(tmp_path / "out"), "--save", "labels"]) == 1
    assert "not predicted: a.tif:" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.tif", "manifest.jsonl"]


def test_the_header_tells_a_geotiff(tmp_path: Path) -> None:
    assert is_geotiff(write_raster(tmp_path / "a.tif", pixels_like(3, 8, 8)))
    assert is_geotiff(write_raster(tmp_path / "big.TIFF", pixels_like(3, 8, 8), bigtiff="yes"))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.tif")
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    assert not is_geotiff(tmp_path / "plain.tif")
    assert not is_geotiff(tmp_path / "broken.tif")
    assert not is_geotiff(tmp_path / "missing.tif")


def test_without_rasterio_it_says_what_is_lost(crf_run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import importlib.util

    raster = write_raster(tmp_path / "a.tif", pixels_like(3, 40, 40))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rasterio" else real(name))
    assert predict([str(crf_run), str(raster), "--out", str(tmp_path / "out"), "--save", "labels"]) == 0
    assert "a.tif is georeferenced, its results are not" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.png").is_file()
    with pytest.raises(SystemExit):
        predict([str(crf_run), str(raster), "--out", str(tmp_path / "out"), "--bands", "1", "2", "3"])


def test_memory_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    """A raster of 27 MB, whose probabilities are 108 MB, needs less than 12 MB of arrays; GDAL's own are limited."""

    class Cheap:
        def __call__(self, image: np.ndarray) -> np.ndarray:
            return np.full((3, *image.shape[:2]), 1 / 3, np.float32)

    profile = {"count": 3, "height": 3000, "width": 3000, "dtype": "uint8", "tiled": True}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **PLACE | profile):
        pass
    rasters = Rasters(Predictor(own_size(network_of("lenet5", "unet")), Protocol()))
    rasters.predict_window = Cheap()  # type: ignore[assignment]
    tracemalloc.start()
    try:
        rasters.predict(tmp_path / "a.tif", tmp_path / "out", ["labels", "probabilities"], 0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6, peak
