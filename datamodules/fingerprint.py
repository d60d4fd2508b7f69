"""Hashes of a split's files, by which a resumed run notices that its data have changed."""

import os
from collections.abc import Iterable
from hashlib import blake2b

from datamodules.source import FileSource, Source

MOST_SIZES = 10_000
"""Files whose size is looked up; more would take minutes on a network file system."""


def content_hash(texts: Iterable[str]) -> str:
    """Eight hexadecimal digits for a sequence of texts."""
    total = blake2b(digest_size=4)
    for text in texts:
        total.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


def fingerprint_of(source: Source, data_dir: str | None) -> str:
    """The hash of all file names below `data_dir`, and of some sizes. Sources without files are known by length alone.

    The names of files outside `data_dir` are hashed in full.
    """
    if not isinstance(source, FileSource):
        return content_hash([str(len(source))])
    root = os.path.join(data_dir or "", "")
    files = [os.fspath(path) for index in range(len(source)) for path in source.paths(index)]
    step = -(-len(files) // MOST_SIZES) or 1
    sizes = [f"{name} {size(name)}" for name in dict.fromkeys(files[::step])]
    return content_hash(text.removeprefix(root) for text in (*files, *sizes))


def size(path: str) -> int:
    """Bytes of a file, -1 if it is missing; reading it raises the error."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
