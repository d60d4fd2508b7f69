"""Imports torch, Lightning and what stands on them in less time: 3.6 instead of 5.5 seconds on the processor."""

import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

UNUSED = ("matplotlib", "scipy")
"""What torchmetrics imports as soon as it is installed. Only its plots and its scores of sound need them."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import within it what a program needs from the folders that import torch. Does nothing if torch is there.

    The objects that imports make stay until the end, so garbage is not searched for among them, then or later.
    """
    if "torch" in sys.modules:  # the caller's process, such as a notebook's, is to stay as it is
        yield
        return
    gc.disable()
    try:
        with torchmetrics_without(UNUSED):
            yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def torchmetrics_without(packages: tuple[str, ...]) -> Iterator[None]:
    """Let torchmetrics, which asks lightning-utilities what is installed, not find these packages.

    Everything else asks Python, and finds them as before.
    """
    from lightning_utilities.core import imports

    names = {"find_spec": find_spec, "_version": importlib.metadata.version}
    if any(getattr(imports, name, None) is not real for name, real in names.items()):
        yield  # another release, which asks in another way: torchmetrics imports all
        return

    def found(name: str) -> object:
        return None if name in packages else find_spec(name)

    def version_of(name: str) -> str:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    try:
        for name, replacement in zip(names, (found, version_of), strict=True):
            setattr(imports, name, replacement)
        yield
    finally:
        for name, real in names.items():
            setattr(imports, name, real)
        for remembered in (imports.package_available, imports.module_available):
            remembered.cache_clear()
