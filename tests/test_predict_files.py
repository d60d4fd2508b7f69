"""predict.py on files as people have them: odd names, folders within folders, lists, films, COCO's own reader."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from experiments.inference.inputs import Inputs
from experiments.inference.manifest import Manifest
from experiments.predict import main as predict


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 44, 3), np.uint8)).save(path)
    return path


def names(inputs: Inputs) -> list[str]:
    return [one.name for one in inputs]


ODD = [
    "a b.png",
    "ü [1].png",
    "line\nbreak.png",
    "u\u2028x\x85.png",
    "-dash.png",
    "q'\"uote.png",
    "x/same.png",
    "y/same.png",
]


def test_odd_names_go_on_to_the_same_bytes(crf_run: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(ODD):
        picture(tmp_path / "in" / name, seed)
    raw = os.fsencode(tmp_path / "in") + b"/raw\xff.png"  # a name that is no UTF-8
    shutil.copy(os.fsencode(tmp_path / "in" / "a b.png"), raw)
    command = [str(crf_run), str(tmp_path / "in"), "--save", "labels", "csv", "coco", "--out"]
    assert predict([*command, str(tmp_path / "whole")]) == 0
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*")}
    assert {Path(name) for name in ODD} < files.keys()
    assert Path(os.fsdecode(b"raw\xff.png")) in files
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    manifest = tmp_path / "again" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(manifest.read_bytes().split(b"\n")[0:1]) + b"\n" + b"".join(lines[1:-2]))
    assert predict([*command, str(tmp_path / "again")]) == 0
    again = {path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*.*")}
    assert again == files
    assert len(json.loads((tmp_path / "whole" / "coco.json").read_bytes().decode(errors="replace"))["images"]) == 9


def test_results_and_hidden_folders_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a.png", ".thumbnails/a.png", "predictions/a.png", "deep/b.png"):
        picture(tmp_path / name)
    assert names(Inputs([str(tmp_path)], out=tmp_path / "predictions")) == ["a.png", "deep/b.png"]
    assert names(Inputs([str(tmp_path / "deep")], out=tmp_path)) == ["b.png"]
    with pytest.raises(ValueError, match="would replace the input"):
        Inputs([str(tmp_path / "predictions")], out=tmp_path / "predictions")


def test_a_result_never_replaces_an_input(crf_run: Path, tmp_path: Path, capsys) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "sub" / "a.png")
    before = first.read_bytes(), second.read_bytes()
    for inputs, out in (([first], tmp_path), ([first, second], tmp_path / "sub"), ([tmp_path], tmp_path)):
        assert predict([str(crf_run), *map(str, inputs), "--out", str(out)]) == 2
        assert "would replace the input" in capsys.readouterr().err
    assert (first.read_bytes(), second.read_bytes()) == before
    with pytest.raises(ValueError, match="would replace the input"):
        Inputs([str(tmp_path / "sub"), str(first)], out=tmp_path / "sub" / "..")


def test_results_stay_below_their_folder(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "here" / "b.png")
    monkeypatch.chdir(tmp_path / "here")
    inputs = Inputs(["../photos/a.png", "b.png"], out=Path("out"))
    assert names(inputs) == ["photos/a.png", "here/b.png"]
    assert [str(one.stem) for one in inputs] == ["photos/a", "here/b"]
    with pytest.raises(ValueError, match="would replace the input"):
        Inputs(["../photos/a.png"], out=Path("../photos"))


def test_a_second_run_into_a_folder_of_the_inputs_adds_nothing(crf_run: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    command = [str(crf_run), str(tmp_path / "in"), "--out", str(tmp_path / "in" / "out")]
    for _ in range(2):
        assert predict(command) == 0
    assert len((tmp_path / "in" / "out" / "manifest.jsonl").read_text().splitlines()) == 2


def film(path: Path, frames: int = 5) -> Path:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for level in range(frames):
        video.write(np.full((32, 48, 3), 40 * level, np.uint8))
    video.release()
    return path


def test_a_list_names_pictures_and_videos(tmp_path: Path) -> None:
    picture(tmp_path / "a b.png")
    film(tmp_path / "film.avi")
    (tmp_path / "list.txt").write_text("\ufeffa b.png\r\n\nfilm.avi\n", encoding="utf-8")
    inputs = Inputs([str(tmp_path / "list.txt")], every=2)
    assert names(inputs) == ["a b.png", "film.avi#0", "film.avi#2", "film.avi#4"]
    assert len(inputs) == 4
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no list of files: it is not text in UTF-8"):
        Inputs([str(tmp_path / "list.txt")])


def test_a_film_of_the_labels(crf_run: Path, tmp_path: Path, capsys) -> None:
    command = [str(crf_run), str(film(tmp_path / "film.avi")), "--out", str(tmp_path / "out"), "--every", "2"]
    assert predict([*command, "--save", "labels", "film"]) == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "film.overlay.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)  # every second frame of ten in a second
    shapes = []
    while True:
        more, frame = video.read()
        if not more:
            break
        shapes.append(frame.shape)
    assert len(shapes) == 3
    assert shapes[0][0] > 32  # with its legend
    assert not list((tmp_path / "out").glob("*.part*"))
    with pytest.raises(SystemExit):
        predict([*command, "--save", "film"])
    assert "write --save labels film" in capsys.readouterr().err


def test_cocos_own_reader_gives_the_label_maps(crf_run: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason='no pycocotools: pip install -e ".[test]"')
    for seed in range(3):
        picture(tmp_path / "in" / f"{seed}.png", seed)
    assert (
        predict([str(crf_run), str(tmp_path / "in"), "--save", "labels", "coco", "--out", str(tmp_path / "out")]) == 0
    )
    data = coco.COCO(str(tmp_path / "out" / "coco.json"))
    assert [one["name"] for one in data.loadCats(data.getCatIds())] == ["0", "1"]
    for number in data.getImgIds():
        (image,) = data.loadImgs(number)
        found = np.full((image["height"], image["width"]), -1)
        for annotation in data.loadAnns(data.getAnnIds(number)):
            mask = data.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            found[mask > 0] = annotation["category_id"] - 1
        labels = np.array(Image.open(tmp_path / "out" / image["file_name"]))
        np.testing.assert_array_equal(found, labels)


def test_a_manifest_keeps_names_with_other_line_ends(tmp_path: Path) -> None:
    first = Manifest(tmp_path, {})
    for name in ODD:
        first.add({"input": name, "stamp": "1"})
    first.close()
    second = Manifest(tmp_path, {})
    second.close()
    assert list(second.finished) == ODD == [entry["input"] for entry in second.entries()]
