"""predict.py killed and continued, pictures that change, that are too small, or that results would overwrite.

tests/predict_kill_trials.py kills it more often.
"""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.inference.inputs import Inputs
from experiments.predict import main as predict
from tests.predict_kill_trials import FRAMES, differences, files_below, make_film, make_pictures, make_run, trial, whole


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def test_killed_anywhere_it_goes_on_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    """The pictures have every kind of name that a file system accepts, and each gets files of its own."""
    pictures = make_pictures(tmp_path / "pictures", 30)
    make_film(pictures / "film.avi")
    seconds = whole(run, pictures, tmp_path)
    assert len(files_below(tmp_path / "whole")) == 3 * (30 + FRAMES) + 4
    chance = random.Random(0)
    for number in range(2):
        out = tmp_path / f"trial{number}"
        way = trial(run, pictures, out, seconds, chance)
        assert differences(out, tmp_path / "whole") == [], way


def test_a_changed_picture_has_one_row(run: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", 3)
    command = [str(run), str(pictures), "--out", str(tmp_path / "out"), "--save", "labels", "csv"]
    assert predict(command) == 0
    Image.fromarray(np.zeros((99, 40, 3), np.uint8)).save(pictures / "plain.png")
    assert predict(command) == 0
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        assert sorted(row["input"] for row in csv.DictReader(file)) == sorted(path.name for path in pictures.iterdir())
    assert Image.open(tmp_path / "out" / "plain.png").size == (40, 99)


def test_results_overwrite_no_picture(run: Path, tmp_path: Path, capsys) -> None:
    pictures = make_pictures(tmp_path / "pictures", 3)
    before = files_below(pictures)
    assert predict([str(run), str(pictures), "--out", str(pictures)]) == 2
    assert "would replace the input " in capsys.readouterr().err
    assert files_below(pictures) == before
    pattern = [str(run), str(pictures / "**" / "*.png"), "--out", str(pictures / "out")]
    assert predict(pattern) == 0
    whole = files_below(pictures / "out")
    assert predict(pattern) == 0
    assert files_below(pictures / "out") == whole


def test_no_two_inputs_share_their_results(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.png.jpg", "a.jpg.png.bmp", "b/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    stems = [one.stem.as_posix() for one in Inputs([str(tmp_path)])]
    assert sorted(stems) == sorted(set(stems))
    assert len(stems) == 5


def test_a_picture_that_is_too_small_is_listed_and_the_others_are_predicted(run: Path, tmp_path: Path, capsys) -> None:
    pictures = make_pictures(tmp_path / "pictures", 2)
    Image.fromarray(np.zeros((15, 40, 3), np.uint8)).save(pictures / "a.png")
    assert predict([str(run), str(pictures), "--out", str(tmp_path / "out"), "--save", "labels"]) == 1
    assert "not predicted: a.png: 40x15 pixels are too few: lenet5 needs sides of 16 or more" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
