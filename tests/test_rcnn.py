"""R-CNN and SPP-net: features of boxes, machines, box regression, and the program."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.rcnn import main
from experiments.region_svms.box_regression import ClassRegression
from experiments.region_svms.features import RegionFeatures
from experiments.region_svms.svm import EASY, ClassMachine
from tests.fake_data import photo


class Halves(nn.Module):
    """A backbone of one layer: means of 2x2 pixels."""

    reductions = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(x, 2)]


def features(**options: object) -> RegionFeatures:
    return RegionFeatures(Halves().eval(), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), **options)  # type: ignore[arg-type]


def test_a_box_is_warped_with_its_margin() -> None:
    """At its own size, the crop is the picture around the box; beyond the picture there is the mean colour."""
    image = photo(0, 300, 320)
    crop = features(side=227).warped(image, np.float32([40, 50, 40 + 195, 50 + 195]))
    assert np.array_equal(crop, image[50 - 16 : 50 + 211, 40 - 16 : 40 + 211])
    corner = features(side=227).warped(image, np.float32([0, 0, 195, 195]))
    assert (corner[:16] == 128).all()
    assert (corner[:, :16] == 128).all()
    assert np.array_equal(corner[16:, 16:], image[:211, :211])
    wide = features(side=227).warped(image, np.float32([50, 100, 50 + 195, 100 + 97.5]))
    assert np.abs(wide[113].astype(int) - image[148, 50 - 16 : 50 + 211].astype(int)).max() < 60  # the middle row


def test_crops_are_seen_one_by_one() -> None:
    """In batches, and the map of a crop is what boxes are regressed from."""
    image, boxes = photo(1, 60, 80), np.float32([[4, 5, 30, 40], [10, 10, 70, 50]] * 70)
    describe = features(side=32)
    found, maps = describe(image, boxes)
    assert found.shape == (140, 3)
    assert maps.shape == (140, 3 * 16 * 16)
    crop = torch.from_numpy(describe.warped(image, boxes[1])).permute(2, 0, 1) / 255 - 0.5
    assert torch.allclose(found[139], crop.mean((1, 2)), atol=1e-5)
    assert torch.allclose(maps[139].view(3, 16, 16), nn.functional.avg_pool2d(crop, 2), atol=1e-5)


def test_the_pyramid_is_the_largest_value_of_each_bin() -> None:
    """Against a loop over bins; all from one map of the image."""
    image = photo(2, 48, 64)
    describe = features(pooling="spp", bins=(1, 2))
    boxes = np.float32([[8, 4, 40, 36], [0, 0, 64, 48]])
    found, again = describe(image, boxes)
    assert found is again
    assert found.shape == (2, 3 * 5)
    x = nn.functional.avg_pool2d(torch.from_numpy(image).permute(2, 0, 1) / 255 - 0.5, 2)
    for row, (x1, y1, x2, y2) in zip(found, boxes.astype(int) // 2, strict=True):
        # Rounded corners count as inside, as in Caffe's code.
        part = x[:, y1 : min(y2 + 1, 24), x1 : min(x2 + 1, 32)]
        height, width = y2 + 1 - y1, x2 + 1 - x1
        bins = [part.amax((1, 2))[:, None, None]]
        grid = torch.empty(3, 2, 2)
        for i in range(2):
            for j in range(2):
                rows = slice(i * height // 2, -(-(i + 1) * height // 2))
                grid[:, i, j] = part[:, rows, slice(j * width // 2, -(-(j + 1) * width // 2))].amax((1, 2))
        bins.append(grid)
        assert torch.allclose(row, torch.cat([one.flatten() for one in bins]), atol=1e-6)


def test_machines_keep_hard_negatives_and_forget_clear_ones() -> None:
    generator = np.random.default_rng(0)
    centre = np.zeros(6, np.float32)
    centre[0] = 20
    machine = ClassMachine((centre + generator.normal(0, 1, (60, 6))).astype(np.float32), 0)
    clear = generator.normal(0, 1, (2100, 6)).astype(np.float32)
    machine.meet(clear)
    assert machine.trained
    assert (machine.scores(machine.positives) > 0).mean() > 0.95
    assert (machine.scores(machine.negatives) >= EASY).all()
    kept = len(machine.negatives)
    assert kept < 2100
    machine.meet(clear - 10 * centre / 20)
    assert not machine.waiting
    hard = (centre * 0.8 + generator.normal(0, 0.5, (50, 6))).astype(np.float32)
    assert (machine.scores(hard) > -1).mean() > 0.9
    machine.meet(hard)
    assert sum(map(len, machine.waiting)) > 40
    before = machine.scores(hard).mean()
    machine.train()
    assert machine.scores(hard).mean() < before


def test_box_regression_learns_where_objects_are() -> None:
    """Features that say by how much a proposal is off; whitened targets come back in pixels."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(400, 2, generator=generator) * 50
    objects = torch.cat([objects, objects + 20 + 20 * torch.rand(400, 2, generator=generator)], 1)
    shifts = torch.randn(400, 2, generator=generator)
    proposals = objects + shifts.repeat(1, 2)
    sides = proposals[:, 2:] - proposals[:, :2]
    features = 300 * torch.cat([-shifts / sides, torch.zeros(400, 3)], 1)
    regression = ClassRegression(features[:300], proposals[:300], objects[:300])
    better = regression(features[300:], proposals[300:])
    assert (better - objects[300:]).abs().mean() < 0.2 * (proposals[300:] - objects[300:]).abs().mean()
    assert regression(features[:0], proposals[:0]).shape == (0, 4)


ARGUMENTS = [
    "--backbone", "mobilenet_v3_small", "--weights", "none", "--side", "32", "--workers", "0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datamodules.digits.Digits.SCENES", {"train": 5, "val": 2, "test": 2})


def test_the_program_scores_both_and_reads_its_features_again(
    few_scenes: None, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pooling, method in (("warp", "R-CNN"), ("spp", "SPP-net")):
        assert main([*ARGUMENTS, "--pooling", pooling, "--out", str(tmp_path / pooling)]) == 0
        results = json.loads((tmp_path / pooling / "results.json").read_text())
        assert (results["method"], results["training_images"]) == (method, 5)
        assert 0 <= results["scores"]["map50"] <= 1
        assert results["proposals"] == "selective_search"
        assert results["seconds_per_image"].keys() == {"features", "classification"}
        assert f"{method}: " in capsys.readouterr().out
    (folder,) = (tmp_path / "warp").glob("features-*")
    assert len(list(folder.iterdir())) == 5
    first = json.loads((tmp_path / "warp" / "results.json").read_text())["scores"]
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "0000002.npz").write_bytes(b"half a file")
    assert main([*ARGUMENTS, "--out", str(tmp_path / "warp")]) == 0
    assert json.loads((tmp_path / "warp" / "results.json").read_text())["scores"] == first
    again = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in files if files[name] != again[name]} == {"0000002.npz"}
    assert main([*ARGUMENTS, "--out", str(tmp_path / "warp"), "--side", "40", "--images", "3"]) == 0
    assert len(list((tmp_path / "warp").glob("features-*"))) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--run", "nowhere"], "nowhere: no such run folder or checkpoint"),
        ([], "give one of --run and --backbone"),
        (["--backbone", "resnet_18"], "--backbone: no backbone 'resnet_18'; nearest: resnet18"),
        (["--backbone", "resnet18", "--proposals", "a.npz"], "--proposals a.npz: no such file"),
        (["--backbone", "resnet18", "--side", "8"], "--side is 8; give 32 pixels or more"),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(given)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_unpadded_backbones_have_no_pyramid(few_scenes: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--backbone", "alexnet", "--weights", "none", "--pooling", "spp", "--out", str(tmp_path)]
    assert main([*arguments, "--device", "cpu"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--pooling spp needs maps at multiples of their stride; alexnet's unpadded layers crop" in line
