"""A comparison as text: on the terminal, as Markdown, as CSV."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable

from experiments.command_line.console import make_console
from experiments.command_line.progress import duration
from experiments.comparing.groups import format_value
from experiments.comparing.means import Difference, SeedStatistics, mean_curve
from experiments.comparing.tables import Comparison, GroupRow, Table
from experiments.run_files.read_run import COSTS

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 12
NOT_TOGETHER = "Scores under different protocols do not compare: these are {count} tables, each ranked by itself."
METHOD = (
    "Scores are mean ± sample standard deviation over seeds. Differences are paired by seed, with the 95 % Student t "
    "interval of their mean; it is not widened for the number of groups."
)
MOST_CLASSES = 12
MOST_GROUPS = 5
WIDTH_OF_FILES = 240
Columns = dict[str, list[str]]
"""The cells of each column, by its title."""


def score(mean: SeedStatistics | None) -> str:
    if mean is None:
        return "-"
    return f"{mean.mean:.4f}" if mean.std is None else f"{mean.mean:.4f} ± {mean.std:.4f}"


def format_difference(one: Difference | None) -> str:
    if one is None:
        return "no common seed"
    return f"{one.mean:+.4f}" if one.low is None else f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"


COST_CELLS: dict[str, tuple[str, Callable[[float], str]]] = {
    "params": ("params", lambda value: f"{value / 1e6:.2f} M"),
    "gmacs": ("GMACs", lambda value: f"{value:.3f}"),
    "wall_time_s": ("time", duration),
    "train_images_per_s": ("images/s", lambda value: f"{value:.1f}"),
    "peak_memory_mib": ("peak MiB", lambda value: f"{value:.0f}"),
}


def main_cells(table: Table) -> Columns:
    """The columns of a table; costs that no run has recorded are left out."""
    cells: Columns = {
        "group": [row.label for row in table.rows],
        "seeds": [str(row.score.n) if row.score else "-" for row in table.rows],
        f"{table.split} {table.metric}": [score(row.score) for row in table.rows],
        "difference [95 %]": [difference_to_baseline(row, table) for row in table.rows],
        "best epoch": [f"{row.best_epoch.mean:.3g}" if row.best_epoch else "-" for row in table.rows],
    }
    for name, (title, text) in COST_CELLS.items():
        if any(name in row.costs for row in table.rows):
            cells[title] = [text(row.costs[name]) if name in row.costs else "-" for row in table.rows]
    cells["Pareto"] = ["●" if row.on_front else "" for row in table.rows]
    curves = [mean_curve(row.group.runs, f"val/{table.metric}") for row in table.rows]
    cells["curve"] = [sparkline([mean.mean for mean in curve.values()]) for curve in curves]
    return cells


def difference_to_baseline(row: GroupRow, table: Table) -> str:
    if row.label == table.baseline:
        return "baseline"
    return format_difference(row.difference) if row.score and table.baseline else "-"


def class_cells(table: Table, most_classes: int | None, most_groups: int) -> Columns:
    """Each class's score in the baseline, and the differences of other groups; the largest differences come first."""
    base = next((row for row in table.rows if row.label == table.baseline), None)
    others = [row for row in table.rows if row is not base][:most_groups]
    if base is None or not base.classes:
        return {}

    def spread(name: str) -> float:
        return max((abs(one.mean) for row in others if (one := row.class_differences.get(name))), default=0.0)

    names = sorted(base.classes, key=spread, reverse=True)[:most_classes]
    cells = {"class": names, base.label: [score(base.classes[name]) for name in names]}
    for row in others:
        cells[row.label] = [f"{one.mean:+.4f}" if (one := row.class_differences.get(name)) else "-" for name in names]
    return cells


def setting_cells(table: Table) -> Columns:
    """The settings in which the groups differ."""
    names = [name for name in table.differing if name not in ("backbone", "head")]
    cells = {name: [format_value(row.group.settings.get(name)) for row in table.rows] for name in names}
    return {"group": [row.label for row in table.rows], **cells} if names else {}


def print_comparison(comparison: Comparison) -> None:
    console = make_console(WIDTH_OF_FILES)
    if len(comparison.tables) > 1:
        console.print(NOT_TOGETHER.format(count=len(comparison.tables)), style="bold yellow")
    for table in comparison.tables:
        console.print()
        console.print(table.title, style="bold")
        for remark in table.remarks:
            console.print(f"note: {remark}")
        console.print(rich_table(main_cells(table)))
        classes = class_cells(table, MOST_CLASSES, MOST_GROUPS)
        if len(classes) > 2:
            console.print(
                rich_table(classes, f"{table.split} {table.class_score} by class, and differences to {table.baseline}")
            )
    if any(row.difference for table in comparison.tables for row in table.rows):
        console.print(METHOD, style="dim")
    if comparison.others:
        others: Columns = {
            "not ranked": [run.where for run in comparison.others],
            "state": [str(run.state) for run in comparison.others],
            "reason": [run.reason for run in comparison.others],
        }
        console.print()
        console.print(rich_table(others, right=()))


def rich_table(cells: Columns, title: str | None = None, right: Sequence[str] | None = None) -> RichTable:
    """A table of rich, in which numbers are aligned to the right."""
    drawn = RichTable(title=title, title_justify="left")
    for column in cells:
        first = column in (next(iter(cells)), "curve")
        justify = "left" if first or right is not None else "right"
        drawn.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for line in zip(*cells.values(), strict=True):
        drawn.add_row(*line)
    return drawn


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown tables, with all classes and the settings that differ."""
    parts = []
    if len(comparison.tables) > 1:
        parts.append(NOT_TOGETHER.format(count=len(comparison.tables)))
    for table in comparison.tables:
        parts.append(f"## {escape_markdown(table.title)}")
        parts.append("\n".join(f"- {escape_markdown(remark)}" for remark in table.remarks))
        parts.append(markdown_table(main_cells(table)))
        parts.append(markdown_table(class_cells(table, None, MOST_GROUPS)))
        parts.append(markdown_table(setting_cells(table)))
    if comparison.tables:
        parts.append(METHOD)
    others = [f"- {escape_markdown(f'{run.where} is {run.state}: {run.reason}')}" for run in comparison.others]
    if others:
        parts += ["## Not ranked", "\n".join(others)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(cells: Columns) -> str:
    if not cells:
        return ""
    lines = [list(cells), ["---", *["--:"] * (len(cells) - 1)], *zip(*cells.values(), strict=True)]
    return "\n".join("| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text).replace("&", "&amp;").replace("\n", " ")


def csv_text(comparison: Comparison) -> str:
    """A row for each group of each table, with all digits."""
    rows = [csv_row(number, table, row) for number, table in enumerate(comparison.tables, 1) for row in table.rows]
    columns = {name: None for row in rows for name in row}
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def csv_row(number: int, table: Table, row: GroupRow) -> Mapping[str, Any]:
    cells: dict[str, Any] = {"table": number, "protocol": table.title, "group": row.label}
    cells["runs"] = " ".join(run.name for run in row.group.runs)
    cells |= {"split": table.split, "metric": table.metric, "baseline": table.baseline, "on_front": row.on_front}
    if row.score:
        cells |= {"mean": row.score.mean, "std": row.score.std, "seeds": row.score.n}
    if row.difference:
        one = row.difference
        cells |= {"difference": one.mean, "low": one.low, "high": one.high, "common_seeds": one.n}
    if row.best_epoch:
        cells["best_epoch"] = row.best_epoch.mean
    cells |= {name: row.costs[name] for name in COSTS if name in row.costs}
    cells |= {f"{table.class_score.lower()}/{name}": mean.mean for name, mean in row.classes.items()}
    return cells | {f"setting/{name}": format_value(row.group.settings.get(name)) for name in table.differing}


def sparkline(values: Sequence[float]) -> str:
    """A curve as at most `LONGEST` bars of text, scaled from its smallest to its largest value."""
    if not values:
        return ""
    steps = min(len(values), LONGEST)
    chosen = [values[round(i * (len(values) - 1) / max(1, steps - 1))] for i in range(steps)]
    least, greatest = min(chosen), max(chosen)
    scale = (len(BARS) - 1) / (greatest - least) if greatest > least else 0.0
    return "".join(BARS[round((value - least) * scale)] for value in chosen)
