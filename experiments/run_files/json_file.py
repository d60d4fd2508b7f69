"""JSON files of a run, read with an error that names the file."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The contents of the file.

    Raises:
        ValueError: it is not JSON in UTF-8, or only a part of it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path.name} is no JSON, or half of it") from error
