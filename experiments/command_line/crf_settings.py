"""The values of `--crf-settings`: a preset of heads/crf.py, a YAML file such as tune_crf.py writes, or YAML itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.command_line.known_names import class_fields, dict_keys, nearest

if TYPE_CHECKING:
    from heads.crf import CRFSettings  # imports torch

DEFAULT = "deeplabv2_resnet101"
NOTES = ("tuned_on", "tried")
"""Keys of a settings file that record where the settings come from; they set nothing."""


def crf_settings_problem(named: str) -> str | None:
    """The first problem with `--crf-settings NAMED` that can be found without importing torch, in one line, or None."""
    presets = dict_keys("heads/crf.py", "PRESETS")
    if named in presets:
        return None
    path = Path(named)
    if not is_inline(named) and not path.is_file():
        if path.suffix:
            return f"--crf-settings {named}: no such file"
        return f"--crf-settings: no preset and no file '{named}'; nearest presets: {nearest(named, presets)}"
    try:
        values = yaml.safe_load(named if is_inline(named) else path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"--crf-settings {named}: not a YAML file ({' '.join(str(error).split())})"
    known = class_fields("heads/crf.py", "CRFSettings")
    if not isinstance(values, dict):
        return f"--crf-settings {named}: write a setting on each line, such as w1: 4; there are {', '.join(known)}"
    for key, value in values.items():
        if key in NOTES:
            continue
        if key not in known:
            return f"--crf-settings {named}: no setting '{key}'; nearest: {nearest(str(key), known)}"
        if key != "normalization" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            return f"--crf-settings {named}: {key} is {value}, not a number"
    return None


def is_inline(named: str) -> bool:
    """Whether the settings themselves are given, such as '{iterations: 5}', and not the name of something."""
    return named.startswith("{")


def read_crf_settings(named: str | None) -> CRFSettings:
    """The preset, or the default preset with the settings of a file.

    Raises:
        ValueError: a setting is out of its range.
    """
    from heads.crf import PRESETS

    if named is None or named in PRESETS:
        return PRESETS[named or DEFAULT]
    text = named if is_inline(named) else Path(named).read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    try:
        return dataclasses.replace(
            PRESETS[DEFAULT], **{key: value for key, value in values.items() if key not in NOTES}
        )
    except ValueError as error:
        raise ValueError(f"--crf-settings {named}: {error}") from error
