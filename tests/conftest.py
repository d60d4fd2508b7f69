"""Shared by all tests: two threads, no network, fixed seeds."""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
            if (parameter == parameter.flatten()[0]).all():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module
