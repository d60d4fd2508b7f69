"""A run that stops within an epoch and goes on sees what an uninterrupted run would have seen, in the same order."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the second process runs this file

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import DATAMODULES
from experiments.run import main as main_of_run
from lightning_modules.segmentation import SegmentationModule
from tests.warm_process import run_python

pytestmark = pytest.mark.usefixtures("no_pictures")

EPOCHS = 3
IMAGES = 24
BATCH = 2
STOP = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", IMAGES), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((16, 16), np.uint8)
            mask[:, i % 16 :] = 1
            cv2.imwrite(str(root / split / "images" / f"{i:02d}.png"), np.full((16, 16, 3), 10 * i, np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{i:02d}.png"), mask)
    return root


class Recorder(pl.LightningModule):
    """Notes the epoch, the names and the pixels of all batches it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 1)
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        pixels = float(batch["image"].double().abs().sum())
        self.seen.append((self.current_epoch, list(batch["name"]), round(pixels, 3)))
        return self.layer(batch["image"]).mean()

    def validation_step(self, batch: dict[str, Any]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(
    data_dir: Path, out: Path, steps: int, checkpoint: Path | None, workers: int = 0, processes: int = 1
) -> Recorder:
    """Train up to `steps`, from a checkpoint if there is one; leaves one of every step in `out`."""
    data = DATAMODULES["folders"](
        "segmentation", data_dir=str(data_dir), image_size=(16, 16), batch_size=BATCH, workers=workers
    )
    module = Recorder()
    trainer = pl.Trainer(
        max_epochs=EPOCHS, max_steps=steps, accelerator="cpu", devices=processes, logger=False, num_sanity_val_steps=0,
        strategy="ddp" if processes > 1 else "auto", enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=out,
        callbacks=[ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.parametrize(("stops", "workers"), [((5,), 0), ((17,), 2), ((12,), 0), ((11, 14, 20), 0)])
def test_the_rest_of_the_epoch_comes_in_the_same_order(
    folder: Path, tmp_path: Path, stops: tuple[int, ...], workers: int
) -> None:
    """Stopped within an epoch of 12 steps, at its end and just after it, and once more."""
    whole = run(folder, tmp_path / "whole", -1, None).seen
    assert len(whole) == EPOCHS * IMAGES // BATCH
    assert len({name for _, names, _ in whole[: IMAGES // BATCH] for name in names}) == IMAGES
    seen, checkpoint = [], None
    for stop in (*stops, -1):
        seen += run(folder, tmp_path / "part", stop, checkpoint, workers).seen
        checkpoint = tmp_path / "part" / f"step={stop}.ckpt"
    assert seen == whole


def test_two_processes_share_the_rest_as_they_would_have(folder: Path, tmp_path: Path) -> None:
    done = run_python([__file__, str(folder), str(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    shares = []
    for rank in range(2):
        whole, rest = json.loads((tmp_path / f"seen{rank}.json").read_text())
        assert len(whole) == EPOCHS * IMAGES // BATCH // 2
        assert rest == whole[STOP:]
        shares.append({name for _, names, _ in whole[6:12] for name in names})
    assert not shares[0] & shares[1]


def test_run_py_goes_on_within_an_epoch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = SegmentationModule.training_step

    def step(self: SegmentationModule, batch: dict[str, Any], index: int) -> torch.Tensor:
        seen.extend(batch["name"])
        return original(self, batch, index)

    monkeypatch.setattr(SegmentationModule, "training_step", step)
    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
    common = [
        "--backbone", "resnet18", "--head", "fcn32s", "--data", "folders", "--data-dir", str(folder), "--out",
        str(tmp_path), "--image-size", "16", "--batch-size", "4", "--epochs", "1", "--workers", "0", "--accelerator",
        "cpu", "--checkpoint-every", "2",
    ]  # fmt: skip
    assert main_of_run([*common, "--name", "whole"]) == 0
    whole = list(seen)
    seen.clear()
    assert main_of_run([*common, "--name", "part", "--max-steps", "4"]) == 0
    assert main_of_run([*common, "--name", "part", "--resume"]) == 0
    assert seen == whole


def main() -> None:
    """One of the two processes, Lightning starts the other: an uninterrupted run, and one from its checkpoint."""
    folder, out = map(Path, sys.argv[1:])
    whole = run(folder, out / "whole", -1, None, processes=2)
    rest = run(folder, out / "rest", -1, out / "whole" / f"step={STOP}.ckpt", processes=2)
    (out / f"seen{whole.global_rank}.json").write_text(json.dumps([whole.seen, rest.seen]))


if __name__ == "__main__":
    main()
