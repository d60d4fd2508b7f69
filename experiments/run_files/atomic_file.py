"""Text files of which no reader ever sees a part, whenever the writer is stopped."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary file next to `path` and rename it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
