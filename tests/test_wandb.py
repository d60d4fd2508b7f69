"""The real W&B client, offline: what was promised is in its files, and resuming keeps the run."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

wandb = pytest.importorskip("wandb", reason="the W&B client is not installed")


def chunks(log: bytes) -> Iterator[bytes]:
    """The records of a W&B file: a seven-byte header, then LevelDB's log format in blocks of 32 KiB."""
    whole, last = 1, 4
    position, parts = 7, []
    while position + 7 <= len(log):
        left = 32768 - position % 32768
        if left < 7:  # a block's tail too short for a header is padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", log, position + 4)
        parts.append(log[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (whole, last):
            yield b"".join(parts)
            parts = []


def records(run_folder: Path) -> tuple[dict[str, str], set[str], dict[str, str], str]:
    """Config, history keys, summary definitions and run id of the newest offline run below a folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = sorted(run_folder.rglob("*.wandb"))[-1:]
    config: dict[str, str] = {}
    keys: set[str] = set()
    metrics: dict[str, str] = {}
    run_id = ""
    for data in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run_id = record.run.run_id
            config |= {item.key: item.value_json for item in record.run.config.update}
        config |= {item.key or item.nested_key[0]: item.value_json for item in record.config.update}
        keys |= {item.key or item.nested_key[0] for item in record.history.item}
        if record.HasField("metric"):
            metrics[record.metric.name] = "max" if record.metric.summary.max else ""
    return config, keys, metrics, run_id


def test_offline_files_hold_what_was_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from experiments.run import main

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = [
        "--backbone", "resnet18", "--head", "fcn8s", "--batch-size", "16", "--epochs", "3", "--workers", "0",
        "--logger", "wandb", "--out", str(tmp_path), "--name", "w", "--image-size", "32", "--accelerator", "cpu",
    ]  # fmt: skip
    from datamodules.digits import Digits

    monkeypatch.setattr(Digits, "SCENES", {"train": 48, "val": 7, "test": 5})
    assert main([*arguments, "--max-steps", "5"]) == 0
    out = capsys.readouterr().out
    assert "wandb sync" in out
    config, keys, metrics, run_id = records(tmp_path / "w")
    assert {"backbone", "head", "lr", "params", "gmacs"} <= config.keys()
    assert {"train/loss_step", "val/loss", "val/miou", "val/iou/background", "predictions", "confusion_matrix"} <= keys
    assert metrics["val/miou"] == "max"
    assert (tmp_path / "w" / "wandb_id").read_text().strip() == run_id
    assert list((tmp_path / "w").rglob("media/images/predictions*.png"))
    assert main([*arguments, "--resume"]) == 0
    assert records(tmp_path / "w")[3] == run_id
