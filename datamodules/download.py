"""Download published data sets: once per machine, resuming interrupted transfers, and comparing checksums."""

import hashlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from datamodules.errors import DataError

CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds without data after which a transfer counts as interrupted."""


class Archive(NamedTuple):
    """A file of a published data set."""

    url: str
    digest: str
    """The MD5 or, if it has 40 digits, the SHA-1 that the publishers or torchvision give."""
    size: int
    """In bytes."""
    folder: str = ""
    """The subfolder of the data set's folder into which it is unpacked."""
    unpack: bool = True
    """False if the data set reads the file as it is."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def ensure_files(root: Path, needs: Sequence[str], archives: Sequence[Archive], *, download: bool) -> None:
    """Ensure that `root` holds a file for each pattern in `needs`; if not, download all of `archives`.

    Several processes may call this at once: one downloads and the others wait for it.

    Raises:
        ValueError: a file is missing, and `download` is not set or the download failed. The message names the address
            and the folder.
    """
    if not missing(root, needs):
        return
    total = sum(archive.size for archive in archives)
    what = " and ".join(archive.url for archive in archives)
    where = " and ".join(dict.fromkeys(str(root / archive.folder) for archive in archives))
    if not download:
        raise DataError(
            f"{root / missing(root, needs)[0]} is missing; add --download, or fetch {what} ({readable_size(total)}) "
            f"and unpack into {where}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            for archive in archives if missing(root, needs) else ():
                fetch(archive, root / archive.folder)
    except OSError as error:
        raise DataError(f"--download cannot write to {root} ({error.strerror}); choose another --data-dir") from None
    if missing(root, needs):
        raise DataError(f"{what} did not hold {missing(root, needs)[0]}; report this, the data set has changed")


def missing(root: Path, needs: Sequence[str]) -> list[str]:
    """The patterns that no file in `root` matches."""
    return [pattern for pattern in needs if not any(root.glob(pattern))]


def fetch(archive: Archive, folder: Path) -> None:
    """Download a file and unpack it. An incomplete file or directory never has its final name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / archive.name
    if not path.is_file():
        part = path.with_name(f"{path.name}.part")
        transfer(archive, part)
        found = file_digest(part, archive)
        if found != archive.digest:
            part.unlink()
            raise DataError(f"{archive.url} has the checksum {found}, not {archive.digest}; it was deleted, try again")
        part.replace(path)
    if archive.unpack:
        beside = folder / f".{path.name}.unpacking"
        shutil.rmtree(beside, ignore_errors=True)
        if path.suffix == ".zip":
            shutil.unpack_archive(path, beside)
        else:
            shutil.unpack_archive(path, beside, filter="data")
        merge(beside, folder)
        shutil.rmtree(beside, ignore_errors=True)


def transfer(archive: Archive, part: Path) -> None:
    """Download the rest of a file whose beginning may be in `part` already, and append it."""
    done = part.stat().st_size if part.is_file() else 0
    if done == archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"User-Agent": "graft", "Range": f"bytes={done}-"})
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, Progress(*columns, transient=True) as progress:
            goes_on = answer.status == 206  # partial content; with 200 the server sends the whole file again
            task = progress.add_task(archive.name, total=archive.size, completed=done if goes_on else 0)
            with part.open("ab" if goes_on else "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        broken_off(archive, part, str(reason))
    if part.stat().st_size < archive.size:
        broken_off(archive, part, "the connection was closed")


def broken_off(archive: Archive, part: Path, reason: str) -> None:
    """Raise the error for an interrupted transfer."""
    done = part.stat().st_size if part.is_file() else 0
    raise DataError(
        f"{archive.url} could not be fetched ({reason}; {done} of {archive.size} bytes are here); the same command "
        f"goes on from there, or put the file ({readable_size(archive.size)}) at {part.with_suffix('')}"
    ) from None


def file_digest(path: Path, archive: Archive) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1" if len(archive.digest) == 40 else "md5").hexdigest()


def merge(source: Path, target: Path) -> None:
    """Move a tree to `target`, into the folders that are there already."""
    if not target.is_dir():
        source.replace(target)
        return
    for path in source.iterdir():
        if path.is_dir():
            merge(path, target / path.name)
        else:
            path.replace(target / path.name)


def readable_size(size: int) -> str:
    """A number of bytes as "1.9 GB" or "340.0 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
