"""Tar files: each sample once an epoch over processes and workers, resumable, and every fault named."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DATAMODULES, shards
from datamodules.base import GraftDataModule
from datamodules.class_weights import count
from datamodules.decoding import read_image
from datamodules.shards import ShardSamples


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG", "png": "PNG"}[suffix])
    return file.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(task: str, number: int) -> dict[str, bytes]:
    """Image `number` is grey level 5 * number; its class is number % 3, or a mask of that class with an ignored row."""
    image = np.full((20, 24 + number % 4, 3), 5 * number, np.uint8)
    files = {f"{number:04d}.jpg": encoded(image, "jpg"), f"{number:04d}.json": b"{}"}
    if task == "classification":
        return files | {f"{number:04d}.cls": str(number % 3).encode()}
    mask = np.full(image.shape[:2], number % 3, np.uint8)
    mask[0] = 255
    return files | {f"{number:04d}.png": encoded(mask, "png")}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_shards(root: Path, task: str, counts: tuple[int, ...] = (7, 12, 5), val: int = 6) -> Path:
    numbers = iter(range(100))
    for shard, members in enumerate(counts):
        files = {name: content for _ in range(members) for name, content in sample(task, next(numbers)).items()}
        write_shard(root / f"train-{shard:03d}.tar", files)
    if val:
        files = {name: content for i in range(30, 30 + val) for name, content in sample(task, i).items()}
        write_shard(root / "val-000.tar", files)
    (root / "classes.txt").write_text("zero\none\ntwo\n")
    return root


def build(root: Path, task: str, **options: Any) -> GraftDataModule:
    more = {"image_size": (16, 16), "batch_size": 2, "workers": 0, "cache": "none"} | options
    data = DATAMODULES["shards"](task, data_dir=str(root), **more)
    data.setup()
    return data


def on_process(data: GraftDataModule, rank: int, processes: int) -> GraftDataModule:
    cpu = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=processes, strategy=cpu)
    return data


def names(loader: Any) -> list[str]:
    return [name for batch in loader for name in batch["name"]]


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_samples_are_what_was_written(task: str, tmp_path: Path) -> None:
    data = build(make_shards(tmp_path, task), task)
    assert data.class_names == ("zero", "one", "two")
    assert (len(data.train), len(data.val)) == (24, 6)
    for index in range(24):
        image, target, name = data.train.source[index]
        number = int(name.split("/")[1])
        assert name.startswith(f"train-{0 if number < 7 else 1 if number < 19 else 2:03d}/")
        assert image.shape == (20, 24 + number % 4, 3)
        assert abs(int(image[10, 10, 0]) - 5 * number) <= 2
        if task == "classification":
            assert target == number % 3
        else:
            assert set(np.unique(target)) == {number % 3, 255}


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (3, 0)])
def test_each_sample_comes_once_an_epoch(processes: int, workers: int, tmp_path: Path) -> None:
    data = build(make_shards(tmp_path, "classification"), "classification", workers=workers)
    for loader in ("train_dataloader", "val_dataloader"):
        shares = [names(getattr(on_process(data, rank, processes), loader)()) for rank in range(processes)]
        seen = [name for share in shares for name in share]
        assert len(seen) == len(set(seen)) == (24 if loader == "train_dataloader" else 6)
    order = names(on_process(data, 0, 1).train_dataloader())
    places = {name.split("/")[0] for name in order[:6]}
    assert len(places) > 1, "shuffled over the shards, not within one"


def test_the_rest_of_an_epoch_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    data = build(make_shards(tmp_path, "classification"), "classification")
    loader = on_process(data, 0, 1).train_dataloader()
    loader.sampler.set_epoch(1)
    whole = names(loader)
    resumed = data.train_dataloader()
    resumed.load_state_dict({"epoch": 1, "taken": 8})
    assert names(resumed) == whole[8:]
    resumed.sampler.set_epoch(2)
    assert len(names(resumed)) == 24
    rest = []
    for rank in range(2):
        share = on_process(data, rank, 2).train_dataloader()
        share.load_state_dict({"epoch": 1, "taken": 8})
        rest += names(share)
    assert sorted(rest) == sorted(whole[8:])


def test_tables_of_contents_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_shards(tmp_path, "classification")
    first = build(root, "classification")
    with monkeypatch.context() as patched:
        patched.setattr(shards.tarfile, "open", lambda *_: pytest.fail("read again"))
        again = build(root, "classification")
    assert np.array_equal(first.train.source.parts, again.train.source.parts)
    write_shard(root / "train-000.tar", sample("classification", 50))
    assert len(build(root, "classification").train) == 18


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "png"), ("1", "png"), ("LA", "png"), ("P", "png"), ("CMYK", "jpg")]
)
def test_images_are_converted_as_those_in_files_of_their_own(mode: str, kind: str, tmp_path: Path) -> None:
    """A grey level of 16 bits is divided by 257, so that 65,535 is white."""
    levels = np.array([[0, 257, 4096], [32_896, 65_000, 65_535]], np.uint16).repeat(8, 0).repeat(8, 1)
    picture = Image.fromarray(levels if mode == "I;16" else (levels // 257).astype(np.uint8))
    path = tmp_path / f"0000.{kind}"
    (picture if mode == "I;16" else picture.convert(mode)).save(path)
    root = make_shards(tmp_path / "shards", "classification")
    write_shard(root / "train-000.tar", {path.name: path.read_bytes(), "0000.cls": b"1"})
    image, label, _ = build(root, "classification", batch_size=1).train.source[0]
    np.testing.assert_array_equal(image, read_image(path))
    assert label == 1
    if mode == "I;16":
        assert (image[::8, ::8] == np.array([[0, 1, 16], [128, 253, 255]])[..., None]).all()


def test_no_image_is_read_for_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to find the number of classes nor to weight them: .cls files are read with the table of contents."""
    root = make_shards(tmp_path, "classification")
    (root / "classes.txt").unlink()
    monkeypatch.setattr(ShardSamples, "read", lambda *_: pytest.fail("a sample was read"))
    monkeypatch.setattr("datamodules.samples.Samples._need_one", lambda self: None)  # reads one, to be sure of it
    data = build(root, "classification", on_bad_sample="skip")
    assert data.class_names == ("0", "1", "2")
    assert count(data.train.source, data).pixels.tolist() == [8, 8, 8]


def test_a_bad_class_is_skipped_or_named(tmp_path: Path) -> None:
    root = make_shards(tmp_path, "classification")
    files = (
        sample("classification", 0) | sample("classification", 1) | {"0001.cls": b"ant"} | sample("classification", 2)
    )
    write_shard(root / "train-000.tar", files)
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"train-000/0001 in .*train-000\.tar has the class b'ant'; a \.cls file must"):
        build(root, "classification")
    data = build(root, "classification", on_bad_sample="skip")
    assert data.class_names == ("0", "1", "2")
    assert data.train[1]["name"] == "train-000/0002"
    assert count(data.train.source, data).pixels.sum() == 19


def test_masks_in_shards_are_counted_without_their_images_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_shards(tmp_path, "segmentation")
    data = build(root, "segmentation")
    expected = np.bincount(np.concatenate([data.train.source[i][1].ravel() for i in range(24)]), minlength=256)[:3]
    monkeypatch.setattr(shards, "decode_plain", lambda *_: pytest.fail("an image was decoded"))
    assert count(data.train.source, data).pixels.tolist() == expected.tolist()
    monkeypatch.setattr(ShardSamples, "mask", lambda *_: pytest.fail("a mask was read again"))
    assert count(data.train.source, data).pixels.tolist() == expected.tolist()


def test_without_a_home_directory_tables_of_contents_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_shards(tmp_path, "classification")
    monkeypatch.setattr(shards, "cache_folder", lambda: None)
    assert len(build(root, "classification").train) == 24


def test_classes_are_counted_and_a_fifth_held_out_where_nothing_says_otherwise(tmp_path: Path) -> None:
    root = make_shards(tmp_path, "classification", val=0)
    (root / "classes.txt").unlink()
    data = build(root, "classification")
    assert data.class_names == ("0", "1", "2")
    assert (len(data.train), len(data.val)) == (19, 5)
    train, val = ({samples.source[i][2] for i in range(len(samples))} for samples in (data.train, data.val))
    assert not train & val


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        ("classification", {"a.jpg": b"", "a.cls": b"0"}, r"train-000/a in .*train-000\.tar cannot be read"),
        ("classification", {"a.jpg": b"x", "a.cls": b"ant"}, r"cannot be read|has the class b'ant'"),
        ("classification", {"a.txt": b"x"}, r"train-000\.tar holds no image with a \.cls of the same name"),
        ("segmentation", {"a.jpg": b"x", "a.cls": b"0"}, r"holds no image with a \.png mask of the same name"),
    ],
)
def test_faults_are_named(task: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    make_shards(tmp_path, task)
    write_shard(tmp_path / "train-000.tar", files)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, task)


def test_labels_beyond_the_classes_and_other_files_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, "segmentation")
    (tmp_path / "classes.txt").write_text("zero\none\n")
    with pytest.raises(ValueError, match=r"has the label value 2; allowed are 0 to 1 and 255"):
        build(tmp_path, "segmentation")
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt is missing"):
        build(tmp_path, "segmentation")
    (tmp_path / "train-000.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"train-000\.tar cannot be read as an uncompressed tar file"):
        build(tmp_path, "segmentation")
    with pytest.raises(ValueError, match=r"holds no train\*\.tar and no train/\*\.tar"):
        build(tmp_path / "cache", "segmentation")
