"""What `pip install .` puts in place: every module and every file that a program reads."""

import ast
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("backbones", "heads", "lightning_modules", "datamodules", "experiments")
NOT_INSTALLED = {".md", ".png", ".jpg", ".pyc"}
"""Endings of the files that no program reads."""
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def needed() -> set[str]:
    """Paths of the files of the packages that programs need, relative to the root."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if path.suffix not in NOT_INSTALLED}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel of a copy of this tree, built by the setuptools that is installed, without a network."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tree)], cwd=tree, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ZipFile(tree / done.stdout.splitlines()[-1])


def test_a_wheel_holds_every_file_that_programs_need(wheel: ZipFile) -> None:
    names = set(wheel.namelist())
    assert needed() - names == set()
    for file in (
        "experiments/command_line/catalogue.json",
        "experiments/comparing/page/page.html",
        "experiments/recipes/voc_fcn8s_vgg16.yaml",
        "experiments/sweeps/pairs.yaml",
    ):
        assert file in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_an_installed_copy_knows_its_names(wheel: ZipFile, tmp_path: Path) -> None:
    """Backbones, heads, data sets and the pairs that are refused are read from files beside the packages."""
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from experiments.run import main; main(['{{}}'])"
    )
    for action, expected in (
        ("--matrix", "pairs work"),
        ("--list", "resnet101"),
        ("--print-config", "backbone: resnet50"),
    ):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code.format(action)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_every_package_that_is_imported_is_declared() -> None:
    """As a dependency or in an extra; imports inside functions count too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "test"}
    declared = {name_of(one) for one in [*project["dependencies"], *itertools.chain(*extras.values())]}
    known = {*sys.stdlib_module_names, *PACKAGES}
    distributions = {"pydensecrf": ["pydensecrf2"], **packages_distributions()}  # an extra that tests do without
    for path in itertools.chain(*((ROOT / package).rglob("*.py") for package in PACKAGES)):
        for module in imported(path) - known:
            found = {name_of(one) for one in distributions.get(module, [module])}
            assert found & declared, f"{path.relative_to(ROOT)} imports {module}, which pyproject.toml lacks"


def imported(path: Path) -> set[str]:
    """The top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def name_of(requirement: str) -> str:
    """The name in a requirement such as `torch>=2.9`, as package indexes compare names."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
