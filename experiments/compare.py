"""Compare runs: `python experiments/compare.py runs --html compare.html`, from their folders or from W&B.

Runs that differ only in their seed form one row, with the mean and standard deviation over seeds and the difference to
the best row, paired by seed, with its confidence interval. Runs that were scored under different protocols, or trained
on other data or classes, go into separate tables.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.comparing.tables import Order, Split, compare
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.read_run import DEPTH, Run, find_runs


@dataclass
class CompareConfig:
    """The order of the fields is the order of `--help`."""

    runs: list[str] = positional(
        "run folders, folders that hold run folders at most DEPTH levels below, or offline folders of W&B; default: "
        "runs, unless there is --wandb".replace("DEPTH", str(DEPTH)),
        path=True,
        many=True,
    )
    wandb: str | None = flag(None, "project on the W&B server, as entity/project, whose runs are compared too")
    split: Split = flag("val", "split whose scores are compared; val_crf and test_crf are the scores with a CRF")
    metric: str | None = flag(
        None,
        "score to compare: pixel_accuracy, iou/CLASS, loss ...; default: miou, or top1 or map of other tasks",
    )
    baseline: str | None = flag(
        None, "baseline of all differences: label of a group, or name of one of its runs; default: the best group"
    )
    sort: Order = flag("score", "order of the rows in each table")
    csv: str | None = flag(None, "CSV file to write the numbers to, with all digits", path=True)
    markdown: str | None = flag(None, "Markdown file to write the tables to", path=True)
    html: str | None = flag(None, "HTML file to write one page to, which needs no network and no other file", path=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; imports no torch."""
    parser = Parser("compare.py", "Compare finished runs.")
    parser.add_settings(CompareConfig)
    config = settings_from(parser.parse_args(arguments), CompareConfig)
    problem = arguments_problem(config)
    if problem:
        parser.error(problem)
    return run_program("compare.py", lambda: compare_runs(config), "nothing more was written")


def arguments_problem(config: CompareConfig) -> str | None:
    for name in ("csv", "markdown", "html"):
        path = getattr(config, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            return f"--{name} {path}: there is no folder {Path(path).parent}"
    if config.html is not None and find_spec("plotly") is None:
        return '--html draws with plotly, which is not installed: pip install -e ".[compare]"'
    return None


def compare_runs(config: CompareConfig) -> None:
    """Print the comparison and write the files asked for."""
    comparison = compare(read_runs(config), config.split, config.metric, config.baseline, config.sort)
    from experiments.comparing.as_text import csv_text, markdown, print_comparison

    print_comparison(comparison)
    if config.csv is not None:
        write_file(Path(config.csv), csv_text(comparison))
    if config.markdown is not None:
        write_file(Path(config.markdown), markdown(comparison))
    if config.html is not None:
        from experiments.comparing.as_html import page

        write_file(Path(config.html), page(comparison))


def read_runs(config: CompareConfig) -> Iterator[Run]:
    """The runs that are asked for, in whatever state they are.

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
    """Whether it is the folder `wandb` that the client makes in a run folder, or a folder within that."""
    return path.name == "wandb" or any(path.glob("*.wandb"))


def read_offline(paths: list[str]) -> list[Run]:
    """The runs in W&B's offline files. Takes all paths at once, because a resumed run has several files."""
    from experiments.run_files.wandb_runs import offline_runs

    broken, sound = [], []
    for path in paths:
        try:
            offline_runs([path])
            sound.append(path)
        except ValueError as error:
            broken.append(Run(Path(path).name, path, "broken", " ".join(str(error).split())))
    return [*offline_runs(sound), *broken]


def write_file(path: Path, text: str) -> None:
    """Write the file and print its path."""
    write_atomically(path, text)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
