"""Check options that a user gives by name, such as --backbone-options, against the types a constructor declares."""

import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def check_option_types(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check the type of each option of a backbone's or head's constructor.

    Raises:
        ValueError: an option has a value of another type; the message names both.
    """
    called: Any = build.func if isinstance(build, partial) else build
    hints = get_type_hints(called.__init__ if isinstance(called, type) else called)  # type: ignore[misc]
    for option, value in options.items():
        if option in hints and not fits(value, hints[option]):
            raise ValueError(f"{name}'s option {option} is {value!r}; it takes {described(hints[option])}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML has a type. A whole number is a number; true is neither."""
    arguments, origin = get_args(hint), get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin in (Sequence, list, tuple):
        members = [one for one in arguments if one is not Ellipsis]
        return isinstance(value, (list, tuple)) and all(any(fits(one, kind) for kind in members) for one in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint if hint in NAMES else True


def described(hint: Any) -> str:
    """A type in words: "a whole number", "depthwise or pointwise", "a list of numbers in brackets"."""
    arguments, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(described(one) for one in arguments)
    if origin in (Sequence, list, tuple):
        return f"a list in brackets, each entry {described(arguments[0])}"
    return NAMES.get(hint, str(hint))
