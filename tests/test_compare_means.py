"""Means, intervals and curves of compare.py against values counted by hand and by scipy."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from experiments.comparing.as_text import duration, sparkline
from experiments.comparing.means import mean_curve, mean_of, paired_difference
from experiments.run_files.read_run import read_run
from tests.fake_runs import write_grid


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("compare") / "runs")


def test_means_and_deviations_by_hand() -> None:
    mean = mean_of([1.0, 2.0, 4.0])
    assert mean is not None
    assert (mean.mean, mean.n) == (7 / 3, 3)
    assert mean.std == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2), abs=1e-15)
    one = mean_of([0.25])
    assert one is not None
    assert (one.mean, one.std, one.n) == (0.25, None, 1)
    assert mean_of([]) is None


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_intervals_are_those_of_scipy_over_common_seeds(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    ours = dict(enumerate(generator.random(seeds + 2).tolist()))
    theirs = dict(enumerate(generator.random(seeds + 3).tolist(), 2))  # the first common seed is 2
    common = range(2, seeds + 2)
    one = paired_difference(ours, theirs)
    assert one is not None
    result = scipy.stats.ttest_rel([ours[s] for s in common], [theirs[s] for s in common])
    interval = result.confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert one.mean == pytest.approx(sum(ours[s] - theirs[s] for s in common) / seeds)
    assert one.n == seeds
    assert one.is_clear == (result.pvalue < 0.05)


def test_differences_of_one_seed_or_none() -> None:
    one = paired_difference({0: 0.5, 1: 0.25}, {1: 0.125, 2: 0.9})
    assert one is not None
    assert (one.mean, one.low, one.high, one.n, one.is_clear) == (0.125, None, None, 1, False)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_curves_are_means_by_epoch(grid: Path) -> None:
    runs = [read_run(grid / f"vgg16-unet-{seed}") for seed in range(3)]
    curve = mean_curve(runs, "val/miou")
    assert list(curve) == [1, 2, 3]
    assert curve[2].mean == pytest.approx(np.mean([run.curve[1]["val/miou"] for run in runs]))
    assert curve[2].std == pytest.approx(np.std([run.curve[1]["val/miou"] for run in runs], ddof=1))
    assert sparkline([0.0, 0.5, 1.0, 0.0]) == "▁▅█▁"
    assert len(sparkline(list(range(100)))) == 12
    assert (sparkline([]), sparkline([1.0, 1.0])) == ("", "▁▁")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3.4, 277, 3600, 86399.6)] == ["0:03", "4:37", "1:00:00", "24:00:00"]
