"""manifest.jsonl: one line per finished picture, so that a prediction that was killed goes on where it stopped."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.inference.inputs import Input, Inputs

NAME = "manifest.jsonl"
ANY_NAME: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
"""How files that hold names of files are opened: names need not be UTF-8, and are written as they are."""


class Manifest:
    """The manifest of an output folder. Its first line holds the settings, each further one a finished picture.

    Raises:
        ValueError: the folder's manifest was written with other settings, is damaged, or is being written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.finished: dict[str, str] = {}
        """The stamp of each finished picture, by its name."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a", **ANY_NAME)
        try:
            self._lock()
            self._read(settings)
            if not self.path.stat().st_size:
                self.file.write(json.dumps({"settings": settings}, ensure_ascii=False) + "\n")
                self.file.flush()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Keep other processes out until this one closes the file or ends; not all file systems can."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--out {self.path.parent}: another process is predicting into it; wait, or give another"
            ) from None
        except OSError:
            pass

    def _read(self, settings: dict[str, Any]) -> None:
        """Take over the finished pictures, and cut off a last line that was not written whole."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        lines = content[:whole].decode(**ANY_NAME).split("\n")[:-1]  # names may hold Unicode's other line ends
        if not lines:
            return
        try:
            before = json.loads(lines[0])["settings"]
            finished = {entry["input"]: entry["stamp"] for entry in map(json.loads, lines[1:])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is damaged, or no manifest of predict.py; give another --out, or remove the folder"
            ) from error
        if before != settings:
            names = sorted(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name))
            raise ValueError(
                f"--out {self.path.parent} holds predictions with another {', '.join(names)}; "
                "give another --out, or remove the folder"
            )
        self.finished = finished

    def unfinished(self, inputs: Inputs) -> tuple[Iterator[Input], int]:
        """The pictures that are not finished, or have changed since, and about how many there are."""
        left = (one for one in inputs if self.finished.get(one.name) != one.stamp or not one.stamp)
        return left, max(0, len(inputs) - len(self.finished))

    def add(self, entry: dict[str, Any]) -> None:
        """Note a finished picture: all its files are in place."""
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries of all finished pictures, read from the file one by one; the last of a picture that changed."""
        last = {entry["input"]: number for number, entry in enumerate(self._lines())}
        for number, entry in enumerate(self._lines()):
            if last[entry["input"]] == number:
                yield entry

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open(newline="\n", **ANY_NAME) as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        self.file.close()
