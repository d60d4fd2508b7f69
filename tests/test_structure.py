"""The folders of experiments/: which may import which, and that every program runs the code of its own checkout."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_process import LIBRARIES, run_python

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
PROGRAMS = sorted(path for path in EXPERIMENTS.glob("*.py") if path.name != "__init__.py")
BENCHMARKS = sorted(set((EXPERIMENTS / "benchmarks").glob("[!_]*.py")) - {EXPERIMENTS / "benchmarks/peer_networks.py"})
MAY_IMPORT = {
    "command_line": set(),
    "run_files": {"command_line"},
    "callbacks": {"command_line", "run_files"},
    "training": {"command_line", "run_files", "callbacks"},
    "analysis": {"command_line", "run_files", "callbacks", "training"},
    "inference": {"command_line", "run_files", "callbacks", "training", "analysis"},
    "explaining": {"command_line", "run_files", "callbacks", "training", "analysis", "inference"},
    "region_svms": {"command_line", "run_files", "callbacks", "training", "analysis", "inference"},
    "comparing": {"command_line", "run_files"},
    "many_runs": {"command_line", "run_files"},
    # claiming also runs run.py, in forked processes
    "claiming": {"command_line", "run_files", "analysis", "comparing", "many_runs", "run"},
    # benchmarks also run these programs as a user does
    "benchmarks": {
        "command_line",
        "run_files",
        "callbacks",
        "training",
        "analysis",
        "inference",
        "region_svms",
        "evaluate",
        "predict",
        "run",
    },
}
"""The folders that each folder may import from, besides itself."""
WITHOUT_TORCH = ("command_line", "run_files", "comparing", "many_runs")
PACKAGES = ("backbones", "heads", "lightning_modules", "datamodules", "experiments")


def own_imports(path: Path) -> set[str]:
    """Dotted names of the modules of this project that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_folder_of_experiments_has_its_place() -> None:
    folders = {path.parent.name for path in EXPERIMENTS.glob("*/*.py")}
    assert folders == set(MAY_IMPORT)
    for folder in folders:
        text = (EXPERIMENTS / folder / "__init__.py").read_text(encoding="utf-8")
        assert text.strip() == f'"""{ast.get_docstring(ast.parse(text))}"""', (
            f"{folder}/__init__.py: one docstring line"
        )


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder: str) -> None:
    for path in (EXPERIMENTS / folder).glob("*.py"):
        for name in own_imports(path):
            parts = name.split(".")
            if parts[0] != "experiments" or len(parts) == 1:
                continue
            assert parts[1] in MAY_IMPORT[folder] | {folder}, f"{path.relative_to(ROOT)} imports {name}"


def test_no_circles() -> None:
    """Imports for type checking and inside functions count too."""
    modules = {module_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    edges = {name: {other for other in own_imports(path) if other in modules} for name, path in modules.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in finished:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            finished.add(name)

    for name in modules:
        visit(name, ())


def test_folders_without_torch_import_none() -> None:
    modules = [module_of(path) for folder in WITHOUT_TORCH for path in (EXPERIMENTS / folder).glob("*.py")]
    modules.remove("experiments.many_runs.study")  # needs Optuna, an extra
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    code += "print([name for name in sys.modules if name in ('torch', 'lightning', 'wandb', 'matplotlib')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def copied_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout, which reports when it is imported, and whether the programs' files are top-level modules."""
    tree = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "images"))
    for package in PACKAGES:  # benchmarks import no module of experiments/
        with (tree / package / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(
                "\nimport importlib.util\nprint('COPY', *map(importlib.util.find_spec, ('catalogue', 'crf_speed')))\n"
            )
    return tree


@pytest.mark.parametrize("program", [*PROGRAMS, *BENCHMARKS], ids=lambda path: path.stem)
def test_a_checkout_runs_its_own_code(program: Path, copied_tree: Path, tmp_path: Path) -> None:
    """From any directory, whichever checkout is installed; no file of experiments/ is a top-level module."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(copied_tree / program.relative_to(ROOT)), "--help"]
    if program in BENCHMARKS:  # import torch and other libraries before they parse
        done = run_python(command, cwd=tmp_path, env=environment, imported=LIBRARIES)
    else:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("COPY None None\n")
