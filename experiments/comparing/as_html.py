"""A comparison as one HTML page that contains everything: numbers, pictures, plotly and its own script.

Its content security policy forbids all requests. The parts of the page are in `page/`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from experiments.comparing.as_text import COST_CELLS, METHOD, NOT_TOGETHER
from experiments.comparing.groups import format_value
from experiments.comparing.means import Difference, SeedStatistics, mean_curve
from experiments.comparing.pictures import BUDGET, side_by_side
from experiments.comparing.tables import Comparison, GroupRow, Table, describe, higher_is_better
from experiments.run_files.read_run import COSTS

PARTS = Path(__file__).with_name("page")
MARKER = re.compile(r"/\* (page\.css|page\.js|data|plotly) \*/")
"""The places of page.html that are replaced."""
DIGITS = 6
"""Significant digits of the numbers in the page; CSV files have all digits."""


def page(comparison: Comparison) -> str:
    """The text of the page."""
    data = {
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "method": METHOD,
        "warning": NOT_TOGETHER.format(count=len(comparison.tables)) if len(comparison.tables) > 1 else "",
        "costs": {name: COST_CELLS[name][0] for name in COSTS},
        "tables": [table_data(table, BUDGET // len(comparison.tables)) for table in comparison.tables],
        "others": [{"where": run.where, "state": run.state, "reason": run.reason} for run in comparison.others],
    }
    # A "<" in the name of a folder could end the element that holds the data.
    text = json.dumps(rounded(data), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {name: (PARTS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    parts |= {"data": text, "plotly": get_plotlyjs()}
    # One pass over the template: a class or a run may be called as a marker is.
    return MARKER.sub(lambda marker: parts[marker[1]], (PARTS / "page.html").read_text(encoding="utf-8"))


def table_data(table: Table, budget: int) -> dict[str, Any]:
    metric = f"val/{table.metric}"
    columns = list(dict.fromkeys([metric, "val/loss", "train/loss_epoch"]))
    return {
        "protocol": describe(table.protocol),
        "classes": [str(name) for name in table.protocol["classes"]],
        "split": table.split,
        "metric": table.metric,
        "classScore": table.class_score,
        "higher": higher_is_better(table.metric),
        "baseline": table.baseline,
        "remarks": list(table.remarks),
        "differing": list(table.differing),
        "columns": columns,
        "rows": [row_data(row, columns, table.split, table.metric, table.differing) for row in table.rows],
        "pictures": side_by_side([row.group for row in table.rows], budget),
    }


def row_data(row: GroupRow, columns: Sequence[str], split: str, metric: str, named: Sequence[str]) -> dict[str, Any]:
    runs = [
        {"name": run.name, "where": run.where, "seed": run.seed, "score": run.scores.get(split, {}).get(metric)}
        for run in row.group.runs
    ]
    return {
        "label": row.label,
        "runs": runs,
        "settings": {name: format_value(row.group.settings.get(name)) for name in named},
        "score": mean_data(row.score),
        "epoch": row.best_epoch.mean if row.best_epoch else None,
        "difference": difference_data(row.difference),
        "costs": dict(row.costs),
        "front": row.on_front,
        "classes": {name: mean_data(mean) for name, mean in row.classes.items()},
        "classDifferences": {name: difference_data(one) for name, one in row.class_differences.items()},
        "curves": {column: curve_data(mean_curve(row.group.runs, column)) for column in columns},
    }


def mean_data(mean: SeedStatistics | None) -> dict[str, Any] | None:
    return None if mean is None else {"mean": mean.mean, "std": mean.std, "n": mean.n}


def difference_data(one: Difference | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n, "clear": one.is_clear}


def curve_data(curve: Mapping[int, SeedStatistics]) -> dict[str, list[Any]]:
    return {
        "epoch": list(curve),
        "mean": [mean.mean for mean in curve.values()],
        "std": [mean.std for mean in curve.values()],
    }


def rounded(value: Any) -> Any:
    """The same data with `DIGITS` significant digits, which halves the size of a page."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
