"""Digits pasted on photographs: splits share nothing, scenes are functions of seed, epoch and index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

from datamodules.digits import Digits, bundled_with_sklearn
from tests.made_trees import build


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 24, "val": 7, "test": 5})


@pytest.mark.parametrize("moved", [False, True])
def test_the_files_of_scikit_learn_hold_what_it_loads(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if moved:  # as by another release: then it is asked itself
        monkeypatch.setattr("datamodules.digits.find_spec", lambda name: None)
    images, labels, photographs = bundled_with_sklearn()
    assert np.array_equal(images, load_digits().images)
    assert np.array_equal(labels, load_digits().target)
    assert np.array_equal(photographs, load_sample_images().images)


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
