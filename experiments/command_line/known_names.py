"""The names a user can choose from, read without importing torch, so that usage errors answer at once."""

import ast
import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "run.py"
CATALOGUE = Path(__file__).with_name("catalogue.json")


def catalogue() -> dict[str, dict[str, Any]]:
    """What `python experiments/catalogue.py` last found of each backbone: costs, and the heads it is refused under."""
    return json.loads(CATALOGUE.read_text(encoding="utf-8")) if CATALOGUE.is_file() else {}


def names_of(folder: str) -> list[str]:
    """Keys of the one dict in `folder/__init__.py`, such as BACKBONES in backbones."""
    return _keys(ROOT / folder / "__init__.py", folder.upper())


def _keys(path: Path, variable: str) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == variable):
            continue
        if isinstance(node.value, ast.Dict):
            return [
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
    raise LookupError(f"{path} has no literal dict {variable}")


def dict_keys(file: str, variable: str) -> list[str]:
    """Keys of another literal dict, such as LOSSES in lightning_modules/losses.py."""
    return _keys(ROOT / file, variable)


def class_fields(file: str, name: str) -> list[str]:
    """Annotated attributes of a class, such as those of CRFSettings in heads/crf.py."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            ]
    raise LookupError(f"{file} has no class {name}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Up to four of the known names, the closest spelling first."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:8])
