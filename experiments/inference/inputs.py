"""What predict.py takes: files, folders, globs, lists of files, videos, cameras; and where the results of each go."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datamodules.decoding import IMAGE_SUFFIXES
from experiments.inference import manifest

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
LIST_SUFFIXES = {".txt", ".lst"}
CAMERA = "camera:"


@dataclass(frozen=True)
class Input:
    """One picture to predict.

    Args:
        name: how the manifest calls it: its path, or path and number of a frame.
        stem: where its results go, below the output folder and without suffix.
        stamp: size and time of change of its file, which tell whether it has changed; "" for frames of a camera.
    """

    name: str
    stem: Path
    stamp: str
    path: Path

    def read(self, decode: Callable[[Path], np.ndarray]) -> np.ndarray:
        """uint8 `(H, W, 3)`, RGB; `decode` reads a file. Raises ValueError if that fails."""
        return decode(self.path)


@dataclass(frozen=True)
class Frame(Input):
    """A frame of a video or a camera, already decoded."""

    pixels: np.ndarray

    def read(self, decode: Callable[[Path], np.ndarray]) -> np.ndarray:
        return self.pixels


class Inputs:
    """All pictures behind the arguments, in a fixed order. Iterating yields `Input`s; frames are decoded on the way.

    Args:
        arguments: paths, globs, text files with a path per line, or `camera:0`.
        every: take every so-many-th frame of videos and cameras.
        frames: stop after this many frames of each video or camera; None takes all.
        out: folder of the results. What earlier predictions wrote there is passed over.

    Raises:
        ValueError: an argument names nothing, a folder holds no pictures, or results would lie among the pictures.
    """

    def __init__(
        self, arguments: list[str], every: int = 1, frames: int | None = None, out: Path | None = None
    ) -> None:
        self.every = every
        self.frames = frames
        self.images: list[Path] = []
        self.videos: list[Path] = []
        self.cameras: list[int] = []
        self.passed_over: Counter[str] = Counter()
        for argument in arguments:
            self._add(argument)
        self.images = list(dict.fromkeys(self.images))
        self.videos = list(dict.fromkeys(self.videos))
        if out is not None:
            self._leave_out_results(out.expanduser().absolute())
        folders = [str(path.absolute().parent) for path in (*self.images, *self.videos)]
        self.root = Path(os.path.commonpath(folders)) if folders else Path.cwd()
        paths = {path.absolute() for path in (*self.images, *self.videos)}
        stems = Counter(path.with_suffix("") for path in paths)
        self.ambiguous = {stem for stem, count in stems.items() if count > 1 or stem in paths}
        """Paths that several inputs share up to their suffix, or that are inputs themselves; the results of these
        inputs keep the suffix in the name."""

    def __len__(self) -> int:
        """The number of image files; frames are not counted before they are read."""
        return len(self.images)

    def __iter__(self) -> Iterator[Input]:
        for path in self.images:
            yield Input(self._name(path), self._stem(path), stamp(path), path)
        for path in self.videos:
            yield from self._frames(cv2.VideoCapture(str(path)), self._name(path), self._stem(path), stamp(path), path)
        for number in self.cameras:
            name = f"{CAMERA}{number}"
            yield from self._frames(cv2.VideoCapture(number), name, Path(f"camera-{number}"), "", Path(name))

    def _add(self, argument: str) -> None:
        path = Path(argument).expanduser()
        if argument.startswith(CAMERA):
            if not argument.removeprefix(CAMERA).isdigit():
                raise ValueError(f"{argument}: give the number of the camera, such as {CAMERA}0")
            self.cameras.append(int(argument.removeprefix(CAMERA)))
        elif path.is_dir():
            self._add_folder(path)
        elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
            self._add_list(path)
        elif path.is_file():
            (self.videos if path.suffix.lower() in VIDEO_SUFFIXES else self.images).append(path)
        else:
            found = sorted(glob.glob(str(path), recursive=True))
            if not found:
                raise ValueError(f"{argument}: no such file or folder, and no file matches it as a pattern")
            for one in found:
                self._add(one)

    def _add_folder(self, folder: Path) -> None:
        before = len(self.images) + len(self.videos)
        for path in sorted(folder.rglob("*")):
            suffix = path.suffix.lower()
            if path.name.startswith(".") or not path.is_file():
                continue
            if suffix in IMAGE_SUFFIXES:
                self.images.append(path)
            elif suffix in VIDEO_SUFFIXES:
                self.videos.append(path)
            else:
                self.passed_over[suffix or "no suffix"] += 1
        if len(self.images) + len(self.videos) == before:
            raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})")

    def _add_list(self, file: Path) -> None:
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                path = Path(line.strip()).expanduser()
                self.images.append(path if path.is_absolute() else file.parent / path)

    def _leave_out_results(self, out: Path) -> None:
        inside = {path for path in (*self.images, *self.videos) if path.absolute().is_relative_to(out)}
        if inside and not (out / manifest.NAME).is_file():
            raise ValueError(
                f"--out {out} holds pictures to predict, such as {min(inside).name}, which results might overwrite; "
                "give a folder of its own"
            )
        self.images, self.videos = (
            [path for path in kind if path not in inside] for kind in (self.images, self.videos)
        )
        if inside and not self.images and not self.videos:
            raise ValueError(f"all {len(inside)} pictures lie in --out {out} and are results of earlier predictions")

    def _name(self, path: Path) -> str:
        return path.absolute().relative_to(self.root).as_posix()

    def _stem(self, path: Path) -> Path:
        relative = path.absolute().relative_to(self.root)
        return relative if path.absolute().with_suffix("") in self.ambiguous else relative.with_suffix("")

    def _frames(self, video: cv2.VideoCapture, name: str, stem: Path, mark: str, path: Path) -> Iterator[Input]:
        """The frames of a video, or one `Input` that cannot be read if it cannot be opened."""
        if not video.isOpened():
            yield Unopened(name, stem, mark, path)
            return
        number = taken = 0
        try:
            while self.frames is None or taken < self.frames:
                more, frame = video.read()
                if not more:
                    return
                if number % self.every == 0:
                    taken += 1
                    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    yield Frame(f"{name}#{number}", stem / f"{number:06d}", mark, path, rgb)
                number += 1
        finally:
            video.release()


class Unopened(Input):
    """A video or camera that cannot be opened."""

    def read(self, decode: Callable[[Path], np.ndarray]) -> np.ndarray:
        raise ValueError(f"{self.name}: cannot be opened as a video")


def stamp(path: Path) -> str:
    """Size and time of change of a file; "" if it is missing, which reading it will report."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
