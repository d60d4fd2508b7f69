"""jsonargparse for the fields of a dataclass: flags, defaults, and errors in one line. Imports no torch."""

import dataclasses
import re
import sys
from dataclasses import field, fields
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from experiments.command_line.known_names import nearest
from experiments.command_line.process import USAGE_ERROR

Settings = TypeVar("Settings")


def flag(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


def positional(help: str, **more: Any) -> Any:
    return field(metadata={"help": help, **more})


class Parser(ArgumentParser):
    """jsonargparse for the fields of a dataclass, saying what is wrong in one line."""

    settings: type
    """The dataclass whose fields are the flags; set by `add_settings`."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)  # a slip such as --epoch is none of the flags

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # jsonargparse has options of its own, which have underscores.
        flags = [
            name for action in self._actions for name in action.option_strings if name[:2] == "--" and "_" not in name
        ]
        sys.stderr.write(f"{self.prog}: error: {one_line(message, self.settings, flags)}\n")
        sys.exit(USAGE_ERROR)


def one_line(message: str, settings: type, flags: list[str]) -> str:
    """What jsonargparse says over several lines, as: flag, value given, what is expected, nearest."""
    unknown = re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
    if unknown:
        return f"no flag {unknown[1]}; nearest: {nearest(unknown[1].split('=')[0], flags)}"
    expected_argument = re.search(r"argument (--[\w-]+).*: (expected .*)", message)
    if expected_argument:
        return f"{expected_argument[1]}: {expected_argument[2]}"
    key = re.search(r'[Kk]ey "?\'?([\w.]+)', message)
    missing_file = re.search(r"File does not exist: '(.*)'", message)
    if missing_file:
        return f"--config {missing_file[1]}: no such file"
    value = re.findall(r"(?:Given value|Got value|got input): ?(.*)", message) or re.findall(
        r"'([^']*)'\s*$|: (\S+) does not conform", message
    )
    known = {one.name: one for one in fields(settings)}
    if key and key[1] in known:
        given = f"{''.join(value[-1]).strip()} is not" if value else "is not"
        return f"{dashed(key[1])}: {given} {expectation(known[key[1]])}"
    if "parsing config" in message:
        return f"--config: not a YAML file of settings ({' '.join(message.split())})"
    if key and key[1] != "config":
        return f"--config: no setting '{key[1]}'; nearest: {nearest(key[1], known)}"
    return " ".join(message.split())


def expectation(one: dataclasses.Field) -> str:
    """What a flag takes, in words."""
    kinds = [kind for kind in (get_args(one.type) or (one.type,)) if kind is not type(None)]
    if get_origin(one.type) is Literal:
        kinds = [one.type]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return "one of " + ", ".join(map(str, choices))
    words = {
        PositiveInt: "a whole number of at least 1",
        NonNegativeInt: "a whole number of at least 0",
        PositiveFloat: "a number above 0",
        NonNegativeFloat: "a number of at least 0",
        bool: "true or false",
    }
    return words.get(kinds[0], "valid here")


def dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_settings(parser: Parser, settings: type) -> None:
    """A flag for each field of the dataclass; one without a default comes first, without a dash."""
    parser.settings = settings
    for one in fields(settings):
        if one.default is dataclasses.MISSING:
            parser.add_argument(one.name, type=one.type, **one.metadata)
            continue
        more: dict[str, Any] = {"nargs": "+"} if "nargs" in one.metadata else {}
        if one.type is bool:
            more = {"nargs": "?", "const": True}
        default = list(one.default) if isinstance(one.default, tuple) else one.default
        parser.add_argument(dashed(one.name), type=one.type, default=default, help=one.metadata["help"], **more)


def parse_before_dashes(
    program: str, description: str, settings: type[Settings], arguments: list[str] | None
) -> tuple[Parser, Settings, list[str]]:
    """Of a program whose own flags end at `--`: its parser, its settings, and the flags of run.py that follow."""
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = Parser(prog=program, description=description)
    add_settings(parser, settings)
    return parser, settings_from(parser.parse_args(arguments[:cut]), settings), arguments[cut + 1 :]


def settings_from(namespace: Any, settings: type[Settings]) -> Settings:
    """What was parsed, as the dataclass."""
    return settings(**{one.name: builtin_value(namespace[one.name]) for one in fields(settings)})  # type: ignore[arg-type]


def builtin_value(value: Any) -> Any:
    """The built-in value of jsonargparse's restricted numbers, which YAML and checkpoints would not take."""
    if isinstance(value, (list, tuple)):
        return [builtin_value(item) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) if isinstance(value, int) else float(value)
    return value
