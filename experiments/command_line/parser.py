"""A command line from the fields of a dataclass: flags by theme, YAML files, and errors in one line. No torch."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import yaml

from experiments.command_line.kinds import Kind, WrongValueError, kind_of
from experiments.command_line.known_names import nearest
from experiments.command_line.process import USAGE_ERROR

Settings = TypeVar("Settings")
HELP_COLUMN = 30


def flag(default: Any, help: str, *, group: str = "flags", path: bool = False, **names: Any) -> Any:
    """A field that is a flag.

    Args:
        help: one line that can be read alone; the default is added to it, unless it is None, False, "" or empty.
        group: the heading of `--help` that the flag stands under.
        path: whether the value is a path, in which a leading ~ stands for the home directory.
        names: how `run_checks` finds the names that are allowed.
    """
    metadata = {"help": help, "group": group, "path": path, **names}
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def positional(help: str, *, path: bool = False, many: bool = False) -> Any:
    """A field that is an argument without a flag; `many` takes any number of them, also none."""
    metadata = {"help": help, "positional": True, "path": path}
    return field(default_factory=list, metadata=metadata) if many else field(metadata=metadata)


class HelpFormatter(argparse.HelpFormatter):
    """One column for all flags; a switch stands without the true or false that it also takes."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return ", ".join(action.option_strings) if action.const is True else super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """argparse for the fields of a dataclass. Says in one line what is wrong, and exits with 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog, None, description, formatter_class=HelpFormatter, allow_abbrev=False, exit_on_error=False
        )
        self.kinds: dict[str, Kind] = {}
        self.defaults: dict[str, Callable[[], Any]] = {}

    def add_settings(self, settings: type) -> None:
        """Add a flag, or a positional argument, for each field of a dataclass."""
        hints = get_type_hints(settings, include_extras=True)
        groups: dict[str, Any] = {}
        places = []
        for one in fields(settings):
            kind = self.kinds[one.name] = kind_of(hints[one.name], path=one.metadata["path"])
            if one.default_factory is not dataclasses.MISSING:
                self.defaults[one.name] = one.default_factory
            elif one.default is not dataclasses.MISSING:
                self.defaults[one.name] = lambda value=one.default: value  # type: ignore[misc]
            help_text = help_line(one, self.defaults.get(one.name, lambda: None)())
            if "positional" in one.metadata:
                places.append(f"[{one.name.upper()} ...]" if kind.several else one.name.upper())
                self.add_argument(one.name, nargs="*" if kind.several else None, help=help_text)
                continue
            title = one.metadata["group"]
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            more: dict[str, Any] = {"metavar": kind.placeholder}
            if kind.several:
                more["nargs"] = "+"
            elif kind.words == "true or false":
                more |= {"nargs": "?", "const": True}
            groups[title].add_argument(dashed(one.name), default=argparse.SUPPRESS, help=help_text, **more)
        self.usage = " ".join([self.prog, *places, "[flags]"])

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """The arguments over the files of `--config`, over the defaults, each converted to its field's type."""
        try:
            given, unknown = self.parse_known_args(args)
        except argparse.ArgumentError as error:
            self.error(f"{error.argument_name}: {error.message}")
        if unknown:
            self.error(self.unknown_problem(unknown))
        typed = vars(given)
        values = {name: make() for name, make in self.defaults.items()}
        for path in typed.get("config") or ():
            values |= self.read_config(path)
        for name in self.kinds.keys() & typed.keys():
            if not (self.kinds[name].several and typed[name] == []):  # no positional arguments
                values[name] = self.converted(name, typed[name], dashed(name))
        return argparse.Namespace(**typed | values)

    def read_config(self, path: str) -> dict[str, Any]:
        """The settings of a YAML file; names may be written with dashes."""
        file = Path(path).expanduser()
        if not file.is_file():
            self.error(f"--config {path}: no such file")
        try:
            there = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"--config {path}: not a YAML file of settings ({' '.join(str(error).split())})")
        if not isinstance(there, dict):
            self.error(f"--config {path}: not a YAML file of settings; write lines such as lr: 0.01")
        values = {}
        for key, value in there.items():
            name = str(key).replace("-", "_")
            if name not in self.kinds:
                self.error(f"--config {path}: no setting '{key}'; nearest: {nearest(name, self.kinds)}")
            values[name] = self.converted(name, value, f"{dashed(name)} in {path}")
        return values

    def converted(self, name: str, value: Any, where: str) -> Any:
        try:
            return self.kinds[name].convert(value)
        except WrongValueError as error:
            self.error(f"{where}: {error} is not {self.kinds[name].words}")

    def unknown_problem(self, unknown: list[str]) -> str:
        name = next((one for one in unknown if one.startswith("-")), None)
        if name is None:
            return f"'{unknown[0]}' belongs to no flag"
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return f"no flag {name}; nearest: {nearest(name.split('=')[0], flags)}"

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split())}\n")
        sys.exit(USAGE_ERROR)


def help_line(one: dataclasses.Field, default: Any) -> str:
    """The help of a flag with its default, as argparse takes it."""
    text = one.metadata["help"]
    if default not in (None, False, "", []):
        text += f"; default: {' '.join(map(str, default)) if isinstance(default, list) else str(default).lower()}"
    return text.replace("%", "%%")


def dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_before_dashes(
    program: str, description: str, settings: type[Settings], arguments: list[str] | None
) -> tuple[Parser, Settings, list[str]]:
    """For a program whose own flags end at `--`: its parser, its settings, and the flags of run.py that follow."""
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = Parser(program, description)
    parser.add_settings(settings)
    parser.usage = f"{parser.usage} -- [flags of run.py]"
    return parser, settings_from(parser.parse_args(arguments[:cut]), settings), arguments[cut + 1 :]


def settings_from(namespace: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The parsed values as an instance of the dataclass."""
    return settings(**{one.name: getattr(namespace, one.name) for one in fields(settings)})  # type: ignore[arg-type]
