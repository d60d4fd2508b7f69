"""The pictures a run leaves for comparing it: what they show, and how they are found again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DATAMODULES
from experiments.run_files.read_run import read_pictures, read_run
from experiments.training.picture_table import GAP, TALLEST, WIDTH, picture_table
from experiments.training.predictions import LONGEST_SIDE, samples, samples_by_index, smaller, write_predictions
from lightning_modules.classification import ClassificationModule


def test_a_run_leaves_its_predictions_singly(crf_run: Path) -> None:
    run = read_run(crf_run)
    assert [picture.index for picture in run.pictures] == [0, 1, 2, 3, 4]
    for picture in run.pictures:
        assert isinstance(picture.truth, Path)
        assert isinstance(picture.prediction, Path)
        truth = Image.open(picture.truth)
        assert Image.open(picture.image).size == truth.size == Image.open(picture.prediction).size == (40, 32)
        colour = tuple(bytes.fromhex(run.colours[run.protocol["classes"][1]].removeprefix("#")))
        assert truth.convert("RGB").getpixel((18, 15)) == colour
        labels = np.asarray(truth)  # with a palette, the values are the classes
        assert set(np.unique(labels)) == {0, 1}
        assert labels[6 + picture.index : 24, 8 : 24 + picture.index].all()
        assert (np.asarray(Image.open(picture.image))[labels == 1] >= 120).all()


def test_classifications_are_left_by_name(tmp_path: Path) -> None:
    data = DATAMODULES["digits"]("classification", batch_size=4, workers=0)
    data.setup()
    module = ClassificationModule("lenet5", "classifier", data.class_names)
    write_predictions(samples_by_index(module, data), data, tmp_path / "predictions.png")
    pictures, colours = read_pictures(tmp_path / "predictions" / "index.json")
    for picture, (image, truth, prediction) in zip(pictures, samples(module, data), strict=True):
        assert np.array_equal(np.asarray(Image.open(picture.image)), image)
        assert (picture.truth, picture.prediction) == (data.class_names[truth], data.class_names[prediction])
    assert list(colours) == list(data.class_names)


@pytest.mark.parametrize(
    ("shape", "size"), [((1024, 2048, 3), (192, 384, 3)), ((60, 40), (60, 40)), ((1, 9000), (1, 384))]
)
def test_large_pictures_are_made_smaller(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert smaller(np.zeros(shape, np.uint8), 0).shape == size
    assert max(size[:2]) <= LONGEST_SIDE


def plain(height: int, width: int, level: int) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_pictures_of_any_size_stand_in_columns_beside_the_legend() -> None:
    rows = [[plain(8, 8, level) for level in (10, 20, 30)], [plain(900, 300, level) for level in (40, 50, 60)]]
    titles = [("image", (0, 0, 0)), ("a title of two lines that is too long", (9, 99, 9)), ("Ωмега", (0, 0, 0))]
    legend = [(f"class {i}", (200, 0, i)) for i in range(70)]
    picture = np.asarray(picture_table(rows, titles, legend))
    assert picture.shape[0] == picture_table(rows, titles).height > WIDTH + TALLEST + 3 * GAP
    centres = [GAP + WIDTH // 2 + column * (WIDTH + GAP) for column in range(3)]
    assert [picture[WIDTH // 2, x, 0] for x in centres] == [10, 20, 30]
    assert [picture[WIDTH + TALLEST // 2, x, 0] for x in centres] == [40, 50, 60]
    shown = {tuple(colour) for colour in picture[:, 3 * (WIDTH + GAP) :].reshape(-1, 3).tolist()}
    assert {colour for _, colour in legend} <= shown  # in two columns, as one has room for 45 lines
    assert (picture == (9, 99, 9)).all(-1).any()
