"""Trimap scores against a brute-force search for the nearest pixel of another label."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.trimap import main
from lightning_modules.trimap import TrimapScores, boundary_distance

IGNORE = 255


def blobs(seed: int, height: int = 23, width: int = 31) -> torch.Tensor:
    """Labels 0, 1, 2 in blobs a few pixels large, with a line of ignored pixels between two of them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 3, (1, 1, 4, 5), generator=generator).float()
    labels = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")[0, 0].long()
    labels[:, width // 2] = IGNORE
    return labels


def nearest_other(labels: torch.Tensor) -> np.ndarray:
    """The distance of every pixel to every pixel of another label, and the least of them."""
    array = labels.numpy()
    rows, columns = np.indices(array.shape)
    distance = np.full(array.shape, np.inf)
    for (y, x), label in np.ndenumerate(array):
        other = array != label
        if other.any():
            distance[y, x] = np.hypot(rows[other] - y, columns[other] - x).min()
    return distance


def brute_force_miou(target: list[torch.Tensor], said: list[torch.Tensor], width: float) -> float:
    scores = []
    bands = [(nearest_other(t) <= width + 1e-4) & (t.numpy() != IGNORE) for t in target]
    for c in range(3):
        hits = sum(
            int(((t.numpy() == c) & (s.numpy() == c) & b).sum()) for t, s, b in zip(target, said, bands, strict=True)
        )
        union = sum(
            int((((t.numpy() == c) | (s.numpy() == c)) & b).sum()) for t, s, b in zip(target, said, bands, strict=True)
        )
        if union:
            scores.append(hits / union)
    return float(np.mean(scores)) if scores else math.nan


def test_distances_equal_a_search_over_all_pairs() -> None:
    labels = blobs(0)
    assert np.abs(boundary_distance(labels).numpy() - nearest_other(labels)).max() < 1e-4
    assert boundary_distance(torch.zeros(5, 5, dtype=torch.int64)).isinf().all()


def test_band_k_holds_k_rows_on_either_side_of_a_straight_boundary() -> None:
    labels = torch.zeros(3, 10, dtype=torch.int64)
    labels[:, 4:] = 1
    assert boundary_distance(labels)[0].tolist() == [4, 3, 2, 1, 1, 2, 3, 4, 5, 6]


def test_scores_equal_counting_by_hand_whatever_the_batches() -> None:
    target = [blobs(seed) for seed in range(5)]
    said = [torch.randint(0, 3, t.shape) for t in target]
    logits = torch.stack([torch.nn.functional.one_hot(s, 3).movedim(-1, 0).float() for s in said])
    stacked = torch.stack(target)
    results = []
    for size in (5, 2, 1):
        metric = TrimapScores(3, IGNORE, (1, 2, 4, 8))
        for start in range(0, 5, size):
            metric.update(logits[start : start + size], stacked[start : start + size])
        assert metric.counts.sum() == (stacked != IGNORE).sum()
        results.append({width: value.item() for width, value in metric.compute().items()})
    assert results[0] == results[1] == results[2]
    for width in (1, 2, 4, 8):
        assert results[0][width] == pytest.approx(brute_force_miou(target, said, width), abs=1e-12)
    assert results[0][None] == pytest.approx(brute_force_miou(target, said, math.inf), abs=1e-12)


def test_a_band_without_pixels_has_no_score() -> None:
    metric = TrimapScores(2, IGNORE, (1,))
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    metric.update(torch.nn.functional.one_hot(target, 2).movedim(-1, 1), target)
    scores = metric.compute()
    assert scores[1].isnan()
    assert scores[None] == 1


@pytest.mark.parametrize("widths", [(), (0, 1), (4, 2), (2, 2)])
def test_bad_widths_are_named(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths of the bands"):
        TrimapScores(2, IGNORE, widths)


def test_the_script_prints_what_the_run_scored_and_draws_it(crf_run: Path, tmp_path: Path, capsys) -> None:
    assert main([str(crf_run), "--out", str(tmp_path / "curve.png")]) == 0
    lines = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    cells = {line[1]: line[2:5] for line in lines if len(line) == 6}
    assert list(cells) == [f"up to {width}" for width in (1, 2, 4, 8, 16, 32)] + ["all"]
    scores = json.loads((crf_run / "results.json").read_text())["scores"]
    expected = [scores["val"]["miou"], scores["val_crf"]["miou"]]
    assert [float(cell) for cell in cells["all"][:2]] == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"
    assert not list(tmp_path.glob("*.part"))


def test_other_settings_give_another_curve_and_a_wrong_name_one_line(crf_run: Path, tmp_path: Path, capsys) -> None:
    tables = []
    for more in ([], ["--crf-settings", "pydensecrf"]):
        assert main([str(crf_run), "--out", str(tmp_path / "curve.png"), *more]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] != tables[1]
    with pytest.raises(SystemExit):
        main([str(crf_run), "--crf-settings", "nothing"])
    error = capsys.readouterr().err
    assert error.startswith("trimap.py: error: --crf-settings: no preset and no file 'nothing'")
    assert error.count("\n") == 1
