"""The names of the classes of boxes, which annotation files state as names or as numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodules.boxed_files import Annotation
from datamodules.errors import DataError
from datamodules.notes import note

NAME_FILES = ("classes.txt", "obj.names", "class_names.txt", "predefined_classes.txt")
"""Names of classes, a line each, in the order of their numbers."""


def class_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The names that occur, sorted. Says so if two differ in case only."""
    names = tuple(sorted({one.kind for annotation in annotations for one in annotation.found}))
    folded = Counter(name.casefold() for name in names)
    alike = [name for name in names if folded[name.casefold()] > 1]
    if alike:
        note(f"the classes {', '.join(alike[:8])} differ in case only: each is a class of its own")
    return names


def numbered_names(
    settings: tuple[Path, dict[str, Any]] | None,
    files: Iterable[Path],
    annotations: Mapping[str, Iterable[Annotation]],
    root: Path,
) -> tuple[str, ...]:
    """The names of the classes by number: of the settings, of a list of names, or the numbers that occur.

    Raises:
        ValueError: the settings name no classes, or another number of them than they state, or one twice.
    """
    if settings:
        return names_in(*settings)
    lists = {path: names_listed(path) for path in files if path.name.lower() in NAME_FILES}
    for path, names in lists.items():
        first = next(iter(lists))
        if names != lists[first]:
            raise DataError(f"{first} and {path} list other classes; keep one of them")
    if lists:
        return next(iter(lists.values()))
    kinds = {int(one.kind) for each in annotations.values() for annotation in each for one in annotation.found}
    count = 1 + max(kinds, default=0)
    note(f"{root} has neither data.yaml nor classes.txt: the classes are called 0 to {count - 1}")
    return tuple(map(str, range(count)))


def names_in(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if names is None and isinstance(count, int) and count > 0:
        return tuple(map(str, range(count)))
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: names must be numbered 0, 1, 2 and so on, not {', '.join(map(str, names))}")
        names = [names[number] for number in sorted(names)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path} has no names of classes; write names: [NAME, ...]")
    if count is not None and count != len(names):
        raise DataError(f"{path} states nc: {count} but names {len(names)} classes; make both the same")
    return unique(list(map(str, names)), path)


def names_listed(path: Path) -> tuple[str, ...]:
    """The names in a file, a line each. Raises ValueError if it cannot be read, is empty or has one twice."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8 ({error})") from None
    return unique([line.strip() for line in lines if line.strip()], path)


def unique(names: list[str], path: Path) -> tuple[str, ...]:
    """Raises ValueError if there are no names, or one twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        raise DataError(f"{path} names {f'the class {twice[0]} twice' if twice else 'no class'}; name each class once")
    return tuple(names)
