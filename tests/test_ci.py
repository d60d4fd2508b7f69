"""What .ci/run relies on: a skip that is not allowed fails the session, and versions that agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.allowed_skips import unexpected_skips

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = (ROOT / ".ci" / "allowed_skips").read_text(encoding="utf-8")
SKIPPING = """
import pytest
def test_works(): pass
@pytest.mark.skip(reason="no camera here")
def test_of_a_camera(): pass
def test_of_a_package(): pytest.importorskip("a_package_of_that_name", reason="no such package")
"""


def test_reasons_are_compared_with_the_list() -> None:
    known = ["pydensecrf2 is not installed: pip install graft[bench]", "CamVid is not at ../shared/data/camvid"]
    assert unexpected_skips(known, ALLOWED) == []
    surprises = ["no chromium here: apt-get install chromium", "no tensorboard"]
    assert unexpected_skips([*known, *surprises, surprises[0]], ALLOWED) == surprises
    assert unexpected_skips(surprises, ALLOWED + "no .* here\n") == ["no tensorboard"]


@pytest.mark.parametrize(("allowed", "code"), [("no camera", 1), ("no camera\nno such package  # an extra", 0)])
@pytest.mark.parametrize("processes", [0, 2])
def test_a_skip_that_is_not_allowed_fails_the_session(allowed: str, code: int, processes: int, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(SKIPPING)
    (tmp_path / "conftest.py").write_text("from tests.allowed_skips import pytest_addoption, pytest_sessionfinish\n")
    (tmp_path / "allowed").write_text(allowed)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(processes), "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--allowed-skips", str(tmp_path / "allowed"), str(tmp_path / "test_one.py")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout
    assert ("  no such package" in done.stdout) == bool(code)


def test_pinned_versions_are_ones_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(one) for one in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if not line.startswith("#"))
    assert set(pinned) == {one.name for one in asked}
    for one in asked:
        assert one.specifier.contains(pinned[one.name]), f"{one} but {pinned[one.name]} in constraints.txt"
