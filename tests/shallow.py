"""Backbones of few blocks, for tests in which more of the same blocks show nothing more."""

import inspect

import pytest

from backbones import BACKBONES


def make_shallow(name: str, patch: pytest.MonkeyPatch, most: int = 2) -> None:
    """Leave at most so many blocks in each stage of a variant, whose table of networks names their number."""
    build = BACKBONES[name].func  # type: ignore[attr-defined]
    rows = getattr(inspect.getmodule(build), "VARIANTS", {})
    if hasattr(rows.get(name), "depths"):
        patch.setitem(rows, name, rows[name]._replace(depths=tuple(min(n, most) for n in rows[name].depths)))
    designs = getattr(build, "variants", {})
    if name in designs:
        stages = tuple(stage._replace(depth=min(stage.depth, most)) for stage in designs[name].stages)
        patch.setitem(designs, name, designs[name]._replace(stages=stages))
