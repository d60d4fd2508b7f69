"""Every data set keeps the contract. A new set needs a tree in `fake_data.py`."""

import ast
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

import datamodules
from datamodules import DATAMODULES
from datamodules.digits import Digits
from tests.fake_data import accept_fake_checksums
from tests.made_trees import LABELS, STEP, build, make_tree
from tests.test_shards import names, on_process

SHARED = Path(__file__).parents[2] / "shared" / "data"
CASES = [(name, task) for name, kind in DATAMODULES.items() for task in kind.tasks]
MASKED = [("camvid", "segmentation"), ("folders", "segmentation")]


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_fake_checksums(monkeypatch)
    monkeypatch.setattr(Digits, "SCENES", {"train": 24, "val": 7, "test": 5})


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
            if task == "detection":
                assert len(batch["target"]) == len(batch["name"])
                check_objects(batch["target"], data.num_classes)
                continue
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


def check_objects(target: list[dict[str, torch.Tensor]], classes: int) -> None:
    """Boxes x1, y1, x2, y2 of the images, each with a class."""
    for objects in target:
        boxes, labels = objects["boxes"], objects["labels"]
        assert boxes.shape == (len(labels), 4)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert set(labels.unique().tolist()) <= {*range(classes)}


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
    with pytest.raises(ValueError, match=r"^11 processes cannot share 10 training images; use fewer --devices$"):
        on_process(data, 0, 11).train_dataloader()


def test_batches_are_smaller_where_there_are_few_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = build("camvid", "segmentation", tmp_path, batch_size=6)
    assert capsys.readouterr().out == ""
    batches = [len(batch["name"]) for batch in on_process(data, 0, 2).train_dataloader()]
    said = "note: --batch-size 6 on each of 2 processes needs more than the 10 training images; it is lowered to 5\n"
    assert (batches, capsys.readouterr().out) == ([5], said)
    data = build("camvid", "segmentation", tmp_path, batch_size=16)
    assert "--batch-size 16 is larger than the 10 training images; it is lowered to 10\n" in capsys.readouterr().out
    assert [len(batch["name"]) for batch in data.train_dataloader()] == [10]


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
