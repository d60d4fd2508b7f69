"""Labels of masks are compared over the whole data set before training: nonsense is refused, the doubtful is said."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules import checking
from datamodules.class_table import read_classes
from datamodules.decoding import read_image
from datamodules.errors import DataError
from datamodules.folders import Folders
from tests.fake_data import photo, save, two_labels

Mask = Callable[[int], np.ndarray]


def make(root: Path, mask: Mask, *, count: int = 10, suffix: str = ".png", classes: str = "") -> Path:
    """`count` images without a split, with the masks that `mask` returns for their numbers."""
    for index in range(count):
        save(root / "images" / f"{index:02d}.png", photo(index))
        save(root / "masks" / f"{index:02d}{suffix}", mask(index))
    if classes:
        (root / "classes.csv").write_text(classes)
    return root


def load(root: Path, **options: object) -> Folders:
    data = Folders("segmentation", data_dir=str(root), **{"image_size": (32, 32)} | options)
    data.loaded = data.sources()
    return data


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(root)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def disc(low: int, high: int, side: int = 36) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.where((rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 3) ** 2, high, low).astype(np.uint8)


# Without meaning


def test_0_and_255_with_names_of_classes(tmp_path: Path) -> None:
    make(tmp_path, lambda _: disc(0, 255))
    (tmp_path / "classes.txt").write_text("background\ncell\n")
    said = refusal(tmp_path)
    assert "hold the labels 0 and 255, of which 255 is ignored: no pixel is cell of" in said
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.csv").write_text("value,name\n0,background\n255,cell\n")
    data = load(tmp_path)
    assert data.class_names == ("background", "cell")
    assert np.array_equal(data.loaded["train"][0][1], disc(0, 1))


def test_two_ways_to_write_one_class(tmp_path: Path) -> None:
    make(tmp_path, lambda index: disc(0, 1 if index % 2 else 255))
    assert "masks in" in (said := refusal(tmp_path))
    assert "hold 0 and 255 only in " in said
    (tmp_path / "classes.csv").write_text("value,name\n0,background\n1,cell\n255,cell\n")
    data = load(tmp_path)
    assert data.class_names == ("background", "cell")
    assert {int(source[i][1].sum()) for source in data.loaded.values() for i in range(len(source))} == {
        disc(0, 1).sum()
    }
    (tmp_path / "classes.csv").write_text("value,name\n0,background\n1,cell\n255,ignore\n")
    assert load(tmp_path).class_names == ("background", "cell")


def test_two_ways_to_write_one_class_in_two_splits(tmp_path: Path) -> None:
    for split, white in (("train", 1), ("val", 255)):
        for index in range(3):
            save(tmp_path / split / "images" / f"{index}.png", photo(index))
            save(tmp_path / split / "masks" / f"{index}.png", disc(0, white))
    assert "hold 0 and 255 only in 3 of 6 cases, 0 and 1 in the others" in refusal(tmp_path)


def test_an_ignored_outline_is_no_second_way(tmp_path: Path) -> None:
    def outlined(index: int) -> np.ndarray:
        mask = disc(0, 1)
        mask[cv2.Canny(mask * 255, 10, 20) > 0] = 255
        return mask if index % 2 else disc(0, 255)

    assert load(make(tmp_path, outlined)).class_names == ("0", "1")


@pytest.mark.parametrize("values", [(0, 255), (0, 3)])
def test_jpeg_masks(values: tuple[int, int], tmp_path: Path) -> None:
    make(tmp_path, lambda _: disc(*values), suffix=".jpg")
    assert "jpg is a JPEG file, whose compression changes labels; make the masks again as PNG" in refusal(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_suffix(".png"))
    assert "is a JPEG file" in refusal(tmp_path), "by content, not by name"


def resized(_: int) -> np.ndarray:
    return np.array(Image.fromarray(disc(0, 255, 144)).resize((36, 36), Image.BILINEAR))


def blurred(index: int) -> np.ndarray:
    return cv2.GaussianBlur(disc(0, 200 + index), (0, 0), 1.5)


@pytest.mark.parametrize("smooth", [resized, blurred])
@pytest.mark.parametrize("classes", ["", "name\nbackground\ncell\n"])
def test_soft_edges(smooth: Mask, classes: str, tmp_path: Path) -> None:
    make(tmp_path, smooth, classes=classes)
    assert "different labels" in (said := refusal(tmp_path))
    assert (
        "mostly in pixels between lower and higher ones, as smoothing, resizing or lossy compression leaves them"
        in said
    )


def test_sparse_labels(tmp_path: Path) -> None:
    make(tmp_path, lambda _: np.select([disc(0, 1) > 0, two_labels(0, 1) > 0], [38, 113], 0).astype(np.uint8))
    assert (
        "hold the labels 0, 38 and 113: that would make 114 classes, 111 of which never occur; list the classes in "
        "classes.csv (a line value,name"
    ) in refusal(tmp_path)
    (tmp_path / "classes.csv").write_text("value;name\n0;ground\n38;house\n113;tree\n")
    data = load(tmp_path)
    assert data.class_names == ("ground", "house", "tree")
    assert set(np.unique(data.loaded["train"][0][1])) == {0, 1, 2}


def test_labels_of_more_than_8_bits_by_a_table(tmp_path: Path) -> None:
    make(tmp_path, lambda _: two_labels(0, 1).astype(np.uint16) * 1_000 + 7)
    assert "00.png has the label value 1007; allowed are 0 to 254 and 255 (ignored)" in refusal(tmp_path)
    (tmp_path / "classes.csv").write_text("id,class\n7,ground\n1007,house\n")
    data = load(tmp_path)
    assert data.class_names == ("ground", "house")
    assert np.array_equal(data.loaded["train"][0][1], two_labels(0, 1))


# Doubtful


def test_labels_that_start_at_1_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert load(make(tmp_path, lambda _: two_labels(1, 2))).num_classes == 3
    said = capsys.readouterr().out
    assert "hold the labels 1 to 2: of the classes 0 to 2, 0 never occurs; if that is not meant, list" in said
    assert len(said.splitlines()) == 1


def objects(count: int, kind: type) -> np.ndarray:
    mask = np.zeros((36, 36), kind)
    for number in range(count):
        mask[number // 18 * 2, number % 18 * 2] = number + 1
    return mask


def test_numbers_of_objects_are_said_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make(tmp_path / "deep", lambda _: objects(40, np.uint16))
    make(tmp_path / "varying", lambda index: objects(12 + index, np.uint8))
    for name, count in (("deep", 41), ("varying", 22)):
        assert load(tmp_path / name).num_classes == count
        assert "without gaps in each mask, as numbers of objects do" in capsys.readouterr().out
    make(tmp_path / "many", lambda _: objects(300, np.uint16))
    assert "0 to 300 without gaps in each mask, as numbers of objects do, and at most 255" in refusal(tmp_path / "many")
    make(tmp_path / "classes", lambda _: objects(12, np.uint8))
    load(tmp_path / "classes", image_size=(36, 36))
    assert capsys.readouterr().out == "", "the same classes in all masks are classes"


def test_classes_that_never_occur_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    load(make(tmp_path, lambda _: two_labels(0, 1), classes="name\nground\nblock\nnever\n"))
    assert "have no pixel of 1 of the 3 classes: never" in capsys.readouterr().out


def test_classes_that_shrinking_removes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = np.zeros((64, 64), np.uint8)
    lines[::16] = 1
    for index in range(4):
        save(tmp_path / "images" / f"{index}.png", photo(index, 64, 64))
        save(tmp_path / "masks" / f"{index}.png", lines)
    load(tmp_path, image_size=(16, 16))
    assert "note: --image-size 16 16 leaves no pixel of 1 in any training mask" in capsys.readouterr().out
    load(tmp_path, image_size=(64, 64))
    assert capsys.readouterr().out == ""


# All masks


def test_every_mask_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_CHECKED", 3)
    make(tmp_path, lambda index: two_labels(0, 9 if index == 7 else 1))
    assert load(tmp_path).num_classes == 10
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert "07.png has the label value 9; allowed are 0 to 1 and 255 (ignored)" in refusal(tmp_path)


def test_counts_are_kept_until_a_mask_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.label_scan.PATIENCE", -1.0)
    make(tmp_path, lambda _: two_labels(0, 1))
    assert load(tmp_path).num_classes == 2
    kept = list((tmp_path / ".graft").iterdir())
    assert len(kept) == 2, "one for each split"
    monkeypatch.setattr("datamodules.label_scan.labels_of", lambda *_: pytest.fail("it is counted again"))
    assert load(tmp_path).num_classes == 2
    monkeypatch.undo()
    save(tmp_path / "masks" / "03.png", two_labels(0, 2))
    assert load(tmp_path).num_classes == 3


# Palettes and tables


def test_reordered_palettes_are_read_by_colour(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    rows = np.where(disc(0, 1) > 0, 1, two_labels(0, 2))
    make(tmp_path, lambda _: colours[rows], classes="name,r,g,b\nground,0,0,0\nhouse,128,0,0\ntree,0,128,0\n")
    order = [2, 0, 1]
    for index, path in enumerate(sorted((tmp_path / "masks").iterdir())):
        if index % 3 == 0:
            image = Image.fromarray(np.argsort(order)[rows].astype(np.uint8))
            image.putpalette(colours[order].ravel().tolist())
            image.save(path)
        elif index % 3 == 1:
            Image.fromarray(colours[rows]).quantize(3).save(path)
    table = read_classes(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        assert np.array_equal(table.read(path), rows), path
    ignored = rows.copy()
    ignored[:3] = 255
    image = Image.fromarray(ignored.astype(np.uint8))
    image.putpalette([value for level in range(256) for value in (level, 7, 255 - level)])
    image.save(tmp_path / "masks" / "00.png")
    assert np.array_equal(table.read(tmp_path / "masks" / "00.png"), ignored), "another palette: indices are rows"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("classes.txt", "forêt\nbloc\n".encode("utf-16"), ("forêt", "bloc")),
        ("classes.txt", b"\xfe\xff" + "forêt\nbloc\n".encode("utf-16-be"), ("forêt", "bloc")),
        ("classes.txt", "forêt\r\nbloc\r\n".encode("latin-1"), ("forêt", "bloc")),
        ("classes.txt", b"\xef\xbb\xbfroad, paved\nvalve [/closed]\n", ("road, paved", "valve [/closed]")),
        ("classes.txt", b"value,name\n1,b\n0,a\n", ("b", "a")),
        ("classes.csv", b'Name;R;G;B\n"a;x";0;0;0\nb;255;0;0\n', ("a;x", "b")),
        ("classes.csv", "name\tred\tgreen\tblue\nä\t0\t0\t0\nb\t255\t0\t0\n".encode("latin-1"), ("ä", "b")),
        ("class_dict.csv", b"name, r, g, b\na, 0, 0, 0\nb, 255, 0, 0\n", ("a", "b")),
        ("labelmap.txt", b"# label:color_rgb:parts:actions\na:0,0,0::\nb:255,0,0::\n", ("a", "b")),
    ],
)
def test_tables_of_classes(name: str, content: bytes, expected: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    table = read_classes(tmp_path)
    assert table.names == expected
    coloured = name != "classes.txt"
    assert table.colours == (((0, 0, 0), (255, 0, 0)) if coloured else None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.csv", "name;r;g;b\na;0;0;0\nb;0;x;0\n", r"classes\.csv, line 3: 'b;0;x;0' does not fit"),
        ("classes.csv", "titel,r,g,b\na,0,0,0\n", r"classes\.csv, line 1: 'titel,r,g,b'; the file must begin with"),
        ("classes.csv", "value,name\n0,a\n0,b\n", r"classes\.csv gives the value 0 twice"),
        ("classes.csv", "", r"classes\.csv, line 1: 'the file is empty'"),
        ("labelmap.txt", "a:0,0,0::\nb:0,0::\n", r"labelmap\.txt, line 2: 'b:0,0::' does not fit; write name:r,g,b::"),
    ],
)
def test_faulty_tables_are_refused_by_file_and_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path)


# Depth and bands


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (12, 4_095), (16, 65_535)])
@pytest.mark.parametrize("coloured", [False, True])
def test_depth_is_judged_over_the_set(
    bits: int, white: int, coloured: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make(tmp_path, lambda _: two_labels(0, 1), count=6)
    for index in range(6):
        bright = white if index == 3 else white // 2  # one image alone reaches white
        levels = np.full((36, 36, 3) if coloured else (36, 36), bright, np.uint16)
        cv2.imwrite(str(tmp_path / "images" / f"{index:02d}.png"), levels)
    data = load(tmp_path)
    means = {
        source.pairs[index].name: int(source[index][0].mean())
        for source in data.loaded.values()
        for index in range(len(source))
    }
    assert means == {f"{index:02d}": 255 if index == 3 else pytest.approx(127, abs=1) for index in range(6)}
    said = capsys.readouterr().out
    assert (said == "") == (bits == 16)
    assert bits == 16 or f"reach level {white} at most: all are read as {bits} bits, with {white} as white" in said


def test_a_fourth_band_is_said_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make(tmp_path, lambda _: two_labels(0, 1), count=4)
    (tmp_path / "images" / "00.png").unlink()
    four = np.dstack([photo(0), two_labels(20, 250)])
    Image.fromarray(four, "RGBA").save(tmp_path / "images" / "00.tif")
    load(tmp_path)
    assert "00.tif have a fourth band, marked as alpha: it is left out" in capsys.readouterr().out
    Image.fromarray(four, "RGBX").save(tmp_path / "infrared.tif")
    with pytest.raises(
        DataError, match=r"infrared\.tif has 4 bands, more than colour and alpha; --in-channels 4 reads"
    ):
        read_image(tmp_path / "infrared.tif")


def test_files_of_many_bands_are_refused_by_their_number(tmp_path: Path) -> None:
    import struct

    path = tmp_path / "six.tif"
    pixels = bytes(8 * 8 * 6)
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 6), (278, 4, 1, 8), (279, 4, 1, len(pixels))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    path.write_bytes(header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))
    with pytest.raises(
        DataError, match=r"six\.tif has 6 bands, more than colour and alpha; --in-channels 6 reads all of them"
    ):
        read_image(path)
