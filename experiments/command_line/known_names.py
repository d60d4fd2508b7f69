"""The names a user can choose from, read from the sources without importing torch, so that usage errors are fast."""

import ast
import difflib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "run.py"
CATALOGUE = Path(__file__).with_name("catalogue.json")


def catalogue() -> dict[str, dict[str, Any]]:
    """What `python experiments/catalogue.py` last wrote about each backbone: its costs, and the heads it refuses."""
    return json.loads(CATALOGUE.read_text(encoding="utf-8")) if CATALOGUE.is_file() else {}


@cache
def parsed(file: str) -> ast.Module:
    """The syntax tree of a source file, such as heads/crf.py."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def names_of(folder: str) -> list[str]:
    """Keys of the one dict in `folder/__init__.py`, such as BACKBONES in backbones."""
    return dict_keys(f"{folder}/__init__.py", folder.upper())


def dict_keys(file: str, variable: str) -> list[str]:
    """The keys, which are text, of a dict that is written out, such as LOSSES in lightning_modules/losses.py."""
    return [str(key.value) for key in dict_literal(file, variable).keys if isinstance(key, ast.Constant)]


def dict_literal(file: str, variable: str) -> ast.Dict:
    """A dict that is written out at the top level of a file.

    Raises:
        LookupError: there is none of that name.
    """
    for node in parsed(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == variable for target in targets)
        if named and isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            return node.value
    raise LookupError(f"{file} has no literal dict {variable}")


def class_fields(file: str, name: str) -> list[str]:
    """Annotated attributes of a class, such as those of CRFSettings in heads/crf.py."""
    for node in parsed(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
            return [field.id for field in fields if isinstance(field, ast.Name)]
    raise LookupError(f"{file} has no class {name}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Up to four of the known names in similar spelling, or the first eight if none is similar."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:8])
