"""What flags take: converts text of the command line and values of YAML files to settings, or says what is allowed."""

import math
import os
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

NULLS = ("null", "None")
"""Texts that stand for "no value" on the command line; W&B's sweeps write None."""
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")


class WrongValueError(ValueError):
    """Raised for a value that a flag does not take; the message is the value as it was given."""


@dataclass(frozen=True)
class Kind:
    """The values that one flag takes."""

    words: str
    """In an error, after "is not": "a number above 0"."""
    placeholder: str
    """In `--help`, after the flag."""
    convert: Callable[[Any], Any]
    """Makes the setting from text or from a YAML value. Raises `WrongValueError`."""
    number: type | None = None
    """int or float, for a number or a list of them."""
    several: bool = False
    """Whether it takes a list."""


@dataclass(frozen=True)
class Limit:
    """The numbers that a flag takes."""

    number: type
    least: float
    above: bool = False
    """Whether `least` itself is too small."""

    @property
    def words(self) -> str:
        what = "a whole number" if self.number is int else "a number"
        return f"{what} above {self.least:g}" if self.above else f"{what} of at least {self.least:g}"

    def convert(self, value: Any) -> Any:
        try:
            number = self.number(value)
        except (TypeError, ValueError):
            raise WrongValueError(str(value)) from None
        rounded = self.number is int and not isinstance(value, (int, str))
        too_small = number <= self.least if self.above else number < self.least
        if isinstance(value, bool) or rounded or too_small or not math.isfinite(number):
            raise WrongValueError(str(value))
        return number


PositiveInt = Annotated[int, Limit(int, 1)]
NonNegativeInt = Annotated[int, Limit(int, 0)]
PositiveFloat = Annotated[float, Limit(float, 0, above=True)]
NonNegativeFloat = Annotated[float, Limit(float, 0)]


def kind_of(annotation: Any, *, path: bool = False) -> Kind:
    """The kind of a field of settings.

    Args:
        annotation: str, bool, dict, a Literal, one of the number types above, a list of one of these, or one "| None".
        path: whether the text is a path, in which a leading ~ stands for the home directory.

    Raises:
        TypeError: the annotation is none of these.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (one,) = (part for part in inner if part is not type(None))
        kind = kind_of(one, path=path)
        return replace(kind, convert=lambda value: None if value is None or value in NULLS else kind.convert(value))
    if origin is list:
        item = kind_of(inner[0], path=path)
        return replace(item, convert=lambda value: as_list(value, item), several=True)
    if origin is Annotated:
        limit: Limit = inner[1]
        return Kind(limit.words, "N" if limit.number is int else "X", limit.convert, limit.number)
    if origin is Literal:
        words = ", ".join(map(str, inner))
        return Kind(f"one of {words}", "{" + words.replace(" ", "") + "}", lambda value: one_of(value, inner))
    if annotation is bool:
        return Kind("true or false", "", as_bool)
    if annotation is str:
        return Kind("text", "PATH", as_path) if path else Kind("text", "TEXT", as_text)
    if origin is dict:
        return Kind("settings in YAML such as '{name: value}'", "YAML", as_dict)
    raise TypeError(f"flags of the type {annotation} are not supported")


def one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if str(choice) == str(value):
            return choice
    raise WrongValueError(str(value))


def as_bool(value: Any) -> bool:
    text = str(value).lower()
    if text not in TRUE + FALSE:
        raise WrongValueError(str(value))
    return text in TRUE


def as_text(value: Any) -> str:
    """Text as it is, and a number of a YAML file as text, as in `devices: 2`."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise WrongValueError("null" if value is None else str(value))
    return str(value)


def as_path(value: Any) -> str:
    return os.path.expanduser(as_text(value))


def as_dict(value: Any) -> dict[str, Any]:
    try:
        made = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        made = None
    if not isinstance(made, dict):
        raise WrongValueError(str(value))
    return made


def as_list(value: Any, item: Kind) -> list[Any]:
    """A list of at least one item. One item alone is a list too, and so is a list that is written in one argument."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    parts = [part for one in given for part in split_list(one, item)]
    if not parts:
        raise WrongValueError(str(value))
    return [item.convert(part) for part in parts]


def split_list(value: Any, item: Kind) -> list[Any]:
    """The items of "[256, 320]"; also of "256 320" and "256,320", unless they are free text, which may hold spaces."""
    if not isinstance(value, str):
        return [value]
    if value.startswith("[") and value.endswith("]"):
        try:
            return list(yaml.safe_load(value))
        except yaml.YAMLError:
            raise WrongValueError(value) from None
    return [value] if item.words == "text" else value.replace(",", " ").split()
