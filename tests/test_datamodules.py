"""Every data set keeps the contract; wrong data is refused in one line. A new set needs a tree in `fake_data.py`."""

import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import datamodules
from datamodules import DATAMODULES, checking
from datamodules.base import GraftDataModule
from datamodules.digits import Digits
from datamodules.errors import DataError
from tests.fake_data import accept_fake_checksums, make_fake
from tests.test_shards import make_shards

SHARED = Path(__file__).parents[2] / "shared" / "data"
CASES = [(name, task) for name, kind in DATAMODULES.items() for task in kind.tasks]
MASKED = [("camvid", "segmentation"), ("folders", "segmentation")]
CLASSES = 11
LABELS = (0, 4, 10)
STEP = 25
"""Grey levels between the labels of a made image: pixels of class c are about 25 c."""


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_fake_checksums(monkeypatch)
    monkeypatch.setattr(Digits, "SCENES", {"train": 24, "val": 7, "test": 5})


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_mask(index: int, height: int = 30, width: int = 40) -> np.ndarray:
    """Two vertical stripes and a block, elsewhere for each index; a corner is to be ignored."""
    mask = np.full((height, width), LABELS[0], np.uint8)
    mask[:, width // 2 + index :] = LABELS[1]
    mask[height // 3 : height // 2 + index, : width // 3] = LABELS[2]
    mask[:4, :4] = 255
    return mask


def make_pair(images: Path, masks: Path, name: str, index: int, **size: int) -> None:
    mask = make_mask(index, **size)
    save(images / f"{name}.png", np.repeat((mask * STEP)[..., None], 3, axis=2))
    save(masks / f"{name}.png", mask)


def make_tree(name: str, task: str, root: Path) -> str | None:
    """Data of 10 training and some validation images for data set `name`; None where it brings its own."""
    if name == "digits":
        return None
    if name == "camvid":
        for split, count in (("train", 10), ("val", 5)):
            for index in range(count):
                make_pair(root / split, root / f"{split}annot", f"{split}{index}", index)
            (root / f"{split}.txt").write_text("".join(f"{split}{index}\n" for index in range(count)))
        return str(root)
    if name == "folders" and task == "segmentation":
        for index in range(13):
            make_pair(root / "images", root / "masks", f"{index:02d}", index % 5, width=40 + index)
        return str(root)
    if name == "folders" and task == "classification":
        for label in ("ants", "bees", "wasps"):
            for index in range(5):
                save(root / label / f"{index}.jpg", np.full((30, 40 + index, 3), 10 * index, np.uint8))
        return str(root)
    if name == "shards":
        return str(make_shards(root, task))
    return make_fake(name, task, root)


def build(name: str, task: str, root: Path, **options: Any) -> GraftDataModule:
    data = DATAMODULES[name](task, data_dir=make_tree(name, task, root), **{"batch_size": 4, "workers": 0} | options)
    data.setup()
    return data


def on_process(data: GraftDataModule, rank: int, processes: int) -> GraftDataModule:
    cpu = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=processes, strategy=cpu)
    return data


def names(loader: Any) -> list[str]:
    return [name for batch in loader for name in batch["name"]]


def test_the_names_are_read_without_importing() -> None:
    tree = ast.parse(Path(datamodules.__file__).read_text(encoding="utf-8"))
    table = next(node for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "DATAMODULES")
    assert [key.value for key in table.value.keys] == list(DATAMODULES)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_contract(name: str, task: str, tmp_path: Path) -> None:
    data = build(name, task, tmp_path)
    data.setup("fit")
    assert data.task == task
    assert data.ignore_index == 255
    assert data.num_classes == len(data.class_names) == len(set(data.colours)) >= 2
    assert all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in data.colours)
    assert data.splits == ("train", "val", "test")[: len(data.splits)]
    assert (data.test is not None) == ("test" in data.splits)
    loaders = {split: getattr(data, f"{split}_dataloader")() for split in data.splits}
    assert len(loaders["train"]) == len(data.train) // 4
    for split, loader in loaders.items():
        batches = list(loader)
        for batch in batches:
            assert batch["image"].dtype == torch.float32
            assert batch["image"].shape[1] == 3
            if split == "train":
                assert batch["image"].shape == (4, 3, *data.image_size)
            pixels = data.to_pixels(batch["image"])
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
            torch.testing.assert_close((pixels / 255 - mean) / std, batch["image"], atol=1e-5, rtol=0)
            assert batch["target"].dtype == torch.int64
            expected = batch["image"].shape[2:] if task == "segmentation" else ()
            if "target_sizes" in batch:
                assert split != "train"
                expected = tuple(np.max(batch["target_sizes"], axis=0))
            assert batch["target"].shape == (len(batch["name"]), *expected)
            assert set(batch["target"].unique().tolist()) <= {*range(data.num_classes), 255}
        if split != "train":
            seen = names(batches)
            assert len(seen) == len(set(seen)) == len(getattr(data, split))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_data_sets_can_be_sent_to_workers_that_are_not_forked(name: str, task: str, tmp_path: Path) -> None:
    data = build(name, task, tmp_path)
    for samples in (data.train, data.val):
        assert torch.equal(pickle.loads(pickle.dumps(samples))[1]["image"], samples[1]["image"])


@pytest.mark.parametrize(("name", "task"), [case for case in CASES if case[0] in ("digits", "folders", "camvid")])
def test_augmentation_depends_on_seed_epoch_and_index_only(name: str, task: str, tmp_path: Path) -> None:
    def run(workers: int, seed: int, epoch: int) -> tuple[list[str], torch.Tensor]:
        data = build(name, task, tmp_path, workers=workers, seed=seed)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        return names(batches), torch.cat([batch["image"] for batch in batches])

    order, images = run(workers=0, seed=0, epoch=1)
    same_order, same = run(workers=2, seed=0, epoch=1)
    assert order == same_order
    assert torch.equal(images, same)
    for other_order, other in (run(0, 1, 1), run(0, 0, 2)):
        assert other_order != order
        assert not torch.equal(other, images)


def test_one_sample_changes_from_epoch_to_epoch_and_with_the_seed(tmp_path: Path) -> None:
    data, other = (build("camvid", "segmentation", tmp_path, seed=seed) for seed in (0, 1))
    first = data.train[0, 3]["image"]
    assert torch.equal(first, data.train[0, 3]["image"])
    assert not torch.equal(first, data.train[1, 3]["image"])
    assert not torch.equal(first, other.train[0, 3]["image"])


@pytest.mark.parametrize(("name", "task"), MASKED)
def test_images_and_masks_stay_together_and_labels_stay_labels(name: str, task: str, tmp_path: Path) -> None:
    data = build(name, task, tmp_path, image_size=(48, 56))
    agreeing = counted = 0
    for epoch in range(20):
        sample = data.train[epoch, epoch % len(data.train)]
        mask = sample["target"]
        assert set(mask.unique().tolist()) <= {*LABELS, 255}
        pixels = data.to_pixels(sample["image"])[0].int()
        agreeing += ((pixels - mask * STEP).abs()[mask != 255] <= STEP).sum().item()
        counted += (mask != 255).sum().item()
    # Only where stripes meet is a pixel of the image a mixture. These images are small, and enlarged up to fourfold.
    assert agreeing >= 0.9 * counted


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_share_the_validation_set_exactly_once(processes: int, tmp_path: Path) -> None:
    data = build("camvid", "segmentation", tmp_path, batch_size=2)
    seen = [name for rank in range(processes) for name in names(on_process(data, rank, processes).val_dataloader())]
    assert len(seen) == len(data.val)
    assert sorted(seen) == sorted(names(on_process(data, 0, 1).val_dataloader()))
    shares = [names(on_process(data, rank, processes).train_dataloader()) for rank in range(processes)]
    assert len(set().union(*shares)) == sum(map(len, shares)), "no training image goes to two processes"
    assert len({len(share) for share in shares}) == 1


def test_more_processes_than_images_are_refused(tmp_path: Path) -> None:
    data = build("camvid", "segmentation", tmp_path, batch_size=1)
    with pytest.raises(ValueError, match=r"^6 processes cannot share 5 val images; use fewer --devices$"):
        on_process(data, 0, 6).val_dataloader()
    data.batch_size = 6
    with pytest.raises(ValueError, match=r"^--batch-size 6 on each of 2 processes .* 10 .* images; use at most 5$"):
        on_process(data, 0, 2).train_dataloader()


def test_the_trainer_starts_every_epoch_anew(tmp_path: Path) -> None:
    class Recorder(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1)
            self.seen: dict[int, list[str]] = {0: [], 1: []}

        def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
            self.seen[self.current_epoch] += batch["name"]
            return self.layer(batch["image"]).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=2, use_distributed_sampler=False, enable_model_summary=False, **options)
    data = DATAMODULES["camvid"]("segmentation", data_dir=make_tree("camvid", "", tmp_path), batch_size=5, workers=1)
    module = Recorder()
    trainer.fit(module, data)
    assert sorted(module.seen[0]) == sorted(module.seen[1])
    assert module.seen[0] != module.seen[1]


# Digits


@pytest.mark.parametrize("task", Digits.tasks)
def test_splits_share_no_digit(task: str, tmp_path: Path) -> None:
    data = build("digits", task, tmp_path)
    parts = [samples.source.ids for samples in (data.train, data.val, data.test)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1797))
    for samples in (data.train, data.val, data.test):
        shares = np.bincount(samples.source.labels[samples.source.ids], minlength=10) / len(samples.source.ids)
        assert np.ptp(shares) < 0.02


def test_splits_share_no_pixel_of_a_photograph(tmp_path: Path) -> None:
    columns = [set(range(*strip)) for strip in Digits.STRIPS.values()]
    assert sum(map(len, columns)) == len(set.union(*columns))
    data = build("digits", "segmentation", tmp_path)
    for split, strip in Digits.STRIPS.items():
        for background in getattr(data, split).source.backgrounds:
            assert background.shape == (427, strip[1] - strip[0], 3)
        assert strip[1] <= 640


def test_scenes_are_a_function_of_seed_and_index(tmp_path: Path) -> None:
    one, again, other = (build("digits", "segmentation", tmp_path, seed=seed) for seed in (0, 0, 1))
    for split in ("train", "val", "test"):
        for a, b in zip(getattr(one, split).source[3], getattr(again, split).source[3], strict=True):
            assert np.array_equal(a, b)
    assert not np.array_equal(one.train.source[3][0], other.train.source[3][0])
    assert np.array_equal(one.val.source[3][0], other.val.source[3][0]), "runs of all seeds are scored alike"
    assert not np.array_equal(one.train.source[3][0], one.train.source[4][0])


def test_every_epoch_trains_on_new_scenes_and_is_scored_on_the_same(tmp_path: Path) -> None:
    data = build("digits", "segmentation", tmp_path)
    assert not torch.equal(data.train[0, 3]["target"], data.train[1, 3]["target"])
    assert torch.equal(data.train[1, 3]["target"], data.train[1, 3]["target"])
    assert torch.equal(data.val[0, 3]["target"], data.val[1, 3]["target"])


def test_scenes_are_mostly_background_and_hold_every_digit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 200, "val": 1, "test": 1})
    data = build("digits", "segmentation", tmp_path)
    masks = np.stack([data.train.source[index][1] for index in range(200)])
    shares = np.bincount(masks.ravel(), minlength=11) / masks.size
    assert 0.78 < shares[0] < 0.88
    assert shares[1:].min() > 0.01
    most = 1 + max(data.train.source.HEIGHTS)
    assert all(2 <= len(np.unique(mask)) <= most for mask in masks)


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (65, 97), (256, 256)])
def test_scenes_of_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    data = build("digits", "segmentation", tmp_path, image_size=size)
    image, mask, _ = data.val.source[0]
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert 0.7 < (mask == 0).mean() < 0.97


# Folders


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_splits_around_or_inside_the_two_folders(layout: str, tmp_path: Path) -> None:
    counts = {"train": 4, "val": 2, "test": 3}
    for split, count in counts.items():
        for index in range(count):
            images, masks = (tmp_path / layout.format(split=split, kind=kind) for kind in ("images", "masks"))
            make_pair(images, masks, f"{index}", index)
    data = DATAMODULES["folders"]("segmentation", data_dir=str(tmp_path), batch_size=2, workers=0)
    data.setup()
    assert {split: len(getattr(data, split)) for split in data.splits} == counts


def test_a_fifth_is_held_out_whatever_the_order(tmp_path: Path) -> None:
    data = build("folders", "segmentation", tmp_path)
    train, val = ({samples.source[index][2] for index in range(len(samples))} for samples in (data.train, data.val))
    assert len(train) == 10
    assert val == {"05", "08", "11"}, "the hash must choose the same images everywhere"
    assert not train & val
    data = build("folders", "classification", tmp_path / "classes")
    assert data.class_names == ("ants", "bees", "wasps")
    assert [label for _, label in data.val.source.files] == [0, 1, 2]


def test_class_names_and_colours(tmp_path: Path) -> None:
    make_tree("folders", "segmentation", tmp_path)
    data = build("folders", "segmentation", tmp_path)
    assert data.class_names == tuple(map(str, range(CLASSES)))
    lines = [f"class {i},{i},{2 * i},{3 * i}" for i in range(12)]
    (tmp_path / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]))
    data = build("folders", "segmentation", tmp_path)
    assert data.class_names[11] == "class 11"
    assert data.colours[11] == (11, 22, 33)
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {i}" for i in range(13)) + "\n")
    assert build("folders", "segmentation", tmp_path).class_names[12] == "kind 12"


def test_palette_masks_are_read_as_their_indices(tmp_path: Path) -> None:
    make_tree("folders", "segmentation", tmp_path)
    for path in (tmp_path / "masks").iterdir():
        image = Image.open(path)
        image.load()
        image.putpalette([7 * i % 256 for i in range(768)])
        image.save(path)
    data = DATAMODULES["folders"]("segmentation", data_dir=str(tmp_path), batch_size=2, workers=0)
    data.setup()
    assert set(np.unique(data.val.source[0][1]).tolist()) == {*LABELS, 255}


# Bad input: what breaks the data, the data set and task, and the one line that says so.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def one_more_image(root: Path) -> None:
    save(root / "images" / "more.png", np.zeros((30, 40, 3), np.uint8))


def one_more_mask(root: Path) -> None:
    save(root / "masks" / "more.png", np.zeros((30, 40), np.uint8))


def small_mask(root: Path) -> None:
    save(root / "masks" / "03.png", make_mask(0)[:20])


def colour_mask(root: Path) -> None:
    save(root / "masks" / "03.png", np.zeros((30, 43, 3), np.uint8))


def large_label(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(map(str, range(CLASSES))))
    save(root / "masks" / "03.png", np.full((30, 43), 11, np.uint8))


def large_camvid_label(root: Path) -> None:
    save(root / "valannot" / "val2.png", np.full((30, 40), 12, np.uint8))


def one_label(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, (np.array(Image.open(path)) == 255).astype(np.uint8) * 255)


def no_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


def one_class(root: Path) -> None:
    for name in ("bees", "wasps"):
        (root / name).rename(root.parent / name)


def unknown_class(root: Path) -> None:
    for name in ("ants", "bees"):
        save(root / "train" / name / "1.png", np.zeros((9, 9, 3), np.uint8))
    save(root / "val" / "flies" / "1.png", np.zeros((9, 9, 3), np.uint8))


SEGMENTATION = ("folders", "segmentation")
CLASSIFICATION = ("folders", "classification")
CAMVID = ("camvid", "segmentation")
BAD: list[tuple[tuple[str, str], Callable[[Path], Any], str]] = [
    (SEGMENTATION, one_more_image, r"images/more\.png has no mask; add .*masks/more\.png or remove the image"),
    (SEGMENTATION, one_more_mask, r"masks/more\.png has no image; add one named more to .*images or remove the mask"),
    (SEGMENTATION, small_mask, r"masks/03\.png is 40x20 but .*images/03\.png is 43x30; both must be of one size$"),
    (SEGMENTATION, colour_mask, r"masks/03\.png has pixels of mode RGB; save it as a grey or palette PNG"),
    (SEGMENTATION, large_label, r"masks/03\.png has the label value 11; allowed are 0 to 10 and 255 \(ignored\); "),
    (
        SEGMENTATION,
        one_label,
        "hold no label but 0 and 255, and 255 is ignored; write 1, 2, ",
    ),
    (SEGMENTATION, no_images, "images holds no images .*; check --data-dir"),
    (SEGMENTATION, lambda root: truncate(root / "images" / "05.png"), r"images/05\.png cannot be read .*; replace"),
    (SEGMENTATION, lambda root: truncate(root / "masks" / "05.png"), r"masks/05\.png cannot be read .*; replace"),
    (
        SEGMENTATION,
        lambda root: (root / "classes.csv").write_text("a,b\n1,2\n"),
        r"classes\.csv, line 1: 'a,b'; the file must begin with the ",
    ),
    (SEGMENTATION, lambda root: (root / "classes.txt").write_text("a\na\n"), r"names 1 different classes; write 2 to"),
    (CLASSIFICATION, lambda root: truncate(root / "bees" / "3.jpg"), r"bees/3\.jpg cannot be read .*; replace"),
    (CLASSIFICATION, lambda root: (root / "flies").mkdir(), "flies holds no images .*; check --data-dir"),
    (
        CLASSIFICATION,
        one_class,
        "holds ants/: 1 class folders, but at least 2 are needed; --data-dir must name a folder with a folder",
    ),
    (CLASSIFICATION, unknown_class, "val/flies is no class of .*train; add it there or remove it"),
    (CAMVID, large_camvid_label, r"valannot/val2\.png has the label value 12; allowed are 0 to 10 and 11 and 255"),
    (CAMVID, lambda root: (root / "val.txt").unlink(), r"val\.txt is missing; --data-dir must name a folder with tr"),
    (CAMVID, lambda root: (root / "val.txt").write_text("other\n"), r"val\.txt lists other, which .*val does not hold"),
    (CAMVID, lambda root: (root / "val.txt").write_text("\n"), r"val\.txt is empty; write the name of an image on"),
]


@pytest.mark.parametrize(("case", "spoil", "message"), BAD)
def test_bad_data_is_refused_in_one_line(
    case: tuple[str, str], spoil: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    make_tree(*case, tmp_path)
    spoil(tmp_path)
    data = DATAMODULES[case[0]](case[1], data_dir=str(tmp_path), batch_size=2)
    with pytest.raises(ValueError, match=message) as caught:
        data.setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "options", "message"),
    [
        ("camvid", "segmentation", {"data_dir": "nowhere"}, "^nowhere is not a folder; --data-dir must name a folder"),
        ("camvid", "classification", {}, "^--data camvid is for segmentation only; for classification use --data digi"),
        ("folders", "segmentation", {}, "^--data folders needs --data-dir; --data-dir must name a folder with images/"),
        ("folders", "classification", {"data_dir": "nowhere"}, "^nowhere is not a folder; --data-dir must name a fold"),
        ("digits", "segmentation", {"batch_size": 0}, "^--batch-size is 0; it must be 1 or more$"),
        ("digits", "segmentation", {"workers": -1}, "^--workers is -1; it must be 0 or more$"),
        ("digits", "segmentation", {"image_size": (0, 64)}, "^--image-size is 0x64; both sides must be 1 or more$"),
        (
            "digits",
            "segmentation",
            {"batch_size": 64},
            "^--batch-size 64 is larger than the 24 training images; use at most 24$",
        ),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    name: str, task: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        DATAMODULES[name](task, **options).setup()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is empty; --data-dir must name a folder with images/ and masks/"):
        DATAMODULES["folders"]("segmentation", data_dir=str(tmp_path)).setup()


def test_a_broken_file_beyond_the_check_is_one_line_from_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checking, "MOST_CHECKED", 1)
    make_tree("camvid", "segmentation", tmp_path)
    broken = tmp_path / "val" / "val3.png"
    truncate(broken)
    data = DATAMODULES["camvid"]("segmentation", data_dir=str(tmp_path), batch_size=2, workers=1)
    data.setup()
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(f"{broken} cannot be read (")
    assert "\n" not in str(caught.value)


# Real data


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="CamVid is not at ../shared/data/camvid")
def test_camvid() -> None:
    data = DATAMODULES["camvid"]("segmentation", data_dir=str(SHARED / "camvid"), workers=0, batch_size=2)
    data.setup()
    assert data.splits == ("train", "val")
    assert (len(data.train), len(data.val)) == (367, 101)
    sample = data.val[0]
    assert sample["image"].shape == (3, 360, 480)
    assert data.class_names[sample["target"][300, 240]] == "road"
    assert next(iter(data.train_dataloader()))["target"].shape == (2, 360, 480)


@pytest.mark.skipif(not (SHARED / "hymenoptera").is_dir(), reason="Hymenoptera is not at ../shared/data/hymenoptera")
def test_hymenoptera() -> None:
    root = str(SHARED / "hymenoptera")
    data = DATAMODULES["folders"]("classification", data_dir=root, workers=0, image_size=(64, 64))
    data.setup()
    assert data.class_names == ("ants", "bees")
    assert (len(data.train), len(data.val)) == (244, 153)
    assert data.val[0]["image"].shape == (3, 64, 64)
