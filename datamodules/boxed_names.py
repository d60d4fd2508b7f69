"""The names of the classes of boxes, which annotation files state as names or as numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.boxed_files import Annotation
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.pairing import UNPRINTABLE

MOST_NUMBERED = 10_000
"""Classes above which a number of them cannot be meant."""
NAME_FILES = ("classes.txt", "obj.names", "class_names.txt", "predefined_classes.txt")
"""Names of classes, a line each, in the order of their numbers."""


def class_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The names that occur, sorted. Says so if two are alike."""
    names = tuple(sorted({one.kind for annotation in annotations for one in annotation.found}))
    say_alike(names)
    return names


def say_alike(names: Sequence[str]) -> None:
    """Say which names differ in case or in spaces around them only."""
    folded = Counter(name.strip().casefold() for name in names)
    alike = [name for name in names if folded[name.strip().casefold()] > 1]
    if alike:
        what = "case" if all(name == name.strip() for name in alike) else "case or spaces"
        note(f"the classes {', '.join(alike[:8])} differ in {what} only: each is a class of its own")


def numbered_names(
    settings: tuple[Path, dict[str, Any]] | None,
    files: Iterable[Path],
    annotations: Mapping[str, Iterable[Annotation]],
    root: Path,
) -> tuple[str, ...]:
    """The names of the classes by number: of the settings, of a list of names, or the numbers that occur.

    Raises:
        ValueError: the settings name no classes, or another number of them than they state, or one twice; or labels
            have numbers that cannot be meant.
    """
    lists = {path: names_listed(path) for path in files if path.name.lower() in NAME_FILES}
    if settings:
        names = names_in(*settings)
        other = next((path for path, listed in lists.items() if listed != names), None)
        if other:
            note(f"{other} lists other classes than {settings[0]}; the latter's are taken")
        return names
    for path, names in lists.items():
        first = next(iter(lists))
        if names != lists[first]:
            raise DataError(f"{first} and {path} list other classes; keep one of them")
    if lists:
        return next(iter(lists.values()))
    kinds = {int(one.kind) for each in annotations.values() for annotation in each for one in annotation.found}
    count = 1 + max(kinds, default=0)
    if count > MOST_NUMBERED:
        raise DataError(f"a label in {root} is of class {count - 1}; number the classes 0, 1, 2 and so on")
    note(f"{root} has neither data.yaml nor classes.txt: the classes are called 0 to {count - 1}")
    return tuple(map(str, range(count)))


def names_in(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if names is None and isinstance(count, int) and 0 < count <= MOST_NUMBERED:
        return tuple(map(str, range(count)))
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: names must be numbered 0, 1, 2 and so on, not {', '.join(map(str, names))}")
        names = [names[number] for number in sorted(names)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path} has no names of classes; write names: [NAME, ...]")
    if count is not None and count != len(names):
        raise DataError(f"{path} states nc: {count} but names {len(names)} classes; make both the same")
    for number, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise DataError(f"{path}: the name of class {number} is a {type(name).__name__}; write it in quotes")
        if not str(name).strip() or UNPRINTABLE.search(str(name)):
            raise DataError(f"{path}: the name of class {number} is {name!a}; write a text of one line")
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
