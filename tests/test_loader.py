"""The loader: the same numbers as the plain way, whatever is cached; files decoded once; no waiting for the device."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from datamodules import DATAMODULES, base, loaders, memory
from datamodules.collate import collate
from datamodules.decoding import decode, read_image, read_plain
from datamodules.files import LabelledImages, MaskedImages
from datamodules.loader import EqualBatches, Normalise
from datamodules.node_folder import NODE_FOLDER
from datamodules.samples import Samples
from experiments.show_data import main as show_data


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with a little noise, which JPEG keeps nearly unchanged."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (6, 8, 3), np.uint8)
    noise = generator.integers(-8, 9, (height, width, 3))
    return np.clip(cv2.resize(coarse, (width, height)).astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training and three validation pairs of different widths, images as PNG and JPEG in turn."""
    for split, count in (("train", 6), ("val", 3)):
        for i in range(count):
            size = (40, 50 + 2 * i)
            for kind in ("images", "masks"):
                (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray(photograph(*size, seed=i))
            pixels.save(tmp_path / "data" / split / "images" / f"{i}.{'png' if i % 2 else 'jpg'}")
            mask = np.random.default_rng(i).choice(np.array([0, 1, 2, 255], np.uint8), size)
            Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NODE_FOLDER, str(tmp_path / "memory"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def build(folder: Path, **options: Any) -> Any:
    data = DATAMODULES["folders"](
        "segmentation", data_dir=str(folder), **{"image_size": (32, 48), "batch_size": 2, "workers": 0} | options
    )
    data.setup()
    return data


def test_batches_equal_the_plain_pipeline(folder: Path) -> None:
    """A batch of uint8 is normalised last; the reference is Normalize and ToTensorV2 on each sample."""
    data = build(folder)
    plain = A.Compose([A.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()])
    for batch in data.train_dataloader():
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        for image, target, name in zip(batch["image"], batch["target"], batch["name"], strict=True):
            index = [data.train.source[i][2] for i in range(6)].index(name)
            pixels = data.train.pixels((0, index))
            expected = plain(image=pixels["image"].numpy(), mask=pixels["target"].numpy())
            torch.testing.assert_close(image, expected["image"], atol=2e-6, rtol=0)
            assert torch.equal(target, expected["mask"].long())
            assert torch.equal(image, data.train[0, index]["image"])


def test_normalise_is_exact_to_rounding_on_all_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 3).reshape(1, 16, 16, 3)
    exact = (levels.double() / 255 - torch.tensor(IMAGENET_MEAN).double()) / torch.tensor(IMAGENET_STD).double()
    out = Normalise(IMAGENET_MEAN, IMAGENET_STD)(levels)
    torch.testing.assert_close(out.double(), exact.permute(0, 3, 1, 2), atol=1e-6, rtol=0)


def test_padding_of_a_mixed_batch_is_the_mean_colour_and_ignored() -> None:
    data = DATAMODULES["digits"]("segmentation")
    sizes = ((4, 6), (5, 3))
    samples = [
        {
            "image": torch.full((*size, 3), 200, dtype=torch.uint8),
            "target": torch.ones(size, dtype=torch.uint8),
            "name": "",
        }
        for size in sizes
    ]
    batch = data.to_device_and_normalise(collate([*samples, None]))
    assert batch["image"].shape == (2, 3, 5, 6)
    for i, (height, width) in enumerate(sizes):
        inside = torch.zeros(5, 6, dtype=torch.bool)
        inside[:height, :width] = True
        assert (batch["image"][i][:, ~inside].abs() < 0.01).all()
        assert (batch["image"][i][:, inside].abs() > 0.5).all()
        assert torch.equal(batch["target"][i], torch.where(inside, 1, 255))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_samples_are_the_same(folder: Path, cache: str) -> None:
    plain, first = build(folder, cache="none"), build(folder, cache=cache)
    again = build(folder, cache=cache)
    for split, epoch in (("train", 0), ("train", 1), ("val", 0)):
        for index in range(3):
            expected = getattr(plain, split)[epoch, index]
            for data in (first, again):
                sample = getattr(data, split)[epoch, index]
                assert sample["name"] == expected["name"]
                assert torch.equal(sample["image"], expected["image"])
                assert torch.equal(sample["target"], expected["target"])


class Transfers(TorchDispatchMode):
    """Records copies to another device: True for those that wait for the device. Reading a number waits, too."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device:
            self.waits.append(not kwargs.get("non_blocking", False))
        if function is torch.ops.aten._local_scalar_dense.default:
            self.waits.append(True)
        return function(*args, **kwargs)


@pytest.mark.parametrize("sizes", [((4, 6), (4, 6)), ((4, 6), (5, 3))], ids=["one size", "padded"])
def test_the_program_never_waits_for_the_device(sizes: tuple[tuple[int, int], ...]) -> None:
    """PyTorch's meta device stands for a GPU: only the batch's two tensors are copied to it, both without waiting."""
    data = DATAMODULES["digits"]("segmentation")
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    samples = [
        {"image": torch.ones(*size, 3, dtype=torch.uint8), "target": torch.ones(size, dtype=torch.uint8), "name": "a"}
        for size in sizes
    ]
    data.to_device_and_normalise(collate(samples))  # brings the constants over
    with Transfers() as transfers:
        batch = data.to_device_and_normalise(collate(samples))
    assert batch["image"].device.type == "meta"
    assert transfers.waits == [False, False]


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_only_batches_for_a_cuda_device_are_pinned(device: str, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine with a GPU that the run does not use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = DATAMODULES["digits"]("classification", workers=0)
    data.setup()
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    assert data.val_dataloader().pin_memory is pinned
    assert data.train_dataloader().pin_memory is pinned


@pytest.mark.parametrize(
    ("samples", "batch_size", "processes"), [(5, 2, 2), (9, 2, 4), (7, 3, 3), (8, 4, 2), (4, 1, 4)]
)
def test_every_rank_has_equally_many_batches(samples: int, batch_size: int, processes: int) -> None:
    ranks = [EqualBatches(samples, batch_size, rank, processes) for rank in range(processes)]
    assert len({len(list(batches)) for batches in ranks}) == 1
    assert all(len(list(batches)) == len(batches) for batches in ranks)
    assert sorted(index for batches in ranks for batch in batches for index in batch) == list(range(samples))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_rank_without_samples_yields_an_empty_batch(task: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples for two ranks and a batch size of 1: rank 1 has two, and a third batch without any."""
    monkeypatch.setattr(DATAMODULES["digits"], "SCENES", {"train": 4, "val": 5, "test": 5})
    data = DATAMODULES["digits"](task, image_size=(24, 16), batch_size=1, workers=workers)
    data.setup()
    if task == "classification":
        data.val.source.ids = data.val.source.ids[:5]
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    shapes = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
        batches = list(data.val_dataloader())
        shapes.append([tuple(batch["image"].shape) for batch in batches])
    assert shapes == [[(1, 3, 24, 16)] * 3, [(1, 3, 24, 16)] * 2 + [(0, 3, 24, 16)]]
    empty = batches[-1]
    assert empty["target"].shape == ((0, 24, 16) if task == "segmentation" else (0,))
    assert (empty["image"].dtype, empty["target"].dtype, empty["name"]) == (torch.float32, torch.int64, [])


def test_files_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = MaskedImages.__getitem__
    monkeypatch.setattr(MaskedImages, "__getitem__", lambda self, index: read.append(index) or original(self, index))
    data = build(folder)
    after_setup = len(read)
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        assert len(list(loader)) == 3
    assert len(read) == after_setup
    uncached = build(folder, cache="none")
    read.clear()
    list(uncached.train_dataloader())
    assert len(read) == 6


def test_one_rank_of_a_machine_checks_the_files_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that torchrun or srun starts each make a data module of their own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    read: list[int] = []
    original = MaskedImages.__getitem__
    monkeypatch.setattr(MaskedImages, "__getitem__", lambda self, index: read.append(index) or original(self, index))
    build(folder, cache="none")
    assert len(read) == 9
    build(folder, cache="none")
    assert len(read) == 9


def test_an_error_that_the_check_finds_reaches_every_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (folder / "train" / "masks" / "3.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"masks/3\.png cannot be read"):
            build(folder)


def test_a_tilde_in_the_data_folder_is_the_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it in a settings file or after an equals sign."""
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(build(Path("~") / folder.name).train) == 6


def test_checked_samples_do_not_pile_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples of a large data set would fill the memory before training starts."""
    kept: list[Any] = []
    original = base.check
    monkeypatch.setattr(base, "check", lambda inspections: kept.extend(original(inspections)))
    build(folder)
    assert kept == [None] * 9


def test_workers_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is not forked does not inherit the settings of the main process."""
    told: dict[int, int] = {}
    library = SimpleNamespace(mallopt=told.__setitem__)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(
        loaders, "ignore_signals_except_parents", lambda: None
    )  # it would change this process's signals
    threads = cv2.getNumThreads()
    try:
        loaders.prepare_worker(0)
    finally:
        cv2.setNumThreads(threads)
    assert told == {-3: 32 << 20, -1: 256 << 20}
    del library.mallopt
    memory.keep_freed_memory()


def test_a_changed_file_is_decoded_anew(folder: Path) -> None:
    build(folder)
    path = folder / "train" / "images" / "1.png"
    Image.fromarray(np.full((40, 52, 3), 7, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    data = build(folder)
    index = [data.train.source[i][2] for i in range(6)].index("1")
    assert (data.train.load(index)[0] == 7).all()


def test_what_a_pipeline_writes_into_a_sample_is_not_kept(folder: Path) -> None:
    data = build(folder)
    before = data.train.load(0)[0].copy()
    data.train.load(0)[0][:] = 0
    assert np.array_equal(data.train.load(0)[0], before)


def test_samples_with_a_store_can_be_sent_to_other_processes(folder: Path) -> None:
    data = build(folder)
    again: Samples = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(again[0, 1]["image"], data.train[0, 1]["image"])


@pytest.mark.parametrize("least", [None, 50, 100, 150, 1000])
def test_reduced_jpeg_decoding_is_large_enough_and_equals_pillows(least: int | None, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(photograph(400, 613)).save(path)
    pixels = read_plain(path, least)
    assert pixels is not None
    assert pixels.shape[0] == {None: 400, 50: 50, 100: 100, 150: 200, 1000: 400}[least]
    np.testing.assert_array_equal(pixels, np.array(decode(path, min_side=least)))
    np.testing.assert_array_equal(pixels, read_image(path, least))


def test_classification_decodes_no_more_than_it_needs(tmp_path: Path) -> None:
    root = tmp_path / "classes"
    for label in ("a", "b"):
        for i in range(3):
            (root / label).mkdir(exist_ok=True, parents=True)
            Image.fromarray(photograph(400, 500, seed=i)).save(root / label / f"{i}.jpg")
    data = DATAMODULES["folders"]("classification", data_dir=str(root), image_size=(32, 32), batch_size=2, workers=0)
    data.setup()
    assert isinstance(data.train.source, LabelledImages)
    assert data.train.load(0)[0].shape == (100, 125, 3)


@pytest.mark.parametrize("spoil", ["truncated jpeg", "truncated png", "turned", "16 bits", "alpha"])
def test_unusual_files_are_left_to_the_slow_path(spoil: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.jpg" if spoil in ("truncated jpeg", "turned") else "image.png")
    pixels = photograph(40, 60)
    if spoil == "16 bits":
        cv2.imwrite(str(path), pixels.astype(np.uint16) * 257)
    elif spoil == "alpha":
        Image.fromarray(pixels).convert("RGBA").save(path)
    elif spoil == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(path, exif=exif)
    else:
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[:-60])
    assert read_plain(path, None) is None


def test_show_data_writes_a_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "folders", "--data-dir", str(folder), "--image-size", "32", "--batch-size", "2", "--out"]
    assert show_data([*flags, str(tmp_path), "--augmentation", "deeplab"]) == 0
    picture = np.array(Image.open(capsys.readouterr().out.strip()).convert("RGB"))
    assert min(picture.shape[:2]) > 400
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert show_data([*flags, str(tmp_path), "--batch-size", "99"]) == 0
    assert "--batch-size 99 is larger than the 6 training images; it is lowered to 6" in capsys.readouterr().out
