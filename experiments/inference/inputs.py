"""What predict.py takes: files, folders, globs, lists of files, videos, cameras; and where the results of each go."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datamodules.decoding import IMAGE_SUFFIXES

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
TIFF_SUFFIXES = {".tif", ".tiff"}
GEO_TAGS = {33550, 33922, 34264, 34735}
"""TIFF tags of GeoTIFF 1.1: scale of pixels, points on the ground, transformation, coordinate system."""
LIST_SUFFIXES = {".txt", ".lst"}
CAMERA = "camera:"
ENDINGS = (".png", ".tif", ".overlay.jpg", ".overlay.mp4", ".probabilities.tif")
"""Endings of result files that an input picture or video could have, too."""


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
        out: folder of the results, which is left out where it lies in a folder of pictures.
        endings: of the results, which must not have the name of an input.

    Raises:
        ValueError: an argument names nothing, a folder holds no pictures, or a result would replace an input.
    """

    def __init__(
        self,
        arguments: list[str],
        every: int = 1,
        frames: int | None = None,
        out: Path | None = None,
        endings: tuple[str, ...] = ENDINGS,
    ) -> None:
        self.every = every
        self.frames = frames
        self.endings = endings
        self.out = None if out is None else out.resolve()
        self.images: list[str] = []  # a string takes a tenth of the memory of a Path
        self.videos: list[str] = []
        self.cameras: list[int] = []
        self.folders: set[Path] = set()
        self.passed_over: Counter[str] = Counter()
        for argument in arguments:
            self._add(argument)
        self.images = list(dict.fromkeys(self.images))
        self.videos = list(dict.fromkeys(self.videos))
        paths = {os.path.abspath(path) for path in (*self.images, *self.videos)}
        folders = {os.path.dirname(path) for path in paths}
        self.root = Path(os.path.commonpath(folders)) if folders else Path.cwd()
        stems = Counter(os.path.splitext(path)[0] for path in paths)
        self.ambiguous = {stem for stem, count in stems.items() if count > 1 or stem in paths}
        """Paths that several inputs share up to their suffix, or that are inputs themselves; the results of these
        inputs keep the suffix in the name."""
        self._keep_inputs()
        if self.out in self.folders:
            raise ValueError(
                f"--out {self.out} is a folder of pictures, whose results would be taken for pictures the next time; "
                f"give another, such as {self.out / 'predictions'}"
            )

    def __len__(self) -> int:
        """The number of image files and of frames, as far as the videos tell."""
        return len(self.images) + sum(map(self._frames_in, self.videos)) + len(self.cameras) * (self.frames or 0)

    def __iter__(self) -> Iterator[Input]:
        for path in map(Path, self.images):
            yield Input(self._name(path), self.stem_of(path), stamp(path), path)
        for path in map(Path, self.videos):
            yield from self.frames_of(path)
        for number in self.cameras:
            name = f"{CAMERA}{number}"
            yield from self._frames(cv2.VideoCapture(number), name, Path(f"camera-{number}"), "", Path(name))

    def _keep_inputs(self) -> None:
        """Refuse an `out` in which a label map would get the name of a picture that is to be predicted."""
        if self.out is None:
            return
        files = [*self.images, *self.videos]
        within = {whole for path in files if Path(whole := os.path.abspath(path)).is_relative_to(self.out)}
        for path in files if within else ():
            stem = self.out / self.stem_of(Path(path))
            lost = next((name for ending in self.endings if (name := f"{stem}{ending}") in within), None)
            if lost is not None:
                raise ValueError(
                    f"--out {self.out}: the results of {path} would replace the input {lost}; give another"
                )

    def first_geotiff(self) -> Path | None:
        """The first georeferenced file, if any."""
        return next(filter(is_geotiff, map(Path, self.images)), None)

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
            self._add_file(path)
        else:
            matching = found = sorted(glob.glob(str(path), recursive=True))
            if self.out is not None:
                found = [one for one in matching if not Path(one).resolve().is_relative_to(self.out)]
            if matching and not found:
                raise ValueError(f"--out {self.out} holds all files that match {argument}; give another folder")
            if not found:
                raise ValueError(f"{argument}: no such file or folder, and no file matches it as a pattern")
            for one in found:
                self._add(one)

    def _add_file(self, path: Path) -> None:
        (self.videos if path.suffix.lower() in VIDEO_SUFFIXES else self.images).append(str(path))

    def _add_folder(self, folder: Path) -> None:
        before = len(self.images) + len(self.videos)
        top = folder.resolve()
        self.folders.add(top)
        own = self.out if self.out is not None and top in self.out.parents else None  # results of an earlier time
        for name in sorted(str(path) for path in folder.rglob("*")):
            path = Path(name)
            suffix = path.suffix.lower()
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if hidden or not path.is_file() or (own is not None and absolute(path).is_relative_to(own)):
                continue
            if suffix in IMAGE_SUFFIXES:
                self.images.append(name)
            elif suffix in VIDEO_SUFFIXES:
                self.videos.append(name)
            else:
                self.passed_over[suffix or "no suffix"] += 1
        if len(self.images) + len(self.videos) == before:
            raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})")

    def _add_list(self, file: Path) -> None:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise ValueError(f"{file} is no list of files: it is not text in UTF-8") from None
        for line in filter(None, map(str.strip, lines)):
            self._add_file(file.parent / Path(line).expanduser())  # an absolute path stays as it is

    def _name(self, path: Path) -> str:
        return absolute(path).relative_to(self.root).as_posix()

    def stem_of(self, path: Path) -> Path:
        """Where the results of a file go, below the output folder and without ending."""
        relative = absolute(path).relative_to(self.root)
        ambiguous = os.path.splitext(absolute(path))[0] in self.ambiguous
        return relative if ambiguous else relative.with_suffix("")

    def frames_of(self, path: Path) -> Iterator[Input]:
        """The frames of a video file that are taken."""
        return self._frames(cv2.VideoCapture(str(path)), self._name(path), self.stem_of(path), stamp(path), path)

    def _frames_in(self, path: str) -> int:
        """How many frames of a video are taken, as it says itself."""
        video = cv2.VideoCapture(path)
        count = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        video.release()
        taken = (count + self.every - 1) // self.every
        return taken if self.frames is None else min(taken, self.frames)

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
                    break
                if number % self.every == 0:
                    taken += 1
                    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    yield Frame(f"{name}#{number}", stem / f"{number:06d}", mark, path, rgb)
                number += 1
        finally:
            video.release()
        if not number:
            yield Unopened(name, stem, mark, path)


class Unopened(Input):
    """A video or camera that cannot be opened, or gives no frame."""

    def read(self, decode: Callable[[Path], np.ndarray]) -> np.ndarray:
        raise ValueError("it cannot be opened as a video, or holds no frame")


def absolute(path: Path) -> Path:
    """The path from the root, without `..`, which would lead results out of their folder."""
    return Path(os.path.abspath(path))


def stamp(path: Path) -> str:
    """Size and time of change of a file; "" if it is missing, which reading it will report."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def is_geotiff(path: Path) -> bool:
    """Whether a file is a TIFF that says where on Earth it lies. Reads its header alone, without rasterio."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(8)
            directory = ImageFileDirectory_v2(head + file.read(8) if 43 in head[2:4] else head)  # 43: BigTIFF
            file.seek(directory.next)
            directory.load(file)
            return bool(GEO_TAGS & directory.keys())
    except Exception:  # no TIFF file, or a broken one, which reading it will report
        return False
