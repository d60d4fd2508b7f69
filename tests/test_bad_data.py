"""Files as they come: odd formats are read as documented, broken ones named with the fix, skipped or reported."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from datamodules import DATAMODULES
from datamodules.base import GraftDataModule
from datamodules.decoding import read_image, read_mask
from datamodules.errors import DataError
from datamodules.files import MaskedImages
from datamodules.loader import Normalise
from datamodules.samples import Samples
from experiments.run import main
from tests.fake_data import photo, save, two_labels

pytestmark = pytest.mark.usefixtures("no_pictures")

CLASSES = "name,r,g,b\nground,0,0,0\nblock,200,30,60\nvoid,255,255,255\nedge,0,90,180\n"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)


def make(root: Path, count: int = 6) -> Path:
    for split in ("train", "val"):
        for index in range(count):
            save(root / split / "images" / f"{index}.png", photo(index + 20 * (split == "val")))
            save(root / split / "masks" / f"{index}.png", two_labels(0, 1))
    return root


def make_classes(root: Path, count: int = 4) -> Path:
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            for index in range(count):
                shift = 5 * (name == "bees") + 10 * (split == "val")
                save(root / split / name / f"{index}.png", photo(index + shift))
    return root


def build(root: Path, task: str = "segmentation", **options: object) -> GraftDataModule:
    defaults = {"batch_size": 2, "workers": 0, "image_size": (32, 32)}
    data = DATAMODULES["folders"](task, data_dir=str(root), **defaults | options)
    data.setup()
    return data


def run(root: Path, *more: str, head: str = "unet") -> int:
    arguments = [
        "--backbone", "lenet5", "--head", head, "--data", "folders", "--data-dir", str(root), "--image-size", "32",
        "--batch-size", "2", "--epochs", "1", "--workers", "0", "--accelerator", "cpu",
        "--out", str(root.parent / "runs"), "--name", "run",
    ]  # fmt: skip
    return main([*arguments, *more])


# Formats that are read


def test_formats_of_images(tmp_path: Path) -> None:
    rgb = photo(3)
    grey = rgb[..., 0]
    thrice = np.repeat(grey[..., None], 3, axis=-1)
    save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    save(tmp_path / "deep.tif", grey.astype(np.int32) * 257)
    save(tmp_path / "alpha.png", np.dstack([rgb, grey]))
    save(tmp_path / "grey_alpha.png", np.dstack([grey, grey]))
    save(tmp_path / "palette.png", grey, palette=[value for level in range(256) for value in (level, 0, 255 - level)])
    save(tmp_path / "bits.png", grey > 100)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    for name, expected, tolerance in (
        ("deep.png", thrice, 0),
        ("deep.tif", thrice, 0),
        ("alpha.png", rgb, 0),
        ("grey_alpha.png", thrice, 0),
        ("palette.png", np.dstack([grey, 0 * grey, 255 - grey]), 0),
        ("bits.png", (thrice > 100) * 255, 0),
        ("cmyk.tif", rgb, 1),
        ("cmyk.jpg", rgb, 40),
    ):
        image = read_image(tmp_path / name)
        assert (image.shape, image.dtype) == (rgb.shape, np.uint8), name
        assert np.abs(image.astype(int) - expected).max() <= tolerance, name


def test_exif_turns_images_and_not_masks(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for name, pixels in (("image.png", photo(0, 20, 36)), ("mask.png", two_labels(0, 1, 36, 20))):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    assert np.array_equal(read_image(tmp_path / "image.png"), np.rot90(photo(0, 20, 36), -1))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), two_labels(0, 1, 36, 20))
    make(tmp_path / "data")
    Image.fromarray(photo(0, 20, 36)).save(tmp_path / "data" / "train" / "images" / "0.png", exif=exif)
    save(tmp_path / "data" / "train" / "masks" / "0.png", two_labels(0, 1, 20, 36))
    with pytest.raises(ValueError, match=r"0\.png is 36x20 but .*0\.png is 20x36 \(EXIF data turn images, not masks\)"):
        build(tmp_path / "data")


@pytest.mark.parametrize("shape", [(1, 1), (50, 10_000)])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_extreme_sizes(shape: tuple[int, int], task: str, tmp_path: Path) -> None:
    root = make(tmp_path) if task == "segmentation" else make_classes(tmp_path)
    for split in ("train", "val"):
        if task == "segmentation":
            save(root / split / "masks" / "0.png", np.ones(shape, np.uint8))
        save(root / split / ("images" if task == "segmentation" else "ants") / "0.png", photo(0, *shape))
    data = build(root, task)
    for samples in (data.train, data.val):
        for epoch in range(3):
            assert samples[epoch, 0]["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("shape", [(1, 1), (50, 3_000)])
def test_extreme_sizes_where_whole_images_are_validated(shape: tuple[int, int], tmp_path: Path) -> None:
    from tests.fake_data import make_ade20k

    make_ade20k(tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        save(folder / "images" / split / f"ADE_{short}_00000001.jpg", photo(0, *shape))
        save(folder / "annotations" / split / f"ADE_{short}_00000001.png", np.full(shape, 7, np.uint8))
    data = DATAMODULES["ade20k"]("segmentation", data_dir=str(tmp_path), image_size=(32, 32), batch_size=4, workers=0)
    data.setup()
    for epoch in range(5):
        assert data.train[epoch, 0]["target"].shape == (32, 32)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape[2:] == batch["target"].shape[1:] == tuple(np.maximum(shape, (36, 45)))
    assert int((batch["target"][0] != 255).sum()) == shape[0] * shape[1]


def test_unicode_and_spaces_in_names(tmp_path: Path) -> None:
    root = make(tmp_path / "données d'été")
    save(root / "train" / "images" / "naïve 猫.png", photo(9))
    save(root / "train" / "masks" / "naïve 猫.png", two_labels(0, 1))
    assert run(root) == 0


def test_symlinks_that_lead_round_in_circles(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make(tmp_path / "data")
    images = root / "train" / "images"
    (images / "again").symlink_to(images, target_is_directory=True)
    assert len(build(root).train) == 6, "linked folders inside of images/ are not followed"
    (images / "6.png").symlink_to(images / "7.png")
    (images / "7.png").symlink_to(images / "6.png")
    for index in (6, 7):
        save(root / "train" / "masks" / f"{index}.png", two_labels(0, 1))
    assert run(root) == 2
    assert "6.png cannot be read (" in capsys.readouterr().err


def test_masks_in_colours(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "classes.csv").write_text(CLASSES)
    colours = np.array([[0, 0, 0], [200, 30, 60], [255, 255, 255], [0, 90, 180]], np.uint8)
    rows = two_labels(0, 3)
    rows[:2], rows[2:4] = 2, 1
    for split in ("train", "val"):
        for index in range(6):
            save(root / split / "masks" / f"{index}.png", colours[rows] if index else rows)
    data = build(root)
    assert data.class_names == ("ground", "block", "edge")
    assert data.colours == ((0, 0, 0), (200, 30, 60), (0, 90, 180))
    expected = np.array([0, 1, 255, 2])[rows]
    assert np.array_equal(data.train.source[0][1], expected), "a mask of row numbers"
    assert np.array_equal(data.train.source[1][1], expected), "a mask of colours"
    colours[3] = (1, 2, 3)
    path = save(root / "val" / "masks" / "4.png", colours[rows])
    with pytest.raises(ValueError, match=rf"{path} has the colour 1,2,3, which .*classes\.csv does not list; add it"):
        build(root)


def test_black_and_white_masks_by_two_greys(tmp_path: Path) -> None:
    root = make(tmp_path)
    for path in root.rglob("masks/*.png"):
        save(path, two_labels(0, 255))
    with pytest.raises(ValueError, match=r"or classes\.csv of the lines value,name and 0,background and 255,object$"):
        build(root)
    (root / "classes.csv").write_text("name,r,g,b\nbackground,0,0,0\nmembrane,255,255,255\n")
    save(root / "train" / "masks" / "1.png", two_labels(0, 1) > 0)
    data = build(root)
    for index in range(2):
        assert np.array_equal(data.train.source[index][1], two_labels(0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,r,g,b\na,0,0,0\nb,0,0,0\n", "gives one colour to two classes"),
        (
            "name,r,g,b\na,0,0,0\nb,0,0,256\n",
            r"classes\.csv, line 3: 'b,0,0,256' does not fit; the file must begin with the",
        ),
        ("name\na\nvoid\n", "names 1 different classes"),
    ],
)
def test_class_tables_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    (make(tmp_path) / "classes.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


# Files that cannot be read


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def in_colour(path: Path) -> None:
    save(path, photo(0))


def of_floats(path: Path) -> None:
    Image.fromarray(np.ones((36, 36), np.float32)).save(path, format="TIFF")


def of_32_bits(path: Path) -> None:
    Image.fromarray(np.full((36, 36), 1 << 20, np.int32)).save(path, format="TIFF")


BAD: list[tuple[str, Callable[[Path], None], str]] = [
    ("images", empty, r"cannot be read \(it has 0 bytes\); replace the file or remove it"),
    ("masks", empty, r"cannot be read \(it has 0 bytes\); replace the file or remove it"),
    ("images", truncate, r"cannot be read \(.*\); replace the file or remove it"),
    ("images", of_floats, "has floating-point pixels; save it with 8 or 16 bits"),
    ("images", of_32_bits, "has grey levels of 32 bits; save it with 8 or 16 bits"),
    ("masks", in_colour, r"has pixels of mode RGB; save it as .* list the colours in classes\.csv"),
    ("masks", of_32_bits, "has the label value 1048576; allowed are 0 to"),
]


@pytest.mark.parametrize(("kind", "spoil", "message"), BAD)
def test_a_bad_file_is_named_or_skipped(kind: str, spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    root = make(tmp_path)
    bad = [root / split / kind / "1.png" for split in ("train", "val")]
    for path in bad:
        spoil(path)
    with pytest.raises(ValueError, match=f"{bad[0]} {message}"):
        build(root)
    data = build(root, on_bad_sample="skip")
    assert data.train[0, 1]["name"] == "2", "training takes the next"
    assert data.val[1] is None
    names = [name for batch in data.val_dataloader() for name in batch["name"]]
    assert names == ["0", "2", "3", "4", "5"]
    for samples in (data.train, data.val):
        assert samples.bad.nonzero().flatten().tolist() == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_this_user_may_not_read(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "train" / "images" / "1.png").chmod(0)
    with pytest.raises(ValueError, match=r"1\.png may not be read by this user; change its permissions"):
        build(root)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    root = make_classes(tmp_path)
    (root / "train" / "wasps").mkdir()
    with pytest.raises(ValueError, match="wasps holds no images"):
        build(root, "classification")


def test_skipped_samples_are_counted_over_workers_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make(tmp_path / "data")
    empty(root / "train" / "images" / "1.png")
    for index in (2, 3):  # a whole batch
        truncate(root / "val" / "images" / f"{index}.png")
    assert run(root, "--on-bad-sample", "skip", "--workers", "1") == 0
    results = json.loads((tmp_path / "runs" / "run" / "results.json").read_text())
    assert results["protocol"]["skipped"] == {"train": 1, "val": 2}
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"skipped in train: {root / 'train' / 'images' / '1.png'} cannot be read" in said
    assert said.count("skipped in val: ") == 2


def test_training_needs_one_good_sample(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "classes.txt").write_text("a\nb\n")
    for path in (root / "train" / "images").iterdir():
        empty(path)
    with pytest.raises(ValueError, match=r"none of the 6 training samples can be read; the first: .*0\.png .* 0 bytes"):
        build(root, on_bad_sample="skip")


def test_a_killed_worker_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, read = os.getpid(), MaskedImages.__getitem__

    def read_or_die(self: MaskedImages, index: int):
        if os.getpid() != trainer and index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(MaskedImages, "__getitem__", read_or_die)
    monkeypatch.setattr("datamodules.samples.Samples.load", lambda self, index: self.source[index])
    assert run(make(tmp_path / "data"), "--workers", "1") == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "a data-loader worker was killed, as the system does when memory runs out; use fewer --workers; "
            "there is no checkpoint yet, and the same command starts anew"
        )
    )


# --check-data


def test_check_data_reports_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make(tmp_path / "data")
    (root / "classes.txt").write_text("ground\nblock\nnever\n")
    train, val = root / "train", root / "val"
    truncate(train / "images" / "0.png")
    save(train / "masks" / "1.png", two_labels(0, 1, 30, 36))
    save(train / "masks" / "2.png", two_labels(0, 9))
    save(train / "masks" / "3.png", two_labels(255, 255))
    in_colour(val / "masks" / "0.png")
    Image.fromarray(photo(4)).save(val / "images" / "5.png", compress_level=0)  # other bytes, the same pixels
    assert run(root, "--check-data") == 1
    report = json.loads((tmp_path / "runs" / "check-folders.json").read_text())
    assert report["splits"] == {"train": 6, "val": 6}
    assert report["classes_without_training_samples"] == ["never"]
    found = {(fault["kind"], fault["split"]): fault["message"] for fault in report["faults"]}
    assert set(found) == {
        ("unreadable", "train"), ("size mismatch", "train"), ("unknown label", "train"), ("empty mask", "train"),
        ("unknown label", "val"), ("duplicate", "train"),
    }  # fmt: skip
    assert found["unreadable", "train"].startswith(str(train / "images" / "0.png"))
    assert "2.png has the label value 9" in found["unknown label", "train"]
    assert "train: 4, val: 5" in found["duplicate", "train"]
    said = capsys.readouterr().out
    assert str(tmp_path / "runs" / "check-folders.json") in said
    assert "6 train, 6 val samples checked: 1 unreadable" in said
    assert "classes without a training sample: never" in said


def test_check_data_finds_nothing_in_good_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make_classes(tmp_path / "data")
    assert run(root, "--check-data", head="classifier") == 0
    assert "8 train, 8 val samples checked: no faults" in capsys.readouterr().out
    (root / "val" / "flies").mkdir()
    assert run(root, "--check-data", head="classifier") == 1
    assert "layout" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "run").exists()


def test_images_of_many_sizes_make_one_batch_and_true_pixels_count(tmp_path: Path) -> None:
    from datamodules.collate import collate

    sizes = [(4, 6), (5, 3)]
    images = [torch.full((*size, 3), 9, dtype=torch.uint8) for size in sizes]
    masks = [torch.ones(size, dtype=torch.uint8) for size in sizes]
    pairs = zip(images, masks, strict=True)
    batch = collate([{"image": image, "target": mask, "name": "a"} for image, mask in pairs])
    assert batch["image"].shape == (2, 5, 6, 3)
    assert [int((one == 1).sum()) for one in batch["target"]] == [24, 15]
    assert set(batch["target"].unique().tolist()) == {1, 255}


def test_a_row_of_unreadable_samples_is_read_once() -> None:
    """Not once for each of them, which would take the square of their number."""
    reads: list[int] = []

    class Half:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
            reads.append(index)
            if 10 <= index < 30:
                raise DataError(f"{index} cannot be read")
            return photo(0), 0, str(index)

    samples = Samples(Half(), A.Compose([]), 0, Normalise(IMAGENET_MEAN, IMAGENET_STD), on_bad_sample="replace")
    for epoch in range(2):
        names = [samples[epoch, index]["name"] for index in range(40)]  # type: ignore[index]
        assert names == [str(index if not 10 <= index < 30 else 30) for index in range(40)]
    assert sum(10 <= index < 30 for index in reads) == 20
