"""Class weights by hand-made masks, their cache, their effect on the loss, and the frozen backbone."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datamodules import DATAMODULES, class_weights
from datamodules.class_weights import count, inverse_log, median_frequency
from lightning_modules.classification import ClassificationModule
from lightning_modules.segmentation import SegmentationModule
from tests.fake_data import photo, save, two_labels


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(root: Path):
    """Two images of 40x40: 100 of 1,600 pixels of class 1, or 100 of class 2 and 400 ignored; class 3 nowhere."""
    masks = [two_labels(0, 1, 40, 40), two_labels(0, 2, 40, 40)]
    masks[1][:10] = 255
    masks[1][10:20, 10:20] = 2
    masks[1][20:] = 0
    for index, mask in enumerate(masks):
        for split in ("train", "val"):
            save(root / split / "images" / f"{index}.png", photo(index, 40, 40))
            save(root / split / "masks" / f"{index}.png", mask)
    (root / "classes.txt").write_text("ground\none\ntwo\nthree\n")
    data = DATAMODULES["folders"]("segmentation", data_dir=str(root), batch_size=1, workers=0)
    data.setup()
    return data


def test_both_formulas(tmp_path: Path) -> None:
    data = make(tmp_path)
    counts = count(data.train.source, data)
    assert counts.pixels.tolist() == [1500 + 1100, 100, 100, 0]
    assert counts.shown_in.tolist() == [1600 + 1200, 1600, 1200, 0]
    frequencies = [2600 / 2800, 100 / 1600, 100 / 1200]
    expected = [sorted(frequencies)[1] / frequency for frequency in frequencies]
    assert class_weights.class_weights("median_frequency", data) == pytest.approx([*expected, 1])
    shares = [2600 / 2800, 100 / 2800, 100 / 2800, 0]
    assert class_weights.class_weights("inverse_log", data) == pytest.approx([1 / math.log(1.02 + p) for p in shares])
    assert class_weights.class_weights("none", data) is None


def test_counts_are_kept_until_a_mask_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path)
    calls = []
    monkeypatch.setattr(class_weights, "of_mask", lambda *of: calls.append(of) or class_weights.of_target(0, 4))
    count(data.train.source, data)
    assert (len(calls), len(list((tmp_path / ".graft").iterdir()))) == (2, 1)
    count(data.train.source, data)
    assert len(calls) == 2
    save(tmp_path / "train" / "masks" / "0.png", two_labels(0, 3, 40, 40))
    count(data.train.source, data)
    assert len(calls) == 4


def test_folders_that_cannot_be_written_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path)
    (tmp_path / ".graft").write_text("a file where the folder would be")
    counts = count(data.train.source, data)
    assert len(list((tmp_path / "cache" / "graft").glob("class-counts-*"))) == 1
    (tmp_path / "other").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert [one.tolist() for one in count(data.train.source, data)] == [one.tolist() for one in counts]


def test_images_with_one_class_each_count_as_pixels(tmp_path: Path) -> None:
    for name, images in (("ants", 6), ("bees", 3)):
        for split in ("train", "val"):
            for index in range(images):
                save(tmp_path / split / name / f"{index}.png", photo(index))
    data = DATAMODULES["folders"]("classification", data_dir=str(tmp_path), batch_size=1, workers=0)
    data.setup()
    counts = count(data.train.source, data)
    assert median_frequency(counts) == pytest.approx([0.75, 1.5])
    assert inverse_log(counts) == pytest.approx([1 / math.log(1.02 + 2 / 3), 1 / math.log(1.02 + 1 / 3)])


def test_classes_of_digits_are_counted_without_drawing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DATAMODULES["digits"]("classification", batch_size=1, workers=0)
    data.setup()
    expected = [sum(data.train.source[i][1] == label for i in range(len(data.train))) for label in range(10)]
    monkeypatch.setattr(type(data.train.source), "__getitem__", lambda *_: pytest.fail("a digit was drawn"))
    assert count(data.train.source, data).pixels.tolist() == expected


def test_one_rank_of_a_machine_counts_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path)
    monkeypatch.setenv("GRAFT_NODE_FOLDER", str(tmp_path / "node"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    hashed = []
    original = class_weights.content_hash
    monkeypatch.setattr(class_weights, "content_hash", lambda *of: hashed.append(1) or original(*of))
    first, second = (count(data.train.source, data) for _ in range(2))
    assert len(hashed) == 1
    assert [one.tolist() for one in first] == [one.tolist() for one in second]


def test_generated_scenes_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATAMODULES["digits"], "SCENES", {"train": 24, "val": 2, "test": 2})
    data = DATAMODULES["digits"]("segmentation", batch_size=1, workers=0)
    data.setup()
    assert count(data.train.source, data).pixels.sum() == 24 * 64 * 64


def test_weights_from_a_file(tmp_path: Path) -> None:
    data = make(tmp_path)
    path = tmp_path / "weights.txt"
    path.write_text("1, 2.5\n0 4\n")
    assert class_weights.class_weights(str(path), data) == [1, 2.5, 0, 4]
    for text, message in (
        ("1 2", "holds 2 numbers; write 4 of at least 0, for ground to three in this order"),
        ("1 2 3 -4", "holds 4 numbers; write 4 of at least 0"),
        ("1 2 3 x", "cannot be read .*; write a number for each class"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            class_weights.class_weights(str(path), data)


def test_a_module_trains_with_its_weights() -> None:
    images, target = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    losses = []
    for weights in (None, [1.0, 3.0], [2.0, 6.0]):
        torch.manual_seed(0)
        module = SegmentationModule("lenet5", "unet", ["a", "b"], class_weights=weights).eval()
        module.log = lambda *_, **__: None
        losses.append(module.training_step({"image": images, "target": target, "name": ["a", "b"]}, 0).item())
    assert losses[1] == pytest.approx(losses[2])
    assert losses[0] != pytest.approx(losses[1])


def test_a_frozen_backbone_keeps_parameters_and_statistics() -> None:
    module = ClassificationModule("resnet18", "classifier", ["a", "b"], freeze_backbone=True)
    before = {name: value.clone() for name, value in module.network.backbone.state_dict().items()}
    (optimizer,) = (torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1),)
    module.train()
    assert module.network.head.training
    assert not any(part.training for part in module.network.backbone.modules())
    F.cross_entropy(module(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 0, 1])).backward()
    head = next(module.network.head.parameters()).clone()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.network.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in module.network.backbone.parameters())
    assert not torch.equal(next(module.network.head.parameters()), head)
    module.eval()
    assert not module.network.head.training
