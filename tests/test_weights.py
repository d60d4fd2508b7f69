"""Reading checkpoints: files of every kind, the cache, and what is said when there is no network."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from backbones import BACKBONES
from backbones.weights import cached_download, read_weights


def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path) -> None:
    state = {"a": torch.randn(2, 3)}
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({"state_dict": {"network.backbone.a": state["a"], "network.head.b": state["a"]}}, tmp_path / "run.ckpt")
    save_file(state, tmp_path / "plain.safetensors")
    for path in tmp_path.iterdir():
        read = read_weights(str(path))
        assert read.keys() == state.keys()
        assert torch.equal(read["a"], state["a"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"half{suffix}"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"half.* cannot be read as a checkpoint") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)


def test_offline_names_address_cache_and_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="--weights imagenet could not be fetched") as caught:
        BACKBONES["resnet18"](weights="imagenet")
    for part in ("https://download.pytorch.org/models/resnet18-f37072fd.pth", str(tmp_path), "--weights FILE"):
        assert part in str(caught.value)


def test_the_cache_is_used_and_keeps_models_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "xception41.tf_in1k.safetensors"
    cached.parent.mkdir()
    save_file({"a": torch.ones(1)}, cached)
    assert cached_download("https://huggingface.co/timm/xception41.tf_in1k/resolve/main/model.safetensors") == cached
