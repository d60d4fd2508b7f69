"""ImageNet-21k: its names, and the way from its classes to those of ImageNet-1k."""

import sys
from pathlib import Path

import pytest
import torch

from datamodules import imagenet21k
from datamodules.imagenet import NAMES
from datamodules.imagenet21k import names_of
from lightning_modules.classification import ClassificationModule
from tests.fake_data import make_imagenet21k, photo, save
from tests.test_data_sets import build

WNIDS = ["n01440764", "n02012849", "n02084071", "n03126707"]


def test_names_are_those_of_imagenet_where_it_has_the_class() -> None:
    """Where WordNet says crane twice, torchvision says which."""
    assert names_of(WNIDS) == ("tench", "crane bird", "dog", "crane")
    assert names_of(["n01440764", "n99999999"]) == ("tench", "n99999999")


def test_without_timm_ids_are_the_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm.data", None)
    assert names_of(WNIDS) == tuple(WNIDS)
    assert 'pip install "graft[timm]"' in capsys.readouterr().out


def test_a_fifth_is_held_out_and_val_is_taken_where_it_is(tmp_path: Path) -> None:
    make_imagenet21k(tmp_path / "bare")
    data = build("imagenet21k", tmp_path / "bare", "classification")
    assert (len(data.train), len(data.val), data.class_names[2]) == (16, 4, "dog")
    make_imagenet21k(tmp_path / "split" / "train")
    save(tmp_path / "split" / "val" / WNIDS[3] / "a.JPEG", photo(0))
    data = build("imagenet21k", tmp_path / "split", "classification")
    assert (len(data.train), len(data.val)) == (20, 1)
    assert int(data.val[0]["target"]) == 3
    save(tmp_path / "split" / "val" / "n00000001" / "a.JPEG", photo(0))
    with pytest.raises(ValueError, match="n00000001 is no class of .*train; add it there or remove it"):
        build("imagenet21k", tmp_path / "split", "classification")


def test_a_network_takes_its_classes_out_of_a_larger_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `--data imagenet --start-from` a run on ImageNet-21k: by name, the second crane from the second."""
    names = ["tench", "crane", "crane", "anemone"]
    whole = ClassificationModule("lenet5", "classifier", ["tench", "crane", "dog", "crane", "anemone", "cat"])
    state = {"state_dict": whole.state_dict(), "hyper_parameters": dict(whole.hparams)}
    torch.save(state, tmp_path / "whole.ckpt")
    part = ClassificationModule("lenet5", "classifier", [*names, "unknown"])
    before = [parameter.clone() for parameter in part.network.head.parameters()][-1]
    assert part.start_from(str(tmp_path / "whole.ckpt")) == []
    assert "it has 6 classes, not the same; of" in (said := capsys.readouterr().out)
    assert "the rows of 4 of our 5 classes are taken, by name; 1 classes start afresh (unknown)\n" in said
    x = torch.randn(2, 3, 32, 32)
    part, whole = part.eval(), whole.eval()
    with torch.no_grad():
        torch.testing.assert_close(part(x)[:, :4], whole(x)[:, [0, 1, 3, 4]])
    assert torch.equal([*part.network.head.parameters()][-1][4], before[4])


def test_all_1000_classes_have_their_names() -> None:
    from timm.data import ImageNetInfo

    wnids = ImageNetInfo("imagenet-1k").label_names()
    assert names_of(wnids) == NAMES
    assert len(set(names_of(sorted(ImageNetInfo("imagenet-22k").label_names())))) >= 21_841 - 2
    assert imagenet21k.NAMES is NAMES
