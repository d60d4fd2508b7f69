"""The model zoo: trained networks with their command, scores, cost and the checksum of each checkpoint, in Markdown."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from experiments.command_line.progress import duration
from experiments.comparing.as_text import escape_markdown, sparkline
from experiments.comparing.groups import Group, by_protocol, make_groups
from experiments.comparing.means import mean_curve, mean_of
from experiments.comparing.tables import MAIN_METRIC, describe, rank_of
from experiments.run_files.read_run import Run
from experiments.run_files.run_command import command

CHECKPOINT = Path("checkpoints") / "best.ckpt"
HEAD = """# Model zoo

Trained networks, one table for each protocol. Scores are means ± standard deviations over the seeds; the curve is the
validation score during training, from its lowest to its highest value; the time is that of one training with its
scoring. `python experiments/zoo.py RUNS` wrote this file from the results.json of the runs.
"""


def zoo(runs: Iterable[Run]) -> str:
    """The page of all finished runs.

    Raises:
        ValueError: no run is finished.
    """
    protocols = by_protocol(runs)
    if not protocols:
        raise ValueError("no run is finished; give folders of runs that have a results.json")
    return "\n".join([HEAD, *(section(alike) for alike in protocols)])


def section(runs: list[Run]) -> str:
    """The runs of one protocol: what it is, a table, and the checkpoints."""
    said = describe(runs[0].protocol)
    metric = MAIN_METRIC[runs[0].protocol["task"]]
    groups = make_groups(runs)
    split = "test" if any("test" in run.scores for run in runs) else "val"
    groups.sort(key=lambda group: rank_of(group, "val", metric) or 0, reverse=True)
    titles = ["network", f"val {metric}", *([f"test {metric}"] if split == "test" else []), "seeds", "curve", "params"]
    titles += ["time", "machine"]
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)]]
    lines += [[escape_markdown(cell) for cell in cells(group, metric, split)] for group in groups]
    about = ", ".join(f"{name} {value}" for name, value in said.items() if name != "classes")
    parts = [
        f"## {escape_markdown(said['data'])}: {said['task']} of {len(runs[0].protocol['classes'])} classes",
        escape_markdown(about),
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        "\n\n".join(details(group) for group in groups),
    ]
    return "\n\n".join(parts) + "\n"


def cells(group: Group, metric: str, split: str) -> list[str]:
    """A row of the table."""
    first = group.runs[0]
    curve = mean_curve(group.runs, f"val/{metric}")
    scores = [mean_of(list(group.by_seed(one, metric).values())) for one in dict.fromkeys(("val", split))]
    seconds = mean_of([run.costs["wall_time_s"] for run in group.runs if "wall_time_s" in run.costs])
    return [
        group.label,
        *(
            "-" if one is None else f"{one.mean:.3f}" + ("" if one.std is None else f" ± {one.std:.3f}")
            for one in scores
        ),
        ", ".join(map(str, sorted({run.seed for run in group.runs if run.seed is not None}))),
        sparkline([curve[epoch].mean for epoch in sorted(curve)]),
        f"{first.costs['params'] / 1e6:.2f} M" if "params" in first.costs else "-",
        "-" if seconds is None else duration(seconds.mean),
        f"{first.training.get('device', 'unknown')}, {first.training.get('precision', 'unknown')}",
    ]


def details(group: Group) -> str:
    """The command, and the checkpoint of each seed."""
    settings = {name: value for name, value in group.runs[0].config.items() if name != "seed"}
    lines = [f"**{escape_markdown(group.label)}**", f"```bash\n{command(settings)}\n```"]
    return "\n\n".join([*lines, "\n".join(f"- {checkpoint(run)}" for run in group.runs)])


def checkpoint(run: Run) -> str:
    """Seed, size and SHA-256 of a run's best checkpoint, and the version that made it."""
    path = Path(run.where) / CHECKPOINT
    made = (
        f"seed {run.seed}, graft {run.versions.get('graft', 'unknown')}, torch {run.versions.get('torch', 'unknown')}"
    )
    if not path.is_file():
        return f"{made}: the checkpoint is not there any more"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{made}: {path.stat().st_size / 1e6:.1f} MB, sha256 `{digest}`"
