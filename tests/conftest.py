"""Shared by all tests: two threads, no network, fixed seeds; and `--allowed-skips`."""

import gc
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.command_line.quick_imports import quick_imports

with quick_imports():
    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:  # a process that imports tests
        import lightning.pytorch  # noqa: F401

from tests.allowed_skips import pytest_addoption, pytest_sessionfinish  # noqa: F401
from tests.quick_weights import make_weights_quick

LONGEST = (
    "test_slurm.py",  # waits for jobs
    "test_two_processes.py",
    "test_backbones.py",
    "test_network.py",
    "test_wandb_server.py",  # waits for a server
    "test_export_heads.py",
    "test_grid.py",  # waits for other processes, as some of the next
    "test_export.py",
    "test_preemption.py",
    "test_demo.py",
    "test_detection.py",
    "test_faults.py",
    "test_detection_heads.py",
    "test_recipes.py",
    "test_tune.py",
    "test_knobs.py",
    "test_inference.py",
    "test_benchmark.py",
    "test_run.py",
    "test_explain.py",
    "test_paper_knobs.py",
    "test_sharing.py",
    "test_placing.py",
    "test_worker_faults.py",
)
"""They begin first, so that no process ends long after the others. Those that wait stand between those that compute."""


def pytest_configure(config: pytest.Config) -> None:
    if sys.platform == "linux":  # Gloo would take the interface of the host's name, which may be a VPN or not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "PYTEST_XDIST_WORKER" in os.environ:  # no fewer processes than cores
        torch.set_num_threads(1)
    # `--precision auto` is float32 in tests, whatever processor they run on. Programs that tests start choose
    # themselves.
    torch.cpu.get_capabilities = dict  # type: ignore[assignment]
    # Sums depend on the number of threads in their last bits: processes that tests start are to have as many.
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: some tests mostly wait, for jobs of SLURM, ranks that were killed or servers."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of collecting garbage, which would look at a million objects every time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def quick_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights cost little in this test."""
    make_weights_quick(monkeypatch)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test compute their predictions and draw none, which takes a quarter of a short run."""
    monkeypatch.setattr("experiments.training.predictions.write_predictions", lambda drawn, data, path: None)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Give batch norms statistics, and constant parameters values, that an error in them would show with.

    Zero biases, unit scales and layer scales of one millionth would hide what stands before or behind them.
    """
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(part.bias, 0, 0.1, generator=generator)
            continue
        for parameter in part.parameters(recurse=False):
            if is_constant(parameter):
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def is_constant(x: torch.Tensor) -> bool:
    first = x.flatten()[:9]  # almost always decides, and large weights are not read
    return bool((first == first[0]).all()) and bool((x == first[0]).all())


@pytest.fixture
def few_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage of a ResNet, behind RoI pooling, costs much for each region."""
    from heads import fasterrcnn_c4

    for head in (fasterrcnn_c4.FasterRCNNC4, fasterrcnn_c4.FasterRCNNDC5):
        monkeypatch.setitem(head.__init__.__kwdefaults__, "regions", 8)
    monkeypatch.setattr(fasterrcnn_c4, "KEPT", {True: (500, 50), False: (500, 20)})


@pytest.fixture(scope="session")
def crf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and five validation images of a bright square on a dark ground, with masks of two classes."""
    root = tmp_path_factory.mktemp("squares")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 40), np.uint8)
            mask[6 + i : 24, 8 : 24 + i] = 1
            image = generator.integers(0, 60, (32, 40, 3), np.uint8) + 120 * mask[..., None]
            cv2.imwrite(str(root / split / "images" / f"{i}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{i}.png"), mask)
    return root


def crf_arguments(crf_folder: Path, out: Path, *more: str) -> list[str]:
    """The arguments of a run of two epochs that takes two seconds."""
    return [
        "--backbone", "mobilenet_v3_small", "--head", "unet", "--data", "folders", "--data-dir", str(crf_folder),
        "--out", str(out), "--image-size", "32", "40", "--batch-size", "2", "--epochs", "2", "--workers", "0",
        "--accelerator", "cpu", "--lr", "0.003", "--warmup", "0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def crf_run(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with `--crf test`."""
    from experiments.run import main

    out = tmp_path_factory.mktemp("crf_runs")
    assert main(crf_arguments(crf_folder, out, "--name", "one", "--crf", "test")) == 0
    return out / "one"
