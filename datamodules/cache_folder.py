"""The user's cache folder, which outlives runs: `$XDG_CACHE_HOME/graft` or `~/.cache/graft`."""

import json
import os
import threading
from pathlib import Path
from typing import Any


def cache_folder() -> Path | None:
    """The folder, which need not exist yet; None if the user has no home directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return base.expanduser() / "graft"
    except RuntimeError:  # neither $HOME nor an entry in the system's list of users
        return None


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None if it is missing, unreadable or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> bool:
    """Write a JSON file through a temporary file that is renamed, so that no reader sees a partial file.

    Returns False if that fails, because the folder is read-only or full.
    """
    part = path.with_suffix(temporary_suffix())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(path)
    except OSError:
        return False
    return True


def temporary_suffix() -> str:
    """A file suffix that no other thread or process of this machine uses."""
    return f".{os.getpid()}-{threading.get_ident()}"
