"""Text files that a reader never sees half of, whenever the writer is stopped."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write beside it and move into place."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
