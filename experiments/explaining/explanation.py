"""An explanation: a picture, and the numbers behind it as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.command_line.explain_flags import ExplainFlags
from experiments.inference.outputs import encoded
from experiments.inference.predict_all import write_files


@dataclass(frozen=True)
class Explanation:
    """One picture that a method has drawn.

    Args:
        stem: where it is written below the output folder, without the method's name and the suffix.
        facts: plain values, finite, for the JSON file.
    """

    stem: Path
    picture: Image.Image
    facts: dict[str, Any]


def write(explanation: Explanation, out: Path, flags: ExplainFlags) -> Path:
    """Write STEM.METHOD.png and STEM.METHOD.json below `out`, neither ever half; returns the path of the picture."""
    content = {"method": flags.method, "run": flags.run, **explanation.facts}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    stem = out / explanation.stem.with_name(f"{explanation.stem.name}.{flags.method}")
    write_files(stem, {".png": encoded(explanation.picture, "PNG", optimize=True), ".json": text.encode()})
    return stem.with_name(stem.name + ".png")
