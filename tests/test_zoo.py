"""zoo.py: a page of trained networks, from their run folders."""

import hashlib
import shlex
from pathlib import Path

import pytest

from experiments.command_line.parser import settings_from
from experiments.command_line.run_config import RunConfig, build_parser
from experiments.zoo import main
from tests.fake_runs import write_run


def test_a_page_of_two_groups_and_two_protocols(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for seed, miou in enumerate((0.5, 0.7)):
        folder = write_run(runs / f"a{seed}", "resnet18", "unet", seed, miou, pictures=False, lr=0.01)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "best.ckpt").write_bytes(b"weights %d" % seed)
    write_run(runs / "b", "vgg16", "fcn8s", 0, 0.65, pictures=False)
    write_run(runs / "c", "vgg16", "fcn8s", 0, 0.9, pictures=False, protocol={"image_size": [48, 64]})
    write_run(runs / "d", "vgg16", "fcn8s", 1, 0.9, pictures=False, done=False)
    assert main([str(runs), "--out", str(tmp_path / "zoo.md")]) == 0
    text = (tmp_path / "zoo.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == 2
    assert "| 0.600 ± 0.141 | 0.550 ± 0.141 | 0, 1 |" in text
    assert text.index("0.650") < text.index("0.600 ±"), "the best comes first"
    for seed in (0, 1):
        assert f"sha256 `{hashlib.sha256(b'weights %d' % seed).hexdigest()}`" in text
    assert text.count("the checkpoint is not there any more") == 2
    assert "runs/d is unfinished" in capsys.readouterr().err


def test_the_commands_are_those_of_the_runs(tmp_path: Path) -> None:
    write_run(
        tmp_path / "runs" / "a", "resnet18", "unet", 3, 0.5, pictures=False, lr=0.02, head_options={"up": "transpose"}
    )
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "zoo.md")]) == 0
    text = (tmp_path / "zoo.md").read_text(encoding="utf-8")
    words = shlex.split(text.split("```bash\n")[1].split("\n```")[0])
    config = settings_from(build_parser().parse_args(words[2:]), RunConfig)
    assert (config.backbone, config.head, config.lr, config.head_options) == (
        "resnet18",
        "unet",
        0.02,
        {"up": "transpose"},
    )


def test_nothing_is_written_without_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "a", "resnet18", "unet", 0, 0.5, done=False)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "zoo.md")]) == 2
    assert "no run is finished" in capsys.readouterr().err
    assert not (tmp_path / "zoo.md").exists()
