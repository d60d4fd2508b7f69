"""A W&B report of a project's runs: `python experiments/report.py ENTITY/PROJECT`. Needs the package wandb-workspaces.

Curves, scores against costs, the settings that differ, prediction pictures, and a table of the runs sorted by score.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report


@dataclass
class ReportConfig:
    """The order of the fields is the order of `--help`."""

    project: str = positional("project on the W&B server, as entity/project")
    title: str = flag("Graft: runs compared", "title of the report")
    score: str = flag("val/miou", "score that runs are compared by; val/top1 for classification, val/map for detection")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import W&B after. Returns the exit code."""
    parser = Parser("report.py", "Make a W&B report of a project's runs.")
    parser.add_settings(ReportConfig)
    config = settings_from(parser.parse_args(arguments), ReportConfig)
    problem = report_problem(config.project)
    if problem:
        parser.error(problem)

    def work() -> None:
        report = build(config)
        try:
            report.save()
        except Exception as error:  # the client's errors have no common base class
            raise ValueError(f"{config.project}: {' '.join(str(error).split())}") from error
        print(report.url)

    return run_program("report.py", work, "no report was made")


def report_problem(project: str) -> str | None:
    """The first problem that can be found without the W&B server, in one line, or None."""
    if project.count("/") != 1 or not all(project.split("/")):
        return f"{project}: give entity/project"
    if importlib.util.find_spec("wandb_workspaces") is None:
        return "the package wandb-workspaces is not installed; pip install wandb-workspaces"
    return None


def build(config: ReportConfig) -> "Report":
    """Build the report; nothing is sent before its `save`."""
    import wandb_workspaces.reports.v2 as wr

    entity, project = config.project.split("/")
    best = wr.SummaryMetric(f"{config.score}.max")
    runs = wr.Runset(
        entity=entity,
        project=project,
        name="runs",
        order=[wr.OrderBy(best, ascending=False)],
        pinned_columns=["run:displayName", f"summary:{config.score}.max", "config:backbone", "config:head"],
    )
    costs = (("gmacs", "GMACs"), ("params", "parameters"))
    panels: list[Any] = [
        wr.LinePlot(title=config.score, x="epoch", y=[config.score]),
        wr.LinePlot(title="loss", x="epoch", y=["train/loss_epoch", "val/loss"]),
        *(wr.ScatterPlot(title=f"score against {name}", x=wr.Config(key), y=best, log_x=True) for key, name in costs),
        wr.BarPlot(title="best score", metrics=[best]),
        wr.RunComparer(diff_only="split"),
        wr.MediaBrowser(title="predictions", media_keys=["predictions"], num_columns=3),
    ]
    return wr.Report(
        project=project,
        entity=entity,
        title=config.title,
        width="fluid",
        blocks=[wr.H1(config.title), wr.PanelGrid(runsets=[runs], panels=panels)],
    )


if __name__ == "__main__":
    sys.exit(main())
