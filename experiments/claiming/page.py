"""Pictures and verdicts of claims as one HTML page that needs no other file, and as a Markdown table."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.run_files.json_file import read_json

STYLE = Path(__file__).resolve().parents[1] / "comparing" / "page" / "page.css"
CLASSES = {"holds": "good", "does not hold": "bad", "undecided": "std"}
MANY = {"holds": "hold", "does not hold": "do not hold", "undecided": "are undecided at this size"}
METHOD = (
    "A relation holds if the 95 % Student t interval of its difference, paired by seed, lies above zero; it does not "
    "hold if the interval lies below; otherwise it is undecided at this size. A claim holds if all of its relations "
    "do. Intervals are not corrected for the number of comparisons. Networks, data and training are far smaller than "
    "the papers': a verdict is about these runs, not about the papers'."
)


@dataclass(frozen=True)
class Result:
    """What claims.py has left of one claim."""

    name: str
    found: dict[str, Any]
    """The contents of its claim.json."""
    picture: bytes

    @property
    def verdict(self) -> str:
        return self.found["verdict"]

    @property
    def relations(self) -> list[tuple[str, str, str]]:
        """Measure and text, verdict, numbers."""
        return [(f"{one['measure']}: {one['relation']}", one["verdict"], one["said"]) for one in self.found["findings"]]


def read_results(folder: Path) -> list[Result]:
    """The results in a folder, in alphabetical order.

    Raises:
        ValueError: there are none, or a file is damaged.
    """
    files = sorted(folder.glob("*/claim.json"))
    if not files:
        raise ValueError(f"{folder} holds no results of claims; run some first, with --out {folder}")
    return [Result(file.parent.name, read_json(file), file.with_suffix(".png").read_bytes()) for file in files]


def markdown(results: Sequence[Result]) -> str:
    """A table with a row for each claim."""
    lines = ["| claim | at this size | differences with 95 % interval |", "|---|---|---|"]
    for one in results:
        numbers = "; ".join(f"`{text}` {verdict} ({said})" for text, verdict, said in one.relations)
        lines.append(f"| {one.name} | {one.verdict} | {numbers} |")
    return "\n".join(lines) + "\n"


def page(results: Sequence[Result]) -> str:
    """The text of the page."""
    counts = {words: sum(one.verdict == verdict for one in results) for verdict, words in MANY.items()}
    summary = ", ".join(f"{number} {words}" for words, number in counts.items() if number)
    seconds = sum(one.found["seconds"] for one in results)
    rows = "\n".join(row(one) for one in results)
    sections = "\n".join(section(one) for one in results)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Statements of papers, tried</title>
<style>
{STYLE.read_text(encoding="utf-8")}
td {{ white-space: normal; }} section img {{ max-width: 100%; }}
</style>
</head>
<body>
<header>
  <h1>Statements of papers, tried</h1>
  <p id="summary">{len(results)} claims: {summary}. All runs together took {seconds / 60:.0f} minutes of one job.
  Page made {datetime.now():%Y-%m-%d %H:%M}.</p>
</header>
<section><div class="scroll"><table>
<thead><tr><th class="text">claim</th><th class="text">at this size</th><th class="text">statement</th></tr></thead>
<tbody>
{rows}
</tbody></table></div></section>
{sections}
<footer id="method">{METHOD}</footer>
</body>
</html>
"""


def row(one: Result) -> str:
    name, statement = html.escape(one.name), html.escape(one.found["statement"])
    return f'<tr><td class="text"><a href="#{name}">{name}</a></td>{verdict_cell(one.verdict)}<td class="text">' + (
        f"{statement}</td></tr>"
    )


def section(one: Result) -> str:
    """The statement, its relations and the picture."""
    found = one.found
    relations = "\n".join(
        f'<tr><td class="text"><code>{html.escape(text)}</code></td>{verdict_cell(verdict)}'
        f'<td class="text">{html.escape(said)}</td></tr>'
        for text, verdict, said in one.relations
    )
    picture = base64.b64encode(one.picture).decode()
    note = f'<p class="note">{html.escape(found["note"])}</p>' if found["note"] else ""
    return f"""<section id="{html.escape(one.name)}">
<h2>{html.escape(found["statement"])}</h2>
<p class="note">{html.escape(found["source"])}</p>
{note}
<div class="scroll"><table><tbody>
{relations}
</tbody></table></div>
<figure><img alt="values of the arms and differences" src="data:image/png;base64,{picture}"></figure>
</section>"""


def verdict_cell(verdict: str) -> str:
    return f'<td class="text {CLASSES[verdict]}">{verdict}</td>'
