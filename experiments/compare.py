"""Compare runs: `python experiments/compare.py runs --html compare.html`, from their folders or from W&B.

Runs that differ in their seed only are one row: mean and deviation over seeds, and the difference to the best row,
paired by seed, with its confidence interval. Runs under different protocols are never ranked together.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import Parser, add_settings, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.comparing.tables import Order, Split, compare
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.read_run import Run, find_runs


@dataclass
class CompareConfig:
    """The order of the fields is the order of `--help`."""

    runs: str = positional(
        "run folders, folders of run folders, or W&B's offline folders; default: runs, unless there is --wandb",
        nargs="*",
        default=[],
    )
    wandb: str | None = flag(None, "entity/project of a W&B server, whose runs are compared too")
    split: Split = flag("val", "which scores; those with a CRF are val_crf and test_crf")
    metric: str | None = flag(None, "which score: pixel_accuracy, iou/CLASS, loss ...; default: miou, or top1")
    baseline: str | None = flag(None, "group, or run in it, that others are compared with; default: the best")
    sort: Order = flag("score", "order of the rows")
    csv: str | None = flag(None, "file to write the numbers to, with all digits")
    markdown: str | None = flag(None, "file to write the tables to")
    html: str | None = flag(None, "file to write one page to, that needs no network and no other file")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; imports no torch."""
    parser = Parser(prog="compare.py", description="Compare finished runs.")
    add_settings(parser, CompareConfig)
    config = settings_from(parser.parse_args(arguments), CompareConfig)
    problem = arguments_problem(config)
    if problem:
        parser.error(problem)
    return run_program("compare.py", lambda: report(config), "nothing more was written")


def arguments_problem(config: CompareConfig) -> str | None:
    for name in ("csv", "markdown", "html"):
        path = getattr(config, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            return f"--{name} {path}: there is no folder {Path(path).parent}"
    if config.html is not None and find_spec("plotly") is None:
        return '--html draws with plotly, which is not installed: pip install -e ".[compare]"'
    return None


def report(config: CompareConfig) -> None:
    """Print the comparison and write the files asked for."""
    comparison = compare(read_runs(config), config.split, config.metric, config.baseline, config.sort)
    from experiments.comparing.as_text import csv_text, markdown, print_comparison

    print_comparison(comparison)
    if config.csv is not None:
        write(Path(config.csv), csv_text(comparison))
    if config.markdown is not None:
        write(Path(config.markdown), markdown(comparison))
    if config.html is not None:
        from experiments.comparing.as_html import page

        write(Path(config.html), page(comparison))


def read_runs(config: CompareConfig) -> Iterator[Run]:
    """The runs asked for, in whatever state.

    Raises:
        ValueError: there is no such folder or project.
    """
    paths = config.runs or ([] if config.wandb else ["runs"])
    offline = [path for path in paths if is_wandb_folder(Path(path))]
    yield from find_runs(path for path in paths if path not in offline)
    if offline:
        yield from read_offline(offline)
    if config.wandb is not None:
        from experiments.run_files.wandb_runs import project_runs

        yield from project_runs(config.wandb)


def is_wandb_folder(path: Path) -> bool:
    """Whether it is `wandb`, which the client makes in a run folder, or one of those within."""
    return path.name == "wandb" or any(path.glob("*.wandb"))


def read_offline(paths: list[str]) -> list[Run]:
    """The runs of W&B's files; all paths at once, as a resumed run has several."""
    from experiments.run_files.wandb_runs import offline_runs

    broken, sound = [], []
    for path in paths:
        try:
            offline_runs([path])
            sound.append(path)
        except ValueError as error:
            broken.append(Run(Path(path).name, path, "broken", " ".join(str(error).split())))
    return [*offline_runs(sound), *broken]


def write(path: Path, text: str) -> None:
    write_atomically(path, text)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
