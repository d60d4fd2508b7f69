"""Every data set, as a tiny copy in its published layout: fit and test through run.py, and what its labels mean."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from datamodules import DATAMODULES, cityscapes, download, flowers102, pet, small_images, voc_boxes
from datamodules.digits import Digits
from datamodules.download import Archive, ensure_files
from experiments.command_line.run_config import RunConfig
from experiments.inference.trained import load
from experiments.run import main
from experiments.training.build import build_module
from tests.fake_data import TEST, TRAIN, VAL, accept_fake_checksums, make_fake, make_imagenet, photo, save

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CASES = [(name, task) for name, kind in DATAMODULES.items() for task in kind.tasks]
PAIRS = {
    "segmentation": ("lenet5", "unet"), "classification": ("lenet5", "classifier"), "detection": ("resnet18", "fcos"),
}  # fmt: skip
SCORES = {"segmentation": "miou", "classification": "top1", "detection": "map50"}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
    monkeypatch.setattr(Digits, "SCENES", {"train": TRAIN, "val": VAL, "test": TEST})
    accept_fake_checksums(monkeypatch)


def build(name: str, root: Path, task: str = "segmentation", **options: object):
    data = DATAMODULES[name](task, data_dir=str(root), **{"batch_size": 2, "workers": 0} | options)
    data.setup()
    return data


@pytest.mark.parametrize(("name", "task"), CASES)
def test_one_command_for_all(name: str, task: str, tmp_path: Path) -> None:
    root = make_fake(name, task, tmp_path / "data")
    backbone, head = PAIRS[task]
    arguments = ["--backbone", backbone, "--head", head, "--data", name, *(["--data-dir", root] if root else [])]
    small = ["--image-size", "32", "--batch-size", "5", "--epochs", "1", "--workers", "0", "--accelerator", "cpu"]
    assert main([*arguments, *small, "--name", "run", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    splits = results["protocol"]["splits"]
    assert list(results["scores"]) == [split for split in splits if split != "train"]
    assert splits["train"] >= TRAIN
    for scores in results["scores"].values():
        assert 0 <= scores[SCORES[task]] <= 1


def test_weights_are_scored_without_training(tmp_path: Path) -> None:
    rows = [f"{index}.png,{200 + index},n{index},thing" for index in range(3)]
    for index in range(3):
        save(tmp_path / "images" / f"{index}.png", photo(index))
    (tmp_path / "labels.csv").write_text("\n".join(["file,index,wnid,label", *rows]))
    arguments = ["--backbone", "lenet5", "--head", "classifier", "--data", "imagenet", "--data-dir", str(tmp_path)]
    more = ["--image-size", "32", "--workers", "0", "--accelerator", "cpu", "--out", str(tmp_path), "--name", "run"]
    assert main([*arguments, *more, "--epochs", "1"]) == 2, "there is nothing to train on"
    assert not (tmp_path / "run").exists()
    assert main([*arguments, *more, "--epochs", "0"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["best_epoch"], results["protocol"]["splits"]) == (0, {"val": 3})
    assert len(results["protocol"]["classes"]) == 1000
    assert set(results["scores"]["val"]) == {"loss", "top1", "top5"}
    kept = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert main([*arguments, *more, "--epochs", "0", "--name", "again", "--start-from", str(kept)]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["scores"] == results["scores"], "the network that was scored is kept"
    assert load(tmp_path / "run", "cpu").class_names == tuple(results["protocol"]["classes"])
    data = build("imagenet", tmp_path, "classification")
    module = build_module(RunConfig(backbone="lenet5", head="classifier", data="imagenet"), data)
    assert module.hparams["ignore_index"] < 0, "class 255 is a class"
    (tmp_path / "labels.csv").write_text("file,index\n0.png,1000\n")
    with pytest.raises(ValueError, match=r"labels\.csv gives 0\.png the index 1000; allowed are 0 to 999"):
        build("imagenet", tmp_path, "classification")


def labels_of(data) -> dict[str, set[int]]:
    return {split: set(np.unique(getattr(data, split).source[0][1]).tolist()) for split in data.splits}


def test_voc_adds_the_images_of_sbd_but_for_those_of_its_lists(tmp_path: Path) -> None:
    make_fake("voc", "segmentation", tmp_path)
    data = build("voc", tmp_path)
    assert (len(data.train), len(data.val), data.num_classes) == (TRAIN + 2, VAL, 21)
    assert labels_of(data) == {"train": {0, 15, 255}, "val": {0, 15, 255}}
    assert set(np.unique(data.train.source[TRAIN][1]).tolist()) == {0, 20}
    assert len(build("voc", tmp_path / "VOCdevkit" / "VOC2012").train) == TRAIN + 2, "the folder itself"
    masks = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"
    for name in ("2009_000001", "2007_000000", "2008_000000"):
        save(masks / f"{name}.png", np.full((36, 36), 7, np.uint8))
    data = build("voc", tmp_path / "VOCdevkit" / "VOC2012")
    assert (len(data.train), data.train.source[TRAIN][1].max()) == (TRAIN + 1, 7)


def test_voc_finds_sbd_from_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fake("voc", "segmentation", tmp_path)
    for folder in ("VOCdevkit", "VOCdevkit/VOC2012"):
        monkeypatch.chdir(tmp_path / folder)
        assert len(build("voc", Path("." if folder.endswith("2012") else "VOC2012")).train) == TRAIN + 2


def test_label_ids_become_classes(tmp_path: Path) -> None:
    for name, expected in {
        "cityscapes": {0, 13, 255},
        "ade20k": {0, 149, 255},
        "camvid": {3, 8, 255},
        "camvid32": {17, 30, 255},
        "pet": {0, 1, 255},
        "drive": {0, 1, 255},
    }.items():
        make_fake(name, "segmentation", tmp_path / name)
        data = build(name, tmp_path / name)
        assert set(map(frozenset, labels_of(data).values())) == {frozenset(expected)}, name
    data = build("camvid32", tmp_path / "camvid32")
    assert (data.num_classes, data.class_names[30], data.colours[30]) == (31, "Wall", (64, 192, 0))
    assert {split: len(getattr(data, split)) for split in data.splits} == {"train": 10, "val": VAL, "test": 3}


def test_drive_ignores_what_the_camera_does_not_see(tmp_path: Path) -> None:
    make_fake("drive", "segmentation", tmp_path)
    _, mask, _ = build("drive", tmp_path).val.source[0]
    assert (mask[:, :3] == 255).all()
    assert (mask[:, 3:] != 255).all()
    assert (mask[9:18, 9:18] == 1).all()


def test_cityscapes_and_addresses_are_those_of_torchvision() -> None:
    published = {one.train_id: one for one in torchvision.datasets.Cityscapes.classes if one.train_id not in (-1, 255)}
    for train_id, (name, (label_id, colour)) in enumerate(cityscapes.CLASSES.items()):
        one = published[train_id]
        assert (name, label_id, colour) == (one.name, one.id, one.color)
    ours = {archive[:2] for archive in (*voc_boxes.Voc0712.ARCHIVES, *pet.ARCHIVES, *flowers102.ARCHIVES)}
    years = torchvision.datasets.voc.DATASET_YEAR_DICT
    flowers = torchvision.datasets.Flowers102
    assert ours == {
        *((years[year]["url"], years[year]["md5"]) for year in ("2007", "2007-test", "2012")),
        *torchvision.datasets.OxfordIIITPet._RESOURCES,
        *((flowers._download_url_prefix + file, md5) for file, md5 in flowers._file_dict.values()),
    }
    for kind, published in ((small_images.Mnist, "MNIST"), (small_images.FashionMnist, "FashionMNIST")):
        dataset = getattr(torchvision.datasets, published)
        files = {(dataset.mirrors[0] + file, md5) for file, md5 in dataset.resources}
        assert {archive[:2] for archive in kind.archives} == files


def test_pets_have_breeds(tmp_path: Path) -> None:
    make_fake("pet", "classification", tmp_path)
    data = build("pet", tmp_path, "classification")
    assert data.class_names == ("Abyssinian", "american_bulldog")
    assert [len(getattr(data, split)) for split in data.splits] == [11, 3, TEST]
    inside = build("pet", tmp_path / "oxford-iiit-pet", "classification").val.source
    assert list(inside.files) == list(data.val.source.files)


def test_imagenet_with_the_development_kit(tmp_path: Path) -> None:
    make_imagenet(tmp_path)
    for path in list((tmp_path / "val").rglob("*.JPEG")):
        path.unlink()
    for folder in list((tmp_path / "val").iterdir()):
        folder.rmdir()
    for index in range(3):
        save(tmp_path / "val" / f"ILSVRC2012_val_{index + 1:08d}.JPEG", photo(index))
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(1, "n01443537", "goldfish", 0), (2, "n01440764", "tench", 0), (3, "n00001740", "entity", 2)]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n")
    data = build("imagenet", tmp_path, "classification")
    assert data.class_names == ("n01440764", "n01443537")
    found = zip(data.val.source.files, data.val.source.labels.tolist(), strict=True)
    assert {path.stem[-1]: label for path, label in found} == {"1": 1, "2": 0, "3": 1}


def test_small_images_are_read_exactly(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100", "mnist", "fashion_mnist"):
        make_fake(name, "classification", tmp_path / name)
        data = build(name, tmp_path / name, "classification")
        sizes = {split: len(getattr(data, split)) for split in data.splits}
        assert sizes == {"train": 12, "val": 3, "test": TEST}
        image, label, _ = data.test.source[2]
        assert label == 2
        if name.startswith("cifar"):
            assert np.array_equal(image, photo(2, 32, 32))
        else:
            assert np.array_equal(image[2:-2, 2:-2], np.repeat(photo(2, 28, 28)[..., :1], 3, axis=-1))
            assert image[:2].max() == 0
        assert data.num_classes == (100 if name == "cifar100" else 10)


ABSENT = {
    "voc": "train.txt is missing; add --download, or fetch https://.*VOCtrainval.*tar (2.0 GB) and unpack into",
    "cityscapes": "leftImg8bit/train holds no .*cityscapes-dataset.com/downloads",
    "ade20k": "images/training is missing; fetch .*ADEChallengeData2016.zip (0.9 GB)",
    "camvid32": "701_StillsRaw_full is missing; fetch",
    "pet": "oxford-iiit-pet/images is missing; add --download, or fetch .*images.tar.gz and .* (811.1 MB)",
    "drive": "training/images is missing; fetch DRIVE (30 MB)",
    "imagenet": "train is missing; fetch ILSVRC2012_img_train.tar (148 GB)",
    "imagenet21k": "holds 0 class folders, but at least 2 are needed; --data-dir must name a folder with train/WNID/",
    "flowers102": "flowers-102/jpg is missing; add --download",
    "cifar10": "batches.meta is missing; add --download, or fetch https://.*cifar-10-python.tar.gz (170.5 MB)",
    "cifar100": "meta is missing; add --download",
    "mnist": "MNIST/raw/train-images-idx3-ubyte.* is missing; add --download, or fetch .* (11.6 MB)",
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte.* is missing; add --download",
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_absent_is_named_with_address_and_size(name: str, tmp_path: Path) -> None:
    pattern = ABSENT[name].replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=pattern) as caught:
        build(name, tmp_path, DATAMODULES[name].tasks[0])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Server(ThreadingHTTPServer):
    """Serves one file, in parts if asked; breaks off the first transfer after `breaks_after` bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.breaks_after: int | None = None
        self.starts: list[int] = []

    def archive(self, digest: str, name: str = "set.tar.gz") -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", digest, len(self.content))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.starts.append(start)
        part = self.server.content[start : self.server.breaks_after]
        self.server.breaks_after = None
        self.send_response(206)
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path):
    import hashlib
    import tarfile

    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        for one in range(3):
            tar.add(save(tmp_path / "made" / f"{one}.png", photo(one)), f"images/{one}.png")
    content = (tmp_path / "set.tar.gz").read_bytes()
    one = Server(content)
    one.digest = hashlib.md5(content).hexdigest()
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def test_a_broken_download_goes_on(server: Server, tmp_path: Path) -> None:
    root, archive = tmp_path / "data", server.archive(server.digest)
    server.breaks_after = 100
    with pytest.raises(ValueError, match=r"not be fetched \(the connection was closed; 100 of \d+ bytes are here"):
        ensure_files(root, ["images"], [archive], download=True)
    assert not (root / "images").exists()
    ensure_files(root, ["images"], [archive], download=True)
    assert server.starts == [0, 100]
    assert sorted(path.name for path in (root / "images").iterdir()) == ["0.png", "1.png", "2.png"]
    assert (root / "images" / "1.png").read_bytes() == (tmp_path / "made" / "1.png").read_bytes()
    ensure_files(root, ["images"], [archive], download=True)
    assert len(server.starts) == 2


def test_only_one_of_several_processes_downloads(server: Server, tmp_path: Path) -> None:
    archive = server.archive(server.digest)
    calls = [
        threading.Thread(
            target=ensure_files, args=(tmp_path / "data", ["images"], [archive]), kwargs={"download": True}
        )
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert server.starts == [0]


def test_downloads_are_checked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the checksum \w{32}, not 0123; it was deleted, try again"):
        ensure_files(tmp_path / "data", ["images"], [server.archive("0123")], download=True)
    assert not list((tmp_path / "data").glob("*set*"))
    with pytest.raises(ValueError, match=r"did not hold labels; report this"):
        ensure_files(tmp_path / "data", ["labels"], [server.archive(server.digest)], download=True)
    nowhere = Archive("http://127.0.0.1:9/set.tar", "0123", 5_000_000)
    with pytest.raises(ValueError, match=r"\(.*refused; 0 of 5000000 bytes.* put the file \(5.0 MB"):
        ensure_files(tmp_path / "other", ["images"], [nowhere], download=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--download cannot write to"):
        ensure_files(tmp_path / "file" / "data", ["images"], [nowhere], download=True)


def test_an_unpacked_tree_joins_what_is_there(tmp_path: Path) -> None:
    save(tmp_path / "new" / "VOCdevkit" / "VOC2012" / "a.png", photo(0))
    save(tmp_path / "old" / "VOCdevkit" / "VOC2007" / "b.png", photo(1))
    download.merge(tmp_path / "new", tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old" / "VOCdevkit").iterdir()) == ["VOC2007", "VOC2012"]


# Real data


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="MNIST is not at ../shared/data/mnist")
def test_mnist() -> None:
    data = build("mnist", SHARED / "mnist", "classification")
    assert [len(getattr(data, split)) for split in data.splits] == [55_000, 5_000, 10_000]
    assert [data.train.source[i][1] for i in range(5)] == [5, 0, 4, 1, 9]
    assert [data.test.source[i][1] for i in range(5)] == [7, 2, 1, 0, 4]


@pytest.mark.skipif(not (SHARED / "drive").is_dir(), reason="DRIVE is not at ../shared/data/drive")
def test_drive() -> None:
    data = build("drive", SHARED / "drive")
    assert {split: len(getattr(data, split)) for split in data.splits} == {"train": 16, "val": 4}
    sample = data.val[0]
    assert sample["image"].shape == (3, 584, 565)
    shares = [(sample["target"] == label).float().mean().item() for label in (0, 1, 255)]
    assert torch.tensor(shares).sub(torch.tensor([0.59, 0.09, 0.32])).abs().max() < 0.05
